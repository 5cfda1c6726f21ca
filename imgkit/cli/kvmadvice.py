"""What can be done so that guests are not emulated: a command, or a plain "nothing to do"."""

from __future__ import annotations

import grp
import os
import re
from contextlib import suppress
from pathlib import Path

from imgkit.vm.qemu.machines import host_arch
from imgkit.vm.qemu.probe import KVM

_CPUINFO = Path("/proc/cpuinfo")
_MODULES = {"vmx": "kvm_intel", "svm": "kvm_amd"}
"""Flag of a processor → the module that makes ``/dev/kvm``."""
_SLOWER = "guests are emulated, which works and takes longer"


def kvm_advice(arch: str) -> str:
    """Return what can be done about guests of ``arch`` that are emulated on this host."""
    if arch != host_arch():
        return "nothing to do"  # the check itself says why
    if KVM.exists():
        if os.access(KVM, os.R_OK | os.W_OK):
            return f"nothing to do: {KVM} is there, but does not work on this host; {_SLOWER}"
        return f"{_permission()}, then log in again"
    if host_arch() != "amd64":
        return f"nothing to do if this is a virtual machine; in a container: --device {KVM}; without it {_SLOWER}"
    module = _module()
    if module is None:
        return f"nothing to do: this processor, or the virtual machine that this host is, offers no KVM; {_SLOWER}"
    return f"sudo modprobe {module}; in a container: --device {KVM}"


def _permission() -> str:
    """Return the command that lets this user open the device: membership in its group, or an entry of its own."""
    with suppress(OSError, KeyError):
        status = KVM.stat()
        if status.st_gid and status.st_mode & 0o060 == 0o060:
            return f"sudo usermod -aG {grp.getgrgid(status.st_gid).gr_name} $USER"
    return f"sudo setfacl -m u:$USER:rw {KVM}"


def _module() -> str | None:
    """Return the module for this processor; None if it has no virtualization."""
    text = ""
    with suppress(OSError):
        text = _CPUINFO.read_text()
    flags = set(re.findall(r"\w+", next((line for line in text.splitlines() if line.startswith("flags")), "")))
    return next((module for flag, module in _MODULES.items() if flag in flags), None)
