"""Extended attributes in tar archives: the ``SCHILY.xattr.*`` records of pax extended headers (GNU tar)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from imgkit.tree.nodes import NO_XATTRS
from imgkit.tree.tarwriter import XATTR


def xattrs_of(pax: Mapping[str, str]) -> Mapping[str, bytes]:
    """Return the extended attributes of an entry, from its pax records."""
    xattrs = {
        key[len(XATTR) :]: value.encode(errors="surrogateescape") for key, value in pax.items() if key.startswith(XATTR)
    }
    return MappingProxyType(xattrs) if xattrs else NO_XATTRS
