"""Targets: the parsers of lists, from mirrors and from earlier runs: lock files, manifests, releases."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache

from fuzz.packages import RECORD
from fuzz.target import JSON_WORDS, ROOT, Target, scratch
from imgkit.errors import InputError, RecipeError
from imgkit.fetch.releases import newest_minirootfs
from imgkit.image import manifest
from imgkit.image.bootrecord import parse as parse_record
from imgkit.planning import lockfile
from imgkit.publish.publication import parse_index as parse_publication
from imgkit.recipe import Recipe, load


@cache
def _recipe() -> Recipe:
    return load(ROOT / "recipes" / "core.py")


def _lock(data: bytes) -> None:
    with scratch() as folder:
        (folder / "core.lock").write_bytes(data)
        lockfile.read(folder / "core.lock", _recipe(), "amd64")


def _lock_seed() -> bytes:
    recipe = _recipe()
    sha256 = "0" * 64
    artefact = f'{{"path": "x", "size": 1, "sha256": "{sha256}", "vouchedBy": "k"}}'
    wants = lockfile._wants(recipe, "amd64", "disk", ROOT / "recipes" / "core.lock")
    body = json.dumps({**wants, "version": "3.20.1", "indexes": [], "world": ["a"], "install": [
        {"path": "main/x86_64/musl-1.2.5-r0.apk", "sha256": sha256, "record": RECORD.splitlines()}]})  # fmt: skip
    entry = body[:-1] + f', "minirootfs": {artefact}}}'
    return f'{{"lock": 1, "architectures": {{"amd64": {entry}}}}}'.encode()


def _manifest(data: bytes) -> None:
    with scratch() as folder:
        (folder / "manifest.json").write_bytes(data)
        manifest.read_manifest(folder / "manifest.json")


def _releases(data: bytes) -> None:
    newest_minirootfs(data, arch="x86_64")


_RELEASES = (
    b"---\n-\n  title: x\n  branch: v3.20\n  arch: x86_64\n  version: 3.20.3\n  flavor: alpine-minirootfs\n"
    b"  file: alpine-minirootfs-3.20.3-x86_64.tar.gz\n  iso: x.iso\n  date: 2024-01-01\n  size: 3\n  sha256: "
    + b"0" * 64
    + b"\n"
)
_PUBLICATION = (
    b'{"index": 1, "version": "v0.1.5", "baseUrl": "https://x/y", "generatedAt": "x", "architectures": {"amd64": '
    b'{"buildId": "x", "provedWith": ["bios"], "image": {"name": "x.qcow2", "sha256": "%b", "size": 1}, '
    b'"manifest": {"name": "x.json", "sha256": "%b", "size": 1}}}}' % (b"0" * 64, b"0" * 64)
)
_BOOT_RECORD = b'{"bootRecord": 1, "image": {"name": "x", "sha256": "' + b"0" * 64 + b'", "size": 1}, "arch": "amd64", '
_BOOT_RECORD += b'"boots": {"bios": {"seconds": 1}}}'

_MANIFEST = b'{"manifest": 1, "files": {"/a": {"sha256": "0"}}}'
_YAML_WORDS = (b"- ", b"? ", b"&a ", b"*a ", b"!!", b"<<: ", b"|\n")

TARGETS: Mapping[str, Target] = {
    "lock": Target(_lock, (InputError, RecipeError), lambda: [_lock_seed()], JSON_WORDS),
    "manifest": Target(_manifest, (InputError,), lambda: [_MANIFEST], JSON_WORDS),
    "bootrecord": Target(parse_record, (), lambda: [_BOOT_RECORD], JSON_WORDS),
    "publication": Target(lambda data: parse_publication(data, "x"), (InputError,), lambda: [_PUBLICATION], JSON_WORDS),
    "releases": Target(_releases, (InputError,), lambda: [_RELEASES], _YAML_WORDS),
}
