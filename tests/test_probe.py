"""The accelerator probe, against fake QEMUs on PATH and (mark vm) the real one."""

from __future__ import annotations

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
    verdict = probe.probe("amd64", cache=fake / "cache")
    assert (verdict.name, verdict.cpu, verdict.argument) == ("kvm", "host", "kvm")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("echo 'error: failed to set MSR 0x10a' >&2; kill -ABRT $$", "killed by SIGABRT: error: failed to set MSR"),
        ("exit 134", "failed with status 134"),
        ("exit 0", "failed with status 0"),
        ("exec sleep 30", "not done in 0.2 s"),
    ],
)
def test_kvm_that_lies(fake: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str) -> None:
    if "sleep" in text:
        monkeypatch.setattr(probe.measure, "__kwdefaults__", {"limit": 0.2})
    body(fake, text)
    verdict = probe.probe("amd64", cache=fake / "cache")
    assert (verdict.name, verdict.argument) == ("tcg", "tcg,thread=multi")
    assert words in verdict.reason
    with pytest.raises(HostError, match="accelerator kvm does not work here") as caught:
        probe.probe("amd64", "kvm", cache=fake / "cache")
    assert words in caught.value.message


def test_the_probe_uses_the_arguments_of_the_boot(fake: Path) -> None:
    body(fake, f'echo "$@" > {fake}/argv; exit 99')
    probe.probe("amd64", cache=fake / "cache")
    words = (fake / "argv").read_text().split()
    assert words[words.index("-accel") + 1] == "kvm"
    assert words[words.index("-cpu") + 1] == AMD64.native_cpu


def test_the_verdict_is_remembered(fake: Path) -> None:
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
    assert probe.probe("amd64", "tcg", cache=fake / "cache").name == "tcg"
    assert starts(fake) == 0


def test_a_foreign_guest_is_emulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "host_arch", lambda: "amd64")
    monkeypatch.setattr("shutil.which", lambda name: "/bin/true")
    verdict = probe.probe("arm64", cache=tmp_path)
    assert (verdict.name, verdict.cpu) == ("tcg", ARM64.tcg_cpu)
    with pytest.raises(HostError, match="another architecture"):
        probe.probe("arm64", "kvm", cache=tmp_path)


def test_missing_qemu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match="qemu-system-aarch64: program not found") as caught:
        probe.probe("arm64")
    assert caught.value.hint == "apt-get install qemu-system-arm"


def test_unknown_requests() -> None:
    with pytest.raises(UsageError, match="xen: unknown accelerator"):
        probe.probe("amd64", "xen")
    with pytest.raises(UsageError, match="sparc: unknown architecture"):
        probe.probe("sparc")


def test_host_arch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, arch in (("x86_64", "amd64"), ("AMD64", "amd64"), ("aarch64", "arm64"), ("riscv64", "riscv64")):
        monkeypatch.setattr("platform.machine", lambda name=name: name)
        assert machines.host_arch() == arch


def test_firmware_shape() -> None:
    image = probe.x86_firmware()
    assert len(image) == probe.FIRMWARE_SIZE
    assert image[-16] == 0xE9  # the reset vector is a near jump
    target = (len(image) - 16 + 3 + int.from_bytes(image[-15:-13], "little")) % len(image)
    assert target == 0
    assert image[:2] == b"\x66\xb9"
    assert len(probe.arm64_firmware()) == probe.FIRMWARE_SIZE


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
    need("root", identity.may_change())
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # pytest's own are closed to other users
        Path(folder).chmod(0o755)
        device = Path(folder, "kvm")
        device.touch()
        device.chmod(mode)
        os.chown(device, 0, group)
        user = identity.choose(None, device=device)
        kvm = probe.Accelerator("kvm", "host", "it passed the timed probe")
        assert probe.allowed(kvm, "amd64", "auto", None, device) == kvm
        verdict = probe.allowed(kvm, "amd64", "auto", user, device)
        if is_open:
            assert verdict == probe.allowed(kvm, "amd64", "kvm", user, device) == kvm
            return
        assert (verdict.name, verdict.cpu) == ("tcg", AMD64.tcg_cpu)
        assert f"{device} is closed to nobody" in caplog.text
        assert f"chmod 660 {device}" in caplog.text
        with pytest.raises(HostError, match="is closed to nobody") as raised:
            probe.allowed(kvm, "amd64", "kvm", user, device)
        assert "chgrp kvm" in str(raised.value.hint)
