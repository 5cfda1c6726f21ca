"""The syntax tree of a script: records that :mod:`imgkit.rootfs.scripts.grammar` makes and the interpreter runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from imgkit.rootfs.scripts.words import Word


@dataclass(frozen=True, slots=True)
class Redirect:
    """``descriptor`` operator ``target``; for ``<<`` the target is the here-document itself."""

    descriptor: int
    operator: str
    target: Word


@dataclass(frozen=True, slots=True)
class Simple:
    """Assignments, then a command with its arguments."""

    line: int
    assignments: tuple[tuple[str, Word], ...]
    words: tuple[Word, ...]


@dataclass(frozen=True, slots=True)
class If:
    """``branches`` are (condition, body) of ``if`` and each ``elif``; ``otherwise`` is empty without an ``else``."""

    branches: tuple[tuple[Body, Body], ...]
    otherwise: Body


@dataclass(frozen=True, slots=True)
class For:
    """``words`` is None where the loop is over the positional parameters."""

    variable: str
    words: tuple[Word, ...] | None
    body: Body


@dataclass(frozen=True, slots=True)
class While:
    """``while`` or, where ``until`` is set, ``until``."""

    condition: Body
    body: Body
    until: bool


@dataclass(frozen=True, slots=True)
class Case:
    """``arms`` are (patterns, body); the first arm with a pattern that matches is run."""

    subject: Word
    arms: tuple[tuple[tuple[Word, ...], Body], ...]


@dataclass(frozen=True, slots=True)
class Grouping:
    """``{ …; }`` or, where ``subshell`` is set, ``( … )``."""

    body: Body
    subshell: bool


@dataclass(frozen=True, slots=True)
class Function:
    """The definition of a function."""

    name: str
    body: Redirected


Compound: TypeAlias = If | For | While | Case | Grouping | Function


@dataclass(frozen=True, slots=True)
class Redirected:
    """A command of any kind with its redirections."""

    command: Simple | Compound
    redirects: tuple[Redirect, ...]


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Commands between ``|``; ``negated`` by an odd number of ``!``."""

    commands: tuple[Redirected, ...]
    negated: bool


@dataclass(frozen=True, slots=True)
class AndOr:
    """``first``, then pairs of ``&&`` or ``||`` and a pipeline; in the ``background`` if an ``&`` ends it."""

    first: Pipeline
    rest: tuple[tuple[str, Pipeline], ...]
    background: bool = False


Body: TypeAlias = tuple[AndOr, ...]
