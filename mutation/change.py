"""One change to one file, as a value."""

from __future__ import annotations

from dataclasses import dataclass


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
        """Return one line for people: where, and what becomes what."""
        before = " ".join(source[self.start : self.end].decode().split())
        after = " ".join(self.text.split()) or "nothing"
        return f"{self.path}:{self.line}: {self.kind}: {_short(before)}  →  {_short(after)}"


def _short(text: str, most: int = 70) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
