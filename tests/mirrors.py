"""Make small signed mirrors with the packages that a test needs, in a fraction of a second.

They have the layout of real mirrors, a minirootfs with nothing but keys, and the faults that a test puts in.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fixtures import minirootfs
from fixtures.apkbuild import Apk, Entry, PkgInfo, SigningKey, build, gzip_member, signature_segment, tar_stream
from fixtures.keys import Keys
from fixtures.pins import BRANCH, RELEASE
from imgkit.tree import Tree

TIME = 1_700_000_000
ARCH = "x86_64"
RELEASES = f"/{BRANCH}/releases/{ARCH}"
LISTING = f"{RELEASES}/latest-releases.yaml"
ROOTFS = f"{RELEASES}/alpine-minirootfs-{RELEASE}-{ARCH}.tar.gz"
REPOSITORY = f"/{BRANCH}/main/{ARCH}"
INDEX = f"{REPOSITORY}/APKINDEX.tar.gz"
DESCRIPTION = f"v{RELEASE}-17-g54a39ace82a"

RECIPE = f"""
branch = "{BRANCH}"
size = "256M"
repositories = ["main"]
packages = ["hello"]
architectures = {{"amd64": {{
    "alpine": "x86_64",
    "partitions": [{{"kind": "bios-boot", "size": "1M"}}, {{"kind": "root"}}],
    "grub_platforms": ["i386-pc"],
    "consoles": ["ttyS0"],
}}}}
"""
"""A minimal recipe with the package ``hello``. Lines that are appended to it replace earlier ones."""


def package(
    name: str = "hello",
    version: str = "1.0-r0",
    *entries: Entry,
    key: SigningKey,
    scripts: Mapping[str, bytes] | None = None,
    **more: str | int | Sequence[str],
) -> Apk:
    """Return a signed package; ``more`` are lines of its .PKGINFO, such as ``depend=["musl"]``."""
    info: PkgInfo = {
        "pkgname": name,
        "pkgver": version,
        "pkgdesc": name,
        "url": "https://example.invalid/",
        "builddate": TIME,
        "arch": ARCH,
        "license": "MIT",
        **more,
    }
    return build(info, entries, key=key, scripts=scripts)


def another(apk: Apk, *entries: Entry, key: SigningKey) -> Apk:
    """Return another build of a package, with these entries and a valid signature, whose file has the same length."""
    chance = random.Random(apk.name)
    known = f"{apk.name} {apk.version} https://example.invalid/ pkgname = pkgver = builddate = license = MIT"
    for _ in range(5000):
        start = chance.randrange(len(known))  # what the package has elsewhere compresses as well as its name
        description = known[start : start + chance.randint(1, 16)].strip()
        licence = chance.choice(["", "MIT", "MITx", "MIT AND MIT", "mitten", "M I T"])
        candidate = package(apk.name, apk.version, *entries, key=key, pkgdesc=description, license=licence)
        if len(candidate.blob) == len(apk.blob) and candidate.identity != apk.identity:
            return candidate
    raise AssertionError("no description makes a package of the same length")


def minimal(keys: Keys) -> Tree:
    """Return the Tree of a minirootfs that trusts the mirror's key and has nothing else."""
    tree = Tree()
    for path in ("etc", "etc/apk", "etc/apk/keys", "lib", "lib/apk", "lib/apk/db"):
        tree.mkdir(path, mtime=TIME)
    tree.write(f"etc/apk/keys/{keys.signing.name}", keys.rsa_public, mtime=TIME)
    tree.write("etc/apk/world", "", mtime=TIME)
    return tree


@dataclass
class Small:
    """A mirror in the folder ``root``. Its files are written anew by :meth:`write`, or changed one by one."""

    root: Path
    keys: Keys
    packages: list[Apk] = field(default_factory=list)

    @property
    def release_key(self) -> Path:
        """The OpenPGP certificate that signs its releases."""
        return self.root.parent / "release-key.asc"

    def write(self, tree: Tree | None = None) -> Small:
        """Write the minirootfs (of ``tree``), its signature and list, the packages and their index."""
        self.release(tree or minimal(self.keys))
        self.file(REPOSITORY).mkdir(parents=True)
        for apk in self.packages:
            self.file(f"{REPOSITORY}/{apk.filename}").write_bytes(apk.blob)
        self.index(apk.record for apk in self.packages)
        self.release_key.write_bytes(self.keys.release_public)
        return self

    def release(self, tree: Tree) -> None:
        """Write the minirootfs, its signature and list."""
        minirootfs.publish(tree, ARCH, self.file(RELEASES), self.keys)

    def index(
        self, records: Iterable[str], key: SigningKey | None = None, *, time: int = TIME, description: str = DESCRIPTION
    ) -> None:
        """Write the index of ``records``, signed by the mirror's key unless another is given.

        Args:
            time: when it was made, in seconds since 1970.
            description: what git-describe says of the sources.
        """
        text = "".join(record + "\n\n" for record in records)
        files = {"DESCRIPTION": description, "APKINDEX": text}
        entries = [Entry(name=name, data=data.encode(), checksum="", mtime=time) for name, data in files.items()]
        member = gzip_member(tar_stream(entries, end=True))
        self.file(INDEX).write_bytes(signature_segment(member, key or self.keys.signing) + member)

    def file(self, path: str) -> Path:
        """Return the file that the server has at a path."""
        return self.root / path.lstrip("/")
