"""Find the UEFI firmware that QEMU needs, which distributions install in different places.

    flash = private_copy(find("arm64"), folder)

QEMU itself finds SeaBIOS, which is part of it. UEFI needs a pair of flash images: the code, which is shared and
read-only, and the variable store, which is copied from a template for each boot.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from imgkit.errors import HostError
from imgkit.host import lookup

OVERRIDE = "IMGKIT_FIRMWARE_ROOT"
"""Environment variable that names a folder: the candidate paths are looked up below it instead of below ``/``."""

_ARM64_FLASH = 64 << 20  # size of each of the virt board's two flash banks; the files must have exactly this size


@dataclass(frozen=True)
class Firmware:
    """A pair of raw flash images.

    Attributes:
        code: the firmware itself.
        variables: the variable store, or a template of it; None if there is none.
        size: bytes that the board demands of each file; 0 takes any size.
    """

    code: Path
    variables: Path | None
    size: int = 0


# (code, template of the variables), in the order of preference. Secure Boot builds are left out: they refuse
# unsigned boot loaders.
CANDIDATES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "amd64": (
        ("usr/share/OVMF/OVMF_CODE_4M.fd", "usr/share/OVMF/OVMF_VARS_4M.fd"),  # Debian, Ubuntu
        ("usr/share/OVMF/OVMF_CODE.fd", "usr/share/OVMF/OVMF_VARS.fd"),  # Debian 11, Ubuntu 20.04
        ("usr/share/edk2/ovmf/OVMF_CODE.fd", "usr/share/edk2/ovmf/OVMF_VARS.fd"),  # Fedora, RHEL
        ("usr/share/edk2/x64/OVMF_CODE.4m.fd", "usr/share/edk2/x64/OVMF_VARS.4m.fd"),  # Arch
        ("usr/share/edk2-ovmf/x64/OVMF_CODE.fd", "usr/share/edk2-ovmf/x64/OVMF_VARS.fd"),  # Arch, before 2024
        ("usr/share/qemu/ovmf-x86_64-code.bin", "usr/share/qemu/ovmf-x86_64-vars.bin"),  # openSUSE
        ("opt/homebrew/share/qemu/edk2-x86_64-code.fd", "opt/homebrew/share/qemu/edk2-i386-vars.fd"),  # Homebrew
        ("usr/local/share/qemu/edk2-x86_64-code.fd", "usr/local/share/qemu/edk2-i386-vars.fd"),  # Homebrew on Intel
        ("usr/share/qemu/edk2-x86_64-code.fd", "usr/share/qemu/edk2-i386-vars.fd"),  # QEMU's own
    ),
    "arm64": (
        ("usr/share/AAVMF/AAVMF_CODE.fd", "usr/share/AAVMF/AAVMF_VARS.fd"),  # Debian, Ubuntu
        ("usr/share/AAVMF/AAVMF_CODE.no-secboot.fd", "usr/share/AAVMF/AAVMF_VARS.fd"),  # Debian 13
        ("usr/share/qemu-efi-aarch64/QEMU_EFI.fd", ""),  # Debian, Ubuntu
        ("usr/share/edk2/aarch64/QEMU_EFI-pflash.raw", "usr/share/edk2/aarch64/vars-template-pflash.raw"),  # Fedora
        ("usr/share/edk2/aarch64/QEMU_EFI.fd", "usr/share/edk2/aarch64/QEMU_VARS.fd"),  # Arch
        ("usr/share/qemu/aavmf-aarch64-code.bin", "usr/share/qemu/aavmf-aarch64-vars.bin"),  # openSUSE
        ("opt/homebrew/share/qemu/edk2-aarch64-code.fd", "opt/homebrew/share/qemu/edk2-arm-vars.fd"),  # Homebrew
        ("usr/local/share/qemu/edk2-aarch64-code.fd", "usr/local/share/qemu/edk2-arm-vars.fd"),  # Homebrew on Intel
        ("usr/share/qemu/edk2-aarch64-code.fd", "usr/share/qemu/edk2-arm-vars.fd"),  # QEMU's own
    ),
}

PACKAGES = {"amd64": "ovmf", "arm64": "qemu-efi-aarch64"}
"""Debian's and Ubuntu's packages of the firmware."""


def find(arch: str, *, root: Path | None = None) -> Firmware:
    """Return the UEFI firmware of ``arch`` on this host.

    Args:
        arch: "amd64" or "arm64".
        root: folder to look below; None means the one in :data:`OVERRIDE`, or else ``/``.

    Raises:
        HostError: the firmware is in none of the known places; the hint names its package.
    """
    top = root or Path(os.environ.get(OVERRIDE) or "/")
    size = _ARM64_FLASH if arch == "arm64" else 0
    for code, variables in CANDIDATES[arch]:
        if lookup.is_file(top / code, HostError):
            template = top / variables
            return Firmware(top / code, template if variables and template.is_file() else None, size)
    raise HostError(
        f"no UEFI firmware for {arch} on this host",
        hint=f"apt-get install {PACKAGES[arch]} (Fedora: edk2-ovmf or edk2-aarch64, Homebrew: qemu has it)",
    )


def private_copy(firmware: Firmware, folder: Path) -> Firmware:
    """Return the firmware with a private variable store in ``folder``; both files have the size that the board demands.

    Raises:
        HostError: the files cannot be copied.
    """
    try:
        variables = folder / "vars.fd"
        if firmware.variables is not None:
            shutil.copyfile(firmware.variables, variables)
        elif firmware.size:
            variables.touch()
        code = firmware.code
        if firmware.size and code.stat().st_size != firmware.size:
            code = folder / "code.fd"
            shutil.copyfile(firmware.code, code)
            _pad(code, firmware.size)
        if not variables.exists():
            return Firmware(code, None, firmware.size)
        variables.chmod(0o600)  # the template may be read-only
        _pad(variables, firmware.size)
    except OSError as cause:
        raise HostError(f"{firmware.code}: cannot prepare the firmware: {cause.strerror}") from cause
    return Firmware(code, variables, firmware.size)


def _pad(path: Path, size: int) -> None:
    """Extend the file at ``path`` to at least ``size`` bytes with a hole."""
    if size > path.stat().st_size:
        os.truncate(path, size)
