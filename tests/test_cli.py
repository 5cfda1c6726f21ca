"""The command line: arguments, options, variables, statuses, and the form of all messages about failures."""

from __future__ import annotations

import argparse
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from imgkit.cli.command import Invocation
from imgkit.cli.commandlist import COMMANDS
from imgkit.cli.commands import build
from imgkit.cli.main import main
from imgkit.cli.parser import parse
from imgkit.errors import GuestError, HostError, ImgkitError, InputError, RecipeError, UsageError
from imgkit.host import interrupts, scratch
from imgkit.recipe import load
from imgkit.vm.failures import KernelPanicError
from imgkit.vm.qemu.machines import host_arch
from tests.commandline import Place, check_failure
from tests.conftest import need
from tests.mirrors import RECIPE

AFTER = "(options of a command for the guest come after --: imgkit run IMAGE -- COMMAND…)"
NOWHERE = "http://127.0.0.1:9/"


def fails(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """Return the status and the lines of stderr of a command that prints nothing on stdout."""
    status = main(words)
    out, err = capsys.readouterr()
    assert out == ""
    return status, err.splitlines()


# ---- words and options ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "error", "hint"),
    [
        (["build"], "the following arguments are required: RECIPE", "imgkit build --help"),
        (["buld", "recipes/alpine.py"], "invalid choice: 'buld'", "did you mean build?"),
        (["frobnicate"], "invalid choice: 'frobnicate'", "imgkit --help"),
        (["help", "build"], "invalid choice: 'help'", "imgkit --help, or imgkit COMMAND --help"),
        (["version"], "invalid choice: 'version'", "imgkit --version"),
        (["build", "x.py", "--oot", "d"], "unrecognized arguments: --oot d", "did you mean --out?"),
        (["build", "x.py", "--sett=size=1G"], "unrecognized arguments: --sett=size=1G", "did you mean --set?"),
        (["boot", "x", "--memmory", "1"], "unrecognized arguments: --memmory 1", "did you mean --memory?"),
        (["build", "x.py", "--engine", "gestfs"], "invalid choice: 'gestfs'", "did you mean guestfs?"),
        (["boot", "x", "--firmware", "uefy"], "invalid choice: 'uefy'", "did you mean uefi?"),
        (["boot", "x", "--timeout", "soon"], "argument --timeout: invalid float value: 'soon'", "imgkit boot --help"),
        (["boot", "x", "--cpus", "two"], "argument --cpus: invalid int value: 'two'", "imgkit boot --help"),
        (["build", "x.py", "--out"], "argument --out: expected one argument", "imgkit build --help"),
        (["build", "x.py", "--arc", "amd64"], "unrecognized arguments: --arc amd64", "did you mean --arch?"),
        (["run", "x"], "give a command or a prompt", "imgkit run IMAGE -- COMMAND…, or --prompt TEXT"),
        (["run", "x", "--env", "A"], "give a command or a prompt", None),
        (["run", "x", "--prompt", "p", "--", "ls"], "give a command or a prompt, not both", None),
        (["run"], "the following arguments are required: IMAGE", "imgkit run --help"),
        (["run", "x", "ls", "-l"], "unrecognized arguments: -l", f"imgkit run --help {AFTER}"),
        (["run", "x", "--memmory", "1"], "unrecognized arguments: --memmory 1", f"did you mean --memory? {AFTER}"),
        (["doctor", "--fix"], "unrecognized arguments: --fix", "imgkit doctor --help"),
        (["verify", "x", "--jsonn"], "unrecognized arguments: --jsonn", "did you mean --json?"),
        (["--versoin"], "the following arguments are required: COMMAND", "did you mean --version?"),
    ],
)
def test_wrong_words(words: list[str], error: str, hint: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    status, lines = fails(words, capsys)
    assert status == 2
    assert len(lines) == 2
    assert lines[0].startswith("error: ")
    assert error in lines[0]
    assert hint is None or lines[1] == f"hint: {hint}"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--set", "size"], "--set size: no '=' in it"),
        (["--set", "sise=1G"], "--set sise: recipes have no such field"),
        (["--set", "packages=foo"], "--set packages: input should be a list, such as [a, b] (it is 'foo')"),
        (["--set", "packages=[a"], "--set packages=[a: not a value in YAML"),
        (["--set", "size=huge"], "--set size: 'huge' is not a size such as 4G or 512M"),
        (["--set", "size=1K"], "--set size: 1K is out of range"),
        (["--mirror", "ftp://example.invalid"], "--mirror: 'ftp://example.invalid' is not an http(s) URL"),
        (["--release-key", "/nowhere.asc"], "--release-key: /nowhere.asc does not exist"),
        (["--agent-runner", "/nowhere"], "--agent-runner: /nowhere does not exist"),
        (["--arch", "mips"], "mips: no such architecture in this recipe"),
    ],
)
def test_wrong_values_of_options_are_the_command_lines_fault(
    words: list[str], error: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE)
    status, lines = fails(["build", str(recipe), "--out", str(tmp_path / "out"), *words], capsys)
    assert status == 2
    assert lines[0].startswith(f"error: {error}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("word", "hint"), [("sise=1G", "did you mean size?"), ("foo=1", "the fields are name, mirror, ")]
)
def test_a_field_that_is_none(word: str, hint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE)
    _, lines = fails(["build", str(recipe), "--set", word], capsys)
    assert lines[1].startswith(f"hint: {hint}")


@pytest.mark.parametrize(
    ("variable", "value", "error"),
    [
        ("IMAGE_SIZE", "huge", "IMAGE_SIZE: 'huge' is not a size"),
        ("ALPINE_BRANCH", "3.20", "ALPINE_BRANCH: is not a branch such as v3.23, edge or latest-stable"),
        ("ALPINE_MIRROR", "nowhere", "ALPINE_MIRROR: 'nowhere' is not an http(s) URL, nor a folder"),
        ("AGENT_RUNNER_BUILD", "yes", "AGENT_RUNNER_BUILD: input should be 'auto', '0' or '1' (it is 'yes')"),
        ("ARCHS", "amd64 mips", "mips: no such architecture in this recipe"),
        ("IMGKIT_LAUNCH_TIMEOUT", "soon", "IMGKIT_LAUNCH_TIMEOUT=soon: not a number of seconds"),
        ("IMGKIT_LAUNCH_TIMEOUT", "nan", "IMGKIT_LAUNCH_TIMEOUT=nan: not a number of seconds"),
    ],
)
def test_wrong_variables(
    variable: str,
    value: str,
    error: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if variable == "IMGKIT_LAUNCH_TIMEOUT":
        monkeypatch.setattr("imgkit.api.applianceoptions.probe", lambda _arch: argparse.Namespace(name="tcg"))
    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE)
    monkeypatch.setenv(variable, value)
    status, lines = fails(
        ["build", str(recipe), "--out", str(tmp_path / "out"), "--arch=amd64"][: 4 if variable == "ARCHS" else 5],
        capsys,
    )
    assert status == 2
    assert lines[0].startswith(f"error: {error}")


def options(*words: str) -> argparse.Namespace:
    return parse(["build", "recipe.py", *words])


def test_an_option_beats_a_variable_and_a_variable_beats_the_recipe(tmp_path: Path) -> None:
    environ = {"ALPINE_MIRROR": "http://variable/", "IMAGE_SIZE": "8G", "ALPINE_BRANCH": ""}
    values, origins = build.overrides(options("--mirror", "http://option/", "--set", "hostname=a"), environ)
    assert values == {"mirror": "http://option/", "size": "8G", "hostname": "a"}
    assert origins == {"mirror": "--mirror", "size": "IMAGE_SIZE", "hostname": "--set hostname"}
    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE + "mirror = 'http://recipe/'\nhostname = 'b'\n")
    made = load(recipe, values, origins)
    assert (made.mirror, made.size, made.hostname, made.branch) == ("http://option/", "8G", "a", "v3.23")


def test_set_beats_a_variable() -> None:
    assert build.overrides(options("--set", "size=2G"), {"IMAGE_SIZE": "8G"})[0] == {"size": "2G"}


@pytest.mark.parametrize(
    ("words", "environ", "expected"),
    [
        (["--arch", "arm64"], {"ARCHS": "amd64"}, ["arm64"]),
        ([], {"ARCHS": "arm64, amd64 arm64"}, ["arm64", "amd64"]),
        (["--arch", "all"], {}, ["amd64", "arm64"]),
        ([], {"ARCHS": " "}, [host_arch()]),
        ([], {}, [host_arch()]),
    ],
)
def test_architectures(words: list[str], environ: dict[str, str], expected: list[str]) -> None:
    recipe = load(Path(__file__).parents[1] / "recipes/alpine.py")
    assert build.architectures(options(*words), recipe, environ, default=host_arch()) == expected


def test_lock_takes_no_option_that_would_do_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("--format=zlib", "--agent-runner=."):
        status, lines = fails(["lock", "recipes/alpine.py", word], capsys)
        assert (status, lines[0]) == (2, f"error: unrecognized arguments: {word}")


def test_help_and_version_are_data(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--version"], ["--help"], *([name, "--help"] for name in COMMANDS)):
        assert main(words) == 0
        out, err = capsys.readouterr()
        assert out
        assert not err


# ---- failures -------------------------------------------------------------------------------------------------------


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> list[str]:
    """Return the arguments of a command that raises ``error``."""

    def raises(_options: argparse.Namespace, _invocation: Invocation) -> int:
        raise error

    monkeypatch.setattr("imgkit.cli.commands.doctor.run", raises)
    return ["doctor"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UsageError("what", hint="do"), 2),
        (RecipeError("what", hint="do"), 3),
        (InputError("what", hint="do"), 4),
        (HostError("what", hint="do"), 5),
        (GuestError("what", hint="do"), 6),
    ],
)
def test_each_kind_of_failure_has_its_status(
    error: ImgkitError, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fails(failing(monkeypatch, error), capsys) == (status, ["error: what", "hint: do"])


def test_several_faults_are_one_error_and_lines_below_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = RecipeError("r.py: 2 faults: a: wrong; b: wrong", problems=["a: wrong", "b: wrong"])
    assert fails(failing(monkeypatch, error), capsys) == (3, ["error: r.py: 2 faults", "  a: wrong", "  b: wrong"])


def test_a_failed_boot_shows_the_console_before_the_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = KernelPanicError("kernel panic: no init", console="one\ntwo", hint="look")
    status, lines = fails(failing(monkeypatch, error), capsys)
    assert status == 6
    assert lines == ["last lines of the console:", "    one", "    two", "error: kernel panic: no init", "hint: look"]


def test_messages_stay_on_their_line_and_give_terminals_no_orders(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = InputError("a\nerror: b\x1b[2J\u202e é")
    assert fails(failing(monkeypatch, error), capsys) == (4, ["error: a error: b\\x1b[2J\\u202e é"])


def test_failures_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    error = RecipeError("r.py: 2 faults: a; b", hint="do", problems=["a", "b"])
    assert main([*failing(monkeypatch, error), "--json"]) == 3
    out, err = capsys.readouterr()
    assert json.loads(out) == {
        "error": {"status": 3, "message": "r.py: 2 faults", "hint": "do", "problems": ["a", "b"], "console": ""},
        "done": [],
    }
    assert err.splitlines()[0] == "error: r.py: 2 faults"


def test_wrong_words_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["boot", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["status"] == 2


def test_words_after_the_dashes_belong_to_the_guest(capsys: pytest.CaptureFixture[str]) -> None:
    """``run IMAGE -- COMMAND --json --debug``: neither is an option of imgkit."""
    status, lines = fails(["run", "/nowhere.qcow2", "--", "ls", "--json", "--debug"], capsys)
    assert status != 0
    assert [line for line in lines if line.startswith("Traceback")] == []


def test_debug_shows_where_an_error_came_from(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, lines = fails([*failing(monkeypatch, InputError("what")), "--debug"], capsys)
    assert status == 4
    assert lines[0].startswith("Traceback")
    assert lines[-1] == "error: what"


def test_a_bug_is_the_only_failure_with_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, lines = fails(failing(monkeypatch, KeyError("x")), capsys)
    assert status == 70
    assert lines[0].startswith("Traceback")
    assert lines[-2:] == [
        "error: this is a bug in imgkit: KeyError: 'x'",
        "hint: please report it with the lines above",
    ]


def test_what_goes_wrong_because_of_an_interrupt_is_the_interrupt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for error in (SystemError("returned a result with an exception set"), HostError("qemu-img was killed by SIGINT")):
        error.__context__ = KeyboardInterrupt()
        assert fails(failing(monkeypatch, error), capsys) == (130, ["error: interrupted"])


def test_no_memory_is_no_bug(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert fails(failing(monkeypatch, MemoryError()), capsys) == (5, ["error: out of memory"])


def test_a_path_that_the_host_refuses_is_no_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = PermissionError(errno.EACCES, "Permission denied", "/root/x")
    assert fails(failing(monkeypatch, refused), capsys) == (5, ["error: /root/x: Permission denied"])
    status, lines = fails([*failing(monkeypatch, refused), "--debug"], capsys)
    assert (status, lines[0], lines[-1]) == (
        5,
        "Traceback (most recent call last):",
        "error: /root/x: Permission denied",
    )
    status, lines = fails(failing(monkeypatch, PermissionError(errno.EPERM, "Operation not permitted")), capsys)
    assert (status, lines[0]) == (70, "Traceback (most recent call last):")  # it names nothing


@pytest.mark.slow
def test_verbose_shows_every_command(here: Place) -> None:
    probe = here.run("doctor", "-v")
    assert "qemu-img --version" in probe.err.splitlines() or "MISSING  qemu-img" in probe.out


# ---- the world outside ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_whoever_reads_our_output_may_stop(here: Place) -> None:
    """If the reader of a pipe is gone, the status is 0 and there is no message."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as sink:
        done = subprocess.run(
            here.command("doctor", "--json"), env=here.environment, stdout=sink, stderr=subprocess.PIPE, check=False
        )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.slow
def test_output_that_cannot_be_written(here: Place) -> None:
    need("/dev/full", Path("/dev/full").exists())
    with Path("/dev/full").open("wb") as sink:
        done = subprocess.run(
            here.command("doctor", "--json"), env=here.environment, stdout=sink, stderr=subprocess.PIPE, check=False
        )
    assert (done.returncode, done.stderr) == (5, b"error: output: no space left\n")


WAITS = """
import imgkit.cli.commands.doctor as doctor, sys, time
from pathlib import Path
from imgkit.cli.main import main
from imgkit.host import scratch
def run(options, invocation):
    with scratch.folder(Path.cwd(), ".imgkit-"):
        try:
            print("ready", flush=True)
            time.sleep(60)
        finally:
            print("cleaning", flush=True)
            time.sleep(0.5)
doctor.run = run
sys.exit(main(["doctor"]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_in_order_and_further_ones_do_not_disturb(number: signal.Signals, here: Place) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WAITS],
        cwd=here.base,
        env=here.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(
            number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler
        ),
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        assert list(here.base.glob(".imgkit-*"))
        child.send_signal(number)
        assert child.stdout.readline() == b"cleaning\n"
        child.send_signal(number)
        child.send_signal(signal.SIGTERM)
        _, err = child.communicate(timeout=20)
    assert (child.returncode, err) == (130, b"error: interrupted\n")
    assert here.left_over() == []


@pytest.mark.slow
def test_what_the_caller_ignores_stays_ignored(here: Place) -> None:
    """nohup ignores SIGHUP, for example."""
    with subprocess.Popen(
        [sys.executable, "-c", WAITS.replace("60", "1")],
        cwd=here.base,
        env=here.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.send_signal(signal.SIGHUP)
        child.communicate(timeout=20)
    assert child.returncode == 0


def test_a_signal_before_the_first_line_of_work(here: Place) -> None:
    """While modules are imported there is nothing to clean up and nothing to report."""
    for delay in (0.02, 0.05, 0.1):
        with here.running("doctor") as child:
            time.sleep(delay)
            child.send_signal(signal.SIGTERM)
            status = child.wait(timeout=20)
        assert "Traceback" not in here.log()
        assert status in (130, -signal.SIGTERM), "the very first moments belong to the interpreter"
        assert here.log() in ("", "error: interrupted\n")


# Stands in front of a library: a signal comes while the library is being imported, in what ``exec`` runs.
SIGNALLED = """
import signal, sys
exec("signal.raise_signal(signal.SIGTERM)")
sys.path = [folder for folder in sys.path if not folder.endswith("modules")]
del sys.modules["filelock"]
import filelock
"""


@pytest.mark.slow
def test_a_signal_while_a_command_is_imported(here: Place) -> None:
    (here.modules / "filelock.py").write_text(SIGNALLED)
    ran = here.run("build", "recipe.py")
    assert (ran.status, ran.out, ran.err) == (130, "", "error: interrupted\n")


PROGRAM = """
import signal, sys, types
sys.argv = ["imgkit", *sys.argv[1:]]
from imgkit import __main__ as program
at = sys.argv.pop(1)
def main():
    signal.raise_signal(signal.SIGTERM) if at == "import" else None
    return 3
module = types.ModuleType("imgkit.cli.main")
module.main = main
sys.modules["imgkit.cli.main"] = module
real = sys.exit
def leave(status):
    signal.raise_signal(signal.SIGTERM)
    real(status)
sys.exit = leave
program.program()
"""


@pytest.mark.parametrize(("at", "status"), [("import", 130), ("end", 3)])
def test_a_signal_outside_of_the_work(at: str, status: int) -> None:
    """Before the work it ends the process at once; when the work is done it changes nothing."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, at], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (status, b"", b"")


BETWEEN = """
import signal, sys
from imgkit.host import interrupts
interrupts.exit_on_signals(130)
status = interrupts.run(lambda: 3, interrupted=lambda: 130, clean_up=lambda: None)
signal.raise_signal(signal.SIGTERM)
sys.exit(status)
"""


def test_a_signal_between_the_work_and_the_end() -> None:
    """The result has been reported by then, so that the status must be the one that belongs to it."""
    done = subprocess.run([sys.executable, "-c", BETWEEN], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (3, b"")


@pytest.mark.slow
def test_signals_after_the_last_line_of_work_change_nothing(here: Place) -> None:
    """A late signal changes neither the message nor the JSON: both are those of the status that the command returns."""
    with here.running("build", "/nowhere.py", "--json") as child:
        while child.poll() is None:
            if here.log():  # it has begun to speak, so it is about to end
                child.send_signal(signal.SIGINT)
            time.sleep(0.001)
    log = here.log()
    errors = [line for line in log.splitlines() if line.startswith("error: ")]
    assert errors[-1] == {3: "error: /nowhere.py: no such recipe", 130: "error: interrupted"}[child.returncode]
    assert f'"status": {child.returncode},' in log
    assert "Traceback" not in log


@pytest.mark.parametrize("when", ["the first handler is in place", "the work is done"])
def test_a_signal_just_before_or_after_the_work(
    when: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place, name = (signal, "signal") if when.startswith("the first") else (interrupts, "ignore")
    real = getattr(place, name)

    def interrupted(*arguments: object) -> None:
        monkeypatch.setattr(place, name, real)
        if arguments:
            real(*arguments)
        os.kill(os.getpid(), signal.SIGINT)
        if not arguments:
            real()

    before = [signal.getsignal(number) for number in interrupts.SIGNALS]
    monkeypatch.setattr(place, name, interrupted)
    assert main(["build", "/nowhere.py"]) == 130
    assert capsys.readouterr().err.endswith("error: interrupted\n")
    assert [signal.getsignal(number) for number in interrupts.SIGNALS] == before


def test_handlers_are_given_back() -> None:
    before = [signal.getsignal(number) for number in interrupts.SIGNALS]
    assert main(["build", "/nowhere.py"]) == 3
    assert [signal.getsignal(number) for number in interrupts.SIGNALS] == before


def test_signals_are_held_back() -> None:
    """An operation that must be completed is completed, and the interrupt is raised after it."""
    done = []

    def together() -> None:
        with interrupts.held_back():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
            done.append(1)
        done.append(2)

    with interrupts.raised(), pytest.raises(KeyboardInterrupt):
        together()
    assert done == [1]


# ---- scratch folders ------------------------------------------------------------------------------------------------


def test_scratch_folders_of_the_dead_are_removed_and_those_of_the_living_are_not(tmp_path: Path) -> None:
    dead = tmp_path / ".imgkit-1-0123abcd"
    (dead / "disk").mkdir(parents=True)
    (dead / "disk").chmod(0o500)
    others = [tmp_path / name for name in (".imgkit-mine", ".imgkit-1-0123abcd.txt", "out")]
    for other in others:
        other.mkdir()
    with scratch.folder(tmp_path, ".imgkit-") as first:
        assert not dead.exists()
        with scratch.folder(tmp_path, ".imgkit-"):
            assert first.exists()
        child = subprocess.run(
            [sys.executable, "-c", "import sys; from imgkit.host import scratch; from pathlib import Path\n"
             "with scratch.folder(Path(sys.argv[1]), '.imgkit-'): pass", tmp_path],
            check=True,
        )  # fmt: skip
        assert child.returncode == 0
        assert first.exists()
    assert sorted(tmp_path.iterdir()) == sorted(others)


def test_what_a_block_did_not_remove_goes_at_the_end(tmp_path: Path) -> None:
    lasting = scratch.folder(tmp_path)
    path = lasting.__enter__()
    parents = scratch.parents(tmp_path / "a/b")
    parents.__enter__()
    assert path.is_dir()
    scratch.remove_all()
    assert list(tmp_path.iterdir()) == []


def test_folders_that_were_there_or_have_something_in_them_stay(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with scratch.parents(tmp_path / "a/b/c"):
        pass
    assert list(tmp_path.rglob("*")) == [tmp_path / "a"]
    with scratch.parents(tmp_path / "a/b/c"):
        (tmp_path / "a/b/file").touch()
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "a", tmp_path / "a/b", tmp_path / "a/b/file"]


# ---- recipes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (None, "recipe.py: no such recipe"),
        ("x = = 1", "recipe.py:1: not Python: invalid syntax"),
        ("raise ValueError('no')", "recipe.py:1: ValueError: no"),
        ("import sys; sys.exit(0)", "recipe.py:1: SystemExit: 0"),
        (RECIPE + "pakages = []", "recipe.py: pakages: no such field (did you mean packages?)"),
        (RECIPE.replace("bios-boot", "esp").replace("i386-pc", "x86_64-efi"), "an esp of 1M is too small"),
        (RECIPE + "size = 4", "recipe.py: size: input should be a valid string (it is 4)"),
    ],
)
def test_bad_recipes(text: str | None, error: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.py"
    if text is not None:
        recipe.write_text(text)
    status, lines = fails(["build", str(recipe), "--out", str(tmp_path / "out")], capsys)
    assert status == 3
    assert [line for line in lines if not line.startswith("hint: ")] == [lines[0]]
    assert lines[0].startswith(f"error: {tmp_path}/")
    assert error in lines[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_all_faults_of_a_recipe_at_once(here: Place) -> None:
    here.recipe.write_text(RECIPE + "pakages = []\nsize = 4\nnetwork = 'wifi'\n")
    ran = here.run("build", here.recipe)
    check_failure(ran, here, 3, "recipe.py: 3 faults")
    below = [line for line in ran.err.splitlines() if line.startswith("  ")]
    assert [line.split(":")[0].strip() for line in below] == ["size", "network", "pakages"]


@pytest.mark.slow
def test_an_output_folder_that_cannot_be_made(here: Place) -> None:
    here.recipe.write_text(RECIPE)
    (here.base / "file").write_text("")
    ran = here.run("build", here.recipe, "--mirror", NOWHERE, "--out", here.base / "file/out", "--arch=amd64")
    check_failure(ran, here, 5, "Not a directory", "--out")


def test_without_a_command_there_is_help_and_the_status_of_a_wrong_command_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for words in ([], ["-q"], ["-v", "--debug"]):
        assert main(words) == 2
        assert capsys.readouterr() == (text, "")
    assert "build the images of a recipe" in text


@pytest.mark.parametrize(
    ("words", "verbose", "quiet", "debug"),
    [
        ([], False, False, False),
        (["-q"], False, True, False),
        (["--verbose"], True, False, False),
        (["-q", "--debug"], False, True, True),
    ],
)
def test_common_options_come_before_the_command_or_after_it(
    words: list[str], verbose: bool, quiet: bool, debug: bool
) -> None:
    for line in ([*words, "run", "x", "--", "-v"], ["run", *words, "x", "--", "-v"], ["run", "x", *words, "--", "-v"]):
        options = parse(line)
        assert (options.verbose, options.quiet, options.debug) == (verbose, quiet, debug)
        assert options.guest_command == ["-v"]


def test_a_hint_is_about_the_command_behind_common_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-q", "boot", "x.qcow2", "--netwrk", "none"]) == 2
    assert capsys.readouterr().err.splitlines()[1] == "hint: did you mean --network?"
    assert main(["-q", "biuld"]) == 2
    assert capsys.readouterr().err.splitlines()[1] == "hint: did you mean build?"
