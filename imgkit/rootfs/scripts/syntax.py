"""The syntax tree of a script: records that :mod:`imgkit.rootfs.scripts.grammar` makes and the interpreter runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from imgkit.rootfs.scripts.words import Word


@dataclass(frozen=True, slots=True)
class Redirect:
    """A redirection: ``descriptor`` operator ``target``. The target of ``<<`` is the here-document itself."""

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
    """``if``: ``branches`` are its (condition, body) and those of each ``elif``; ``otherwise`` is the ``else`` part."""

    branches: tuple[tuple[Body, Body], ...]
    otherwise: Body


@dataclass(frozen=True, slots=True)
class For:
    """``for``: a loop over ``words``, or over the positional parameters if ``words`` is None."""

    variable: str
    words: tuple[Word, ...] | None
    body: Body


@dataclass(frozen=True, slots=True)
class While:
    """A ``while`` loop, or an ``until`` loop if ``until`` is set."""

    condition: Body
    body: Body
    until: bool


@dataclass(frozen=True, slots=True)
class Case:
    """``case``: ``arms`` are (patterns, body), of which the first with a matching pattern is run."""

    subject: Word
    arms: tuple[tuple[tuple[Word, ...], Body], ...]


@dataclass(frozen=True, slots=True)
class Grouping:
    """A group ``{ …; }``, or a subshell ``( … )`` if ``subshell`` is set."""

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
    """Commands that are joined by ``|``; a ``!`` makes the pipeline ``negated``."""

    commands: tuple[Redirected, ...]
    negated: bool


@dataclass(frozen=True, slots=True)
class AndOr:
    """A list: ``first``, then pairs of ``&&`` or ``||`` and a pipeline. A final ``&`` puts it in the ``background``."""

    first: Pipeline
    rest: tuple[tuple[str, Pipeline], ...]
    background: bool = False


Body: TypeAlias = tuple[AndOr, ...]
