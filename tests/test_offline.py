"""Building without a network: mirrors that are folders, locked builds from the cache, and what messages advise."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from argparse import Namespace
from pathlib import Path

import pytest

from fixtures.keys import Keys
from fixtures.server import Site
from imgkit.cli.main import main
from imgkit.cli.options import mirroroptions
from imgkit.errors import InputError
from imgkit.fetch.cache import Cache, Wanted
from imgkit.fetch.checks import ELSEWHERE_HINT, Expected, MissingFileError
from imgkit.fetch.localfiles import copy_file, is_local
from imgkit.fetch.openpgp import alpine_certificate
from imgkit.planning import vouched
from imgkit.planning.vouched import Vouched
from imgkit.recipe import load
from imgkit.recipe.mirroraddress import absolute_mirror, folder_of, mirror_fault
from tests.commandline import ROOT, Place
from tests.mirrors import LISTING, RECIPE, REPOSITORY, ROOTFS, TIME, Small, package
from tests.test_faults import FILE

PACKAGE = f"{REPOSITORY}/hello-1.0-r0.apk"


@pytest.fixture
def small(here: Place, keys: Keys) -> Small:
    """Return a mirror with one package."""
    here.recipe.write_text(RECIPE)
    return Small(here.base / "mirror", keys, [package("hello", "1.0-r0", FILE, key=keys.signing)]).write()


@pytest.fixture
def build(here: Place, small: Small, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Build:
    return Build(here, small, monkeypatch, capsys)


class Build:
    """``imgkit`` for the container image of the small recipe, in this process."""

    def __init__(
        self, here: Place, small: Small, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.here, self.small, self._capsys = here, small, capsys
        for name, value in here.environment.items():
            patch.setenv(name, value)
        for name in mirroroptions.VARIABLES:
            patch.delenv(name, raising=False)
        patch.setattr("tempfile.tempdir", str(here.tmp))
        patch.chdir(here.base)

    def __call__(self, *words: str, command: str = "build", status: int = 0) -> str:
        """Run the command, and return what it wrote to standard error."""
        more = ["--out", str(self.here.out)] if command == "build" else []
        argv = [command, "recipe.py", "--arch", "amd64", "--output", "oci", *more, *words]
        actual = main(argv)
        errors = self._capsys.readouterr().err
        assert actual == status, errors
        return errors

    @property
    def manifest(self) -> dict[str, object]:
        body: dict[str, object] = json.loads((self.here.out / "linux-amd64.container.json").read_text())
        return body


# ---- mirrors that are folders ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("form", ["{}", "file://{}", "file://localhost{}/", "./mirror", "file:{}"])
def test_a_folder_is_a_mirror(form: str, build: Build, site: Site) -> None:
    """The image is that of the same mirror over HTTP."""
    build("--mirror", site.url, "--release-key", str(build.small.release_key))
    over_http = build.manifest
    build("--mirror", form.format(build.small.root), "--release-key", "release-key.asc")
    assert build.manifest["files"] == over_http["files"]
    assert build.manifest["buildId"] == over_http["buildId"]


def test_folders_with_odd_names(build: Build) -> None:
    odd = build.here.base / "a mirror%20 ä#?"
    build.small.root.rename(odd)
    build("--mirror", str(odd), "--release-key", "release-key.asc")
    urls = [index["url"] for index in build.manifest["indexes"]]  # type: ignore[attr-defined]
    assert urls == ["file:APKINDEX.tar.gz"], "a manifest says nothing of the folders of this computer"
    assert str(build.here.base) not in json.dumps(build.manifest)


def test_a_folder_in_the_recipe_is_relative_to_the_recipe(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = build.here.base / "recipes" / "recipe.py"
    recipe.parent.mkdir()
    recipe.write_text(RECIPE + 'mirror = "../mirror"\nrelease_key = "../release-key.asc"\n')
    assert load(recipe).mirror == build.small.root.resolve().as_uri()


@pytest.mark.slow
def test_variables_for_the_mirror_and_its_key(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths in them are relative to the current folder, wherever the recipe is."""
    monkeypatch.setenv("ALPINE_MIRROR", "./mirror")
    assert "signed by an unknown key" in build(status=4)
    monkeypatch.setenv("ALPINE_RELEASE_KEY", "release-key.asc")
    build()
    other = build.here.base / "other.asc"
    other.write_bytes(alpine_certificate().data)
    assert "signed by an unknown key" in build("--release-key", "other.asc", status=4), "an option takes precedence"
    monkeypatch.setenv("ALPINE_RELEASE_KEY", "none.asc")
    errors = build(status=2)
    assert errors.startswith(f"error: ALPINE_RELEASE_KEY: {build.here.base}/none.asc does not exist\n")


def test_the_fields_that_options_and_variables_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    none = Namespace(mirror=None, release_key=None)
    assert mirroroptions.mirror_fields(none, {}) == ({}, {})
    environ = {"ALPINE_MIRROR": "http://m.test", "ALPINE_RELEASE_KEY": "k.asc"}
    assert mirroroptions.mirror_fields(none, environ) == (
        {"mirror": "http://m.test", "release_key": tmp_path / "k.asc"},
        {"mirror": "ALPINE_MIRROR", "release_key": "ALPINE_RELEASE_KEY"},
    )
    given = Namespace(mirror="./m", release_key=Path("o.asc"))
    assert mirroroptions.mirror_fields(given, environ) == (
        {"mirror": (tmp_path / "m").as_uri(), "release_key": tmp_path / "o.asc"},
        {"mirror": "--mirror", "release_key": "--release-key"},
    )


@pytest.mark.slow
def test_faults_of_a_folder(build: Build) -> None:
    """What is wrong with a file is found as over HTTP."""
    words = ("--mirror", "./mirror", "--release-key", "release-key.asc")
    apk = build.small.file(PACKAGE)
    whole = apk.read_bytes()
    apk.write_bytes(whole[:-1])
    assert f"has {len(whole) - 1} bytes instead of {len(whole)}" in build(*words, status=4)
    apk.write_bytes(b"x" + whole[1:])
    assert "what the server sent is not gzip data" in build(*words, status=4)
    apk.unlink()
    errors = build(*words, status=4)
    assert f"{apk}: no such file" in errors
    assert "hint: check the folder: it must have the layout of a mirror" in errors
    os.mkfifo(apk)
    assert f"{apk}: is not a regular file" in build(*words, status=4), "nobody writes to it, and it is not waited for"
    build.small.file(LISTING).unlink()
    assert "latest-releases.yaml: no such file" in build(*words, status=4)
    assert "/elsewhere does not exist" in build("--mirror", "/elsewhere", status=2)


def copied(path: Path, target: Path, max_bytes: int = 1 << 30) -> str:
    lengths: list[int] = []
    found = copy_file(
        path.as_uri(),
        target,
        Expected(max_bytes=max_bytes),
        on_bytes=lengths.append,
        cancelled=threading.Event(),
    )
    assert (sum(lengths), target.read_bytes()) == (found.size, path.read_bytes())
    assert not found.validators.headers
    return found.sha256


def test_copies(tmp_path: Path) -> None:
    source, target = tmp_path / "a b", tmp_path / "target"
    source.write_bytes(b"x" * 3_000_000)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert copied(source, target, max_bytes=3_000_000) == digest
    link = tmp_path / "link"
    link.symlink_to(source)
    assert copied(link, target) == digest, "links are followed: it is the user's own folder"
    source.write_bytes(b"")
    assert copied(source, target) == hashlib.sha256(b"").hexdigest()
    target.write_bytes(b"before")
    source.write_bytes(b"xx")
    for wrong in (Expected(max_bytes=1), Expected(max_bytes=9, size=3), Expected(max_bytes=9, sha256="0" * 64)):
        with pytest.raises(InputError):
            copy_file(source.as_uri(), target, wrong, on_bytes=lambda _: None, cancelled=threading.Event())
        assert target.read_bytes() == b"before"
    stop = threading.Event()
    stop.set()
    with pytest.raises(InputError, match="the copy was given up"):
        copy_file(source.as_uri(), target, Expected(max_bytes=9), on_bytes=lambda _: None, cancelled=stop)
    with pytest.raises(MissingFileError, match="no such file"):
        copied(source / "below", target)
    with pytest.raises(InputError, match="is not a regular file"):
        copied(tmp_path, target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a b", "link", "target"]


def test_a_file_that_changes_is_copied_anew(tmp_path: Path) -> None:
    source, cache = tmp_path / "index", Cache(tmp_path / "cache")
    for text in ("one", "two"):
        source.write_text(text)
        assert cache.fetch(Wanted(url=source.as_uri(), max_bytes=9)).read_text() == text
    source.unlink()
    assert Cache(cache.folder, offline=True).fetch(Wanted(url=source.as_uri(), max_bytes=9)).read_text() == "two"


@pytest.mark.parametrize(
    ("address", "folder"),
    [
        ("file:///srv/alpine", "/srv/alpine"),
        ("file:/srv/a%20b", "/srv/a b"),
        ("file://localhost/srv", "/srv"),
        ("file://elsewhere/srv", None),
        ("file:srv", None),
        ("http://srv/", None),
        ("/srv", None),
    ],
)
def test_folders_of_addresses(address: str, folder: str | None) -> None:
    assert folder_of(address) == (None if folder is None else Path(folder))
    assert is_local(address) == address.startswith("file:")


def test_addresses_that_are_paths(tmp_path: Path) -> None:
    parent = tmp_path.parent.resolve()
    for path, absolute in (("/a b", Path("/a b")), ("../x", parent / "x"), (".", tmp_path), ("..", parent)):
        assert absolute_mirror(path, tmp_path) == absolute.as_uri()
        assert absolute_mirror(absolute.as_uri(), tmp_path) == absolute_mirror(path, tmp_path)
    for address in ("https://x/y", "mirror", ".hidden", "..x", "file://elsewhere/x", "http://["):
        assert absolute_mirror(address, tmp_path) == address
    assert mirror_fault("https://x") is None
    assert mirror_fault(tmp_path.as_uri()) is None
    assert mirror_fault((tmp_path / "x").as_uri()) == f"{tmp_path}/x does not exist"
    assert mirror_fault("ftp://x") == "'ftp://x' is not an http(s) URL, nor a folder such as /srv/alpine"


@pytest.mark.slow
def test_a_folder_cannot_go_back_in_time(build: Build) -> None:
    """As over HTTP: an index that is older than one seen before is refused. Folders of the recipe may go back."""
    words = ("--mirror", "./mirror", "--release-key", "release-key.asc")
    build(*words)
    build.small.index([apk.record for apk in build.small.packages], time=TIME - 1)
    assert "was seen before" in build(*words, status=4)
    build(*words, "--allow-stale-mirror")


# ---- locked builds ---------------------------------------------------------------------------------------------------


@pytest.fixture
def locked(build: Build, site: Site) -> Build:
    """Return a build whose recipe is locked, and has been built once from a mirror that is gone now."""
    words = ("--mirror", site.url, "--release-key", "release-key.asc")
    build(*words, command="lock")
    build("--locked", *words)
    site.faults.clear()
    site.requests.clear()
    return build


@pytest.mark.slow
def test_a_locked_build_without_network_needs_no_mirror(locked: Build, site: Site) -> None:
    before = locked.manifest
    locked("--locked", "--offline")
    assert locked.manifest["buildId"] == before["buildId"]
    locked("--locked", "--offline", "--mirror", "http://elsewhere.test")
    locked("--locked")  # the official mirror is not asked for anything
    locked("--locked", "--offline", "--release-key", "release-key.asc")
    assert not site.requests


@pytest.mark.slow
def test_only_what_is_not_in_the_cache_is_asked_for(locked: Build, site: Site) -> None:
    for path in (locked.here.cache / "keyed").rglob("*"):
        if path.is_file():
            path.unlink()
    errors = locked("--locked", "--offline", status=4)
    assert (
        "offline, and 1 file is not in the cache: https://dl-cdn.alpinelinux.org/alpine/v3.23/main/x86_64/hello"
        in errors
    )
    locked("--locked", "--mirror", site.url)
    assert set(site.requests) == {PACKAGE}


@pytest.mark.slow
def test_the_certificate_that_was_named_before_vouches_for_the_same_file_only(locked: Build, site: Site) -> None:
    """Another certificate that is named is the one that counts, and another minirootfs needs its own signature."""
    other = locked.here.base / "other.asc"
    other.write_bytes(alpine_certificate().data)
    words = ("--locked", "--mirror", site.url)
    assert "signed by an unknown key" in locked(*words, "--release-key", "other.asc", status=4)
    (record,) = (locked.here.cache / vouched.FOLDER).rglob("*.json")
    record.rename(record.with_name("0" * 64 + ".json"))
    assert "signed by an unknown key" in locked(*words, status=4)
    errors = locked("--locked", "--offline", status=4)
    assert f"offline, and 1 file is not in the cache: https://dl-cdn.alpinelinux.org/alpine{ROOTFS}.asc" in errors


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["signature", "certificate", "json"])
def test_a_damaged_record_is_as_none(damage: str, locked: Build, site: Site) -> None:
    (record,) = (locked.here.cache / vouched.FOLDER).rglob("*.json")
    body = json.loads(record.read_text())
    for text in ("%", "AAAA", body["signature"][:-8]):
        record.write_text("{" if damage == "json" else json.dumps({**body, damage: text}))
        locked("--locked", "--mirror", site.url, "--release-key", "release-key.asc")
    assert site.requests[f"{ROOTFS}.asc"] >= 1


@pytest.mark.slow
def test_without_a_lock_the_mirror_says_what_is_newest(locked: Build) -> None:
    assert "offline, and 1 file is not in the cache: https://" in locked("--offline", status=4)


def test_a_cache_that_cannot_be_written_keeps_no_record(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    vouched.remember(tmp_path / "file", "ab" * 32, Vouched(b"s", alpine_certificate()))
    assert vouched.recall(tmp_path / "file", "ab" * 32) is None
    vouched.remember(tmp_path, "ab" * 32, Vouched(b"s", alpine_certificate()))
    assert vouched.recall(tmp_path, "ab" * 32) == Vouched(b"s", alpine_certificate())
    assert vouched.recall(tmp_path, "cd" * 32) is None


# ---- what to do ------------------------------------------------------------------------------------------------------


def test_what_to_do_if_a_mirror_cannot_be_reached(build: Build) -> None:
    errors = build("--mirror", "http://127.0.0.1:9/", status=4)
    assert "error: http://127.0.0.1:9/v3.23/releases/x86_64/latest-releases.yaml: 127.0.0.1 refuses" in errors
    for words in ("--mirror", "ALPINE_MIRROR", "--offline", "python -m fixtures serve"):
        assert words in ELSEWHERE_HINT
        assert words in errors.splitlines()[-1]
    assert (ROOT / "fixtures" / "__main__.py").is_file()
