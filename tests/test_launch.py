"""QEMU is started, connected and ended. A program in its place speaks QMP and reports its arguments."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from imgkit.errors import HostError
from imgkit.vm import VM, KernelPanicError
from imgkit.vm.qemu import launch
from imgkit.vm.qemu.argv import VmSpec
from imgkit.vm.qemu.launch import launched
from imgkit.vm.qemu.qmp import QmpError
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
        ("exit 3", "failed with status 3", None),
        ("kill -ABRT $$", "was killed by SIGABRT", None),
        ("echo 'Cannot allocate memory' >&2; exit 1", "Cannot allocate memory", "--memory with a smaller number"),
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


def test_a_qemu_that_says_nothing_is_given_up(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_START_TIMEOUT", 0.3)
    program(tmp_path, monkeypatch, "#!/bin/sh\nexec sleep 60\n")
    with (
        pytest.raises(HostError, match=r"QEMU does not start: it does not answer: timed out"),
        launched(VmSpec("amd64", None, folder / "console"), folder, memory=(1,), ports=[]),
    ):
        pass
