"""Recipes: what is accepted, and that every fault is named, all of them at once."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkit.errors import RecipeError, UsageError
from imgkit.recipe import (
    OFFICIAL_MIRROR,
    AgentSpec,
    ContainerSpec,
    OverlaySpec,
    Recipe,
    load,
    parse_setting,
    parse_size,
)

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
    assert recipe.overlay == OverlaySpec(path=ROOT / "overlay", modes="git")


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
        ("branch = '3.23'", "branch: is not a branch such as v3.23, edge or latest-stable (it is '3.23')"),
        (
            "outputs = ['iso']",
            "outputs.0: input should be 'disk', 'rootfs', 'oci', 'oci-archive' or 'docker-archive' (it is 'iso')",
        ),
        ("outputs = []", "outputs: must not be empty"),
        ("version = '3.23'", "version: is not a version such as 3.23.6 (it is '3.23')"),
        (
            "base = 'docker:alpine'",
            "base: is not a base such as oci:alpine:3.23 or oci:./folder (it is 'docker:alpine')",
        ),
        (
            "name = 'a b'",
            "name: is not a name: letters, digits and . _ + -, the first of them a letter, a digit or _ (it is 'a b')",
        ),
        (
            "hostname = 'a b'",
            "hostname: is not a host name: lower-case letters, digits and inner hyphens, 63 of them at most",
        ),
        (
            "services = {'bot': []}",
            "services.bot: input should be 'sysinit', 'boot', 'default', 'nonetwork' or 'shutdown' (it is 'bot')",
        ),
        ("users = [{'name': 'x', 'uid': 0}]", "users.0.uid"),
        ("users = [{'name': 'x', 'uid': 5}, {'name': 'y', 'uid': 5}]", "users: two users"),
        ("overlay = 'nowhere'", "overlay: "),
        ("release_key = 'nowhere'", "release_key: "),
        ("mirror = 'ftp://x'", "mirror: "),
        ("architectures = {}", "architectures: at least one is needed"),
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
        ("console = 'ttyS0'", "architectures.amd64.console: no such field (did you mean consoles?)"),
        ("pakages = ['bash']", "architectures.amd64.pakages: no such field (did you mean packages?)"),
        (
            "partitions = [{'kind': 'root', 'siz': '9M'}]",
            "architectures.amd64.partitions.0.siz: no such field (did you mean size?)",
        ),
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


@pytest.mark.slow
@pytest.mark.parametrize("value", ["9" * 5000, "[" * 5000, "2026-99-99", "[", "{a: b"])
def test_absurd_settings_are_wrong_usage(value: str) -> None:
    with pytest.raises(UsageError, match="not a value in YAML") as caught:
        parse_setting(f"users={value}")
    assert len(caught.value.message) < 200


# ---- boundaries and messages -----------------------------------------------------------------------------------------


def message(path: Path, overrides: Mapping[str, object], origins: Mapping[str, str]) -> str:
    with pytest.raises(UsageError) as caught:
        load(path, overrides, origins)
    return caught.value.message


@pytest.mark.parametrize(
    ("size", "fits"), [("256M", True), ("255M", False), (str((256 << 20) - 1), False), ("2T", True), ("2049G", False)]
)
def test_sizes_of_images(tmp_path: Path, size: str, fits: bool) -> None:
    if fits:
        assert load(write(tmp_path), {"size": size}).size == size
    else:
        fault = message(write(tmp_path), {"size": size}, {"size": "IMAGE_SIZE"})
        assert fault.startswith(f"IMAGE_SIZE: {size} is out of range: a disk has 256M to 2T")


def test_the_units_of_sizes() -> None:
    assert [parse_size(f"1{unit}") for unit in ("", "K", "M", "G", "T")] == [1, 1 << 10, 1 << 20, 1 << 30, 1 << 40]
    assert parse_size("9" * 18) == int("9" * 18)
    assert parse_size("3kb") == parse_size("3KiB") == 3 << 10
    with pytest.raises(ValueError, match=r"^'5 X' is not a size such as 4G or 512M$"):
        parse_size("5 X")


@pytest.mark.parametrize(("size", "fits"), [("9M", True), (str((9 << 20) - 1), False)])
def test_the_smallest_esp(tmp_path: Path, size: str, fits: bool) -> None:
    path = write(tmp_path, arch=GOOD_ARCH.replace("16M", size))
    if fits:
        assert load(path).architecture("amd64").partitions[0].size == size
    else:
        with pytest.raises(RecipeError) as caught:
            load(path)
        fault = f"architectures.amd64.partitions: an esp of {size} is too small: its FAT16 needs 9M"
        assert caught.value.message == f"{path}: {fault}"
        assert caught.value.problems == (fault,)


def test_faults_of_overrides_name_where_they_come_from(tmp_path: Path) -> None:
    path = write(tmp_path)
    origins = {"size": "IMAGE_SIZE", "branch": "--branch"}
    assert message(path, {"size": "x"}, origins).startswith("IMAGE_SIZE: 'x' is not a size such as 4G or 512M")
    both = message(path, {"size": "x", "branch": "3"}, origins)
    assert both.startswith("--branch: is not a branch such as")
    assert "; IMAGE_SIZE: 'x' is not a size" in both
    wrong = "'ftp://x' is not an http(s) URL, nor a folder such as /srv/alpine"
    assert message(path, {"mirror": "ftp://x"}, {"mirror": "--mirror"}) == f"--mirror: {wrong}"


def test_faults_of_the_recipe_count_beside_those_of_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + "hostname = 'a b'")
    with pytest.raises(RecipeError) as caught:
        load(path, {"size": "x"}, {"size": "--size"})
    assert caught.value.message.startswith(f"{path}: 2 faults: size: 'x' is not a size")
    assert len(caught.value.problems) == 2


def test_missing_recipes_have_a_hint(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path / "imge.py")
    assert caught.value.message == f"{tmp_path}/imge.py: no such recipe"
    assert caught.value.hint == "give the path of a recipe, e.g. recipes/alpine.py"
    write(tmp_path)
    with pytest.raises(RecipeError) as caught:
        load(tmp_path / "imge.py")
    assert caught.value.hint == f"did you mean {tmp_path}/image.py?"


def test_a_recipe_that_is_no_python_file(tmp_path: Path) -> None:
    path = tmp_path / "image.txt"
    path.write_text(GOOD)
    with pytest.raises(RecipeError) as caught:
        load(path)
    assert caught.value.message == f"{path}: not a Python file"
    assert caught.value.hint == "a recipe's name ends in .py"


def test_faults_below_the_recipe_name_their_own_line(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"arch/pc\.py:2: ZeroDivisionError: division by zero$"):
        load(write(tmp_path, arch="x = 1\ny = 1 / 0\n"))
    with pytest.raises(RecipeError, match=r"arch/pc\.py:1: not Python: "):
        load(write(tmp_path, arch="x = = 1\n"))


def test_interrupts_and_recipe_errors_pass_through(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        load(write(tmp_path, "raise KeyboardInterrupt"))
    with pytest.raises(RecipeError, match=r"^of its own$"):
        load(write(tmp_path, "from imgkit.errors import RecipeError\nraise RecipeError('of its own')"))
    assert not [name for name in sys.modules if name.startswith("_imgkit_recipe")]


@pytest.mark.parametrize("before", [False, True])
def test_writing_bytecode_is_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", before)
    path = write(tmp_path, GOOD + "import sys\n_flag = sys.dont_write_bytecode\nassert _flag\n")
    load(path)
    assert sys.dont_write_bytecode is before


def test_paths_are_those_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "key.asc").write_text("")
    recipe = load(write(tmp_path, GOOD + "overlay = 'files'\nrelease_key = 'key.asc'\n"))
    assert recipe.overlay == OverlaySpec(path=tmp_path / "files")
    assert recipe.release_key == tmp_path / "key.asc"
    assert faults(tmp_path, GOOD + "overlay = 'key.asc'") == (f"overlay: {tmp_path}/key.asc is not a folder",)
    assert faults(tmp_path, GOOD + "release_key = 'files'") == (f"release_key: {tmp_path}/files is not a file",)
    assert faults(tmp_path, GOOD + "agent_runner = 'none'") == (f"agent_runner: {tmp_path}/none does not exist",)


def test_the_architectures_of_a_recipe_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load(write(tmp_path)).architecture("sparc")
    assert caught.value.message == "sparc: no such architecture in this recipe"
    assert caught.value.hint == "it has amd64"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("read_only_root=true", True),
        ("read_only_root=no", False),
        ("version=3.20", "3.20"),
        ("version=null", None),
        ("version=7", "7"),
        ("size=010", "010"),
        ("initramfs_features=[]", []),
        ("branch=a=b", "a=b"),
    ],
)
def test_values_of_settings(text: str, value: object) -> None:
    assert parse_setting(text) == (text.partition("=")[0], value)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("size", "--set size: no '=' in it", "write --set size=8G"),
        ("sise=3G", "--set sise: recipes have no such field", "did you mean size?"),
        ("users=[", "--set users=[: not a value in YAML", "lists are written [a, b]"),
    ],
)
def test_settings_that_are_wrong(text: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_setting(text)
    assert (caught.value.message, caught.value.hint) == (message, hint)


def test_an_unknown_setting_without_a_neighbour_lists_the_fields() -> None:
    with pytest.raises(UsageError) as caught:
        parse_setting("zzz=1")
    assert str(caught.value.hint).startswith(
        "the fields are name, mirror, guest_mirror, outputs, base, base_setuid, branch"
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sise = 4", "sise: no such field (did you mean size?)"),
        ("zzz = 4", "zzz: no such field (docs/reference/recipe.md has all fields)"),
        ("container = {'comand': ['sh']}", "container.comand: no such field (did you mean command?)"),
        ("container = {'ports': ['http']}", "container.ports.0: is not a port such as 8080 or 53/udp (it is 'http')"),
        ("container = {'ports': [0]}", "container.ports.0: is not a port such as 8080 or 53/udp"),
        ("container = {'ports': ['65536']}", "container.ports.0: is not a port such as 8080 or 53/udp (it is '65536')"),
        (
            "container = {'stop_signal': 'TERM'}",
            "container.stop_signal: is not a signal such as SIGTERM or SIGRTMIN+3 (it is 'TERM')",
        ),
        ("container = {'env': {'A=B': ''}}", "container.env: 'A=B' is not the name of a variable"),
        ("container = {'env': {'': ''}}", "container.env: '' is not the name of a variable"),
        ("outputs = []", "outputs: must not be empty"),
        ("users = [{'name': 'x', 'uid': 5, 'nam': 1}]", "users.0.nam: no such field (did you mean name?)"),
        ("users = [{'uid': 5}]", "users.0.name: must be given"),
        ("users = [{'name': 'x', 'uid': 0}]", "users.0.uid: input should be greater than or equal to 1 (it is 0)"),
        ("users = [{'name': 'x', 'uid': 65533}]",
         "users.0.uid: input should be less than or equal to 65532 (it is 65533)"),
        ("users = [{'name': 'x', 'uid': 5}, {'name': 'y', 'uid': 5}]", "users: two users have the same uid"),
        ("mirror = 'ftp://x'", "mirror: 'ftp://x' is not an http(s) URL, nor a folder such as /srv/alpine"),
        ("mirror = '/no/mirror'", "mirror: /no/mirror does not exist"),
        ("packages = None", "packages: input should be a list, such as [a, b] (it is None)"),
    ],
)  # fmt: skip
def test_whole_sentences(tmp_path: Path, line: str, message: str) -> None:
    assert faults(tmp_path, GOOD + line) == (message,)


def test_the_payload_of_the_agent_is_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    recipe = load(write(tmp_path, GOOD + "agent = {'command': ['x', ''], 'payload': 'mine'}"))
    assert recipe.agent == AgentSpec(command=("x", ""), payload=(tmp_path / "mine").resolve(), build="auto")
    assert load(write(tmp_path, GOOD + "agent = {'command': ['x']}")).agent == AgentSpec(command=("x",))


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ("{'command': ['x'], 'payload': 'none'}", "agent.payload: {folder}/none does not exist"),
        ("{'command': []}", "agent.command: names no program"),
        ("{'payload': '.'}", "agent.command: must be given"),
        ("{'command': ['a\\n']}", "agent.command: 'a\\n' has a control character"),
        ("{'command': ['x'], 'payloads': '.'}", "agent.payloads: no such field (did you mean payload?)"),
        ("'x'", "agent: input should be a valid dictionary or instance of AgentSpec (it is 'x')"),
    ],
)
def test_what_is_wrong_with_an_agent(value: str, fault: str, tmp_path: Path) -> None:
    (found,) = faults(tmp_path, f"{GOOD}agent = {value}")
    assert found.startswith(fault.format(folder=tmp_path))


def test_what_a_recipe_need_not_say(tmp_path: Path) -> None:
    recipe = load(write(tmp_path))
    stated = {"branch", "packages", "architectures"}
    assert {name: getattr(recipe, name) for name in Recipe.model_fields if name not in stated} == {
        "name": "linux",
        "mirror": OFFICIAL_MIRROR,
        "guest_mirror": OFFICIAL_MIRROR,
        "outputs": ("disk",),
        "base": None,
        "base_setuid": "keep",
        "disk_packages": (),
        "container": ContainerSpec(),
        "version": None,
        "repositories": ("main", "community"),
        "release_key": None,
        "size": "4G",
        "format": "qcow2",
        "compression": "zstd",
        "kernel": "virt",
        "initramfs_features": ("base", "ext4", "virtio"),
        "kernel_arguments": (),
        "read_only_root": False,
        "hostname": "sandbox",
        "network": "dhcp",
        "services": {},
        "users": (),
        "timezone": None,
        "overlay": None,
        "agent": None,
        "overlays": (),
        "files": (),
        "agent_runner": None,
        "agent_runner_build": "auto",
        "npm_scripts": False,
        "npm_git": False,
        "payload_binaries": "warn",
        "skip_scripts": (),
    }


def test_packages_of_both_shapes_and_of_one(tmp_path: Path) -> None:
    text = GOOD.replace("packages = [", "packages = ['both', ", 1)
    recipe = load(write(tmp_path, text + "disk_packages = ['disk']\ncontainer = {'packages': ['boxed']}\n"))
    disk, container = recipe.wanted("amd64", "disk"), recipe.wanted("amd64", "container")
    assert disk == (*recipe.packages, "disk", *recipe.architecture("amd64").packages)
    assert container == (*recipe.packages, "boxed")
    assert recipe.packages[0] == "both"


def test_how_a_container_is_started(tmp_path: Path) -> None:
    text = "container = {'ports': [8080, '53/udp', '080'], 'stop_signal': 'SIGRTMIN+3', 'env': {'A': ''}}\n"
    container = load(write(tmp_path, GOOD + text)).container
    assert container.ports == ("8080/tcp", "53/udp", "80/tcp")
    assert (container.stop_signal, dict(container.env)) == ("SIGRTMIN+3", {"A": ""})
    assert (container.entrypoint, container.command, container.user, container.workdir) == (None,) * 4
