"""The field ``agent`` of a recipe in the root filesystem: its payload, and the settings of agentd's service."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from imgkit.errors import InputError, RecipeError
from imgkit.image import gathering
from imgkit.recipe import AgentSpec
from imgkit.rootfs.agent import assignment
from imgkit.rootfs.compose import Composition, compose
from imgkit.rootfs.composecontainer import PACKAGES, PAYLOAD, SETUP, compose_container
from imgkit.rootfs.steps import PackageSet
from tests.conftest import need_program
from tests.elves import make_elf
from tests.test_compose import EPOCH, UUID, base, recipe

ROOT = Path(__file__).parents[1]
NOTHING = PackageSet((), lambda package: pytest.fail("nothing is installed"), ())
AGENT = AgentSpec(command=("/usr/bin/node", "/opt/agent/index.js"))
SETTINGS = "etc/conf.d/agentd"


@pytest.fixture
def overlay(tmp_path: Path) -> Path:
    """Return an overlay with settings of agentd, and an agent that the recipe's own replaces."""
    folder = tmp_path / "overlay"
    (folder / "etc/conf.d").mkdir(parents=True)
    (folder / SETTINGS).write_text('#AGENT_COMMAND=""\n\n\n')
    (folder / "opt/agent").mkdir(parents=True)
    (folder / "opt/agent/old.js").write_text("old")
    return folder


@pytest.fixture
def payload(tmp_path: Path) -> Path:
    """Return a payload with a program for another machine."""
    folder = tmp_path / "payload"
    folder.mkdir()
    (folder / "index.js").write_text("new")
    (folder / "tool").write_bytes(make_elf("aarch64"))
    return folder


def made(overlay: Path | None, agent: AgentSpec | None, payload: Path | None) -> Composition:
    return compose(
        base(),
        NOTHING,
        recipe(overlay=overlay, agent=agent),
        "amd64",
        payload=None,
        agent=payload,
        can_run=False,
        root_uuid=UUID,
        epoch=EPOCH,
    )


def test_the_agent_s_payload_is_beside_agentd_and_agentd_starts_it(overlay: Path, payload: Path) -> None:
    composition = made(overlay, AGENT, payload)
    tree = composition.tree
    assert [path for path, _ in tree.walk("opt/agent")] == ["opt/agent", "opt/agent/index.js", "opt/agent/tool"]
    assert tree.text(SETTINGS) == (
        "#AGENT_COMMAND=\"\"\n\n# The recipe's agent.\nAGENT_COMMAND='/usr/bin/node /opt/agent/index.js'\n"
    )
    assert tree[SETTINGS].mtime == EPOCH
    assert [binary.path for binary in composition.binaries.foreign] == ["opt/agent/tool"], "the policy of payloads"


def test_an_agent_without_a_payload_is_a_command_alone(overlay: Path) -> None:
    tree = made(overlay, AgentSpec(command=("claude", "-p")), None).tree
    assert tree.text("opt/agent/old.js") == "old"
    assert tree.text(SETTINGS).endswith("\nAGENT_COMMAND='claude -p'\n")


def test_without_an_agent_the_settings_stay_as_they_are(overlay: Path) -> None:
    assert made(overlay, None, None).tree.text(SETTINGS) == '#AGENT_COMMAND=""\n\n\n'


def test_an_agent_needs_agentd() -> None:
    with pytest.raises(RecipeError) as caught:
        made(None, AGENT, None)
    assert caught.value.message == "agent: there is no /etc/conf.d/agentd in the image, so nothing would start it"
    assert caught.value.hint == "the overlay that comes with imgkit has agentd"


@pytest.mark.parametrize("has_payload", [True, False])
def test_in_a_container_image_the_agent_is_the_last_layer(has_payload: bool, overlay: Path, payload: Path) -> None:
    tree = base()
    tree.mkdir("etc/apk")
    chosen = recipe(overlay=overlay, agent=AGENT)
    folder = payload if has_payload else None
    composition = compose_container(tree, NOTHING, chosen, "amd64", payload=None, agent=folder, epoch=EPOCH)
    packages, setup, whole = composition.stages
    assert [packages.reason, setup.reason, whole.reason] == [PACKAGES, SETUP, PAYLOAD]
    assert "AGENT_COMMAND='" not in setup.tree.text(SETTINGS)
    assert "AGENT_COMMAND='" in whole.tree.text(SETTINGS)
    assert ("opt/agent/index.js" in whole.tree) is has_payload


@pytest.mark.parametrize(
    "words",
    [
        ("node", "/opt/agent/index.js"),
        ("a b", "", "it's", '"double"', "$HOME", "`id`", "back\\slash", "#", "*", "é"),
        ("x", "'", "'\"'\"'"),
    ],
)
def test_the_words_of_the_command_reach_agentd_as_they_are(words: tuple[str, ...]) -> None:
    """A shell reads the settings, and agentd splits the value; both are the real ones."""
    script = f'{assignment(AgentSpec(command=words))}\nprintf %s "$AGENT_COMMAND"'
    value = subprocess.run(["sh", "-eu", "-c", script], capture_output=True, text=True, check=True).stdout
    code = (
        "const { chooseAgent } = require('./overlay/opt/agent-runner/lib/environment.js');"
        "console.log(JSON.stringify(chooseAgent({ AGENT_COMMAND: process.argv[1] }, {}, {}).command));"
    )
    done = subprocess.run(
        [need_program("node"), "-e", code, value], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert tuple(json.loads(done.stdout)) == words


def request_for(tmp_path: Path, **fields: Any) -> Any:
    return SimpleNamespace(
        recipe=recipe(**fields), arch="amd64", cache=SimpleNamespace(offline=True, folder=tmp_path / "cache")
    )


def test_the_payload_is_prepared_as_the_agent_s_own_field_says(payload: Path, tmp_path: Path) -> None:
    agent = AgentSpec(command=("x",), payload=payload)
    request = request_for(tmp_path, agent=agent, agent_runner_build="1")
    assert gathering.agent_payload(request, tmp_path / "copy") == payload
    built = request_for(tmp_path, agent=agent.model_copy(update={"build": "1"}), agent_runner_build="0")
    with pytest.raises(InputError, match=r"package\.json: missing, so nothing can be installed$"):
        gathering.agent_payload(built, tmp_path / "copy")


@pytest.mark.parametrize("agent", [None, AgentSpec(command=("x",))])
def test_an_agent_need_not_have_a_payload(agent: AgentSpec | None, tmp_path: Path) -> None:
    assert gathering.agent_payload(request_for(tmp_path, agent=agent), tmp_path / "copy") is None


@pytest.mark.parametrize(
    ("fields", "copied"),
    [
        ({}, False),
        ({"agent_runner_build": "0"}, False),
        ({"agent_runner_build": "0", "agent_runner": Path("/x")}, True),
        ({"agent_runner": Path("/x")}, False),
        ({"agent": AgentSpec(command=("x",), build="0")}, False),
        ({"agent": AgentSpec(command=("x",), build="0", payload=Path("/x"))}, True),
        ({"agent": AgentSpec(command=("x",), payload=Path("/x")), "agent_runner": Path("/x")}, False),
    ],
)
def test_whether_a_payload_was_copied_as_it_is(
    fields: dict[str, Any], copied: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Messages about its programs depend on it: npm could not have chosen others."""
    told = []
    monkeypatch.setattr(gathering, "apply_policy", lambda *_, copied: told.append(copied))
    nothing: Any = None
    gathering.judge(request_for(tmp_path, **fields), nothing, nothing, nothing)
    assert told == [copied]
