"""The rules of Landlock for kernels of each version, by a C library that records the system calls."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from imgkit.vm.sandbox import landlock
from imgkit.vm.sandbox.landlock import DEVICE, READ, RUN, WRITE

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = 1, 2, 4, 8, 0x10, 0x20
MAKE_CHAR, MAKE_DIR, MAKE_REG, MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, MAKE_SYM = (
    0x40,
    0x80,
    0x100,
    0x200,
    0x400,
    0x800,
    0x1000,
)
REFER, TRUNCATE, IOCTL = 0x2000, 0x4000, 0x8000


class Library:
    """Answers as a kernel with that version of Landlock does."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.attributes = b""
        self.rules: dict[str, int] = {}

    def syscall(self, number: ctypes.c_long, *arguments: Any) -> int:
        words: list[Any] = [
            argument.value if isinstance(argument, ctypes.c_long) else argument for argument in arguments
        ]
        if number.value == 444 and words == [None, 0, 1]:
            return self.version
        if number.value == 444:
            attributes, size, flags = words
            assert (len(attributes), flags) == (size, 0)
            self.attributes = attributes
            return os.open("/dev/null", os.O_RDONLY)
        assert number.value == 445
        _, kind, attribute, flags = words
        rights, descriptor = struct.unpack("=Qi", attribute)
        assert (kind, flags) == (1, 0)
        self.rules[os.readlink(f"/proc/self/fd/{descriptor}")] = rights  # noqa: PTH115
        return 0


def made(version: int, *rules: tuple[Path | int, int], tcp: bool = False, unix: bool = False) -> Library:
    library = Library(version)
    with landlock.ruleset(library, rules, tcp=tcp, unix=unix) as descriptor:  # type: ignore[arg-type]
        assert (descriptor is not None) is (version >= 2)
    return library


@pytest.mark.parametrize(
    ("version", "attributes"),
    [
        (-1, ()),
        (0, ()),
        (1, ()),
        (2, (0x3FFF,)),
        (3, (0x7FFF,)),
        (4, (0x7FFF, 3)),
        (5, (0xFFFF, 3)),
        (6, (0xFFFF, 3, 3)),
        (7, (0xFFFF, 3, 3)),
    ],
)
def test_what_each_version_restricts(version: int, attributes: tuple[int, ...]) -> None:
    assert made(version).attributes == struct.pack(f"={len(attributes)}Q", *attributes)


def test_connections_and_sockets_that_are_allowed() -> None:
    assert made(6, tcp=True).attributes == struct.pack("=3Q", 0xFFFF, 0, 3)
    assert made(6, unix=True).attributes == struct.pack("=3Q", 0xFFFF, 3, 2)
    assert made(4, tcp=True).attributes == struct.pack("=2Q", 0x7FFF, 0)


def test_rights_of_files_and_folders(tmp_path: Path) -> None:
    """A file gets no rights of folders, which the kernel would refuse, and nothing gets rights it does not know."""
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.touch()
    folder.mkdir()
    missing, below = tmp_path / "missing", file / "below"
    rules = made(5, (file, WRITE), (folder, WRITE), (missing, WRITE), (below, WRITE)).rules
    assert rules == {str(file): WRITE_FILE | READ_FILE | TRUNCATE, str(folder): WRITE}
    assert made(2, (folder, WRITE)).rules == {str(folder): WRITE & ~TRUNCATE}
    assert made(4, (file, DEVICE)).rules == {str(file): READ_FILE | WRITE_FILE}
    descriptor = os.open(file, os.O_RDONLY)
    assert made(5, (descriptor, READ)).rules == {str(file): READ_FILE}
    os.fstat(descriptor)  # it is left open
    os.close(descriptor)


def test_names_of_rights() -> None:
    """In the numbers of linux/landlock.h."""
    assert READ == READ_FILE | READ_DIR
    assert RUN == READ_FILE | READ_DIR | EXECUTE
    assert DEVICE == READ_FILE | WRITE_FILE | IOCTL
    changing = WRITE_FILE | REMOVE_DIR | REMOVE_FILE | REFER | TRUNCATE
    making = MAKE_DIR | MAKE_REG | MAKE_SOCK | MAKE_FIFO | MAKE_SYM
    assert READ | changing | making == WRITE
    assert not WRITE & (EXECUTE | MAKE_CHAR | MAKE_BLOCK | IOCTL)


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - only their number matters
    made(6, (tmp_path, READ), (tmp_path / "missing", READ))
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
