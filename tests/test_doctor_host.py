"""What the doctor finds out about this host, with stand-ins for programs and devices."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from imgkit.cli import hostchecks, main
from imgkit.cli.commands.doctor import table
from imgkit.cli.hostchecks import HostCheck
from imgkit.engines.engineerrors import EngineStartError
from imgkit.engines.guestfs import bindings
from imgkit.engines.guestfs.bindings import Interpreter
from imgkit.errors import HostError
from imgkit.host.process import MissingProgramError
from imgkit.rootfs.npm import npmrunner
from imgkit.vm.qemu import firmware, probe
from imgkit.vm.sandbox import confinement, identity, supervisor
from tests.commandvariables import no_variables  # noqa: F401 - an autouse fixture

GIB = 1 << 30
GUESTFS = "build with libguestfs"


def test_the_table_of_the_doctor() -> None:
    checks = [
        HostCheck("python", True, "3.11", "build", "not shown"),
        HostCheck("a longer name", False, "not there", "boot", "apt-get"),
        HostCheck("b", False, "none", "boot by UEFI", "apt", required=False),
    ]
    assert table(checks).splitlines() == [
        "ok       python         3.11",
        "MISSING  a longer name  not there",
        "                        needed to boot; fix: apt-get",
        "missing  b              none",
        "                        needed to boot by UEFI; fix: apt",
    ]


@pytest.mark.parametrize(
    ("required", "ok", "status"), [(True, True, 0), (True, False, 5), (False, False, 0), (False, True, 0)]
)
def test_the_status_of_the_doctor(
    required: bool, ok: bool, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def examine(out: Path) -> list[HostCheck]:
        asked.append(out)
        return [HostCheck("x", ok, "detail", "do", "fix", required=required)]

    monkeypatch.setattr("imgkit.cli.commands.doctor.examine", examine)
    assert main.main(["doctor", "--json"]) == status
    assert json.loads(capsys.readouterr().out) == [
        {"name": "x", "ok": ok, "detail": "detail", "purpose": "do", "fix": "fix", "required": required, "advice": ""}
    ]
    main.main(["doctor", "--out", "elsewhere"])
    assert asked == [Path("out"), Path("elsewhere")]


def test_the_bindings_of_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [Interpreter(sys.executable, "3.13"), Interpreter("/usr/bin/python3", "3.11", isolated=True)]
    monkeypatch.setattr(bindings, "choose", lambda environment: chosen.pop(0))
    check = hostchecks._bindings()
    assert (check.name, check.ok, check.detail, check.purpose) == ("libguestfs bindings", True, "importable", GUESTFS)
    assert hostchecks._bindings().detail == "importable by /usr/bin/python3 (Python 3.11)"

    def fails(environment: Mapping[str, str]) -> Interpreter:
        raise EngineStartError("nobody can import them", hint="apt-get")

    monkeypatch.setattr(bindings, "choose", fails)
    check = hostchecks._bindings()
    assert (check.name, check.ok, check.detail) == ("libguestfs bindings", False, "nobody can import them")
    assert (check.fix, check.purpose, check.required) == ("apt-get", GUESTFS, True)


def test_the_programs_of_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None if name.startswith("qemu-system") else f"/bin/{name}")
    monkeypatch.setattr(hostchecks, "_version", lambda name: f"version of {name}")
    found = [
        (check.name, check.ok, check.detail, check.purpose, check.fix, check.required)
        for check in hostchecks._programs()
    ]
    assert found == [
        ("supermin", True, "version of supermin", GUESTFS, "apt-get install supermin", True),
        ("qemu-img", True, "version of qemu-img", f"{GUESTFS}, boot and verify", "apt-get install qemu-utils", True),
        ("qemu-system-x86_64", False, "not on PATH", "boot amd64", "apt-get install qemu-system-x86", True),
        ("qemu-system-aarch64", False, "not on PATH", "boot arm64", "apt-get install qemu-system-arm", False),
    ]


def test_the_version_of_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def run(argv: list[str], *, timeout: float) -> bytes:
        asked.append((argv, timeout))
        if argv[0] == "missing":
            raise MissingProgramError("missing")
        return b"x" * 61 + b"\xff\nsecond line\n"

    monkeypatch.setattr(hostchecks, "run", run)
    assert hostchecks._version("tool") == "x" * 60
    assert asked == [(["tool", "--version"], 10)]
    assert hostchecks._version("missing") == "missing: program not found"


def test_the_kernel_of_an_appliance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readable: set[str] = set()
    kernels: list[Path] = []
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) in readable)
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [self / name for name in kernels])

    def check() -> tuple[bool, str, str]:
        found = hostchecks._kernel()
        assert (found.name, found.purpose, found.required) == ("kernel", GUESTFS, True)
        return found.ok, found.detail, found.fix

    none = "apt-get install linux-image-amd64 (Ubuntu: linux-image-generic, arm64: linux-image-arm64)"
    assert check() == (False, "none in /boot", none)
    kernels += [Path("vmlinuz-6.2"), Path("vmlinuz-6.1")]
    newest = "/boot/vmlinuz-6.2"
    assert check() == (False, f"{newest} may not be read by this user", f"sudo chmod 0644 {newest}")
    readable |= {"/boot/vmlinuz-6.1"}
    assert check() == (True, "/boot/vmlinuz-6.1", "")
    readable |= {newest}
    assert check() == (True, newest, "")
    named = tmp_path / "kernel"
    monkeypatch.setenv("SUPERMIN_KERNEL", str(named))
    assert check() == (False, f"{named} (SUPERMIN_KERNEL) does not exist", "correct it")
    named.touch()
    assert check() == (False, f"{named} may not be read by this user", f"sudo chmod 0644 {named}")
    readable.add(str(named))
    assert check() == (True, str(named), "")


@pytest.mark.parametrize(
    ("free", "writable", "ok", "detail"),
    [
        (2 * GIB, True, True, "2.0 GiB free in {}"),
        (2 * GIB - 1, True, False, "2.0 GiB free in {}"),
        (5 * GIB // 2, False, False, "2.5 GiB free in {}, which is not writable"),
    ],
)
def test_the_space_for_a_build(
    free: int, writable: bool, ok: bool, detail: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of the nearest folder that exists."""
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=free))
    monkeypatch.setattr(os, "access", lambda path, mode: writable)
    assert hostchecks._space(tmp_path / "a" / "b") == HostCheck(
        "space", ok, detail.format(tmp_path), "build", "choose another folder with --out"
    )
    assert str(tmp_path) in hostchecks._space(tmp_path).detail


def test_the_firmware_of_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(arch: str) -> SimpleNamespace:
        if arch == "arm64":
            raise HostError("no firmware", hint="apt-get")
        return SimpleNamespace(code=Path("/code"))

    monkeypatch.setattr(firmware, "find", find)
    assert list(hostchecks._firmware()) == [
        HostCheck("UEFI amd64", True, "/code", "boot amd64 by UEFI"),
        HostCheck("UEFI arm64", False, "no firmware", "boot arm64 by UEFI", "apt-get", required=False),
    ]


def test_the_accelerators_of_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def allowed(found: str, arch: str, wanted: str, user: str) -> SimpleNamespace:
        asked.append((found, arch, wanted, user))
        if arch == "arm64":
            raise HostError("none")
        return SimpleNamespace(name="kvm", reason="it works")

    monkeypatch.setattr(identity, "choose_user", lambda user, *, device: f"user of {device}")
    monkeypatch.setattr(probe, "probe", lambda arch: f"probe of {arch}")
    monkeypatch.setattr(probe, "allowed", allowed)
    assert list(hostchecks._accelerators()) == [
        HostCheck("accelerator amd64", True, "kvm: it works", "boot amd64"),
        HostCheck("accelerator arm64", False, "none", "boot arm64", "", required=False),
    ]
    assert asked[0] == ("probe of amd64", "amd64", "auto", f"user of {probe.KVM}")


@pytest.mark.parametrize(
    ("landlock", "filters", "obstacle", "root", "user", "ok", "detail"),
    [
        (5, True, None, False, None, True, "files: Landlock 5; set-user-id, devices: refused"),
        (0, True, None, False, None, False,
         "files: all that its user may open; set-user-id, devices: refused"),
        (5, False, "why", False, None, False, "files: Landlock 5; set-user-id, devices: removed afterwards"),
        (5, True, "it is old", True, "nobody", True,
         "files: Landlock 5; set-user-id, devices: refused; set-group-id for folders: refused, as it is old;"
         " as nobody, or a folder's owner"),
        (5, True, None, True, None, True,
         "files: Landlock 5; set-user-id, devices: refused; as this root, which may not switch users"),
    ],
)  # fmt: skip
def test_what_confines_a_guest(
    landlock: int,
    filters: bool,
    obstacle: str | None,
    root: bool,
    user: str | None,
    ok: bool,
    detail: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(confinement, "landlock_version", lambda: landlock)
    monkeypatch.setattr(confinement, "filters_system_calls", lambda: filters)
    monkeypatch.setattr(supervisor, "obstacle", lambda: obstacle)
    monkeypatch.setattr(identity, "is_root", lambda: root)
    monkeypatch.setattr(identity, "choose_user", lambda wanted: user)
    check = hostchecks._confinement()
    assert (check.name, check.ok, check.detail) == ("sandbox of QEMU", ok, detail)
    assert (check.purpose, check.required) == ("boot safely", False)
    assert check.fix.startswith("a kernel of version 5.19 or newer with Landlock and seccomp")


def test_what_isolates_npm(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(problem: str | None) -> HostCheck:
        monkeypatch.setattr(npmrunner, "sandbox_problem", lambda: problem)
        return hostchecks._sandbox()

    missing = npmrunner.MISSING
    purpose = "keep npm from the host's files"
    assert check(None).ok
    assert check(None).detail == "npm runs inside it"
    assert check(missing) == HostCheck(
        "bubblewrap", False, f"{missing}; npm runs with your rights", purpose, "apt-get install bubblewrap",
        required=False,
    )  # fmt: skip
    assert check("refused").fix == (
        "allow user namespaces (sysctl user.max_user_namespaces; Ubuntu: an AppArmor profile)"
    )
