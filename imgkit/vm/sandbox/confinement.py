"""Confine QEMU on this host: the user it runs as, the files it may open, and the system calls it may make.

Everything is prepared before QEMU is started, and enforced by a few system calls between fork and exec. It cannot be
undone, starts no further program and takes no time. On Linux it depends on what the kernel offers; on macOS there is no
confinement::

    with confined(spec, user, [private_folder]) as confinement:
        child = process.start(argv, preexec_fn=confinement)
        with confinement.supervised():
            ...  # QEMU runs
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from imgkit.errors import HostError
from imgkit.vm.qemu.argv import VmSpec
from imgkit.vm.qemu.machines import machine
from imgkit.vm.sandbox import landlock, seccomp, supervisor
from imgkit.vm.sandbox.identity import Identity
from imgkit.vm.sandbox.seccomp import SeccompFilter
from imgkit.vm.sandbox.supervisor import ListenerChannel, Supervisor

log = logging.getLogger("imgkit.vm")

_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/nix/store", "/gnu/store")
"""Folders with programs, libraries and QEMU's own files."""
_SETTINGS = """
ld.so.cache ld.so.conf ld.so.conf.d ld.so.preload nsswitch.conf passwd group localtime selinux/config alternatives qemu
resolv.conf hosts host.conf gai.conf services protocols ssl/openssl.cnf pki crypto-policies gnutls
"""
_SOURCES = ("/dev/urandom", "/dev/random", "/proc/meminfo", "/proc/cpuinfo", "/proc/stat", "/proc/sys", "/sys/devices")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/kvm")


def _library() -> ctypes.CDLL | None:
    return ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


_LIBC = _library()
_MACHINE = os.uname().machine
_CALLS = seccomp.SYSCALL_TABLES.get(_MACHINE, seccomp.SYSCALL_TABLES["x86_64"])  # not used where there is no filter


@dataclass(frozen=True)
class Confinement:
    """The confinement of one QEMU, to be called in the process that becomes QEMU.

    Attributes:
        user: the user that QEMU runs as, or None for the user of this process.
        ruleset: descriptor of the Landlock rules, or None where the kernel has no Landlock.
        plain_filter: filter that refuses set-group-id, or None where the kernel takes no filters.
        notifying_filter: filter that notifies the supervisor instead; it is tried first. None where that is not
            possible.
        channel: carries the descriptor of the notifications to this process; None if there is no such filter.
    """

    user: Identity | None
    ruleset: int | None
    plain_filter: SeccompFilter | None
    notifying_filter: SeccompFilter | None = None
    channel: ListenerChannel | None = None

    def __call__(self) -> None:
        """Confine the process that calls this, for ever.

        Raises:
            OSError: the kernel refuses something that it offers.
        """
        if _LIBC is None:
            return
        if self.user is not None:
            self.user.assume(_LIBC)
        seccomp.forbid_new_privileges(_LIBC)
        if self.ruleset is not None:
            landlock.restrict(_LIBC, self.ruleset)
        if self.notifying_filter is not None and self.channel is not None:
            try:
                self.channel.send(self.notifying_filter.apply_with_listener(_LIBC, _CALLS.seccomp))
            except OSError:  # there can be one filter with notifications only, and some container managers have one
                pass
            else:
                return
        if self.plain_filter is not None:
            self.plain_filter.apply(_LIBC)

    @contextmanager
    def supervised(self) -> Iterator[None]:
        """Respond to the notifications of QEMU's filter during the block. QEMU must have been started before."""
        if self.channel is None:
            yield
            return
        with supervisor.supervising(self.channel.receive(), Supervisor(_CALLS, self.user)):
            yield


def filters_system_calls() -> bool:
    """Return whether this host can keep QEMU from setting special mode bits and making device nodes."""
    return _LIBC is not None and seccomp.available(_LIBC)


def supports_notifications() -> bool:
    """Return whether this host can allow set-group-id for folders, as teams use it, and still refuse it for files."""
    return filters_system_calls() and _LIBC is not None and supervisor.available(_LIBC, _CALLS)


def landlock_version() -> int:
    """Return the version of Landlock that confines QEMU on this host; 0 if it is not confined by Landlock."""
    abi = 0 if _LIBC is None else landlock.version(_LIBC)
    return abi if abi >= landlock.MINIMUM else 0


@contextmanager
def confined(
    spec: VmSpec, user: Identity | None, writable: Sequence[Path], *, anywhere: bool = False
) -> Iterator[Confinement]:
    """Prepare the confinement of one machine's QEMU.

    Args:
        spec: the machine.
        user: the user that QEMU runs as; None for the user of this process.
        writable: folders in which QEMU may write, besides the machine's writable shares.
        anywhere: whether QEMU may read and execute files everywhere, because its own files are in an unusual place.

    Raises:
        HostError: the kernel refuses the rules.
    """
    if _LIBC is None:
        yield Confinement(user, None, None)
        return
    families = (seccomp.INET if spec.network else ()) + ((seccomp.UNIX,) if spec.extra else ())
    processes = _starts_processes(spec)
    plain = notifying = None
    if filters_system_calls():
        plain = seccomp.filter_program(_MACHINE, families, processes=processes)
    if supports_notifications():
        notifying = seccomp.filter_program(_MACHINE, families, notify=True, processes=processes)
    allowed = rules(spec, writable, anywhere=anywhere or _is_elsewhere(spec))
    with ExitStack() as stack:
        try:
            files = landlock.ruleset(_LIBC, allowed, tcp=spec.network, unix=bool(spec.extra))
            ruleset = stack.enter_context(files)
        except OSError as cause:
            raise HostError(f"QEMU cannot be confined: {cause.strerror}") from cause
        if plain is None or ruleset is None:
            log.debug("this kernel confines QEMU without %s", "a seccomp filter" if plain is None else "Landlock")
        channel = None if notifying is None else ListenerChannel()
        if channel is not None:
            stack.callback(channel.close)
        yield Confinement(user, ruleset, _filter(plain), _filter(notifying), channel)


def _filter(code: bytes | None) -> SeccompFilter | None:
    return None if code is None else SeccompFilter(code)


def rules(spec: VmSpec, writable: Sequence[Path], *, anywhere: bool) -> list[tuple[Path, int]]:
    """Return the files that QEMU may open, as rules for :func:`imgkit.vm.sandbox.landlock.ruleset`.

    Files that QEMU inherits from this process are open already and need no rule. The arguments are those of
    :func:`confined`.
    """
    allowed = [(Path("/"), landlock.RUN)] if anywhere else []
    allowed += [(path, landlock.RUN) for path in (*map(Path, _SYSTEM), *_libraries())]
    allowed += [(Path("/etc", name), landlock.READ) for name in _SETTINGS.split()]
    allowed += [(Path(path), landlock.READ) for path in (*_SOURCES, *_resolver())]
    allowed += [(Path(path), landlock.DEVICE) for path in _DEVICES]
    flash = () if spec.flash is None else (spec.flash.code, spec.flash.variables)
    files = (spec.kernel, spec.initrd, spec.config, *flash, None if spec.disk is None else spec.disk.path)
    allowed += [(path, landlock.READ) for path in files if path is not None]
    allowed += [(share.path, landlock.READ if share.read_only else landlock.WRITE) for share in spec.shares]
    changed = [spec.console, *writable]
    changed += [spec.disk.path] if spec.disk is not None and spec.disk.writable else []
    changed += [spec.flash.variables] if spec.flash is not None and spec.flash.variables is not None else []
    return allowed + [(path, landlock.WRITE) for path in changed]


def _resolver() -> list[str]:
    """Return the folder of the file with the name servers, unless that is the root folder or directly below it.

    The rule is for the folder because the file may be replaced while a machine runs.
    """
    folder = Path("/etc/resolv.conf").resolve().parent
    return [str(folder)] if len(folder.parts) > 2 else []


def _starts_processes(spec: VmSpec) -> bool:
    """Return whether QEMU needs other processes.

    Extra arguments may need them (guestfwd), and so does a script that was put in QEMU's place.
    """
    binary = shutil.which(machine(spec.arch).binary)
    if spec.extra or binary is None:
        return bool(spec.extra)
    with suppress(OSError), Path(binary).open("rb") as program:
        return program.read(4) != b"\x7fELF"
    return False


def _is_elsewhere(spec: VmSpec) -> bool:
    """Return whether QEMU's files may be outside of the system's folders, or extra arguments may name other files."""
    binary = shutil.which(machine(spec.arch).binary)
    inside = binary is not None and any(Path(binary).resolve().is_relative_to(path) for path in _SYSTEM)
    return bool(spec.extra) or not inside


def _libraries() -> list[Path]:
    """Return the absolute folders of ``LD_LIBRARY_PATH`` (ld.so(8)), which QEMU inherits.

    Relative ones are left out, as they would be relative to QEMU's own working folder.
    """
    folders = re.split("[:;]", os.environ.get("LD_LIBRARY_PATH", ""))
    return [Path(folder) for folder in folders if folder.startswith("/")]
