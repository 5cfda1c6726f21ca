"""Real data of Alpine that every clone can have: the system in the wheel from which the offline mirror is made.

The tests on files of Alpine's own (tests/files.py) ask the same questions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fixtures.pins import BRANCH
from imgkit.apk.branches import branch_of
from imgkit.apk.signature import Keyring, verify_index
from imgkit.errors import InputError
from tests.realdata import (
    System,
    check_database,
    check_index,
    check_near_miss,
    check_scripts,
    check_solution,
    check_words,
    lacking,
)
from tests.test_recipes import recipe

if TYPE_CHECKING:
    from fixtures.mirror import Mirror

pytestmark = pytest.mark.mirror
ELSEWHERE = {"nodejs", "npm", "bash", "grub-bios", "grub-efi"}
"""Packages of recipes/core.py that the system does not have: the mirror has them from other registries."""


@pytest.fixture(scope="module", params=["x86_64", "aarch64"])
def system(request: pytest.FixtureRequest, mirror: Mirror) -> System:
    return System.read(request.param, mirror.oracle[request.param])


def test_its_records_are_reproduced_to_the_byte(system: System) -> None:
    check_index(system.index, 59)


def test_its_words_are_valid(system: System) -> None:
    check_words(system.packages)


def test_its_world_is_solved_as_apk_solved_it(system: System) -> None:
    names = check_solution(system.world, system.packages, system.arch)
    assert sorted(names) == sorted(package.name for package in system.packages)


@pytest.mark.parametrize("world", [["linux-virt"], ["openrc", "e2fsprogs"], ["so:libcrypto.so.3"], ["cmd:mkinitfs"]])
def test_parts_of_its_world_are_solved(system: System, world: list[str]) -> None:
    names = check_solution(world, system.packages, system.arch)
    assert 1 < len(names) < len(system.packages)


def test_a_name_that_is_nearly_right_is_suggested(system: System) -> None:
    check_near_miss(system.packages, system.arch, "busybxo", "busybox")


def test_it_has_everything_of_the_recipe_but_what_is_elsewhere(system: System) -> None:
    core = recipe("core")
    (facts,) = (facts for facts in core.architectures.values() if facts.alpine == system.arch)
    missing = lacking([*core.packages, *facts.packages], system.packages)
    assert {"nodejs", "npm"} <= missing <= ELSEWHERE
    without = [package for package in system.packages if package.name != "openrc"]
    assert lacking(["openrc"], without) == {"openrc"}


def test_its_database_comes_back(system: System) -> None:
    check_database(system.database, 59)


def test_its_scripts_are_understood(system: System) -> None:
    scripts = check_scripts(system.database)
    assert len(scripts) == 18
    assert {"busybox.trigger", "mkinitfs.trigger", "alpine-baselayout.pre-install"} <= scripts


def test_its_keys_are_keys_and_do_not_trust_the_mirror(system: System, mirror: Mirror) -> None:
    keyring = Keyring.from_files(system.keys)
    assert len(keyring.keys) == len(system.keys) >= 2
    assert all(name.startswith("alpine-devel@lists.alpinelinux.org-") for name in keyring.keys)
    index = mirror.root / BRANCH / "main" / system.arch / "APKINDEX.tar.gz"
    with pytest.raises(InputError, match=f"signed by an unknown key: {mirror.rsa_key_name}"):
        verify_index(index.read_bytes(), keyring, name=index.name)


def test_it_says_which_branch_it_is_of(system: System) -> None:
    assert branch_of(system.files["etc/alpine-release"].decode()) == BRANCH
