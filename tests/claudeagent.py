"""Run the adapter of ``agents/claude`` on this host: with a socket that answers as agentd does, and the real SDK."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from tests.conftest import need_program
from tests.messagesapi import StandIn

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "agents" / "claude"
Message = dict[str, Any]
Decide = Callable[[Message], Mapping[str, Any]]


def installed(folder: Path) -> Path:
    """Return a copy of the adapter in ``folder`` with the packages of its lock file, installed for this host once."""
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("node_modules"))
            argv = [need_program("npm"), "ci", "--no-audit", "--no-fund", "--prefer-offline", "--ignore-scripts"]
            done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
    return folder


@dataclass
class Agentd:
    """The socket of an agentd: it tells ``request`` and answers questions with ``decide``."""

    path: Path
    request: Mapping[str, Any]
    decide: Decide
    questions: list[Message] = field(default_factory=list)

    def answer(self, question: Message) -> Mapping[str, Any]:
        """Return the answer to one line."""
        if question["kind"] == "request":
            return {"request": self.request}
        self.questions.append(question)
        return {"updatedInput": question["toolInput"], **self.decide(question)}


@contextmanager
def agentd(path: Path, request: Mapping[str, Any], decide: Decide) -> Iterator[Agentd]:
    """Listen on the socket ``path`` as agentd does."""
    state = Agentd(path, request, decide)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=_serve, args=(listener, state), daemon=True)
        thread.start()
        try:
            yield state
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _serve(listener: socket.socket, state: Agentd) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection, connection.makefile("rwb") as stream, suppress(OSError):
            stream.write(json.dumps(state.answer(json.loads(stream.readline()))).encode() + b"\n")


@dataclass(frozen=True)
class Ran:
    """What became of a run of the adapter: its messages, the result apart, and the questions that it asked."""

    messages: list[Message]
    result: Message
    questions: list[Message]
    errors: str
    status: int

    def of(self, kind: str) -> list[Message]:
        """Return the messages of one type."""
        return [message for message in self.messages if message["type"] == kind]

    @property
    def text(self) -> str:
        """The text that was streamed."""
        events = [message["event"] for message in self.of("stream_event")]
        return "".join(event["delta"].get("text", "") for event in events if event["type"] == "content_block_delta")

    @property
    def session(self) -> str:
        """The id of the session."""
        return str(next(message["session_id"] for message in self.messages if message.get("subtype") == "init"))


def allow(_question: Message) -> Mapping[str, Any]:
    """Allow everything."""
    return {"behavior": "allow"}


def deny(_question: Message) -> Mapping[str, Any]:
    """Deny everything."""
    return {"behavior": "deny", "message": "not today"}


@dataclass(frozen=True)
class Adapter:
    """The installed adapter, with a home and a working folder of its own."""

    program: Path
    home: Path
    work: Path

    def environment(self, api: StandIn | None, **more: str) -> dict[str, str]:
        """Return the environment that agentd gives, with few retries."""
        url = {} if api is None else {"ANTHROPIC_BASE_URL": api.url}
        key = {"ANTHROPIC_API_KEY": "sk-test"}
        retries = {"CLAUDE_CODE_MAX_RETRIES": "1"}
        return {"PATH": os.environ["PATH"], "HOME": str(self.home), **url, **key, **retries, **more}

    def start(self, env: Mapping[str, str]) -> subprocess.Popen[str]:
        """Start the adapter."""
        argv = [need_program("node"), str(self.program / "index.js")]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            argv, env=dict(env), cwd=self.work, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )

    def run(
        self, api: StandIn, request: Mapping[str, Any], decide: Decide = allow, env: Mapping[str, str] | None = None
    ) -> Ran:
        """Carry out one request."""
        with agentd(self.home / "agent.sock", request, decide) as state:
            variables = {**self.environment(api, AGENT_SOCKET=str(state.path)), **(env or {})}
            with self.start(variables) as process:
                output, errors = process.communicate("", timeout=120)
        state.path.unlink()
        return ran(output, errors, process.returncode, state.questions)


def ran(output: str, errors: str, status: int, questions: list[Message]) -> Ran:
    """Parse what the adapter printed: messages, and one result at the end."""
    *messages, result = [json.loads(line) for line in output.splitlines()]
    assert result["type"] == "result", output
    assert all(message["type"] != "result" for message in messages), output
    return Ran(messages, result, questions, errors, status)
