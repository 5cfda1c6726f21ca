"""One change to one file, as a value."""

from __future__ import annotations

from dataclasses import dataclass

_CLEAR = 12  # characters of code that probably occur once in a file


@dataclass(frozen=True, order=True)
class Change:
    """Replace the bytes ``start`` to ``end`` of the file ``path`` by ``text``; ``line`` counts from 1."""

    path: str
    line: int
    start: int
    end: int
    text: str
    kind: str

    def apply(self, source: bytes) -> bytes:
        """Return ``source`` with this change made."""
        return source[: self.start] + self.text.encode() + source[self.end :]

    def shown(self, source: bytes) -> str:
        """Return one line for people: where, what becomes what and, if that is little, in which line."""
        before = " ".join(source[self.start : self.end].decode().split())
        after = " ".join(self.text.split()) or "nothing"
        changed = f"{self.path}:{self.line}: {self.kind}: {_short(before)}  →  {_short(after)}"
        if len(before) > _CLEAR:
            return changed
        line = source[source.rfind(b"\n", 0, self.start) + 1 :].partition(b"\n")[0]
        return f"{changed}  in: {_short(line.decode().strip())}"


def _short(text: str, most: int = 70) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
