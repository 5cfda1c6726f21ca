"""What a package script runs on: a Tree, a working directory, streams. The commands of the image are functions here."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from getopt import GetoptError, gnu_getopt
from typing import TypeAlias

from imgkit.rootfs.accounts import GROUP, PASSWD, SHADOW, AccountError
from imgkit.rootfs.scripts.budget import NODE, Budget, whole_number
from imgkit.rootfs.scripts.patterns import ShellPattern, shell_pattern
from imgkit.rootfs.scripts.words import Unsupported
from imgkit.tree import MAX_NAME, MAX_PATH, Directory, File, Node, Tree, TreeError, parent

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"  # what apk gives to scripts
_VOLATILE = frozenset({"dev", "proc", "sys"})  # a running system's, not the image's
_KEPT = 256  # patterns that a script may use again without paying for compiling them
_WORTH_KEEPING = 256  # characters of one of these
_PASS = 16  # characters of the account files that are read in a step

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
class ShellState:
    """The state that commands work on.

    Attributes:
        interpret: runs the text of another script on it.
        execute: runs a command for another one, such as ``find -exec``; never a function or a builtin of the shell.
        budget: what the script may still cost; commands charge it before they do what may be much.
    """

    tree: Tree
    epoch: int = 0
    hooks: Hooks = field(default_factory=Hooks)
    cwd: str = "/"
    umask: int = 0o022
    interpret: Callable[[ShellState, str, Streams], int] = _uninterpreted
    execute: Callable[[list[str], Streams], int] = _uninterpreted
    budget: Budget = field(default_factory=Budget)
    _patterns: dict[tuple[str, bool], ShellPattern] = field(default_factory=dict)

    def path(self, text: str, *, follow: bool = True) -> str:
        """The Tree's path for what a script calls ``text``.

        Raises:
            Failed: it is empty, or has too many links.
            Unsupported: it is inside /dev, /proc or /sys.
        """
        if not text:
            raise Failed("'': No such file or directory")
        whole = text if text.startswith("/") else f"{self.cwd}/{text}"
        if len(whole) > 2 * MAX_PATH or len(_encoded(text)) > MAX_PATH or len(_encoded(_last(text))) > MAX_NAME:
            raise Failed(f"{text[:80]}…: File name too long")
        self.budget.scan(len(whole), 4)
        try:
            path = self.tree.resolve(whole, follow=follow)
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
        self.budget.memory(NODE + len(path))
        self.tree.add(path, node)

    def children(self, path: str) -> list[str]:
        """What is in the directory at ``path`` of the Tree, sorted."""
        self.budget.work(self.tree.count(path))
        return self.tree.children(path)

    def walk(self, top: str) -> list[str]:
        """``top`` and every path below it, parents first."""
        found = []
        for path, _ in self.tree.walk(top):
            self.budget.work(4)
            found.append(path)
        return found

    def write(self, path: str, text: str) -> None:
        """Give the file at ``path`` of the Tree this content; one that is missing is made."""
        self.budget.memory(NODE + len(text))
        self.tree.write(path, text, mtime=self.epoch)

    def lines(self, text: str) -> list[str]:
        """The lines of a text."""
        return self.budget.lines(text)

    def pattern(self, text: str, *, ignore_case: bool = False) -> ShellPattern:
        """Compile a shell pattern.

        Raises:
            Unsupported: it has no meaning.
        """
        known = self._patterns.get((text, ignore_case))
        if known is not None:
            self.budget.work(len(text))
            return known
        try:
            pattern = shell_pattern(text, self.budget, ignore_case=ignore_case)
        except ValueError as cause:
            raise Unsupported(f"the pattern {text[:80]!r}: {cause}") from cause
        if len(self._patterns) < _KEPT and len(text) <= _WORTH_KEEPING:
            self._patterns[text, ignore_case] = pattern
        return pattern

    def matcher(self, text: str, *, ignore_case: bool = False) -> Callable[[str], bool]:
        """A function that says whether all of its argument matches the shell pattern ``text``."""
        pattern = self.pattern(text, ignore_case=ignore_case)

        def matches(subject: str) -> bool:
            self.budget.scan(len(subject), len(text) + 1)
            return pattern.fullmatch(subject)

        return matches

    def accounts(self) -> Tree:
        """The Tree, for a command that reads or writes the files of users and groups."""
        for path in (PASSWD, GROUP, SHADOW):
            node = self.tree.stat(path)
            size = node.content.size if isinstance(node, File) else 0
            self.budget.memory(2 * size)
            self.budget.work(size // _PASS)
        return self.tree

    def read(self, text: str) -> str:
        """The contents of a file.

        Raises:
            Failed: there is no such file.
        """
        if text == "/dev/null":
            return ""
        path = self.path(text)
        node = self.tree.stat(path)
        self.budget.memory(2 * node.content.size if isinstance(node, File) else 0)
        try:
            return self.tree.text(path)
        except TreeError as cause:
            missing = self.node(text) is None
            raise Failed(f"{text}: {'No such file or directory' if missing else 'not a regular file'}") from cause


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _encoded(text: str) -> bytes:
    return text.encode(errors="surrogateescape")


Command: TypeAlias = Callable[[ShellState, list[str], Streams], int]


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


def number(text: str, what: str = "number") -> int:
    """The number that ``text`` is.

    Raises:
        Failed: it is none, or too long to be meant.
    """
    value = whole_number(text)
    if value is None:
        raise Failed(f"invalid {what} '{text[:80]}'")
    return value


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
