"""Extended attributes, in the inode as far as they fit, and the others in one block ("Extended Attributes")."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from imgkit.engines.native.ext4.checksum import checksum
from imgkit.engines.native.ext4.records import BLOCK, EXTRA_ISIZE, INODE_SIZE, XATTR_ENTRY, XATTR_HEADER

IN_INODE = INODE_SIZE - 128 - EXTRA_ISIZE
"""Bytes of an inode for attributes."""
_MAGIC = 0xEA020000
_END = 4  # zeros behind the last entry
# Prefixes of names, the longer ones first. The two of POSIX ACLs are whole names.
_PREFIXES: Mapping[str, int] = {
    "system.posix_acl_access": 2,
    "system.posix_acl_default": 3,
    "user.": 1,
    "trusted.": 4,
    "security.": 6,
    "system.": 7,
}
_ACLS = (2, 3)
_ACL_VERSION, _ACL_STORED_VERSION = 2, 1  # of the system call's form, and of the form on the disk
_ACL_WITH_ID = (0x02, 0x08)  # entries for a named user or group; others have no id


class XattrError(ValueError):
    """An attribute cannot be stored; the message says why."""


class _Attribute(NamedTuple):
    """An attribute in the order in which it is stored: by prefix, length of the name, and name."""

    prefix: int
    length: int
    name: bytes
    value: bytes

    @property
    def size(self) -> int:
        """Bytes that it takes: its entry and its value, each a multiple of 4."""
        return XATTR_ENTRY.size + _padded(self.length) + _padded(len(self.value))


class StoredXattrs(NamedTuple):
    """The attributes of an inode: its own bytes for them, and those of its attribute block without a checksum."""

    inode: bytes
    block: bytes


NONE = StoredXattrs(b"", b"")


def store(xattrs: Mapping[str, bytes]) -> StoredXattrs:
    """Return the attributes as they are stored. Either part is empty if it is not needed.

    Raises:
        XattrError: a name is not one that ext4 knows, or all of them together are too long.
    """
    if not xattrs:
        return NONE
    inside: list[_Attribute] = []
    outside: list[_Attribute] = []
    room = IN_INODE - 4 - _END  # besides a magic number
    for attribute in sorted(_attribute(name, value) for name, value in xattrs.items()):
        if attribute.size <= room:
            inside.append(attribute)
            room -= attribute.size
        else:
            outside.append(attribute)
    if sum(attribute.size for attribute in outside) > BLOCK - XATTR_HEADER.size - _END:
        total = sum(len(name) + len(value) for name, value in xattrs.items())
        raise XattrError(f"its extended attributes of {total} bytes do not fit into one block of {BLOCK} bytes")
    inode = _MAGIC.to_bytes(4, "little") + _area(inside, IN_INODE - 4, 0) if inside else b""
    return StoredXattrs(inode, _block(outside) if outside else b"")


def sealed_block(block: bytes, seed: int, place: int) -> bytes:
    """Return an attribute block with its checksum. ``place`` is the number of the block."""
    fields = list(XATTR_HEADER.unpack_from(block))
    fields[4] = checksum(checksum(seed, place.to_bytes(8, "little")), block)
    return XATTR_HEADER.pack(*fields) + block[XATTR_HEADER.size :]


def _attribute(name: str, value: bytes) -> _Attribute:
    for prefix, number in _PREFIXES.items():
        rest = name[len(prefix) :].encode(errors="surrogateescape")
        if name == prefix if number in _ACLS else name.startswith(prefix) and rest:
            if len(rest) > 255:
                raise XattrError(f"the name of its extended attribute {name[:40]}… is too long")
            return _Attribute(number, len(rest), rest, _stored_acl(name, value) if number in _ACLS else value)
    raise XattrError(f"its extended attribute {name!r} is of no kind that ext4 has")


def _stored_acl(name: str, value: bytes) -> bytes:
    """Return a POSIX ACL in the form on the disk (fs/ext4/acl.h), in which most entries have no id."""
    if len(value) % 8 != 4 or struct.unpack_from("<I", value)[0] != _ACL_VERSION:
        raise XattrError(f"its extended attribute {name} is not an access control list")
    stored = _ACL_STORED_VERSION.to_bytes(4, "little")
    for tag, permissions, owner in struct.iter_unpack("<HHI", value[4:]):
        stored += struct.pack("<HH", tag, permissions)
        stored += owner.to_bytes(4, "little") if tag in _ACL_WITH_ID else b""
    return stored


def _block(attributes: Sequence[_Attribute]) -> bytes:
    value = 0
    for attribute in attributes:
        value = (value << 16 ^ value >> 16 ^ _hash(attribute)) & 0xFFFFFFFF
    header = XATTR_HEADER.pack(_MAGIC, 1, 1, value, 0)
    return header + _area(attributes, BLOCK - XATTR_HEADER.size, XATTR_HEADER.size)


def _area(attributes: Iterable[_Attribute], size: int, offset: int) -> bytes:
    """Return entries, which grow from the start of the area, and values, which grow from its end.

    Args:
        size: of the area.
        offset: of the area from where places of values are counted.
    """
    entries, values = b"", b""
    for attribute in attributes:
        values = attribute.value.ljust(_padded(len(attribute.value)), b"\0") + values
        place = offset + size - len(values) if attribute.value else 0
        entries += XATTR_ENTRY.pack(
            attribute.length, attribute.prefix, place, 0, len(attribute.value), _hash(attribute)
        ) + attribute.name.ljust(_padded(attribute.length), b"\0")
    return entries + bytes(size - len(entries) - len(values)) + values


def _hash(attribute: _Attribute) -> int:
    """Return the hash of an attribute (ext4_xattr_hash_entry)."""
    value = 0
    for byte in attribute.name:
        value = (value << 5 ^ value >> 27 ^ byte) & 0xFFFFFFFF
    if attribute.value:
        for (word,) in struct.iter_unpack("<I", attribute.value.ljust(_padded(len(attribute.value)), b"\0")):
            value = (value << 16 ^ value >> 16 ^ word) & 0xFFFFFFFF
    return value


def _padded(length: int) -> int:
    return -(-length // 4) * 4
