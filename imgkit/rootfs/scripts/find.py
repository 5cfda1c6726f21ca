"""``find`` of package scripts, as busybox 1.37 has it.

The names in a directory are sorted here; a real filesystem returns them in no particular order. An expression is
compiled to a function of one visited path. What imgkit does not compute is refused by name before anything is done.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

from imgkit.rootfs.accounts import lookup
from imgkit.rootfs.scripts.budget import COMMAND, PIECE, whole_number
from imgkit.rootfs.scripts.sorting import names_in
from imgkit.rootfs.scripts.state import Command, Failed, ShellState, Streams, base_name, number
from imgkit.rootfs.scripts.words import Unsupported
from imgkit.tree import Device, Directory, File, HardLink, Node, Symlink

_MAX_DEPTH = 100


@dataclass
class _Visit:
    """One visited path.

    Attributes:
        text: the path as find writes it.
        path: the path in the Tree.
        node: what is there (links followed with -L).
        pruned: whether ``-prune`` was evaluated: find does not descend.
    """

    text: str
    path: str
    node: Node
    pruned: bool = False

    @property
    def name(self) -> str:
        """The last part of the path."""
        return base_name(self.text) or "/"


_Test: TypeAlias = Callable[[_Visit], bool]


@dataclass
class _Search:
    """The options of one call of find, and its results so far.

    Attributes:
        follow: follow all links (-L).
        follow_operands: follow the links that are operands (-H).
        contents_first: visit a directory after what is in it (-depth).
        terms: number of words of the expression, which determines the cost of a visit.
        min_depth: the smallest depth at which the expression is evaluated.
        max_depth: the greatest depth that is visited.
        acts: whether the expression has an action; without one it prints.
        status: the exit status.
        batches: (command, paths) of every ``-exec … +``.
    """

    state: ShellState
    streams: Streams
    follow: bool = False
    follow_operands: bool = False
    contents_first: bool = False
    terms: int = 0
    min_depth: int = 0
    max_depth: int = _MAX_DEPTH
    acts: bool = False
    status: int = 0
    batches: list[tuple[list[str], list[str]]] = field(default_factory=list)

    def fail(self, message: str) -> None:
        """Report a failure that does not end the search."""
        self.streams.err(f"find: {message}\n")
        self.status = 1

    def execute(self, words: list[str]) -> bool:
        """Run a program; returns whether it succeeded."""
        self.state.budget.memory(sum(map(len, words)))
        return self.state.execute(words, self.streams) == 0


def find(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """Run ``find [-H] [-L] [PATH…] [EXPRESSION]``; the tables at the end of this module list the supported tests."""
    words = list(arguments)
    search = _Search(state, streams)
    while words and words[0] in ("-L", "-H"):
        option = words.pop(0)
        search.follow |= option == "-L"
        search.follow_operands = True
    tops = []
    while words and words[0][:1] not in ("-", "(", "!"):
        tops.append(words.pop(0))
    search.terms = len(words)
    test = _Parser(words, search).parse()
    for top in tops or ["."]:
        _visit(search, test, top, 0, ())
    for command, paths in search.batches:
        if paths and not search.execute([*command, *paths]):
            search.status = 1
    return search.status


def _visit(search: _Search, test: _Test, text: str, depth: int, ancestors: tuple[str, ...]) -> None:
    """Visit a path and everything below it; ``ancestors`` are the paths of the directories above it."""
    search.state.budget.work(COMMAND // 4 + search.terms)
    search.state.budget.memory(PIECE + 2 * len(text))
    try:
        visit = _look(search, text, depth)
    except Failed as cause:
        search.fail(str(cause))
        return
    if visit.path in ancestors:
        raise Unsupported(f"find -L in a circle of links: {text}")
    if depth >= _MAX_DEPTH:
        raise Unsupported(f"find deeper than {_MAX_DEPTH} levels: {text}")
    is_tested = depth >= search.min_depth
    if is_tested and not search.contents_first:
        test(visit)
    if isinstance(visit.node, Directory) and depth < search.max_depth and not visit.pruned:
        _descend(search, test, visit, depth, (*ancestors, visit.path))
    if is_tested and search.contents_first:
        test(visit)


def _look(search: _Search, text: str, depth: int) -> _Visit:
    """Look at a path. A dangling link is a link, even where links are followed.

    Raises:
        Failed: there is nothing.
    """
    state = search.state
    follow = search.follow or (search.follow_operands and depth == 0)
    follow = follow and state.path(text) in state.tree
    path = state.existing(text, follow=follow or text.endswith("/"))
    return _Visit(text, path, state.tree[path])


def _descend(search: _Search, test: _Test, visit: _Visit, depth: int, ancestors: tuple[str, ...]) -> None:
    """Visit what is in a directory."""
    if not isinstance(search.state.tree.get(visit.path), Directory):  # an action has removed it
        search.fail(f"{visit.text}: No such file or directory")
        return
    folder = visit.text if visit.text.endswith("/") else f"{visit.text}/"
    for name in names_in(search.state, "/" + visit.path):
        _visit(search, test, folder + name, depth + 1, ancestors)


# ---- the expression ------------------------------------------------------------------------------------------------


class _Parser:
    """Recursive descent over the words of an expression, which are consumed.

    ``-o`` binds weaker than ``-a``, and that weaker than ``!``. An expression without an action prints the paths for
    which it is true.
    """

    def __init__(self, words: list[str], search: _Search) -> None:
        self._words = words
        self._search = search

    def parse(self) -> _Test:
        """Compile the whole expression.

        Raises:
            Failed: the expression is not valid.
            Unsupported: it has something that imgkit does not compute.
        """
        test = self._either() if self._words else _always
        if self._words:
            raise Failed("unpaired ')'" if self._words[0] == ")" else f"unrecognized: {self._words[0]}")
        if self._search.acts:
            return test
        show = _print(self._search, "\n")
        return lambda visit: test(visit) and show(visit)

    def _either(self) -> _Test:
        tests = [self._all()]
        while self._accept("-o", "-or"):
            tests.append(self._all())
        if len(tests) > 1 and _always in tests:
            raise Unsupported("find with an option such as -maxdepth alone on one side of -o")
        return tests[0] if len(tests) == 1 else lambda visit: any(test(visit) for test in tests)

    def _all(self) -> _Test:
        tests = [self._not()]
        while self._accept("-a", "-and") or (self._words and self._words[0] not in ("-o", "-or", ")")):
            tests.append(self._not())
        tests = [test for test in tests if test is not _always] or [_always]
        return tests[0] if len(tests) == 1 else lambda visit: all(test(visit) for test in tests)

    def _not(self) -> _Test:
        if self._accept("!", "-not"):
            test = self._not()
            return lambda visit: not test(visit)
        if self._accept("("):
            inside = self._either()
            if not self._accept(")"):
                raise Failed("unpaired '('")
            return inside
        return self._primary()

    def _accept(self, *symbols: str) -> bool:
        if self._words and self._words[0] in symbols:
            self._words.pop(0)
            return True
        return False

    def _primary(self) -> _Test:
        word = self._words.pop(0) if self._words else ""
        if word in ("-exec", "-delete", "-print", "-print0"):
            self._search.acts = True
        if word == "-exec":
            return self._execution()
        if word in _PLAIN:
            return _PLAIN[word](self._search)
        if word not in _WITH_VALUE:
            raise Unsupported(f"find {word}".rstrip())
        if not self._words:
            raise Failed(f"{word} requires an argument")
        return _WITH_VALUE[word](self._search, self._words.pop(0))

    def _execution(self) -> _Test:
        """Parse ``-exec COMMAND… ;`` or ``-exec COMMAND… {} +``."""
        search, command = self._search, list[str]()
        while self._words:
            word = self._words.pop(0)
            if word == ";" and command:
                return lambda visit: search.execute([_filled(search, part, visit.text) for part in command])
            if word == "+" and command[1:] and command[-1] == "{}":
                return _batch(search, command[:-1])
            command.append(word)
        raise Failed("-exec requires an argument")


def _filled(search: _Search, word: str, path: str) -> str:
    """Return ``word`` with every ``{}`` replaced by the path."""
    search.state.budget.memory(len(word) + word.count("{}") * len(path))
    return word.replace("{}", path)


def _batch(search: _Search, command: list[str]) -> _Test:
    """Compile ``-exec COMMAND… {} +``: collect the paths, and run the command once with all of them at the end."""
    paths: list[str] = []
    search.batches.append((command, paths))

    def collect(visit: _Visit) -> bool:
        paths.append(visit.text)
        return True

    return collect


def _always(_: _Visit) -> bool:
    """Return True: this is the test of an option such as -maxdepth."""
    return True


def _print(search: _Search, end: str) -> _Test:
    def show(visit: _Visit) -> bool:
        search.streams.out(visit.text + end)
        return True

    return show


def _prune(_: _Search) -> _Test:
    def prune(visit: _Visit) -> bool:
        visit.pruned = True
        return True

    return prune


def _follow(search: _Search) -> _Test:
    search.follow = True
    return _always


def _contents_first(search: _Search) -> _Test:
    search.contents_first = True
    return _always


def _delete(search: _Search) -> _Test:
    search.contents_first = True
    tree = search.state.tree

    def delete(visit: _Visit) -> bool:
        path = search.state.path(visit.text, follow=False)
        if tree.count(path):
            search.streams.err(f"find: {visit.text}: Directory not empty\n")
            return False
        if visit.text != ".":
            tree.remove(path)
        return True

    return delete


def _empty(search: _Search) -> _Test:
    tree = search.state.tree

    def empty(visit: _Visit) -> bool:
        node = tree[visit.node.target] if isinstance(visit.node, HardLink) else visit.node
        if isinstance(node, Directory):
            return not names_in(search.state, "/" + visit.path)
        return isinstance(node, File) and node.content.size == 0

    return empty


def _min_depth(search: _Search, text: str) -> _Test:
    search.min_depth = number(text)
    return _always


def _max_depth(search: _Search, text: str) -> _Test:
    search.max_depth = number(text)
    return _always


def _name(search: _Search, text: str, *, ignore_case: bool, whole_path: bool) -> _Test:
    """Compile -name, -iname, -path or -ipath."""
    matches = search.state.matcher(text, ignore_case=ignore_case)
    return lambda visit: matches(visit.text if whole_path else visit.name)


_KINDS: Mapping[str, Callable[[Node], bool]] = {
    "f": lambda node: isinstance(node, File | HardLink),
    "d": lambda node: isinstance(node, Directory),
    "l": lambda node: isinstance(node, Symlink),
    "b": lambda node: isinstance(node, Device) and node.kind == "b",
    "c": lambda node: isinstance(node, Device) and node.kind == "c",
    "p": lambda node: isinstance(node, Device) and node.kind == "p",
    "s": lambda _: False,
}


def _type(_: _Search, text: str) -> _Test:
    if text not in _KINDS:
        raise Failed(f"invalid argument '{text}' to '-type'")
    holds = _KINDS[text]
    return lambda visit: holds(visit.node)


def _permissions(_: _Search, text: str) -> _Test:
    """Compile -perm: exactly this mode, at least all of its bits (``-``), or any of them (``+`` or ``/``)."""
    match = re.fullmatch(r"([-+/]?)([0-7]{1,4})", text)
    if not match:
        raise Unsupported(f"find -perm {text}")
    mode = int(match[2], 8)
    if match[1] == "-":
        return lambda visit: visit.node.mode & mode == mode
    if match[1]:
        return lambda visit: mode == 0 or visit.node.mode & mode != 0
    return lambda visit: visit.node.mode == mode


def _user(search: _Search, text: str) -> _Test:
    """Compile -user."""
    uid = lookup(search.state.accounts()).users.get(text, whole_number(text))
    if uid is None:
        raise Failed(f"unknown user {text[:80]}")
    return lambda visit: visit.node.uid == uid


def _group(search: _Search, text: str) -> _Test:
    """Compile -group."""
    gid = lookup(search.state.accounts()).groups.get(text, whole_number(text))
    if gid is None:
        raise Failed(f"unknown group {text[:80]}")
    return lambda visit: visit.node.gid == gid


_PLAIN: Mapping[str, Callable[[_Search], _Test]] = {
    "-print": lambda search: _print(search, "\n"),
    "-print0": lambda search: _print(search, "\0"),
    "-delete": _delete,
    "-depth": _contents_first,
    "-empty": _empty,
    "-follow": _follow,
    "-prune": _prune,
    "-xdev": lambda _: _always,  # an image is one filesystem
}
_WITH_VALUE: Mapping[str, Callable[[_Search, str], _Test]] = {
    "-group": _group,
    "-iname": partial(_name, ignore_case=True, whole_path=False),
    "-ipath": partial(_name, ignore_case=True, whole_path=True),
    "-maxdepth": _max_depth,
    "-mindepth": _min_depth,
    "-name": partial(_name, ignore_case=False, whole_path=False),
    "-path": partial(_name, ignore_case=False, whole_path=True),
    "-perm": _permissions,
    "-type": _type,
    "-user": _user,
}

COMMANDS: Mapping[str, Command] = {"find": find}
