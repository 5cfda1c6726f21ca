"""The user's terminal and a session: escapes, raw mode, the size, the exit status. The guest is the test."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkit.cli.commands import shell
from imgkit.cli.main import main
from imgkit.cli.terminals import interactive, terminalruns
from imgkit.cli.terminals.interactive import Escape, EscapeFilter, status_of
from imgkit.errors import UsageError
from imgkit.host.rawmode import RESET
from imgkit.vm.sessions import runningmachines
from imgkit.vm.sessions.guestsession import SessionEnd
from imgkit.vm.sessions.runningmachines import RunningMachine
from tests.ptys import UserTerminal

ROOT = Path(__file__).parents[1]

# ---- escapes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "parts"),
    [
        (b"ls\r", [b"ls\r"]),
        (b"~.", [Escape.LEAVE]),
        (b"a\r~.", [b"a\r", Escape.LEAVE]),
        (b"a\n~.b", [b"a\n", Escape.LEAVE, b"b"]),
        (b"a~.", [b"a~."]),
        (b"~~", [b"~"]),
        (b"~~.", [b"~."]),
        (b"~?~.", [Escape.HELP, Escape.LEAVE]),
        (b"~\x1a", [Escape.SUSPEND]),
        (b"~a~.", [b"~a~."]),
        (b"~\r~.", [b"~\r", Escape.LEAVE]),
        (b"\x03~.", [b"\x03~."]),
        (b"~", []),
    ],
)
def test_escapes(typed: bytes, parts: list[bytes | Escape]) -> None:
    assert EscapeFilter().feed(typed) == parts
    keys = EscapeFilter()
    one_by_one = [part for byte in typed for part in keys.feed(bytes([byte]))]
    assert join(one_by_one) == join(parts)


def join(parts: list[bytes | Escape]) -> list[bytes | Escape]:
    joined: list[bytes | Escape] = []
    for part in parts:
        last = joined[-1] if joined else None
        if isinstance(part, bytes) and isinstance(last, bytes):
            joined[-1] = last + part
        else:
            joined.append(part)
    return joined


@given(st.binary(max_size=50))
def test_what_has_no_escape_is_passed_on_as_it_is(data: bytes) -> None:
    plain = data.replace(b"~", b"-")
    assert b"".join(part for part in EscapeFilter().feed(plain) if isinstance(part, bytes)) == plain


# ---- exit status ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (SessionEnd(0, None), 0),
        (SessionEnd(7, None), 7),
        (SessionEnd(None, "SIGKILL"), 137),
        (SessionEnd(None, "SIGTERM"), 143),
        (SessionEnd(None, "SIG_IGN"), 1),
        (SessionEnd(None, "__doc__"), 1),
    ],
)
def test_the_status_of_an_end(end: SessionEnd, status: int) -> None:
    assert status_of(end) == status


def test_what_the_guest_learns_of_the_terminal() -> None:
    assert interactive.environment({}) == {"TERM": "dumb"}
    assert interactive.environment({"TERM": "", "LANG": "C"}) == {"TERM": "dumb"}
    assert interactive.environment({"TERM": "xterm", "COLORTERM": "truecolor", "SECRET": "s"}) == {
        "TERM": "xterm",
        "COLORTERM": "truecolor",
    }


# ---- on a terminal -------------------------------------------------------------------------------------------------

PROGRAM = """
import os, sys, threading
from contextlib import closing
from imgkit.cli.terminals import interactive
from imgkit.host import interrupts
from imgkit.host.rawmode import RawTerminal
from tests.sessions import FakeSession

guest = FakeSession()

def play():
{play}

def work():
    with closing(guest.session()) as session:
        threading.Thread(target=play, daemon=True).start()
        status = interactive.attend(session, RawTerminal())
        print("status", status, flush=True)
        return status

sys.exit(interrupts.run(work, interrupted=lambda: 130, clean_up=list))
"""
ECHO = """
guest.shows(b"ready")
while True:
    data = guest.typed()
    guest.shows(b"<" + data.hex().encode() + b">")
    if data == b"q":
        guest.says(type="exit", exitCode=5)
        return
"""


def user(play: str, rows: int = 24, columns: int = 80) -> UserTerminal:
    """Run ``attend`` on a terminal, with the guest's part played by the lines ``play``."""
    text = PROGRAM.replace("{play}", textwrap.indent(play.strip("\n"), "    "))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return UserTerminal([sys.executable, "-c", text], rows=rows, columns=columns, env=environment)


@pytest.mark.slow
def test_keys_go_to_the_guest_as_they_are_and_the_terminal_is_restored() -> None:
    with user(ECHO) as terminal:
        terminal.expect(b"ready")
        assert terminal.settings() != terminal.before
        for keys in (b"\x03", b"\x1a", b"\x13", b"\x11", b"\x16", b"\r", b"\xc3\xa4", b"\x7f\x00"):
            terminal.type(keys)
            terminal.expect(b"<" + keys.hex().encode() + b">")
        terminal.type(b"q")
        terminal.expect(RESET)
        assert terminal.wait() == 5
        assert terminal.settings() == terminal.before
        assert b"status 5" in terminal.shown


@pytest.mark.slow
def test_the_size_is_passed_on() -> None:
    with user("guest.shows(b'ready')\nwhile True:\n    guest.shows(repr(guest.heard()).encode())") as terminal:
        terminal.expect(b"ready")
        terminal.resize(33, 101)
        terminal.expect(b"[{'type': 'resize', 'columns': 101, 'rows': 33}]")
        terminal.type(b"~.")
        assert terminal.wait() == 130


@pytest.mark.slow
def test_a_guest_that_reads_nothing_can_be_left() -> None:
    with user("guest.shows(b'ready')\nwhile True: pass") as terminal:
        terminal.expect(b"ready")
        for _ in range(30):
            terminal.type(b"x" * 4000)
        terminal.type(b"\r~?")
        terminal.expect(b"~.  leave")
        terminal.type(b"~.")
        assert terminal.wait() == 130
        assert terminal.settings() == terminal.before


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_restores_the_terminal(number: signal.Signals) -> None:
    with user(ECHO) as terminal:
        terminal.expect(b"ready")
        terminal.process.send_signal(number)
        assert terminal.wait() == 130
        assert terminal.settings() == terminal.before
        assert RESET in terminal.shown


def stop(terminal: UserTerminal) -> None:
    terminal.process.send_signal(signal.SIGTSTP)


def type_the_escape(terminal: UserTerminal) -> None:
    terminal.type(b"~\x1a")


@pytest.mark.slow
@pytest.mark.parametrize("stop", [stop, type_the_escape])
def test_a_stopped_imgkit_leaves_the_terminal_to_the_shell(stop: Callable[[UserTerminal], None]) -> None:
    with user(ECHO) as terminal:
        terminal.expect(b"ready")
        for _ in range(20):  # now and then, the kernel hands a signal to another thread
            stop(terminal)
            terminal.expect(RESET)
            while Path(f"/proc/{terminal.process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
                terminal.look(0.01)
            assert terminal.settings() == terminal.before
            terminal.process.send_signal(signal.SIGCONT)
            deadline = time.monotonic() + 30
            while terminal.settings() == terminal.before:
                assert time.monotonic() < deadline, "the terminal was not set again"
                terminal.look(0.01)
        terminal.type(b"q")
        assert terminal.wait() == 5
        assert terminal.settings() == terminal.before


@pytest.mark.slow
def test_answers_of_the_terminal_are_not_left_for_the_shell() -> None:
    """The guest ends while something that it asked of the terminal has been typed but not read."""
    for _ in range(50):
        with user("guest.shows(b'ready')\nguest.typed()\nguest.says(type='exit', exitCode=0)") as terminal:
            terminal.expect(b"ready")
            terminal.type(b"x")
            terminal.type(b"\x1b[6;6Rrm -rf /\r" * 100)
            in_time = RESET not in terminal.look()  # what is typed after the end is the shell's
            assert terminal.wait() == 0
            os.set_blocking(terminal.slave, False)
            if in_time:
                with pytest.raises(BlockingIOError):
                    os.read(terminal.slave, 1000)
                return
    pytest.fail("the program always ended before all was typed")


@pytest.mark.slow
def test_a_machine_that_goes_away_is_an_error_and_the_terminal_is_restored() -> None:
    with user("guest.shows(b'ready')\nguest.unplug()") as terminal:
        terminal.expect(b"ready")
        assert terminal.wait() == 1
        assert b"GuestError: the terminal is gone" in terminal.shown
        assert terminal.settings() == terminal.before


# ---- the commands --------------------------------------------------------------------------------------------------


def test_without_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = tmp_path / "linux-amd64.qcow2"
    image.touch()
    hint = "hint: imgkit run IMAGE -- COMMAND… works without one\n"
    assert main(["shell", str(image)]) == 2
    assert capsys.readouterr().err == "error: a shell needs a terminal for standard input and output\n" + hint
    assert main(["run", "-t", str(image), "--", "vi"]) == 2
    assert capsys.readouterr().err == "error: -t needs a terminal for standard input and output\n" + hint


@pytest.fixture
def on_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that standard input and output are terminals."""
    monkeypatch.setattr(interactive, "has_terminal", lambda: True)


@pytest.mark.usefixtures("on_terminal")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "-t", "IMAGE", "--prompt", "x"], "--prompt needs no terminal"),
        (["run", "-t", "--limit", "3", "IMAGE", "--", "vi"], "-t and --limit contradict each other"),
        (["shell", "IMAGE", "--new", "--pid", "3"], "--new and --pid contradict each other"),
        (["shell", "IMAGE", "--new", "--work", ""], "--work: no folder given"),
    ],
)
def test_contradictions(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = tmp_path / "linux-amd64.qcow2"
    image.touch()
    assert main([str(image) if word == "IMAGE" else word for word in words]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}\n")


def machines(*pids: int) -> list[RunningMachine]:
    return [RunningMachine(pid, Path("/i"), Path("/f")) for pid in pids]


def test_which_machine_is_meant() -> None:
    image, both = Path("i.qcow2"), machines(3, 5)
    assert shell.choose(image, [], None) is None
    assert shell.choose(image, both[:1], None) == both[0]
    assert shell.choose(image, both, 5) == both[1]
    with pytest.raises(UsageError, match=r"^i\.qcow2: several machines run: 3, 5$") as several:
        shell.choose(image, both, None)
    assert several.value.hint == "--pid PID chooses one, --new boots another"
    with pytest.raises(UsageError, match=r"^--pid 4: runs no machine of i\.qcow2$") as other:
        shell.choose(image, both, 4)
    assert other.value.hint == "these do: 3, 5"
    with pytest.raises(UsageError, match=r"^--pid 4: runs no machine of") as none:
        shell.choose(image, [], 4)
    assert not none.value.hint


@pytest.mark.usefixtures("on_terminal")
@pytest.mark.parametrize("words", [["--memory", "512"], ["--work", "."], ["--network", "none"], ["--cpus", "1"]])
def test_options_for_a_machine_that_runs_already(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runningmachines, "find", lambda _image: machines(3))
    image = tmp_path / "linux-amd64.qcow2"
    image.touch()
    assert main(["shell", str(image), *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {words[0]} describes a new machine, but process 3 runs {image}\n")
    assert error.endswith(f"hint: leave out {words[0]}, or boot another machine with --new\n")


def test_the_words_after_the_dashes_are_the_guests() -> None:
    from imgkit.cli.parser import parse

    options = parse(["shell", "i.qcow2", "--root", "--", "ls", "--all"])
    assert (options.guest_command, options.root) == (["ls", "--all"], True)
    assert terminalruns.wanted(["ls"], Screen(), root=True)["command"] == ["ls"]  # type: ignore[arg-type]
    assert terminalruns.wanted([], Screen())["command"] is None  # type: ignore[arg-type]


class Screen:
    def size(self) -> tuple[int, int]:
        return 80, 24
