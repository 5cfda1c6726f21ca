"""A boot specification is resolved to the machine that QEMU is started with; nothing is started here."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import imgkit.vm
from imgkit.errors import HostError, UsageError
from imgkit.vm import VM, BootSpec, bootspec, starting
from imgkit.vm.bootspec import resolve
from imgkit.vm.qemu import firmware, launch, probe
from imgkit.vm.qemu.argv import Disk, Share, VmSpec
from imgkit.vm.qemu.machines import host_arch
from imgkit.vm.qemu.probe import Accelerator
from imgkit.vm.sandbox import confinement
from imgkit.vm.shares import specialbits
from tests.files import public
from tests.vmspecs import extra

TCG = Accelerator("tcg", "max,erms=off", "as requested")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the private folder of a machine."""
    path = tmp_path / "private"
    path.mkdir()
    return path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "linux-amd64.img"
    path.write_bytes(bytes(512))
    return path


def test_an_image_alone_has_defaults_for_the_rest(image: Path, folder: Path) -> None:
    assert resolve(BootSpec(str(image)), TCG, folder) == VmSpec(
        arch="amd64",
        disk=Disk(image, "raw"),
        console=folder / "console.log",
        accelerator="tcg,thread=multi",
        cpu="max,erms=off",
        shares=(Share("ipc", folder / "ipc"),),
        sandbox=sys.platform == "linux",
    )
    assert (folder / "ipc").is_dir()
    assert [path.name for path in folder.iterdir()] == ["ipc"]


def test_every_field_has_its_place(image: Path, folder: Path, tmp_path: Path) -> None:
    kernel, initrd = tmp_path / "kernel", tmp_path / "initrd"
    kernel.write_bytes(b"MZ\0\0other")
    initrd.touch()
    for name in ("data", "ipc"):
        (tmp_path / name).mkdir()
    spec = BootSpec(
        image,
        arch="arm64",
        firmware="direct",
        kernel=str(kernel),
        initrd=str(initrd),
        command_line="quiet",
        cpus=3,
        cpu="cortex-a57",
        shares={"data": str(tmp_path / "data"), "ipc": tmp_path / "ipc"},
        read_only=["data"],
        config=b"secret",
        network="none",
        format="qcow2",
        console=str(tmp_path / "console"),
    )
    assert resolve(spec, Accelerator("kvm", "host", ""), folder) == VmSpec(
        arch="arm64",
        disk=Disk(image, "qcow2"),
        console=tmp_path / "console",
        firmware="direct",
        kernel=kernel,
        initrd=initrd,
        command_line="quiet",
        cpus=3,
        accelerator="kvm",
        cpu="cortex-a57",
        shares=(Share("data", tmp_path / "data", read_only=True), Share("ipc", tmp_path / "ipc")),
        config=folder / "config.iso",
        network=False,
        sandbox=sys.platform == "linux",
    )
    assert (folder / "config.iso").read_bytes() == b"secret"
    assert (folder / "config.iso").stat().st_mode & 0o777 == 0o600
    assert not (folder / "ipc").exists()


def test_serial_mode_has_no_share_for_requests(folder: Path) -> None:
    assert resolve(BootSpec(None, arch="amd64", ipc="serial"), TCG, folder).shares == ()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(("network", "card"), [("user", True), ("none", False), ("restricted", False)])
def test_only_the_user_network_is_qemus_own(network: Any, card: bool, folder: Path) -> None:
    assert resolve(BootSpec(None, arch="amd64", network=network), TCG, folder).network == card


def test_uefi_has_a_private_variable_store(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in firmware.CANDIDATES["amd64"][0]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    monkeypatch.setenv(firmware.OVERRIDE, str(tmp_path))
    resolved = resolve(BootSpec(None, arch="amd64", firmware="uefi"), TCG, folder)
    assert resolved.firmware == "uefi"
    assert resolved.flash is not None
    assert resolved.flash.code == tmp_path / firmware.CANDIDATES["amd64"][0][0]
    assert resolved.flash.variables == folder / "vars.fd"


def test_arm64_boots_by_uefi_unless_told_otherwise(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(firmware.OVERRIDE, str(tmp_path))
    with pytest.raises(HostError, match="no UEFI firmware for arm64"):
        resolve(BootSpec(None, arch="arm64"), TCG, folder)


def test_the_architecture_is_the_images_or_the_hosts() -> None:
    assert BootSpec("/x/linux-arm64.qcow2").architecture == "arm64"
    assert BootSpec("/x/linux-arm64.qcow2", arch="amd64").architecture == "amd64"
    assert BootSpec(None).architecture == host_arch()


@pytest.mark.parametrize(("name", "message"), [("none", "none, zzz: no share"), ("ipc", "ipc, zzz: no share")])
def test_all_wrong_names_of_read_only_shares_are_named(name: str, message: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    spec = BootSpec(None, arch="amd64", shares={"data": tmp_path / "data"}, read_only={"zzz", name, "data"})
    with pytest.raises(UsageError, match=f"^{message} that can be read-only$"):
        resolve(spec, TCG, folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ipc": "telepathy"}, "telepathy: unknown way to talk to the agent"),
        ({"network": "wifi"}, "wifi: unknown network"),
        ({"allow": ["a.example"]}, "--allow is for a restricted network"),
    ],
)
def test_nonsense_is_refused_as_soon_as_it_is_written(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        BootSpec(None, **fields)
    assert caught.value.message == message
    assert caught.value.hint


def test_a_function_of_the_callers_has_the_last_word(image: Path, folder: Path) -> None:
    spec = BootSpec(image, adapt=lambda resolved: replace(resolved, extra=("-S",), console=Path("/c")))
    resolved = resolve(spec, TCG, folder)
    assert (resolved.extra, resolved.console, resolved.disk) == (("-S",), Path("/c"), Disk(image, "raw"))


# ---- VM.boot ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def fake_qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a QEMU on PATH that ends at once and gives its arguments as the reason."""
    program = tmp_path / "bin" / "qemu-system-x86_64"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$@" >&2\nexit 1\n')
    program.chmod(0o755)
    public(tmp_path)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")


def refusal(*arguments: Any, **keywords: Any) -> str:
    """Return the arguments that the fake QEMU refused."""
    with (
        pytest.raises(HostError, match="QEMU does not start") as caught,
        VM.boot(*arguments, accelerator="tcg", **keywords),
    ):
        pass
    return caught.value.message


@pytest.mark.usefixtures("fake_qemu")
def test_an_image_with_keywords_or_a_specification(image: Path) -> None:
    """Keywords are fields of the specification, and replace those of a specification that is given."""
    for call in (refusal(image, cpus=7), refusal(BootSpec(image, cpus=7)), refusal(BootSpec(image, cpus=3), cpus=7)):
        assert " -smp 7 " in call
    assert " -smp 2 " in refusal(str(image))
    assert refusal(image, adapt=extra("-name", "mine")).endswith(" -name mine")
    assert " -cpu mine " in refusal(image, adapt=lambda resolved: replace(resolved, cpu="mine"))


@pytest.mark.usefixtures("fake_qemu")
def test_an_accelerator_that_qemus_user_cannot_use_is_replaced(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def allowed(*arguments: Any) -> Accelerator:
        asked.append(arguments)
        return Accelerator("tcg", "slow", "no kvm: closed")

    monkeypatch.setattr(probe, "allowed", allowed)
    assert " -accel tcg,thread=multi,tb-size=64 -cpu slow " in refusal(image)
    assert " -cpu qemu64 " in refusal(image, cpu="qemu64")
    assert [arguments[1:3] for arguments in asked] == [("amd64", "tcg")] * 2


def test_keywords_that_are_no_fields_are_refused(image: Path) -> None:
    with pytest.raises(TypeError, match="memory"), VM.boot(image, memory=512):
        pass
    with pytest.raises(TypeError, match="memory"), VM.boot(BootSpec(image), memory=512):
        pass


@pytest.mark.usefixtures("fake_qemu")
def test_memory_is_as_asked_for_or_what_the_host_has(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert " -m 77 " in refusal(image, memory_mib=77)
    monkeypatch.setattr(launch, "MEMORY_STEPS", (55,))
    assert " -m 55 " in refusal(image)


@pytest.mark.usefixtures("fake_qemu")
def test_a_restricted_network_is_a_socket(image: Path) -> None:
    assert " -netdev socket,id=net0,fd=" in refusal(image, network="restricted", allow=["a.example:443"])
    assert " -netdev user," in refusal(image)
    assert "-netdev" not in refusal(image, network="none")


def test_without_a_filter_of_system_calls_shares_are_swept(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shares = (Share("ipc", tmp_path / "a"), Share("ro", tmp_path / "b", read_only=True), Share("gone", tmp_path / "c"))

    def drop(folder: Path, *, since: float) -> list[Path]:
        if folder.name == "c":
            raise FileNotFoundError(2, "No such file")
        return [folder / "setuid"]

    monkeypatch.setattr(confinement, "filters_system_calls", lambda: False)
    monkeypatch.setattr(specialbits, "drop_special_bits", drop)
    with ExitStack() as stack:
        resolved = VmSpec("amd64", None, tmp_path / "console", shares=shares)
        assert starting._shown(resolved, None, tmp_path, stack) == shares
        assert caplog.messages == [], "when the machine is over"
    assert caplog.messages == [
        f"{tmp_path}/c: could not be searched for set-user-id programs of the guest: No such file",
        f"{tmp_path}/a/setuid: the guest had made this a set-user-id program or a device, which imgkit has undone",
    ]


# ---- the public names ------------------------------------------------------------------------------------------------


def test_the_example_of_the_package_uses_public_names_only() -> None:
    text = imgkit.vm.__doc__ or ""
    code = "\n".join(line[4:] for line in text.split("\n") if line.startswith("    "))
    (names,) = [line.removeprefix("from imgkit.vm import ") for line in code.split("\n") if "import" in line]
    assert set(names.split(", ")) <= set(imgkit.vm.__all__)
    compile(code, "example", "exec")


def test_every_public_name_is_there() -> None:
    assert all(hasattr(imgkit.vm, name) for name in imgkit.vm.__all__)
    assert bootspec.BootSpec is imgkit.vm.BootSpec
