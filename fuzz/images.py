"""Targets: the parsers of container images: layers, indexes, manifests and configurations."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path

from fixtures import apkbuild
from fuzz.target import JSON_WORDS, MAX_INSTALLED, Target, scratch
from imgkit.errors import InputError
from imgkit.oci.applying import read_image
from imgkit.oci.changesets import Allowance, Changeset
from imgkit.oci.choosing import choose_image, layout_entries
from imgkit.oci.descriptors import Platform, digest_of
from imgkit.oci.documents import parse_config
from imgkit.oci.inflating import inflated
from imgkit.oci.mediatypes import CONFIG, LAYER, MANIFEST
from imgkit.oci.ocilayout import OciLayout, to_json
from imgkit.tree import File, HardLink, Tree, TreeError
from imgkit.tree.members import Spool
from imgkit.tree.tarstream import TarError

_NAMES = ("lib/a", "usr/lib/b", "d/e/f", "d/.wh.e", "lib/.wh..wh..opq", ".wh.d", "./x", "/y")
_PLATFORM = Platform("linux", "amd64")


def _layer(data: bytes) -> None:
    """Apply a layer to a Tree with links in it, and check that the Tree is consistent."""
    tree = Tree()
    tree.mkdir("usr/lib")
    tree.symlink("lib", "usr/lib")
    tree.write("d/e/f", "x")
    tree.add("hard", HardLink(target="d/e/f"))
    with scratch() as folder, Spool(folder / "spool") as spool:
        Changeset(tree, spool, Allowance(entries=10_000, text=1 << 20, steps=100_000)).apply(iter([data]))
    for path, node in tree.items():
        assert not isinstance(node, HardLink) or isinstance(tree[node.target], File), path


def _inflating(data: bytes) -> None:
    for _ in inflated(io.BytesIO(data), "input", MAX_INSTALLED):
        pass


def _index(data: bytes) -> None:
    """Choose an image from an index that names the image of the seeds."""
    with scratch() as folder:
        layout = _layout(folder)
        (folder / "index.json").write_bytes(data)
        choose_image(layout, layout_entries(layout), _PLATFORM, "input")


def _manifest(data: bytes) -> None:
    with scratch() as folder:
        read_image(_layout(folder), OciLayout(folder).add(MANIFEST, data))


def _config(data: bytes) -> None:
    parse_config(data, "input").runtime.model_dump()


def _layout(folder: Path) -> OciLayout:
    layout = OciLayout.create(folder)
    layout.add(CONFIG, _config_seed())
    layout.add(MANIFEST, _manifest_seed())
    return layout


def _config_seed() -> bytes:
    rootfs = {"type": "layers", "diff_ids": [digest_of(b"")]}
    runtime = {"Env": ["A=b"], "Cmd": ["sh"], "ExposedPorts": {"80/tcp": {}}}
    history = [{"created_by": "x", "empty_layer": False}]
    return to_json({"os": "linux", "architecture": "amd64", "config": runtime, "rootfs": rootfs, "history": history})


def _manifest_seed() -> bytes:
    config = {"mediaType": CONFIG, "digest": digest_of(_config_seed()), "size": len(_config_seed())}
    layer = {"mediaType": LAYER, "digest": digest_of(b""), "size": 0}
    return to_json({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]})


def _index_seeds() -> Iterable[bytes]:
    entry = {"mediaType": MANIFEST, "digest": digest_of(_manifest_seed()), "size": len(_manifest_seed())}
    platform = {"platform": _PLATFORM.to_json(), "annotations": {"org.opencontainers.image.ref.name": "x"}}
    for manifests in ([entry], [{**entry, **platform}]):
        yield to_json({"schemaVersion": 2, "manifests": manifests})


def _layer_seed() -> bytes:
    entries = [apkbuild.Entry(name=name, data=b"x", checksum="") for name in _NAMES]
    return apkbuild.tar_stream(entries, end=True)


TARGETS: Mapping[str, Target] = {
    "layer": Target(_layer, (TarError, TreeError), lambda: [_layer_seed()], tuple(name.encode() for name in _NAMES)),
    "inflating": Target(
        _inflating,
        (InputError,),
        lambda: [apkbuild.gzip_member(b"x"), b"plain"],
        (b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18"),
    ),
    "image-index": Target(_index, (InputError,), _index_seeds, JSON_WORDS),
    "image-manifest": Target(_manifest, (InputError,), lambda: [_manifest_seed()], JSON_WORDS),
    "image-config": Target(_config, (InputError,), lambda: [_config_seed()], JSON_WORDS),
}
