"""A Tree that notes what it is asked, so that a result can be kept for Trees that give the same answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar, cast

from imgkit.tree.nodes import Node
from imgkit.tree.tree import Tree

_T = TypeVar("_T")


class WatchedTree(Tree):
    """A view of a Tree, which must not change meanwhile. Copies of the view, lazy ones as well, are watched like it.

    All reading is a look at single paths, or at everything. Whoever changes a copy has looked at everything; the view
    itself must not be changed.
    """

    def __init__(self, original: Tree) -> None:
        self._seen_nodes: _Watched[Node] = _Watched(original._nodes)
        self._seen_children = _Watched(original._children)
        self._seen_names = _Watched(original._names)
        self._nodes = cast("dict[str, Node]", self._seen_nodes)
        self._children = cast("dict[str, set[str]]", self._seen_children)
        self._names = cast("dict[str, set[str]]", self._seen_names)
        self._order = None

    @property
    def nodes(self) -> Mapping[str, Node | None]:
        """Path → the node that was found at exactly this path, None where there was none."""
        return self._seen_nodes.asked

    @property
    def directories(self) -> Mapping[str, list[str]]:
        """Path → the names in it, sorted, for every directory that was listed or counted."""
        return {path: sorted(names or ()) for path, names in self._seen_children.asked.items()}

    @property
    def is_complete(self) -> bool:
        """Whether all that was read is in :attr:`nodes` and :attr:`directories`."""
        seen = (self._seen_nodes, self._seen_children, self._seen_names)
        return not self._seen_names.asked and not any(mapping.was_read_whole for mapping in seen)


class _Watched(Mapping[str, _T]):
    """A mapping that notes which keys were asked for, with what was found, and whether all were."""

    def __init__(self, values: Mapping[str, _T]) -> None:
        self._values = values
        self.asked: dict[str, _T | None] = {}
        self.was_read_whole = False

    def __getitem__(self, key: str) -> _T:
        self.asked[key] = self._values.get(key)
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        self.was_read_whole = True
        return iter(self._values)

    def __len__(self) -> int:
        self.was_read_whole = True
        return len(self._values)
