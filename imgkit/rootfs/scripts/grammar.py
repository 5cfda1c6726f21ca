"""The grammar of package scripts: POSIX shell text → syntax tree.

Source: POSIX.1-2017, Shell Command Language (2.2 quoting, 2.6 expansions, 2.7 redirection, 2.9 commands, 2.10 grammar),
plus ``&>file`` of Alpine's ash. The subset suffices for install scripts. Arithmetic, tilde expansion and everything
else outside of it raise :class:`Unsupported`, so that no script is understood in part only.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

from imgkit.rootfs.scripts.syntax import (
    AndOr,
    Body,
    Case,
    Compound,
    For,
    Function,
    Grouping,
    If,
    Pipeline,
    Redirect,
    Redirected,
    Simple,
    While,
)
from imgkit.rootfs.scripts.words import ASSIGNMENT, Scanner, Unsupported, Word

__all__ = ["Unsupported", "parse"]

_MAX_DEPTH = 50
_MAX_REPEATED = 32 << 10  # characters of a text that is kept, as every service reads the same configuration
_FUNCTION = re.compile(r"([A-Za-z_][\w-]*)[ \t]*\([ \t]*\)", re.ASCII)
_RESERVED = re.compile(r"(?:[a-z]+|[{}!])(?=[\s;&|()<>]|$)")
_REDIRECT = re.compile(r"([0-9]?)(<<-|<<|<&|<>|>>|>&|>\||<|>)|(&>)(?!>)")
_ENDS = frozenset({"then", "else", "elif", "fi", "do", "done", "esac", "}"})


def parse(text: str, *, line: int = 1) -> Body:
    """Parse a script.

    Args:
        text: the script.
        line: the number of its first line.

    Raises:
        Unsupported: there is a construct outside the subset, or a syntax error.
    """
    return _parsed_before(text, line) if len(text) <= _MAX_REPEATED else _parsed(text, line)


def _parsed(text: str, line: int) -> Body:
    parser = _Parser(text, line)
    try:
        body = parser.body()
    except RecursionError as cause:
        raise parser.refuse("nesting without end") from cause
    if not parser.at_end():
        raise parser.refuse(f"syntax error near {parser.rest()!r}")
    return body


_parsed_before = lru_cache(maxsize=16)(_parsed)


@dataclass
class _Parser(Scanner):
    """Recursive descent, with one method for each production."""

    text: str
    first_line: int
    pos: int = 0
    body_end: int = 0
    counted: tuple[int, int] = (0, 0)
    depth: int = 0

    def substituted(self) -> Body:
        """Read the statements of ``$(…)`` and the parenthesis that ends it."""
        body = self.body()
        self._expect(")")
        return body

    def subparser(self, text: str, line: int) -> Body:
        """Parse the statements of a backquoted command that begins on ``line``."""
        return parse(text, line=line)

    def body(self) -> Body:
        """Read statements up to the first token that cannot start one."""
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise self.refuse(f"nesting deeper than {_MAX_DEPTH} levels")
        statements: list[AndOr] = []
        while self._starts_command():
            statements.append(self._and_or())
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
        """Return the reserved word that is next, or any other word of small letters; empty if there is none."""
        match = _RESERVED.match(self.text, self.pos)
        return match.group() if match else ""

    def _expect(self, symbol: str) -> None:
        """Consume a reserved word or an operator, which must be next."""
        if symbol.isalpha():
            self.newlines()
        if not self._accept(symbol):
            raise self.refuse(f"syntax error: {symbol!r} expected near {self.rest()!r}")

    def _accept(self, symbol: str) -> bool:
        """Consume a reserved word or an operator if it is next; returns whether it was."""
        self.blanks()
        is_next = self._reserved() == symbol if symbol.isalpha() or symbol in "{}!" else self.peek(symbol)
        if is_next:
            self.pos += len(symbol)
        return is_next

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
        negated = self._accept("!")
        commands = [self._command()]
        while self.blanks() or (self.peek("|") and not self.peek("||")):
            self.pos += 1
            self.newlines()
            commands.append(self._command())
        return Pipeline(tuple(commands), negated)

    def _command(self) -> Redirected:
        function = _FUNCTION.match(self.text, self.pos)
        if function:
            self.pos = function.end()
            self.newlines()
            return Redirected(Function(function[1], self._command()), ())
        compound = self._compound()
        if compound is None:
            return self._simple()
        redirects: list[Redirect] = []
        while self._redirect(redirects):
            pass
        return Redirected(compound, tuple(redirects))

    def _compound(self) -> Compound | None:
        """Read a compound command if one is next."""
        if self._accept("("):
            body = self.body()
            self._expect(")")
            return Grouping(body, subshell=True)
        productions: dict[str, Callable[[], Compound]] = {
            "if": self._if,
            "for": self._for,
            "while": self._while,
            "until": self._while,
            "case": self._case,
            "{": self._group,
        }
        word = self._reserved()
        if word in _ENDS or word == "!":
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
        """Read a condition, ``then`` and a body."""
        condition = self.body()
        self._expect("then")
        return condition, self.body()

    def _loop(self) -> Body:
        """Read the body of a loop, from ``do`` to ``done``."""
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
        """Read the patterns and the body of one arm of a ``case``."""
        self._accept("(")
        patterns: list[Word] = []
        while True:
            self.blanks()
            patterns.append(self.word())
            if not self._accept("|"):
                break
        self._expect(")")
        body = self.body()
        if not self._accept(";;") and self._reserved() != "esac":
            raise self.refuse(f"syntax error: ';;' expected near {self.rest()!r}")
        return tuple(patterns), body

    def _simple(self) -> Redirected:
        """Read assignments, words and redirections up to the end of a simple command."""
        line = self.line
        assignments: list[tuple[str, Word]] = []
        words: list[Word] = []
        redirects: list[Redirect] = []
        while True:
            if self._redirect(redirects):
                continue
            assignment = None if words else ASSIGNMENT.match(self.text, self.pos)
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
        """Append the redirection that is next to ``redirects``; returns False if none is next."""
        self.blanks()
        match = _REDIRECT.match(self.text, self.pos)
        if not match:
            return False
        self.pos = match.end()
        if match[3]:  # &>
            target = self._target()
            redirects += [Redirect(1, ">", target), Redirect(2, ">&", Word.literal("1", self.line))]
            return True
        operator = match[2]
        if operator == "<>":
            raise self.refuse("the redirection <>")
        descriptor = int(match[1] or ("0" if operator.startswith("<") else "1"))
        if operator in ("<<", "<<-"):
            redirects.append(Redirect(descriptor, "<<", self.here_document(strip_tabs=operator == "<<-")))
        else:
            redirects.append(Redirect(descriptor, ">" if operator == ">|" else operator, self._target()))
        return True

    def _target(self) -> Word:
        self.blanks()
        return self.word()
