"""Ask the person at the terminal whether the agent may use a tool.

The name and the input of the tool come from the guest. They are escaped, indented, and cut where that is said, so that
no part of them can look like the question. What was typed before the question does not answer it.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from imgkit.cli.talking.choices import Choice, parse_questions
from imgkit.host import terminal
from imgkit.vm.agent.callbacks import Permission
from imgkit.vm.agent.protocol import PermissionRequest

PATIENCE = 55.0
"""Seconds that a person has to answer. agentd itself denies after 60."""
_MOST_LINES = 60
_LONGEST_LINE = 2000  # characters
_NAME = 100  # characters of a tool's name
_QUESTION_TOOL = "AskUserQuestion"


class Approver:
    """Asks a person, line by line."""

    def __init__(self, answers: TextIO, screen: TextIO, patience: float = PATIENCE) -> None:
        """Read answers from ``answers``, a terminal, and write questions to ``screen``."""
        self._answers = answers
        self._screen = screen
        self._patience = patience
        self._always: set[str] = set()

    def decide(self, question: PermissionRequest) -> Permission:
        """Return what the person says; without an answer in time, no.

        Raises:
            KeyboardInterrupt: the person pressed Ctrl-C.
        """
        if question.tool_name in self._always:
            return Permission(True)
        self._forget_what_was_typed()
        deadline = time.monotonic() + self._patience
        choices = parse_questions(question.tool_input) if question.tool_name == _QUESTION_TOOL else ()
        if choices:
            return self._choose(question, choices, deadline)
        self._say(f"The agent asks whether it may use {terminal.line(question.tool_name, _NAME)}:")
        for line in shown_input(question.tool_input):
            self._say(line)
        return self._yes_or_no(question.tool_name, deadline)

    def _yes_or_no(self, tool: str, deadline: float) -> Permission:
        while True:
            answer = self._ask("Allow? [y]es, [n]o, [a]lways in this run: ", deadline)
            if answer is None:
                return Permission(False, "nobody answered in time")
            word = answer.strip().lower()
            if word in ("a", "always"):
                self._always.add(tool)
            if word in ("y", "yes", "a", "always"):
                return Permission(True)
            if word in ("n", "no"):
                return Permission(False, "the user does not allow it")

    def _choose(self, question: PermissionRequest, choices: tuple[Choice, ...], deadline: float) -> Permission:
        """Have the person answer the agent's own questions, which are put in the place of its permission."""
        answers: dict[str, str] = {}
        for choice in choices:
            self._say(f"The agent asks: {terminal.line(choice.question)}")
            for number, option in enumerate(choice.options, 1):
                self._say(f"    {number}  {terminal.line(option)}")
            several = ", numbers with commas between" if choice.several else ""
            answer = self._ask(f"A number{several}, or an answer of your own: ", deadline)
            if answer is None:
                return Permission(False, "nobody answered in time")
            answers[choice.question] = choice.answer(answer)
        return Permission(True, updated_input={**dict(question.tool_input), "answers": answers})

    def _ask(self, prompt: str, deadline: float) -> str | None:
        """Return the next line that the person types, or None if there is none until the deadline."""
        self._screen.write(prompt)
        self._screen.flush()
        if not select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))[0]:
            self._say(f"\nNo answer in {self._patience:.0f} s: denied.")
            return None
        line = os.read(self._answers.fileno(), 4096)  # not through a buffer, which select does not see
        if not line:
            self._say("\nThe input has ended: denied.")
            return None
        return line.decode(errors="replace").strip("\n")

    def _forget_what_was_typed(self) -> None:
        """Drop lines that were typed before the question: they cannot be meant as its answer."""
        import termios  # only Unix has it

        if self._answers.isatty():
            termios.tcflush(self._answers.fileno(), termios.TCIFLUSH)

    def _say(self, text: str) -> None:
        print(terminal.block(text, sys.maxsize), file=self._screen, flush=True)


def shown_input(value: Any) -> list[str]:
    """Return the input of a tool as indented lines, one or more a field. What is left out is said."""
    fields = value.items() if isinstance(value, Mapping) else [("input", value)]
    lines = []
    for name, content in fields:
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        first, *others = text.split("\n")
        lines.append(f"    {terminal.line(name, _NAME)}: {terminal.line(first, _LONGEST_LINE)}")
        lines += [f"    | {terminal.line(other, _LONGEST_LINE)}" for other in others]
    left_out = len(lines) - _MOST_LINES
    return lines if left_out <= 0 else [*lines[:_MOST_LINES], f"    … ({left_out} lines more, which are not shown)"]
