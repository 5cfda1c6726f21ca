"""imgkit init: what it writes, and that it overwrites nothing."""

from __future__ import annotations

import json
import logging
import re
import shlex
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from imgkit.cli import newproject
from imgkit.cli.commands import init
from imgkit.cli.main import main
from imgkit.cli.parser import parse
from imgkit.errors import HostError
from imgkit.recipe import load
from imgkit.vm.qemu.machines import host_arch
from tests.commandline import ROOT

FILES = [".github/workflows/image.yml", ".gitignore", "image.py", "test_image.py"]


def written(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def begin(folder: Path, *words: str) -> None:
    assert main(["init", str(folder), *words]) == 0


@pytest.mark.parametrize("base", ["alpine", "core"])
def test_the_recipe_builds_on_one_that_comes_with_imgkit(base: str, tmp_path: Path) -> None:
    begin(tmp_path / "demo", "--base", base)
    assert written(tmp_path / "demo") == FILES
    recipe, extended = load(tmp_path / "demo/image.py"), load(ROOT / f"recipes/{base}.py")
    assert recipe.name == "demo"
    assert [(file.path, file.content) for file in recipe.files] == [("/etc/motd", "This is demo.\n")]
    assert recipe.model_copy(update={"name": extended.name, "files": ()}) == extended


def test_the_base_is_alpine_unless_another_one_is_named(tmp_path: Path) -> None:
    begin(tmp_path)
    assert 'extends = "imgkit:alpine"' in (tmp_path / "image.py").read_text()


def test_it_says_what_to_do_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(tmp_path / "a b")
    out, err = capsys.readouterr()
    assert out.splitlines() == [str(tmp_path / "a b" / name) for name in (FILES[2], FILES[3], FILES[0], FILES[1])]
    build, test = "imgkit build image.py", f"pytest --imgkit-image out/a-b-{host_arch()}.qcow2"
    assert err.splitlines() == ["next:", f"    cd '{tmp_path / 'a b'}'", f"    {build}", f"    {test}"]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(["init"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == "image.py"
    assert err.splitlines() == ["next:", f"    {build}", f"    {test}".replace("a-b", "here")]
    assert written(tmp_path / "here") == FILES


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "test_image.py").write_text("mine")
    assert main(["init", str(tmp_path)]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"error: {tmp_path}/test_image.py: exists already",
        "hint: name a new folder: imgkit init DIR",
    ]
    assert written(tmp_path) == ["test_image.py"]
    (tmp_path / "test_image.py").unlink()
    (tmp_path / "image.py").symlink_to(tmp_path / "nowhere")
    assert main(["init", str(tmp_path)]) == 2
    assert not (tmp_path / "nowhere").exists()


def test_a_gitignore_of_ones_own_stays(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("mine")
    begin(tmp_path)
    assert (tmp_path / ".gitignore").read_text() == "mine"
    assert written(tmp_path) == FILES


def test_what_was_written_goes_if_the_rest_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HostError) as caught:
        init.write_new({tmp_path / "a": "1", tmp_path / "file/b": "2"})
    assert caught.value.message.startswith(f"{tmp_path}/file")
    assert written(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("folder", "name"),
    [("demo", "demo"), ("my image", "my-image"), (".hidden", "hidden"), ("ä", "sandbox"), ("Box_1.2+x", "Box_1.2+x")],
)
def test_images_are_called_after_the_folder(folder: str, name: str, tmp_path: Path) -> None:
    assert newproject.name_of(tmp_path / folder) == name
    assert newproject.name_of(Path("/")) == "sandbox"
    assert "@" not in newproject.project(name, "core", "")["image.py"]


# ---- the workflow ----------------------------------------------------------------------------------------------------


def test_the_commands_of_the_workflow(tmp_path: Path) -> None:
    begin(tmp_path / "demo")
    workflow = yaml.safe_load((tmp_path / "demo" / newproject.WORKFLOW).read_text())
    job = workflow["jobs"]["image"]
    assert job["env"] == {"IMGKIT": "${{ vars.IMGKIT }}"}
    scripts = [step["run"] for step in job["steps"] if "run" in step]
    assert scripts[-2:] == ["imgkit build image.py --arch amd64", "pytest --imgkit-image out/demo-amd64.qcow2"]
    parse(shlex.split(scripts[-2])[1:])
    assert all("privileged" not in script for script in scripts)


def test_its_packages_are_those_of_script_setup() -> None:
    text = (ROOT / "script/setup").read_text()
    (listed,) = re.findall(r"^packages=\((.*?)\n\)", text, re.MULTILINE | re.DOTALL)
    wanted = set(re.sub(r"#.*", "", listed).split())
    assert set(newproject.PACKAGES.split()) == wanted - {"python3", "python3-venv", "libguestfs0"}


@pytest.mark.parametrize(
    ("recorded", "expected"),
    [
        (None, ""),
        ({"url": "file:///home/me/imgkit", "dir_info": {"editable": True}}, ""),
        ({"url": "https://user:pw@git.example.com/x", "vcs_info": {"vcs": "git", "commit_id": "ab12"}}, ""),
        ({"url": "https://git.example.com/x", "vcs_info": {"vcs": "git", "commit_id": "ab12"}},
         "git+https://git.example.com/x@ab12"),
        ({"url": "https://example.com/imgkit_sandbox-1-py3-none-any.whl", "archive_info": {}},
         "https://example.com/imgkit_sandbox-1-py3-none-any.whl"),
    ],
)  # fmt: skip
def test_where_it_was_installed_from(recorded: Any, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = None if recorded is None else json.dumps(recorded)
    monkeypatch.setattr(metadata, "distribution", lambda name: SimpleNamespace(read_text=lambda file: text))
    assert newproject.installed_from() == expected
    assert f"IMGKIT: {expected or '${{ vars.IMGKIT }}'}\n" in newproject.project("x", "core", expected)[FILES[0]]


def test_where_it_was_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newproject, "DISTRIBUTION", "no-such-distribution")
    assert newproject.installed_from() == ""


def test_quietly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin(tmp_path / "x", "-q")
    assert capsys.readouterr().err == ""
    logging.getLogger("imgkit").setLevel(logging.NOTSET)
