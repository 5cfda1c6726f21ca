"""Paths that may not be looked up: a sentence, whoever asks for them.

Too long a name stands for all reasons. A folder that may not be entered would be the usual one, but root, who runs the
tests in containers, may enter every folder.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imgkit.cli.main import main
from imgkit.errors import HostError, InputError, RecipeError
from imgkit.host import lookup
from imgkit.recipe import load
from imgkit.vm import BootSpec
from imgkit.vm.bootspec import resolve
from imgkit.vm.qemu.probe import Accelerator
from tests.mirrors import RECIPE

LONG = "/" + "x" * 300
REFUSED = f"{LONG}: cannot be looked up: File name too long"


def test_what_is_there(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    (tmp_path / "link").symlink_to(file)
    (tmp_path / "dangling").symlink_to("nothing")
    assert [lookup.is_file(tmp_path / name, InputError) for name in ("file", "link", "dangling", "", "none")] == [
        True, True, False, False, False,
    ]  # fmt: skip
    assert [lookup.is_folder(path, InputError) for path in (tmp_path, file, tmp_path / "none")] == [True, False, False]
    assert [lookup.exists(path, InputError) for path in (tmp_path, file, tmp_path / "dangling")] == [True, True, False]
    assert not lookup.exists(file / "below", InputError)
    assert not lookup.exists(tmp_path / "a\0b", InputError)


def test_a_link_to_itself_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert not lookup.exists(tmp_path / "loop", InputError)


@pytest.mark.parametrize("ask", [lookup.is_file, lookup.is_folder, lookup.exists])
def test_what_may_not_be_looked_up(ask: object) -> None:
    assert callable(ask)
    with pytest.raises(InputError) as caught:
        ask(Path(LONG), InputError)
    assert caught.value.message == REFUSED


def test_faults(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert (lookup.file_fault(file), lookup.folder_fault(tmp_path)) == (None, None)
    assert lookup.file_fault(tmp_path) == f"{tmp_path} is not a file"
    assert lookup.folder_fault(file) == f"{file} is not a folder"
    assert lookup.file_fault(tmp_path / "none") == f"{tmp_path}/none does not exist"
    assert lookup.folder_fault(Path(LONG)) == REFUSED


def test_what_may_not_be_read_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setattr(os, "access", lambda _path, mode: not mode & os.R_OK)
    assert lookup.file_fault(file) == f"{file} may not be read by this user"
    assert lookup.folder_fault(tmp_path) == f"{tmp_path} may not be read by this user"


def test_a_search_goes_on_without_a_folder() -> None:
    assert [lookup.sees_folder(path) for path in (Path("/"), Path("/none"), Path(LONG))] == [True, False, False]


def test_a_real_path(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "link").symlink_to("folder")
    assert lookup.real(tmp_path / "link/../x") == tmp_path / "x"
    assert lookup.real(tmp_path / "link") == tmp_path / "folder"
    assert lookup.real(tmp_path / "loop") == tmp_path / "loop"
    assert lookup.real(tmp_path / "a\0b") == tmp_path / "a\0b"


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["inspect", LONG], 4),
        (["verify", LONG], 4),
        (["diff", LONG, LONG], 4),
        (["boot", LONG], 4),
        (["run", LONG, "--", "true"], 4),
        (["push", LONG, "registry.example/a"], 4),
        (["pull", "registry.example/a", "--out", LONG], 5),
        (["publish", "v1", "--from", LONG, "--base-url", "https://images.example/"], 4),
        (["init", LONG], 5),
        (["build", f"{LONG}.py"], 3),
        (["lock", f"{LONG}.py"], 3),
    ],
)
def test_commands_name_the_path(words: list[str], status: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == status
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"error: {LONG}")
    assert lines[0].endswith(": cannot be looked up: File name too long")


@pytest.mark.parametrize(
    ("field", "fault"),
    [
        (f"overlay = '{LONG}'", f"overlay: {REFUSED}"),
        (f"files = [{{'path': '/x', 'source': '{LONG}'}}]", f"files.0.source: {REFUSED}"),
        (f"repositories = [{{'url': '{LONG}'}}]", f"repositories.0.url: {REFUSED}"),
        (f"agent = {{'command': ['x'], 'payload': '{LONG}'}}", f"agent.payload: {REFUSED}"),
        (f"agent_runner = '{LONG}'", f"agent_runner: {REFUSED}"),
        (f"release_key = '{LONG}'", f"release_key: {REFUSED}"),
        (f"mirror = '{LONG}'", f"mirror: {REFUSED}"),
    ],
)
def test_fields_of_a_recipe(field: str, fault: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.py").write_text(f"{RECIPE}\n{field}\n")
    with pytest.raises(RecipeError) as caught:
        load(tmp_path / "recipe.py")
    assert caught.value.problems == (fault,)


@pytest.mark.parametrize("words", [["build", "recipe.py"], ["lock", "recipe.py"], ["pull", "registry.example/a"]])
def test_certificates_that_are_missing(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.py").write_text(f"{RECIPE}\nmirror = 'http://127.0.0.1:9/'\n")
    assert main([*words, "--ca", "none.pem"]) == 2
    assert capsys.readouterr().err == "error: --ca: none.pem does not exist\n"


def test_keys_of_one_name_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "k").write_text("")
    entries = f"[{{'url': '{tmp_path}', 'key': 'k'}}, {{'url': 'https://apk.example', 'key': '{LONG}/k'}}]"
    (tmp_path / "recipe.py").write_text(f"{RECIPE}\nrepositories = {entries}\n")
    with pytest.raises(RecipeError) as caught:
        load(tmp_path / "recipe.py")
    assert caught.value.problems == (f"repositories.1.key: {LONG}/k: cannot be looked up: File name too long",)


def test_a_base_that_may_not_be_looked_up(tmp_path: Path) -> None:
    (tmp_path / "recipe.py").write_text(f"extends = '{LONG}'\n")
    with pytest.raises(RecipeError) as caught:
        load(tmp_path / "recipe.py")
    assert caught.value.message == f"{tmp_path}/recipe.py: extends: {REFUSED}"


def test_a_folder_instead_of_a_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path)
    assert caught.value.message == f"{tmp_path}: a folder, not a recipe"


def test_a_share_that_this_user_may_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "image").write_bytes(b"")
    spec = BootSpec(tmp_path / "image", format="raw", arch="amd64", shares={"docs": tmp_path}, ipc="none")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(HostError) as caught:
        resolve(spec, Accelerator("tcg", "max", ""), tmp_path)
    assert caught.value.message == f"{tmp_path}: cannot be shared as docs: this user may not read it"
