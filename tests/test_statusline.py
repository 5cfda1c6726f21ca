"""The status line, bars, messages and colours on a terminal, and nothing of them elsewhere."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from fixtures.mirror import Mirror
from imgkit.host import colours, statusline
from tests.images import ROOT, environment
from tests.terminals import COLUMNS, Screen, python, run_on_terminal

SETUP = """
import logging, sys, time
from imgkit.host import statusline
from imgkit.host.progress import Steps, bar
log = logging.getLogger("imgkit")
log.setLevel(logging.INFO)
log.handlers = [statusline.StatusHandler(sys.stderr)]
steps = Steps()
"""


def script(body: str) -> str:
    return SETUP + "with statusline.enabled(sys.stderr):\n" + "\n".join(f"    {line}" for line in body.splitlines())


STEPS = script("""
with steps.step("plan"):
    time.sleep(0.6)
with steps.step("compose"):
    time.sleep(0.4)
    log.info("a message")
    time.sleep(0.4)
print("the result")
""")


@pytest.mark.slow
def test_a_step_is_shown_while_it_lasts_and_leaves_nothing() -> None:
    session = run_on_terminal(python(STEPS))
    assert session.status == 0
    assert session.ever(r"^ +0 s  plan$")
    assert session.ever(r"^ +1 s  compose$")
    assert session.screen.text == ["a message", "the result"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["pipe", "dumb", "no TERM"])
def test_without_a_terminal_steps_are_messages(how: str) -> None:
    if how == "pipe":
        done = subprocess.run(python(STEPS), capture_output=True, text=True, cwd=ROOT, timeout=60)
        assert (done.stdout, done.stderr) == ("the result\n", "plan …\ncompose …\na message\n")
        return
    session = run_on_terminal(python(STEPS), env={"TERM": "dumb" if how == "dumb" else ""})
    whole = "".join(session.pieces)
    if how == "dumb":
        assert whole == "plan …\r\ncompose …\r\na message\r\nthe result\r\n"


@pytest.mark.slow
def test_a_bar_takes_the_place_of_the_line() -> None:
    session = run_on_terminal(
        python(
            script("""
with steps.step("fetch"):
    time.sleep(0.5)
    with bar(100, "packages") as progress:
        for _ in range(10):
            progress.update(10)
            time.sleep(0.1)
        log.info("a message")
        time.sleep(0.3)
    time.sleep(0.5)
print("the result")
""")
        )
    )
    assert session.ever("fetch")
    assert session.ever("^packages: +[1-9]0%")
    assert not session.ever("fetch.*packages|packages.*fetch")
    assert session.screen.text == ["a message", "the result"]


def test_a_long_text_is_cut_and_escaped() -> None:
    body = f"""
with statusline.doing("a\\n\\x1b[2J" + "x" * {2 * COLUMNS}):
    time.sleep(0.6)
"""
    session = run_on_terminal(python(script(body)))
    assert session.status == 0
    assert session.ever(r"0 s  a\\x0a\\x1b\[2Jx+$")
    assert not session.screen.wide
    assert session.screen.text == []


def test_an_error_takes_the_line_away() -> None:
    body = """
try:
    with steps.step("x"):
        time.sleep(0.5)
        1 / 0
except ZeroDivisionError:
    print("caught")
"""
    session = run_on_terminal(python(script(body)))
    assert session.ever("x$")
    assert session.screen.text == ["caught"]


def test_output_of_something_else_ends_it_for_good() -> None:
    body = """
with statusline.doing("the command runs"):
    time.sleep(0.5)
    statusline.stop()
    sys.stdout.buffer.write(b"50 % of a line")
    sys.stdout.flush()
    time.sleep(0.6)
    assert not statusline.active()
"""
    session = run_on_terminal(python(script(body)))
    assert session.status == 0
    assert session.ever("the command runs")
    assert session.screen.text == ["50 % of a line"]


def test_what_begins_last_is_shown_and_what_was_before_comes_back() -> None:
    stream = Terminal()
    line = statusline._StatusLine(stream)
    first, second = object(), object()
    line.set(first, "outer")
    line.set(second, "inner")
    line.draw()
    assert stream.screen.text[0].endswith("s  inner")
    line.set(second, None)
    line.draw()
    assert stream.screen.text[0].endswith("s  outer")
    line.set(first, "changed")
    line.draw()
    assert stream.screen.text[0].endswith("s  changed")
    line.set(first, None)
    assert stream.screen.text == []
    line.stop()


class Terminal(io.StringIO):
    """A terminal without a size of its own."""

    def isatty(self) -> bool:
        return True

    @property
    def screen(self) -> Screen:
        return Screen().feed(self.getvalue())


def test_without_a_line_nothing_happens() -> None:
    with statusline.enabled(None), statusline.doing("x") as say, statusline.hidden():
        say("y")
        statusline.hide()
        statusline.show()
        assert not statusline.active()
    statusline.stop()


# ---- colours -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "terminal", "expected"),
    [
        ({"TERM": "xterm"}, True, True),
        ({"TERM": "xterm"}, False, False),
        ({"TERM": "dumb"}, True, False),
        ({}, True, False),
        ({"TERM": "xterm", "NO_COLOR": "1"}, True, False),
        ({"TERM": "xterm", "NO_COLOR": "0"}, True, False),
        ({"TERM": "xterm", "NO_COLOR": ""}, True, True),
        ({"FORCE_COLOR": "1"}, False, True),
        ({"CLICOLOR_FORCE": "1"}, False, True),
        ({"FORCE_COLOR": "0", "CLICOLOR_FORCE": ""}, False, False),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1", "TERM": "xterm"}, True, False),
    ],
)
def test_where_there_are_colours(environ: Mapping[str, str], terminal: bool, expected: bool) -> None:
    stream = Terminal() if terminal else io.StringIO()
    assert colours.has_colours(stream, environ) == expected
    assert not colours.has_colours(None, environ)


@pytest.mark.slow
def test_an_error_of_the_command_line_is_red_once_and_its_hint_cyan() -> None:
    words = [sys.executable, "-m", "imgkit", "boot", "/no-such-image.qcow2", "--network", "nonne"]
    session = run_on_terminal(words)
    assert session.status == 2
    assert session.screen.colours == {"1;31", "36", "0"}
    text = "".join(session.pieces)
    assert text.count("\x1b[1;31merror:\x1b[0m ") == 1
    assert text.count("\x1b[36mhint:\x1b[0m did you mean none?") == 1
    assert text.count("invalid choice") == 1


@pytest.mark.slow
@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_without_colours_the_same_words(env: Mapping[str, str]) -> None:
    words = [sys.executable, "-m", "imgkit", "boot", "/no-such-image.qcow2"]
    session = run_on_terminal(words, env=env)
    assert "\x1b" not in "".join(session.pieces)
    assert session.screen.text[0].startswith("error: /no-such-image.qcow2")


# ---- a build -----------------------------------------------------------------------------------------------------


# The command, whose line is drawn a hundred times a second: a step may well take less than the 0.25 s between two.
OFTEN = """
from imgkit.host import statusline
statusline._TICK = 0.01
from imgkit.__main__ import program
program()
"""


@pytest.mark.mirror
def test_a_build_on_a_terminal(mirror: Mirror, mirror_url: str, tmp_path: Path) -> None:
    """It shows its bars and steps while it works, and leaves one line for each file, none of them twice."""
    words = ["build", "recipes/core.py", "--mirror", mirror_url, "--release-key", str(mirror.release_key)]
    words += ["--output", "oci", "--arch", "amd64", "--out", str(tmp_path)]
    session = run_on_terminal([*python(OFTEN), *words], env=environment(tmp_path / "cache"), timeout=300)
    assert session.status == 0, session.screen.text
    assert session.ever("^packages: ")
    assert session.ever(r"^ +[0-9]+ s  amd64: compose the root filesystem$")
    first, second = session.screen.text
    assert re.fullmatch(rf"{tmp_path}/linux\.oci: sha256:[0-9a-f]{{64}}", first)
    assert second == f"{tmp_path}/linux-amd64.container.json"
