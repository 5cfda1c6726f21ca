"""Expansion of words (POSIX.1-2017, 2.6): parameters, command substitution, field splitting, pathnames in the Tree."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence

from imgkit.rootfs.scripts.budget import PIECE, Budget, whole_number
from imgkit.rootfs.scripts.state import Failed, ShellState
from imgkit.rootfs.scripts.words import Literal, Parameter, Substitution, Unsupported, Word

_MAGIC = re.compile(r"[*?\[]")
_QUOTED = re.compile(r"\\.", re.DOTALL)
_SPECIAL = re.compile(r"[\\*?\[\]!^-]")
FIRST_JOB = 1001  # what $! is after the first command in the background; just something for wait
_UNPREDICTABLE = frozenset({"$", "-", "RANDOM", "PPID", "LINENO", "EPOCHSECONDS", "EPOCHREALTIME"})


class _Fields:
    """Fields in the making; each is a list of (text, whether it was quoted)."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.done: list[list[tuple[str, bool]]] = []
        self.current: list[tuple[str, bool]] | None = None

    def text(self, text: str, *, quoted: bool) -> None:
        self._budget.memory(PIECE)
        if self.current is None:
            self.current = []
        self.current.append((text, quoted))

    def split(self, text: str) -> None:
        """The result of an unquoted expansion."""
        self._budget.memory(2 * len(text) + PIECE * sum(map(text.count, " \t\n")))
        for index, piece in enumerate(re.split(r"[ \t\n]+", text)):
            if index:
                self.end()
            if piece:
                self.text(piece, quoted=False)

    def end(self) -> None:
        if self.current is not None:
            self.done.append(self.current)
        self.current = None


class Expander(ABC):
    """Words of a script as fields, texts or patterns."""

    state: ShellState
    variables: dict[str, str]
    arguments: list[str]
    status: int
    jobs: list[int]  # how each command in the background ended
    nounset: bool

    @abstractmethod
    def capture(self, body: object) -> str:
        """What the commands of ``$(…)`` write."""

    def fields(self, words: Sequence[Word]) -> list[str]:
        """Words as arguments of a command."""
        result: list[str] = []
        for word in words:
            fields = _Fields(self.state.budget)
            for part in word.parts:
                self._expand(part, fields)
            fields.end()
            for field in fields.done:
                result += self._pathnames(field)
        return result

    def text(self, word: Word) -> str:
        """A word as one text: no splitting, no pathnames (assignments, redirections, ``case`` subjects)."""
        return self._joined([text for text, _ in self._chunks(word)])

    def _joined(self, texts: Sequence[str], between: str = "") -> str:
        """Texts as one, charged before it is made."""
        self.state.budget.memory(sum(map(len, texts)) + len(between) * len(texts))
        return self.state.budget.text(between.join(texts))

    def pattern(self, word: Word) -> str:
        """A word as a shell pattern in which quoted characters stand for themselves."""
        return self._quoted(self._chunks(word))

    def _quoted(self, chunks: Sequence[tuple[str, bool]]) -> str:
        """Chunks as a pattern."""
        self.state.budget.memory(4 * sum(len(text) for text, _ in chunks))
        return "".join(_SPECIAL.sub(r"\\\g<0>", text) if quoted else text for text, quoted in chunks)

    def matches(self, word: Word, text: str) -> bool:
        """Whether ``text`` matches the pattern ``word``."""
        return self.state.matcher(self.pattern(word))(text)

    def _chunks(self, word: Word) -> list[tuple[str, bool]]:
        chunks: list[tuple[str, bool]] = []
        for part in word.parts:
            if isinstance(part, Literal):
                chunks.append((part.text, part.quoted))
            elif isinstance(part, Parameter) and part.name in "@*" and not part.operator:
                chunks.append((self._joined(self.arguments, " "), part.quoted))
            elif isinstance(part, Parameter):
                chunks.append((self._parameter(part), part.quoted))
            else:
                chunks.append((self.capture(part.body), part.quoted))
        return chunks

    def _expand(self, part: Literal | Parameter | Substitution, fields: _Fields) -> None:
        if isinstance(part, Literal):
            fields.text(part.text, quoted=part.quoted)
        elif isinstance(part, Parameter) and part.name in "@*" and not part.operator:
            self._all_arguments(part, fields)
        elif isinstance(part, Parameter) and not part.quoted and part.word is not None and part.operator[-1] in "-+":
            self._default(part, fields)
        else:
            value = self._parameter(part) if isinstance(part, Parameter) else self.capture(part.body)
            if part.quoted:
                fields.text(value, quoted=True)
            else:
                fields.split(value)

    def _all_arguments(self, part: Parameter, fields: _Fields) -> None:
        if part.quoted and part.name == "*":
            fields.text(self._joined(self.arguments, " "), quoted=True)
            return
        for index, argument in enumerate(self.arguments):
            if index:
                fields.end()
            if part.quoted:
                fields.text(argument, quoted=True)
            else:
                fields.split(argument)

    def _default(self, part: Parameter, fields: _Fields) -> None:
        """``${name:-word}`` without quotes round it: the word's own quotes count."""
        if self._uses_word(part, self.value(part.name)):
            for inner in part.word.parts if part.word else ():
                self._expand(inner, fields)
        else:
            fields.split(self.value(part.name) or "" if part.operator[-1] == "-" else "")

    @staticmethod
    def _uses_word(part: Parameter, value: str | None) -> bool:
        absent = value is None or (value == "" and part.operator[0] == ":")
        return absent != (part.operator[-1] == "+")

    def value(self, name: str) -> str | None:
        """The value of a parameter, None if it is unset.

        Raises:
            Unsupported: its value is another one at each run.
        """
        if name.isdecimal() and name != "0":
            index = (whole_number(name) or 0) - 1
            return self.arguments[index] if 0 <= index < len(self.arguments) else None
        if name in _UNPREDICTABLE or name == "0":
            raise Unsupported(f"the parameter ${name}")
        if name in ("@", "*"):
            return self._joined(self.arguments, " ")
        special = {"#": len(self.arguments), "?": self.status}
        if self.jobs:
            special["!"] = FIRST_JOB + len(self.jobs) - 1
        return str(special[name]) if name in special else self.variables.get(name)

    def _parameter(self, part: Parameter) -> str:
        value = self.value(part.name)
        if part.operator in ("", "length") or part.word is None:
            if value is None and self.nounset:
                raise Failed(f"{part.name}: parameter not set", 2)
            return str(len(value or "")) if part.operator == "length" else value or ""
        if part.operator[0] in "#%":
            return self._trimmed(value or "", part.operator, self.pattern(part.word))
        if not self._uses_word(part, value):
            return "" if part.operator[-1] == "+" else value or ""
        text = self.text(part.word)
        if part.operator[-1] == "?":
            raise Failed(f"{part.name}: {text or 'parameter not set'}", 2)
        if part.operator[-1] == "=":
            self.variables[part.name] = text
        return text

    def _trimmed(self, value: str, operator: str, text: str) -> str:
        """``value`` without the shortest or longest prefix (#) or suffix (%) that matches."""
        pattern = self.state.pattern(text)
        self.state.budget.scan(len(value), len(text) + 16)
        longest = len(operator) > 1
        if operator[0] == "#":
            size = pattern.prefix(value, longest=longest) or 0
            return self.state.budget.text(value[size:])
        size = pattern.suffix(value, longest=longest) or 0
        return self.state.budget.text(value[: len(value) - size])

    def _pathnames(self, field: list[tuple[str, bool]]) -> list[str]:
        plain = self._joined([text for text, _ in field])
        if not any(not quoted and re.search(r"[*?\[]", text) for text, quoted in field):
            return [plain]
        return self.glob(self._quoted(field)) or [plain]

    def glob(self, pattern: str) -> list[str]:
        """Paths of the Tree that match, sorted, spelled as the pattern is (absolute or relative)."""
        self.state.budget.pattern(pattern)
        found = ["/"] if pattern.startswith("/") else [""]
        components = [component for component in pattern.split("/") if component]
        for index, component in enumerate(components):
            last = index == len(components) - 1
            found = [path for base in found for path in self._below(base, component, directories=not last)]
        return found

    def _below(self, base: str, component: str, *, directories: bool) -> list[str]:
        self.state.budget.work(2)
        if not _MAGIC.search(_QUOTED.sub("", component)):
            names = [re.sub(r"\\(.)", r"\1", component)]
        else:
            matches = self.state.matcher(component)
            here = self.state.children(self.state.path(base or "."))
            names = [path.rpartition("/")[2] for path in here]
            names = [name for name in names if matches(name) and (name[0] != "." or component[0] == ".")]
        self.state.budget.memory(sum(len(base) + len(name) + PIECE for name in names))
        paths = [f"{base}{name}" for name in names]
        if directories:
            return [f"{path}/" for path in paths if self.state.is_directory(path)]
        return [path for path in paths if self.state.node(path, follow=False) is not None]
