"""Repositories with tags: what the real apk chooses from them, in random worlds."""

from __future__ import annotations

import random
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from imgkit.apk.index import Package, Repository
from imgkit.apk.solver import UnknownPackageError, UnknownTagError, UnsatisfiableError, solve
from tests.test_solver_oracle import Apk, machine, relation, repository

if TYPE_CHECKING:
    from fixtures.mirror import Mirror

pytestmark = pytest.mark.mirror
__all__ = ["machine"]

TAGS = (None, "t", "u")


class TaggedApk(Apk):
    """The real apk with one repository for each of :data:`TAGS`."""

    def __init__(self, mirror: Mirror, scratch: Path, *, machine: str) -> None:
        super().__init__(mirror, scratch, machine=machine, arch=machine)
        lines = []
        for tag in TAGS:
            folder = scratch / f"repository-{tag}"
            (folder / machine).mkdir(parents=True)
            lines.append(f"@{tag} {folder}\n" if tag else f"{folder}\n")
        (scratch / "repositories").write_text("".join(lines))

    def publish_tagged(self, packages: Mapping[str | None, Sequence[Package]]) -> None:
        for tag in TAGS:
            self.publish(packages[tag])
            index = f"{self.arch}/APKINDEX.tar.gz"
            (self.scratch / "repository" / index).rename(self.scratch / f"repository-{tag}" / index)

    def add(self, world: Sequence[str]) -> subprocess.CompletedProcess[str]:
        repositories = ["--repositories-file", str(self.scratch / "repositories")]
        return self.run("--no-cache", *repositories, "add", "--simulate", *world)


def tagged(dice: random.Random) -> tuple[dict[str | None, list[Package]], str]:
    """Return the packages of each repository, and all names. A package may be in two of them, in two versions."""
    packages, names = repository(dice)
    others, _ = repository(dice)
    groups: dict[str | None, list[Package]] = {tag: [] for tag in TAGS}
    for package in [*packages, *others]:
        tag = dice.choice([None, None, "t", "t", "u"])
        if not any((one.name, one.version) == (package.name, package.version) for one in groups[tag]):
            groups[tag].append(package)
    return groups, names


def located(groups: Mapping[str | None, Sequence[Package]]) -> list[Package]:
    """Return all packages with their repositories, in the order of these."""
    return [
        replace(package, repository=Repository(position, f"r{position}", tag))
        for position, tag in enumerate(TAGS)
        for package in groups[tag]
    ]


def _as_apk_prints(package: Package) -> str:
    tag = f"@{package.repository.tag}" if package.repository.tag else ""
    return f"{package.name}{tag}-{package.version}"


def ours(world: Sequence[str], packages: Sequence[Package], arch: str) -> list[str] | None:
    try:
        return [_as_apk_prints(one) for one in solve(world, packages, arch=arch)]
    except (UnknownPackageError, UnsatisfiableError, UnknownTagError):
        return None


def _by_name(world: Sequence[str]) -> list[str]:
    """Return the world without second entries for a name: ``apk add`` takes the last one only."""
    return list({re.split("[@<>=~]", entry.lstrip("!"))[0]: entry for entry in world}.values())


def pinned(dice: random.Random, names: Sequence[str]) -> str:
    """Return an entry of a world; half of them have a tag, which apk writes before the operator."""
    entry = relation(dice, names, 0.05)
    tag = dice.choice(["", "@t", "@t", "@u"]) if not entry.startswith("!") else ""
    return re.sub(r"^([^<>=~]+)", rf"\1{tag}", entry)


def test_random_worlds_with_tags_come_out_as_with_apk(mirror: Mirror, machine: str, tmp_path: Path) -> None:
    apk = TaggedApk(mirror, tmp_path, machine=machine)
    dice = random.Random(17)
    solved = from_tags = more = 0
    for _ in range(400):
        groups, names = tagged(dice)
        if not all(groups.values()):
            continue  # apk knows the tag of an empty repository, too
        world = _by_name([pinned(dice, names) for _ in range(dice.randint(1, 4))])
        apk.publish_tagged(groups)
        packages = located(groups)
        theirs, mine = apk.order(world), ours(world, packages, machine)
        if theirs is not None:
            assert mine == theirs, (world, groups)
        solved += theirs is not None
        more += theirs is None and mine is not None
        from_tags += any("@" in name for name in theirs or ())
    assert solved > 60
    assert from_tags > 30
    assert more < 60


def with_copies(dice: random.Random, groups: dict[str | None, list[Package]]) -> None:
    """Put copies of packages into further repositories, as a company has them that mirrors some of Alpine's."""
    for tag in TAGS:
        for package in [*groups[tag]]:
            other = dice.choice([one for one in TAGS if one != tag])
            known = {(one.name, one.version) for one in groups[other]}
            if dice.random() < 0.3 and (package.name, package.version) not in known:
                groups[other].append(package)


def test_copies_of_a_package_in_several_repositories(mirror: Mirror, machine: str, tmp_path: Path) -> None:
    """A copy may be used where one of its repositories may. apk does not always print the tag of the first one."""
    apk = TaggedApk(mirror, tmp_path, machine=machine)
    dice = random.Random(206)
    solved = copied = 0
    for _ in range(300):
        groups, names = tagged(dice)
        if not all(groups.values()):
            continue
        with_copies(dice, groups)
        world = _by_name([pinned(dice, names) for _ in range(dice.randint(1, 4))])
        apk.publish_tagged(groups)
        theirs, mine = apk.order(world), ours(world, located(groups), machine)
        if theirs is not None:
            assert _untagged(mine or []) == _untagged(theirs), (world, groups)
            copied += mine != theirs
        solved += theirs is not None
    assert solved > 40
    assert copied < 10


def _untagged(names: Sequence[str]) -> list[str]:
    return [re.sub("@[tu]", "", name) for name in names]
