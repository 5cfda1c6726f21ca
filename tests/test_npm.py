"""Installing packages with the real npm: the same twice, without network, and only what is for the image's platform."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import subprocess
import tarfile
from pathlib import Path

import pytest

from imgkit.errors import InputError
from imgkit.rootfs.npm import MINIMUM, prepare
from imgkit.rootfs.payload import replace_payload
from imgkit.tree import Tree
from tests.commandline import ROOT
from tests.conftest import need, need_program

ECHO = ROOT / "fixtures/payloads/echo-agent"
PLATFORMS = {
    "native-linux-x64-musl": {"os": ["linux"], "cpu": ["x64"], "libc": ["musl"]},
    "native-linux-arm64-musl": {"os": ["linux"], "cpu": ["arm64"], "libc": ["musl"]},
    "native-linux-arm64-gnu": {"os": ["linux"], "cpu": ["arm64"], "libc": ["glibc"]},
    "native-darwin-arm64": {"os": ["darwin"], "cpu": ["arm64"]},
}


@pytest.fixture(autouse=True)
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real npm that is new enough, with a cache of its own."""
    version = subprocess.run([need_program("npm"), "--version"], capture_output=True, text=True).stdout
    need("npm 10.2.2 or newer", tuple(map(int, version.strip().split("."))) >= MINIMUM)
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm-cache"))


def as_image(folder: Path) -> bytes:
    """The payload as it gets into an image, to the last byte."""
    tree, archive = Tree(), io.BytesIO()
    replace_payload(tree, folder, epoch=0)
    tree.write_tar(archive)
    return archive.getvalue()


@pytest.mark.mirror
def test_the_same_again_without_network(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="npm ci failed"):
        prepare(ECHO, tmp_path / "cold", build="auto", architecture="x86_64", offline=True)
    first = prepare(ECHO, tmp_path / "first", build="auto", architecture="x86_64")
    again = prepare(ECHO, tmp_path / "again", build="auto", architecture="x86_64", offline=True)
    assert (first / "node_modules/ms/index.js").stat().st_size > 0
    assert as_image(first) == as_image(again)
    (again / "node_modules/ms/index.js").write_bytes(b"")
    assert as_image(first) != as_image(again)


def tarball(manifest: dict[str, object]) -> bytes:
    """An npm package."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in (("package.json", json.dumps(manifest).encode()), ("native.node", b"code")):
            member = tarfile.TarInfo(f"package/{name}")
            member.size, member.mode = len(data), 0o644
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def payload(tmp_path: Path) -> Path:
    """A payload with a native part for each of four platforms, as npm packages of such have them."""
    top = tmp_path / "payload"
    (top / "packages").mkdir(parents=True)
    for name, platform in PLATFORMS.items():
        (top / f"packages/{name}.tgz").write_bytes(tarball({"name": name, "version": "1.0.0", **platform}))
    manifest = {"name": "payload", "version": "1.0.0", "optionalDependencies": sources()}
    (top / "package.json").write_text(json.dumps(manifest))
    return top


def sources() -> dict[str, str]:
    return {name: f"file:packages/{name}.tgz" for name in PLATFORMS}


def lock(payload: Path) -> None:
    """Write the lock file that npm would."""
    packages: dict[str, object] = {"": {"name": "payload", "version": "1.0.0", "optionalDependencies": sources()}}
    for name, source in sources().items():
        found = hashlib.sha512((payload / f"packages/{name}.tgz").read_bytes()).digest()
        integrity = f"sha512-{base64.b64encode(found).decode()}"
        facts = {"version": "1.0.0", "resolved": source, "integrity": integrity, "optional": True}
        packages[f"node_modules/{name}"] = {**facts, **PLATFORMS[name]}
    text = {"name": "payload", "version": "1.0.0", "lockfileVersion": 3, "requires": True, "packages": packages}
    (payload / "package-lock.json").write_text(json.dumps(text))


@pytest.mark.parametrize("locked", [True, False])
@pytest.mark.parametrize(("architecture", "cpu"), [("aarch64", "arm64"), ("x86_64", "x64")])
def test_native_parts_are_for_the_image(
    payload: Path, tmp_path: Path, architecture: str, cpu: str, locked: bool
) -> None:
    if locked:
        lock(payload)
    made = prepare(payload, tmp_path / "made", build="auto", architecture=architecture, offline=True)
    assert [path.name for path in (made / "node_modules").iterdir()] == [f"native-linux-{cpu}-musl"]
    assert (made / f"node_modules/native-linux-{cpu}-musl/native.node").read_bytes() == b"code"
