"""Regular expressions of ``grep`` (POSIX.1-2017, chapter 9, with the escapes of GNU and busybox), in linear time::

    compile_expressions(["^root:"], budget).search("root:x:0:0", budget)      # → True

An expression is compiled to a program whose states are all followed at once (Thompson's construction), so matching
never goes back in the text. Backreferences, which need backtracking, are refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TypeAlias

from imgkit.rootfs.scripts.budget import COMPILED, Budget
from imgkit.rootfs.scripts.patterns import BRACKET, bracket_expression

_MAX_PROGRAM = 5000  # states
_MAX_DEPTH = 50  # of groups
_MAX_REPEAT = 255  # RE_DUP_MAX of POSIX
_MAX_CACHED = 2000  # transitions
_EDGE, _WORD, _OTHER = range(3)  # what is next to a position: the end of the text, a character of a word, another one
_INTERVAL = re.compile(r"([0-9]{1,3})(,([0-9]{1,3})?)?")
_CLASSES = {"w": r"\w", "W": r"\W", "s": r"\s", "S": r"\S"}
_ASSERTIONS = frozenset("<>bB")
_OPERATORS = frozenset("(){}|+?")  # in a basic expression these are operators only after a backslash


@dataclass(frozen=True)
class _Item:
    """One character, given by a regular expression of Python that matches it."""

    expression: str


@dataclass(frozen=True)
class _Assertion:
    """A condition on a position: ``^ $ < > b B``; with ``before`` or ``after``, no word continues on that side."""

    kind: str


@dataclass(frozen=True)
class _Sequence:
    """Nodes that match one after the other."""

    nodes: tuple[_Node, ...]


@dataclass(frozen=True)
class _Choice:
    """Nodes of which any may match."""

    nodes: tuple[_Node, ...]


@dataclass(frozen=True)
class _Repeat:
    """A node that matches ``least`` to ``most`` times; without a limit ``most`` is None."""

    node: _Node
    least: int
    most: int | None


_Node: TypeAlias = _Item | _Assertion | _Sequence | _Choice | _Repeat

# What matches no character. The parser leaves it out: (){255}{255}{255}… would make no states that a limit could
# count, and compiling it would never end.
_EMPTY = _Sequence(())


# ---- parsing ---------------------------------------------------------------------------------------------------------


@dataclass
class _Parser:
    """Recursive descent over an expression."""

    text: str
    extended: bool
    at: int = 0
    depth: int = 0

    def parse(self) -> _Node:
        """Parse the whole expression."""
        node = self._choice()
        if self.at < len(self.text):
            raise ValueError("unmatched )")
        return node

    def _next(self) -> tuple[str, bool]:
        """Return the next character without its backslash, and whether it has its meaning of extended expressions."""
        character = self.text[self.at : self.at + 1]
        if character != "\\":
            return character, self.extended or character not in _OPERATORS
        escaped = self.text[self.at + 1 : self.at + 2]
        if not escaped:
            raise ValueError("a backslash at the end")
        return escaped, not self.extended and escaped in _OPERATORS

    def _operator(self, *wanted: str) -> str:
        """Consume one of these operators if it is next."""
        character, meant = self._next()
        escaped = self.text[self.at : self.at + 1] == "\\"
        if not meant or character not in wanted:
            return ""
        self.at += 2 if escaped else 1
        return character

    def _ends(self) -> bool:
        """Return whether a sequence ends here."""
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
        """Read ``2}``, ``2,}`` or ``2,5}``."""
        match = _INTERVAL.match(self.text, self.at)
        if not match:
            raise ValueError("an improper interval")
        self.at = match.end()
        if not self._operator("}"):
            raise ValueError("an improper interval")
        least = int(match[1])
        most = least if not match[2] else int(match[3]) if match[3] else None
        numbers = [least] if most is None else [least, most]
        if numbers != sorted(numbers) or numbers[-1] > _MAX_REPEAT:
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
        if self.depth > _MAX_DEPTH:
            raise ValueError(f"groups deeper than {_MAX_DEPTH} levels")
        node = self._choice()
        if not self._operator(")"):
            raise ValueError("unmatched (")
        self.depth -= 1
        return node

    def _bracket(self) -> _Node:
        bracket = BRACKET.match(self.text, self.at)
        if not bracket:
            raise ValueError("unterminated bracket expression")
        self.at = bracket.end()
        return _Item(bracket_expression(bracket))

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
    """A program of numbered states, of which the one after the last is the match.

    Attributes:
        budget: what compiling is charged to.
        items: states that match one character and lead to the next state.
        assertions: states that lead to the next one if a condition holds.
        forks: states that lead to two others.
        size: how many states there are.
    """

    budget: Budget
    items: dict[int, re.Pattern[str]] = field(default_factory=dict)
    assertions: dict[int, str] = field(default_factory=dict)
    forks: dict[int, tuple[int, int]] = field(default_factory=dict)
    size: int = 0
    _expressions: dict[str, re.Pattern[str]] = field(default_factory=dict)

    def compiled(self, expression: str, flags: int) -> re.Pattern[str]:
        """Compile an expression for one character, or return the one that was compiled before."""
        if expression not in self._expressions:
            self.budget.work(COMPILED)
            self._expressions[expression] = re.compile(expression, re.DOTALL | flags)
        return self._expressions[expression]

    def new(self) -> int:
        """Add a state and return its number.

        Raises:
            ValueError: there are too many.
        """
        self.size += 1
        if self.size > _MAX_PROGRAM:
            raise ValueError("more than this computes")
        return self.size - 1


def _emit(program: _Program, node: _Node, flags: int) -> None:
    """Append the states of ``node``; the states of what follows it come after them."""
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
    """Expressions, any of which may match; made by :func:`compile_expressions`."""

    def __init__(self, program: _Program) -> None:
        self._program = program
        self._steps: dict[tuple[_States, int, int, str], tuple[_States, bool]] = {}

    def search(self, text: str, budget: Budget) -> bool:
        """Return whether one of the expressions matches somewhere in a line.

        Raises:
            Exhausted: the budget does not suffice.
        """
        budget.work(len(text) // 2 + 1)
        states: _States = frozenset()
        before = _EDGE
        has_assertions = bool(self._program.assertions)
        for place in range(len(text) + 1):
            character = text[place : place + 1]
            after = _neighbour(character) if has_assertions else _OTHER
            step = self._steps.get((states, before, after, character))
            if step is None:
                step = self._step(states, before, after, character, budget)
            states, matched = step
            if matched:
                return True
            before = after
        return False

    def _step(self, states: _States, before: int, after: int, character: str, budget: Budget) -> tuple[_States, bool]:
        """Return the states after ``character``, and whether the match was reached before it."""
        reached = self._closure(states, before, after, budget)
        items = self._program.items
        if character:
            budget.work(len(reached))
        following = (state + 1 for state in reached if state in items and items[state].match(character))
        step = (frozenset(following) if character else frozenset[int]()), self._program.size in reached
        if len(self._steps) >= _MAX_CACHED:
            self._steps.clear()
        self._steps[states, before, after, character] = step
        return step

    def _closure(self, states: _States, before: int, after: int, budget: Budget) -> set[int]:
        """Return the states that can be reached from ``states`` and from the start without a character."""
        program = self._program
        reached: set[int] = set()
        todo = [0, *states]
        while todo:
            state = todo.pop()
            if state in reached:
                continue
            reached.add(state)
            if state in program.forks:
                todo += program.forks[state]
            elif state in program.assertions and _holds(program.assertions[state], before, after):
                todo.append(state + 1)
        budget.work(len(reached))
        return reached


def _neighbour(character: str) -> int:
    if not character:
        return _EDGE
    return _WORD if character.isalnum() or character == "_" else _OTHER


def _holds(kind: str, before: int, after: int) -> bool:
    """Return whether an assertion holds between these neighbours."""
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
    """Compile expressions, any of which may match.

    Args:
        patterns: the expressions, which are basic ones.
        budget: what compiling them is charged to.
        extended: they are extended regular expressions.
        literal: they are texts without operators.
        ignore_case: letters match without regard to case.
        around: assertions that must hold before and after a match: ``("^", "$")`` for whole lines, ``("before",
            "after")`` for whole words.

    Raises:
        ValueError: an expression is not valid, too large, or has something that imgkit does not compute.
        Exhausted: a pattern is too long, or the budget does not suffice.
    """
    nodes: list[_Node] = []
    for pattern in patterns:
        budget.pattern(pattern)
        if literal:
            nodes.append(_Sequence(tuple(_Item(re.escape(character)) for character in pattern)))
        else:
            nodes.append(_Parser(pattern, extended).parse())
    node: _Node = _Choice(tuple(nodes))
    if around is not None:
        node = _Sequence((_Assertion(around[0]), node, _Assertion(around[1])))
    program = _Program(budget)
    _emit(program, node, re.IGNORECASE if ignore_case else 0)
    budget.work(4 * program.size)
    return Regex(program)
