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


def test_rights_in_the_numbers_of_the_kernel(tmp_path: Path) -> None:
    """linux/landlock.h."""
    changing = WRITE_FILE | REMOVE_DIR | REMOVE_FILE | REFER | TRUNCATE
    making = MAKE_DIR | MAKE_REG | MAKE_SOCK | MAKE_FIFO | MAKE_SYM
    rights = {
        READ: READ_FILE | READ_DIR,
        RUN: READ_FILE | READ_DIR | EXECUTE,
        DEVICE: READ_FILE | WRITE_FILE | IOCTL,
        WRITE: READ_FILE | READ_DIR | changing | making,
    }
    for name, number in rights.items():
        assert made(6, (tmp_path, name)).rules == {str(tmp_path): number}
        assert not number & (MAKE_CHAR | MAKE_BLOCK)


class Answers:
    """A C library whose system calls give one answer, and note their arguments."""

    def __init__(self, answer: int) -> None:
        self.answer = answer
        self.calls: list[list[Any]] = []

    def syscall(self, *arguments: Any) -> int:
        self.calls.append([each.value if isinstance(each, ctypes.c_long) else each for each in arguments])
        return self.answer


def test_rules_are_enforced_by_their_descriptor() -> None:
    kernel = Answers(0)
    landlock.restrict(kernel, 7)  # type: ignore[arg-type]
    assert kernel.calls == [[446, 7, 0]]


@pytest.mark.parametrize(("number", "name"), [(38, "ENOSYS"), (22, "EINVAL"), (9999, "9999")])
def test_a_refusal_is_named_as_the_kernel_names_it(number: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "get_errno", lambda: number)
    with pytest.raises(OSError, match=f"landlock: {name}$") as raised:
        landlock.restrict(Answers(-1), 7)  # type: ignore[arg-type]
    assert raised.value.errno == number


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_have_none(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", platform)
    kernel = Answers(6)
    assert landlock.version(kernel) == 0  # type: ignore[arg-type]
    assert kernel.calls == []


def test_a_file_that_cannot_be_looked_at_has_no_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any other failure ends the machine's start."""
    causes = iter([PermissionError(), OSError(40, "Too many levels of symbolic links")])
    real = os.open

    def fail(path: str | Path, *rest: int) -> int:
        if path == tmp_path / "file":
            raise next(causes)
        return real(path, *rest)

    monkeypatch.setattr(os, "open", fail)
    assert made(6, (tmp_path / "file", READ), (tmp_path, READ)).rules == {str(tmp_path): READ}
    with pytest.raises(OSError, match="Too many levels"):
        made(6, (tmp_path / "file", READ))


def test_a_file_is_named_and_not_opened(tmp_path: Path) -> None:
    """A rule for a pipe waits for nobody."""
    os.mkfifo(tmp_path / "pipe")
    assert made(6, (tmp_path / "pipe", WRITE)).rules == {str(tmp_path / "pipe"): WRITE_FILE | READ_FILE | TRUNCATE}


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - only their number matters
    made(6, (tmp_path, READ), (tmp_path / "missing", READ))
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
