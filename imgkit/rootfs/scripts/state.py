"""Provide the state that package scripts work on: a Tree, a working directory, streams and helpers of commands."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from getopt import GetoptError, gnu_getopt
from types import MappingProxyType
from typing import TypeAlias

from imgkit.rootfs.accounts import GROUP, PASSWD, SHADOW, AccountError
from imgkit.rootfs.scripts.budget import NODE, Budget, whole_number
from imgkit.rootfs.scripts.patterns import ShellPattern, shell_pattern
from imgkit.rootfs.scripts.words import Unsupported
from imgkit.tree import MAX_NAME, MAX_PATH, Directory, File, Node, Tree, TreeError, parent

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"  # as apk sets it for scripts
VOLATILE = frozenset({"dev", "proc", "sys"})
"""Folders whose contents only a running system has."""
_CACHED_PATTERNS = 256  # patterns that a script may use again without paying for compiling them
_MAX_CACHED = 256  # characters of a pattern that is cached
_CHARACTERS_PER_STEP = 16  # of the files of users and groups, when they are parsed
_NO_NAMES: Mapping[str, str] = MappingProxyType({})

Sink: TypeAlias = Callable[[str], None]


class Failed(Exception):  # noqa: N818 - the outcome of one command, not an error of imgkit
    """A command of the script fails with a message and a status, as the real one would."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


FAILURES = (Failed, AccountError, TreeError)
"""Exceptions by which a command fails."""


@dataclass(frozen=True)
class Hooks:
    """What other parts of imgkit compute for scripts. A script that needs an absent hook is unsupported.

    Attributes:
        mkinitfs: called as (tree, kernel release, path of the initramfs in the Tree).
    """

    mkinitfs: Callable[[Tree, str, str], None] | None = None


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
        tree: the root filesystem.
        epoch: seconds since 1970, the modification time of what commands write.
        hooks: what other parts of imgkit compute.
        cwd: the working directory, absolute.
        umask: permissions that new files and directories do not get.
        volatile: folders below the root whose contents a script cannot use at build time.
        interpret: runs the text of another script on this state, whatever its status.
        execute: runs a program for a command such as ``find -exec``; never a function or a builtin of the shell.
        budget: the work and memory that the script may still use; commands charge it before they do expensive work.
    """

    tree: Tree
    epoch: int = 0
    hooks: Hooks = field(default_factory=Hooks)
    cwd: str = "/"
    umask: int = 0o022
    volatile: Collection[str] = VOLATILE
    interpret: Callable[[ShellState, str, Streams], object] = _uninterpreted
    execute: Callable[[list[str], Streams], int] = _uninterpreted
    budget: Budget = field(default_factory=Budget)
    _patterns: dict[tuple[str, bool], ShellPattern] = field(default_factory=dict)

    def path(self, text: str, *, follow: bool = True) -> str:
        """Return the path in the Tree that a script refers to as ``text``.

        Args:
            text: an absolute path, or one relative to the working directory.
            follow: whether a symbolic link in the last place is followed.

        Raises:
            Failed: the path is empty or too long, or leads through too many links.
            Unsupported: it is inside a volatile folder.
        """
        if not text:
            raise Failed("'': No such file or directory")
        absolute = text if text.startswith("/") else f"{self.cwd}/{text}"
        if len(absolute) > 2 * MAX_PATH or len(_encoded(text)) > MAX_PATH or len(_encoded(base_name(text))) > MAX_NAME:
            raise Failed(f"{text[:80]}…: File name too long")
        self.budget.scan(len(absolute), 4)
        try:
            path = self.tree.resolve(absolute, follow=follow)
        except TreeError as cause:
            raise Failed(f"{text}: Symbolic link loop") from cause
        if path.partition("/")[0] in self.volatile and "/" in path:
            raise Unsupported(f"use of /{path}, which only a running system has")
        return path

    def node(self, text: str, *, follow: bool = True) -> Node | None:
        """Return the node that a script refers to as ``text``, None if there is none; ``follow`` follows links."""
        path = self.path(text, follow=follow)
        return self.tree.stat(path) if follow else self.tree.get(path)

    def is_directory(self, text: str) -> bool:
        """Return whether ``text`` is a directory, or a link to one.

        Raises:
            Failed: the path is too long, or leads through too many links.
        """
        return bool(text) and isinstance(self.node(text), Directory)

    def existing(self, text: str, *, follow: bool = True) -> str:
        """Return the path in the Tree of something that must exist.

        Raises:
            Failed: it does not, or the script says by a final slash that it is a directory, and it is not.
        """
        path = self.path(text, follow=follow)
        if path not in self.tree:
            raise Failed(f"{text}: No such file or directory")
        if text.endswith("/") and not isinstance(self.tree.get(self.path(text)), Directory):
            raise Failed(f"{text}: Not a directory")
        return path

    def add(self, path: str, node: Node) -> None:
        """Add a new node; in a directory with set-group-id it gets that directory's group."""
        directory = self.tree.get(parent(path))
        if isinstance(directory, Directory) and directory.mode & 0o2000:
            mode = node.mode | (0o2000 if isinstance(node, Directory) else 0)
            node = replace(node, gid=directory.gid, mode=mode)
        self.budget.memory(NODE + len(path))
        self.tree.add(path, node)

    def children(self, path: str) -> list[str]:
        """Return the paths in the directory at ``path`` of the Tree, sorted."""
        self.budget.work(self.tree.count(path))
        return self.tree.children(path)

    def walk(self, top: str) -> list[str]:
        """Return ``top`` and every path below it, parents first."""
        paths = []
        for path, _ in self.tree.walk(top):
            self.budget.work(4)
            paths.append(path)
        return paths

    def write(self, path: str, text: str) -> None:
        """Write the file at ``path`` of the Tree; a missing one is created."""
        self.budget.memory(NODE + len(text))
        self.tree.write(path, text, mtime=self.epoch)

    def read(self, text: str) -> str:
        """Return the contents of the file that a script refers to as ``text``.

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
            reason = "No such file or directory" if node is None else "not a regular file"
            raise Failed(f"{text}: {reason}") from cause

    def lines(self, text: str) -> list[str]:
        """Return the lines of a text, without their newlines."""
        return self.budget.lines(text)

    def pattern(self, text: str, *, ignore_case: bool = False) -> ShellPattern:
        """Compile a shell pattern, or return the one that was compiled before.

        Raises:
            Unsupported: the pattern is not valid.
        """
        cached = self._patterns.get((text, ignore_case))
        if cached is not None:
            self.budget.work(len(text))
            return cached
        try:
            pattern = shell_pattern(text, self.budget, ignore_case=ignore_case)
        except ValueError as cause:
            raise Unsupported(f"the pattern {text[:80]!r}: {cause}") from cause
        if len(self._patterns) < _CACHED_PATTERNS and len(text) <= _MAX_CACHED:
            self._patterns[text, ignore_case] = pattern
        return pattern

    def matcher(self, text: str, *, ignore_case: bool = False) -> Callable[[str], bool]:
        """Return a function that returns whether all of its argument matches the shell pattern ``text``."""
        pattern = self.pattern(text, ignore_case=ignore_case)

        def matches(subject: str) -> bool:
            self.budget.scan(len(subject), len(text) + 1)
            return pattern.fullmatch(subject)

        return matches

    def accounts(self) -> Tree:
        """Return the Tree for a command that uses the files of users and groups, and charge the reading of them."""
        for path in (PASSWD, GROUP, SHADOW):
            node = self.tree.stat(path)
            size = node.content.size if isinstance(node, File) else 0
            self.budget.memory(2 * size)
            self.budget.work(size // _CHARACTERS_PER_STEP)
        return self.tree


def base_name(path: str) -> str:
    """Return the last part of a path; a final slash does not count."""
    return path.rstrip("/").rpartition("/")[2]


def _encoded(text: str) -> bytes:
    return text.encode(errors="surrogateescape")


Command: TypeAlias = Callable[[ShellState, list[str], Streams], int]
"""A program: called with the state, its arguments and its streams; it returns the exit status or raises Failed."""


def options(
    arguments: list[str], short: str, long: Mapping[str, str] = _NO_NAMES
) -> tuple[Mapping[str, str], list[str]]:
    """Parse options and operands, which may be mixed (GNU getopt).

    Args:
        arguments: the arguments of a command.
        short: the letters of its options; a colon follows each that takes a value.
        long: long names of options → their letters.

    Returns:
        The value of each option that is given by its letter (empty if it takes none), and the operands.

    Raises:
        Unsupported: there is an option that is not among those given, or a value is missing.
    """
    names = [f"{name}=" if f"{letter}:" in short else name for name, letter in long.items()]
    try:
        parsed, operands = gnu_getopt(arguments, short, names)
    except GetoptError as cause:
        raise Unsupported(f"option {cause.opt!r}: {cause.msg}") from cause
    return {long.get(name.lstrip("-"), name.lstrip("-")): value for name, value in parsed}, operands


def number(text: str) -> int:
    """Return the number that ``text`` is in decimal digits.

    Raises:
        Failed: it is not one, or it has too many digits.
    """
    value = whole_number(text)
    if value is None:
        raise Failed(f"invalid number '{text[:80]}'")
    return value


def report(streams: Streams, cause: Exception, name: str = "") -> int:
    """Write one of :data:`FAILURES` to standard error, after the name of the command; returns the status."""
    streams.err(f"{name}: {cause}\n" if name else f"{cause}\n")
    return cause.status if isinstance(cause, Failed) else 1


def for_each_operand(streams: Streams, name: str, operands: Iterable[str], action: Callable[[str], None]) -> int:
    """Call ``action`` with every operand; one that fails is reported and does not stop the others.

    Returns:
        1 if an operand has failed, else 0.
    """
    status = 0
    for operand in operands:
        try:
            action(operand)
        except FAILURES as cause:
            report(streams, cause, name)
            status = 1
    return status
