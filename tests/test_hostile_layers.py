"""Images that lie, lead out, or cost too much: each is refused by one line, and nothing of it is used."""

from __future__ import annotations

import gzip
import io
import re
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard

from imgkit.errors import HostError, InputError
from imgkit.oci import mediatypes
from imgkit.oci.applying import ImageRoot, InflationLimits, tree_of
from imgkit.oci.changesets import Allowance, Changeset
from imgkit.oci.descriptors import Descriptor, Platform, digest_of
from imgkit.oci.documents import MAX_DOCUMENT
from imgkit.oci.ocilayout import to_json
from imgkit.tree import Tree
from imgkit.tree.members import Spool
from tests.ociimages import WINDOWS_LAYER, Entry, ImageMaker, folder, hard, maker, symlink, tar


@pytest.fixture
def images(tmp_path: Path) -> ImageMaker:
    return maker(tmp_path / "layout")


def root(images: ImageMaker, descriptor: Descriptor, **options: Any) -> ImageRoot:
    spool = images.layout.folder.parent / "spool"
    spool.unlink(missing_ok=True)
    return tree_of(images.layout, descriptor, spool, **options)


def refusal(images: ImageMaker, descriptor: Descriptor, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        root(images, descriptor, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


def refused_layer(images: ImageMaker, *layers: bytes, **options: Any) -> str:
    """Return why the last layer is refused, without its digest, which the message begins with."""
    image = images.image(*layers)
    message = refusal(images, image, **options)
    digest = images.layer(layers[-1]).digest
    assert message.startswith(f"{digest}: ")
    return message.removeprefix(f"{digest}: ")


# ---- entries --------------------------------------------------------------------------------------------------------

PIPE = Entry("", kind=tarfile.FIFOTYPE)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["../x"], "'../x': a name with '..' in it"),
        (["a/../../x"], "'a/../../x': a name with '..' in it"),
        (["/../x"], "'/../x': a name with '..' in it"),
        ([".."], "'..': a name with '..' in it"),
        ([f"../{'x' * 5000}"], f"'../{'x' * 117}…': a name with '..' in it"),
        ([".wh../x"], "'.wh../x': an entry below a whiteout"),
        (["a\nb"], "'a\\nb' has control characters in it"),
        (["a/\x1b[2J/b"], "'a/\\x1b[2J/b' has control characters in it"),
        ([f"a/{'x' * 256}"], f"'a/{'x' * 78}'… is longer than a path may be"),
        ([f"{'x/' * 2048}x"], f"'{'x/' * 40}'… is longer than a path may be"),
        ([Entry("f/", b"x")], "'f': a file whose name ends with a slash"),
        ([replace(PIPE, name="./")], "the root of the image would not be a directory"),
        ([symlink("/", "etc")], "the root of the image would not be a directory"),
        ([hard("/", "etc")], "the root of the image would not be a directory"),
        (["a", "a/b"], "a/b: parent is missing or not a directory"),
        (["a", "a/b/c"], "a/b: parent is missing or not a directory"),
        ([symlink("a", "a"), "a/b"], "a: too many levels of symbolic links"),
        ([symlink("a", "b"), symlink("b", "a"), "a/.wh.x"], "a: too many levels of symbolic links"),
        ([symlink("a", "")], "a: improper link target ''"),
        ([symlink("a", "x" * 5000)], f"a: improper link target '{'x' * 80}'"),
        ([hard("a", "../../etc/shadow")], "'../../etc/shadow': a name with '..' in it"),
        ([hard("a", "missing")], "'a': a hard link to 'missing', which is not a file of the image"),
        ([hard("a", "/")], "'a': a hard link to '', which is not a file of the image"),
        ([folder("d"), hard("a", "d")], "'a': a hard link to 'd', which is not a file of the image"),
        (["a", hard("a", "a")], "'a': a hard link to 'a', which is not a file of the image"),
        (["d/f", hard("d", "d/f")], "'d': a hard link to 'd/f', which is not a file of the image"),
        ([".wh."], "'.wh.': a whiteout of nothing that a directory can have"),
        (["d/.wh.."], "'d/.wh..': a whiteout of nothing that a directory can have"),
        ([".wh..."], "'.wh...': a whiteout of nothing that a directory can have"),
        (["../.wh.x"], "'../.wh.x': a name with '..' in it"),
        (["d/.wh.x/y"], "'d/.wh.x/y': an entry below a whiteout"),
    ],
)
def test_entries_that_no_image_may_have(images: ImageMaker, entries: list[Entry | str], message: str) -> None:
    assert refused_layer(images, tar(*entries)) == message


def test_an_entry_needs_a_name(images: ImageMaker) -> None:
    raw = bytearray(tar("a"))
    raw[0] = 0
    raw[148:156] = b"%06o\0 " % (sum(raw[:148]) + sum(raw[156:512]) + 8 * 0x20)
    assert refused_layer(images, bytes(raw)) == "an entry has no name"


def test_a_file_of_a_lower_layer_is_no_parent(images: ImageMaker) -> None:
    assert refused_layer(images, tar("a"), tar("a/b")) == "a/b: parent is missing or not a directory"


def test_bytes_that_are_not_utf_8_are_kept(images: ImageMaker) -> None:
    assert "caf\udce9" in root(images, images.image(tar("caf\udce9"))).tree


def test_links_cannot_lead_out(images: ImageMaker, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    entries: list[Entry | str] = [symlink("a", str(outside)), "a/x", symlink("b", "../../../outside"), "b/y"]
    tree = root(images, images.image(tar(*entries))).tree
    assert {f"{str(outside)[1:]}/x", "outside/y"} <= set(tree)
    assert not outside.exists()


# ---- archives -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw[:600], "is truncated"),
        (lambda raw: raw[:1000], "is truncated"),
        (lambda raw: raw + b"x", "has data after its end marker"),
        (lambda raw: raw + raw, "has data after its end marker"),
        (lambda raw: raw[:100] + b"x" + raw[101:], "is damaged (a header does not match its checksum)"),
        (lambda _: b"no archive" * 100, "is not a tar archive (a header lacks the ustar magic)"),
    ],
)
def test_damaged_archives(images: ImageMaker, change: Callable[[bytes], bytes], message: str) -> None:
    data = change(tar(Entry("file", b"x" * 800)))
    for compression in ("tar", "gzip", "zstd"):
        assert refused_layer(replace(images, compression=compression), data) == message


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gzip.compress(tar("a"), mtime=0)[:-9], "is truncated"),
        (
            gzip.compress(tar("a"), mtime=0) + b"xx",
            "is damaged (Error -3 while decompressing data: incorrect header check)",
        ),
        (b"\x1f\x8b" + bytes(100), "is damaged (Error -3 while decompressing data: unknown compression method)"),
        (zstandard.compress(tar("a"))[:-9], "inflates to sha256:"),
        (zstandard.compress(tar("a")) + b"xxxx", "is damaged (zstd decompress error: Unknown frame descriptor)"),
        (b"\x28\xb5\x2f\xfd" + bytes([0x68]) + bytes(9), "is damaged (zstd decompress error: "),
    ],
)
def test_damaged_compression(images: ImageMaker, data: bytes, message: str) -> None:
    layer = images.layout.add(mediatypes.LAYER_GZIP, data)
    found = refusal(images, images.manifest_of([layer], [digest_of(tar("a"))]))
    assert found.startswith(f"{layer.digest}: {message}")


def test_a_zstd_window_that_needs_much_memory(images: ImageMaker) -> None:
    """The frame asks for 2 GiB; zstd itself takes 128 MiB at most unless it is told otherwise."""
    squeeze = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=31, enable_ldm=False)
    )
    sink = io.BytesIO()
    with squeeze.stream_writer(sink, closefd=False) as writer:
        writer.write(tar("a"))
    layer = images.layout.add(mediatypes.LAYER_ZSTD, sink.getvalue())
    found = refusal(images, images.manifest_of([layer], [digest_of(tar("a"))]))
    assert found == f"{layer.digest}: is damaged (zstd decompress error: Frame requires too much memory for decoding)"


# ---- documents ------------------------------------------------------------------------------------------------------


def test_digests_and_sizes_that_lie(images: ImageMaker) -> None:
    data = tar("a")
    image = images.image(data)
    layer = images.layer(data)
    place = images.layout.path(layer.digest)
    place.write_bytes(bytes(layer.size))
    assert refusal(images, image) == f"{place}: has the digest {digest_of(bytes(layer.size))}: the blob is damaged"
    place.write_bytes(bytes(layer.size + 1))
    assert refusal(images, image) == (
        f"{place}: has {layer.size + 1} bytes, not the {layer.size} that the image announces"
    )
    place.unlink()
    assert refusal(images, image) == f"{place}: No such file or directory"
    larger = images.manifest_of([replace(images.layer(data), size=7)], [digest_of(data)])
    assert refusal(images, larger) == f"{place}: has {layer.size} bytes, not the 7 that the image announces"


def test_diff_ids_that_lie(images: ImageMaker) -> None:
    layer, wrong = images.layer(tar("a")), digest_of(b"")
    message = refusal(images, images.manifest_of([layer], [wrong]))
    assert message == f"{layer.digest}: inflates to {digest_of(tar('a'))}, not to {wrong}"


@pytest.mark.parametrize("count", [0, 1, 3])
def test_diff_ids_that_are_too_few_or_too_many(images: ImageMaker, count: int) -> None:
    layers = [images.layer(tar("a")), images.layer(tar("b"))]
    image = images.manifest_of(layers, [digest_of(b"")] * count)
    assert refusal(images, image) == f"{image.digest}: has 2 layers, but its configuration has the diff ids of {count}"


@pytest.mark.parametrize(
    ("media_type", "message"),
    [
        (WINDOWS_LAYER, "is a layer that registries must not distribute, as those of Windows are"),
        (
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "is a layer that registries must not distribute, as those of Windows are",
        ),
        (mediatypes.LAYER_GZIP + "+encrypted", "is an encrypted layer"),
        ("application/vnd.in-toto+json", "has the media type 'application/vnd.in-toto+json', which is not a layer's"),
    ],
)
def test_layers_of_other_kinds(images: ImageMaker, media_type: str, message: str) -> None:
    layer = images.layout.add(media_type, b"")
    assert refusal(images, images.manifest_of([layer], [digest_of(b"")])) == f"{layer.digest}: {message}"


def test_manifests_of_other_kinds(images: ImageMaker) -> None:
    index = images.layout.add(mediatypes.INDEX, to_json({"schemaVersion": 2, "manifests": []}))
    assert refusal(images, index) == f"{index.digest}: has the media type '{mediatypes.INDEX}', so it is not an image"
    posing = replace(index, media_type=mediatypes.MANIFEST)
    assert refusal(images, posing).startswith(f"{index.digest}: is not an image manifest: ")
    empty = images.layout.add(mediatypes.EMPTY, b"{}").to_json()
    chart = {"config": {**empty, "mediaType": "application/vnd.cncf.helm.config.v1+json"}}
    for manifest, described in (
        ({"config": empty, "artifactType": "application/spdx+json"}, "application/spdx+json"),
        (chart, "application/vnd.cncf.helm.config.v1+json"),
    ):
        artifact = replace(images, manifest=manifest).image()
        assert refusal(images, artifact) == (
            f"{artifact.digest}: is an artifact of the type '{described}', not an image"
        )


def test_images_for_other_systems(images: ImageMaker) -> None:
    image = replace(images, platform=Platform("windows", "amd64")).image()
    assert refusal(images, image) == f"{image.digest}: is an image for 'windows', not for Linux"
    image = replace(images, config={"rootfs": {"type": "squashfs", "diff_ids": []}}).image()
    assert refusal(images, image) == f"{image.digest}: its root filesystem is of the type 'squashfs', not 'layers'"


def test_huge_documents_are_not_read(images: ImageMaker) -> None:
    image = replace(images, manifest={"annotations": {"x": "y" * MAX_DOCUMENT}}).image()
    assert refusal(images, image) == f"{image.digest}: has {image.size} bytes, where at most {MAX_DOCUMENT} are read"
    config = replace(images, config={"author": "y" * MAX_DOCUMENT}).image()
    assert f"where at most {MAX_DOCUMENT} are read" in refusal(images, config)
    claimed = replace(images.image(), size=MAX_DOCUMENT + 1)
    assert f"where at most {MAX_DOCUMENT} are read" in refusal(images, claimed)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ({"layers": {}}, "layers: Input should be a valid list"),
        ({"layers": [{}] * 1001}, "layers: List should have at most 1000 items"),
        ({"schemaVersion": 1}, "is of schema version 1, not 2"),
        ({"mediaType": mediatypes.INDEX}, f"has the media type '{mediatypes.INDEX}', not "),
        ({"config": {"mediaType": mediatypes.CONFIG, "size": 1, "digest": "sha256:../x"}}, "is not a digest"),
    ],
)
def test_malformed_manifests(images: ImageMaker, manifest: Mapping[str, object], message: str) -> None:
    assert message in refusal(images, replace(images, manifest=manifest).image())


# ---- costs ----------------------------------------------------------------------------------------------------------


def test_what_layers_inflate_to_is_limited_together(images: ImageMaker) -> None:
    layers = tar(Entry("a", b"x" * 3000)), tar(Entry("b", b"x" * 3000))
    size = sum(map(len, layers))
    image = images.image(*layers)
    assert "b" in root(images, image, limits=InflationLimits(free=size)).tree
    upper = images.layer(layers[1]).digest
    message = f"{upper}: inflates to more than {len(layers[1]) - 1} bytes"
    assert refusal(images, image, limits=InflationLimits(ratio=1, free=size - 1)) == message
    assert refusal(images, image, limits=InflationLimits(total=size - 1)) == message
    for compression in ("tar", "zstd"):
        other = replace(images, compression=compression)
        stored = other.image(*layers)
        assert "b" in root(images, stored, limits=InflationLimits(total=size)).tree
        assert refusal(images, stored, limits=InflationLimits(total=size - 1)) == (
            f"{other.layer(layers[1]).digest}: inflates to more than {len(layers[1]) - 1} bytes"
        )


def test_the_ratio_counts_for_large_images() -> None:
    limits = InflationLimits(total=1000, ratio=3, free=100)
    assert [limits.of(size) for size in (0, 33, 34, 300, 400)] == [100, 100, 102, 900, 1000]


def test_the_usual_limits() -> None:
    """They are those of docs/howto/bases.md."""
    assert [InflationLimits().of(size) for size in (1, 10 << 20, 1 << 30)] == [1 << 30, 2000 << 20, 64 << 30]
    assert Allowance() == Allowance(entries=1_000_000, text=256 << 20, steps=50_000_000)


def bomb(size: int) -> bytes:
    info = tarfile.TarInfo("zeros")
    info.size = size
    sink = io.BytesIO()
    with gzip.GzipFile(fileobj=sink, mode="wb", mtime=0) as target:
        target.write(info.tobuf())
        for _ in range(size >> 20):
            target.write(bytes(1 << 20))
    return sink.getvalue()


@pytest.mark.slow
def test_a_bomb_stops_early(images: ImageMaker) -> None:
    layer = images.layout.add(mediatypes.LAYER_GZIP, bomb(64 << 20))
    image = images.manifest_of([layer], [digest_of(b"")])
    message = refusal(images, image, limits=InflationLimits(free=4 << 20, ratio=10))
    assert message == f"{layer.digest}: inflates to more than {4 << 20} bytes"
    assert (images.layout.folder.parent / "spool").stat().st_size <= 5 << 20


@pytest.mark.parametrize(
    ("entries", "allowance", "message"),
    [
        (["a", "b"], Allowance(entries=2), ""),
        (["a", "b", "c"], Allowance(entries=2), "there are too many files in the image"),
        ([".wh.a"] * 3, Allowance(entries=2), "there are too many files in the image"),
        (["a/b/c"], Allowance(entries=3), ""),
        (["a/b/c"], Allowance(entries=2), "there are too many files in the image"),
        (["abc", symlink("d", "ef")], Allowance(text=6), ""),
        (["abc", symlink("d", "ef")], Allowance(text=5), "the names and attributes of the image's files are too long"),
        (["a/b"], Allowance(text=4), ""),
        (["a/b"], Allowance(text=3), "the names and attributes of the image's files are too long"),
        ([Entry("a", xattrs={"user.x": "yz"})], Allowance(text=1 + 8 + 256), ""),
        ([Entry("a", xattrs={"user.x": "yz"})], Allowance(text=8 + 256), "the names and attributes of the image's"),
        ([symlink("a", "b/c"), "a/x"], Allowance(steps=3), ""),
        ([symlink("a", "b/c"), "a/x"], Allowance(steps=2), "the links of the image are too expensive to follow"),
        (["a", hard("b", "a"), hard("c", "a"), folder("a")], Allowance(steps=17), ""),
        (["a", hard("b", "a"), hard("c", "a"), folder("a")], Allowance(steps=16), "the links of the image are too"),
    ],
)
def test_what_layers_may_cost(
    images: ImageMaker, entries: list[Entry | str], allowance: Allowance, message: str
) -> None:
    data = tar(*entries)
    if not message:
        assert root(images, images.image(data), allowance=allowance).tree
        return
    assert refused_layer(images, data, allowance=allowance).startswith(message)


def test_a_full_disk_is_the_host_s_fault(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    with Spool(tmp_path / "spool") as spool:
        spool._sink.close()
        spool._sink = full.open("wb", buffering=0)
        with pytest.raises(HostError) as caught:
            Changeset(Tree(), spool, Allowance()).apply(iter([tar(Entry("file", b"x"))]))
    message = f"{tmp_path}: no space left for the contents of files"
    assert re.fullmatch(rf"{re.escape(message)} \(\d+ MiB free\)", caught.value.message)


def test_the_allowance_is_for_all_layers_together(images: ImageMaker) -> None:
    assert refused_layer(images, tar("a"), tar("b"), allowance=Allowance(entries=1)).startswith("there are too many")


@pytest.mark.hostile
def test_many_whiteouts_of_a_large_directory(images: ImageMaker) -> None:
    """Every directory is searched once in a layer, however often and at whatever depth it is made opaque."""
    lower = tar(*(f"d/{number}" for number in range(20_000)))
    deep = ["d" + "/d" * depth for depth in range(300)]
    upper = [f"d/new{number}" for number in range(20_000)]
    upper += [f"{path}/.wh..wh..opq" for path in reversed(deep)] + ["d/.wh..wh..opq", ".wh.d"] * 3000
    tree = root(images, images.image(lower, tar(*(f"{path}/x" for path in deep[-1:]), *upper))).tree
    assert tree.count("d") == 20_001


@pytest.mark.hostile
def test_links_that_are_removed_one_by_one(images: ImageMaker) -> None:
    """Each removal of a file hands it over to the next of its names, and changes all of them."""
    names = [f"f{number:05}" for number in range(12_000)]
    lower = tar(names[0], *(hard(name, names[0]) for name in names[1:]))
    message = refused_layer(images, lower, tar(*(f".wh.{name}" for name in names)))
    assert message == "the links of the image are too expensive to follow"


@pytest.mark.hostile
def test_names_through_chains_of_links(images: ImageMaker) -> None:
    """39 links with targets of 4 KB cost 80,000 lookups for each name of two letters."""
    long = "a/../" * 790
    links = [symlink("l00", "d")] + [symlink(f"l{number:02}", f"{long}l{number - 1:02}") for number in range(1, 39)]
    data = tar(folder("d"), folder("a"), *links, *(f"l38/{number}" for number in range(2000)))
    assert refused_layer(images, data) == "the links of the image are too expensive to follow"


@pytest.mark.hostile
def test_a_bomb_of_the_usual_limits(images: ImageMaker) -> None:
    layer = images.layout.add(mediatypes.LAYER_GZIP, bomb(2 << 30))
    image = images.manifest_of([layer], [digest_of(b"")])
    assert refusal(images, image) == f"{layer.digest}: inflates to more than {1 << 30} bytes"
