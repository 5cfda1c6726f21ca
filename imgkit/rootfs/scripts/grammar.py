"""The grammar of package scripts: POSIX shell text → syntax tree.

Source: POSIX.1-2017, Shell Command Language (2.2 quoting, 2.6 expansions, 2.7 redirection, 2.9 commands, 2.10 grammar),
plus ``&>file``, which Alpine's ash knows. What is understood is enough for install scripts; arithmetic, tilde expansion
and the like raise :class:`Unsupported`, so that nothing is ever half understood.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from imgkit.rootfs.scripts.words import Scanner, Unsupported, Word

__all__ = ["Unsupported", "parse"]

_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=", re.ASCII)
_FUNCTION = re.compile(r"([A-Za-z_][\w-]*)[ \t]*\([ \t]*\)", re.ASCII)
_RESERVED = re.compile(r"(?:[a-z]+|[{}!])(?=[\s;&|()<>]|$)")
_REDIRECT = re.compile(r"([0-9]?)(<<-|<<|<&|<>|>>|>&|>\||<|>)|(&>)(?!>)")
_ENDS = frozenset({"then", "else", "elif", "fi", "do", "done", "esac", "}"})


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
    condition: Body
    body: Body
    until: bool


@dataclass(frozen=True, slots=True)
class Case:
    subject: Word
    arms: tuple[tuple[tuple[Word, ...], Body], ...]


@dataclass(frozen=True, slots=True)
class Grouping:
    body: Body
    subshell: bool


@dataclass(frozen=True, slots=True)
class Function:
    name: str
    body: Redirected


Command: TypeAlias = Simple | If | For | While | Case | Grouping | Function


@dataclass(frozen=True, slots=True)
class Redirected:
    """A command of any kind with its redirections."""

    command: Command
    redirects: tuple[Redirect, ...]


@dataclass(frozen=True, slots=True)
class Pipeline:
    commands: tuple[Redirected, ...]
    negated: bool


@dataclass(frozen=True, slots=True)
class AndOr:
    """``first``, then pairs of ``&&`` or ``||`` and what follows; all of it in the background if an ``&`` ends it."""

    first: Pipeline
    rest: tuple[tuple[str, Pipeline], ...]
    background: bool = False


Body: TypeAlias = tuple[AndOr, ...]


def parse(text: str, *, line: int = 1) -> Body:
    """The statements of a script.

    Args:
        text: the script.
        line: the number of its first line.

    Raises:
        Unsupported: a construct outside the subset, or a syntax error.
    """
    parser = _Parser(text, line)
    try:
        body = parser.body()
    except RecursionError as cause:
        raise parser.refuse("nesting without end") from cause
    if not parser.at_end():
        raise parser.refuse(f"syntax error near {parser.rest()!r}")
    return body


@dataclass
class _Parser(Scanner):
    """Recursive descent, one method a production."""

    text: str
    first_line: int = 1
    pos: int = 0
    body_end: int = 0
    counted: tuple[int, int] = (0, 0)
    depth: int = field(default=0)

    def substituted(self) -> object:
        """The statements of ``$(…)`` up to its parenthesis, which is consumed."""
        body = self.body()
        self._expect(")")
        return body

    def subparser(self, text: str, line: int) -> object:
        """The statements of a backquoted command that begins on ``line``."""
        return parse(text, line=line)

    def body(self) -> Body:
        """Statements up to whatever cannot start one."""
        self.depth += 1
        if self.depth > 50:
            raise self.refuse("nesting deeper than 50 levels")
        statements: list[AndOr] = []
        while self._starts_command():
            statements.append(self._and_or())
            self.blanks()
            if self.peek(";") and not self.peek(";;"):
                self.pos += 1
            elif self.peek("&"):
                self.pos += 1
                statements[-1] = replace(statements[-1], background=True)
            elif not self.peek("\n"):
                break
        self.depth -= 1
        return tuple(statements)

    def _starts_command(self) -> bool:
        self.newlines()
        return not (self.at_end() or self.peek(")") or self.peek(";") or self._reserved() in _ENDS)

    def _reserved(self) -> str:
        found = _RESERVED.match(self.text, self.pos)
        return found.group() if found else ""

    def _expect(self, symbol: str) -> None:
        if symbol.isalpha() or symbol in ")}":
            self.newlines()
        if not self._accept(symbol):
            raise self.refuse(f"syntax error: {symbol!r} expected near {self.rest()!r}")

    def _accept(self, symbol: str) -> bool:
        """Consume a reserved word or an operator if it is next."""
        self.blanks()
        found = self._reserved() == symbol if symbol.isalpha() or symbol in "{}!" else self.peek(symbol)
        if found:
            self.pos += len(symbol)
        return found

    def _and_or(self) -> AndOr:
        first = self._pipeline()
        rest: list[tuple[str, Pipeline]] = []
        while True:
            self.blanks()
            operator = self.text[self.pos : self.pos + 2]
            if operator not in ("&&", "||"):
                return AndOr(first, tuple(rest))
            self.pos += 2
            self.newlines()
            rest.append((operator, self._pipeline()))

    def _pipeline(self) -> Pipeline:
        negated = False
        while self._accept("!"):
            negated = not negated
        commands = [self._command()]
        while self.blanks() or (self.peek("|") and not self.peek("||")):
            self.pos += 1
            self.newlines()
            commands.append(self._command())
        return Pipeline(tuple(commands), negated)

    def _command(self) -> Redirected:
        self.blanks()
        function = _FUNCTION.match(self.text, self.pos)
        if function:
            self.pos = function.end()
            self.newlines()
            return Redirected(Function(function.group(1), self._command()), ())
        compound = self._compound()
        if compound is None:
            return self._simple()
        redirects: list[Redirect] = []
        while self._redirect(redirects):
            pass
        return Redirected(compound, tuple(redirects))

    def _compound(self) -> Command | None:
        if self._accept("("):
            body = self.body()
            self._expect(")")
            return Grouping(body, subshell=True)
        productions: dict[str, Callable[[], Command]] = {
            "if": self._if,
            "for": self._for,
            "while": self._while,
            "until": self._while,
            "case": self._case,
            "{": self._group,
        }
        word = self._reserved()
        if word in _ENDS:
            raise self.refuse(f"syntax error: unexpected {word!r}")
        return productions[word]() if word in productions else None

    def _group(self) -> Grouping:
        self._expect("{")
        body = self.body()
        self._expect("}")
        return Grouping(body, subshell=False)

    def _if(self) -> If:
        self._expect("if")
        branches = [self._branch()]
        while self._accept("elif"):
            branches.append(self._branch())
        otherwise = self.body() if self._accept("else") else ()
        self._expect("fi")
        return If(tuple(branches), otherwise)

    def _branch(self) -> tuple[Body, Body]:
        condition = self.body()
        self._expect("then")
        body = self.body()
        self.newlines()
        return condition, body

    def _loop(self) -> Body:
        self._expect("do")
        body = self.body()
        self._expect("done")
        return body

    def _while(self) -> While:
        until = self._reserved() == "until"
        self.pos += 5
        condition = self.body()
        return While(condition, self._loop(), until)

    def _for(self) -> For:
        self._expect("for")
        name = self.name()
        self.newlines()
        words: list[Word] | None = None
        if self._accept("in"):
            words = self._words()
        self.blanks()
        if self.peek(";"):
            self.pos += 1
        return For(name, None if words is None else tuple(words), self._loop())

    def _words(self) -> list[Word]:
        words: list[Word] = []
        while self.blanks() or not self.at_delimiter():
            words.append(self.word())
        return words

    def _case(self) -> Case:
        self._expect("case")
        self.blanks()
        subject = self.word()
        self._expect("in")
        self.newlines()
        arms: list[tuple[tuple[Word, ...], Body]] = []
        while self._reserved() != "esac":
            arms.append(self._arm())
            self.newlines()
        self._expect("esac")
        return Case(subject, tuple(arms))

    def _arm(self) -> tuple[tuple[Word, ...], Body]:
        self._accept("(")
        patterns: list[Word] = []
        while True:
            self.blanks()
            patterns.append(self.word())
            if not self._accept("|"):
                break
        self._expect(")")
        body = self.body()
        self.newlines()
        if not self._accept(";;") and self._reserved() != "esac":
            raise self.refuse(f"syntax error: ';;' expected near {self.rest()!r}")
        return tuple(patterns), body

    def _simple(self) -> Redirected:
        line = self.line
        assignments: list[tuple[str, Word]] = []
        words: list[Word] = []
        redirects: list[Redirect] = []
        while True:
            self.blanks()
            if self._redirect(redirects):
                continue
            assignment = None if words else _ASSIGNMENT.match(self.text, self.pos)
            if assignment:
                self.pos = assignment.end()
                assignments.append((assignment.group()[:-1], self.word(optional=True)))
            elif self.at_delimiter():
                break
            else:
                words.append(self.word())
        if not (assignments or words or redirects) or self.peek("("):
            raise self.refuse(f"syntax error near {self.rest()!r}")
        return Redirected(Simple(line, tuple(assignments), tuple(words)), tuple(redirects))

    def _redirect(self, redirects: list[Redirect]) -> bool:
        """Read one redirection into ``redirects``, if one is next."""
        self.blanks()
        found = _REDIRECT.match(self.text, self.pos)
        if not found:
            return False
        self.pos = found.end()
        if found.group(3):
            target = self._target()
            both = Word((), self.line).literal("1", self.line)
            redirects += [Redirect(1, ">", target), Redirect(2, ">&", both)]
            return True
        operator = found.group(2)
        if operator == "<>":
            raise self.refuse("the redirection <>")
        descriptor = int(found.group(1) or ("0" if operator.startswith("<") else "1"))
        if operator in ("<<", "<<-"):
            redirects.append(Redirect(descriptor, "<<", self.here_document(strip_tabs=operator == "<<-")))
        else:
            redirects.append(Redirect(descriptor, ">" if operator == ">|" else operator, self._target()))
        return True

    def _target(self) -> Word:
        self.blanks()
        return self.word()
