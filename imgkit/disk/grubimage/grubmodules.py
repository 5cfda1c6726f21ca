"""The modules of a core image: what they depend on, and the area after the kernel that holds them.

Formats: GRUB's ``moddep.lst`` (a line for each module: ``NAME: NEEDED NEEDED …``) and its ``include/grub/kernel.h``
(``grub_module_info``, ``grub_module_header``).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

_MAGIC = 0x676D696D  # "mimg"
_OBJECT = struct.Struct("<II")  # type, size with this header
_MODULE, _CONFIG, _PREFIX = 0, 2, 3
_INFO = {32: struct.Struct("<III"), 64: struct.Struct("<I4xQQ")}  # magic, offset of the first object, size of all


class GrubImageError(ValueError):
    """A core image cannot be made of these files; the message says why."""


def with_dependencies(names: Iterable[str], moddep: str) -> tuple[str, ...]:
    """Return the modules that are needed for those in ``names``, each after what it needs.

    Args:
        moddep: the text of ``moddep.lst``.

    The order is that of grub-mkimage, which tries the dependencies of a module from the last to the first. A module
    without a line depends on nothing.
    """
    lines = (line.partition(":") for line in moddep.splitlines())
    needed = {name.strip(): tuple(reversed(words.split())) for name, _, words in lines}
    order: dict[str, None] = {}
    begun: set[str] = set()
    pending = [(name, False) for name in reversed(tuple(names))]
    while pending:
        name, complete = pending.pop()
        if complete:
            order[name] = None
        elif name not in begun:
            begun.add(name)
            pending.append((name, True))
            pending += [(dependency, False) for dependency in reversed(needed.get(name, ()))]
    return tuple(order)


def module_area(modules: Mapping[str, bytes], config: str, prefix: str, bits: int) -> bytes:
    """Return what follows the kernel in a core image.

    Args:
        modules: their contents, in the order in which GRUB loads them.
        config: the commands that GRUB runs first.
        prefix: the folder from which GRUB loads other modules.
        bits: the size of a pointer of the machine, 32 or 64.
    """
    objects = b"".join(_object(_MODULE, data, bits) for data in modules.values())
    objects += _object(_CONFIG, config.encode() + b"\0", bits) + _object(_PREFIX, prefix.encode() + b"\0", bits)
    info = _INFO[bits]
    return info.pack(_MAGIC, info.size, info.size + len(objects)) + objects


def _object(kind: int, data: bytes, bits: int) -> bytes:
    padded = data.ljust(-(-len(data) // (bits // 8)) * (bits // 8), b"\0")
    return _OBJECT.pack(kind, _OBJECT.size + len(padded)) + padded
