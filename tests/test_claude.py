"""The agent of recipes/claude.py in a machine, with its real SDK, against a stand-in of the Messages API on the host.

Its packages beside the agent's are those of the offline mirror (recipes/core.py).
"""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from imgkit.recipe import load
from imgkit.vm import VM
from imgkit.vm.agent.callbacks import OnPermission, Permission, deny_permission
from imgkit.vm.agent.protocol import AgentEvent, AgentResult, PermissionRequest
from tests.conftest import need_program
from tests.images import ROOT, Builder, Image, quick_kernel
from tests.messagesapi import OVERLOADED, StandIn, Text, ToolUse, serve
from tests.test_claude_adapter import PNG
from tests.test_npm import need_npm

vm_test = pytest.mark.vm
RECIPE = ROOT / "recipes" / "claude.py"
PROJECT = "/workspace/project"
TIMEOUT = 400


def test_the_recipe_is_the_default_one_with_an_agent() -> None:
    claude, default = load(RECIPE), load(ROOT / "recipes" / "alpine.py")
    changed = {name for name in type(claude).model_fields if getattr(claude, name) != getattr(default, name)}
    assert changed == {"name", "agent"}
    assert claude.agent is not None
    assert claude.agent.command == ("/usr/bin/node", "/opt/agent/index.js")
    assert claude.agent.payload == ROOT / "agents" / "claude"


@pytest.fixture(scope="module")
def image(builder: Builder, tmp_path_factory: pytest.TempPathFactory) -> Image:
    """An image of recipes/core.py with the agent of recipes/claude.py."""
    need_program("qemu-system-x86_64")
    need_npm()
    agent = load(RECIPE).agent
    assert agent is not None
    setting = f"agent={json.dumps({'command': agent.command, 'payload': str(agent.payload)})}"
    words = ("--set", "name=claude", "--set", setting, *quick_kernel())
    return builder.build(tmp_path_factory.mktemp("claude"), "--arch", "amd64", *words)["amd64"]


@vm_test
def test_the_image_has_the_program_for_its_platform_alone(image: Image) -> None:
    files = image.manifest["files"]
    programs = [path for path in files if path.startswith("/opt/agent/") and path.endswith("/claude")]
    sdk = "/opt/agent/node_modules/@anthropic-ai/claude-agent-sdk"
    assert programs == [f"{sdk}-linux-x64-musl/claude"]
    assert image.manifest["payload"]["otherPlatforms"] == []
    assert image.manifest["payload"]["missingLibraries"] == []
    assert image.manifest["agent"]["command"] == "/usr/bin/node /opt/agent/index.js"
    assert "/opt/agent-runner/lib/supervisor.js" in files, "agentd is beside it"


@dataclass
class Place:
    """A machine with the agent in it, and the folder in which it works."""

    vm: VM
    work: Path


@pytest.fixture(scope="module")
def place(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Boot the image once, with a folder that belongs to an ordinary user."""
    work = tmp_path_factory.mktemp("work")
    for folder in (work, *work.parents):
        if folder.owner() == Path.home().owner() and str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    if os.getuid() == 0:
        os.chown(work, 1234, 1234)
    with VM.boot(image.disk, arch="amd64", accelerator="tcg", cpus=1, shares={"work": work}, timeout=TIMEOUT) as vm:
        yield Place(vm, work)


@dataclass(frozen=True)
class Answer:
    """What came of a request."""

    result: AgentResult
    events: list[AgentEvent]

    @property
    def session(self) -> str:
        return next(str(event.body["session_id"]) for event in self.events if event.body.get("subtype") == "init")

    @property
    def text(self) -> str:
        deltas = [event.body["event"].get("delta", {}) for event in self.events if event.kind == "stream_event"]
        return "".join(delta.get("text", "") for delta in deltas)


def asked(place: Place, api: StandIn, *, on_permission: OnPermission = deny_permission, **extra: Any) -> Answer:
    """Carry out a request in the machine."""
    env = {"ANTHROPIC_BASE_URL": api.guest_url, "ANTHROPIC_API_KEY": "sk-test", "CLAUDE_CODE_MAX_RETRIES": "1"}
    events: list[AgentEvent] = []
    request = place.vm.request(prompt="go", env=env, on_permission=on_permission, timeout=TIMEOUT, extra=extra)
    with request:
        for event in request:
            if isinstance(event, AgentResult):
                return Answer(event, events)
            if isinstance(event, AgentEvent):
                events.append(event)
    raise AssertionError("no result")


@vm_test
def test_an_answer_and_a_later_turn_with_an_image(place: Place) -> None:
    with serve([Text(("Hello", " world"))]) as api:
        first = asked(place, api, systemPrompt="You are brief.")
        assert (first.text, first.result.ok, first.result.text) == ("Hello world", True, "Hello world")
        image = {"name": "dot.png", "mimeType": "image/png", "base64Data": PNG}
        second = asked(place, api, sessionId=first.session, imageAttachments=[image])
    assert second.session == first.session
    assert "You are brief." in json.dumps(api.requests[0].body["system"])
    assert [message["role"] for message in api.requests[1].body["messages"]].count("assistant") == 1
    assert PNG in json.dumps(api.requests[1].body["messages"])


@vm_test
def test_the_agent_works_in_the_folder_once_it_is_allowed_to(place: Place) -> None:
    questions: list[PermissionRequest] = []
    path = f"{PROJECT}/new.txt"

    def decide(question: PermissionRequest) -> Permission:
        questions.append(question)
        return Permission(question.tool_name == "Write", "not today")

    writes = ToolUse("Write", {"file_path": path, "content": "from the guest\n"}, "toolu_1")
    removes = ToolUse("Bash", {"command": f"rm {path}"}, "toolu_2")
    with serve([writes, removes, Text(("done",))]) as api:
        assert asked(place, api, on_permission=decide).result.text == "done"
    assert [(question.tool_name, question.tool_input) for question in questions] == [
        ("Write", {"file_path": path, "content": "from the guest\n"}),
        ("Bash", {"command": f"rm {path}"}),
    ]
    made = place.work / "new.txt"
    assert made.read_text() == "from the guest\n"
    assert made.stat().st_uid == place.work.stat().st_uid, "it is the host's user's"
    assert "not today" in json.dumps(api.requests[2].body["messages"])


@vm_test
def test_an_error_is_one_result_that_the_application_shows(place: Place) -> None:
    with serve([OVERLOADED]) as api:
        answer = asked(place, api)
    assert not answer.result.ok
    assert answer.result.text.startswith("API Error: 529 Overloaded.")
    assert answer.result.body["errors"] == [answer.result.text]


@vm_test
def test_a_conversation_on_a_terminal(image: Image, tmp_path: Path) -> None:
    """``imgkit run``, with a network that reaches the API alone."""
    work, sessions, key = tmp_path / "work", tmp_path / "sessions", tmp_path / "key.txt"
    work.mkdir()
    sessions.mkdir()
    key.write_text("sk-from-a-file\n")
    tool = ToolUse("Bash", {"command": "echo made >made.txt"})
    with serve([tool, tool, Text(("All", " done"))]) as api:
        words = ["--work", work, "--secret", f"ANTHROPIC_API_KEY={key}", "--env", f"ANTHROPIC_BASE_URL={api.guest_url}"]
        words += ["--share", f"claude={sessions}", "--env", "CLAUDE_CONFIG_DIR=/mnt/claude"]
        network = ["--network", "restricted", "--allow", f"127.0.0.1:{api.port}"]
        machine = ["--accel", "tcg", "--cpus", "1", "--timeout", str(TIMEOUT)]
        status, screen = typed([image.disk, *words, *network, *machine, "--prompt", "Make it."], "Allow?", b"a\n")
    assert status == 0, screen
    assert (work / "made.txt").read_text() == "made\n"
    assert "The agent asks whether it may use Bash:\r\n    command: echo made >made.txt\r\n" in screen
    assert screen.count("Allow?") == 1, "always is for both"
    assert screen.endswith("All done\r\n")
    assert len(list(sessions.glob("projects/*/*.jsonl"))) == 1, "a later machine can continue the session"
    assert {name.lower(): value for name, value in api.requests[0].headers.items()}["x-api-key"] == "sk-from-a-file"


def typed(words: list[Any], question: str, answer: bytes) -> tuple[int, str]:
    """Run ``imgkit run`` on a terminal, type ``answer`` at ``question``, and return its status and what it showed."""
    keyboard, terminal = pty.openpty()
    argv = [sys.executable, "-m", "imgkit", "run", *map(str, words)]
    env = {**os.environ, "TERM": "dumb"}
    with subprocess.Popen(argv, stdin=terminal, stdout=terminal, stderr=terminal, cwd=ROOT, env=env) as process:
        os.close(terminal)
        screen = b""
        deadline = time.monotonic() + TIMEOUT
        while select.select([keyboard], [], [], max(0.0, deadline - time.monotonic()))[0]:
            piece = b""
            with suppress(OSError):  # the terminal's other end is closed
                piece = os.read(keyboard, 4096)
            if not piece:
                break
            screen += piece
            if answer and question.encode() in screen:
                os.write(keyboard, answer)
                answer = b""
        process.kill() if process.poll() is None and time.monotonic() > deadline else None
    os.close(keyboard)
    return process.returncode, screen.decode(errors="replace")
