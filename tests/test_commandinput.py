"""Which standard input a command gets from ``imgkit run``, and how its time is limited."""

from __future__ import annotations

import io
import os
import pty
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from imgkit.cli.main import main
from imgkit.cli.options import commandinput, machineoptions
from imgkit.cli.parser import parse
from imgkit.vm.agent.protocol import AgentResult, Output


def options(*words: str) -> Any:
    return parse(["run", "x.qcow2", *words])


@contextmanager
def standard_input(path_or_descriptor: Path | int) -> Iterator[None]:
    """Make a file this process's standard input, as far as Python sees it."""
    before = sys.stdin
    with open(path_or_descriptor, closefd=not isinstance(path_or_descriptor, int)) as file:
        sys.stdin = file
        try:
            yield
        finally:
            sys.stdin = before


def test_a_file_is_passed_on_and_a_prompt_goes_alone(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("text")
    with standard_input(tmp_path / "in"):
        assert commandinput.standard_input(options("-i", "--", "cat")) is not None
        source = commandinput.standard_input(options("--", "cat"))
        assert source is not None
        assert source.read() == b"text"
        assert commandinput.standard_input(options("--prompt", "x")) is None


def test_a_terminal_is_passed_on_only_if_asked() -> None:
    controller, end = pty.openpty()
    try:
        with standard_input(end):
            assert commandinput.standard_input(options("--", "cat")) is None
            source = commandinput.standard_input(options("--interactive", "--", "cat"))
            assert source is not None
            os.write(controller, b"typed\n")
            assert source.read() == b"typed\n"
    finally:
        os.close(controller)
        os.close(end)


@pytest.mark.parametrize("stdin", [None, io.StringIO("no file of the system")])
def test_without_a_standard_input(stdin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", stdin)
    assert commandinput.standard_input(options("-i", "--", "cat")) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--limit", "0", "--", "x"], "error: --limit 0: not a number of seconds"),
        (["--limit", "-1", "--", "x"], "error: --limit -1: not a number of seconds"),
        (["--limit", "inf", "--", "x"], "error: --limit inf: not a number of seconds"),
        (["--limit", "nan", "--", "x"], "error: --limit nan: not a number of seconds"),
        (["-i", "--prompt", "x"], "error: -i is for a command: with --prompt the agent gets no other input"),
    ],
)
def test_what_is_refused_before_the_boot(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machineoptions, "boot", None)
    assert main(["run", "x.qcow2", *words]) == 2
    assert capsys.readouterr().err.splitlines()[0] == message


CANCELLED = AgentResult("error", "cancelled by the host", None, "SIGTERM", {"cancelled": True})


@pytest.mark.parametrize(
    ("words", "stopped", "result", "status"),
    [
        (["--limit", "5"], True, CANCELLED, 124),
        (["--limit", "5"], True, AgentResult("error", "", 3, None, {}), 3),  # it had ended by itself just before
        (["--limit", "5"], False, CANCELLED, 143),
        ([], False, AgentResult("error", "", 3, None, {}), 3),
    ],
)
def test_how_a_limited_command_ends(
    words: list[str],
    stopped: bool,
    result: AgentResult,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    asked: list[Any] = []

    class Request:
        def __init__(self, **keywords: Any) -> None:
            asked.append(keywords["limit"])
            self.stopped = stopped

        def __enter__(self) -> Request:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def __iter__(self) -> Iterator[Any]:
            return iter([Output("stdout", b"partial\n"), result])

    @contextmanager
    def boot(*_: object, terminals: bool) -> Iterator[SimpleNamespace]:
        assert not terminals
        yield SimpleNamespace(request=Request, kill=lambda: None)

    monkeypatch.setattr(machineoptions, "boot", boot)
    assert main(["run", "x.qcow2", *words, "--", "x"]) == status
    out, err = capfd.readouterr()
    assert out == "partial\n"
    assert asked == [5.0 if words else None]
    if status == 124:
        assert err == "error: the command was ended after 5 s\nhint: --limit with a larger number\n"
