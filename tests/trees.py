"""Second opinions on archives, for tests."""

from __future__ import annotations

from dataclasses import dataclass

from imgkit.rootfs.archive import tree_from_tar

__all__ = ["CpioMember", "read_newc", "tree_from_tar"]


@dataclass(frozen=True)
class CpioMember:
    """One member of an archive as :func:`read_newc` finds it; ``numbers`` are the header's thirteen fields."""

    name: str
    numbers: tuple[int, ...]
    data: bytes

    @property
    def mode(self) -> int:
        return self.numbers[1]


def read_newc(data: bytes) -> list[CpioMember]:
    """A second opinion on the newc format, written from cpio(5): every member up to the trailer."""
    members: list[CpioMember] = []
    place = 0
    while True:
        assert data[place : place + 6] == b"070701", f"no header at {place}"
        numbers = tuple(int(data[place + 6 + 8 * n : place + 14 + 8 * n], 16) for n in range(13))
        name_at, name_size, size = place + 110, numbers[11], numbers[6]
        assert data[name_at + name_size - 1] == 0
        name = data[name_at : name_at + name_size - 1].decode(errors="surrogateescape")
        start = (name_at + name_size + 3) // 4 * 4
        if name == "TRAILER!!!":
            assert not data[start:].strip(b"\0"), "something follows the trailer"
            return members
        assert len(data) >= start + size, f"{name} is cut off"
        members.append(CpioMember(name, numbers, data[start : start + size]))
        place = (start + size + 3) // 4 * 4
