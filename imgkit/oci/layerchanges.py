"""What differs between two Trees, as the entries of one layer (image-spec 1.1, "Representing Changes")::

    packages = changes(None, first)        # everything
    payload = changes(first, second)       # what was added, changed and removed

An entry is a path and a node. A removed path is an empty file whose name begins with ``.wh.``, a whiteout.

A layer is unpacked without those below it by some engines, onto them by others. Both must come to the same result, so
an entry comes with all the directories that lead to it, and all the names of a file that has several are in one layer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from imgkit.errors import InputError
from imgkit.tree import MAX_NAME, Directory, File, HardLink, Inline, Node, Tree, by_parts, parent

WHITEOUT = ".wh."
"""What the name of a whiteout begins with; the rest is the name of what it removes."""


@dataclass(frozen=True)
class LayerChanges:
    """The entries of a layer.

    Attributes:
        entries: in the order of a Tree, but hard links last. A hard link has the attributes of its file.
    """

    entries: tuple[tuple[str, Node], ...]

    def __bool__(self) -> bool:
        """Return whether there are entries."""
        return bool(self.entries)

    @property
    def content_size(self) -> int:
        """The size of all regular files together, in bytes."""
        return sum(node.content.size for _, node in self.entries if isinstance(node, File))


def changes(before: Tree | None, after: Tree) -> LayerChanges:
    """Return the entries of the layer that turns ``before`` into ``after``.

    Whether a node has changed is decided by comparing the nodes: a file whose content is at another place on the host
    has changed, even if its bytes are the same. The time of the root directory is left out of account.

    Args:
        before: what the layers below have; None for nothing.

    Raises:
        InputError: a path of ``after`` has the name of a whiteout, or a name is too long to be removed by one.
    """
    lower = Tree() if before is None else before
    entries = dict(_changed(lower, after))
    entries |= dict(_whiteouts(lower, after))
    for path in list(entries):
        _add_parents(entries, path, after)
    ordered = [(path, entries[path]) for path in sorted(entries, key=by_parts)]
    links = [entry for entry in ordered if isinstance(entry[1], HardLink)]
    if links:
        ordered = [entry for entry in ordered if not isinstance(entry[1], HardLink)]
    return LayerChanges((*ordered, *links))


def _changed(before: Tree, after: Tree) -> Iterator[tuple[str, Node]]:
    """Yield what is new or different, without whiteouts."""
    links = _links(after)
    kept: set[str] = set()
    for path, node in after.items():
        _check_name(path)
        if isinstance(node, File):
            names = (path, *links.get(path, ()))
            if not _is_kept(before, node, names, kept):
                yield path, node
                yield from _links_to(path, node, names[1:])
        elif not path:
            if _attributes(node) != _attributes(before[""]):
                yield path, node
        elif not isinstance(node, HardLink) and before.get(path) != node:
            yield path, node


def _links(tree: Tree) -> dict[str, list[str]]:
    """Return the hard links to each file that has some."""
    links: dict[str, list[str]] = defaultdict(list)
    for path, node in tree.items():
        if isinstance(node, HardLink):
            links[node.target].append(path)
    return links


def _is_kept(before: Tree, file: File, names: Sequence[str], kept: set[str]) -> bool:
    """Return whether a file needs no entry, since all its names were names of one equal file, and of no other one now.

    Args:
        kept: paths of files of ``before`` that have been found to be kept; a file is added to it.
    """
    old = _file_path(before, names[0])
    if old is None or old in kept or before.get(old) != file:
        return False
    if any(_file_path(before, name) != old for name in names[1:]):
        return False
    kept.add(old)
    return True


def _links_to(path: str, file: File, names: Iterable[str]) -> Iterator[tuple[str, Node]]:
    """Yield the hard links to a file, with its attributes."""
    for name in names:
        yield (
            name,
            HardLink(
                target=path,
                mode=file.mode,
                uid=file.uid,
                gid=file.gid,
                mtime=file.mtime,
                nanoseconds=file.nanoseconds,
                xattrs=file.xattrs,
            ),
        )


def _file_path(tree: Tree, path: str) -> str | None:
    """Return the path at which the Tree has the file that ``path`` names; None if it has no such path."""
    node = tree.get(path)
    return node.target if isinstance(node, HardLink) else path if node is not None else None


def _attributes(node: Node) -> Node:
    return replace(node, mtime=0, nanoseconds=0)


def _whiteouts(before: Tree, after: Tree) -> Iterator[tuple[str, Node]]:
    """Yield a whiteout for each path that is gone, but not for what is in a directory that is gone or replaced."""
    for path in before:
        if path not in after and isinstance(after.get(parent(path)), Directory):
            folder, slash, name = path.rpartition("/")
            whiteout = f"{folder}{slash}{WHITEOUT}{name}"
            if len(name) > MAX_NAME // 4 and len((WHITEOUT + name).encode(errors="surrogateescape")) > MAX_NAME:
                raise InputError(f"/{path}: the name is too long to be removed by a layer of a container image")
            yield whiteout, File(content=Inline(b""), mode=0o600)


def _add_parents(entries: dict[str, Node], path: str, tree: Tree) -> None:
    """Add the directories that lead to a path. An engine that does not find them makes them as it likes."""
    above = parent(path)
    while above and above not in entries:
        entries[above] = tree[above]
        above = parent(above)


def _check_name(path: str) -> None:
    if WHITEOUT in path and path.rpartition("/")[2].startswith(WHITEOUT):
        raise InputError(
            f"/{path}: layers of container images remove files by such names, so they cannot have a file of this name",
            hint="rename it, or remove it from the recipe's overlay or payload",
        )
