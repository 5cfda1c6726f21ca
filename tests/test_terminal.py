"""Foreign text on terminals: characters that control a terminal or deceive a reader are never printed as they are."""

from __future__ import annotations

import ast
import io
import json
import logging
import os
import pty
import subprocess
import sys
import unicodedata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkit.api.inspecting import DiskContents, ListedPackage
from imgkit.cli import several
from imgkit.cli.commands import inspect
from imgkit.cli.hostchecks import HostCheck
from imgkit.cli.main import main
from imgkit.cli.talking import conversation
from imgkit.engines.reading import FilesystemUsage, PartitionDescription
from imgkit.errors import GuestError, InputError
from imgkit.host import terminal
from imgkit.host.progress import bar
from imgkit.vm import console
from imgkit.vm.failures import KernelPanicError
from tests.commandline import ROOT, Place

ESCAPES = "\x1b]0;title\x07\x1b[2J\x9b31m\x7f\r"
HOSTILE = f"nice{ESCAPES}\u202egnp.exe\u2066\u200b\u200f\u2028\u2029\ufeff\u3164\ud800\udcff\U000e0041"
LOGGED = HOSTILE.replace("\ud800", "").replace("\udcff", "")  # pytest keeps logs, and cannot send surrogates to xdist
CATEGORIES = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\u0338\u0489" + "\u0301" * 3, "a\u0338\u0489\\u0301\\u0301\\u0301"),
        ("\u0301a\u0301", "\\u0301a\u0301"),
        ("e\u0302\u0301t\u0302\u0301", "e\u0302\u0301t\u0302\u0301"),
        ("\x1b\u0301", "\\x1b\\u0301"),
        (" \u20dd\u20dd\u20dd", " \u20dd\u20dd\\u20dd"),
        ("\n\u0301", "\\x0a\\u0301"),
        ("a\u0301\u0301\ufe0f\u0301", "a\u0301\u0301\\ufe0f\\u0301"),
    ],
)
def test_accents_are_not_piled_up(text: str, shown: str) -> None:
    assert terminal.line(text) == shown


def obeyed(text: str, *, lines: bool = True) -> list[str]:
    """Return the characters of ``text`` that should not be there."""
    kept = text.replace("\n", "") if lines else text
    return [char for char in kept if unicodedata.category(char) in CATEGORIES or char in "\u3164\ufe0f\u2800"]


def test_the_test_sees_what_is_hostile() -> None:
    assert len(obeyed(HOSTILE)) == 17
    assert obeyed("plain äöü 漢字 🙂") == []


@given(st.text(st.characters(categories=None)))  # surrogates included
def test_nothing_hostile_comes_out_of_a_line(text: str) -> None:
    shown = terminal.line(text)
    assert obeyed(shown, lines=False) == []
    shown.encode()  # what is shown can be written
    assert terminal.line(shown) == shown


@given(st.text(st.characters(categories=None)))
def test_nothing_hostile_comes_out_of_a_block(text: str) -> None:
    shown = terminal.block(text)
    assert obeyed(shown) == []
    assert shown.count("\n") == text.count("\n")


@pytest.mark.slow
@given(st.recursive(st.text(st.characters(categories=None)) | st.integers(), st.lists, max_leaves=5))
def test_json_means_the_same_and_is_printable(value: Any) -> None:
    text = terminal.as_json(value)
    assert obeyed(text) == []
    assert text.isascii()
    assert json.loads(text) == value


@given(st.text(min_size=1))
def test_what_everybody_writes_stays_as_it_is(text: str) -> None:
    plain = "".join(char for char in text if unicodedata.category(char)[0] in "LN" and not obeyed(char))
    plain = plain.replace("\u115f", "").replace("\u1160", "").replace("\uffa0", "")
    assert terminal.line(plain) == plain


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nerror: b", r"a\x0aerror: b"),
        ("\x1b[31m", r"\x1b[31m"),
        ("\x9b", r"\x9b"),
        ("\u202e", r"\u202e"),
        ("\udcff", r"\xff"),
        ("\ud800", r"\ud800"),
        ("\U000e0041", r"\U000e0041"),
        ("äöü 漢", "äöü 漢"),
        (Path("/x\x1b"), r"/x\x1b"),
        ("x" * 4001, "x" * 4000 + " … (1 characters more)"),
    ],
)
def test_escapes(text: object, shown: str) -> None:
    assert terminal.line(text) == shown


def test_every_error_is_fit_for_a_terminal_wherever_it_is_printed() -> None:
    """Python's own traceback and pytest print ``str(error)``."""
    assert obeyed(str(InputError(HOSTILE))) == []
    assert obeyed(str(KernelPanicError(HOSTILE, console=HOSTILE))) == []
    assert obeyed(console.tail(HOSTILE * 3)) == []
    assert obeyed(str(console.died("ended", HOSTILE, "[ 0.000001] Kernel panic - not syncing: " + HOSTILE))) == []


# ---- the commands ----------------------------------------------------------------------------------------------------


def fails(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let ``imgkit doctor`` end in ``error``."""
    monkeypatch.setattr("imgkit.cli.commands.doctor.examine", lambda _: (_ for _ in ()).throw(error))


@pytest.mark.parametrize("words", [[], ["--debug"], ["--json"], ["--json", "--debug"]])
@pytest.mark.parametrize(
    "error",
    [
        InputError(HOSTILE, hint=HOSTILE),
        KernelPanicError(HOSTILE, console=f"{HOSTILE}\n{HOSTILE}", hint=HOSTILE),
        RuntimeError(HOSTILE),
        OSError(28, "no space", HOSTILE),
    ],
    ids=["input", "boot", "bug", "space"],
)
def test_errors(
    error: Exception, words: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    fails(monkeypatch, error)
    assert main(["doctor", *words]) != 0
    written = capfd.readouterr()
    assert "nice" in written.err
    assert obeyed(written.err) == []
    assert obeyed(written.out) == []


def test_the_findings_of_the_doctor(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    finding = HostCheck(HOSTILE, ok=False, detail=HOSTILE, purpose=HOSTILE, fix=HOSTILE)
    monkeypatch.setattr("imgkit.cli.commands.doctor.examine", lambda _: [finding])
    for words in ([], ["--json"]):
        main(["doctor", *words])
        assert obeyed(capfd.readouterr().out) == []


def test_log_lines_and_bars(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgkit.cli.commands.doctor.examine", lambda _: [])
    monkeypatch.setattr("imgkit.cli.commands.doctor.table", lambda _: logging.getLogger("imgkit").warning(LOGGED))
    main(["doctor"])
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", screen)
    with bar(10, HOSTILE) as progress:
        progress.update(5)
    written = capfd.readouterr().err + screen.getvalue().replace("\r", "")
    assert "nice" in written
    assert obeyed(written) == []


def test_what_an_image_says_of_itself() -> None:
    partition = PartitionDescription(1, HOSTILE, HOSTILE, HOSTILE, 0, 1, HOSTILE, HOSTILE, HOSTILE)
    image = DiskContents(
        format="qcow2",
        virtual_size=1,
        file_size=1,
        disk_guid=HOSTILE,
        partitioned_size=1,
        partitions=(partition,),
        root=FilesystemUsage(size=1, used=1, free=0, inodes=1, inodes_used=1),
        os_release={"PRETTY_NAME": HOSTILE},
        kernels=(HOSTILE,),
        packages=(ListedPackage(HOSTILE, HOSTILE, 1),),
    )
    shown = terminal.block(inspect.text(Path(HOSTILE), image))
    assert obeyed(shown) == []
    assert shown.count("nice") == 8


def prints(text: str) -> list[str]:
    """Return the calls of ``print`` in a module whose text did not go through :mod:`imgkit.host.terminal`."""
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    return [
        ast.unparse(call)
        for call in calls
        if ast.unparse(call.func) == "print"
        and not any(keyword.arg == "file" and ast.unparse(keyword.value) == "answers" for keyword in call.keywords)
        and not all(fit(argument) for argument in call.args)
    ]


def fit(argument: ast.expr) -> bool:
    """Return whether this is what a function of :mod:`imgkit.host.terminal` returned, perhaps in a colour."""
    if isinstance(argument, ast.IfExp):
        return fit(argument.body) and fit(argument.orelse)
    if isinstance(argument, ast.Call) and ast.unparse(argument.func).startswith("colours.paint"):
        return fit(argument.args[0])
    return isinstance(argument, ast.Call) and ast.unparse(argument.func).startswith("terminal.")


@pytest.mark.slow
def test_everything_that_is_printed_went_through_it() -> None:
    """What a command prints is easily made longer by somebody who does not think of images that are hostile."""
    assert prints("print(x)") == ["print(x)"]
    assert prints("print(terminal.line(x) if a else x)") != []
    assert prints("print(colours.paint(x, 'red', stream))") != []
    assert prints("print(colours.paint(terminal.line(x), 'red', stream))") == []
    assert prints("print(terminal.line(x)); print(json.dumps(answer), file=answers)") == []
    found = {str(path): prints(path.read_text()) for path in sorted((ROOT / "imgkit").rglob("*.py"))}
    own = str(ROOT / "imgkit/host/namesake.py")  # texts of its own only, before anything else can be imported
    assert {path: calls for path, calls in found.items() if calls and path != own} == {}


def test_the_result_of_a_request(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """The command's own output stays as it is, as ssh has it; what imgkit says of the result does not."""
    from imgkit.vm.agent.protocol import AgentEvent, AgentResult, Output

    conversation.RawOutput().show(Output("stdout", b"\x1b[1mbold"))
    conversation.EventLines().show(AgentEvent("text", {"text": HOSTILE}))
    written = capfd.readouterr().out
    assert written.startswith("\x1b[1mbold")
    assert obeyed(written.removeprefix("\x1b[1mbold")) == []
    for result in (AgentResult("error", LOGGED, exit_code=127), AgentResult("error", LOGGED)):
        ends_with(monkeypatch, result)
        main(["run", "x.qcow2", "--", "true"])
        written = capfd.readouterr().err
        assert "nice" in written
        assert obeyed(written) == []


def ends_with(monkeypatch: pytest.MonkeyPatch, result: Any) -> None:
    """Let every request of ``imgkit run`` end so."""
    from contextlib import contextmanager, nullcontext

    @contextmanager
    def boot(*_: object, terminals: bool) -> Any:
        assert not terminals
        yield SimpleNamespace(request=lambda **_: nullcontext([result]), kill=lambda: None)

    monkeypatch.setattr("imgkit.cli.options.machineoptions.boot", boot)


def test_messages_of_builds_side_by_side(capfd: pytest.CaptureFixture[str]) -> None:
    source, sink = os.pipe()
    os.write(sink, f"{HOSTILE}\n".encode(errors="surrogatepass"))
    os.close(sink)
    with os.fdopen(source, "rb") as stream:
        several._Build("amd64", SimpleNamespace())._pass_on(stream)  # type: ignore[arg-type]
    written = capfd.readouterr().err
    assert written.startswith("amd64: nice")
    assert obeyed(written) == []


@pytest.mark.hostile
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_odd_file_names(encoding: str, here: Place) -> None:
    """Every command says that it is not there, in one line, on terminals of every encoding."""
    path = os.fsdecode(os.fsencode(here.base) + b"/esc\x1b[2J latin1\xe9 " + "right\u202eleft 漢字".encode())
    for words in (
        ["inspect", path],
        ["verify", path],
        ["boot", path],
        ["run", path, "--", "x"],
        ["build", path],
        ["lock", path],
        ["publish", "v1", "--from", path],
        ["boot", "x", "--share", f"a={path}"],
    ):
        ran = here.run(*words, env={"PYTHONIOENCODING": encoding})
        assert 2 <= ran.status <= 5, (words, ran.err)
        assert len(ran.errors) == 1
        assert obeyed(ran.err.replace("\ufffd", "")) == []
    doctor = here.run("doctor", "--out", path, env={"PYTHONIOENCODING": encoding, "SUPERMIN_KERNEL": path})
    assert "Traceback" not in doctor.err
    assert obeyed(doctor.out) == []


def test_a_path_is_for_scripts_or_for_a_terminal() -> None:
    master, slave = pty.openpty()
    script = "import os, sys; from imgkit.host import terminal; terminal.say_path(os.fsdecode(b'/out/\\x1b[2J\\xff'))"
    subprocess.run([sys.executable, "-c", script], stdout=slave, check=True)
    os.close(slave)
    assert os.read(master, 1000) == b"/out/\\x1b[2J\\xff\r\n"
    os.close(master)
    piped = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert piped.stdout == b"/out/\x1b[2J\xff\n"


def test_a_guests_last_words() -> None:
    from imgkit.vm.agent.completed import Completed
    from imgkit.vm.agent.protocol import AgentResult

    done = Completed(1, b"", HOSTILE.encode(errors="surrogatepass"), AgentResult("error"))
    with pytest.raises(GuestError) as caught:
        done.check()
    assert obeyed(str(caught.value)) == []


# ---- to the letter ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        (0x1F, r"\x1f"), (0x7F, r"\x7f"), (0x9F, r"\x9f"), (0xAD, r"\xad"), (0x200B, r"\u200b"), (0xFFFE, r"\ufffe"),
        (0x1FFFE, r"\U0001fffe"), (0xDC7F, r"\udc7f"), (0xDC80, r"\x80"), (0xDCFF, r"\xff"), (0xDD00, r"\udd00"),
        (0xE000, r"\ue000"), (0x10FFFF, r"\U0010ffff"), (0x34F, r"\u034f"), (0x2800, r"\u2800"),
    ],
)  # fmt: skip
def test_the_forms_of_escapes(code: int, shown: str) -> None:
    assert terminal.line(f"a{chr(code)}b") == f"a{shown}b"


def test_a_line_is_cut_where_it_is_said() -> None:
    assert terminal.line("abc", 3) == "abc"
    assert terminal.line("abcde", 3) == "abc … (2 characters more)"
    assert terminal.line("a\x1bcde", 2) == "a\\x1b … (3 characters more)", "counted before they are escaped"
    assert terminal.line("x" * 4000) == "x" * 4000
    assert terminal.line(5) == "5"


def test_a_block_keeps_its_lines() -> None:
    assert terminal.block("a\tb\n\x1bc\n") == "a b\n\\x1bc\n"
    assert terminal.block("abc\nab", 2) == "ab … (1 characters more)\nab"
    assert terminal.block("x" * 4001).endswith("x … (1 characters more)")


def test_json_for_people_and_for_lines() -> None:
    assert terminal.as_json({"a": ["\x7f\x1bä"]}) == '{\n  "a": [\n    "\\u007f\\u001b\\u00e4"\n  ]\n}'
    assert terminal.as_json({"a": [1]}, indent=None) == '{"a": [1]}'


class _Screen(io.StringIO):
    """A stream without bytes below it, which may be a terminal."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


class _Pipe:
    """A stream with bytes below it; ``steps`` has what happens to both, in order."""

    def __init__(self, *, terminal: bool) -> None:
        self.steps: list[object] = []
        self.buffer = SimpleNamespace(write=self.steps.append, flush=lambda: self.steps.append("flush bytes"))
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal

    def write(self, text: str) -> None:
        self.steps.append(text)

    def flush(self) -> None:
        self.steps.append("flush")


def test_where_a_path_is_printed_byte_for_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    path = os.fsdecode(b"a\x1b\xff")
    for on_terminal, steps in (
        (False, ["flush", b"a\x1b\xff\n", "flush bytes"]),
        (True, [r"a\x1b\xff" + "\n", "flush"]),
    ):
        pipe = _Pipe(terminal=on_terminal)
        monkeypatch.setattr(sys, "stdout", pipe)
        terminal.say_path(path)
        assert pipe.steps == steps
    for on_terminal in (False, True):
        screen = _Screen(terminal=on_terminal)
        monkeypatch.setattr(sys, "stdout", screen)
        terminal.say_path(Path(path))
        assert screen.getvalue() == r"a\x1b\xff" + "\n", "a stream of text has no bytes"


def test_streams_escape_what_their_encoding_lacks() -> None:
    data = io.BytesIO()
    stream = io.TextIOWrapper(data, encoding="ascii")
    terminal.tolerate(io.StringIO(), stream)
    stream.write("ä漢")
    stream.flush()
    assert data.getvalue() == rb"\xe4\u6f22"


def test_records_of_the_log_are_escaped() -> None:
    formatter = terminal.Formatter("%(message)s")

    def shown(message: str, error: BaseException | None = None) -> str:
        info = None if error is None else (type(error), error, None)
        return formatter.format(logging.LogRecord("x", logging.INFO, "x.py", 1, message, (), info))

    assert shown("a\nb\x1b") == r"a\x0ab\x1b"
    assert shown("a\x1b", ValueError("b\x1b")) == "a\\x1b\nValueError: b\\x1b"
    assert shown("x" * 65536) == "x" * 65536
    assert shown("x" * 65537).endswith("x … (1 characters more)")
