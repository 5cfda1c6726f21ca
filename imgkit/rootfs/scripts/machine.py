"""What a package script runs on: a Tree, a working directory, streams. The commands of the image are functions here."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from getopt import GetoptError, gnu_getopt
from typing import TypeAlias

from imgkit.rootfs.accounts import AccountError
from imgkit.rootfs.scripts.words import Unsupported
from imgkit.tree import Directory, Node, Tree, TreeError, parent

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"  # what apk gives to scripts
_VOLATILE = frozenset({"dev", "proc", "sys"})  # a running system's, not the image's

Sink: TypeAlias = Callable[[str], None]


class Failed(Exception):  # noqa: N818 - the outcome of one command, not an error of imgkit
    """A command of the script fails with a message, as the real one would."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Hooks:
    """What other parts of imgkit compute for scripts. A script that needs an absent hook is unsupported.

    Attributes:
        mkinitfs: called as (tree, kernel release, path of the initramfs in the Tree).
        depmod: called as (tree, kernel release) when packages added modules that the kernel's own index lacks.
        commands: further programs by name, called as (tree, arguments); what they return is the exit status. For
            instance ``update-grub``, which has nothing to do where imgkit itself writes grub.cfg.
    """

    mkinitfs: Callable[[Tree, str, str], None] | None = None
    depmod: Callable[[Tree, str], None] | None = None
    commands: Mapping[str, Callable[[Tree, Sequence[str]], int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Streams:
    """Standard input, output and error of a command."""

    stdin: io.StringIO
    out: Sink
    err: Sink


def _uninterpreted(*_: object) -> int:
    raise Unsupported("a script inside a script")


@dataclass
class Machine:
    """The state that commands work on.

    Attributes:
        interpret: runs the text of another script on it.
        execute: runs a command for another one, such as ``find -exec``; never a function or a builtin of the shell.
    """

    tree: Tree
    epoch: int = 0
    hooks: Hooks = field(default_factory=Hooks)
    cwd: str = "/"
    umask: int = 0o022
    interpret: Callable[[Machine, str, Streams], int] = _uninterpreted
    execute: Callable[[list[str], Streams], int] = _uninterpreted

    def path(self, text: str, *, follow: bool = True) -> str:
        """The Tree's path for what a script calls ``text``.

        Raises:
            Failed: it is empty, or has too many links.
            Unsupported: it is inside /dev, /proc or /sys.
        """
        if not text:
            raise Failed("'': No such file or directory")
        try:
            path = self.tree.resolve(text if text.startswith("/") else f"{self.cwd}/{text}", follow=follow)
        except TreeError as cause:
            raise Failed(f"{text}: Symbolic link loop") from cause
        if path.partition("/")[0] in _VOLATILE and "/" in path:
            raise Unsupported(f"use of /{path}, which only a running system has")
        return path

    def node(self, text: str, *, follow: bool = True) -> Node | None:
        """What is at ``text``, links followed or not."""
        path = self.path(text, follow=follow)
        return self.tree.stat(path) if follow else self.tree.get(path)

    def is_directory(self, text: str) -> bool:
        return bool(text) and isinstance(self.node(text), Directory)

    def existing(self, text: str, *, follow: bool = True) -> str:
        """The path of something that must be there.

        Raises:
            Failed: nothing is.
        """
        path = self.path(text, follow=follow)
        if path not in self.tree:
            raise Failed(f"{text}: No such file or directory")
        if text.endswith("/") and not isinstance(self.tree.get(self.path(text)), Directory):
            raise Failed(f"{text}: Not a directory")
        return path

    def add(self, path: str, node: Node) -> None:
        """Put a new node in place; in a set-group-id directory it gets that directory's group."""
        above = self.tree.get(parent(path))
        if isinstance(above, Directory) and above.mode & 0o2000:
            mode = node.mode | (0o2000 if isinstance(node, Directory) else 0)
            node = replace(node, gid=above.gid, mode=mode)
        self.tree.add(path, node)

    def read(self, text: str) -> str:
        """The contents of a file.

        Raises:
            Failed: there is no such file.
        """
        if text == "/dev/null":
            return ""
        try:
            return self.tree.text(self.path(text))
        except TreeError as cause:
            missing = self.node(text) is None
            raise Failed(f"{text}: {'No such file or directory' if missing else 'not a regular file'}") from cause


Command: TypeAlias = Callable[[Machine, list[str], Streams], int]


def options(arguments: list[str], short: str, long: Iterable[str] = ()) -> tuple[Mapping[str, str], list[str]]:
    """Options by their name without dashes, and the operands, as GNU getopt sorts them.

    Raises:
        Unsupported: an option that is not among those given.
    """
    try:
        found, operands = gnu_getopt(arguments, short, list(long))
    except GetoptError as cause:
        raise Unsupported(f"option {cause.opt!r}: {cause.msg}") from cause
    return {name.lstrip("-"): value for name, value in found}, operands


def each(streams: Streams, name: str, operands: Iterable[str], action: Callable[[str], None]) -> int:
    """Do ``action`` for every operand; one that fails is reported and does not stop the others."""
    status = 0
    for operand in operands:
        try:
            action(operand)
        except (Failed, TreeError, AccountError) as cause:
            streams.err(f"{name}: {cause}\n")
            status = 1
    return status
