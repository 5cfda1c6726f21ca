"""Installing packages with the real npm: the same twice, without network, and only what is for the image's platform."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import logging
import os
import shutil
import subprocess
import tarfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pytest

from fixtures.server import serve
from imgkit.errors import InputError
from imgkit.rootfs.binaries.examine import examine, platforms
from imgkit.rootfs.npm.npmrunner import sandbox_problem
from imgkit.rootfs.npm.prepare import MINIMUM, Build, prepare, unlocked_options
from imgkit.rootfs.payload import replace_payload
from imgkit.tree import Tree
from tests.commandline import ROOT
from tests.conftest import need, need_program

ECHO = ROOT / "fixtures/payloads/echo-agent"
SEED = ROOT / "fixtures/payloads/first-seed"
PLATFORMS = {
    "native-linux-x64-musl": {"os": ["linux"], "cpu": ["x64"], "libc": ["musl"]},
    "native-linux-arm64-musl": {"os": ["linux"], "cpu": ["arm64"], "libc": ["musl"]},
    "native-linux-arm64-gnu": {"os": ["linux"], "cpu": ["arm64"], "libc": ["glibc"]},
    "native-darwin-arm64": {"os": ["darwin"], "cpu": ["arm64"]},
}


def need_npm() -> None:
    """A real npm that is new enough, under the rule of :func:`need`."""
    text = subprocess.run([need_program("npm"), "--version"], capture_output=True, text=True).stdout
    version = tuple(map(int, text.strip().split(".")))
    need("npm 10.9.4 or newer", version >= MINIMUM)


def no_bubblewrap(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put into ``folder``, first on PATH, a bubblewrap that works as it does where it is not allowed to."""
    program = folder / "bwrap"
    folder.mkdir(exist_ok=True)
    program.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture(autouse=True)
def npm() -> None:
    """The real npm."""
    need_npm()


def as_image(folder: Path) -> bytes:
    """Return the payload as it gets into an image, to the last byte."""
    tree, archive = Tree(), io.BytesIO()
    replace_payload(tree, folder, epoch=0)
    tree.write_tar(archive)
    return archive.getvalue()


@pytest.mark.mirror
def test_the_same_again_without_network(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(InputError, match="npm ci failed"):
        prepare(ECHO, tmp_path / "cold", build="auto", architecture="x86_64", offline=True, cache=cache)
    first = prepare(ECHO, tmp_path / "first", build="auto", architecture="x86_64", cache=cache)
    again = prepare(ECHO, tmp_path / "again", build="auto", architecture="x86_64", offline=True, cache=cache)
    assert (first / "node_modules/ms/index.js").stat().st_size > 0
    assert as_image(first) == as_image(again)
    (again / "node_modules/ms/index.js").write_bytes(b"")
    assert as_image(first) != as_image(again)


def tarball(manifest: dict[str, object]) -> bytes:
    """Return an npm package."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in (("package.json", json.dumps(manifest).encode()), ("native.node", b"code")):
            member = tarfile.TarInfo(f"package/{name}")
            member.size, member.mode = len(data), 0o644
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def payload(tmp_path: Path) -> Path:
    """Return a payload with a native part for each of four platforms, as npm packages of such have them."""
    top = tmp_path / "payload"
    (top / "packages").mkdir(parents=True)
    for name, platform in PLATFORMS.items():
        (top / f"packages/{name}.tgz").write_bytes(tarball({"name": name, "version": "1.0.0", **platform}))
    manifest = {"name": "payload", "version": "1.0.0", "optionalDependencies": sources()}
    (top / "package.json").write_text(json.dumps(manifest))
    return top


def sources() -> dict[str, str]:
    return {name: f"file:packages/{name}.tgz" for name in PLATFORMS}


def lock(payload: Path, names: Collection[str] = tuple(PLATFORMS), *, libc: bool = True) -> None:
    """Write the lock file that npm would, with entries for ``names`` only; before npm 11.11 it left out ``libc``."""
    packages: dict[str, object] = {"": {"name": "payload", "version": "1.0.0", "optionalDependencies": sources()}}
    for name, source in sources().items():
        if name not in names:
            continue
        platform = {key: value for key, value in PLATFORMS[name].items() if libc or key != "libc"}
        found = hashlib.sha512((payload / f"packages/{name}.tgz").read_bytes()).digest()
        integrity = f"sha512-{base64.b64encode(found).decode()}"
        facts = {"version": "1.0.0", "resolved": source, "integrity": integrity, "optional": True}
        packages[f"node_modules/{name}"] = {**facts, **platform}
    text = {"name": "payload", "version": "1.0.0", "lockfileVersion": 3, "requires": True, "packages": packages}
    (payload / "package-lock.json").write_text(json.dumps(text))


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_lock_file_from_macos_that_knows_only_its_own_packages(
    payload: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """npm ci refuses it or, before npm 11, installs nothing native; npm install adds the package or imgkit says so."""
    lock(payload, ["native-darwin-arm64"])
    before = (payload / "package-lock.json").read_bytes()
    made = prepare(payload, tmp_path / "made", build="auto", architecture="aarch64", offline=True)
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert line.startswith(f"{payload}/package-lock.json: lacks native-linux-arm64-musl, ")
    there = (made / "node_modules/native-linux-arm64-musl").is_dir()
    assert there == ("is now in the image" in line)
    assert there or "did not install it" in line
    assert (made / "package-lock.json").read_bytes() == before


@pytest.mark.slow
def test_a_complete_lock_file_is_no_cause_for_a_warning(
    payload: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lock(payload)
    assert unlocked_options(payload / "package-lock.json") == []
    prepare(payload, tmp_path / "made", build="auto", architecture="aarch64", offline=True)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.slow
def test_a_lock_file_without_libc_has_the_packages_of_musl_as_well(payload: Path, tmp_path: Path) -> None:
    lock(payload, libc=False)
    made = prepare(payload, tmp_path / "made", build="auto", architecture="aarch64", offline=True)
    assert (made / "node_modules/native-linux-arm64-musl/native.node").exists()


# ---- what runs on the host -------------------------------------------------------------------------------------------

LIFECYCLE = (
    "preinstall",
    "install",
    "postinstall",
    "preprepare",
    "prepare",
    "postprepare",
    "prepublish",
    "dependencies",
)
OTHERS = (
    "prebuild",
    "build",
    "postbuild",
    "prepack",
    "postpack",
    "prepublishOnly",
    "pretest",
    "test",
    "prestart",
    "start",
)


def scripts(marks: Path, owner: str) -> dict[str, str]:
    """Scripts of every name, each of which leaves a file on the host."""
    return {name: f"touch '{marks}/{owner}-{name}'" for name in (*LIFECYCLE, *OTHERS)}


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    """Where the scripts of :func:`eager` leave files: in the copy, the one place that they always can write to."""
    folder = tmp_path / "made/marks"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def repositories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """Yield a folder, and the URL at which its git repositories are."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "repositories"
    folder.mkdir()
    with serve(folder) as site:
        yield folder, f"git+{site.url}"


def repository(folder: Path, manifest: Mapping[str, object]) -> None:
    """Make a git repository with a package, for git's simple HTTP."""
    git = [need_program("git"), "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x@example.invalid"]
    folder.mkdir()
    (folder / "package.json").write_text(json.dumps(manifest))
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"], ["update-server-info"]):
        subprocess.run([*git, *words], check=True)


@pytest.fixture
def eager(tmp_path: Path, marks: Path, repositories: tuple[Path, str]) -> Path:
    """A payload that has a script for everything, with a package, one from a git repository and a workspace like it."""
    top = tmp_path / "eager"
    (top / "part").mkdir(parents=True)
    (top / "index.js").write_text("code")
    (top / "dep.tgz").write_bytes(tarball({"name": "dep", "version": "1.0.0", "scripts": scripts(marks, "dep")}))
    part = {"name": "part", "version": "1.0.0", "scripts": scripts(marks, "part")}
    (top / "part/package.json").write_text(json.dumps(part))
    own = {"name": "eager", "version": "1.0.0", "scripts": scripts(marks, "own"), "workspaces": ["part"]}
    folder, url = repositories
    repository(folder / "git", {"name": "git", "version": "1.0.0", "scripts": scripts(marks, "git")})
    wanted = {"dep": "file:dep.tgz", "git": f"{url}/git/.git"}
    (top / "package.json").write_text(json.dumps({**own, "dependencies": wanted}))
    return top


@pytest.fixture(params=["bubblewrap", "none"])
def sandbox(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """npm inside bubblewrap, and without, as where bubblewrap may not make namespaces."""
    if request.param == "none":
        no_bubblewrap(tmp_path / "bin", monkeypatch)
    else:
        need("bubblewrap that may make user namespaces", sandbox_problem() is None)
    return str(request.param)


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("build", "allowed", "ran"),
    [
        ("0", False, set()),
        ("auto", False, set()),
        ("1", False, {"own-build"}),
        ("auto", True, {"dep-postinstall", "own-prepare"}),
        ("1", True, {"dep-postinstall", "own-prepare", "own-prebuild", "own-build", "own-postbuild"}),
    ],
)
def test_what_of_the_payload_runs_on_the_host(
    eager: Path, marks: Path, tmp_path: Path, sandbox: str, build: Build, allowed: bool, ran: set[str]
) -> None:
    made = prepare(
        eager, tmp_path / "made", build=build, architecture="x86_64", allow_scripts=allowed, allow_git=build != "0"
    )
    found = {path.name for path in marks.iterdir()}
    assert ran <= found if allowed else found == ran
    assert build == "1" or not [name for name in found if name.endswith("build")]
    for name in ("dep", "git"):
        assert (made / f"node_modules/{name}/package.json").exists() == (build != "0")


# ---- the first seed's own packages -----------------------------------------------------------------------------------


@pytest.mark.mirror
@pytest.mark.parametrize(("architecture", "cpu"), [("aarch64", "arm64"), ("x86_64", "x64")])
@pytest.mark.parametrize("complete", [True, False])
def test_the_first_seeds_packages(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, architecture: str, cpu: str, complete: bool
) -> None:
    """From the registry; the second time with a lock file such as npm writes on macOS."""
    payload = SEED
    if not complete:
        payload = tmp_path / "payload"
        shutil.copytree(SEED, payload)
        found = json.loads((payload / "package-lock.json").read_bytes())
        for name in [name for name in found["packages"] if "sharp" in name and "darwin-arm64" not in name]:
            del found["packages"][name]
        (payload / "package-lock.json").write_text(json.dumps(found))
    made = prepare(payload, tmp_path / "made", build="auto", architecture=architecture)
    native = sorted(path.name for path in (made / "node_modules/@img").glob("*"))
    if complete or native:
        assert native == [f"sharp-libvips-linuxmusl-{cpu}", f"sharp-linuxmusl-{cpu}"]
    assert any(record.levelno >= logging.WARNING for record in caplog.records) == (not complete)
    tree = Tree()
    foreign = examine(tree, architecture, replace_payload(tree, made, epoch=0)).foreign
    assert platforms(foreign).startswith("4 for macOS, 2 for Windows, 2 for ")
    assert sum(each.size for each in foreign) > 45_000_000
