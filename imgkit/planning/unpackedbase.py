"""A minirootfs that was unpacked once: the next build takes its contents from the cache.

It is kept like a package (:mod:`imgkit.planning.unpackedpackages`), in ``bases/``, by the SHA-256 of its archive. The
archive itself is verified in every build before this is asked for.
"""

from __future__ import annotations

import hashlib
import json
import logging
from functools import partial
from pathlib import Path

from imgkit import __version__
from imgkit.errors import HostError
from imgkit.fetch.kept import Kept, say_unkept
from imgkit.fetch.keptcontents import load_content, moved, store_content
from imgkit.rootfs.minirootfs import unpack
from imgkit.tree import Tree
from imgkit.tree.noderecords import load_node, store_node

log = logging.getLogger("imgkit")

_MOST_BYTES = 256 << 20
_FORMAT = f"imgkit {__version__} minirootfs 2"  # changes with the record, and with what a minirootfs may hold


def unpacked_base(archive: Path, sha256: str, cache: Path, spool: Path) -> Tree:
    """Return what a verified minirootfs holds.

    Args:
        sha256: of the archive, in hex.
        cache: the folder of the cache.
        spool: a new file, which takes the contents if the cache cannot.

    Raises:
        InputError: the archive cannot be unpacked; see :func:`imgkit.rootfs.minirootfs.unpack`.
    """
    kept = Kept(cache, "bases", _MOST_BYTES)
    key = hashlib.sha256(f"{_FORMAT}\n{sha256}".encode()).hexdigest()
    tree = _taken(kept, key)
    if tree is not None:
        return tree
    try:
        with kept.scratch() as work:
            return _unpacked(archive, kept, key, work / "blob")
    except (OSError, HostError) as fault:
        say_unkept(log, "the minirootfs", fault)
    return unpack(archive, spool)


def _taken(kept: Kept, key: str) -> Tree | None:
    data = kept.take(key)
    if data is None:
        return None
    blob = kept.blob(key)
    try:
        nodes = [(path, load_node(node, partial(load_content, blob))) for path, *node in json.loads(data)]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as fault:
        kept.forget(key, f"its record cannot be read: {fault}")
        return None
    return Tree.of(nodes)


def _unpacked(archive: Path, kept: Kept, key: str, blob: Path) -> Tree:
    """Unpack the archive into the cache."""
    tree = unpack(archive, blob)
    nodes = list(tree.items())
    record = [[path, *store_node(node, store_content)] for path, node in nodes]
    kept.add(key, json.dumps(record, separators=(",", ":")).encode(), blob)
    kept.shrink()
    return Tree.of((path, moved(node, kept.blob(key))) for path, node in nodes)
