"""Expansion of words (POSIX.1-2017, 2.6): parameters, command substitution, field splitting, pathnames in the Tree."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from imgkit.rootfs.scripts.budget import PIECE, Budget, whole_number
from imgkit.rootfs.scripts.pathnames import WILDCARD, expand_pathname
from imgkit.rootfs.scripts.state import Failed, ShellState
from imgkit.rootfs.scripts.words import Literal, Parameter, Part, Unsupported, Word

if TYPE_CHECKING:
    from imgkit.rootfs.scripts.syntax import Body

_SPECIAL = re.compile(r"[\\*?\[\]!^-]")  # characters that have a meaning in a pattern
FIRST_JOB = 1001
"""The value of ``$!`` after the first command in the background; scripts can do nothing with it but ``wait``."""
_UNPREDICTABLE = frozenset({"$", "-", "RANDOM", "PPID", "LINENO", "EPOCHSECONDS", "EPOCHREALTIME"})

_Chunk: TypeAlias = tuple[str, bool]  # a text, and whether it was quoted


class _Fields:
    """The fields that a word becomes: those that are complete, and the ``current`` one if it has begun."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.complete: list[list[_Chunk]] = []
        self.current: list[_Chunk] | None = None

    def text(self, text: str, *, quoted: bool) -> None:
        """Append a text to the current field; even an empty one makes it a field."""
        self._budget.memory(PIECE)
        if self.current is None:
            self.current = []
        self.current.append((text, quoted))

    def split(self, text: str) -> None:
        """Append the result of an unquoted expansion, in which blanks and newlines separate fields."""
        self._budget.memory(2 * len(text) + PIECE * sum(map(text.count, " \t\n")))
        for index, piece in enumerate(re.split(r"[ \t\n]+", text)):
            if index:
                self.end()
            if piece:
                self.text(piece, quoted=False)

    def end(self) -> None:
        """Complete the current field, if there is one."""
        if self.current is not None:
            self.complete.append(self.current)
        self.current = None


class Expander(ABC):
    """Turns words of a script into fields, texts or patterns.

    Attributes:
        state: the files that pathnames are looked for in.
        variables: the values of variables.
        arguments: the positional parameters.
        status: the exit status of the last command, ``$?``.
        jobs: the exit statuses of the commands in the background.
        options: the options that ``set`` has switched on; ``nounset`` counts here.
    """

    state: ShellState
    variables: dict[str, str]
    arguments: list[str]
    status: int
    jobs: list[int]
    options: set[str]

    @abstractmethod
    def capture(self, body: Body) -> str:
        """Run the commands of ``$(…)``, and return what they write."""

    def fields(self, words: Sequence[Word]) -> list[str]:
        """Expand words to the arguments of a command."""
        arguments: list[str] = []
        for word in words:
            fields = _Fields(self.state.budget)
            for part in word.parts:
                self._expand(part, fields)
            fields.end()
            for field in fields.complete:
                arguments += self._pathnames(field)
        return arguments

    def text(self, word: Word) -> str:
        """Expand a word to one text, without splitting or pathnames (assignments, redirections, ``case`` subjects)."""
        return self.state.budget.joined([text for text, _ in self._chunks(word)])

    def pattern(self, word: Word) -> str:
        """Expand a word to a shell pattern in which quoted characters stand for themselves."""
        return self._as_pattern(self._chunks(word))

    def _as_pattern(self, chunks: Sequence[_Chunk]) -> str:
        self.state.budget.memory(4 * sum(len(text) for text, _ in chunks))
        return "".join(_SPECIAL.sub(r"\\\g<0>", text) if quoted else text for text, quoted in chunks)

    def matches(self, word: Word, text: str) -> bool:
        """Return whether ``text`` matches the pattern ``word``."""
        return self.state.matcher(self.pattern(word))(text)

    def _chunks(self, word: Word) -> list[_Chunk]:
        """Return the expansions of a word's parts, without field splitting."""
        chunks: list[_Chunk] = []
        for part in word.parts:
            if isinstance(part, Literal):
                chunks.append((part.text, part.quoted))
            elif isinstance(part, Parameter):
                value = self._all_arguments() if _is_all_arguments(part) else self._parameter(part)
                chunks.append((value, part.quoted))
            else:
                chunks.append((self.capture(part.body), part.quoted))
        return chunks

    def _expand(self, part: Part, fields: _Fields) -> None:
        """Append the expansion of a word's part to fields."""
        if isinstance(part, Literal):
            fields.text(part.text, quoted=part.quoted)
        elif isinstance(part, Parameter) and _is_all_arguments(part):
            self._expand_arguments(part, fields)
        elif isinstance(part, Parameter) and not part.quoted and part.word is not None and part.operator[-1] in "-+":
            self._expand_default(part, part.word, fields)
        else:
            value = self._parameter(part) if isinstance(part, Parameter) else self.capture(part.body)
            if part.quoted:
                fields.text(value, quoted=True)
            else:
                fields.split(value)

    def _expand_arguments(self, part: Parameter, fields: _Fields) -> None:
        """Append the expansion of ``$@``, ``$*``, ``"$@"`` or ``"$*"``."""
        if part.quoted and part.name == "*":
            fields.text(self._all_arguments(), quoted=True)
            return
        for index, argument in enumerate(self.arguments):
            if index:
                fields.end()
            if part.quoted:
                fields.text(argument, quoted=True)
            else:
                fields.split(argument)

    def _expand_default(self, part: Parameter, word: Word, fields: _Fields) -> None:
        """Append ``${name:-word}`` or ``${name:+word}`` outside of quotes; unquoted text in the word is split."""
        if _uses_word(part, self.value(part.name)):
            for inner in word.parts:
                if isinstance(inner, Literal) and not inner.quoted:
                    fields.split(inner.text)
                else:
                    self._expand(inner, fields)
        elif part.operator[-1] == "-":
            fields.split(self.value(part.name) or "")

    def _all_arguments(self) -> str:
        return self.state.budget.joined(self.arguments, " ")

    def value(self, name: str) -> str | None:
        """Return the value of a parameter, None if it is unset.

        Raises:
            Unsupported: its value differs from run to run.
        """
        if name.isdecimal() and name != "0":
            index = (whole_number(name) or 0) - 1
            return self.arguments[index] if 0 <= index < len(self.arguments) else None
        if name in _UNPREDICTABLE or name == "0":
            raise Unsupported(f"the parameter ${name}")
        if name in ("@", "*"):
            return self._all_arguments()
        special = {"#": len(self.arguments), "?": self.status}
        if self.jobs:
            special["!"] = FIRST_JOB + len(self.jobs) - 1
        return str(special[name]) if name in special else self.variables.get(name)

    def _parameter(self, part: Parameter) -> str:
        """Return the expansion of a parameter with its operator."""
        value = self.value(part.name)
        if part.word is None:
            if value is None and "nounset" in self.options:
                raise Failed(f"{part.name}: parameter not set", 2)
            return str(len(value or "")) if part.operator == "length" else value or ""
        if part.operator[0] in "#%":
            return self._trimmed(value or "", part.operator, self.pattern(part.word))
        if not _uses_word(part, value):
            return "" if part.operator[-1] == "+" else value or ""
        text = self.text(part.word)
        if part.operator[-1] == "?":
            raise Failed(f"{part.name}: {text or 'parameter not set'}", 2)
        if part.operator[-1] == "=":
            self.variables[part.name] = text
        return text

    def _trimmed(self, value: str, operator: str, text: str) -> str:
        """Return ``value`` without the shortest (``#``, ``%``) or longest prefix or suffix that matches a pattern."""
        pattern = self.state.pattern(text)
        self.state.budget.scan(len(value), len(text) + 16)
        longest = len(operator) > 1
        if operator[0] == "#":
            size = pattern.prefix(value, longest=longest) or 0
            return self.state.budget.text(value[size:])
        size = pattern.suffix(value, longest=longest) or 0
        return self.state.budget.text(value[: len(value) - size])

    def _pathnames(self, field: Sequence[_Chunk]) -> list[str]:
        """Return the paths that match a field; the field itself if it has no wildcards or nothing matches."""
        plain = self.state.budget.joined([text for text, _ in field])
        if not any(not quoted and WILDCARD.search(text) for text, quoted in field):
            return [plain]
        return expand_pathname(self.state, self._as_pattern(field)) or [plain]


def _is_all_arguments(part: Parameter) -> bool:
    return part.name in "@*" and not part.operator


def _uses_word(part: Parameter, value: str | None) -> bool:
    """Return whether ``${name-word}`` and its like stand for the word; a colon makes an empty value count as unset."""
    is_unset = value is None or (value == "" and part.operator[0] == ":")
    return is_unset != (part.operator[-1] == "+")
