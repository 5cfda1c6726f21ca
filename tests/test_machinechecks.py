"""What is refused before a machine is started: the wrong architecture, root as the user, a prompt without an agent."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from imgkit.cli.main import main
from imgkit.cli.options import environmentoptions, machineoptions
from imgkit.errors import RecipeError
from imgkit.rootfs.agentsettings import agent_settings, refuse_root
from imgkit.tree import Tree
from tests.conftest import need_program
from tests.test_machine_options import asked  # noqa: F401 - a fixture


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "linux-amd64.qcow2"
    subprocess.run([need_program("qemu-img"), "create", "-q", "-f", "qcow2", path, "1M"], check=True)
    return path


@pytest.fixture(autouse=True)
def no_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every boot fail the test."""
    monkeypatch.setattr(machineoptions, "VM", None)


def state(image: Path, **manifest: Any) -> None:
    image.with_suffix(".manifest.json").write_text(json.dumps({"manifest": 1, "files": {}, **manifest}))


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> list[str]:
    """Run imgkit, which must refuse the command line; return what it printed."""
    assert main([str(word) for word in words]) == 2
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("command", [["boot"], ["run"]])
def test_another_architecture_than_the_images(
    command: list[str], image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tail = ["--", "true"] if command == ["run"] else []
    message = f"error: --arch arm64: {image} is for amd64, its name says"
    assert refused(capsys, *command, image, "--arch", "arm64", *tail) == [message, "hint: --arch amd64, or none"]


def test_the_manifest_knows_better_than_the_name(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state(image, arch="arm64")
    message = f"error: --arch amd64: {image} is for arm64, its manifest says"
    assert refused(capsys, "boot", image, "--arch", "amd64") == [message, "hint: --arch arm64, or none"]


@pytest.mark.parametrize(("name", "arch"), [("linux-amd64.qcow2", "amd64"), ("disk.qcow2", "arm64")])
def test_the_same_architecture_and_one_that_nothing_contradicts(
    name: str,
    arch: str,
    image: Path,
    asked: list[dict[str, Any]],  # noqa: F811
) -> None:
    disk = image.rename(image.with_name(name))
    disk.with_suffix(".manifest.json").write_text("damaged")
    assert main(["boot", str(disk), "--arch", arch]) == 0
    assert [call["arch"] for call in asked] == [arch]


@pytest.mark.parametrize("option", ["--env", "--env-file", "--secret"])
def test_root_is_never_the_agents_user(
    option: str, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "env").write_text("AGENT_USER=root\n")
    (tmp_path / "user").write_text("root")
    value = {"--env": "AGENT_USER=root", "--env-file": tmp_path / "env", "--secret": f"AGENT_USER={tmp_path / 'user'}"}
    assert refused(capsys, "run", image, option, value[option], "--", "id") == [
        "error: AGENT_USER=root: agents and commands never run as root in a machine",
        "hint: leave it out: the user is then agent",
    ]


def test_another_user_is_fine(image: Path, asked: list[dict[str, Any]]) -> None:  # noqa: F811
    assert main(["boot", str(image), "--env", "AGENT_USER=rooty"]) == 0
    assert len(asked) == 1


# ---- the agent of an image ---------------------------------------------------------------------------------------


def test_a_prompt_without_an_agent(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state(image, agent={"payload": False, "command": None})
    assert refused(capsys, "run", image, "--prompt", "hello", "--env", "OTHER=1") == [
        f"error: --prompt: no agent is configured in {image}",
        "hint: --env AGENT_COMMAND=… names one; a command comes after --",
    ]


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        ({"agent": {"payload": True, "command": None}}, []),
        ({"agent": {"payload": False, "command": "node"}}, []),
        ({"agent": {"payload": False, "command": None}}, ["--env", "AGENT_COMMAND=cat"]),
        ({}, []),
    ],
)
def test_a_prompt_with_an_agent_or_where_it_is_not_known(stated: dict[str, Any], words: list[str], image: Path) -> None:
    state(image, **stated)
    with pytest.raises(AttributeError):  # there is no machine to boot, which comes next
        machineoptions.boot(_options(image, "--prompt", "hello", *words))


def test_a_prompt_without_a_manifest(image: Path) -> None:
    with pytest.raises(AttributeError):
        machineoptions.boot(_options(image, "--prompt", "hello"))


def _options(image: Path, *words: str) -> Any:
    from imgkit.cli.parser import parse

    return parse(["run", str(image), *words])


def test_the_manifest_of_a_disk_says_nothing_about_a_container_image(image: Path) -> None:
    state(image, agent={"payload": False, "command": None})
    assert environmentoptions.config_drive(_options(image, "--prompt", "hello"), "run=agentd\n") is not None


# ---- the image's own settings ------------------------------------------------------------------------------------


def tree(text: str) -> Tree:
    made = Tree()
    made.write("etc/conf.d/agentd", text, mtime=0)
    return made


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ('#AGENT_COMMAND="x"\nAGENT_COMMAND="node a.js"\n', {"AGENT_COMMAND": "node a.js"}),
        ("AGENT_COMMAND='node a.js'\nAGENT_USER=tom # why\n", {"AGENT_COMMAND": "node a.js", "AGENT_USER": "tom"}),
        ("export AGENT_USER=a\n AGENT_USER=b;\n", {"AGENT_USER": "b"}),
        ('AGENT_COMMAND=""\nAGENTD_ENTRY="/x"\nrc_need="y"\n', {"AGENT_COMMAND": ""}),
        ("", {}),
    ],
)
def test_what_the_service_is_told(text: str, settings: dict[str, str]) -> None:
    assert agent_settings(tree(text)) == settings
    assert agent_settings(Tree()) == {}


def test_a_recipe_may_not_make_root_the_agents_user() -> None:
    refuse_root(tree("AGENT_USER=agent\n"))
    refuse_root(tree("#AGENT_USER=root\n"))
    with pytest.raises(RecipeError, match=r"^/etc/conf\.d/agentd: AGENT_USER is root, but"):
        refuse_root(tree('AGENT_USER="root"\n'))
