"""Recipes that build on other recipes: how their fields are combined, and who is blamed for a fault."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkit.errors import RecipeError, UsageError
from imgkit.recipe import Recipe, load, shipped
from imgkit.recipe.merging import merged, stated
from tests.commandline import ROOT

BASE = """
branch = "v3.23"
packages = ["bash", "nodejs>18", "!mount"]
disk_packages = ["linux-virt", "openrc"]
services = {"boot": ["hostname", "syslog"], "shutdown": ["killprocs"]}
users = [{"name": "agent", "uid": 1000}, {"name": "other", "uid": 1001}]
hostname = "base"
kernel_arguments = ["quiet"]
overlay = "files"
container = {"packages": ["tini"], "command": ["/bin/sh"], "env": {"A": "1", "B": "2"}, "labels": {"org.x.y": "z"}}
architectures = {
    "amd64": {
        "alpine": "x86_64",
        "packages": ["grub-efi"],
        "partitions": [{"kind": "esp", "size": "16M"}, {"kind": "root"}],
        "grub_platforms": ["x86_64-efi"],
        "consoles": ["ttyS0"],
    },
    "arm64": {
        "alpine": "aarch64",
        "partitions": [{"kind": "esp", "size": "16M"}, {"kind": "root"}],
        "grub_platforms": ["arm64-efi"],
        "consoles": ["ttyAMA0"],
    },
}
"""


def write(folder: Path, own: str, base: str = BASE) -> Path:
    """Write a base into a folder of its own, and a recipe that extends it; return the path of the recipe."""
    (folder / "base/files").mkdir(parents=True, exist_ok=True)
    (folder / "base/base.py").write_text(base)
    path = folder / "image.py"
    path.write_text(f'extends = "base/base.py"\n{own}\n')
    return path


def made(folder: Path, own: str, base: str = BASE) -> Recipe:
    return load(write(folder, own, base))


def problems(path: Path) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as caught:
        load(path)
    assert "\n" not in caught.value.message
    return caught.value.problems


def combined(base: Mapping[str, object], own: Mapping[str, object]) -> Any:
    """Return combined fields, which have no problems."""
    fields, found = merged(stated(base, "base"), stated(own, "own"))
    assert found == []
    return fields.plain()


# ---- how fields are combined -----------------------------------------------------------------------------------------


def test_a_recipe_that_adds_nothing_is_its_base(tmp_path: Path) -> None:
    recipe = made(tmp_path, "")
    assert recipe == load(tmp_path / "base/base.py")
    assert recipe.overlay_folders[0].path == tmp_path / "base/files", "relative to the module that states it"


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (["curl"], ["bash", "nodejs>18", "!mount", "curl"]),
        (["bash"], ["nodejs>18", "!mount", "bash"]),
        (["nodejs=22.1-r0"], ["bash", "!mount", "nodejs=22.1-r0"]),
        (["nodejs@edge"], ["bash", "!mount", "nodejs@edge"]),
        (["!bash"], ["nodejs>18", "!mount", "!bash"]),
        (["mount"], ["bash", "nodejs>18", "mount"]),
        (["!mount"], ["bash", "nodejs>18", "!mount"]),
        ([], ["bash", "nodejs>18", "!mount"]),
    ],
)
def test_packages_are_added(own: list[str], expected: list[str]) -> None:
    base = ["bash", "nodejs>18", "!mount"]
    for field in ("packages", "disk_packages"):
        assert combined({field: base}, {field: own}) == {field: expected}
    assert combined({"container": {"packages": base}}, {"container": {"packages": own}})["container"] == {
        "packages": expected
    }
    arch = combined({"architectures": {"a": {"packages": base}}}, {"architectures": {"a": {"packages": own}}})
    assert arch == {"architectures": {"a": {"packages": expected}}}


def test_services_are_merged_by_runlevel(tmp_path: Path) -> None:
    own = 'services = {"boot": ["!syslog", "sysctl", "hostname"], "default": ["app"], "shutdown": None}'
    assert dict(made(tmp_path, own).services) == {"boot": ("hostname", "sysctl"), "default": ("app",)}


def test_users_are_added_and_replaced_by_name(tmp_path: Path) -> None:
    users = '[{"name": "new", "uid": 5}, {"name": "agent", "uid": 1000, "home": "/home/agent"}]'
    recipe = made(tmp_path, f"users = {users}")
    assert [(user.name, user.home) for user in recipe.users] == [
        ("agent", "/home/agent"),
        ("other", "/"),
        ("new", "/"),
    ]


def test_files_are_added_and_replaced_by_path() -> None:
    base = {"files": [{"path": "/a", "content": "1"}, {"path": "/b", "content": "1"}]}
    own = {"files": [{"path": "/c", "content": "2"}, {"path": "/a", "content": "2"}]}
    assert [(file["path"], file["content"]) for file in combined(base, own)["files"]] == [
        ("/a", "2"),
        ("/b", "1"),
        ("/c", "2"),
    ]


def test_overlays_come_after_those_of_the_base(tmp_path: Path) -> None:
    for name in ("files", "more"):
        (tmp_path / name).mkdir()
    base, own = tmp_path / "base/files", tmp_path / "files"
    for text, expected in (
        ('overlay = "files"', [base, own]),
        ('overlays = ["files", "more"]', [base, own, tmp_path / "more"]),
        ("overlay = None", [base]),
        ("", [base]),
    ):
        assert [folder.path for folder in made(tmp_path, text).overlay_folders] == expected, text
    plain = BASE.replace('overlay = "files"', "")
    assert [folder.path for folder in made(tmp_path, 'overlay = "files"', plain).overlay_folders] == [own]


def test_repositories_are_added_to_those_that_a_recipe_has_unless_it_says_otherwise(tmp_path: Path) -> None:
    assert made(tmp_path, 'repositories = ["testing"]').repositories == ("main", "community", "testing")
    assert made(tmp_path, 'repositories = ["!community", "testing"]').repositories == ("main", "testing")
    stated_by_base = BASE + 'repositories = ["main"]\n'
    assert made(tmp_path, 'repositories = ["main", "testing"]', stated_by_base).repositories == ("main", "testing")
    own = {"repositories": [{"url": "https://example.com/x", "tag": "y"}]}
    base = {"repositories": ["main", {"url": "https://example.com/x"}]}
    assert combined(base, own) == {"repositories": ["main", {"url": "https://example.com/x", "tag": "y"}]}


def test_mappings_are_merged_by_key(tmp_path: Path) -> None:
    own = """
container = {"packages": ["su-exec"], "workdir": "/w", "env": {"B": "3", "A": None}, "labels": {"org.x.y": None}}
architectures = {"amd64": {"packages": ["grub-bios"], "consoles": ["tty0"]}, "arm64": None}
"""
    recipe = made(tmp_path, own)
    assert recipe.container.packages == ("tini", "su-exec")
    assert (recipe.container.command, recipe.container.workdir) == (("/bin/sh",), "/w")
    assert dict(recipe.container.env) == {"B": "3"}
    assert dict(recipe.container.labels) == {}
    assert list(recipe.architectures) == ["amd64"]
    architecture = recipe.architecture("amd64")
    assert (architecture.packages, architecture.consoles) == (("grub-efi", "grub-bios"), ("tty0",))
    assert architecture.alpine == "x86_64"


def test_all_others_are_replaced(tmp_path: Path) -> None:
    recipe = made(tmp_path, 'hostname = "own"\nkernel_arguments = ["loud"]\nversion = None')
    assert (recipe.hostname, recipe.kernel_arguments, recipe.version) == ("own", ("loud",), None)


def test_a_module_of_an_architecture_can_be_extended(tmp_path: Path) -> None:
    path = tmp_path / "image.py"
    path.write_text('extends = "imgkit:core"\narchitectures = {"amd64": {"kernel_arguments": ["x"]}, "arm64": None}')
    recipe = load(path)
    assert list(recipe.architectures) == ["amd64"]
    assert recipe.architecture("amd64").kernel_arguments == ("x",)
    assert recipe.architecture("amd64").grub_platforms == ("i386-pc", "x86_64-efi")


def test_a_chain(tmp_path: Path) -> None:
    write(tmp_path, 'packages = ["curl"]\nname = "middle"')
    path = tmp_path / "last.py"
    path.write_text('extends = "image.py"\npackages = ["git", "!bash"]')
    recipe = load(path)
    assert recipe.packages == ("nodejs>18", "!mount", "curl", "git", "!bash")
    assert recipe.name == "middle"


def test_what_the_command_line_sets_replaces_the_whole(tmp_path: Path) -> None:
    path = write(tmp_path, 'packages = ["curl"]')
    assert load(path, {"packages": ["x"]}).packages == ("x",)


NAMES = st.lists(st.sampled_from(["a", "!a", "a>1", "b", "b@x", "!b", "c"]), max_size=5)


@given(NAMES, NAMES)
def test_packages_of_the_recipe_are_all_there_and_nothing_else_is_said_of_them(base: list[str], own: list[str]) -> None:
    result = combined({"packages": base}, {"packages": own})["packages"]
    assert result[len(result) - len(own) :] == own
    rest = result[: len(result) - len(own)]
    assert {entry.lstrip("!")[0] for entry in rest}.isdisjoint(entry.lstrip("!")[0] for entry in own)
    assert rest == [entry for entry in base if entry in rest]


# ---- recipes that come with imgkit -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["alpine", "core"])
def test_a_recipe_outside_the_repository_builds_on_one_that_came_with_imgkit(name: str, tmp_path: Path) -> None:
    (tmp_path / "image.py").write_text(f'extends = "imgkit:{name}"\nname = "mine"\npackages = ["htop"]\n')
    recipe, base = load(tmp_path / "image.py"), load(ROOT / f"recipes/{name}.py")
    assert recipe.packages == (*base.packages, "htop")
    assert recipe.model_copy(update={"packages": base.packages, "name": base.name}) == base


def test_which_recipes_come_with_imgkit(tmp_path: Path) -> None:
    assert {"alpine", "core", "sandbox_image"} <= set(shipped.names())
    assert shipped.path("alpine") == ROOT / "recipes/alpine.py"
    assert shipped.path("arch") is None
    assert shipped.folder(tmp_path / "imgkit") == tmp_path
    (tmp_path / "imgkit/data").mkdir(parents=True)
    assert shipped.folder(tmp_path / "imgkit") == tmp_path / "imgkit/data"


# ---- faults ----------------------------------------------------------------------------------------------------------


def test_every_fault_names_the_module_that_it_comes_from(tmp_path: Path) -> None:
    base = BASE.replace('"base"', '"a b"').replace('"tini"', "3").replace('"uid": 1001', '"uid": 0')
    path = write(tmp_path, 'size = "4M"\nservices = {"boot": ["!sshd", "x y"]}\npakages = []', base)
    folder = tmp_path / "base/base.py"
    found = problems(path)
    assert [problem.partition(":")[0] for problem in found] == [
        "services.boot",
        "size",
        "container.packages.0",
        "hostname",
        "services.boot.2",
        "users.1.uid",
        "pakages",
    ]
    assert found[0] == "services.boot: !sshd: the recipe that this one extends has no such service in this runlevel"
    assert {problem.partition(":")[0] for problem in found if problem.endswith(f" (in {folder})")} == {
        "container.packages.0",
        "hostname",
        "users.1.uid",
    }
    assert not any("(in" in problem for problem in found if problem.startswith(("size", "services", "pakages")))


def test_contradictions_name_their_module_too(tmp_path: Path) -> None:
    base = BASE.replace('"16M"', '"1M"')
    (problem,) = problems(write(tmp_path, 'architectures = {"arm64": None}', base))
    assert problem.startswith("architectures.amd64.partitions: an esp of 1M is too small")
    assert problem.endswith(f"(in {tmp_path / 'base/base.py'})")


def test_two_users_of_one_number_are_the_fault_of_the_recipe_that_adds_one(tmp_path: Path) -> None:
    assert problems(write(tmp_path, 'users = [{"name": "x", "uid": 1000}]')) == ("users: two users have the same uid",)


def test_a_fault_of_the_command_line_is_nobody_elses(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load(write(tmp_path, ""), {"hostname": "a b"}, {"hostname": "--set hostname"})
    assert caught.value.message.startswith("--set hostname: ")
    assert "(in" not in caught.value.message


def test_a_base_need_not_be_complete(tmp_path: Path) -> None:
    assert made(tmp_path, 'branch = "v3.22"', BASE.replace('branch = "v3.23"', "")).branch == "v3.22"
    assert problems(tmp_path / "base/base.py") == ("branch: must be given",)


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ('"bas/base.py"', "extends: bas/base.py does not exist", "a path is relative to {folder}"),
        ('"base/bse.py"', "extends: base/bse.py does not exist", "did you mean base.py?"),
        ('"imgkit:alpin"', "extends: no recipe of the name 'alpin' comes with imgkit", "did you mean alpine?"),
        ('"imgkit:../x"', "extends: no recipe of the name '../x' comes with imgkit", "there are alpine, c"),
        ("3", "extends: must be the path of a recipe, or imgkit:NAME (it is 3)", ""),
        ('""', "extends: must be the path of a recipe, or imgkit:NAME (it is '')", ""),
    ],
)
def test_a_base_that_cannot_be_found(line: str, message: str, hint: str, tmp_path: Path) -> None:
    path = write(tmp_path, "")
    path.write_text(f"extends = {line}")
    with pytest.raises(RecipeError) as caught:
        load(path)
    assert caught.value.message == f"{path}: {message}"
    assert (caught.value.hint or "").startswith(hint.format(folder=tmp_path))


def test_a_misspelt_field(tmp_path: Path) -> None:
    path = write(tmp_path, "")
    path.write_text(BASE + 'extend = "base/base.py"\noverlay = None\n')
    assert problems(path) == ("extend: no such field (did you mean extends?)",)


def test_recipes_that_extend_each_other(tmp_path: Path) -> None:
    first, second = tmp_path / "a.py", tmp_path / "b.py"
    first.write_text('extends = "b.py"')
    second.write_text(f'extends = "../{tmp_path.name}/a.py"')
    with pytest.raises(RecipeError, match="recipes extend each other in a circle") as caught:
        load(first)
    names = [Path(name).name for name in caught.value.message.partition("circle: ")[2].split(" → ")]
    assert names == ["a.py", "b.py", "a.py"]


def test_an_exception_in_a_base_names_its_line(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"base/base\.py:2: ZeroDivisionError"):
        load(write(tmp_path, "", "\n1/0\n"))
