"""Regular expressions of ``grep`` (POSIX.1-2017, chapter 9, with the escapes that GNU and busybox add), in linear time.

An expression is compiled to a program whose states are all followed at once (Thompson's construction), so no text makes
it try again what it has tried. Backreferences, which need backtracking, are refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TypeAlias

from imgkit.rootfs.scripts.budget import COMPILED, Budget
from imgkit.rootfs.scripts.patterns import BRACKET, bracket_expression

_MAX_PROGRAM = 5000
_MAX_REPEAT = 255  # RE_DUP_MAX of POSIX
_CACHED = 2000  # transitions that are remembered
_EDGE, _WORD, _OTHER = 0, 1, 2  # what is beside a position
_INTERVAL = re.compile(r"([0-9]{1,3})(,([0-9]{1,3})?)?")
_CLASSES = {"w": r"\w", "W": r"\W", "s": r"\s", "S": r"\S"}
_ASSERTIONS = {"<": "<", ">": ">", "b": "b", "B": "B"}
_OPERATORS = frozenset("(){}|+?")  # plain in a basic expression, operators behind a backslash


@dataclass(frozen=True)
class _Item:
    """One character, by a regular expression of Python's for it."""

    expression: str


@dataclass(frozen=True)
class _Assertion:
    """A place: ``^ $ < > b B``, or ``before`` and ``after``: no part of a word is on that side."""

    kind: str


@dataclass(frozen=True)
class _Sequence:
    nodes: tuple[_Node, ...]


@dataclass(frozen=True)
class _Choice:
    nodes: tuple[_Node, ...]


@dataclass(frozen=True)
class _Repeat:
    """``least`` to ``most`` times; ``most`` is None where there is no limit."""

    node: _Node
    least: int
    most: int | None


_Node: TypeAlias = _Item | _Assertion | _Sequence | _Choice | _Repeat

# What takes no character. The parser leaves it out: 255 times nothing, repeated 255 times, five times over, would make
# no state that a limit could count, and never end.
_EMPTY = _Sequence(())


# ---- reading ---------------------------------------------------------------------------------------------------------


@dataclass
class _Parser:
    """Recursive descent over an expression."""

    text: str
    extended: bool
    at: int = 0
    depth: int = 0

    def whole(self) -> _Node:
        node = self._choice()
        if self.at < len(self.text):
            raise ValueError("unmatched )")
        return node

    def _next(self) -> tuple[str, bool]:
        """The next character, and whether it has the meaning that it has in an extended expression."""
        character = self.text[self.at : self.at + 1]
        if character != "\\":
            return character, self.extended or character not in _OPERATORS
        escaped = self.text[self.at + 1 : self.at + 2]
        if not escaped:
            raise ValueError("a backslash at the end")
        return escaped, not self.extended and escaped in _OPERATORS

    def _operator(self, *wanted: str) -> str:
        """Consume one of these operators if it is next."""
        character, meant = self._next() if self.at < len(self.text) else ("", False)
        escaped = self.text[self.at : self.at + 1] == "\\"
        if not meant or character not in wanted or (escaped and self.extended):
            return ""
        self.at += 2 if escaped else 1
        return character

    def _ends(self) -> bool:
        start = self.at
        ended = bool(self._operator("|", ")")) or start >= len(self.text)
        self.at = start
        return ended

    def _choice(self) -> _Node:
        nodes = [self._sequence()]
        while self._operator("|"):
            nodes.append(self._sequence())
        return nodes[0] if len(nodes) == 1 else _Choice(tuple(nodes))

    def _sequence(self) -> _Node:
        nodes: list[_Node] = []
        start = self.at
        while not self._ends():
            nodes.append(self._repeated(first=self.at == start))
        return _Sequence(tuple(node for node in nodes if node != _EMPTY))

    def _repeated(self, *, first: bool) -> _Node:
        node = self._atom(first=first)
        while operator := self._operator("*", "+", "?", "{"):
            if isinstance(node, _Assertion):
                raise ValueError("nothing to repeat")
            least, most = self._interval() if operator == "{" else _TIMES[operator]
            node = _EMPTY if most == 0 or node == _EMPTY else _Repeat(node, least, most)
        return node

    def _interval(self) -> tuple[int, int | None]:
        found = _INTERVAL.match(self.text, self.at)
        if not found:
            raise ValueError("an improper interval")
        self.at = found.end()
        if not self._operator("}"):
            raise ValueError("an improper interval")
        least = int(found[1])
        most = least if not found[2] else int(found[3]) if found[3] else None
        if max(least, most or 0) > _MAX_REPEAT or (most is not None and most < least):
            raise ValueError("an improper interval")
        return least, most

    def _atom(self, *, first: bool) -> _Node:
        if self._operator("("):
            return self._group()
        if self.text[self.at] == "[":
            return self._bracket()
        if self.text[self.at] == "\\":
            self.at += 2
            return self._escape(self.text[self.at - 1])
        character = self.text[self.at]
        self.at += 1
        if character == "^" and (self.extended or first):
            return _Assertion("^")
        if character == "$" and (self.extended or self._ends()):
            return _Assertion("$")
        if self.extended and character in "*+?{":
            raise ValueError("nothing to repeat")
        return _Item("." if character == "." else re.escape(character))

    def _group(self) -> _Node:
        self.depth += 1
        if self.depth > 50:
            raise ValueError("groups deeper than 50 levels")
        node = self._choice()
        if not self._operator(")"):
            raise ValueError("unmatched (")
        self.depth -= 1
        return node

    def _bracket(self) -> _Node:
        found = BRACKET.match(self.text, self.at)
        if not found:
            raise ValueError("unterminated bracket expression")
        self.at = found.end()
        return _Item(bracket_expression(found))

    def _escape(self, character: str) -> _Node:
        if character in _ASSERTIONS:
            return _Assertion(character)
        if character in _CLASSES:
            return _Item(_CLASSES[character])
        if character.isalnum():
            raise ValueError(f"escape \\{character}")
        return _Item(re.escape(character))


_TIMES: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}


# ---- compiling -------------------------------------------------------------------------------------------------------


@dataclass
class _Program:
    """States by number. A state takes a character, is an assertion, or forks; the last one is the match.

    Making them is charged to ``budget``.
    """

    budget: Budget
    items: dict[int, re.Pattern[str]] = field(default_factory=dict)
    assertions: dict[int, str] = field(default_factory=dict)
    forks: dict[int, tuple[int, int]] = field(default_factory=dict)
    size: int = 0
    _expressions: dict[str, re.Pattern[str]] = field(default_factory=dict)

    def compiled(self, expression: str, flags: int) -> re.Pattern[str]:
        """An expression for one character; the same one is compiled once."""
        if expression not in self._expressions:
            self.budget.work(COMPILED)
            self._expressions[expression] = re.compile(expression, re.DOTALL | flags)
        return self._expressions[expression]

    def new(self) -> int:
        self.size += 1
        if self.size > _MAX_PROGRAM:
            raise ValueError("more than this computes")
        return self.size - 1


def _emit(program: _Program, node: _Node, flags: int) -> None:
    """Append the states of ``node``; what comes after it begins where the program then ends."""
    program.budget.work(1)
    if isinstance(node, _Item):
        program.items[program.new()] = program.compiled(node.expression, flags)
    elif isinstance(node, _Assertion):
        program.assertions[program.new()] = node.kind
    elif isinstance(node, _Sequence):
        for inner in node.nodes:
            _emit(program, inner, flags)
    elif isinstance(node, _Choice):
        _emit_choice(program, node, flags)
    else:
        _emit_repeat(program, node, flags)


def _emit_choice(program: _Program, node: _Choice, flags: int) -> None:
    jumps = []
    for inner in node.nodes[:-1]:
        fork = program.new()
        _emit(program, inner, flags)
        jumps.append(program.new())
        program.forks[fork] = (fork + 1, program.size)
    _emit(program, node.nodes[-1], flags)
    for jump in jumps:
        program.forks[jump] = (program.size, program.size)


def _emit_repeat(program: _Program, node: _Repeat, flags: int) -> None:
    for _ in range(node.least):
        _emit(program, node.node, flags)
    if node.most is None:
        fork = program.new()
        _emit(program, node.node, flags)
        back = program.new()
        program.forks[back] = (fork, fork)
        program.forks[fork] = (fork + 1, program.size)
        return
    forks = []
    for _ in range(node.most - node.least):
        forks.append(program.new())
        _emit(program, node.node, flags)
    for fork in forks:
        program.forks[fork] = (fork + 1, program.size)


# ---- matching --------------------------------------------------------------------------------------------------------


_States: TypeAlias = frozenset[int]


class Regex:
    """Several expressions, of which any may be found; made by :func:`compile_expressions`."""

    def __init__(self, program: _Program) -> None:
        self._program = program
        self._steps: dict[tuple[_States, int, int, str], tuple[_States, bool]] = {}

    def search(self, text: str, budget: Budget) -> bool:
        """Whether one of the expressions is found in a line.

        Raises:
            Exhausted: the budget does not suffice.
        """
        budget.work(len(text) // 2 + 1)
        states: _States = frozenset()
        before = _EDGE
        looks = bool(self._program.assertions)
        for place in range(len(text) + 1):
            character = text[place : place + 1]
            after = _beside(character) if looks else _OTHER
            known = self._steps.get((states, before, after, character))
            if known is None:
                known = self._step(states, before, after, character, budget)
            states, matched = known
            if matched:
                return True
            before = after
        return False

    def _step(self, states: _States, before: int, after: int, character: str, budget: Budget) -> tuple[_States, bool]:
        """The states behind ``character``, and whether the match state was reached before it."""
        here = self._closure(states, before, after, budget)
        items = self._program.items
        if character:
            budget.work(len(here))
        following = (state + 1 for state in here if state in items and items[state].match(character))
        result = (frozenset(following) if character else frozenset[int]()), self._program.size in here
        if len(self._steps) >= _CACHED:
            self._steps.clear()
        self._steps[states, before, after, character] = result
        return result

    def _closure(self, states: _States, before: int, after: int, budget: Budget) -> set[int]:
        """``states``, the start and all that can be reached from them without a character."""
        program = self._program
        found: set[int] = set()
        todo = [0, *states]
        while todo:
            state = todo.pop()
            if state in found:
                continue
            found.add(state)
            if state in program.forks:
                todo += program.forks[state]
            elif state in program.assertions and _holds(program.assertions[state], before, after):
                todo.append(state + 1)
        budget.work(len(found))
        return found


def _beside(character: str) -> int:
    if not character:
        return _EDGE
    return _WORD if character.isalnum() or character == "_" else _OTHER


def _holds(kind: str, before: int, after: int) -> bool:
    left, right = before == _WORD, after == _WORD
    return {
        "^": before == _EDGE,
        "$": after == _EDGE,
        "<": right and not left,
        ">": left and not right,
        "b": left != right,
        "B": left == right,
        "before": not left,
        "after": not right,
    }[kind]


def compile_expressions(
    patterns: list[str],
    budget: Budget,
    *,
    extended: bool = False,
    literal: bool = False,
    ignore_case: bool = False,
    around: tuple[str, str] | None = None,
) -> Regex:
    """Compile expressions of which any may be found.

    Args:
        patterns: basic expressions, or ``extended`` or ``literal`` ones.
        budget: what compiling them is charged to.
        around: assertions that must hold before and after what is found: ``("^", "$")`` for whole lines, ``("before",
            "after")`` for whole words.

    Raises:
        ValueError: something in an expression is not understood, or it is too large.
        Exhausted: a pattern is too long.
    """
    nodes = []
    for pattern in patterns:
        budget.pattern(pattern)
        if literal:
            nodes.append(_Sequence(tuple(_Item(re.escape(character)) for character in pattern)))
        else:
            nodes.append(_Sequence((_Parser(pattern, extended).whole(),)))
    whole: _Node = _Choice(tuple(nodes))
    if around is not None:
        whole = _Sequence((_Assertion(around[0]), whole, _Assertion(around[1])))
    program = _Program(budget)
    _emit(program, whole, re.IGNORECASE if ignore_case else 0)
    budget.work(4 * program.size)
    return Regex(program)
