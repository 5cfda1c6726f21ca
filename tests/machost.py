"""Run a Python program on Linux as if the host were a Mac: what CPython has on Linux only is taken away first.

    python -S tests/machost.py FILE MACHINE -m imgkit build …
    python -S tests/machost.py FILE MACHINE -c PROGRAM WORD…

The option ``-S`` keeps the modules of site-packages out until the names are gone. :mod:`tests.mac` calls this program,
and says what it stands for and what it does not.

Args:
    FILE: the names to take away, as JSON: module → names.
    MACHINE: what ``uname -m`` prints, ``arm64`` or ``x86_64``.
"""

from __future__ import annotations

import sys

sys.platform = "darwin"  # before modules ask for it, but for the few that the interpreter itself has imported

# ruff: noqa: E402
import os
from importlib import import_module
from json import loads
from types import ModuleType
from typing import Any

# Paths that a Mac does not have. Debian's Python is among them, as it may have libguestfs' bindings.
ABSENT = ("/proc", "/sys", "/boot", "/lib/modules", "/dev/kvm", "/dev/shm", "/usr/bin/python3")
FUNCTIONS = frozenset({"prctl", "renameat2", "syscall", "unshare", "setns", "mount", "memfd_create", "pidfd_open"})
"""What the C library of a Mac does not have, or has with another meaning."""
RELEASE = "24.6.0"  # of Darwin, in macOS 15
OPEN_FILES = 256  # the limit that programs are started with
_LOOKING = ("stat", "lstat", "access", "readlink", "statvfs")
_AUDITED = frozenset({"open", "os.listdir", "os.scandir", "os.chmod", "os.truncate", "os.utime"})


def take_away(names: dict[str, list[str]]) -> None:
    """Remove names from modules, and from the modules of C behind them."""
    for module, gone in names.items():
        for name in (f"_{module}", module):
            try:
                found = import_module(name)
            except ImportError:
                continue
            for attribute in gone:
                vars(found).pop(attribute, None)


def is_absent(path: object) -> bool:
    """Return whether a path, as functions of the system take it, is one that a Mac does not have."""
    if not isinstance(path, (str, bytes, os.PathLike)):
        return False
    name = os.path.normpath(os.fsdecode(path))
    return any(name == absent or name.startswith(f"{absent}/") for absent in ABSENT)


def hide_paths() -> None:
    """Let :data:`ABSENT` not exist, for the functions that tell Python's auditing and for those that do not."""
    for name in _LOOKING:
        _replace(name, _looking(getattr(os, name), result=False if name == "access" else None))

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _AUDITED and arguments and is_absent(arguments[0]):
            raise FileNotFoundError(2, os.strerror(2), arguments[0])

    sys.addaudithook(watch)


def _looking(function: Any, result: object) -> Any:
    def look(path: Any, *arguments: Any, **options: Any) -> Any:
        if not is_absent(path):
            return function(path, *arguments, **options)
        if result is not None:
            return result
        raise FileNotFoundError(2, os.strerror(2), os.fspath(path))

    return look


def _replace(name: str, function: Any) -> None:
    """Replace a function of :mod:`os`, also in the sets that say what it can do."""
    old = getattr(os, name)
    for abilities in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks, os.supports_effective_ids):
        if old in abilities:
            abilities.remove(old)
            abilities.add(function)
    setattr(os, name, function)


def be_darwin(machine: str) -> None:
    """Answer as Darwin does: ``uname``, ``SEEK_DATA``, the proxies, the number of files that may be open."""
    version = f"Darwin Kernel Version {RELEASE}"
    answer = os.uname_result(("Darwin", "mac.local", RELEASE, version, machine))
    os.uname = lambda: answer
    seek = os.lseek

    def lseek(descriptor: int, offset: int, whence: int) -> int:
        """Leave the region of data in which the offset is, as APFS does (QEMU's bug 1776920)."""
        if whence == os.SEEK_DATA and seek(descriptor, offset, os.SEEK_DATA) == offset:
            offset = seek(descriptor, offset, os.SEEK_HOLE)
        return seek(descriptor, offset, whence)

    _replace("lseek", lseek)
    proxies: Any = ModuleType("_scproxy")  # urllib.request asks the system's configuration for proxies
    proxies._get_proxy_settings = dict
    proxies._get_proxies = dict
    sys.modules["_scproxy"] = proxies
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    import ctypes

    lookup = ctypes.CDLL.__getattr__

    def look_up(library: ctypes.CDLL, name: str) -> Any:
        if name in FUNCTIONS:
            raise AttributeError(f"dlsym(RTLD_DEFAULT, {name}): symbol not found")
        return lookup(library, name)

    ctypes.CDLL.__getattr__ = look_up  # type: ignore[method-assign]


def main(file: str, machine: str, kind: str, program: str, *words: str) -> None:
    """Run the program, as the interpreter's options ``-m`` and ``-c`` do."""
    with open(file) as source:  # noqa: PTH123 - pathlib keeps functions of os, and must see what is left
        names = loads(source.read())
    take_away(names)
    hide_paths()
    be_darwin(machine)
    sys.path[0] = os.getcwd()  # noqa: PTH109 - as above
    import site

    site.main()
    sys.argv = [kind, *words]
    if kind == "-m":
        from runpy import run_module

        run_module(program, run_name="__main__", alter_sys=True)
    else:
        exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    main(*sys.argv[1:])
