"""Other programs: what a failure says, and that nothing that was started outlives its block."""

from __future__ import annotations

import logging
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from imgkit.errors import HostError
from imgkit.host import interrupts, process
from tests.processes import gone


def script(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_output_is_returned_and_input_is_given() -> None:
    assert process.run(["cat"], stdin=b"abc") == b"abc"
    assert process.run(["cat"]) == b""


def test_the_environment_is_what_it_is_said_to_be() -> None:
    assert process.run(["/usr/bin/env"], env={"A": "b"}) == b"A=b\n"


def test_a_missing_program_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(process.MissingProgramError) as caught:
        process.run(["qemu-img"])
    assert (caught.value.message, caught.value.program) == ("qemu-img: program not found", "qemu-img")
    assert caught.value.hint == "apt-get install qemu-utils"


def test_a_missing_program_of_no_known_package_has_a_hint_too() -> None:
    with pytest.raises(process.MissingProgramError, match=r"^/nowhere/tool: program not found$") as caught:
        process.run(["/nowhere/tool"])
    assert caught.value.hint == "install tool or put it on PATH"


def test_a_failure_has_the_last_line_of_what_was_said(tmp_path: Path) -> None:
    with pytest.raises(process.ProgramError, match=r"^tool failed with status 3: and then this$") as caught:
        process.run([script(tmp_path, "tool", "echo first >&2; echo and then this >&2; exit 3")])
    assert (caught.value.status, caught.value.last_line) == (3, "and then this")


def test_a_failure_without_a_word(tmp_path: Path) -> None:
    with pytest.raises(process.ProgramError, match=r"^tool failed with status 1$") as caught:
        process.run([script(tmp_path, "tool", "exit 1")])
    assert caught.value.last_line == ""


def test_a_status_that_is_no_failure(tmp_path: Path) -> None:
    tool = script(tmp_path, "tool", "echo out; exit 3")
    assert process.run([tool], good=(0, 3)) == b"out\n"
    with pytest.raises(process.ProgramError, match="failed with status 3"):
        process.run([tool], good=(0, 2))


def test_limits_are_those_of_the_program_and_not_ours(tmp_path: Path) -> None:
    tool = script(tmp_path, "tool", "ulimit -v; ulimit -t; head -c 3000 /dev/zero >big; echo $?")
    limit = process.bounded(memory=1 << 30, seconds=7, largest=2048)
    memory, seconds, status = process.run([tool], cwd=tmp_path, prepare=limit).decode().split()
    assert (memory, seconds) == (str(1 << 20), "7")
    assert status != "0"
    assert (tmp_path / "big").stat().st_size == 2048


@pytest.mark.parametrize(
    ("status", "words"),
    [(3, "failed with status 3"), (-9, "was killed by SIGKILL"), (-99, "was killed by signal 99")],
)
def test_endings_in_words(status: int, words: str) -> None:
    assert process.ending(status) == words


def test_a_signal_is_named(tmp_path: Path) -> None:
    with pytest.raises(process.ProgramError, match=r"^tool was killed by SIGSEGV$"):
        process.run([script(tmp_path, "tool", "kill -SEGV $$")])


def test_a_file_that_is_no_program(tmp_path: Path) -> None:
    path = tmp_path / "tool"
    path.write_text("")
    with pytest.raises(HostError, match=r"tool: may not be executed$") as caught:
        process.run([path])
    assert caught.value.hint is None
    with pytest.raises(HostError, match=r"tool: may not be executed$") as caught:
        process.run([path], prepare=lambda: None)
    assert caught.value.hint == "its folders are closed to the user that it is to run as"


def test_a_program_that_cannot_be_prepared() -> None:
    def refuse() -> None:
        raise OSError(1, "not permitted")

    with pytest.raises(HostError, match=r"^true: cannot be confined, the kernel refuses what it offered$"):
        process.run(["true"], prepare=refuse)


@pytest.mark.slow
def test_too_slow(tmp_path: Path) -> None:
    marker = tmp_path / "pid"
    with pytest.raises(process.ProgramTimeoutError, match=r"no result within 3 s$"):
        process.run([script(tmp_path, "tool", f"echo $$ > {marker}; sleep 60")], timeout=3)
    assert gone(int(marker.read_text()), 10)


def test_the_whole_group_ends_with_the_block(tmp_path: Path) -> None:
    tool = script(tmp_path, "tool", "sleep 61 & echo $!; wait")
    with process.start([tool], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        grandchild = int(child.stdout.readline())
    assert gone(grandchild, 10)
    assert child.returncode == -signal.SIGKILL


def test_the_kernel_takes_the_child_when_the_parent_is_killed() -> None:
    program = (
        "from imgkit.host import process; import time\n"
        "with process.start(['sleep', '62']) as child:\n    print(child.pid, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not gone(pid)
        os.kill(parent.pid, signal.SIGKILL)
    assert gone(pid, 10)


FAMILY = """
import subprocess, sys, time
from pathlib import Path
from imgkit.host import interrupts, process
words = ["/bin/sh", "-c", "sleep 63 & echo $!; echo $$; wait"]
with process.start_family(words, env={"PATH": sys.argv[1]}, cwd=Path("/"), stdout=subprocess.PIPE) as child:
    print(int(child.stdout.readline()), int(child.stdout.readline()), child.pid, flush=True)
    time.sleep(60)
"""


def test_all_that_a_family_has_goes_when_the_parent_is_killed() -> None:
    path = os.environ["PATH"]
    with subprocess.Popen([sys.executable, "-c", FAMILY, path], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        grandchild, shell, child = map(int, parent.stdout.readline().split())
        assert child == shell, "the program itself is the head of the group"
        assert not gone(grandchild)
        os.kill(parent.pid, signal.SIGKILL)
    assert gone(grandchild, 10)
    assert _group(child) == []


def test_a_family_that_ends_by_itself(tmp_path: Path) -> None:
    """Its status is its own, it reads nothing, and nobody keeps watch over it afterwards."""
    with process.start_family(
        [script(tmp_path, "tool", "cat; echo said; exit 3")],
        env={"PATH": os.environ["PATH"]},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.communicate(timeout=20)[0] == b"said\n"
        assert child.returncode == 3
    assert _group(child.pid) == []


def _group(number: int) -> list[str]:
    """Return the living processes of a process group, a moment later."""
    deadline = time.monotonic() + 10
    while (alive := _members(number)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return alive


def _members(number: int) -> list[str]:
    members = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, _, group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(group) == number and state != "Z":
                members.append(folder.name)
    return members


def test_commands_are_logged_so_that_they_can_be_pasted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "imgkit.host.process"):
        process.run(["echo", "a b", "$HOME"])
    assert "echo 'a b' '$HOME'" in caplog.text


INTERRUPTED_FORK = """
import os, signal, time
from imgkit.host import interrupts, process

def at_fork():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.05)

os.register_at_fork(after_in_parent=at_fork)
with interrupts.raised():
    try:
        with process.start(["sleep", "60"]):
            print("lost")
    except KeyboardInterrupt:
        print("interrupted")
"""


def test_an_interrupt_while_a_program_is_started_is_not_lost() -> None:
    """Python prints and forgets what is raised in its callbacks of a fork; those of logging are there always."""
    done = subprocess.run([sys.executable, "-c", INTERRUPTED_FORK], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("interrupted\n", "")


# ---- what a child is given -------------------------------------------------------------------------------------------


def descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - only their numbers matter


def test_the_kernel_is_asked_to_kill_a_child_with_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []
    steps: list[str] = []
    monkeypatch.setattr(process, "_LIBC", SimpleNamespace(prctl=lambda *words: asked.append(words)))
    process._before_exec(lambda: steps.append(f"prepared before {len(asked)}"))()
    assert (asked, steps) == ([(1, signal.SIGKILL)], ["prepared before 0"]), "another user would reset it"
    process._before_exec(None)()
    assert len(asked) == 2
    monkeypatch.setattr(process, "_LIBC", None)
    process._before_exec(None)()


@pytest.mark.parametrize(("platform", "loaded"), [("linux", True), ("darwin", False)])
def test_the_c_library_is_loaded_on_linux(platform: str, loaded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    assert (process._libc() is not None) is loaded


def test_the_limits_that_a_child_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """None is above what is allowed already, and one that the system refuses is left out.

    By default nothing may be written.
    """
    hard = {resource.RLIMIT_AS: resource.RLIM_INFINITY, resource.RLIMIT_CPU: 5, resource.RLIMIT_FSIZE: 100}
    limits: dict[int, tuple[int, int]] = {}

    def setrlimit(kind: int, values: tuple[int, int]) -> None:
        if values[0] == 3:
            raise ValueError
        limits[kind] = values

    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1, hard[kind]))
    monkeypatch.setattr(resource, "setrlimit", setrlimit)
    process.bounded(1 << 40, 7)()
    assert limits == {resource.RLIMIT_AS: (1 << 40,) * 2, resource.RLIMIT_CPU: (5, 5), resource.RLIMIT_FSIZE: (0, 0)}
    limits.clear()
    process.bounded(3, 4, 60)()
    assert limits == {resource.RLIMIT_CPU: (4, 4), resource.RLIMIT_FSIZE: (60, 60)}


def test_descriptors_are_passed_on_when_asked_for(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("handed over")
    before = descriptors()
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        argv = ["cat", f"/proc/self/fd/{descriptor}"]
        with process.start(argv, stdout=subprocess.PIPE, pass_fds=[descriptor]) as child:
            assert child.communicate()[0] == b"handed over"
        with process.start(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
            assert child.communicate()[0] == b""
    finally:
        os.close(descriptor)
    assert descriptors() == before


def test_a_family_leaves_no_descriptor_open(tmp_path: Path) -> None:
    before = descriptors()
    with process.start_family(["/bin/true"], env={}, cwd=tmp_path) as child:
        child.wait()
    assert descriptors() == before


@pytest.mark.parametrize(
    ("program", "hint"),
    [
        ("qemu-img", "apt-get install qemu-utils"),
        ("/usr/bin/qemu-system-x86_64", "apt-get install qemu-system-x86"),
        ("qemu-system-aarch64", "apt-get install qemu-system-arm"),
        ("supermin", "apt-get install supermin"),
        ("npm", "apt-get install npm"),
        ("node", "apt-get install nodejs"),
        ("bwrap", "apt-get install bubblewrap"),
        ("other", "install other or put it on PATH"),
    ],
)
def test_the_packages_of_programs(program: str, hint: str) -> None:
    error = process.missing(program)
    assert (error.program, error.hint, error.message) == (program, hint, f"{program}: program not found")


def test_an_interrupt_between_start_and_block_ends_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal that came while the program was started is raised where the program is ended again."""
    children: list[int] = []
    popen = subprocess.Popen

    def started(*arguments: object, **options: object) -> object:
        child = popen(*arguments, **options)  # type: ignore[call-overload]
        children.append(child.pid)
        return child

    def check() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", started)
    monkeypatch.setattr(interrupts, "check", check)
    with pytest.raises(KeyboardInterrupt), process.start(["sleep", "60"]):
        raise AssertionError("the block must not begin")
    assert gone(children[0], 10)


def test_how_a_program_is_started_by_default(tmp_path: Path) -> None:
    """It reads nothing, has the environment and the folder of this process, and a group and a session of its own."""
    script(tmp_path, "tool", "cat; pwd; echo $HOME; ps -o sid= -p $$; echo $$")
    with process.start([tmp_path / "tool"], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        folder, home, session, own = child.stdout.read().decode().split()
    assert (folder, home) == (str(Path.cwd()), os.environ["HOME"])
    assert session == own == str(child.pid)
