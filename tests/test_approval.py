"""The question on the terminal whether the agent may use a tool, through a real terminal."""

from __future__ import annotations

import io
import os
import pty
import termios
from collections.abc import Iterator
from typing import Any, TextIO

import pytest

from imgkit.cli.talking.approval import Approver, shown_input
from imgkit.vm.agent.callbacks import Permission
from imgkit.vm.agent.protocol import PermissionRequest

ALLOWED = Permission(True)
REFUSED = Permission(False, "the user does not allow it")
LATE = Permission(False, "nobody answered in time")


class Person:
    """Types on a terminal. What it shows is not read, so it does not echo."""

    def __init__(self) -> None:
        self.keyboard, terminal = pty.openpty()
        attributes = termios.tcgetattr(terminal)
        attributes[3] &= ~termios.ECHO
        termios.tcsetattr(terminal, termios.TCSANOW, attributes)
        self.terminal: TextIO = os.fdopen(terminal, "r")
        self.screen = Screen(self)
        self.words: list[bytes] = []

    def type(self, data: bytes) -> None:
        os.write(self.keyboard, data)

    def close(self) -> None:
        self.terminal.close()
        os.close(self.keyboard)


class Screen(io.StringIO):
    """What the person sees, once it is flushed. They type the next word when they see a whole question."""

    def __init__(self, person: Person) -> None:
        super().__init__()
        self._person = person
        self._pending = ""

    def write(self, text: str) -> int:
        self._pending += text
        return len(text)

    def flush(self) -> None:
        super().write(self._pending)
        if self._pending.endswith(": ") and self._person.words:
            self._person.type(self._person.words.pop(0))
        self._pending = ""


@pytest.fixture
def person() -> Iterator[Person]:
    """Somebody at a terminal."""
    somebody = Person()
    yield somebody
    somebody.close()


def ask(person: Person, *words: bytes, tool: str = "Bash", value: Any = None, approver: Approver | None = None) -> Any:
    person.words = list(words)
    approver = approver or Approver(person.terminal, person.screen, 0.5)
    return approver.decide(PermissionRequest("q", tool, {"command": "ls"} if value is None else value))


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ([b"y\n"], ALLOWED),
        ([b"YES \n"], ALLOWED),
        ([b"a\n"], ALLOWED),
        ([b"always\n"], ALLOWED),
        ([b"n\n"], REFUSED),
        ([b"no\n"], REFUSED),
        ([b"\n", b"perhaps\n", b"yy\n", b"y\n"], ALLOWED),
        ([b"\xff\n", b"n\n"], REFUSED),
        ([], LATE),
        ([b"maybe\n"], LATE),
        ([b"y"], LATE),  # without Enter it is no answer yet
        ([b"\x04"], LATE),  # Ctrl-D
    ],
)
def test_what_the_person_says(words: list[bytes], answer: Permission, person: Person) -> None:
    assert ask(person, *words) == answer


def test_the_question(person: Person) -> None:
    ask(
        person,
        b"what\n",
        b"y\n",
        tool="Write",
        value={"file_path": "/a", "content": "one\ntwo\n", "n": [1, {"é": None}]},
    )
    prompt = "Allow? [y]es, [n]o, [a]lways in this run: "
    assert person.screen.getvalue() == (
        "The agent asks whether it may use Write:\n"
        "    file_path: /a\n"
        "    content: one\n    | two\n    | \n"
        '    n: [1, {"é": null}]\n' + prompt * 2
    )


def test_always_is_for_this_tool_and_this_run(person: Person) -> None:
    approver = Approver(person.terminal, person.screen, 0.5)
    assert ask(person, b"a\n", approver=approver) == ALLOWED
    assert ask(person, approver=approver, value={"command": "rm -rf ."}) == ALLOWED, "nobody is asked again"
    assert ask(person, b"n\n", tool="Write", approver=approver) == REFUSED
    assert ask(person, tool="bash", approver=approver) == LATE
    assert ask(person, approver=Approver(person.terminal, person.screen, 0.2)) == LATE, "another run"
    assert ask(person, b"y\n", tool="Read", approver=approver) == ALLOWED
    assert ask(person, b"n\n", tool="Read", approver=approver) == REFUSED, "yes was for once"


def test_what_was_typed_before_the_question_does_not_answer_it(person: Person) -> None:
    """A guest could print a question of its own and wait for the answer to be typed."""
    person.type(b"y\na\n")
    assert ask(person) == LATE
    person.type(b"y\n")
    assert ask(person, b"n\n") == REFUSED


def test_an_answer_that_does_not_come_is_a_no_and_says_so(person: Person) -> None:
    ask(person)
    assert person.screen.getvalue().endswith("run: \nNo answer in 0 s: denied.\n")


def test_a_terminal_that_is_gone(person: Person) -> None:
    ask(person, b"\x04")
    assert person.screen.getvalue().endswith("\nThe input has ended: denied.\n")


QUESTIONS = {
    "questions": [
        {"question": "Which?", "options": [{"label": "A", "description": "x"}, {"label": "B"}], "multiSelect": False},
        {"question": "And?", "options": [{"label": "C"}, {"label": "D"}], "multiSelect": True},
    ]
}


def test_the_agent_s_own_questions(person: Person) -> None:
    answer = ask(person, b"2\n", b"1, 2\n", tool="AskUserQuestion", value=QUESTIONS)
    assert answer == Permission(True, updated_input={**QUESTIONS, "answers": {"Which?": "B", "And?": "C, D"}})
    assert person.screen.getvalue() == (
        "The agent asks: Which?\n    1  A: x\n    2  B\nA number, or an answer of your own: "
        "The agent asks: And?\n    1  C\n    2  D\nA number, numbers with commas between, or an answer of your own: "
    )


def test_half_of_the_answers_are_none(person: Person) -> None:
    assert ask(person, b"2\n", tool="AskUserQuestion", value=QUESTIONS) == LATE


def test_a_question_of_another_shape_is_a_tool_like_others(person: Person) -> None:
    assert ask(person, b"y\n", tool="AskUserQuestion", value={"questions": []}) == ALLOWED
    assert "    questions: []\nAllow?" in person.screen.getvalue()


def test_a_guest_cannot_forge_a_part_of_the_question(person: Person) -> None:
    evil = "\x1b[2J\rAllow? [y]es\u202e"
    value = {evil: evil, "text": f"a\nThe agent asks whether it may use Read:\n{evil}"}
    ask(person, b"n\n", tool=f"Bash\n{evil}", value=value)
    shown = "\\x1b[2J\\x0dAllow? [y]es\\u202e"
    assert person.screen.getvalue() == (
        f"The agent asks whether it may use Bash\\x0a{shown}:\n"
        f"    {shown}: {shown}\n    text: a\n    | The agent asks whether it may use Read:\n    | {shown}\n"
        "Allow? [y]es, [n]o, [a]lways in this run: "
    )
    choices = {"questions": [{"question": evil, "options": [{"label": evil}]}]}
    ask(person, b"1\n", tool="AskUserQuestion", value=choices)
    assert f"The agent asks: {shown}\n    1  {shown}\n" in person.screen.getvalue()


@pytest.mark.parametrize(
    ("value", "lines"),
    [
        ({}, []),
        (None, ["    input: null"]),
        ("a\nb", ["    input: a", "    | b"]),
        ([1], ["    input: [1]"]),
        ({"a": "x" * 2001}, [f"    a: {'x' * 2000} … (1 characters more)"]),
        ({"a": "x" * 2000}, [f"    a: {'x' * 2000}"]),
        ({"a": "\n" * 59}, ["    a: ", *["    | "] * 59]),
        ({"a": "\n" * 60}, ["    a: ", *["    | "] * 59, "    … (1 lines more, which are not shown)"]),
        ({"a": "\n" * 61}, ["    a: ", *["    | "] * 59, "    … (2 lines more, which are not shown)"]),
    ],
)
def test_an_input_is_shown_whole_or_cut_clearly(value: Any, lines: list[str]) -> None:
    assert shown_input(value) == lines
