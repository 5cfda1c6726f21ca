"""What QEMU may do on this host: as whom it runs, what it may open, which system calls it may make.

All of it is prepared before QEMU is started, and put into force by three or four system calls between fork and exec,
for good. It costs no further program and no time. macOS has nothing of it; Linux has what its kernel offers.
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
"""Programs, libraries and QEMU's own files."""
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
_CALLS = seccomp.SYSCALL_TABLES.get(_MACHINE, seccomp.SYSCALL_TABLES["x86_64"])  # never used where there is no filter


@dataclass(frozen=True)
class Confinement:
    """To be called in the process that becomes QEMU.

    ``asking`` is tried before ``calls``, and its questions come over ``line``.
    """

    user: Identity | None
    ruleset: int | None
    calls: SeccompFilter | None
    asking: SeccompFilter | None = None
    line: ListenerChannel | None = None

    def __call__(self) -> None:
        """Confine this process.

        Raises:
            OSError: the kernel refuses what it has offered.
        """
        if _LIBC is None:
            return
        if self.user is not None:
            self.user.assume(_LIBC)
        seccomp.forbid_new_privileges(_LIBC)
        if self.ruleset is not None:
            landlock.restrict(_LIBC, self.ruleset)
        if self.asking is not None and self.line is not None:
            try:
                self.line.send(self.asking.apply_asking(_LIBC, _CALLS.seccomp))
            except OSError:  # some containers' manager has one that asks already, and there can be only one
                pass
            else:
                return
        if self.calls is not None:
            self.calls.apply(_LIBC)

    @contextmanager
    def attended(self) -> Iterator[None]:
        """Answer what the filter asks, from when the program has been started to the end of the block."""
        if self.line is None:
            yield
            return
        with supervisor.supervising(self.line.receive(), Supervisor(_CALLS, self.user)):
            yield


def filters_system_calls() -> bool:
    """Whether this host refuses special modes and device nodes at the source."""
    return _LIBC is not None and seccomp.available(_LIBC)


def supports_notifications() -> bool:
    """Whether this host lets folders be set-group-id, as those of teams are, and still refuses it for files."""
    return filters_system_calls() and _LIBC is not None and supervisor.available(_LIBC, _CALLS)


def landlock_version() -> int:
    """The version of Landlock that confines QEMU here; 0 if none does."""
    known = 0 if _LIBC is None else landlock.version(_LIBC)
    return known if known >= landlock.MINIMUM else 0


@contextmanager
def confined(
    spec: VmSpec, user: Identity | None, writable: Sequence[Path], *, anywhere: bool = False
) -> Iterator[Confinement]:
    """The confinement of one machine's QEMU.

    Args:
        spec: the machine.
        user: whom QEMU runs as; None for this user.
        writable: folders, besides its shares, in which it may write.
        anywhere: it may read, and run, what lies anywhere: its own files are at an unusual place.

    Raises:
        HostError: the kernel refuses the rules.
    """
    if _LIBC is None:
        yield Confinement(user, None, None)
        return
    families = (seccomp.INET if spec.network else ()) + ((seccomp.UNIX,) if spec.extra else ())
    processes = _starts_processes(spec)
    code = seccomp.filter_program(_MACHINE, families, processes=processes) if filters_system_calls() else None
    asking = (
        seccomp.filter_program(_MACHINE, families, ask=True, processes=processes) if supports_notifications() else None
    )
    allowed = rules(spec, writable, anywhere=anywhere or _is_elsewhere(spec))
    with ExitStack() as stack:
        try:
            files = landlock.ruleset(_LIBC, allowed, tcp=spec.network, unix=bool(spec.extra))
            ruleset = stack.enter_context(files)
        except OSError as cause:
            raise HostError(f"QEMU cannot be confined: {cause.strerror}") from cause
        if code is None or ruleset is None:
            log.debug("this kernel confines QEMU without %s", "a filter of calls" if code is None else "Landlock")
        line = None if asking is None else ListenerChannel()
        if line is not None:
            stack.callback(line.close)
        yield Confinement(user, ruleset, _filter(code), _filter(asking), line)


def _filter(code: bytes | None) -> SeccompFilter | None:
    return None if code is None else SeccompFilter(code)


def rules(spec: VmSpec, writable: Sequence[Path], *, anywhere: bool) -> list[tuple[Path, int]]:
    """What QEMU may open, as :func:`imgkit.vm.sandbox.landlock.ruleset` takes it. What it inherits is not concerned."""
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
    """The folder of the file with the name servers, which is replaced while machines run; not the root folder."""
    folder = Path("/etc/resolv.conf").resolve().parent
    return [str(folder)] if len(folder.parts) > 2 else []


def _starts_processes(spec: VmSpec) -> bool:
    """Whether other processes are needed: by arguments of the caller's (guestfwd), or by a script in QEMU's place."""
    found = shutil.which(machine(spec.arch).binary)
    if spec.extra or found is None:
        return bool(spec.extra)
    with suppress(OSError), Path(found).open("rb") as program:
        return program.read(4) != b"\x7fELF"
    return False


def _is_elsewhere(spec: VmSpec) -> bool:
    """Whether it is not known where QEMU's files are: elsewhere, or named by arguments of the caller's."""
    found = shutil.which(machine(spec.arch).binary)
    inside = found is not None and any(Path(found).resolve().is_relative_to(path) for path in _SYSTEM)
    return bool(spec.extra) or not inside


def _libraries() -> list[Path]:
    """The folders of ``LD_LIBRARY_PATH`` (ld.so(8)), which QEMU inherits. Relative ones would be of its own folder."""
    named = re.split("[:;]", os.environ.get("LD_LIBRARY_PATH", ""))
    return [Path(name) for name in named if name.startswith("/")]
