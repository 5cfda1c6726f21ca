"""A minirootfs from the cache: the same as unpacked anew, whatever happens to what is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from imgkit.errors import InputError
from imgkit.planning import unpackedbase
from imgkit.planning.unpackedbase import unpacked_base
from imgkit.tree import File, Inline, Tree
from tests.test_minirootfs import archived, sample
from tests.test_unpacked_packages import flip, text


class Setup:
    """An archive and a cache; ``unpacked`` counts how often the archive was read."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.cache = folder, folder / "cache"
        self.unpacked = 0
        self.archive = folder / "minirootfs.tar.gz"
        self.archive.write_bytes(archived(sample()))
        unpack = unpackedbase.__dict__["unpack"]

        def counting(archive: Path, spool: Path) -> Tree:
            self.unpacked += 1
            tree: Tree = unpack(archive, spool)
            return tree

        monkeypatch.setattr(unpackedbase, "unpack", counting)

    def tree(self) -> Tree:
        sha256 = hashlib.sha256(self.archive.read_bytes()).hexdigest()
        return unpacked_base(self.archive, sha256, self.cache, self.folder / f"spool{self.unpacked}")

    def file(self, suffix: str) -> Path:
        (path,) = self.cache.glob(f"bases/*/*{suffix}")
        return path


def facts(tree: Tree) -> list[object]:
    return [
        (path, replace(node, content=Inline(node.content.read())) if isinstance(node, File) else node)
        for path, node in tree.items()
    ]


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    return Setup(tmp_path, monkeypatch)


def test_a_minirootfs_is_unpacked_once(setup: Setup) -> None:
    cold, warm = setup.tree(), setup.tree()
    assert setup.unpacked == 1
    assert list(cold.items()) == list(warm.items()), "also the places of its contents"
    assert facts(warm) == facts(cold)
    assert warm.read("bin/busybox") == b"\x7fELF" * 1000
    warm.remove("bin/busybox")  # hard links are known
    assert warm.read("bin/hard") == b"\x7fELF" * 1000


def test_another_archive_is_not_taken_for_it(setup: Setup) -> None:
    setup.tree()
    other = sample()
    other.write("etc/motd", "other")
    setup.archive.write_bytes(archived(other))
    assert setup.tree().text("etc/motd") == "other"
    assert setup.unpacked == 2


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        (".blob", flip),
        (".blob", lambda path: path.write_bytes(b"")),
        (".blob", lambda path: path.write_bytes(bytes(path.stat().st_size))),
        (".blob", Path.unlink),
        (".record", flip),
        (".record", Path.unlink),
        (".record", text(b"7")),
        (".record", text(b'[["x"]]')),
        (".record", text(b'[["", "f", 0, 0, 0, 0, {}, [0]]]')),
        (".record", text(b"[" * 100_000)),
    ],
)
def test_what_is_damaged_is_unpacked_anew(suffix: str, damage: Callable[[Path], object], setup: Setup) -> None:
    expected = facts(setup.tree())
    damage(setup.file(suffix))
    assert facts(setup.tree()) == expected
    assert facts(setup.tree()) == expected
    assert setup.unpacked == 2


def test_where_the_cache_cannot_be_written_the_spool_takes_the_contents(setup: Setup) -> None:
    setup.cache.write_text("a file")
    assert facts(setup.tree()) == facts(setup.tree())
    assert setup.unpacked == 2


def test_nothing_is_kept_of_a_damaged_archive(setup: Setup) -> None:
    setup.archive.write_bytes(setup.archive.read_bytes()[:-20])
    for _ in range(2):
        with pytest.raises(InputError, match=r"minirootfs\.tar\.gz"):
            setup.tree()
    assert list(setup.cache.glob("bases/*/*")) == list(setup.cache.glob("tmp/*")) == []
