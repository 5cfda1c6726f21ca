"""Configurations, manifests and indexes of images, and the layers of a writer."""

from __future__ import annotations

import json
import os
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from imgkit.errors import HostError, InputError
from imgkit.oci import mediatypes
from imgkit.oci.compression import Algorithm, Compression
from imgkit.oci.descriptors import Descriptor, Platform
from imgkit.oci.documents import parse_config, parse_index, parse_manifest
from imgkit.oci.layerchanges import LayerChanges, changes
from imgkit.oci.layerwriter import LayerWriter, layers_of, rfc3339
from imgkit.oci.ocilayout import OciLayout
from imgkit.oci.writing import DEFAULT_PATH, ImageFacts, write_image, write_layout_index
from imgkit.tree import Device, File, Slice, Tree
from tests.ocitrees import AMD64, EPOCH, inflate, lower_tree, read_archive, small_image, upper_tree, write_layers

ARM64 = Platform("linux", "arm64")


@pytest.fixture
def layout(tmp_path: Path) -> OciLayout:
    return OciLayout.create(tmp_path / "image.oci")


def config_of(layout: OciLayout, image: Descriptor) -> dict[str, Any]:
    manifest = parse_manifest(layout.read(image), "manifest")
    config: dict[str, Any] = json.loads(layout.read(manifest.config.value))
    return config


def test_a_whole_image(layout: OciLayout) -> None:
    image = small_image(layout)
    assert image.platform == AMD64
    manifest = parse_manifest(layout.read(image), "manifest")
    config = parse_config(layout.read(manifest.config.value), "config")
    assert (manifest.mediaType, manifest.config.mediaType) == (mediatypes.MANIFEST, mediatypes.CONFIG)
    assert [layer.mediaType for layer in manifest.layers] == [mediatypes.LAYER_GZIP] * 2
    assert (config.os, config.architecture, config.variant) == ("linux", "amd64", None)
    assert config.created == "2023-11-14T22:13:20Z"
    assert config.rootfs.type == "layers"
    first = inflate(layout.path(manifest.layers[0].digest), mediatypes.LAYER_GZIP)
    entries = changes(None, lower_tree()).entries
    assert read_archive(first) == list(entries)
    assert [(entry.created_by, entry.empty_layer, entry.comment) for entry in config.history or ()] == [
        ("layer 1", False, "imgkit"),
        ("layer 2", False, "imgkit"),
    ]
    assert {entry.created for entry in config.history or ()} == {"2023-11-14T22:13:20Z"}


def test_every_field_of_the_configuration(layout: OciLayout) -> None:
    facts = ImageFacts(
        platform=Platform("linux", "arm", "v7"),
        created=0,
        entrypoint=("/entry", "-x"),
        command=("serve", ""),
        env={"B": "1=2", "A": ""},
        user="1000:1000",
        workdir="/workspace",
        labels={"b": "2", "a": "1"},
        ports=("80/tcp", "53/udp"),
        volumes=("/data",),
        stop_signal="SIGINT",
        annotations={"org.opencontainers.image.source": "x"},
    )
    image = write_image(layout, [], facts)
    config = config_of(layout, image)
    assert config == {
        "architecture": "arm",
        "os": "linux",
        "variant": "v7",
        "created": "1970-01-01T00:00:00Z",
        "config": {
            "Entrypoint": ["/entry", "-x"],
            "Cmd": ["serve", ""],
            "Env": [f"PATH={DEFAULT_PATH}", "B=1=2", "A="],
            "User": "1000:1000",
            "WorkingDir": "/workspace",
            "Labels": {"a": "1", "b": "2"},
            "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
            "Volumes": {"/data": {}},
            "StopSignal": "SIGINT",
        },
        "rootfs": {"type": "layers", "diff_ids": []},
        "history": [],
    }
    assert parse_manifest(layout.read(image), "").annotations == {"org.opencontainers.image.source": "x"}


def test_what_is_not_set_is_left_out(layout: OciLayout) -> None:
    config = config_of(layout, write_image(layout, [], ImageFacts(platform=AMD64, created=0)))
    assert config["config"] == {"Env": [f"PATH={DEFAULT_PATH}"]}
    assert "annotations" not in json.loads(layout.read(write_image(layout, [], ImageFacts(platform=AMD64, created=0))))


def test_a_path_of_the_recipe_takes_the_place_of_the_usual_one(layout: OciLayout) -> None:
    facts = ImageFacts(platform=AMD64, created=0, env={"A": "1", "PATH": "/bin"})
    assert config_of(layout, write_image(layout, [], facts))["config"]["Env"] == ["PATH=/bin", "A=1"]


def test_a_layer_without_entries_is_history_only(layout: OciLayout) -> None:
    writer = LayerWriter(layout)
    layers = [*write_layers(writer, lower_tree()), writer.write(LayerChanges(()), reason="payload", created=EPOCH)]
    assert layers[1].blob is None
    image = write_image(layout, layers, ImageFacts(platform=AMD64, created=EPOCH))
    config = config_of(layout, image)
    assert len(config["rootfs"]["diff_ids"]) == len(parse_manifest(layout.read(image), "").layers) == 1
    assert [entry.get("empty_layer") for entry in config["history"]] == [None, True]


# ---- the index -------------------------------------------------------------------------------------------------------


def test_images_of_several_platforms_are_in_an_index_of_their_own(layout: OciLayout) -> None:
    images = [small_image(layout), small_image(layout, ARM64)]
    top = write_layout_index(layout, images, annotations={"a": "b"})
    assert top.media_type == mediatypes.INDEX
    assert [entry.value for entry in layout.index().manifests] == [top]
    index = parse_index(layout.read(top), "index")
    assert [entry.value for entry in index.manifests] == images
    assert index.annotations == {"a": "b"}
    assert [entry.platform and entry.platform.architecture for entry in index.manifests] == ["amd64", "arm64"]


def test_one_image_is_named_by_the_layout_itself(layout: OciLayout) -> None:
    image = small_image(layout)
    assert write_layout_index(layout, [image]) == image
    assert [entry.value for entry in layout.index().manifests] == [image]


@pytest.mark.parametrize(
    ("name", "annotations"),
    [
        (None, {}),
        ("example.com/a/linux:main", {"org.opencontainers.image.ref.name": "main"}),
        ("localhost:5000/linux", {}),
        ("localhost:5000/linux:1.2@sha256:" + "0" * 64, {"org.opencontainers.image.ref.name": "1.2"}),
    ],
)
def test_names(layout: OciLayout, name: str | None, annotations: dict[str, str]) -> None:
    write_layout_index(layout, [small_image(layout)], name=name)
    found = dict(layout.index().manifests[0].value.annotations)
    assert found.pop("io.containerd.image.name", None) == name
    assert found == annotations


def test_equal_trees_make_equal_digests(tmp_path: Path) -> None:
    digests = set()
    for number, threads in enumerate((1, 3)):
        layout = OciLayout.create(tmp_path / str(number))
        writer = LayerWriter(layout, Compression("zstd"), threads=threads)
        layers = write_layers(writer, lower_tree(), upper_tree())
        images = [
            write_image(layout, layers, ImageFacts(platform=platform, created=EPOCH, labels=labels))
            for platform, labels in zip((AMD64, ARM64), ({"a": "1", "b": "2"}, {"b": "2", "a": "1"}), strict=True)
        ]
        digests.add(write_layout_index(layout, images, name="a:b").digest)
    assert len(digests) == 1


@pytest.mark.parametrize(("umask", "zone"), [(0o077, "UTC"), (0, "Asia/Tokyo")])
def test_neither_the_umask_nor_the_time_zone_matters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: int, zone: str
) -> None:
    expected = small_image(OciLayout.create(tmp_path / "expected"))
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    before = os.umask(umask)
    try:
        assert small_image(OciLayout.create(tmp_path / "other")) == expected
    finally:
        os.umask(before)
        monkeypatch.undo()
        time.tzset()


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["gzip", "zstd"])
def test_memory_does_not_grow_with_the_contents(layout: OciLayout, tmp_path: Path, algorithm: Algorithm) -> None:
    size = 96 << 20
    with (tmp_path / "spool").open("wb") as sink:
        sink.truncate(size)
    tree = Tree()
    for number in range(3):
        tree.add(f"f{number}", File(content=Slice(tmp_path / "spool", number, size - number)))
    layer = changes(None, tree)
    tracemalloc.start()
    try:
        written = LayerWriter(layout, Compression(algorithm), threads=2).write(layer, reason="zeros", created=0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert written.blob is not None
    assert peak < 12 << 20


# ---- layers of a base ------------------------------------------------------------------------------------------------


def read_back(layout: OciLayout, image: Descriptor, **changed: object) -> Any:
    manifest = parse_manifest(layout.read(image), "manifest")
    text = json.loads(layout.read(manifest.config.value)) | changed
    return layers_of(manifest, parse_config(json.dumps(text).encode(), "config"))


def test_layers_of_a_base_are_used_as_they_are(layout: OciLayout) -> None:
    writer = LayerWriter(layout)
    empty = writer.write(LayerChanges(()), reason="none", created=EPOCH)
    first, second = write_layers(writer, lower_tree(), upper_tree())
    layers = [first, empty, second]
    base = write_image(layout, layers, ImageFacts(platform=AMD64, created=EPOCH))
    assert read_back(layout, base) == layers
    image = write_image(layout, [*read_back(layout, base), *layers], ImageFacts(platform=AMD64, created=EPOCH))
    assert len(config_of(layout, image)["history"]) == 6


@pytest.mark.parametrize("history", [None, [], [{"created_by": "x"}], [{"empty_layer": True}]])
def test_a_history_that_does_not_fit_is_left_out(layout: OciLayout, history: object) -> None:
    image = small_image(layout)
    found = read_back(layout, image, history=history)
    assert [layer.history.comment for layer in found] == ["layer of the base image"] * 2
    assert None not in [layer.blob for layer in found]


def test_a_base_with_too_few_diff_ids_is_refused(layout: OciLayout) -> None:
    with pytest.raises(InputError, match=r"^the image has 2 layers and 0 diff ids$"):
        read_back(layout, small_image(layout), rootfs={"type": "layers", "diff_ids": []})


# ---- errors ----------------------------------------------------------------------------------------------------------


def layer_with(node: Device | File) -> LayerChanges:
    tree = Tree()
    tree.add("f", node)
    return changes(None, tree)


def test_errors_name_the_party_at_fault(layout: OciLayout, tmp_path: Path) -> None:
    (tmp_path / "spool").write_bytes(b"123")
    writer = LayerWriter(layout)
    with pytest.raises(InputError, match=r"spool: file is shorter than it was$"):
        writer.write(layer_with(File(content=Slice(tmp_path / "spool", 0, 4))), reason="x", created=0)
    with pytest.raises(InputError, match=r"^f: device number -1 cannot be in a tar archive$"):
        writer.write(layer_with(Device(kind="c", major=-1)), reason="x", created=0)
    with pytest.raises(HostError, match=r"gone: No such file or directory$"):
        writer.write(layer_with(File(content=Slice(tmp_path / "gone", 0, 4))), reason="x", created=0)
    assert [path.name for path in layout.folder.iterdir()] == ["blobs", "oci-layout"] or len(
        list(layout.folder.iterdir())
    ) == 2
    assert list((layout.folder / "blobs/sha256").iterdir()) == []


def test_times() -> None:
    assert rfc3339(0) == "1970-01-01T00:00:00Z"
    assert rfc3339(1_769_860_800) == "2026-01-31T12:00:00Z"
