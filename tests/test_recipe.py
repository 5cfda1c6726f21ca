"""Recipes: what is accepted, and that every fault is named, all of them at once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkit.errors import RecipeError, UsageError
from imgkit.recipe import Recipe, load, parse_setting, parse_size

ROOT = Path(__file__).parent.parent

GOOD_ARCH = """
alpine = "x86_64"
partitions = [{"kind": "esp", "size": "16M"}, {"kind": "root"}]
grub_platforms = ["x86_64-efi"]
consoles = ["ttyS0"]
"""
GOOD = """
from .arch import pc
branch = "v3.23"
packages = ["busybox"]
architectures = {"amd64": pc}
"""


def write(folder: Path, text: str = GOOD, arch: str = GOOD_ARCH) -> Path:
    (folder / "arch").mkdir(exist_ok=True)
    (folder / "arch" / "pc.py").write_text(arch)
    path = folder / "image.py"
    path.write_text(text)
    return path


def faults(folder: Path, text: str = GOOD, arch: str = GOOD_ARCH) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as caught:
        load(write(folder, text, arch))
    assert "\n" not in caught.value.message
    return caught.value.problems or (caught.value.message,)


def test_the_default_recipe_loads_for_both_architectures() -> None:
    recipe = load(ROOT / "recipes" / "alpine.py")
    assert set(recipe.architectures) == {"amd64", "arm64"}
    assert recipe.architecture("arm64").alpine == "aarch64"
    assert recipe.overlay == ROOT / "overlay"


def test_a_recipe_is_frozen_all_the_way_down(tmp_path: Path) -> None:
    recipe = load(write(tmp_path, GOOD + 'services = {"boot": ["x"]}\n'))
    with pytest.raises(Exception, match="frozen"):
        recipe.size = "8G"
    with pytest.raises(TypeError):
        recipe.services["boot"] = ()  # type: ignore[index]
    assert isinstance(recipe.packages, tuple)


def test_loading_leaves_nothing_behind(tmp_path: Path) -> None:
    before = set(sys.modules)
    load(write(tmp_path))
    assert set(sys.modules) == before
    assert not list(tmp_path.rglob("*.pyc"))


def test_two_recipes_do_not_see_each_others_modules(tmp_path: Path) -> None:
    for name, console in (("a", "ttyS0"), ("b", "ttyS1")):
        folder = tmp_path / name
        folder.mkdir()
        path = write(folder, arch=GOOD_ARCH.replace("ttyS0", console))
        assert load(path).architecture("amd64").consoles == (console,)


def test_private_names_functions_and_imports_are_the_recipes_own_business(tmp_path: Path) -> None:
    text = GOOD + "import os\nfrom pathlib import Path\n_helper = 3\ndef more(): return []\npackages += more()\n"
    assert load(write(tmp_path, text)).packages == ("busybox",)


def test_overrides_beat_the_recipe(tmp_path: Path) -> None:
    assert load(write(tmp_path), {"size": "8G"}).size == "8G"


def test_missing_recipe_suggests_a_neighbour(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(RecipeError, match="no such recipe") as caught:
        load(tmp_path / "imge.py")
    assert "image.py" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("size = = 3", r"image\.py:1: not Python"),
        ("1/0", r"image\.py:1: ZeroDivisionError"),
        ("import sys; sys.exit(0)", r"image\.py:1: SystemExit"),
        ("from .arch import sparc", r"ImportError"),
    ],
)
def test_recipes_that_cannot_run(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load(write(tmp_path, text))


def test_binary_recipe(tmp_path: Path) -> None:
    path = tmp_path / "image.py"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not Python"):
        load(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("pakages = []", "pakages: no such field (did you mean packages?)"),
        ("size = 4", "size: input should be a valid string (it is 4)"),
        ("size = '4 gigs'", "size: '4 gigs' is not a size"),
        ("size = '4M'", "size: 4M is out of range"),
        ("packages = 'bash'", "packages: input should be a list, such as [a, b] (it is 'bash')"),
        ("branch = '3.23'", "branch: string should match pattern"),
        ("hostname = 'a b'", "hostname: string should match pattern"),
        ("services = {'bot': []}", "services.bot"),
        ("users = [{'name': 'x', 'uid': 0}]", "users.0.uid"),
        ("users = [{'name': 'x', 'uid': 5}, {'name': 'y', 'uid': 5}]", "users: two users"),
        ("overlay = 'nowhere'", "overlay: "),
        ("release_key = 'nowhere'", "release_key: "),
        ("mirror = 'ftp://x'", "mirror: "),
        ("architectures = {}", "architectures: there is none"),
        ("compression = 'lzma'", "compression: "),
        ("skip_scripts = [3]", "skip_scripts.0: "),
    ],
)
def test_each_fault_has_its_own_line(tmp_path: Path, line: str, message: str) -> None:
    (problem,) = faults(tmp_path, GOOD + line)
    assert problem.removeprefix(f"{tmp_path}/image.py: ").startswith(message.rstrip())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("colour = 'red'", "architectures.amd64.colour: no such field"),
        ("alpine = 'sparc'", "architectures.amd64.alpine: "),
        ("partitions = [{'kind': 'root'}]", "GRUB for EFI needs an esp"),
        ("grub_platforms = ['i386-pc']", "needs a bios-boot"),
        ("partitions = [{'kind': 'root'}, {'kind': 'esp', 'size': '9M'}]", "last place"),
        ("partitions = [{'kind': 'esp'}, {'kind': 'root'}]", "needs a size"),
        ("partitions = [{'kind': 'esp', 'size': '9M'}, {'kind': 'esp', 'size': '9M'}, {'kind': 'root'}]", "same kind"),
    ],
)
def test_faults_of_an_architectures_module(tmp_path: Path, line: str, message: str) -> None:
    (problem,) = faults(tmp_path, arch=GOOD_ARCH + line)
    assert message in problem


def test_all_faults_are_reported_at_once(tmp_path: Path) -> None:
    found = faults(tmp_path, "from .arch import pc\narchitectures={'amd64': pc}\nsize = 4\ncolor = 1", "alpine = 3")
    places = {problem.partition(":")[0] for problem in found}
    assert {"branch", "packages", "size", "color", "architectures.amd64.alpine"} <= places
    assert "architectures.amd64.consoles" in places


def test_unknown_architecture(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="sparc"):
        load(write(tmp_path)).architecture("sparc")


def test_settings_from_the_command_line() -> None:
    assert parse_setting("size=8G") == ("size", "8G")
    assert parse_setting("hostname=no") == ("hostname", "no")
    assert parse_setting("packages=[bash, git]") == ("packages", ["bash", "git"])
    with pytest.raises(UsageError, match="no '='"):
        parse_setting("size")
    with pytest.raises(UsageError, match="no such field") as caught:
        parse_setting("sise=3G")
    assert "size" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4G", 4 << 30),
        ("512M", 512 << 20),
        ("1048576", 1 << 20),
        ("1GiB", 1 << 30),
        ("64gb", 64 << 30),
        ("2T", 2 << 40),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@given(st.integers(1, 1 << 50))
def test_sizes_survive_a_round_trip(size: int) -> None:
    assert parse_size(str(size)) == size


@pytest.mark.parametrize("text", ["", "G", "-1G", "4 G", "4X", "1.5G", "0", "0M", "4 G G", "\u0664G", "1" * 30])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="not a size"):
        parse_size(text)


def test_every_field_of_a_recipe_has_a_type_that_yaml_can_give() -> None:
    assert all(field.annotation is not None for field in Recipe.model_fields.values())


@pytest.mark.parametrize("policy", ["warn", "strict", "prune"])
def test_what_becomes_of_other_platforms_binaries(tmp_path: Path, policy: str) -> None:
    assert load(write(tmp_path)).payload_binaries == "warn"
    name, value = parse_setting(f"payload_binaries={policy}")
    assert load(write(tmp_path), {name: value}).payload_binaries == policy


def test_a_policy_that_is_none(tmp_path: Path) -> None:
    (fault,) = faults(tmp_path, GOOD + 'payload_binaries = "ignore"\n')
    assert "payload_binaries: input should be 'warn', 'strict' or 'prune' (it is 'ignore')" in fault


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 5000, "2026-99-99", "[", "{a: b"])
def test_absurd_settings_are_wrong_usage(value: str) -> None:
    with pytest.raises(UsageError, match="not a value in YAML") as caught:
        parse_setting(f"users={value}")
    assert len(caught.value.message) < 200
