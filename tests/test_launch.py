"""QEMU is started, connected and ended. A program in its place speaks QMP and reports its arguments."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imgkit.errors import HostError
from imgkit.vm import VM, KernelPanicError
from imgkit.vm.qemu import launch
from imgkit.vm.qemu.argv import Disk, VmSpec
from imgkit.vm.qemu.launch import launched
from imgkit.vm.qemu.qmp import Qmp, QmpError
from imgkit.vm.sandbox import confinement
from tests.conftest import need
from tests.files import public

PROGRAM = """#!{python} -ISB
import os, re, socket, sys
line = " ".join(sys.argv)
sys.stderr.write("started\\nin " + os.getcwd() + " with " + " ".join(sorted(os.environ)) + "\\n")
sys.stderr.flush()
names = re.findall(r"chardev=port[0-9]+,name=(\\S+)", line)
for name, fd in zip(names, re.findall(r"id=port[0-9]+,fd=([0-9]+)", line)):
    os.write(int(fd), name.encode())
connection = socket.socket(fileno=int(re.search(r"id=qmp,fd=([0-9]+)", line)[1]))
connection.sendall(b'{{"QMP": {{}}}}\\n')
for request in connection.makefile("rb"):
    connection.sendall(b'{{"return": {{}}}}\\n')
    if b"system_powerdown" in request:
        sys.exit(0)
"""


@pytest.fixture(autouse=True)
def fake_qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a QEMU that comes up, and goes off at the press of the power button."""
    python = Path(sys.executable).resolve()
    need("Python for every user", os.geteuid() != 0 or not str(python).startswith("/root"))
    return program(tmp_path, monkeypatch, PROGRAM.format(python=python))


def program(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> Path:
    path = folder / "bin" / "qemu-system-x86_64"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    public(folder)
    monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "private"
    path.mkdir(mode=0o700)
    return path


def test_a_machine_that_comes_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "of the caller")
    near, far = socket.socketpair()
    with near, far:
        spec = VmSpec("amd64", None, folder / "console", ports=(("own", far.fileno()),))
        with launched(spec, folder, memory=(77, 55), ports=["ipc.0"]) as running:
            assert running.child.poll() is None
            assert running.spec.memory_mib == 77
            assert [name for name, _ in running.spec.ports] == ["own", "ipc.0"]
            assert (near.recv(99), running.ports["ipc.0"].recv(99)) == (b"own", b"ipc.0")
            assert list(running.ports) == ["ipc.0"], "the caller has the other one"
            first, second = running.stderr_tail().splitlines()
            assert (first, second.partition(" with ")[0]) == ("started", f"in {folder}")
            assert "SECRET" not in second
            assert {"PATH", "TMPDIR"} <= set(second.split())
            running.child.kill()
            running.child.wait()
            assert running.ports["ipc.0"].recv(9) == b"", "the end of QEMU is the end of the stream"
            with pytest.raises(QmpError):
                running.qmp.execute("query-status")


def test_a_machine_is_over_with_its_block(folder: Path) -> None:
    with launched(VmSpec("amd64", None, folder / "console"), folder, memory=(1,), ports=[]) as running:
        child = running.child
    assert child.returncode is not None


def test_from_boot_to_power_off() -> None:
    with VM.boot(None, arch="amd64", accelerator="tcg", wait=False, ipc="serial", memory_mib=88) as vm:
        assert vm.alive
        assert (vm.memory_mib, vm.accelerator.reason) == (88, "as requested")
        assert vm.serial.heartbeat() is None
        assert vm.power_off(30)
        assert not vm.alive


CONSOLE = """
number = re.search(r"path=/dev/fdset/([0-9]+),append", line)[1]
console = int(re.search(r"fd=([0-9]+),set=" + number + " ", line)[1])
"""
EMULATION = "[ 0.1] Oops: int3: 0000\\n[ 0.1] Kernel panic - not syncing: Fatal exception\\n"
BEAT = """
import json, threading, time
share = re.search(r"path=([^,]+),security_model", line)[1]
def beat():
    while True:
        values = {"timestamp": time.time() * 1000, "pid": 7, "uptime": 1, "ipcMode": "file", "ipcMounted": True}
        with open(share + "/.heartbeat", "w") as sink:
            json.dump({**values, "system": {"network": True}}, sink)
        os.replace(share + "/.heartbeat", share + "/heartbeat")
        time.sleep(0.05)
threading.Thread(target=beat, daemon=True).start()
"""


def talking(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """The fake QEMU also runs ``code`` when it comes up."""
    text = PROGRAM.format(python=Path(sys.executable).resolve())
    program(folder, monkeypatch, text.replace("names =", f"{code}\nnames =", 1))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the console is handed over by descriptor on Linux only")
@pytest.mark.parametrize(("crashes", "starts"), [(1, 2), (2, 3), (9, 3)])
def test_a_crash_of_the_emulation_is_tried_three_times(
    crashes: int, starts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After the crashes, the kernel panics for a reason of its own."""
    shared = public(tmp_path) / "shared"  # QEMU may write nowhere else
    shared.mkdir()
    shared.chmod(0o777)
    count = shared / "count"
    count.touch()
    count.chmod(0o666)
    other = "Kernel panic - not syncing: no root\\n"
    code = f'''{CONSOLE}
share = re.search(r"id=share1,path=([^,]+),", line)[1]
with open(share + "/count", "a+") as sink:
    sink.write("x")
    sink.seek(0)
    os.write(console, b"{EMULATION}" if len(sink.read()) <= {crashes} else b"{other}")
'''
    talking(tmp_path, monkeypatch, code)
    with (
        pytest.raises(KernelPanicError) as caught,
        VM.boot(None, arch="amd64", accelerator="tcg", memory_mib=1, timeout=60, shares={"data": shared}),
    ):
        pass
    assert caught.value.message == f"kernel panic: {'Fatal exception' if crashes == 9 else 'no root'}"
    assert len(count.read_text()) == starts
    warning = "emulation crashed the guest's kernel (kernel panic: Fatal exception); booting again"
    assert caplog.messages.count(warning) == starts - 1


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"settle": False}, {"wait": False}])
def test_a_boot_waits_for_the_agent_and_the_system(
    options: dict[str, bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talking(tmp_path, monkeypatch, BEAT)
    with VM.boot(None, arch="amd64", accelerator="tcg", memory_mib=1, timeout=60, **options) as vm:
        assert (vm.seconds_to_ready is None) == ("wait" in options)
        assert (vm.seconds_to_settled is None) == bool(options)
        assert vm.wait_ready(60).pid == 7


def test_the_program_is_named_by_its_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with (
        pytest.raises(HostError, match="qemu-system-x86_64: program not found"),
        launched(VmSpec("amd64", None, folder / "console"), folder, memory=(1,), ports=[]),
    ):
        pass


IN_USE = "the image is in use by another program"


@pytest.mark.parametrize(
    ("script", "message", "hint"),
    [
        ("echo first >&2; echo 'last words' >&2; exit 1", "last words", None),
        ("echo 'the cause' >&2; echo 'a warning: deprecated' >&2; exit 1", "the cause", None),
        ("echo 'on stdout'; exit 1", "on stdout", None),
        ("exit 3", "failed with status 3", None),
        ("kill -ABRT $$", "was killed by SIGABRT", None),
        ("echo 'Cannot allocate memory' >&2; exit 1", "Cannot allocate memory", "--memory with a smaller number"),
        (
            "printf 'qemu: unsupported machine type\\nUse -machine help to list supported machines\\n' >&2; exit 1",
            "Use -machine help to list supported machines",
            "--machine microvm needs QEMU 6.0 or newer, built with that machine",
        ),
        (
            "echo \"qemu: Property 'microvm-machine.ioapic2' not found\" >&2; exit 1",
            "qemu: Property 'microvm-machine.ioapic2' not found",
            "--machine microvm needs QEMU 6.0 or newer, built with that machine",
        ),
        ("echo 'Failed to get lock' >&2; exit 1", "Failed to get lock", IN_USE),
        (
            "echo 'Is another process using it?' >&2; exit 1",
            "Is another process using it?",
            "the image is in use by another program",
        ),
    ],
)
def test_a_refusal(
    script: str, message: str, hint: str | None, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, monkeypatch, f"#!/bin/sh\n{script}\n")
    with (
        pytest.raises(HostError) as caught,
        launched(VmSpec("amd64", None, folder / "console"), folder, memory=(1,), ports=[]),
    ):
        pass
    assert caught.value.message == f"QEMU does not start: {message}"
    assert caught.value.hint == hint


@pytest.mark.slow
def test_memory_is_tried_until_there_is_enough(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    text = PROGRAM.format(python=Path(sys.executable).resolve())
    check = 'if "-m 55" not in line: sys.exit("Cannot allocate memory")\n'
    program(tmp_path, monkeypatch, text.replace("sys.stderr.write", check + "sys.stderr.write", 1))
    with launched(VmSpec("amd64", None, folder / "console"), folder, memory=(77, 66, 55), ports=[]) as running:
        assert running.spec.memory_mib == 55
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [f"no {size} MiB of memory for the guest, trying {less}" for size, less in ((77, 66), (66, 55))]


@pytest.mark.slow
def test_a_qemu_that_says_nothing_is_given_up(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_START_TIMEOUT", 0.3)
    waited: list[float | None] = []
    real = Qmp.execute

    def execute(self: Qmp, command: str, *, timeout: float = 5.0, **arguments: Any) -> Any:
        waited.append(timeout)
        return real(self, command, timeout=timeout, **arguments)

    monkeypatch.setattr(Qmp, "execute", execute)
    program(tmp_path, monkeypatch, "#!/bin/sh\nexec sleep 60\n")
    with (
        pytest.raises(HostError, match=r"QEMU does not start: it does not answer: timed out"),
        launched(VmSpec("amd64", None, folder / "console"), folder, memory=(1,), ports=[]),
    ):
        pass
    assert waited == [0.3]


def test_qemu_is_confined_and_this_process_keeps_none_of_its_files(folder: Path) -> None:
    """QEMU's locks of the disk end with the last descriptor, and none of its rights grows by a program that it runs."""
    need("/proc", sys.platform == "linux")
    disk = folder / "disk"
    disk.write_bytes(bytes(512))
    with launched(VmSpec("amd64", Disk(disk, "raw"), folder / "console"), folder, memory=(1,), ports=[]) as running:
        opened = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]  # noqa: PTH115
        assert str(disk) not in opened
        inherited = [os.readlink(path) for path in Path(f"/proc/{running.child.pid}/fd").iterdir()]  # noqa: PTH115
        assert str(disk) in inherited
        assert "NoNewPrivs:\t1\n" in Path(f"/proc/{running.child.pid}/status").read_text()


def test_the_end_of_what_qemu_said(folder: Path) -> None:
    said = folder / "said"
    said.write_bytes(b"x" * 5000 + b"\xff" + b"y" * 8190 + b"!")
    assert launch._tail(said) == "\ufffd" + "y" * 8190 + "!"
    said.write_bytes(b"short")
    assert launch._tail(said) == "short"


# ---- attempts --------------------------------------------------------------------------------------------------------

NO_SANDBOX = "qemu-system-x86_64: -sandbox on: seccomp support is disabled"
DENIED = "could not load PC BIOS: Permission denied"
NO_MEMORY = "cannot set up guest memory: Cannot allocate memory"


def attempts(
    refusals: list[str], *, sandbox: bool = True, memory: tuple[int, ...] = (3, 2, 1)
) -> list[tuple[int, bool, bool]]:
    """Return how QEMU is started, one time after another, as long as it refuses: memory, sandbox and anywhere."""
    tried: list[tuple[int, bool, bool]] = []
    waiting = iter(refusals)

    def start(attempt: VmSpec, *, anywhere: bool) -> Any:
        tried.append((attempt.memory_mib, attempt.sandbox, anywhere))
        if (refusal := next(waiting, None)) is not None:
            raise launch._RefusedError(refusal, refusal)
        return "running"

    spec = VmSpec("amd64", None, Path("/console"), sandbox=sandbox, memory_mib=99)
    assert launch._first(spec, memory, start) == "running"  # type: ignore[comparison-overlap]
    return tried


@pytest.mark.parametrize(
    ("refusals", "tried"),
    [
        ([], [(3, True, False)]),
        ([NO_SANDBOX], [(3, True, False), (3, False, False)]),
        ([DENIED], [(3, True, False), (3, True, True)]),
        ([NO_MEMORY, NO_MEMORY], [(3, True, False), (2, True, False), (1, True, False)]),
        (
            [NO_MEMORY, DENIED, NO_SANDBOX, NO_MEMORY],
            [(3, True, False), (2, True, False), (2, True, True), (2, False, True), (1, False, True)],
        ),
    ],
)
def test_what_is_left_out_when_qemu_refuses(refusals: list[str], tried: list[tuple[int, bool, bool]]) -> None:
    assert attempts(refusals) == tried


@pytest.mark.parametrize(
    ("refusals", "memory"),
    [
        ([NO_SANDBOX, NO_SANDBOX], (1,)),
        ([DENIED, DENIED], (1,)),
        ([NO_MEMORY], (1,)),
        ([NO_MEMORY, NO_MEMORY], (2, 1)),
        (["no such machine"], (2, 1)),
        (["/path/-sandbox: no such file"], (2, 1)),
    ],
)
def test_nothing_is_left_out_twice(refusals: list[str], memory: tuple[int, ...]) -> None:
    with pytest.raises(HostError, match="QEMU does not start: ") as caught:
        attempts(refusals, memory=memory)
    assert caught.value.message == f"QEMU does not start: {refusals[-1]}"


def test_a_machine_without_qemus_sandbox_has_none_to_leave_out() -> None:
    assert attempts([], sandbox=False) == [(3, False, False)]
    with pytest.raises(HostError, match="seccomp support is disabled"):
        attempts([NO_SANDBOX], sandbox=False)


def test_what_is_left_out_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Less memory or protection than the user expects is a warning."""
    caplog.set_level("DEBUG", "imgkit.vm")
    attempts([NO_SANDBOX, DENIED, NO_MEMORY])
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", f"QEMU runs without its own sandbox, which is not available: {NO_SANDBOX}"),
        ("DEBUG", f"QEMU may read files anywhere, because some of its own are missing: {DENIED}"),
        ("WARNING", "no 3 MiB of memory for the guest, trying 2"),
    ]


def test_the_sizes_of_memory_that_are_tried() -> None:
    """As the agentd contract has them (docs/reference/agentd.md)."""
    assert attempts([NO_MEMORY, NO_MEMORY], memory=launch.MEMORY_STEPS) == [
        (size, True, False) for size in (4096, 2048, 1024)
    ]


@pytest.mark.parametrize("anywhere", [False, True])
def test_qemu_is_confined_as_the_attempt_has_it(anywhere: bool, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    real = confinement.confined

    def confined(spec: VmSpec, user: Any, writable: Any, *, anywhere: bool = False) -> Any:
        asked.append((spec.memory_mib, user, [path.name for path in writable], anywhere))
        return real(spec, user, writable, anywhere=anywhere)

    def first(spec: VmSpec, memory: Any, start: Any) -> Any:
        return start(replace(spec, memory_mib=memory[0]), anywhere=anywhere)

    monkeypatch.setattr(confinement, "confined", confined)
    monkeypatch.setattr(launch, "_first", first)
    with launched(VmSpec("amd64", None, folder / "console"), folder, memory=(5,), ports=[]) as running:
        assert running.spec.memory_mib == 5
    assert asked == [(5, None, ["snapshot"], anywhere)]
