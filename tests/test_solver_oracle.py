"""A second opinion on the solver: the real apk of the image, and the log of what it did when the image was made."""

from __future__ import annotations

import io
import platform
import random
import re
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from imgkit.apk.index import Package, format_record, parse_record
from imgkit.apk.solver import UnknownPackage, Unsatisfiable, solve

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
    names = [str(one) for one in solve(made.world, made.packages, arch=arch).packages]
    assert sorted(names) == sorted(map(str, made.packages))
    assert [name for name in names if name in made.log] == [*made.log]
    base = {one.name: one for one in made.packages if str(one) not in made.log}
    upon = solve(made.world, made.packages, arch=arch, installed=base).packages
    assert [str(one) for one in upon if one.name not in base] == [*made.log]


def _place(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if member.issym():
        path.symlink_to(member.linkname)
    elif (content := archive.extractfile(member)) is not None:
        path.write_bytes(content.read())
        path.chmod(0o755)


class Apk:
    """The image's apk, started through its own dynamic linker with an index of ``packages``."""

    def __init__(self, mirror: Mirror, arch: str, packages: Sequence[Package], scratch: Path) -> None:
        self.arch, self.scratch = arch, scratch
        with tarfile.open(mirror.oracle[arch]) as archive:
            for member in archive:
                path = member.name.removeprefix("./")
                if RUNNABLE.fullmatch(path):
                    _place(archive, member, scratch / "image" / path)
        folder = scratch / "repository" / arch
        folder.mkdir(parents=True)
        with tarfile.open(folder / "APKINDEX.tar.gz", "w:gz") as archive:
            for name, text in (("DESCRIPTION", "x"), ("APKINDEX", "\n".join(map(self._record, packages)) + "\n")):
                entry = tarfile.TarInfo(name)
                entry.size = len(text.encode())
                archive.addfile(entry, io.BytesIO(text.encode()))
        self.run("--initdb", "add")

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

    def add(self, world: Sequence[str]) -> list[str] | None:
        """Names of what apk would install, sorted; None if it refuses."""
        repositories = ["--repositories-file", "/dev/null", "--repository", str(self.scratch / "repository")]
        ended = self.run("--no-cache", *repositories, "add", "--simulate", *world)
        found = re.findall(r"Installing (\S+) \((\S+)\)", ended.stdout)
        return sorted(f"{name}-{version}" for name, version in found) if ended.returncode == 0 else None


def test_random_worlds_come_out_as_with_apk(mirror: Mirror, tmp_path: Path) -> None:
    arch = platform.machine()
    if arch not in mirror.oracle:
        pytest.skip(f"the mirror has no apk that runs on {arch}")
    packages = image(mirror, arch).packages
    apk = Apk(mirror, arch, packages, tmp_path)
    assert apk.add(["no-such-package"]) is None, "the oracle can say no"
    dice = random.Random(3)
    names = [one.name for one in packages]
    refused = 0
    for _ in range(60):
        world = dice.sample(names, dice.randint(1, 8))
        world = ["!" + name if dice.random() < 0.08 else name for name in world]
        try:
            mine = sorted(str(one) for one in solve(world, packages, arch=arch).packages)
        except (UnknownPackage, Unsatisfiable):
            mine = None
        assert mine == apk.add(world), world
        refused += mine is None
    assert 0 < refused < 40
