"""A second opinion on the solver: the real apk of the image, and the log of what it did when the image was made."""

from __future__ import annotations

import base64
import hashlib
import io
import platform
import random
import re
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from imgkit.apk.index import Package, format_record, parse_record
from imgkit.apk.solver import UnknownPackageError, UnsatisfiableError, solve
from imgkit.errors import RecipeError
from tests.test_solver import AS_APK, package

if TYPE_CHECKING:
    from fixtures.mirror import Mirror

pytestmark = pytest.mark.mirror


# What apk needs to run through its own dynamic linker, outside of its image.
RUNNABLE = re.compile(r"(lib/ld-musl-.*|usr/lib/lib(apk|crypto|ssl|z|zstd)\.so\..*|(usr/)?s?bin/apk)")


@dataclass(frozen=True)
class Image:
    """What apk left behind in the image of one architecture."""

    packages: tuple[Package, ...]
    world: tuple[str, ...]
    log: tuple[str, ...]


def image(mirror: Mirror, arch: str) -> Image:
    with tarfile.open(mirror.oracle[arch]) as archive:
        installed, world, log = (
            _text(archive, name) for name in ("lib/apk/db/installed", "etc/apk/world", "var/log/apk.log")
        )
    heads = [block.split("\nF:")[0].split("\n") for block in installed.strip("\n").split("\n\n")]
    return Image(
        tuple(parse_record(head) for head in heads),
        tuple(world.split()),
        tuple(f"{name}-{version}" for name, version in re.findall(r"Installing (\S+) \((\S+)\)", log)),
    )


def _text(archive: tarfile.TarFile, path: str) -> str:
    for name in (path, f"./{path}"):
        if name in archive.getnames():
            member = archive.extractfile(name)
            assert member is not None
            return member.read().decode()
    raise LookupError(path)


@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_the_image_would_be_installed_again_in_the_same_order(mirror: Mirror, arch: str) -> None:
    made = image(mirror, arch)
    names = [str(one) for one in solve(made.world, made.packages, arch=arch)]
    assert sorted(names) == sorted(map(str, made.packages))
    assert [name for name in names if name in made.log] == [*made.log]
    base = {one.name: one for one in made.packages if str(one) not in made.log}
    upon = solve(made.world, made.packages, arch=arch, installed=base)
    assert [str(one) for one in upon if one.name not in base] == [*made.log]


def _place(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if member.issym():
        path.symlink_to(member.linkname)
    elif (content := archive.extractfile(member)) is not None:
        path.write_bytes(content.read())
        path.chmod(0o755)


class Apk:
    """The image's apk, started through its own dynamic linker with an index of made-up packages."""

    def __init__(self, mirror: Mirror, scratch: Path, *, machine: str, arch: str) -> None:
        self.arch, self.scratch = arch, scratch
        with tarfile.open(mirror.oracle[machine]) as archive:
            for member in archive:
                path = member.name.removeprefix("./")
                if RUNNABLE.fullmatch(path):
                    _place(archive, member, scratch / "image" / path)
        (scratch / "repository" / arch).mkdir(parents=True)

    def publish(self, packages: Sequence[Package]) -> None:
        """Write the index, and make the root empty."""
        folder = self.scratch / "repository" / self.arch
        with tarfile.open(folder / "APKINDEX.tar.gz", "w:gz", compresslevel=1) as archive:
            for name, text in (("DESCRIPTION", "x"), ("APKINDEX", "\n".join(map(self._record, packages)) + "\n")):
                entry = tarfile.TarInfo(name)
                entry.size = len(text.encode())
                archive.addfile(entry, io.BytesIO(text.encode()))
        if not (self.scratch / "root").exists():
            assert self.run("--initdb", "add").returncode == 0

    @staticmethod
    def _record(package: Package) -> str:
        return "".join(line for line in format_record(package).splitlines(keepends=True) if line[0] not in "rq")

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        image = self.scratch / "image"
        (linker,) = image.glob("lib/ld-musl-*")
        (program,) = (path for path in image.glob("**/apk") if path.is_file())
        options = ["--root", str(self.scratch / "root"), "--arch", self.arch, "--allow-untrusted", "--no-network"]
        return subprocess.run(
            [str(linker), "--library-path", f"{image}/usr/lib:{image}/lib", str(program), *options, *words],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def add(self, world: Sequence[str]) -> subprocess.CompletedProcess[str]:
        repositories = ["--repositories-file", "/dev/null", "--repository", str(self.scratch / "repository")]
        return self.run("--no-cache", *repositories, "add", "--simulate", *world)

    def order(self, world: Sequence[str]) -> list[str] | None:
        """Return what apk would install, in its order; None if it refuses."""
        ended = self.add(world)
        found = re.findall(r"Installing (\S+) \((\S+)\)", ended.stdout)
        return [f"{name}-{version}" for name, version in found] if ended.returncode == 0 else None


@pytest.fixture
def machine(mirror: Mirror) -> str:
    """Return the architecture of this machine, if the mirror has an apk for it."""
    machine = platform.machine()
    if machine not in mirror.oracle:
        pytest.skip(f"the mirror has no apk that runs on {machine}")
    return machine


def ours(world: Sequence[str], packages: Sequence[Package], arch: str) -> list[str] | None:
    try:
        return [str(one) for one in solve(world, packages, arch=arch)]
    except (UnknownPackageError, UnsatisfiableError):
        return None


def by_name(world: Sequence[str]) -> list[str]:
    """Return the world without second entries for a name: ``apk add`` takes the last one only."""
    return list({re.split("[<>=~]", entry.lstrip("!"))[0]: entry for entry in world}.values())


def test_random_worlds_come_out_as_with_apk(mirror: Mirror, machine: str, tmp_path: Path) -> None:
    packages = image(mirror, machine).packages
    apk = Apk(mirror, tmp_path, machine=machine, arch=machine)
    apk.publish(packages)
    assert apk.order(["no-such-package"]) is None, "the oracle can say no"
    dice = random.Random(3)
    names = [one.name for one in packages]
    refused = 0
    for _ in range(60):
        world = dice.sample(names, dice.randint(1, 8))
        world = ["!" + name if dice.random() < 0.08 else name for name in world]
        mine = ours(world, packages, machine)
        assert mine == apk.order(world), world
        refused += mine is None
    assert 0 < refused < 40


def relation(dice: random.Random, names: Sequence[str], conflicts: float) -> str:
    operator = dice.choice(["", "", "", "", "=", "<", ">", ">=", "~"])
    sign = "!" if dice.random() < conflicts else ""
    return sign + dice.choice(names) + operator + (dice.choice("12") if operator else "")


def repository(dice: random.Random) -> tuple[list[Package], str]:
    """Return a few small packages that are much entangled, and the letters that are their names and virtual ones."""
    real = "abcdefghi"[: dice.randint(3, 9)]
    names = real + "uvw"[: dice.randint(0, 3)]
    conditional, prioritized, conflicting = dice.choice([0, 0, 0.2]), dice.choice([0, 0.3, 0.7]), dice.choice([0, 0.1])
    packages = []
    for name in real:
        for version in "12"[: dice.choice([1, 1, 1, 2])]:
            provided = dice.sample(names.replace(name, ""), dice.choice([0, 0, 1, 1, 2]))
            rules = dice.choice([1, 1, 2]) if dice.random() < conditional else 0
            identity = base64.b64encode(hashlib.sha1(f"{name}{version}{dice.random()}".encode()).digest()).decode()
            packages.append(
                Package(
                    name=name,
                    version=version,
                    identity=f"Q1{identity}",
                    size=1,
                    installed_size=1000,  # apk does not refuse a tag to packages without contents
                    provider_priority=dice.choice([1, 5, 10]) if dice.random() < prioritized else 0,
                    depends=tuple(relation(dice, names, conflicting) for _ in range(dice.choice([0, 1, 1, 2, 3]))),
                    provides=tuple(one + dice.choice(["", "", "=1", "=2"]) for one in provided),
                    install_if=tuple(relation(dice, names, 0.2 * (number > 0)) for number in range(rules)),
                )
            )
    return packages, names


def test_random_repositories_come_out_as_with_apk(mirror: Mirror, machine: str, tmp_path: Path) -> None:
    """Set and order are equal if apk finds a solution; if it refuses, the solver may still find one."""
    apk = Apk(mirror, tmp_path, machine=machine, arch=machine)
    dice = random.Random(7)
    solved = more = 0
    for _ in range(500):
        packages, names = repository(dice)
        world = by_name([relation(dice, names, 0.1) for _ in range(dice.randint(1, 4))])
        apk.publish(packages)
        theirs, mine = apk.order(world), ours(world, packages, machine)
        if theirs is not None:
            assert mine == theirs, (world, packages)
        solved += theirs is not None
        more += theirs is None and mine is not None
    assert solved > 50
    assert 0 < more < 50


def test_random_worlds_of_a_real_index_come_out_as_with_apk(
    real: tuple[Package, ...], mirror: Mirror, machine: str, tmp_path: Path
) -> None:
    apk = Apk(mirror, tmp_path, machine=machine, arch="aarch64")
    apk.publish(real)
    dice = random.Random(11)
    versions = {one.name: one.version for one in real}
    provided = {word.partition("=")[0] for one in real for word in one.provides}
    choices = (sorted(versions), sorted(provided))
    for _ in range(30):
        names = [dice.choice(choices[dice.random() < 0.12]) for _ in range(dice.randint(1, 15))]
        world = [_strained(dice, name, versions.get(name)) for name in names]
        world = by_name([*world, *(one for one in ("docs", "openrc", "busybox") if dice.random() < 0.2)])
        assert ours(world, real, "aarch64") == apk.order(world), world


def _strained(dice: random.Random, name: str, version: str | None) -> str:
    if version is not None and dice.random() < 0.06:
        return name + dice.choice(["=", ">=", "<", "<=", ">", "~"]) + version
    return "!" + name if dice.random() < 0.04 else name


def test_pinned_worlds_come_out_with_apk_as_the_fast_tests_say(mirror: Mirror, machine: str, tmp_path: Path) -> None:
    apk = Apk(mirror, tmp_path, machine=machine, arch=machine)
    for title, (world, packages, expected) in AS_APK.items():
        apk.publish([_indexed(package(text)) for text in packages])
        assert apk.order(world.split()) == expected.split(), title


def _indexed(package: Package) -> Package:
    """Return the package with an identity that apk can read, and sizes."""
    digest = base64.b64encode(hashlib.sha1(package.identity.encode()).digest()).decode()
    return replace(package, identity=f"Q1{digest}", size=1, installed_size=1000)


def test_apk_refuses_an_unknown_tag_too(mirror: Mirror, machine: str, tmp_path: Path) -> None:
    apk = Apk(mirror, tmp_path, machine=machine, arch=machine)
    packages = image(mirror, machine).packages
    apk.publish(packages)
    ended = apk.add(["musl@edge"])
    assert ended.returncode != 0
    assert "'musl@edge' does not exist" in ended.stderr
    with pytest.raises(RecipeError, match="no repository has the tag @edge"):
        solve(["musl@edge"], packages, arch=machine)
