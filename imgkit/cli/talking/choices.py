"""The questions with choices that an agent asks with the tool AskUserQuestion of the Claude agent SDK.

Its input is ``{"questions": [{"question", "header", "options": [{"label", "description"}], "multiSelect"}]}``; its
answer is the same object with ``answers``: question → label, several of them with commas between, or any other text
(interface AskUserQuestionInput of the SDK's ``sdk-tools.d.ts``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Choice:
    """One question. ``labels`` are what an answer names, ``options`` what a person reads."""

    question: str
    labels: tuple[str, ...]
    options: tuple[str, ...]
    several: bool

    def answer(self, text: str) -> str:
        """Return the answer that the typed ``text`` means: the labels of its numbers, or itself."""
        words = [word.strip() for word in text.split(",")] if self.several else [text.strip()]
        numbers = [int(word) for word in words if word.isascii() and word.isdecimal() and len(word) < 4]
        if len(numbers) == len(words) and all(1 <= number <= len(self.labels) for number in numbers):
            return ", ".join(self.labels[number - 1] for number in numbers)
        return text.strip()


def parse_questions(value: Any) -> tuple[Choice, ...]:
    """Return the questions in the tool's input; empty if it has another shape."""
    questions = value.get("questions") if isinstance(value, Mapping) else None
    if not isinstance(questions, list):
        return ()
    choices = [_choice(question) for question in questions]
    return tuple(choice for choice in choices if choice is not None) if None not in choices else ()


def _choice(value: Any) -> Choice | None:
    if not isinstance(value, Mapping) or not isinstance(value.get("question"), str):
        return None
    options = value.get("options")
    options = options if isinstance(options, list) else []
    if not all(isinstance(option, Mapping) and isinstance(option.get("label"), str) for option in options):
        return None
    described = (f"{option['label']}: {option.get('description') or ''}".removesuffix(": ") for option in options)
    labels = tuple(option["label"] for option in options)
    return Choice(value["question"], labels, tuple(described), value.get("multiSelect") is True)
