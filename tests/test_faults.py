"""Bad input of all kinds, from the command line to the message, must leave nothing but the message."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from fixtures import apkbuild
from fixtures.apkbuild import Apk, Entry
from fixtures.keys import Keys, load, new_rsa
from fixtures.server import HTML, NOT_FOUND, Fault, Site
from imgkit.cli.main import main
from imgkit.fetch.http import Http
from imgkit.fetch.openpgp import read_certificate
from imgkit.rootfs.binaries.examine import BinaryFindings, MissingLibrary
from imgkit.vm.qemu.machines import host_arch
from tests.commandline import Place, Ran, check_failure
from tests.mirrors import INDEX, LISTING, RECIPE, REPOSITORY, ROOTFS, TIME, Small, another, package

PACKAGE = f"{REPOSITORY}/hello-1.0-r0.apk"
MINIROOTFS = ROOTFS.rpartition("/")[2]
FILE = Entry(name="hello", data=b"hello\n" * 1000)
NOWHERE = "http://127.0.0.1:9/"


@pytest.fixture(scope="session")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """Return keys that are not trusted."""
    return load(tmp_path_factory.mktemp("foreign"), bits=2048)


@pytest.fixture
def small(here: Place, keys: Keys) -> Small:
    """Return a mirror with the one good package ``hello``."""
    return Small(here.base / "mirror", keys, [package("hello", "1.0-r0", FILE, key=keys.signing)]).write()


class Builder:
    """``imgkit build`` of a recipe from the small mirror, in this process (which is much quicker)."""

    def __init__(
        self, here: Place, small: Small, site: Site, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch
    ) -> None:
        self.here, self.small, self.site = here, small, site
        self._capsys, self._patch = capsys, patch

    def words(self, *more: str | Path, recipe: str = RECIPE, mirror: str | None = None) -> list[str | Path]:
        self.here.recipe.write_text(recipe)
        words: list[str | Path] = ["build", self.here.recipe, "--mirror", mirror or self.site.url, "--arch", "all"]
        return [*words, "--release-key", self.small.release_key, "--out", self.here.out, *more]

    def __call__(self, *more: str | Path, recipe: str = RECIPE, mirror: str | None = None) -> Ran:
        for name, value in self.here.environment.items():
            self._patch.setenv(name, value)
        self._patch.setattr("tempfile.tempdir", str(self.here.tmp))
        status = main([str(word) for word in self.words(*more, recipe=recipe, mirror=mirror)])
        return Ran(status, *self._capsys.readouterr())

    def fails(self, status: int, error: str, hint: str | None = None, **how: str) -> Ran:
        """Build, and expect that failure."""
        ran = self(**how)
        check_failure(ran, self.here, status, error, hint)
        return ran


@pytest.fixture
def build(
    here: Place, small: Small, site: Site, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Builder:
    return Builder(here, small, site, capsys, monkeypatch)


def wants(*packages: str) -> str:
    return f"{RECIPE}packages = {list(packages)!r}\n"


@pytest.mark.slow
def test_a_good_mirror_gets_as_far_as_it_can(build: Builder) -> None:
    """The other tests rely on this: the mirror is good, except that its packages make no system."""
    build.fails(3, NEXT)
    assert build.site.requests[PACKAGE] == 1


# ---- the mirror -----------------------------------------------------------------------------------------------------

FILES = [LISTING, ROOTFS, f"{ROOTFS}.asc", INDEX, PACKAGE]


@pytest.mark.slow
def test_a_mirror_that_nobody_serves(build: Builder) -> None:
    error = f"{NOWHERE}{LISTING.lstrip('/')}: 127.0.0.1 refuses the connection"
    build.fails(4, error, "another mirror", mirror=NOWHERE)


@pytest.mark.slow
def test_a_mirror_whose_name_is_unknown(build: Builder) -> None:
    build.fails(4, "the name mirror.invalid is unknown", "another mirror", mirror="http://mirror.invalid/")


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES)
def test_files_that_are_not_there(path: str, build: Builder) -> None:
    build.site.faults[path] = NOT_FOUND
    ran = build.fails(4, f"{path.lstrip('/')}: the mirror does not have it (404)")
    assert ("superseded packages" if path == PACKAGE else "this branch and this architecture") in ran.hints[0]


WEB_PAGE = ("the server sent a web page instead of the file", "a login page of the network")
WEB_PAGES = {
    LISTING: ("latest-releases.yaml: is not a list of releases", "check the mirror's URL"),
    ROOTFS: WEB_PAGE,
    f"{ROOTFS}.asc": (f"{MINIROOTFS}: what should be its signature is not an OpenPGP signature", ""),
    INDEX: WEB_PAGE,
    PACKAGE: WEB_PAGE,
}


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES)
def test_web_pages_instead_of_files(path: str, build: Builder) -> None:
    build.site.faults[path] = HTML
    error, hint = WEB_PAGES[path]
    ran = build.fails(4, error, hint)
    assert path.rpartition("/")[2].removesuffix(".asc") in ran.errors[0]


BROKEN = "the connection broke off"
LONG, SHORT = r"is longer than the \d+ bytes that it must have", r"has \d+ bytes instead of \d+"
BAD_SIGNATURE = r"bad signature: it is not what .*\.rsa\.pub signed"
FAILURES = {
    "less than announced": (Fault(keep=100), {ROOTFS: BROKEN, INDEX: BROKEN, PACKAGE: BROKEN}),
    "announcing more": (Fault(claim=1000), {ROOTFS: LONG, INDEX: BROKEN, PACKAGE: LONG}),
    "announcing less": (Fault(claim=-10), {ROOTFS: SHORT, INDEX: BAD_SIGNATURE, PACKAGE: SHORT}),
    "error 500": (Fault(status=500), dict.fromkeys((ROOTFS, INDEX, PACKAGE), "the server answers 500")),
    "error 403": (Fault(status=403), dict.fromkeys((ROOTFS, INDEX, PACKAGE), "the server answers 403")),
}


@pytest.mark.parametrize("path", [ROOTFS, INDEX, PACKAGE])
@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.hostile
def test_mirrors_that_fail(path: str, failure: str, build: Builder) -> None:
    build.site.faults[path], errors = FAILURES[failure]
    ran = build.fails(4, path.lstrip("/"))
    assert re.search(f"/{re.escape(path.lstrip('/'))}: {errors[path]}$", ran.errors[0])


@pytest.mark.hostile
@pytest.mark.parametrize("path", [LISTING, PACKAGE])
@pytest.mark.parametrize("fault", [Fault(stall=0), Fault(stall=50), Fault(rate=20)])
def test_mirrors_that_stall(path: str, fault: Fault, build: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = Http.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "stall_timeout", 0.5)
    build.site.faults[path] = fault
    build.fails(4, f"{path.lstrip('/')}: stalled: ", "another mirror")


# ---- trust ----------------------------------------------------------------------------------------------------------


DAMAGED = "the file was damaged or replaced in transit: try again, or another mirror"


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "length"), [("SHA-256", 64), ("SHA-512", 128)])
def test_a_wrong_sum_in_the_list(kind: str, length: int, build: Builder) -> None:
    listing = build.small.file(LISTING)
    key = kind.replace("-", "").lower()
    listing.write_text(re.sub(rf"{key}: \w{{8}}", f"{key}: 00000000", listing.read_text()))
    ran = build.fails(4, f"{ROOTFS.lstrip('/')}: wrong {kind}: ", DAMAGED)
    assert re.search(rf": \w{{{length}}} instead of 00000000\w{{{length - 8}}}$", ran.errors[0])


@pytest.mark.slow
def test_a_minirootfs_that_was_replaced(build: Builder) -> None:
    """The list says what the new one is, so only the signature can tell."""
    rootfs, listing = build.small.file(ROOTFS), build.small.file(LISTING)
    old = rootfs.read_bytes()
    new = bytearray(old)
    new[4] ^= 1  # the time in the gzip header
    rootfs.write_bytes(new)
    for kind in ("sha256", "sha512"):
        text = listing.read_text()
        listing.write_text(text.replace(hashlib.new(kind, old).hexdigest(), hashlib.new(kind, new).hexdigest()))
        assert listing.read_text() != text
    build.fails(4, f"{MINIROOTFS}: bad signature: it is not what {primary(build.small.release_key)} signed", DAMAGED)


def primary(certificate: Path) -> str:
    return read_certificate(certificate.read_bytes(), name="x").fingerprint


@pytest.mark.slow
def test_a_signature_of_somebody_else(build: Builder, foreign: Keys) -> None:
    build.small.file(f"{ROOTFS}.asc").write_bytes(foreign.sign_release(build.small.file(ROOTFS).read_bytes()))
    hint = f"trusted is {primary(build.small.release_key)}; your own mirror needs its own release key"
    ran = build.fails(4, f"{MINIROOTFS}: signed by an unknown key: ", hint)
    assert ran.errors[0].split()[-1] in read_certificate(foreign.release_public, name="x").keys


@pytest.mark.slow
@pytest.mark.parametrize("data", [b"", b"no signature\n", b"-----BEGIN PGP SIGNATURE-----\n\n=\n"])
def test_signatures_that_are_none(data: bytes, build: Builder) -> None:
    build.small.file(f"{ROOTFS}.asc").write_bytes(data)
    build.fails(4, f"{MINIROOTFS}: what should be its signature is not an OpenPGP signature")


@pytest.mark.slow
def test_a_certificate_of_somebody_else(build: Builder, foreign: Keys) -> None:
    signer = read_certificate(build.small.release_key.read_bytes(), name="x")
    build.small.release_key.write_bytes(foreign.release_public)
    ran = build.fails(4, f"{MINIROOTFS}: signed by an unknown key: ", f"trusted is {primary(build.small.release_key)}")
    assert ran.errors[0].split()[-1] in signer.keys


@pytest.mark.slow
def test_a_certificate_that_is_none(build: Builder) -> None:
    build.small.release_key.write_bytes(b"hello")
    build.fails(4, f"{build.small.release_key}: is not an OpenPGP certificate (", "gpg --export --armor")


@pytest.mark.slow
def test_a_certificate_of_absurd_size(build: Builder) -> None:
    with build.small.release_key.open("ab") as sink:
        sink.truncate(1 << 40)
    build.fails(4, "release-key.asc: is larger than the 1048576 bytes")


@pytest.mark.slow
def test_an_index_without_signature(build: Builder) -> None:
    records = [apk.record for apk in build.small.packages]
    build.small.file(INDEX).write_bytes(apkbuild.build_index(records))
    build.fails(4, f"{INDEX.lstrip('/')}: is not signed", "abuild-sign")


@pytest.mark.slow
def test_an_index_signed_by_somebody_else(build: Builder) -> None:
    key = new_rsa()
    build.small.index([apk.record for apk in build.small.packages], key=key)
    error = f"{INDEX.lstrip('/')}: signed by an unknown key: {key.name} (RSA)"
    build.fails(4, error, f"trusted keys: {build.small.keys.signing.name};")


@pytest.mark.slow
def test_an_index_signed_in_the_name_of_the_trusted_key(build: Builder) -> None:
    forged = replace(new_rsa(), name=build.small.keys.signing.name)
    build.small.index([apk.record for apk in build.small.packages], key=forged)
    build.fails(4, f"{INDEX.lstrip('/')}: bad signature: it is not what {forged.name} signed", DAMAGED)


@pytest.mark.slow
def test_an_index_that_was_changed(build: Builder) -> None:
    path = build.small.file(INDEX)
    data = bytearray(path.read_bytes())
    data[-12] ^= 1
    path.write_bytes(data)
    signer = build.small.keys.signing.name
    build.fails(4, f"{INDEX.lstrip('/')}: bad signature: it is not what {signer} signed", DAMAGED)


@pytest.mark.slow
def test_a_package_with_a_forged_signature(build: Builder) -> None:
    """The index vouches for the package, which falsely claims a trusted signer."""
    forged = package("hello", "1.0-r0", FILE, key=replace(new_rsa(), name=build.small.keys.signing.name))
    put(build, forged)
    build.fails(4, f"hello-1.0-r0.apk: bad signature: it is not what {build.small.keys.signing.name} signed", DAMAGED)


@pytest.mark.slow
def test_an_index_that_is_older_than_one_seen_before(build: Builder) -> None:
    """The index has a valid signature."""
    build.fails(3, NEXT)
    build.small.index([apk.record for apk in build.small.packages], time=TIME - 1)
    build.fails(4, "APKINDEX.tar.gz: is of 2023-11-14 22:13", "--allow-stale-mirror")
    ran = build("--allow-stale-mirror")
    assert (ran.status, NEXT in ran.err) == (3, True)


def put(build: Builder, *packages: Apk) -> None:
    """Let the mirror have these packages, and an index that vouches for them."""
    for apk in packages:
        build.small.file(f"{REPOSITORY}/{apk.filename}").write_bytes(apk.blob)
    build.small.index(apk.record for apk in packages)


@pytest.mark.slow
def test_another_package_than_the_one_of_the_index(build: Builder) -> None:
    """It has the same length and a good signature, so only its identity tells. The cache does not keep it."""
    other = another(build.small.packages[0], FILE, key=build.small.keys.signing)
    build.small.file(PACKAGE).write_bytes(other.blob)
    ran = build.fails(4, "hello-1.0-r0.apk: is not the package that the index names (Q1")
    assert other.identity in ran.errors[0]
    assert [*build.here.cache.glob("keyed/*/*")] == []


@pytest.mark.slow
def test_a_package_of_another_length_than_the_one_of_the_index(build: Builder, keys: Keys) -> None:
    other = package("hello", "1.0-r0", replace(FILE, data=FILE.data + bytes(range(256))), key=keys.signing)
    size = len(build.small.packages[0].blob)
    assert len(other.blob) > size
    build.small.file(PACKAGE).write_bytes(other.blob)
    build.fails(4, f"{PACKAGE.lstrip('/')}: is longer than the {size} bytes that it must have")


@pytest.mark.slow
def test_package_data_that_was_changed(build: Builder) -> None:
    path = build.small.file(PACKAGE)
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    build.fails(4, "hello-1.0-r0.apk: its files are not what it was signed with", "another mirror")


# ---- format version 3 ------------------------------------------------------------------------------------------------

ADB = [b"ADB." + bytes(100), b"ADBd" + bytes(100), b"ADBc\1\6" + bytes(100)]
OTHER_BRANCH = "choose a branch whose repositories have APKINDEX.tar.gz: ALPINE_BRANCH"


@pytest.mark.slow
@pytest.mark.parametrize("data", ADB, ids=["stored", "deflated", "compressed"])
@pytest.mark.parametrize("path", [INDEX, PACKAGE])
def test_files_of_format_3(path: str, data: bytes, build: Builder) -> None:
    build.small.file(path).write_bytes(data)
    build.fails(4, f"{path.lstrip('/')}: is in format version 3 (ADB), which imgkit does not read", OTHER_BRANCH)


@pytest.mark.slow
def test_a_repository_of_format_3(build: Builder) -> None:
    build.small.file(INDEX).unlink()
    build.small.file(f"{REPOSITORY}/Packages.adb").write_bytes(ADB[1])
    build.fails(4, f"{REPOSITORY.lstrip('/')}/Packages.adb: is in format version 3 (ADB)", OTHER_BRANCH)


@pytest.mark.slow
@pytest.mark.parametrize("fault", [NOT_FOUND, HTML, Fault(status=403), Fault(body=b"")])
def test_a_repository_without_any_index(fault: Fault, build: Builder) -> None:
    build.small.file(INDEX).unlink()
    build.site.faults[f"{REPOSITORY}/Packages.adb"] = fault
    build.fails(4, "APKINDEX.tar.gz: the mirror does not have it (404)", "this branch and this architecture")
    assert build.site.requests[f"{REPOSITORY}/Packages.adb"] == 1


@pytest.mark.slow
def test_both_indexes_side_by_side(build: Builder) -> None:
    build.small.file(f"{REPOSITORY}/Packages.adb").write_bytes(ADB[1])
    build.fails(3, NEXT)


@pytest.mark.slow
def test_another_repository_is_not_blamed_for_the_one_that_is_missing(build: Builder) -> None:
    """``main`` has both indexes, ``community`` has none."""
    build.small.file(f"{REPOSITORY}/Packages.adb").write_bytes(ADB[1])
    recipe = RECIPE + 'repositories = ["main", "community"]\n'
    build.fails(4, "community/x86_64/APKINDEX.tar.gz: the mirror does not have it (404)", recipe=recipe)


HOSTILE = {
    "dot-dot": (Entry(name="a/../../x", data=b"x"), "holds a path with '..': a/../../x"),
    "absolute": (Entry(name="/etc/passwd", data=b"x"), "holds the absolute path /etc/passwd"),
    "link out": (
        Entry(name="l", kind="symlink", target="../x"),
        "holds a symbolic link that leads out of the root: l → ../x",
    ),
    "device": (Entry(name="null", kind="char", device=(1, 3)), "holds the device node or FIFO null"),
    "escape": (Entry(name="a\x1b[2J", data=b"x"), "has control characters in the path"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", HOSTILE)
def test_packages_with_what_no_package_may_hold(fault: str, build: Builder) -> None:
    entry, error = HOSTILE[fault]
    put(build, package("hello", "1.0-r0", entry, key=build.small.keys.signing))
    ran = build.fails(4, f"hello-1.0-r0.apk: {error}")
    assert "\x1b" not in ran.err


# ---- packages that do not fit ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_unknown_package(build: Builder) -> None:
    build.fails(3, "package helo is in no repository", "did you mean hello", recipe=wants("helo"))


@pytest.mark.slow
def test_what_nobody_provides_names_the_chain(build: Builder, keys: Keys) -> None:
    put(
        build,
        package("hello", depend=["world"], key=keys.signing),
        package("world", depend=["so:libc.so.1"], key=keys.signing),
    )
    build.fails(3, "hello (wanted by the recipe) needs world, which needs so:libc.so.1, which no package provides")


@pytest.mark.slow
def test_what_conflicts_names_both_sides(build: Builder, keys: Keys) -> None:
    put(
        build,
        package("hello", depend=["left", "right"], key=keys.signing),
        package("left", depend=["!right"], key=keys.signing),
        package("right", key=keys.signing),
    )
    build.fails(3, "left (needed by hello, wanted by the recipe) conflicts with right")


@pytest.mark.slow
def test_versions_that_nobody_has(build: Builder) -> None:
    build.fails(3, "the recipe wants hello>2, but there is only 1.0-r0", recipe=wants("hello>2"))


# ---- scripts that cannot be computed --------------------------------------------------------------------------------

SCRIPTS = {"post-install": b"#!/bin/sh\ntrue\n/usr/bin/hello --setup\n", "post-upgrade": b"#!/usr/bin/perl\n"}
NEXT = "the image cannot be set up as the recipe says: unknown user root"  # what stops every build here
OTHER = "arm64" if host_arch() == "amd64" else "amd64"


def of(arch: str) -> str:
    """Return the recipe of two packages with such scripts, for an architecture of this name."""
    return RECIPE.replace('"amd64"', f'"{arch}"') + "packages = ['hello', 'world']\n"


@pytest.fixture
def unknown(build: Builder, keys: Keys) -> Builder:
    """Builds with two packages whose scripts start programs that nobody knows."""
    put(build, *(package(name, scripts=SCRIPTS, key=keys.signing) for name in ("hello", "world")))
    return build


@pytest.mark.slow
def test_scripts_for_another_machine_that_cannot_be_computed(unknown: Builder) -> None:
    """The message names package, script, line and remedy."""
    error = f"{OTHER}: scripts that can neither be computed nor run here: hello.post-install, line 3: "
    ran = unknown.fails(3, error, "skip_scripts = ['hello', 'world']", recipe=of(OTHER))
    assert "; world.post-install, line 3: " in ran.errors[0]
    assert "post-upgrade" not in ran.err, "which does not run when it is new"


@pytest.mark.slow
def test_scripts_that_need_not_run(unknown: Builder) -> None:
    unknown.fails(3, NEXT, recipe=of(OTHER) + "skip_scripts = ['hello', 'world']\n")
    ran = unknown.fails(3, "world.post-install", "['world']", recipe=of(OTHER) + "skip_scripts = ['hello']\n")
    assert "hello.post-install" not in ran.errors[0]


@pytest.mark.slow
def test_scripts_for_this_machine_run_in_the_appliance(unknown: Builder) -> None:
    """Such scripts do not stop the build."""
    unknown.fails(3, NEXT, recipe=of(host_arch()))


# ---- architectures --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_architecture_that_the_mirror_lacks(build: Builder) -> None:
    recipe = RECIPE.replace("x86_64", "aarch64")
    build.fails(
        4, "aarch64/latest-releases.yaml: the mirror does not have it (404)", "this architecture", recipe=recipe
    )


def test_an_architecture_that_nobody_knows(build: Builder) -> None:
    build.fails(3, "architectures.amd64.alpine", recipe=RECIPE.replace("x86_64", "m68k"))


@pytest.mark.slow
def test_a_version_that_the_mirror_lacks(build: Builder) -> None:
    """The archive and its signature are fetched side by side, so that either may be named."""
    recipe = RECIPE + "version = '3.23.99'\n"
    ran = build.fails(4, ": the mirror does not have it (404)", "this branch", recipe=recipe)
    assert "alpine-minirootfs-3.23.99-x86_64.tar.gz" in ran.errors[0]


@pytest.mark.slow
@pytest.mark.parametrize("provides", [["so:libx.so.1=1.2"], []])
def test_a_payload_that_lacks_a_library(
    provides: list[str], build: Builder, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hint comes from the plan's own index. That a root filesystem was made is pretended."""
    packages = [*build.small.packages, package("libx", key=keys.signing, provides=provides)]
    build.small.index(apk.record for apk in packages)
    composition = SimpleNamespace(
        binaries=BinaryFindings(missing_libraries=(MissingLibrary("opt/agent-runner/x.node", "libx.so.1"),))
    )
    monkeypatch.setattr("imgkit.image.assemble.compose", lambda *_, **__: composition)
    error = "/opt/agent-runner/x.node: needs the library libx.so.1, which the image lacks"
    hint = "add the package libx" if provides else "no package of the image's repositories provides so:libx.so.1"
    build.fails(4, error, f"hint: {hint}", recipe=RECIPE + "payload_binaries = 'strict'\n")


@pytest.mark.slow
def test_the_cache_alone_does_not_have_it(build: Builder) -> None:
    ran = build("--offline")
    check_failure(ran, build.here, 4, "offline, and 1 file is not in the cache", "without --offline")
