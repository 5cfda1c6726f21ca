"""The accelerator probe, against fake QEMUs on PATH and (mark vm) the real one."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import pytest

from imgkit.errors import HostError, UsageError
from imgkit.vm.qemu import machines, probe
from imgkit.vm.qemu.machines import MACHINES
from imgkit.vm.sandbox import identity
from tests.conftest import need, need_program

AMD64, ARM64 = MACHINES["amd64"], MACHINES["arm64"]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A QEMU on PATH that runs the shell script ``body``, counts its starts, on an amd64 host with a /dev/kvm."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "qemu-system-x86_64"
    program.write_text(f"#!/bin/sh\necho x >> {tmp_path}/starts\n. {tmp_path}/body\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(probe, "host_arch", lambda: "amd64")
    monkeypatch.setattr("os.access", lambda *_: True)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(probe.measure, "__kwdefaults__", {"limit": 30})  # a second look would be counted as a start
    return tmp_path


def starts(fake: Path) -> int:
    path = fake / "starts"
    return len(path.read_text().split()) if path.exists() else 0


def body(fake: Path, text: str) -> None:
    (fake / "body").write_text(text)


def test_good_kvm(fake: Path) -> None:
    body(fake, "exit 99")
    accelerator = probe.probe("amd64", cache=fake / "cache")
    assert accelerator == probe.Accelerator("kvm", "host", "it passed the timed probe")
    assert accelerator.argument == "kvm"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "echo first >&2; echo 'error: failed to set MSR 0x10a' >&2; kill -ABRT $$",
            "QEMU was killed by SIGABRT: error: failed to set MSR 0x10a",
        ),
        ("exit 134", "QEMU failed with status 134"),
        ("exit 0", "QEMU failed with status 0"),
        ("exec sleep 30", "a loop of 20,000,000 turns was not done in 0.2 s"),
    ],
)
def test_kvm_that_lies(fake: Path, monkeypatch: pytest.MonkeyPatch, text: str, problem: str) -> None:
    if "sleep" in text:
        monkeypatch.setattr(probe.measure, "__kwdefaults__", {"limit": 0.2})
    body(fake, text)
    accelerator = probe.probe("amd64", cache=fake / "cache")
    assert accelerator == probe.Accelerator("tcg", AMD64.tcg_cpu, f"no kvm: {problem}")
    assert accelerator.argument == "tcg,thread=multi"
    with pytest.raises(HostError) as caught:
        probe.probe("amd64", "kvm", cache=fake / "cache")
    assert caught.value.message == f"accelerator kvm does not work here: {problem}"
    assert caught.value.hint == "--accel tcg always works"


def test_the_probe_runs_what_the_boot_would(fake: Path) -> None:
    copy = f'for word in "$@"; do [ -f "$word" ] && cp "$word" {fake}/image; done'
    body(fake, f'echo "$@" > {fake}/argv; {copy}; exit 99')
    probe.probe("amd64", cache=fake / "cache")
    words = (fake / "argv").read_text().split()
    path = Path(words[words.index("-bios") + 1])
    assert [AMD64.binary, *words] == probe.arguments(AMD64, "kvm", AMD64.native_cpu, path)
    assert (fake / "image").read_bytes() == probe.x86_firmware()


COMMON = ["-m", "32", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-bios", "/image"]


def test_arguments() -> None:
    words = ["-machine", "q35", "-accel", "kvm", "-cpu", "host", *COMMON]
    exit_device = ["-device", "isa-debug-exit,iobase=0xf4,iosize=1"]
    assert probe.arguments(AMD64, "kvm", "host", Path("/image")) == ["qemu-system-x86_64", *words, *exit_device]
    words = ["-machine", "virt", "-accel", "tcg", "-cpu", "max", *COMMON]
    assert probe.arguments(ARM64, "tcg", "max", Path("/image")) == ["qemu-system-aarch64", *words]


def test_a_good_run_ends_with_a_status_of_its_own() -> None:
    """isa-debug-exit: twice the value that was written, plus one; PSCI SYSTEM_OFF ends QEMU as a shutdown does."""
    assert (probe.expected_status("amd64"), probe.expected_status("arm64")) == (99, 0)


@pytest.mark.parametrize(
    ("opens", "there", "reason"),
    [
        (False, True, "no kvm: DEVICE may not be opened by this user"),
        (False, False, "no kvm: DEVICE is missing"),
        (True, True, "it passed the timed probe"),
    ],
)
def test_a_device_that_cannot_be_opened_is_not_tried(
    opens: bool, there: bool, reason: str, fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body(fake, "exit 99")
    device = fake / "kvm"
    if there:
        device.touch()
    monkeypatch.setattr(probe, "KVM", device)
    monkeypatch.setattr("os.access", lambda path, mode: path != device or (opens and mode == os.R_OK | os.W_OK))
    assert probe.probe("amd64", cache=fake / "cache").reason == reason.replace("DEVICE", str(device))
    assert starts(fake) == int(opens)


def test_macos_has_another_accelerator(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr("os.access", lambda path, _: path != probe.KVM)
    body(fake, "exit 99")
    assert probe.probe("amd64", cache=fake / "cache").name == "hvf"
    assert probe.probe("amd64", "hvf", cache=fake / "cache").argument == "hvf"
    assert starts(fake) == 1


def test_the_cache_is_the_users(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "user_cache_path", lambda name: fake / name)
    body(fake, "exit 99")
    probe.probe("amd64")
    probe.probe("amd64")
    assert starts(fake) == 1
    (path,) = (fake / "imgkit" / "probe").iterdir()
    assert json.loads(path.read_text()) == {"problem": ""}


def test_the_result_is_remembered(fake: Path) -> None:
    body(fake, "exit 1")
    first = probe.probe("amd64", cache=fake / "cache")
    assert probe.probe("amd64", cache=fake / "cache") == first
    assert starts(fake) == 1


@pytest.mark.parametrize("change", ["boot", "kernel", "binary"])
def test_what_it_depends_on_is_part_of_the_key(fake: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    body(fake, "exit 1")
    probe.probe("amd64", cache=fake / "cache")
    if change == "boot":
        monkeypatch.setattr(probe, "_boot_id", lambda: "another")
    elif change == "kernel":
        monkeypatch.setattr("platform.release", lambda: "another")
    else:
        program = fake / "bin" / "qemu-system-x86_64"
        program.write_text(program.read_text() + "# upgraded\n")
    probe.probe("amd64", cache=fake / "cache")
    assert starts(fake) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"problem": 1}', "null"])
def test_a_spoilt_cache_is_measured_again(fake: Path, content: str) -> None:
    body(fake, "exit 99")
    probe.probe("amd64", cache=fake / "cache")
    for path in (fake / "cache").iterdir():
        path.write_text(content)
    assert probe.probe("amd64", cache=fake / "cache").name == "kvm"
    assert starts(fake) == 2


@pytest.mark.slow
def test_a_slow_moment_gets_a_second_look(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe.measure, "__kwdefaults__", {"limit": 2})
    body(fake, f"[ -e {fake}/once ] && exit 99; touch {fake}/once; exec sleep 30")
    assert probe.probe("amd64", cache=fake / "cache").name == "kvm"


def test_an_unwritable_cache_does_no_harm(fake: Path) -> None:
    body(fake, "exit 99")
    (fake / "cache").write_text("a file")
    assert probe.probe("amd64", cache=fake / "cache").name == "kvm"


def test_tcg_is_never_measured(fake: Path) -> None:
    body(fake, "exit 1")
    expected = probe.Accelerator("tcg", AMD64.tcg_cpu, "as requested")
    assert probe.probe("amd64", "tcg", cache=fake / "cache") == expected
    assert starts(fake) == 0


def test_a_foreign_guest_is_emulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "host_arch", lambda: "amd64")
    monkeypatch.setattr("shutil.which", lambda name: "/bin/true")
    problem = "arm64 guests are emulated on a host of another architecture"
    assert probe.probe("arm64", cache=tmp_path) == probe.Accelerator("tcg", ARM64.tcg_cpu, f"no kvm: {problem}")
    with pytest.raises(HostError, match=problem):
        probe.probe("arm64", "kvm", cache=tmp_path)


def test_missing_qemu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match="qemu-system-aarch64: program not found") as caught:
        probe.probe("arm64")
    assert caught.value.hint == "apt-get install qemu-system-arm"


def test_unknown_requests() -> None:
    with pytest.raises(UsageError, match="xen: unknown accelerator") as caught:
        probe.probe("amd64", "xen")
    assert caught.value.hint == "known are auto, kvm, hvf, tcg"
    with pytest.raises(UsageError, match="sparc: unknown architecture") as caught:
        probe.probe("sparc")
    assert caught.value.hint == "known are amd64, arm64"


def test_host_arch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, arch in (("x86_64", "amd64"), ("AMD64", "amd64"), ("aarch64", "arm64"), ("riscv64", "riscv64")):
        monkeypatch.setattr("platform.machine", lambda name=name: name)
        assert machines.host_arch() == arch


def test_firmware() -> None:
    """The bytes that test_firmware_runs executes: 20,000,000 is 0x01312D00."""
    image = probe.x86_firmware()
    program = bytes.fromhex("66b9 002d3101 6649 75fc b031 e6f4 f4ebfd")
    assert image[:-16] == program.ljust(0xFFF0, b"\xff")
    assert image[-16:] == bytes.fromhex("e9 0d00").ljust(16, b"\xff"), "the reset vector: a near jump to offset 0"
    words = (0xD285A000, 0xF2A02620, 0xF1000400, 0x54FFFFE1, 0xD2800100, 0xF2B08000, 0xD4000002, 0x14000000)
    arm64 = b"".join(word.to_bytes(4, "little") for word in words)
    assert probe.arm64_firmware() == arm64.ljust(0x10000, b"\xff")
    assert probe.x86_firmware(7)[2:6] == b"\7\0\0\0"


@pytest.mark.vm
@pytest.mark.parametrize("arch", ["amd64", "arm64"])
def test_firmware_runs(arch: str) -> None:
    record = MACHINES[arch]
    need_program(record.binary)
    assert probe.measure(record, "tcg", record.tcg_cpu, limit=30) == ""


@pytest.mark.vm
@pytest.mark.parametrize("arch", ["amd64", "arm64"])
def test_the_loop_takes_time(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the loop that tells a crawling accelerator: a far longer one must run into the limit."""
    record = MACHINES[arch]
    need_program(record.binary)
    endless = probe.x86_firmware(0xFFFF_FFFF) if arch == "amd64" else probe.arm64_firmware(0xFFFF_FFFF)
    monkeypatch.setattr(probe, "x86_firmware", lambda: endless)
    monkeypatch.setattr(probe, "arm64_firmware", lambda: endless)
    assert "was not done in 2 s" in probe.measure(record, "tcg", record.tcg_cpu, limit=2)


@pytest.mark.vm
def test_a_cpu_that_qemu_refuses() -> None:
    need_program(AMD64.binary)
    assert "failed with status 1: " in probe.measure(AMD64, "tcg", "host", limit=10)


@pytest.mark.parametrize(
    ("mode", "group", "is_open"), [(0o600, 0, False), (0o660, 0, False), (0o660, 4713, True), (0o666, 0, True)]
)
def test_a_device_that_is_closed_to_qemus_user(
    mode: int, group: int, is_open: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Root may open it whatever its mode is, and starts QEMU as nobody."""
    need("root", identity.can_switch_user())
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # pytest's own are closed to other users
        Path(folder).chmod(0o755)
        device = Path(folder, "kvm")
        device.touch()
        device.chmod(mode)
        os.chown(device, 0, group)
        user = identity.choose_user(None, device=device)
        kvm = probe.Accelerator("kvm", "host", "it passed the timed probe")
        assert probe.allowed(kvm, "amd64", "auto", None, device) == kvm
        accelerator = probe.allowed(kvm, "amd64", "auto", user, device)
        if is_open:
            assert accelerator == probe.allowed(kvm, "amd64", "kvm", user, device) == kvm
            return
        problem = f"{device} is closed to {user}, the user that QEMU runs as"
        assert accelerator == probe.Accelerator("tcg", AMD64.tcg_cpu, f"no kvm: {problem}")
        assert probe.allowed(accelerator, "amd64", "kvm", user, device) == accelerator, "only kvm has a device"
        assert f"{device} is closed to nobody" in caplog.text
        assert f"chmod 660 {device}" in caplog.text
        with pytest.raises(HostError, match="is closed to nobody") as raised:
            probe.allowed(kvm, "amd64", "kvm", user, device)
        assert "chgrp kvm" in str(raised.value.hint)
