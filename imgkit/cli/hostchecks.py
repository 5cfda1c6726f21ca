"""The checks of ``imgkit doctor``: what this host can do, what is missing, and the command that fixes it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from imgkit.api import enginechoice
from imgkit.cli.kvmadvice import kvm_advice
from imgkit.engines.guestfs import bindings, hostsupport
from imgkit.engines.guestfs.appliancestart import KERNEL_FIX
from imgkit.errors import HostError, ImgkitError
from imgkit.host import lookup
from imgkit.host.process import how_to_install, run
from imgkit.rootfs.npm import npmrunner
from imgkit.vm.qemu import firmware, probe
from imgkit.vm.sandbox import confinement, identity, supervisor

_GUESTFS = "build with libguestfs"
_IS_MAC = sys.platform == "darwin"  # neither libguestfs nor bubblewrap exists there
SPACE = 2 << 30
"""Bytes that a build of the default recipe needs in its output folder."""


@dataclass(frozen=True)
class HostCheck:
    """The result of one check.

    Attributes:
        name: what was checked.
        ok: whether it is present and works.
        detail: what was found, or what is wrong.
        purpose: what fails without it, as ``needed to …``.
        fix: a command, or advice.
        required: whether imgkit cannot work without it; otherwise only one feature fails.
        advice: what makes it work better, although it works; empty if there is nothing to say.
    """

    name: str
    ok: bool
    detail: str
    purpose: str
    fix: str = ""
    required: bool = True
    advice: str = ""


def examine(out: Path) -> list[HostCheck]:
    """Check everything that building into ``out`` and booting need. Changes nothing."""
    parts = [*_programs()] if _IS_MAC else [_bindings(), *_programs(), _kernel()]
    required = _is_guestfs_chosen()
    return [
        HostCheck("python", True, f"{sys.version.split()[0]} ({sys.executable})", "build"),
        *(part if required or part.purpose != _GUESTFS else replace(part, required=False) for part in parts),
        *_engines(required=required and _IS_MAC),
        _space(out),
        *_firmware(),
        *_accelerators(),
        _confinement(),
        _sandbox(),
    ]


def _is_guestfs_chosen() -> bool:
    """Return whether a build takes libguestfs unless an option says something else."""
    return os.environ.get(enginechoice.VARIABLE) not in ("native", "auto")


def _engines(*, required: bool) -> Iterator[HostCheck]:
    """Say of each engine whether this host can run it.

    Args:
        required: whether nothing besides this check says that a build fails.
    """
    lacks = [lack.what for lack in hostsupport.lacks(os.environ)]
    detail = f"lacks: {'; '.join(lacks)}" if lacks else "can be used"
    fix = f"build without: --engine native, or {enginechoice.VARIABLE}=native"
    if not _IS_MAC:
        fix = f"what is said about each of them; or {fix}"
    yield HostCheck("engine guestfs", not lacks, detail, _GUESTFS, fix, required=required)
    yield HostCheck("engine native", True, "can be used", "build without libguestfs")


def _bindings() -> HostCheck:
    """Check for a Python that can import libguestfs' bindings: this one or another."""
    name = "libguestfs bindings"
    try:
        interpreter = bindings.choose(os.environ)
    except ImgkitError as error:
        return HostCheck(name, False, error.message, _GUESTFS, error.hint or "")
    where = "" if interpreter.is_own else f" by {interpreter.path} (Python {interpreter.version})"
    return HostCheck(name, True, f"importable{where}", _GUESTFS)


def _programs() -> Iterator[HostCheck]:
    uses = {
        **({} if _IS_MAC else {"supermin": _GUESTFS}),
        "qemu-img": "boot and verify" if _IS_MAC else f"{_GUESTFS}, boot and verify",
        "qemu-system-x86_64": "boot amd64",
        "qemu-system-aarch64": "boot arm64",
    }
    for name, purpose in uses.items():
        path = shutil.which(name)
        fix = how_to_install(name)
        detail = _version(name) if path else "not on PATH"
        yield HostCheck(name, path is not None, detail, purpose, fix, required=not purpose.startswith("boot arm"))


def _version(name: str) -> str:
    """Return the first line of ``name --version``, cut to fit into a table; or why the program could not be run."""
    try:
        return run([name, "--version"], timeout=10).decode(errors="replace").partition("\n")[0][:60]
    except ImgkitError as error:
        return error.message


def _kernel() -> HostCheck:
    """Check for a kernel for the appliance: supermin needs one in /boot that this user may read."""
    named = os.environ.get("SUPERMIN_KERNEL")
    kernels = [Path(named)] if named else sorted(Path("/boot").glob("vmlinu[xz]-*"))
    readable = [kernel for kernel in kernels if os.access(kernel, os.R_OK)]
    if readable:
        return HostCheck("kernel", True, str(readable[-1]), _GUESTFS)
    if named and not kernels[0].exists():
        return HostCheck("kernel", False, f"{named} (SUPERMIN_KERNEL) does not exist", _GUESTFS, "correct it")
    if kernels:
        fix = f"sudo chmod 0644 {kernels[-1]}"
        return HostCheck("kernel", False, f"{kernels[-1]} may not be read by this user", _GUESTFS, fix)
    return HostCheck("kernel", False, "none in /boot", _GUESTFS, KERNEL_FIX)


def _space(out: Path) -> HostCheck:
    try:
        lookup.is_folder(out, HostError)
    except HostError as refused:
        return HostCheck("space", False, refused.message, "build", "choose another folder with --out")
    folder = next(parent for parent in [out.absolute(), *out.absolute().parents] if parent.is_dir())
    free = shutil.disk_usage(folder).free
    writable = os.access(folder, os.W_OK)
    detail = f"{free / (1 << 30):.1f} GiB free in {folder}" + ("" if writable else ", which is not writable")
    return HostCheck("space", free >= SPACE and writable, detail, "build", "choose another folder with --out")


def _firmware() -> Iterator[HostCheck]:
    for arch in ("amd64", "arm64"):
        try:
            files = firmware.find(arch)
        except ImgkitError as error:
            yield HostCheck(
                f"UEFI {arch}", False, error.message, f"boot {arch} by UEFI", error.hint or "", required=False
            )
        else:
            yield HostCheck(f"UEFI {arch}", True, str(files.code), f"boot {arch} by UEFI")


def _accelerators() -> Iterator[HostCheck]:
    for arch in ("amd64", "arm64"):
        try:
            user = identity.choose_user(None, device=probe.KVM)
            verdict = probe.allowed(probe.probe(arch), arch, "auto", user)
        except ImgkitError as error:
            yield HostCheck(
                f"accelerator {arch}", False, error.message, f"boot {arch}", error.hint or "", required=False
            )
        else:
            advice = kvm_advice(arch) if verdict.name == "tcg" and sys.platform == "linux" else ""
            detail = f"{verdict.name}: {verdict.reason}"
            yield HostCheck(f"accelerator {arch}", True, detail, f"boot {arch}", advice=advice)


def _confinement() -> HostCheck:
    """Check what confines the QEMU of a guest, besides what QEMU does itself."""
    version, filters = confinement.landlock_version(), confinement.filters_system_calls()
    parts = [f"files: Landlock {version}" if version else "files: all that its user may open"]
    parts += ["set-user-id, devices: refused" if filters else "set-user-id, devices: removed afterwards"]
    obstacle = supervisor.obstacle()
    if filters and obstacle:
        parts += [f"set-group-id for folders: refused, as {obstacle}"]
    if identity.is_root():
        user = identity.choose_user(None)
        parts += ["as this root, which may not switch users" if user is None else f"as {user}, or a folder's owner"]
    fix = "a kernel of version 5.19 or newer with Landlock and seccomp, and a container that lets them through"
    return HostCheck("sandbox of QEMU", bool(version and filters), "; ".join(parts), "boot safely", fix, required=False)


def _sandbox() -> HostCheck:
    """Check how npm is isolated when it installs the packages of a payload."""
    problem = npmrunner.sandbox_problem()
    detail = "npm runs inside it" if problem is None else f"{problem}; npm runs with your rights"
    fix = (
        ("nothing, it exists on Linux only" if _IS_MAC else how_to_install("bwrap"))
        if problem == npmrunner.MISSING
        else "allow user namespaces (sysctl user.max_user_namespaces; Ubuntu: an AppArmor profile)"
    )
    return HostCheck("bubblewrap", problem is None, detail, "keep npm from the host's files", fix, required=False)
