"""Fixtures that several test modules share, and the rule for missing tools."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from fixtures.keys import Keys
    from fixtures.mirror import Mirror
    from fixtures.server import Site
    from imgkit.apk.index import Package
    from tests.commandline import Place
    from tests.images import Builder, Image, Images
    from tests.mirrors import Small

pytest.register_assert_rewrite("tests.commandline", "tests.realdata")

# A run that a script puts into the background ignores SIGINT, and so would every program that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def _own_temporary_folder(worker: str) -> None:
    """Give a worker of pytest-xdist its own folder for temporary files, because several tests look for leftovers."""
    folder, process = tempfile.mkdtemp(prefix=f"{worker}-", dir="/tmp"), os.getpid()
    Path(folder).chmod(0o1777)  # tests that change users have temporary files, too
    os.environ["TMPDIR"] = tempfile.tempdir = folder

    def remove() -> None:
        if os.getpid() == process:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)


if "PYTEST_XDIST_WORKER" in os.environ:
    _own_temporary_folder(os.environ["PYTEST_XDIST_WORKER"])

CI = os.environ.get("CI", "") not in ("", "0", "false")
# CI tries the same examples in every run; a laptop tries new ones, and may be slow. A failure prints what repeats it.
hypothesis.settings.register_profile("patient", deadline=None, print_blob=True, derandomize=False)
hypothesis.settings.register_profile("same", deadline=None, print_blob=True, derandomize=True, database=None)
hypothesis.settings.load_profile("same" if CI else "patient")


_LONGEST = [
    *(
        "container",
        "entrypoint_container",
        "container_machines",
        "boots",
        "terminals",
        "claude",
        "wheel",
        "first_seed",
        "crashes",
        "interrupts",
        "native_guest",
        "native_disks",
        "disks",
        "engine",
        "reproducible",
        "hardening",
        "owners",
        "contract",
    ),
    *("image", "run", "secrets", "network", "root_in_guest", "echo_agent", "vm", "confined", "publish_boot"),
]
"""Files of tests that take longest, first: when they run side by side, none of them may begin last."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first; the order within a file stays."""
    places = {f"test_{name}": number for number, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def need(ability: str, present: object) -> None:
    """Skip on a laptop that lacks ``ability``; fail in CI, where everything must be there."""
    if not present:
        if CI:
            pytest.fail(f"CI must have {ability}")
        pytest.skip(f"needs {ability}")


def need_program(name: str) -> str:
    """Return the path of program ``name``, under the rule of :func:`need`."""
    path = shutil.which(name)
    need(name, path)
    assert path is not None
    return path


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests on real data were skipped, and how to have them."""
    from tests.files import skipped_for_alpine

    lines = skipped_for_alpine(str(report.longrepr) for report in terminalreporter.stats.get("skipped", ()))
    if lines:
        terminalreporter.section("real data")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture
def here() -> Iterator[Place]:
    """Yield folders in which imgkit is run as its users run it."""
    from tests.commandline import place

    with place() as folders:
        yield folders


@pytest.fixture
def small(here: Place, keys: Keys) -> Small:
    """Return a small mirror with one good package, in ``here``."""
    from tests.mirrors import Small, package

    return Small(here.base / "mirror", keys, [package(key=keys.signing)]).write()


@pytest.fixture
def site(small: Small) -> Iterator[Site]:
    """Yield the small mirror over HTTP."""
    from fixtures.server import serve

    with serve(small.root) as server:
        yield server


@pytest.fixture(scope="session")
def mirror() -> Mirror:
    """Return the offline mirror, made on first use."""
    from fixtures.mirror import make

    return make()


@pytest.fixture(scope="session")
def mirror_url(mirror: Mirror) -> Iterator[str]:
    """Base URL of the offline mirror on loopback."""
    from fixtures.server import serve

    with serve(mirror.root) as server:
        yield server.url


@pytest.fixture(scope="session")
def real_text() -> str:
    """Return the text of a real index: main of Alpine 3.17 for aarch64, 5,004 packages."""
    from tests.files import ALPINE, NEEDS_ALPINE, REAL_INDEX

    if not REAL_INDEX.is_file():
        pytest.skip(f"{NEEDS_ALPINE} in {ALPINE}")
    with tarfile.open(REAL_INDEX) as archive:
        member = archive.extractfile("APKINDEX")
        assert member is not None
        return member.read().decode()


@pytest.fixture(scope="session")
def real(real_text: str) -> tuple[Package, ...]:
    """Return the packages of that index."""
    from imgkit.apk.index import Repository, parse_index

    return parse_index(real_text, Repository(0, "main"))


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """Return the keys of small mirrors (:mod:`tests.mirrors`)."""
    from fixtures.keys import load

    return load(tmp_path_factory.mktemp("keys"), bits=2048)


@pytest.fixture(scope="session")
def builder(mirror: Mirror, mirror_url: str, tmp_path_factory: pytest.TempPathFactory) -> Builder:
    """Return a builder that builds from the offline mirror, as a user would."""
    from tests.images import builder

    return builder(mirror.release_key, mirror_url, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def images(builder: Builder, tmp_path_factory: pytest.TempPathFactory) -> Images:
    """Return the images of recipes/core.py for all architectures, built once. Tests must not change them."""
    from tests.images import shared

    return shared(builder, tmp_path_factory, "images", "--arch", "all")


@pytest.fixture(scope="session")
def native_images(builder: Builder, tmp_path_factory: pytest.TempPathFactory) -> Images:
    """Return what :func:`images` returns, with disks that the native engine wrote. Tests must not change them."""
    from tests.images import shared

    return shared(builder, tmp_path_factory, "native-images", "--arch", "all", "--engine", "native")


@pytest.fixture(scope="session")
def rooted_images(builder: Builder, tmp_path_factory: pytest.TempPathFactory) -> Images:
    """Return the amd64 image of a disk of 1 GiB, with a helper through which tests are root in it (VM.root)."""
    from tests.images import rooted, shared

    return shared(builder, tmp_path_factory, "test-images", *rooted(tmp_path_factory.mktemp("overlay"), "1G"))


@pytest.fixture(scope="session")
def image(rooted_images: Images) -> Image:
    """Return the image of :func:`rooted_images` where it can be booted."""
    need_program("qemu-system-x86_64")
    return rooted_images["amd64"]
