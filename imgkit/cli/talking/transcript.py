"""Show what an agent does as text: its answer as it comes, on standard output, and one line for each use of a tool.

The messages are those of the Claude agent SDK (``SDKMessage`` in its ``sdk.d.ts``). What an agent of another kind
prints is shown as well: plain output as it is, and its own events as lines of JSON.
"""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from imgkit.host import terminal
from imgkit.host.colours import has_colours
from imgkit.vm.agent.protocol import AgentEvent, AgentResult, Event, Output

_LINE = 160  # characters of the line about a tool
_MAIN_FIELDS = ("command", "file_path", "notebook_path", "pattern", "url", "query", "description", "skill")
"""Fields of which one says what a tool does."""
_JOINERS = dict.fromkeys(map(ord, "\u200d\ufe0e\ufe0f"))  # they only choose between forms of an emoji
_MOST_HELD = 16  # characters
_OWN_RESULT = "the agent "  # agentd's own words for an agent that said nothing


class Transcript:
    """Writes the answer to ``answer``, and all else to ``notes``. A terminal gets text that it cannot obey."""

    def __init__(self, answer: TextIO, notes: TextIO) -> None:
        """Write to these streams."""
        self._answer = GuestText(answer)
        self._notes = notes
        self._errors = GuestText(notes)
        self._dim = has_colours(notes)
        self._sdk = False  # whether the agent has said that it is one of the SDK's
        self._streamed = False  # whether the text of the message that comes next was shown already

    def show(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, Output):
            self._output(event)
        elif isinstance(event, AgentEvent) and event.kind != "started":
            self._message(event.kind, event.body)

    def rest(self) -> None:
        """End the lines that are open."""
        self._answer.end_line()
        self._errors.end_line()

    def end(self, result: AgentResult) -> None:
        """Show the result's text, if it is the first text of all."""
        if result.ok and not self._answer.used and not result.text.startswith(_OWN_RESULT):
            self._answer.write(result.text)
        self.rest()

    def _output(self, event: Output) -> None:
        if event.stream == "stdout":
            self._answer.write_bytes(event.data)
        else:
            self.rest()
            self._errors.write_bytes(event.data)

    def _message(self, kind: str, body: Mapping[str, Any]) -> None:
        own = body.get("parent_tool_use_id") is None
        if kind == "stream_event" and own:
            self._delta(body.get("event"))
        elif kind == "assistant":
            self._assistant(body, own=own)
        elif kind == "user":
            self._results(body)
        elif kind == "system":
            self._system(body)
        elif not self._sdk:
            self._answer.write(terminal.as_json(body, indent=None) + "\n")

    def _delta(self, event: object) -> None:
        delta = event.get("delta") if isinstance(event, Mapping) else None
        text = delta.get("text") if isinstance(delta, Mapping) else None
        if isinstance(text, str) and text:
            self._answer.write(text)
            self._streamed = True

    def _assistant(self, body: Mapping[str, Any], *, own: bool) -> None:
        """Show a whole message: its text unless that was streamed or is an error's, and the tools that it uses."""
        for block in _blocks(body):
            text, name = block.get("text"), block.get("name")
            if block.get("type") == "text" and isinstance(text, str) and own:
                if not self._streamed and not body.get("error"):
                    self._answer.write(text)
                self.rest()
            elif block.get("type") == "tool_use" and isinstance(name, str):
                self._note(("" if own else "  ") + f"{name}: {_summary(block.get('input'))}")
        if own:
            self._streamed = False

    def _results(self, body: Mapping[str, Any]) -> None:
        for block in _blocks(body):
            if block.get("type") == "tool_result" and block.get("is_error"):
                content = block.get("content")
                self._note(f"  failed: {content if isinstance(content, str) else json.dumps(content)}")

    def _system(self, body: Mapping[str, Any]) -> None:
        if body.get("subtype") == "init":
            self._sdk = True
        elif body.get("subtype") == "api_retry":
            status, attempt, most = (body.get(key) for key in ("error_status", "attempt", "max_retries"))
            self._note(f"the API answered {status or 'nothing'}; it is asked again, {attempt} of {most}")

    def _note(self, text: str) -> None:
        self.rest()
        line = terminal.line(text, _LINE)
        self._notes.write((f"\x1b[2m{line}\x1b[0m" if self._dim else line) + "\n")
        self._notes.flush()


class GuestText:
    """Writes text of the guest that comes in pieces. On a terminal it is escaped, whole characters at a time."""

    def __init__(self, stream: TextIO) -> None:
        """Write to ``stream``."""
        self._stream = stream
        self._escaped = stream.isatty()
        self._held = ""  # the last character, with the marks on it, to which further marks may belong
        self._open = False  # whether the last line has no end yet
        self.used = False

    def write(self, text: str) -> None:
        """Write the next piece."""
        self.used = self.used or bool(text)
        if not self._escaped:
            self._put(text)
            return
        text = self._held + text.translate(_JOINERS)
        end = _last_character(text)
        self._held = text[end:]
        self._put(terminal.block(text[:end], sys.maxsize))

    def write_bytes(self, data: bytes) -> None:
        """Write output, byte for byte unless the stream is a terminal; then nothing is added to it either."""
        if self._escaped:
            self.write(data.decode(errors="surrogateescape"))
            return
        self.used = True
        self._stream.buffer.write(data)  # text before it is no longer in the stream's own buffer
        self._stream.flush()
        self._open = False

    def end_line(self) -> None:
        """Write what is held back, and end the line if it has none."""
        self._put(terminal.block(self._held, sys.maxsize))
        self._held = ""
        if self._open:
            self._put("\n")

    def _put(self, text: str) -> None:
        if text:
            self._stream.write(text)
            self._stream.flush()
            self._open = not text.endswith("\n")


def _last_character(text: str) -> int:
    """Return where the last character of ``text`` begins, with the marks on it; its end if it is a line's end."""
    for index in reversed(range(max(len(text) - _MOST_HELD, 0), len(text))):
        if unicodedata.category(text[index]) not in ("Mn", "Me"):
            return len(text) if text[index] == "\n" else index
    return len(text)


def _blocks(body: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the content blocks of a message."""
    message = body.get("message")
    content = message.get("content") if isinstance(message, Mapping) else None
    yield from (block for block in content if isinstance(block, Mapping)) if isinstance(content, list) else ()


def _summary(value: Any) -> str:
    """Return what a tool is used for: its main field, or its whole input."""
    fields = value if isinstance(value, Mapping) else {}
    main = next((fields[name] for name in _MAIN_FIELDS if isinstance(fields.get(name), str)), None)
    return main if main is not None else json.dumps(value, ensure_ascii=False)
