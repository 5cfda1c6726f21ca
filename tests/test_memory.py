"""How much memory a build takes does not depend on how large the image's content is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.commandline import ROOT

MIB = 1 << 20

# What a build does with the content of an overlay: copy, check, hash, write to the appliance's drive.
COMPOSE = """
import sys
from pathlib import Path
from imgkit.cli.reports.buildreport import peak_memory
from imgkit.disk.grub import BootFiles
from imgkit.engines.guestfs.feed import write_feed
from imgkit.rootfs import digest
from imgkit.rootfs.binaries.libraries import check_architecture
from imgkit.rootfs.payload import add_directory
from imgkit.tree import Tree

tree = Tree()
add_directory(tree, Path(sys.argv[1]), "", epoch=0)
assert check_architecture(tree, "x86_64") == []
digest.records(tree)
with open(sys.argv[2], "wb") as sink:
    write_feed(sink, tree, BootFiles())
print(tree.content_size, peak_memory())
"""


def composed(overlay: Path) -> tuple[int, int]:
    """Bytes of the content, bytes of memory at the most."""
    words: list[str | Path] = [sys.executable, "-c", COMPOSE, overlay, overlay.with_suffix(".feed")]
    done = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True)
    size, peak = map(int, done.stdout.split())
    return size, peak


def overlay(folder: Path, *, large: int, small: int) -> Path:
    """Return a file of ``large`` bytes and a hundred that are ``small`` ones, which travel in the tar."""
    folder.mkdir()
    for number, size in enumerate([large, *[small] * 100]):
        with (folder / f"file{number}").open("wb") as file:
            file.truncate(size)
    return folder


@pytest.mark.slow
def test_larger_content_takes_no_more_memory(tmp_path: Path) -> None:
    few, least = composed(overlay(tmp_path / "few", large=5 * MIB, small=1000))
    many, most = composed(overlay(tmp_path / "many", large=200 * MIB, small=MIB))
    assert many - few > 290 * MIB
    assert most - least < 8 * MIB
