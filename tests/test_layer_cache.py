"""The cache of layers: when it has a layer, what a damaged one does, and what is removed."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from imgkit.oci.compression import Compression, LayerBlob, compress
from imgkit.oci.layercache import LayerCache, layer_key
from imgkit.oci.layerchanges import LayerChanges, changes
from imgkit.oci.layerwriter import LayerWriter
from imgkit.oci.ocilayout import OciLayout
from imgkit.tree import File, HardLink, Inline, Node, Slice, Symlink, Tree
from tests.ocitrees import EPOCH, lower_tree

FILE = File(content=Inline(b"abc"))
GZIP = Compression()


def key_of(*entries: tuple[str, Node], compression: Compression = GZIP) -> str:
    return layer_key(LayerChanges(entries), compression, {})


def test_equal_layers_have_equal_keys_wherever_their_contents_are(tmp_path: Path) -> None:
    (tmp_path / "spool").write_bytes(b"-abc-")
    assert key_of(("f", FILE)) == key_of(("f", replace(FILE, content=Slice(tmp_path / "spool", 1, 3))))


def test_everything_about_an_entry_is_in_the_key() -> None:
    layers: list[tuple[tuple[str, Node], ...]] = [
        (("f", FILE),),
        (("g", FILE),),
        (("f", replace(FILE, content=Inline(b"abd"))),),
        (("f", replace(FILE, mode=0o600)),),
        (("f", replace(FILE, uid=1)),),
        (("f", replace(FILE, gid=1)),),
        (("f", replace(FILE, mtime=1)),),
        (("f", replace(FILE, xattrs={"user.a": b"1"})),),
        (("f", replace(FILE, xattrs={"user.a": b"2"})),),
        (("f", Symlink(target="a")),),
        (("f", Symlink(target="b")),),
        (("f", HardLink(target="b")),),
        (("f", FILE), ("g", FILE)),
        (("g", FILE), ("f", FILE)),
        (),
    ]
    assert len({key_of(*entries) for entries in layers}) == len(layers)
    assert key_of(("f", FILE), compression=Compression("gzip", 4)) != key_of(("f", FILE))
    assert key_of(("f", FILE), compression=Compression("zstd")) != key_of(("f", FILE))


def test_known_hashes_are_used_and_others_computed() -> None:
    good = hashlib.sha256(b"abc").hexdigest()
    entries = LayerChanges((("f", FILE),))
    assert (
        layer_key(entries, GZIP, {"f": good}) == layer_key(entries, GZIP, {}) == layer_key(entries, GZIP, {"g": "00"})
    )
    assert layer_key(entries, GZIP, {"f": "00" * 32}) != layer_key(entries, GZIP, {})


class Setup:
    """A cache, and a count of the layers that were compressed."""

    def __init__(self, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.base = base
        self.cache = LayerCache(base / "cache")
        self.compressed = 0
        self.layouts = count()

        def counting(*words: object, **others: object) -> LayerBlob:
            self.compressed += 1
            return compress(*words, **others)  # type: ignore[arg-type]

        monkeypatch.setattr("imgkit.oci.layerwriter.compress", counting)

    def write(self, tree: Tree, compression: Compression = GZIP, cache: LayerCache | None = None) -> bytes:
        """Write the layer of a Tree into a new layout; return its bytes."""
        layout = OciLayout.create(self.base / f"layout{next(self.layouts)}")
        writer = LayerWriter(layout, compression, cache=cache or self.cache)
        layer = writer.write(changes(None, tree), reason="all", created=EPOCH)
        assert layer.blob is not None
        with layout.verified(layer.blob.descriptor) as source:
            return source.read()

    def entries(self, suffix: str) -> list[Path]:
        return sorted((self.base / "cache" / "layers").glob(f"*/*{suffix}"))


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    return Setup(tmp_path, monkeypatch)


def test_a_layer_is_compressed_once(setup: Setup) -> None:
    first = setup.write(lower_tree())
    assert setup.write(lower_tree()) == first
    assert setup.compressed == 1
    assert [len(setup.entries(suffix)) for suffix in (".json", ".blob")] == [1, 1]
    assert list((setup.base / "cache" / "tmp").iterdir()) == []
    other = lower_tree()
    other.write("more", "")
    assert setup.write(other) != first
    assert setup.write(lower_tree(), Compression("zstd")) != first
    assert setup.compressed == 3


def test_what_comes_from_the_cache_is_described_alike(setup: Setup) -> None:
    layers = []
    for name in "ab":
        writer = LayerWriter(OciLayout.create(setup.base / name), Compression("zstd"), cache=setup.cache)
        layers.append(writer.write(changes(None, lower_tree()), reason="all", created=EPOCH))
    assert layers[0] == layers[1]
    assert setup.compressed == 1


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def edit(field: str, value: object) -> Callable[[Path], None]:
    def change(blob: Path) -> None:
        record = blob.with_suffix(".json")
        record.write_text(json.dumps(json.loads(record.read_text()) | {field: value}))

    return change


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip, "its digest is sha256:"),
        (lambda blob: blob.write_bytes(blob.read_bytes()[:-1]), "its digest is sha256:"),
        (lambda blob: blob.write_bytes(blob.read_bytes() + b"x"), "its digest is sha256:"),
        (lambda blob: blob.unlink(), "No such file or directory"),
        (lambda blob: blob.with_suffix(".json").write_text("{"), "not JSON"),
        (lambda blob: blob.with_suffix(".json").write_text("[]"), "is not a cached layer"),
        (edit("diff_id", "sha256:" + "0" * 64), "its record has another checksum"),
        (edit("digest", "sha256:" + "0" * 64), "its record has another checksum"),
        (edit("size", 1), "its record has another checksum"),
        (edit("size", -1), "is not a cached layer"),
        (edit("checksum", "0"), "its record has another checksum"),
    ],
)
def test_a_damaged_layer_is_deleted_and_made_anew(
    setup: Setup, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None], reason: str
) -> None:
    first = setup.write(lower_tree())
    damage(setup.entries(".blob")[0])
    with caplog.at_level(logging.WARNING):
        assert setup.write(lower_tree()) == first
    assert reason in caplog.text
    assert "damaged in the cache, and deleted" in caplog.text
    assert setup.compressed == 2
    assert setup.write(lower_tree()) == first
    assert setup.compressed == 2


def test_a_record_of_another_layer_is_not_used(setup: Setup) -> None:
    setup.write(lower_tree())
    other = lower_tree()
    other.write("more", "")
    right = setup.write(other)
    first, second = setup.entries(".json")
    for record in (first, second):
        record.with_suffix(".blob").write_bytes(b"")
    first.write_bytes(second.read_bytes())
    assert setup.write(other) == right
    assert setup.compressed == 3


def test_a_cache_that_cannot_be_written_is_only_a_warning(setup: Setup, caplog: pytest.LogCaptureFixture) -> None:
    (setup.base / "cache").write_text("a file")
    with caplog.at_level(logging.WARNING):
        first = setup.write(lower_tree())
    assert "the layer is not kept for the next build" in caplog.text
    assert setup.write(lower_tree()) == first
    assert setup.compressed == 2


def test_the_layers_that_were_used_last_are_kept(setup: Setup) -> None:
    trees = []
    for number in range(4):
        tree = Tree()
        tree.add("noise", File(content=Inline(bytes([number]) * 3)))
        trees.append(tree)
    size = len(setup.write(trees[0]))
    cache = LayerCache(setup.base / "cache", most_bytes=2 * size + 50)
    oldest = setup.entries(".json")[0]
    os.utime(oldest, (1, 1))
    setup.write(trees[1], cache=cache)
    second = next(record for record in setup.entries(".json") if record != oldest)
    os.utime(second, (2, 2))
    assert len(setup.entries(".blob")) == 2
    setup.write(trees[0], cache=cache)  # used again: it is the newer one now
    setup.write(trees[2], cache=cache)
    assert not second.exists()
    assert oldest.exists()
    assert len(setup.entries(".blob")) == 2
    assert setup.compressed == 3
    setup.write(trees[3], cache=LayerCache(setup.base / "cache", most_bytes=0))
    assert len(setup.entries(".blob")) == len(setup.entries(".json")) == 1
    setup.write(trees[3])
    assert setup.compressed == 4


def test_several_builds_write_the_same_layer_at_a_time(setup: Setup) -> None:
    with ThreadPoolExecutor(4) as pool:
        layers = set(pool.map(lambda _: setup.write(lower_tree()), range(12)))
    assert len(layers) == 1
    assert len(setup.entries(".json")) == len(setup.entries(".blob")) == 1
    compressed = setup.compressed
    assert setup.write(lower_tree()) in layers
    assert setup.compressed == compressed
