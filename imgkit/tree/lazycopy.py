"""A copy of a Tree that costs nothing before it is changed."""

from __future__ import annotations

from imgkit.tree.nodes import Node
from imgkit.tree.tree import Tree


class LazyCopy(Tree):
    """A copy of a Tree that is made when it is changed for the first time. Until then the original must not change."""

    def __init__(self, original: Tree) -> None:
        self._nodes, self._children, self._names = original._nodes, original._children, original._names
        self._order = original._order
        self._original: Tree | None = original

    def _own(self) -> None:
        if self._original is not None:
            self.replace_with(self._original)

    def replace_with(self, other: Tree) -> None:
        """Become equal to ``other``."""
        self._original = None
        super().replace_with(other)

    def add(self, path: str, node: Node) -> None:
        """Put ``node`` at ``path``; see :meth:`Tree.add`."""
        self._own()
        super().add(path, node)

    def write(
        self, path: str, data: bytes | str, *, mode: int | None = None, uid: int = 0, gid: int = 0, mtime: int = 0
    ) -> None:
        """Write a small file; see :meth:`Tree.write`."""
        self._own()
        super().write(path, data, mode=mode, uid=uid, gid=gid, mtime=mtime)

    def change(self, path: str, *, mode: int | None = None, uid: int | None = None, gid: int | None = None) -> None:
        """Change mode and owner; see :meth:`Tree.change`."""
        self._own()
        super().change(path, mode=mode, uid=uid, gid=gid)

    def amend(self, path: str, node: Node) -> None:
        """Replace a node by one of the same kind; see :meth:`Tree.amend`."""
        self._own()
        super().amend(path, node)

    def remove(self, path: str) -> None:
        """Remove a node; see :meth:`Tree.remove`."""
        self._own()
        super().remove(path)
