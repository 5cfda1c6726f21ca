"""Real machines boot a kernel with an init that plays agentd; and what is refused before a machine is started."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from imgkit.errors import HostError, UsageError
from imgkit.vm import VM, failures
from imgkit.vm.failures import BootError
from imgkit.vm.qemu.privatefolder import private_folder
from imgkit.vm.shares.quotas import FolderQuota, Quotas
from tests import guest as guests
from tests.conftest import need_program
from tests.files import digest, public
from tests.guest import Guest
from tests.processes import gone
from tests.vmspecs import STYLES, extra

vm_test = pytest.mark.vm


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Guest:
    need_program("qemu-system-x86_64")
    return guests.make(tmp_path_factory.mktemp("guest"))


@contextmanager
def boot(guest: Guest, words: str = "", **options: Any) -> Iterator[VM]:
    """Boot a machine with one CPU: with several, QEMU's emulation fails now and then, which is not tested here."""
    image = options.pop("image", guest.disk)
    chosen = {"firmware": "direct", "kernel": guest.kernel, "initrd": guest.initrd, "memory_mib": 256, "timeout": 90}
    chosen["cpus"] = 1
    line = f"console=ttyS0 {words}"
    with VM.boot(image, arch="amd64", accelerator="tcg", **{"command_line": line, **chosen, **options}) as vm:
        try:
            yield vm
        except BaseException:
            print(vm.console()[-3000:])  # noqa: T201 - pytest shows it
            raise


def folders() -> set[str]:
    """Return the private folders of this process's machines; others may run at the same time."""
    places = (Path(os.environ.get("TMPDIR", "/tmp")), Path("/var/tmp"))
    return {str(path) for place in places for path in place.glob(f"imgkit-vm-{os.getpid()}-*")}


@vm_test
@pytest.mark.parametrize("style", ["harness", "host-app"])
def test_a_machine_from_boot_to_power_off(guest: Guest, tmp_path: Path, style: str) -> None:
    before, others = digest(guest.disk), folders()
    console = tmp_path / "console.log"
    shares = {f"share{number}": tmp_path / str(number) for number in range(50 if style == "harness" else 2)}
    for path in shares.values():
        path.mkdir()
    with boot(guest, adapt=STYLES[style], shares=shares, console=console) as vm:
        pid = vm.pid
        beat = vm.heartbeat()
        assert beat is not None
        assert beat.extra["shares"] == len(shares)
        assert vm.seconds_to_ready is not None
        assert list(vm.stages())[-2:] == ["initramfs", "init"]
        assert vm.run(["anything"]).stdout == b"answer\n"
        assert vm.share("share1").read("from-guest", limit=100) == b"hello\n"
        assert "OpenRC" in vm.console()
        with pytest.raises(failures.QemuDiedError, match="QEMU ended"):
            vm.run(["power-off"])
        assert not vm.alive
    assert gone(pid, 10)
    assert folders() == others
    assert "OpenRC" in console.read_text(errors="replace")
    assert digest(guest.disk) == before
    assert all((path / "from-guest").read_text() == "hello\n" for path in shares.values())


@vm_test
def test_a_crash_while_a_request_runs(guest: Guest) -> None:
    with boot(guest) as vm, pytest.raises(failures.KernelPanicError, match="sysrq triggered crash"):
        vm.run(["crash-now"], timeout=60)


@vm_test
@pytest.mark.parametrize("what", ["share", "disk"])
def test_a_guest_that_takes_more_than_its_quota_is_ended(guest: Guest, tmp_path: Path, what: str) -> None:
    quotas = Quotas(share=FolderQuota(8 << 20)) if what == "share" else Quotas(disk=8 << 20)
    with boot(guest, shares={"work": tmp_path}, quotas=quotas) as vm:
        with pytest.raises(failures.QuotaError, match="and may add 8 MiB") as raised:
            vm.run([f"fill-{what}"], timeout=120)
        assert f"--quota {what}=" in str(raised.value.hint)
        assert gone(vm.pid, 10)


@vm_test
def test_power_button_that_nobody_hears(guest: Guest) -> None:
    with boot(guest) as vm:
        assert not vm.power_off(1)
        assert not vm.alive


@vm_test
def test_other_buses_and_formats(guest: Guest, tmp_path: Path) -> None:
    raw = tmp_path / "disk,raw:odd name"
    need_program("qemu-img")
    subprocess.run(["qemu-img", "convert", "-O", "raw", guest.disk, f"file:{raw}"], check=True)
    with boot(guest, image=raw, network="none") as vm:
        beat = vm.heartbeat()
        assert beat is not None
        assert beat.extra["disk"] == "/dev/vda"


@vm_test
@pytest.mark.parametrize(
    ("words", "options", "kind", "message"),
    [
        ("test=panic", {}, failures.KernelPanicError, "kernel panic: Attempted to kill init!"),
        ("", {"timeout": 1}, failures.BootTimeoutError, "no heartbeat within 1 s: "),
        ("root=/dev/vdz rootfstype=ext4 quiet", {"stock": True}, failures.InitramfsError, "could not mount the root"),
        (
            "root=/dev/vda rootfstype=ext4 quiet init=/nix",
            {"stock": True},
            failures.InitramfsError,
            "no init: switch_root: can't execute '/nix'",
        ),
        ("", {"memory_mib": 16}, BootError, ""),
    ],
)
def test_failures(guest: Guest, words: str, options: dict[str, Any], kind: type[BootError], message: str) -> None:
    others = folders()
    chosen = dict(options)
    if chosen.pop("stock", False):
        chosen["initrd"] = guest.stock_initrd
    if chosen.get("memory_mib") == 16:
        chosen["timeout"] = 10
    with pytest.raises(kind) as caught, boot(guest, words, **chosen):
        pass
    assert message in caught.value.message
    assert isinstance(caught.value, BootError)
    if kind not in (BootError, failures.BootTimeoutError):  # nothing is on the console yet if the host is busy
        assert caught.value.console
    assert folders() == others


@vm_test
@pytest.mark.parametrize(
    ("words", "reached", "kind", "message"),
    [
        ("", "Linux version", failures.BootTimeoutError, "it was still making progress"),
        (
            "test=no-agent",
            "login:",
            failures.AgentError,
            "no heartbeat of agentd within 0 s, though the system was up",
        ),
    ],
)
def test_deadlines(guest: Guest, words: str, reached: str, kind: type[BootError], message: str) -> None:
    with boot(guest, words, wait=False) as vm:
        guests.until_it_says(vm, reached)
        with pytest.raises(kind, match=message):
            vm.wait_ready(0)


@vm_test
def test_a_boot_waits_for_the_system_not_only_for_its_agent(guest: Guest) -> None:
    with boot(guest, "test=late-network") as vm:
        assert vm.seconds_to_ready is not None
        assert vm.seconds_to_settled is not None
        assert vm.seconds_to_settled - vm.seconds_to_ready > 1
        beat = vm.heartbeat()
        assert beat is not None
        assert beat.missing() == ()


@vm_test
def test_a_system_that_never_comes_up_is_waited_for_and_named(guest: Guest, caplog: pytest.LogCaptureFixture) -> None:
    with boot(guest, "test=no-network", wait=False) as vm:
        assert vm.settle(0) == ("heartbeat",), "a machine that says nothing yet is not settled"
        caplog.clear()
        vm.wait_ready(90)
        assert vm.seconds_to_settled is None
        assert caplog.messages == []
        assert vm.settle(0.5) == ("network",)
        assert caplog.messages == ["agentd is ready, and the guest still has no network"]
        vm.kill()
        with pytest.raises(BootError):
            vm.settle(30)


@vm_test
@pytest.mark.parametrize("firmware", ["bios", "uefi"])
def test_an_empty_disk_has_nothing_to_boot(tmp_path: Path, firmware: str) -> None:
    need_program("qemu-system-x86_64")
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    with (
        pytest.raises(failures.NothingToBootError),
        VM.boot(disk, arch="amd64", firmware=firmware, accelerator="tcg", memory_mib=128, timeout=60),
    ):
        pass


def boot_sector(text: bytes) -> bytes:
    """Return a boot sector that writes ``text`` to the first serial port and halts."""
    program = (
        b"\xfc\x31\xc0\x8e\xd8"  # cld; xor ax, ax; mov ds, ax
        b"\xbe\x20\x7c"  # mov si, text
        b"\xba\xf8\x03"  # mov dx, 0x3f8
        b"\xac\x84\xc0\x74\x03\xee\xeb\xf8"  # next: lodsb; test al, al; jz end; out dx, al; jmp next
        b"\xf4\xeb\xfd"  # end: hlt; jmp end
    )
    return (program.ljust(0x20, b"\x90") + text + b"\0").ljust(510, b"\0") + b"\x55\xaa"


@vm_test
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"\r\nerror: no such partition.\r\nEntering rescue mode...\r\ngrub rescue> ", "rescue prompt: error: no such"),
        (b"\r\nMinimal BASH-like line editing is supported.\r\ngrub> ", "found no configuration"),
    ],
)
def test_a_boot_loader_that_fails(tmp_path: Path, text: bytes, message: str) -> None:
    need_program("qemu-system-x86_64")
    disk = tmp_path / "disk"
    disk.write_bytes(boot_sector(text) + bytes(1 << 20))
    with (
        pytest.raises(failures.BootLoaderError, match=message),
        VM.boot(disk, arch="amd64", accelerator="tcg", memory_mib=64, timeout=30),
    ):
        pass


@vm_test
def test_qemu_that_is_killed(guest: Guest) -> None:
    with boot(guest, wait=False) as vm:
        os.kill(vm.pid, signal.SIGKILL)
        with pytest.raises(failures.QemuDiedError, match="QEMU was killed by SIGKILL"):
            vm.wait_ready(30)


@vm_test
def test_arguments_that_qemu_refuses(guest: Guest) -> None:
    with (
        pytest.raises(HostError, match=r"QEMU does not start: .*nonsense"),
        boot(guest, adapt=extra("-device", "nonsense")),
    ):
        pass


CHILD = """
import sys, time
from pathlib import Path
from imgkit.vm import VM
with VM.boot(None, arch="amd64", accelerator="tcg", memory_mib=64, wait=False, ipc=sys.argv[1], config=b"secret") as vm:
    print(vm.pid, vm._running.stderr.parent, flush=True)
    time.sleep(600)
"""


def temporary(pid: int) -> Path:
    """Return the folder where this QEMU keeps the changes of a disk that is not written to."""
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    (folder,) = (Path(os.fsdecode(line[7:])) for line in variables if line.startswith(b"TMPDIR="))
    return Path(f"/proc/{pid}/fd", folder.name).readlink() if folder.is_relative_to("/proc/self/fd") else folder


@vm_test
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("ipc", "tmpdir"), [("file", True), ("serial", False)])
def test_nothing_is_left_however_we_die(how: signal.Signals, ipc: str, tmpdir: bool, tmp_path: Path) -> None:
    need_program("qemu-system-x86_64")
    environment = {name: value for name, value in os.environ.items() if name != "TMPDIR"}
    environment |= {"TMPDIR": str(tmp_path)} if tmpdir else {}
    argv = [sys.executable, "-c", CHILD, ipc]
    child = subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert child.stdout is not None
    pid, folder = child.stdout.readline().split()
    changes = temporary(int(pid))
    assert changes.is_relative_to(tmp_path if tmpdir else "/var/tmp")
    assert Path(folder, "config.iso").stat().st_mode & 0o777 == 0o600
    child.send_signal(how)
    child.wait(timeout=20)
    child.stdout.close()
    assert gone(int(pid), 10)
    left = [Path(folder), changes, changes.parent if changes.name == "snapshot" else changes]
    deadline = time.monotonic() + 10
    while any(path.exists() for path in left) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [path for path in left if path.exists()] == []


# ---- without a machine -------------------------------------------------------------------------------------------


def test_a_private_folder_goes_whatever_is_in_it(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("stays")
    with private_folder() as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "locked" / "deep").mkdir(parents=True)
        (folder / "locked" / "deep" / "file").write_text("x")
        (folder / "locked" / "deep").chmod(0)
        (folder / "locked").chmod(0)
        (folder / "link").symlink_to(outside)
    assert not folder.exists()
    assert (outside / "file").read_text() == "stays"


@pytest.mark.slow
def test_inputs_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "qemu-system-x86_64"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    public(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(512))
    zboot = tmp_path / "vmlinuz"
    zboot.write_bytes(b"MZ\0\0zimg")
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (HostError, "no such file", {"image": tmp_path / "none"}),
        (HostError, "no such folder to share as work", {"shares": {"work": tmp_path / "none"}}),
        (UsageError, "not a name for a share", {"shares": {"a b": tmp_path}}),
        (UsageError, "serial mode has no ipc share", {"ipc": "serial", "shares": {"ipc": tmp_path}}),
        (UsageError, "unknown way to talk", {"ipc": "telepathy"}),
        (UsageError, "direct boot needs a kernel", {"firmware": "direct"}),
        (HostError, "a compressed EFI kernel", {"firmware": "direct", "kernel": zboot}),
        (HostError, "QEMU does not start: failed with status 1", {}),
    ]
    for kind, message, options in cases:
        image = options.pop("image", disk)
        with pytest.raises(kind, match=message), VM.boot(image, arch="amd64", accelerator="tcg", **options):
            pass


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "sizes", "sandboxed"),
    [
        (
            'case "$*" in *"-m 4096"*|*"-m 2048"*) echo "cannot set up guest memory: Cannot allocate memory" >&2; esac',
            3,
            3,
        ),
        ('case "$*" in *-sandbox*) echo "-sandbox on: seccomp support is disabled" >&2; esac', 2, 1),
        (
            'case "$*" in *-sandbox*) echo "qemu-system-x86_64: -sandbox on,obsolete=deny: failed to load" >&2; esac',
            2,
            1,
        ),
        ("""echo "qemu: -drive file=/srv/sandbox/x: Could not open '/srv/sandbox/x': No such file" >&2""", 1, 1),
        ("""echo "qemu: could not load kernel '/srv/ -sandbox seccomp/x': Permission denied" >&2""", 2, 2),
    ],
)
def test_less_memory_or_no_sandbox_where_it_must_be(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    script: str,
    sizes: int,
    sandboxed: int,
) -> None:
    """The fake QEMU refuses what the script says, and ends with a status whatever it is asked."""
    program = tmp_path / "qemu-system-x86_64"
    program.write_text(f"#!/bin/sh\n{script}\nexit 1\n")
    program.chmod(0o755)
    public(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    caplog.set_level(logging.DEBUG, "imgkit.host.process")
    caplog.set_level(logging.DEBUG, "imgkit.vm")
    with pytest.raises(HostError, match="QEMU does not start"), VM.boot(None, arch="amd64", accelerator="tcg"):
        pass
    starts = [record.getMessage() for record in caplog.records if f"{program} " in record.getMessage()]
    assert len(starts) == sizes
    assert sum(" -sandbox on" in start for start in starts) == sandboxed
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any("without its own sandbox" in line for line in said) == (sandboxed < sizes)
