"""``find`` of package scripts, as busybox 1.37 has it.

A directory's names come sorted here; from a real one they come in no order. An expression is compiled to functions of
one visited path; what is not understood is refused by name before anything is done.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from imgkit.rootfs.accounts import lookup
from imgkit.rootfs.scripts.budget import COMMAND, PIECE, whole_number
from imgkit.rootfs.scripts.sorting import names_in
from imgkit.rootfs.scripts.state import Command, Failed, ShellState, Streams
from imgkit.rootfs.scripts.words import Unsupported
from imgkit.tree import Device, Directory, File, HardLink, Node, Symlink

_MAX_DEPTH = 100


@dataclass
class _Visit:
    """One path: as find spells it, where it is in the Tree, and what is there (links followed with -L)."""

    text: str
    path: str
    node: Node
    pruned: bool = False

    @property
    def name(self) -> str:
        return self.text.rstrip("/").rpartition("/")[2] or "/"


_Test: TypeAlias = Callable[[_Visit], bool]


@dataclass
class _Search:
    """What the arguments say besides the expression, and what has come of it so far."""

    state: ShellState
    streams: Streams
    follow: bool = False
    follow_operands: bool = False
    contents_first: bool = False
    terms: int = 0  # words of the expression
    shallowest: int = 0
    deepest: int = _MAX_DEPTH
    acts: bool = False
    status: int = 0
    batches: list[tuple[list[str], list[str]]] = field(default_factory=list)  # of -exec … +: command, paths

    def complain(self, message: str) -> None:
        self.streams.err(f"find: {message}\n")

    def execute(self, words: list[str]) -> bool:
        self.state.budget.memory(sum(map(len, words)))
        return self.state.execute(words, self.streams) == 0


def find(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """``find [-H] [-L] [PATH…] [EXPRESSION]``; an expression has what the tables at the end name."""
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


def _visit(search: _Search, test: _Test, text: str, depth: int, above: tuple[str, ...]) -> None:
    search.state.budget.work(COMMAND // 4 + search.terms)
    search.state.budget.memory(PIECE + 2 * len(text))
    try:
        visit = _look(search, text, depth)
    except Failed as cause:
        search.complain(str(cause))
        search.status = 1
        return
    if visit.path in above:
        raise Unsupported(f"find -L in a circle of links: {text}")
    if depth >= _MAX_DEPTH:
        raise Unsupported(f"find deeper than {_MAX_DEPTH} levels: {text}")
    wanted = depth >= search.shallowest
    if wanted and not search.contents_first:
        test(visit)
    if isinstance(visit.node, Directory) and depth < search.deepest and not visit.pruned:
        _descend(search, test, visit, depth, (*above, visit.path))
    if wanted and search.contents_first:
        test(visit)


def _look(search: _Search, text: str, depth: int) -> _Visit:
    """What is at ``text``; where links are followed, one to nothing is a link.

    Raises:
        Failed: nothing is.
    """
    state = search.state
    follow = search.follow or (search.follow_operands and depth == 0)
    follow = follow and state.path(text) in state.tree
    path = state.existing(text, follow=follow or text.endswith("/"))
    return _Visit(text, path, state.tree[path])


def _descend(search: _Search, test: _Test, visit: _Visit, depth: int, above: tuple[str, ...]) -> None:
    if not isinstance(search.state.tree.get(visit.path), Directory):  # an action has taken it away
        search.complain(f"{visit.text}: No such file or directory")
        search.status = 1
        return
    for name in names_in(search.state, "/" + visit.path):
        _visit(search, test, visit.text + ("" if visit.text.endswith("/") else "/") + name, depth + 1, above)


# ---- the expression ------------------------------------------------------------------------------------------------


class _Parser:
    """Recursive descent over the words: ``or`` of ``and`` of ``not``; an expression without action prints."""

    def __init__(self, words: list[str], search: _Search) -> None:
        self._words = words
        self._search = search

    def parse(self) -> _Test:
        """The whole expression.

        Raises:
            Failed: it is no expression.
            Unsupported: it has something that is not computed here.
        """
        whole = self._either() if self._words else _always
        if self._words:
            raise Failed("unpaired ')'" if self._words[0] == ")" else f"unrecognized: {self._words[0]}")
        if self._search.acts:
            return whole
        show = _print(self._search, "\n")
        return lambda visit: whole(visit) and show(visit)

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
        """``-exec COMMAND… ;`` or ``-exec COMMAND… {} +``."""
        search, command = self._search, list[str]()
        while self._words:
            word = self._words.pop(0)
            if word == ";" and command:
                return lambda visit: search.execute([_filled(search, each, visit.text) for each in command])
            if word == "+" and command[1:] and command[-1] == "{}":
                return _batch(search, command[:-1])
            command.append(word)
        raise Failed("-exec requires an argument")


def _filled(search: _Search, word: str, path: str) -> str:
    search.state.budget.memory(len(word) + word.count("{}") * len(path))
    return word.replace("{}", path)


def _batch(search: _Search, command: list[str]) -> _Test:
    paths: list[str] = []
    search.batches.append((command, paths))

    def note(visit: _Visit) -> bool:
        paths.append(visit.text)
        return True

    return note


def _always(_: _Visit) -> bool:
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
            search.complain(f"{visit.text}: Directory not empty")
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


def _number(text: str) -> int:
    value = whole_number(text)
    if value is None:
        raise Failed(f"invalid number '{text[:80]}'")
    return value


def _shallowest(search: _Search, text: str) -> _Test:
    search.shallowest = _number(text)
    return _always


def _deepest(search: _Search, text: str) -> _Test:
    search.deepest = _number(text)
    return _always


def _name(*, ignore_case: bool, whole: bool) -> Callable[[_Search, str], _Test]:
    def build(search: _Search, text: str) -> _Test:
        matches = search.state.matcher(text, ignore_case=ignore_case)
        return lambda visit: matches(visit.text if whole else visit.name)

    return build


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
    found = re.fullmatch(r"([-+/]?)([0-7]{1,4})", text)
    if not found:
        raise Unsupported(f"find -perm {text}")
    wanted = int(found.group(2), 8)
    if found.group(1) == "-":
        return lambda visit: visit.node.mode & wanted == wanted
    if found.group(1):
        return lambda visit: wanted == 0 or visit.node.mode & wanted != 0
    return lambda visit: visit.node.mode == wanted


def _owner(what: str) -> Callable[[_Search, str], _Test]:
    def build(search: _Search, text: str) -> _Test:
        names = lookup(search.state.accounts())
        numbers = names.users if what == "user" else names.groups
        number = numbers.get(text, whole_number(text))
        if number is None:
            raise Failed(f"unknown {what} {text[:80]}")
        return lambda visit: (visit.node.uid if what == "user" else visit.node.gid) == number

    return build


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
    "-group": _owner("group"),
    "-iname": _name(ignore_case=True, whole=False),
    "-ipath": _name(ignore_case=True, whole=True),
    "-maxdepth": _deepest,
    "-mindepth": _shallowest,
    "-name": _name(ignore_case=False, whole=False),
    "-path": _name(ignore_case=False, whole=True),
    "-perm": _permissions,
    "-type": _type,
    "-user": _owner("user"),
}

COMMANDS: Mapping[str, Command] = {"find": find}
