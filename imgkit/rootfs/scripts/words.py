"""Words of shell text: quoting, parameter expansion, command substitution, here-documents (POSIX.1-2017, 2.2–2.7)."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from imgkit.rootfs.scripts.syntax import Body

_PARAMETER = re.compile(r"[A-Za-z_]\w*|[0-9@*#?$!-]", re.ASCII)
_BRACED = re.compile(r"\{(#?)([A-Za-z_]\w*|[0-9]+|[@*#?$!-])(:?[-=?+]|##|#|%%|%|\})", re.ASCII)
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_BLANKS = re.compile(r"(?:[ \t]+|\\\n|#[^\n]*)*")
ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=", re.ASCII)
_DELIMITERS = frozenset(" \t\n;&|()<>")
_ESCAPED_IN_QUOTES = frozenset('$`"\\')


class Unsupported(Exception):  # noqa: N818 - a verdict on the script rather than an error in it
    """A script contains something that imgkit does not compute.

    Args:
        construct: describes it in words.
        line: number of the script's line; 0 if only the caller knows it.
        where: name of the package and of the script.
    """

    def __init__(self, construct: str, *, line: int = 0, where: str = "") -> None:
        super().__init__(f"{where}{', ' if where else ''}line {line}: {construct}")
        self.construct = construct
        self.line = line


@dataclass(frozen=True, slots=True)
class Literal:
    """Literal text; ``quoted`` text is neither split nor a pattern."""

    text: str
    quoted: bool = False


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter, ``$name`` or ``${name<operator>word}``; the operator of ``${#name}`` is ``length``."""

    name: str
    operator: str = ""
    word: Word | None = None
    quoted: bool = False


@dataclass(frozen=True, slots=True)
class Substitution:
    """A command substitution, ``$(…)`` or backquotes. :func:`imgkit.rootfs.scripts.grammar.parse` makes ``body``."""

    body: Body
    quoted: bool


Part: TypeAlias = Literal | Parameter | Substitution


@dataclass(frozen=True, slots=True)
class Word:
    """Parts without blanks between them, and the number of the ``line`` that they begin on."""

    parts: tuple[Part, ...]
    line: int

    @staticmethod
    def literal(text: str, line: int) -> Word:
        """Return a word that consists of the quoted text ``text``."""
        return Word((Literal(text, quoted=True),), line)

    @property
    def is_assignment(self) -> bool:
        """Whether the word begins with the unquoted name of a variable and an equals sign."""
        first = self.parts[0]
        return isinstance(first, Literal) and not first.quoted and ASSIGNMENT.match(first.text) is not None


class Scanner(ABC):
    """Reads words and tokens of shell text from a position on.

    Attributes:
        text: the text.
        first_line: the number of its first line.
        pos: the position, an index of ``text``.
        body_end: where the here-documents of the present line end; 0 if it has none.
        counted: a position, and how many newlines are before it.
    """

    text: str
    first_line: int
    pos: int
    body_end: int
    counted: tuple[int, int]

    @abstractmethod
    def substituted(self) -> Body:
        """Read the statements of ``$(…)`` from behind its opening parenthesis to its closing one."""

    @abstractmethod
    def subparser(self, text: str, line: int) -> Body:
        """Parse the statements between backquotes, which begin on ``line``."""

    @property
    def line(self) -> int:
        """The number of the present line."""
        return self._line_at(self.pos)

    def _line_at(self, position: int) -> int:
        """Return the number of a position's line. The count of newlines up to the last position is cached."""
        start, newlines = self.counted if position >= self.counted[0] else (0, 0)
        newlines += self.text.count("\n", start, position)
        self.counted = position, newlines
        return self.first_line + newlines

    def refuse(self, construct: str) -> Unsupported:
        """Return the exception for a construct at this position."""
        return Unsupported(construct, line=self.line)

    def at_end(self) -> bool:
        """Return whether the text ends here."""
        return self.pos >= len(self.text)

    def peek(self, token: str) -> bool:
        """Return whether ``token`` is next."""
        return self.text.startswith(token, self.pos)

    def rest(self) -> str:
        """Return up to 30 characters of the rest of this line, for messages."""
        return self.text[self.pos : self.pos + 30].partition("\n")[0]

    def at_delimiter(self) -> bool:
        """Return whether a word ends here: at a blank, a newline, an operator or the end."""
        return self.at_end() or self.text[self.pos] in _DELIMITERS

    def blanks(self) -> bool:
        """Skip blanks, line continuations and a comment. Return False, so that the call can stand in a condition."""
        self.pos = next(_BLANKS.finditer(self.text, self.pos)).end()
        return False

    def newlines(self) -> None:
        """Skip blanks and newlines, and here-documents that start behind them."""
        self.blanks()
        while self.peek("\n"):
            self.pos = self.body_end or self.pos + 1
            self.body_end = 0
            self.blanks()

    def name(self) -> str:
        """Read the name of a variable."""
        self.blanks()
        match = _NAME.match(self.text, self.pos)
        if not match:
            raise self.refuse(f"syntax error: a name expected near {self.rest()!r}")
        self.pos = match.end()
        return match.group()

    def word(self, *, optional: bool = False) -> Word:
        """Read a word; an empty one only if it is ``optional`` (the value of an assignment)."""
        line = self.line
        if self.peek("~"):
            raise self.refuse("tilde expansion")
        parts: list[Part] = []
        while not self.at_delimiter():
            self._part(parts)
        if not parts and not optional:
            raise self.refuse(f"syntax error: a word expected near {self.rest()!r}")
        return Word(_merged(parts), line)

    def _part(self, parts: list[Part]) -> None:
        """Read the next part of unquoted text."""
        character = self.text[self.pos]
        if character == "\\":
            self._backslash(parts)
        elif character == "'":
            end = self._closing("'", self.pos + 1)
            parts.append(Literal(self.text[self.pos + 1 : end], quoted=True))
            self.pos = end + 1
        elif character == '"':
            self.pos += 1
            inside: list[Part] = []
            self._double_quoted(inside, '"')
            parts += inside or [Literal("", quoted=True)]  # of quoted text, only "$@" may become no field at all
        elif character in "$`":
            self._expansion(parts, quoted=False)
        else:
            parts.append(Literal(character))
            self.pos += 1

    def _backslash(self, parts: list[Part]) -> None:
        """Read a backslash with the character that it quotes; before a newline both are skipped."""
        if not self.peek("\\\n"):
            parts.append(Literal(self.text[self.pos + 1 : self.pos + 2] or "\\", quoted=True))
        self.pos = min(self.pos + 2, len(self.text))

    def _closing(self, quote: str, start: int) -> int:
        """Return the position of the next ``quote``."""
        end = self.text.find(quote, start)
        if end < start:
            raise self.refuse(f"syntax error: unterminated {quote}")
        if self.body_end and "\n" in self.text[start:end]:
            raise self.refuse("a quoted newline on the line of a here-document")
        return end

    def _double_quoted(self, parts: list[Part], end: str) -> None:
        """Read text in double quotes up to ``end`` (empty: the end of the text), which is consumed."""
        while not (end and self.peek(end)):
            if self.at_end():
                if end:
                    raise self.refuse(f"syntax error: unterminated {end}")
                return
            self._quoted_part(parts, _ESCAPED_IN_QUOTES if end == '"' else _ESCAPED_IN_QUOTES - {'"'})
        self.pos += len(end)

    def _quoted_part(self, parts: list[Part], escaped: frozenset[str]) -> None:
        """Read the next part of text in double quotes; a backslash quotes the characters of ``escaped`` only."""
        character = self.text[self.pos]
        following = self.text[self.pos + 1 : self.pos + 2]
        if character == "\n" and self.body_end:
            raise self.refuse("a quoted newline on the line of a here-document")
        if character == "\\" and (following in escaped or following == "\n"):
            if following != "\n":
                parts.append(Literal(following, quoted=True))
            self.pos += 2
        elif character in "$`":
            self._expansion(parts, quoted=True)
        else:
            parts.append(Literal(character, quoted=True))
            self.pos += 1

    def _expansion(self, parts: list[Part], *, quoted: bool) -> None:
        """Read an expansion, which begins with ``$`` or a backquote."""
        if self.peek("`"):
            line = self.line
            parts.append(Substitution(self.subparser(self._backquoted(), line), quoted))
            return
        if self.peek("$(("):
            raise self.refuse("arithmetic expansion")
        self.pos += 1
        if self.peek("("):
            self.pos += 1
            parts.append(Substitution(self.substituted(), quoted))
        elif self.peek("{"):
            parts.append(self._braced(quoted=quoted))
        elif self.peek("'") and not quoted:
            raise self.refuse("the quoting $'…'")
        else:
            self._named(parts, quoted=quoted)

    def _named(self, parts: list[Part], *, quoted: bool) -> None:
        """Read the name of a parameter behind ``$``; without one the ``$`` is itself."""
        match = _PARAMETER.match(self.text, self.pos)
        if match:
            parts.append(Parameter(match.group(), quoted=quoted))
            self.pos = match.end()
        else:
            parts.append(Literal("$", quoted=quoted))

    def _backquoted(self) -> str:
        """Read text in backquotes; its own backslashes are removed."""
        end = self.pos + 1
        while end < len(self.text) and self.text[end] != "`":
            end += 2 if self.text[end] == "\\" else 1
        inside = self.text[self.pos + 1 : end]
        if end >= len(self.text):
            raise self.refuse("syntax error: unterminated `")
        self.pos = end + 1
        return re.sub(r"\\([$`\\])", r"\1", inside)

    def _braced(self, *, quoted: bool) -> Parameter:
        """Read ``{name}``, ``{#name}`` or ``{name<operator>word}``."""
        match = _BRACED.match(self.text, self.pos)
        if not match or (match[1] and match[3] != "}"):
            raise self.refuse(f"the expansion ${self.rest()}")
        length, name, operator = match.groups()
        self.pos = match.end()
        if operator == "}":
            return Parameter(name, "length" if length else "", quoted=quoted)
        return Parameter(name, operator, self._braced_word(quoted=quoted and operator[0] not in "#%"), quoted)

    def _braced_word(self, *, quoted: bool) -> Word:
        """Read the word behind an operator, and the brace that ends it."""
        line = self.line
        parts: list[Part] = []
        while not self.peek("}"):
            if self.at_end():
                raise self.refuse("syntax error: unterminated ${")
            if quoted and not self.peek('"'):
                self._quoted_part(parts, _ESCAPED_IN_QUOTES | {"}"})
            else:
                self._part(parts)
        self.pos += 1
        return Word(_merged(parts), line)

    def here_document(self, *, strip_tabs: bool) -> Word:
        """Read the delimiter of a here-document, and the document, which begins on the next line."""
        self.blanks()
        parts = self.word().parts
        if not all(isinstance(part, Literal) for part in parts):
            raise self.refuse("an expansion in the delimiter of a here-document")
        quoted = any(isinstance(part, Literal) and part.quoted for part in parts)
        delimiter = "".join(part.text for part in parts if isinstance(part, Literal))
        start = self.body_end or self.text.find("\n", self.pos) + 1 or len(self.text)
        document, self.body_end = self._until(delimiter, start, strip_tabs=strip_tabs)
        line = self._line_at(start)
        return Word.literal(document, line) if quoted else self._expanded(document, line)

    def _until(self, delimiter: str, start: int, *, strip_tabs: bool) -> tuple[str, int]:
        """Return the lines from ``start`` up to the line that is the delimiter, and the position after it."""
        lines: list[str] = []
        position = start
        while position < len(self.text) or not lines:
            end = self.text.find("\n", position) + 1 or len(self.text)
            line, position = self.text[position:end], end
            kept = line.lstrip("\t") if strip_tabs else line
            if kept.rstrip("\n") == delimiter:
                return "".join(lines), position
            lines.append(kept)
        raise self.refuse(f"syntax error: here-document without its {delimiter}")

    def _expanded(self, document: str, line: int) -> Word:
        """Parse a here-document with expansions, as if it were in double quotes."""
        inner = type(self)(document, line)  # type: ignore[call-arg]
        parts: list[Part] = []
        inner._double_quoted(parts, "")
        return Word(_merged(parts), line)


def _merged(parts: list[Part]) -> tuple[Part, ...]:
    """Return ``parts`` with neighbouring literal text of the same kind joined."""
    merged: list[Part] = []
    for quoted, group in groupby(parts, lambda part: part.quoted if isinstance(part, Literal) else None):
        if quoted is None:
            merged += group
        else:
            merged.append(Literal("".join(part.text for part in group if isinstance(part, Literal)), quoted))
    return tuple(merged)
