"""Steps of a build whose results are kept: packages, initramfs, services, checks of modules, GRUB.

Each is a pure function of values that are hashed for its key, together with the version of the code. So what is taken
from the cache is what the step would compute; a cache that lacks it, or has it damaged, costs time and nothing else::

    steps = KeptSteps(cache.folder)
    data = steps.get("initramfs", [epoch, *map(described, nodes.items())], make)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from imgkit.fetch.kept import Kept
from imgkit.host.programversion import program_version
from imgkit.tree import Node, sha256_of
from imgkit.tree.noderecords import store_node

_MOST_BYTES = {
    "installed": 256 << 20,
    "initramfs": 1 << 30,
    "services": 16 << 20,
    "modules": 16 << 20,
    "grub": 64 << 20,
}
"""Step → the bytes of all its results that are kept."""


class KeptSteps:
    """The results of steps below the folder of a cache.

    Args:
        folder: that of the cache; None keeps nothing.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    @property
    def keeps(self) -> bool:
        """Whether anything is kept."""
        return self._folder is not None

    def get(self, step: str, inputs: Iterable[object], compute: Callable[[], bytes]) -> bytes:
        """Return the result of a step, computed if it is not kept.

        Args:
            step: its name, which is that of the folder in the cache.
            inputs: everything that the result depends on, as values for JSON. They are not used if nothing is kept.
        """
        if self._folder is None:
            return compute()
        key = key_of(step, inputs)
        known = self.take(step, key)
        return self.store(step, key, compute()) if known is None else known

    def take(self, step: str, key: str) -> bytes | None:
        """Return the result with this key, None if it is not kept."""
        return None if self._folder is None else _kept(self._folder, step).take(key)

    def store(self, step: str, key: str, data: bytes) -> bytes:
        """Keep a result, and return it."""
        if self._folder is not None:
            kept = _kept(self._folder, step)
            kept.store(key, data)
            kept.shrink()
        return data


def _kept(folder: Path, step: str) -> Kept:
    return Kept(folder, step, _MOST_BYTES[step])


def key_of(step: str, inputs: Iterable[object]) -> str:
    """Return the key of a step's result: a hash over everything that it depends on, in hex."""
    return hashlib.sha256(json.dumps([program_version(), step, *inputs]).encode()).hexdigest()


def described(path: str, node: Node) -> list[Any]:
    """Return a value for JSON that is different for every other path, node and content."""
    return [path, *store_node(node, lambda content: sha256_of(content).hex())]
