"""Format version 3, as the real apk writes it: packages and indexes are recognized, and refused where they are read."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from imgkit.apk.package import check_package, open_package
from imgkit.apk.signature import Keyring, verify_index
from imgkit.fetch.checks import Version3Error
from tests.test_solver_oracle import Apk

if TYPE_CHECKING:
    from fixtures.mirror import Mirror

pytestmark = pytest.mark.mirror

NAME = "hello-1.0-r0.apk"
ANY = f"Q1{'A' * 27}="


@pytest.fixture
def repository(mirror: Mirror, tmp_path: Path) -> Path:
    """Return a folder with a package and its index, made by the apk of the offline mirror."""
    arch = platform.machine()
    if arch not in mirror.oracle:
        pytest.skip(f"the mirror has no apk that runs on {arch}")
    apk = Apk(mirror, tmp_path / "apk", machine=arch, arch=arch)
    apk.publish([])  # it wants a root, even to make packages
    folder, files = tmp_path / "repository", tmp_path / "files"
    for made in (folder, files):
        made.mkdir()
    (files / "hello").write_text("hello\n")
    info = ["--info", "name:hello", "--info", "version:1.0-r0", "--info", f"arch:{arch}"]
    for words in (
        ["mkpkg", *info, "--files", str(files), "--output", str(folder / NAME)],
        ["mkndx", "--output", str(folder / "Packages.adb"), str(folder / NAME)],
    ):
        done = apk.run(*words)
        assert done.returncode == 0, done.stderr
    return folder


def test_an_index_is_refused(repository: Path) -> None:
    with pytest.raises(Version3Error, match=r"^an index: is in format version 3 \(ADB\)"):
        verify_index((repository / "Packages.adb").read_bytes(), Keyring(), name="an index")


def test_a_package_is_refused(repository: Path, tmp_path: Path) -> None:
    path = repository / NAME
    with pytest.raises(Version3Error, match=rf"^{NAME}: is in format version 3 \(ADB\)") as caught:
        open_package(path, expected=ANY, keyring=Keyring(), spool=tmp_path / "spool", max_installed=1 << 20, name=NAME)
    assert caught.value.exit_status == 4
    with pytest.raises(Version3Error):
        check_package(path, ANY, name=NAME)
