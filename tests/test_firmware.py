"""UEFI firmware is found, and has a private variable store."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgkit.errors import HostError
from imgkit.vm.qemu import firmware
from imgkit.vm.qemu.firmware import Firmware

SIZE = {"amd64": 0, "arm64": 64 << 20}
"""Bytes that the board demands of each flash image; 0 takes any."""


def place(root: Path, name: str, data: bytes = b"x") -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("arch", "code", "variables"),
    [(arch, *pair) for arch, rows in firmware.CANDIDATES.items() for pair in rows],
)
def test_every_known_place(arch: str, code: str, variables: str, tmp_path: Path) -> None:
    place(tmp_path, code)
    if variables:
        place(tmp_path, variables)
    expected = Firmware(tmp_path / code, tmp_path / variables if variables else None, SIZE[arch])
    assert firmware.find(arch, root=tmp_path) == expected


@pytest.mark.parametrize(("arch", "rows"), firmware.CANDIDATES.items())
def test_code_without_its_variables(arch: str, rows: tuple[tuple[str, str], ...], tmp_path: Path) -> None:
    place(tmp_path, rows[0][0])
    assert firmware.find(arch, root=tmp_path) == Firmware(tmp_path / rows[0][0], None, SIZE[arch])


def test_the_distributions_own_goes_first(tmp_path: Path) -> None:
    for code, _ in firmware.CANDIDATES["amd64"]:
        place(tmp_path, code)
    assert firmware.find("amd64", root=tmp_path).code.name == "OVMF_CODE_4M.fd"


def test_a_folder_is_no_firmware(tmp_path: Path) -> None:
    (tmp_path / firmware.CANDIDATES["amd64"][0][0]).mkdir(parents=True)
    with pytest.raises(HostError, match="no UEFI firmware for amd64 on this host"):
        firmware.find("amd64", root=tmp_path)


def test_a_folder_without_firmware_stands_in_for_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place(tmp_path / "named", firmware.CANDIDATES["amd64"][0][0])
    monkeypatch.setenv(firmware.OVERRIDE, str(tmp_path / "named"))
    assert firmware.find("amd64").code == tmp_path / "named" / firmware.CANDIDATES["amd64"][0][0]
    with pytest.raises(HostError):
        firmware.find("amd64", root=tmp_path)


@pytest.mark.parametrize(("arch", "package"), [("amd64", "ovmf"), ("arm64", "qemu-efi-aarch64")])
def test_missing_names_the_package(arch: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(firmware.OVERRIDE, str(tmp_path))
    with pytest.raises(HostError, match=f"no UEFI firmware for {arch}") as caught:
        firmware.find(arch)
    others = "(Fedora: edk2-ovmf or edk2-aarch64, Homebrew: qemu has it)"
    assert caught.value.hint == f"apt-get install {package} {others}"


def test_variables_are_a_private_copy(tmp_path: Path) -> None:
    template = place(tmp_path, "vars", b"template")
    template.chmod(0o444)
    code = place(tmp_path, "code", b"code")
    folder = tmp_path / "private"
    folder.mkdir()
    mine = firmware.private_copy(Firmware(code, template), folder)
    assert mine.code == code
    assert mine.variables is not None
    assert mine.variables == folder / "vars.fd"
    assert mine.variables.read_bytes() == b"template"
    assert mine.variables.stat().st_mode & 0o777 == 0o600
    mine.variables.write_bytes(b"changed")
    assert template.read_bytes() == b"template"
    assert mine.size == 0


def test_flash_banks_are_filled_up(tmp_path: Path) -> None:
    """The virt board takes only files of the size of its banks; QEMU_EFI.fd is shorter and has no variables."""
    code = place(tmp_path, "code", b"code")
    folder = tmp_path / "private"
    folder.mkdir()
    mine = firmware.private_copy(Firmware(code, None, 1 << 16), folder)
    assert mine.code.read_bytes() == b"code".ljust(1 << 16, b"\0")
    assert mine.variables is not None
    assert mine.variables.read_bytes() == bytes(1 << 16)
    assert code.read_bytes() == b"code"
    assert (mine.code, mine.size) == (folder / "code.fd", 1 << 16)
    again = firmware.private_copy(Firmware(mine.code, mine.variables, 1 << 16), place(tmp_path, "other/x").parent)
    assert again.code == mine.code, "it has the size already"


def test_no_variables_where_none_are_needed(tmp_path: Path) -> None:
    code = place(tmp_path, "code")
    assert firmware.private_copy(Firmware(code, None), tmp_path).variables is None


def test_a_copy_that_fails_is_said(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="code: cannot prepare the firmware: No such file"):
        firmware.private_copy(Firmware(tmp_path / "code", tmp_path / "gone"), tmp_path)
