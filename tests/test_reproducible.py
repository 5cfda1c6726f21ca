"""One lock, one image: the files of a build of the native engine are the same bytes wherever and whenever it runs."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from fixtures.mirror import Mirror
from tests import images, pythons
from tests.commandline import ROOT
from tests.conftest import need, need_program
from tests.mac import Mac
from tests.secondopinion import examine

pytestmark = pytest.mark.mirror

_PARTS = ("imgkit", "recipes", "overlay", "agents")
_NOBODY = 65534
_YEARS = 5 * 365 * 86400  # seconds


@dataclass(frozen=True)
class Place:
    """Where and how a build runs.

    Attributes:
        project: the folder with the code, the recipe, its lock and its overlay.
        cache: the cache folder; other caches of one build may lie in it.
        words: further arguments.
        variables: of the environment, besides those of :func:`tests.images.environment`.
        user: uid and gid; None is that of the tests.
        processors: how many of them the build may use; None is all.
        mac: what makes this host look like a Mac to the build; None leaves it as it is.
    """

    project: Path
    cache: Path
    mirror: str
    key: Path
    words: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    umask: int = 0o022
    user: int | None = None
    processors: int | None = None
    python: Path = Path(sys.executable)
    mac: Mac | None = None

    def imgkit(self, *words: str | Path) -> None:
        """Run imgkit; it must succeed."""
        argv = ["-m", "imgkit", *map(str, words), "--mirror", self.mirror, "--release-key", str(self.key)]
        argv = [str(self.python), *argv] if self.mac is None else self.mac.argv(*argv)
        if self.processors is not None:
            allowed = sorted(os.sched_getaffinity(0))[: self.processors]
            argv = [need_program("taskset"), "--cpu-list", ",".join(map(str, allowed)), *argv]
        user = {} if self.user is None else {"user": self.user, "group": self.user, "extra_groups": []}
        env = {**images.environment(self.cache), **self.variables}
        done = subprocess.run(
            argv,
            cwd=self.project,
            env=env,
            umask=self.umask,
            capture_output=True,
            text=True,
            timeout=300,
            **user,  # type: ignore[call-overload]
        )
        assert done.returncode == 0, done.stderr

    def build(self, out: Path) -> dict[str, str]:
        """Build the image of amd64 into ``out``; return the SHA-256 of each file by name."""
        recipe = self.project / "recipes/core.py"
        self.imgkit("build", recipe, "--engine", "native", "--locked", "--arch", "amd64", "--out", out, *self.words)
        return {path.name: sha256(path) for path in sorted(out.iterdir())}


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, which may be as large as a disk."""
    digest = hashlib.sha256()
    with path.open("rb") as source:
        while piece := source.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


@pytest.fixture(scope="module")
def base() -> Iterator[Path]:
    """Yield a folder that every user of the host can reach; those of pytest are closed to others."""
    with TemporaryDirectory(prefix="imgkit-tests-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.fixture(scope="module")
def place(base: Path, mirror: Mirror, mirror_url: str) -> Place:
    """Return a copy of the project with a lock."""
    need_program("qemu-img")
    key = base / "release.key"
    shutil.copyfile(mirror.release_key, key)
    place = Place(copied(base / "project"), base / "cache", mirror_url, key)
    place.imgkit("lock", place.project / "recipes/core.py", "--arch", "amd64")
    return place


def copied(folder: Path) -> Path:
    """Copy what a build needs of the repository."""
    for part in _PARTS:
        shutil.copytree(ROOT / part, folder / part, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def reference(place: Place, base: Path) -> dict[str, str]:
    """Build for the first time, with empty caches; the image is examined."""
    out = base / "reference"
    files = place.build(out)
    [disk] = out.glob("*.qcow2")
    examine(disk)
    assert sorted(path.partition("-")[0] for path in files) == ["initramfs", "linux", "linux", "vmlinuz"]
    return files


def test_warm_caches(place: Place, reference: dict[str, str], tmp_path: Path) -> None:
    assert place.build(tmp_path / "out") == reference


def test_cold_caches_another_folder_and_another_home(place: Place, reference: dict[str, str], tmp_path: Path) -> None:
    project = tmp_path / "another folder with a näme"
    shutil.copytree(place.project, project, symlinks=True)
    (tmp_path / "home").mkdir()
    variables = {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path), "USER": "somebody"}
    another = replace(place, project=project, cache=tmp_path / "cache", variables=variables)
    assert another.build(tmp_path / "out" / "deep") == reference


@pytest.mark.parametrize("umask", [0o077, 0o000])
def test_umask(place: Place, reference: dict[str, str], tmp_path: Path, umask: int) -> None:
    """The caches are made under the umask, too."""
    assert replace(place, umask=umask, cache=tmp_path / "cache").build(tmp_path / "out") == reference


@pytest.mark.parametrize(
    "variables",
    [
        {"LC_ALL": "C", "TZ": "Pacific/Kiritimati", "PYTHONHASHSEED": "0"},
        {"LC_ALL": "de_DE.UTF-8", "LANGUAGE": "de", "TZ": "America/St_Johns", "PYTHONHASHSEED": "1"},
        {"LC_ALL": "C.UTF-8", "TZ": "", "PYTHONHASHSEED": "random", "PYTHONUTF8": "0", "COLUMNS": "20", "TERM": "dumb"},
    ],
    ids=["C", "de_DE", "C.UTF-8"],
)
def test_locale_time_zone_and_hash_seed(
    place: Place, reference: dict[str, str], tmp_path: Path, variables: dict[str, str]
) -> None:
    """A locale that the host lacks is the C locale, with the variables of the other one."""
    assert replace(place, variables=variables, cache=tmp_path / "cache").build(tmp_path / "out") == reference


def test_one_processor(place: Place, reference: dict[str, str], tmp_path: Path) -> None:
    need("more than one processor", len(os.sched_getaffinity(0)) > 1)
    assert replace(place, processors=1, cache=tmp_path / "cache").build(tmp_path / "out") == reference


def test_another_user(place: Place, reference: dict[str, str], base: Path) -> None:
    """The user has none of the groups and none of the files of the first one."""
    need("root", os.geteuid() == 0)
    folder = base / "nobody"
    folder.mkdir()
    os.chown(folder, _NOBODY, _NOBODY)
    another = replace(place, user=_NOBODY, cache=folder / "cache", variables={"HOME": str(folder), "USER": "nobody"})
    assert another.build(folder / "out") == reference


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a library that moves the clock of the processes into which it is loaded."""
    library = tmp_path_factory.mktemp("clock") / "clock.so"
    compiler = need_program("cc")
    subprocess.run([compiler, "-shared", "-fPIC", "-O", "-o", library, ROOT / "tests/clock.c", "-ldl"], check=True)
    return library


def moved(place: Place, clock: Path, seconds: int, cache: Path) -> Place:
    """Return a place with another time of day, which is tried first."""
    variables = {"LD_PRELOAD": str(clock), "CLOCK_AHEAD": str(seconds)}
    words = [sys.executable, "-c", "import time, datetime; print(time.time(), datetime.datetime.now().timestamp())"]
    seen = subprocess.run(words, env={**os.environ, **variables}, capture_output=True, text=True, check=True).stdout
    assert all(abs(float(word) - seconds - time.time()) < 3600 for word in seen.split())
    return replace(place, variables=variables, cache=cache)


def test_another_day(place: Place, reference: dict[str, str], clock: Path, tmp_path: Path) -> None:
    assert moved(place, clock, _YEARS, tmp_path / "cache").build(tmp_path / "out") == reference


def test_a_clock_before_the_key_was_made(place: Place, clock: Path, tmp_path: Path) -> None:
    """Nothing is built that could not be verified."""
    early = moved(place, clock, -_YEARS, tmp_path / "cache")
    with pytest.raises(
        AssertionError, match=r"by this host's clock, the key [0-9A-F]+ is not valid yet\s+hint: set the clock"
    ):
        early.build(tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("minor", [minor for minor in pythons.VERSIONS if minor != sys.version_info[1]])
def test_other_pythons(place: Place, reference: dict[str, str], tmp_path: Path, minor: int) -> None:
    found = pythons.find(minor)
    if found is None:
        pytest.skip(f"the host has no Python 3.{minor}")
    python = pythons.environment(found)
    if python is None:
        pytest.skip(f"the packages that imgkit needs cannot be installed for Python 3.{minor}")
    assert pythons.version_of(python) == (3, minor)
    assert replace(place, python=python, cache=tmp_path / "cache").build(tmp_path / "out") == reference


def on_a_mac(place: Place, folder: Path, machine: str, *words: str) -> Place:
    """Return a place on a host that looks like a Mac, with a cache of its own."""
    mac = Mac(folder, machine)
    return replace(place, mac=mac, variables=mac.variables(), words=words, cache=folder / "cache")


def test_a_mac(place: Place, reference: dict[str, str], tmp_path: Path) -> None:
    """What CPython has on Linux only is not there, nor is any program; :mod:`tests.mac` says what is not tried."""
    there = on_a_mac(place, tmp_path, "arm64")
    assert there.build(tmp_path / "out") == reference
    assert there.mac is not None
    variables = {"IMGKIT_CACHE": str(there.cache)}
    listed = there.mac.run("-m", "imgkit", "cache", "list", env=variables)
    assert listed.returncode == 0, listed.stderr
    pruned = there.mac.run("-m", "imgkit", "cache", "prune", "--all", env=variables)
    assert pruned.returncode == 0, pruned.stderr
    assert there.mac.run("-m", "imgkit", "cache", "list", env=variables).stdout != listed.stdout


def test_a_mac_chooses_the_native_engine(place: Place, reference: dict[str, str], tmp_path: Path) -> None:
    """``auto`` comes after ``native`` on the command line, and so decides."""
    assert on_a_mac(place, tmp_path, "x86_64", "--engine", "auto").build(tmp_path / "out") == reference


def test_other_outputs_on_a_mac(place: Place, tmp_path: Path) -> None:
    """A root filesystem alone, and a container image, which can be inspected and verified there."""
    outputs = ("--output", "rootfs", "--output", "oci-archive")
    project = tmp_path / "project"
    shutil.copytree(place.project, project, symlinks=True)
    here = replace(place, project=project, words=(*outputs, "--set", "size=1G"))
    here.imgkit("lock", project / "recipes/core.py", "--arch", "amd64", *outputs)
    expected = here.build(tmp_path / "linux")
    there = on_a_mac(here, tmp_path, "arm64", *here.words)
    assert there.build(tmp_path / "out") == expected
    assert any(name.endswith(".ext4") for name in expected), expected
    [archive] = (tmp_path / "out").glob("*.tar")
    assert there.mac is not None
    for command in ("inspect", "verify"):
        done = there.mac.run("-m", "imgkit", command, archive, env={"IMGKIT_CACHE": str(there.cache)})
        assert done.returncode == 0, done.stderr


def test_another_epoch_makes_another_image(place: Place, reference: dict[str, str], tmp_path: Path) -> None:
    other = replace(place, variables={"SOURCE_DATE_EPOCH": "1234567890"}).build(tmp_path / "out")
    assert other.keys() == reference.keys()
    changed = {name.rpartition(".")[2] for name in reference if reference[name] != other[name]}
    assert {"qcow2", "json"} <= changed
