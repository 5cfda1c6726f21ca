"""The recipes and files that the how-to pages show are accepted, and what they describe comes out of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fixtures.keys import new_rsa, public_pem
from imgkit.recipe import Recipe, load
from imgkit.rootfs.openrc.services import enable
from imgkit.rootfs.overlays import add_overlay_folder
from imgkit.tree import Symlink, Tree
from tests.commandline import ROOT
from tests.test_compose import base, make
from tests.test_recipe import GOOD, write

HOWTO = ROOT / "docs/howto"
KEY = "keys/packages@example.com-5f3c1a2b.rsa.pub"


def blocks(page: str, language: str) -> list[str]:
    """Return the blocks of code in a page, without their indentation."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", (HOWTO / page).read_text(), re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in found]


def folder_of_a_user(top: Path) -> Path:
    """Make the files that the pages speak of."""
    for name in ("common", "files/etc/init.d", "files/usr/local/bin", "packages", "build", "keys"):
        (top / name).mkdir(parents=True)
    (top / "app.conf").write_text("x")
    (top / "build/app").write_text("#!/bin/sh\n")
    (top / KEY).write_bytes(public_pem(new_rsa()))
    return top


def recipe(folder: Path, block: str) -> Recipe:
    return load(write(folder, GOOD + block))


SHOWN = [(page, text) for page in ("service.md", "files-with-owners.md", "own-repository.md") for text in
         blocks(page, "python")]  # fmt: skip


@pytest.mark.parametrize(("page", "text"), SHOWN, ids=lambda value: value[:20])
def test_a_recipe_of_a_page(page: str, text: str, tmp_path: Path) -> None:
    made = recipe(folder_of_a_user(tmp_path), text)
    assert made.overlays or made.files or made.further_repositories, page


def test_there_are_recipes_on_each_page() -> None:
    assert [page for page, _ in SHOWN] == [
        "service.md",
        *["files-with-owners.md"] * 2,
        *["own-repository.md"] * 2,
    ]


def test_files_with_owners(tmp_path: Path) -> None:
    _, text = blocks("files-with-owners.md", "python")
    made = recipe(folder_of_a_user(tmp_path), text)
    tree = base()
    tree.write("etc/group", "root:x:0:\napp:x:101:\n")
    composed = make(tree, files=made.files)
    facts = {path: (composed.tree[path].mode, composed.tree[path].uid, composed.tree[path].gid) for path in (
        "etc/app/app.conf", "etc/motd", "usr/local/bin/app")}  # fmt: skip
    assert facts == {
        "etc/app/app.conf": (0o640, 0, 101),
        "etc/motd": (0o644, 0, 0),
        "usr/local/bin/app": (0o755, 0, 0),
    }


def test_repositories(tmp_path: Path) -> None:
    local, remote = (recipe(folder_of_a_user(tmp_path / name), text) for name, text in zip(
        ("a", "b"), blocks("own-repository.md", "python"), strict=True))  # fmt: skip
    assert [one.folder for one in local.further_repositories] == [tmp_path / "a/packages"]
    assert [(one.tag, one.key is None) for one in remote.further_repositories] == [
        ("example", False),
        ("testing", True),
    ]


def test_a_service(tmp_path: Path) -> None:
    service, program = blocks("service.md", "sh")
    (text,) = blocks("service.md", "python")
    top = folder_of_a_user(tmp_path)
    for path, content in (("files/etc/init.d/ticker", service), ("files/usr/local/bin/ticker", program)):
        (top / path).write_text(content)
        (top / path).chmod(0o700)  # of somebody with a umask of 077
    made = recipe(top, text)
    tree = Tree()
    tree.mkdir("etc/runlevels/default")
    (overlay,) = made.overlay_folders
    add_overlay_folder(tree, overlay, epoch=0)
    assert (tree["etc/init.d/ticker"].mode, tree["usr/local/bin/ticker"].mode) == (0o755, 0o755)
    for runlevel, names in made.services.items():
        for name in names:
            enable(tree, runlevel, name)
    assert isinstance(tree["etc/runlevels/default/ticker"], Symlink)
    assert made.users[0].name == "ticker"
