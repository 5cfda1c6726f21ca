"""``imgkit doctor`` about ``/dev/kvm``: a cure, or a plain "nothing to do"."""

from __future__ import annotations

import grp
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from imgkit.cli import hostchecks, kvmadvice
from imgkit.cli.commands.doctor import table
from imgkit.cli.hostchecks import HostCheck
from imgkit.vm.qemu import probe
from tests.commandline import ROOT


class Host:
    """A host of which the tests say what it is."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.kvm, self.cpuinfo = folder / "kvm", folder / "cpuinfo"
        self.arch, self.is_allowed = "amd64", False
        patch.setattr(kvmadvice, "KVM", self.kvm)
        patch.setattr(kvmadvice, "_CPUINFO", self.cpuinfo)
        patch.setattr(kvmadvice, "host_arch", lambda: self.arch)
        patch.setattr(os, "access", lambda path, mode: self.is_allowed)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def test_a_device_that_this_user_may_not_open(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.kvm.touch(0o660)
    own = os.stat_result((0o020660, 1, 1, 1, 0, 104, 0, 0, 0, 0))
    monkeypatch.setattr(type(host.kvm), "stat", lambda self, **_: own)
    monkeypatch.setattr(grp, "getgrgid", lambda gid: grp.struct_group(("kvm", "x", gid, [])))
    assert kvmadvice.kvm_advice("amd64") == "sudo usermod -aG kvm $USER, then log in again"
    for mode, gid in ((0o020600, 104), (0o020640, 104), (0o020660, 0)):
        other = os.stat_result((mode, 1, 1, 1, 0, gid, 0, 0, 0, 0))
        monkeypatch.setattr(type(host.kvm), "stat", lambda self, other=other, **_: other)
        assert kvmadvice.kvm_advice("amd64") == f"sudo setfacl -m u:$USER:rw {host.kvm}, then log in again"


def test_a_device_that_does_not_work(host: Host) -> None:
    host.kvm.touch()
    host.is_allowed = True
    assert kvmadvice.kvm_advice("amd64").startswith(f"nothing to do: {host.kvm} is there, but does not work")


@pytest.mark.parametrize(
    ("flags", "advice"),
    [
        ("flags\t\t: fpu vmx sse", "sudo modprobe kvm_intel; in a container: --device "),
        ("flags\t\t: fpu svm sse", "sudo modprobe kvm_amd; in a container: --device "),
        ("flags\t\t: fpu sse\nvmx flags\t: x", "nothing to do: this processor, or the virtual machine"),
        ("", "nothing to do: this processor, or the virtual machine"),
    ],
)
def test_no_device(flags: str, advice: str, host: Host) -> None:
    host.cpuinfo.write_text(f"processor\t: 0\n{flags}\n")
    assert kvmadvice.kvm_advice("amd64").startswith(advice)
    host.cpuinfo.unlink()
    assert kvmadvice.kvm_advice("amd64").startswith("nothing to do: this processor")


def test_another_architecture(host: Host) -> None:
    assert kvmadvice.kvm_advice("arm64") == "nothing to do"
    host.arch = "arm64"
    assert kvmadvice.kvm_advice("amd64") == "nothing to do"
    assert kvmadvice.kvm_advice("arm64").startswith("nothing to do if this is a virtual machine; in a container: ")


def test_the_advice_is_below_the_check() -> None:
    checks = [HostCheck("a", True, "fine", "boot", advice="do this"), HostCheck("b", True, "fine", "boot", "not shown")]
    assert table(checks) == "ok       a  fine\n            do this\nok       b  fine"


def test_emulated_guests_have_advice_and_accelerated_ones_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostchecks, "kvm_advice", lambda arch: f"advice for {arch}")
    found = {"amd64": "kvm", "arm64": "tcg"}
    monkeypatch.setattr(probe, "probe", lambda arch: arch)
    monkeypatch.setattr(probe, "allowed", lambda _, arch, *__: SimpleNamespace(name=found[arch], reason="a reason"))
    assert [check.advice for check in hostchecks._accelerators()] == ["", "advice for arm64"]


@pytest.mark.slow
def test_every_check_of_an_accelerator_on_this_host_says_what_to_do() -> None:
    argv = [sys.executable, "-m", "imgkit", "doctor"]
    lines = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=ROOT).stdout.splitlines()
    for number, line in enumerate(lines):
        if "accelerator" in line and ": no kvm: " in line:
            assert any(words in lines[number + 1] for words in ("nothing to do", "sudo ")), lines[number + 1]
