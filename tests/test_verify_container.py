"""``imgkit verify`` of container images: every file, whatever has become of the layers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fixtures.keys import Keys
from fixtures.server import Site
from imgkit.cli.main import main
from imgkit.oci import mediatypes
from imgkit.oci.applying import tree_of
from imgkit.oci.compression import Compression
from imgkit.oci.descriptors import Platform
from imgkit.oci.layerchanges import changes
from imgkit.oci.layerwriter import LayerWriter
from imgkit.oci.ocilayout import OciLayout
from imgkit.oci.writing import ImageFacts, write_image, write_layout_index
from tests.commandline import Place
from tests.mirrors import RECIPE, Small, package
from tests.test_faults import FILE, Builder

NAME = "linux"


@pytest.fixture
def small(here: Place, keys: Keys) -> Small:
    """Return a mirror with one package."""
    return Small(here.base / "mirror", keys, [package("hello", "1.0-r0", FILE, key=keys.signing)]).write()


@pytest.fixture
def out(
    here: Place, small: Small, site: Site, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Return the folder with a container image in all its forms."""
    outputs = ("--output", "oci", "--output", "oci-archive", "--output", "docker-archive")
    ran = Builder(here, small, site, capsys, monkeypatch)(*outputs, recipe=RECIPE)
    assert ran.status == 0, ran.err
    return here.out


@pytest.mark.slow
@pytest.mark.parametrize("file", [f"{NAME}.oci", f"{NAME}.oci:latest", f"{NAME}.oci.tar", f"{NAME}-amd64.docker.tar"])
def test_the_image_that_was_built(out: Path, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(out / file)]) == 0
    manifest = json.loads((out / f"{NAME}-amd64.container.json").read_text())
    digest, count = manifest["container"]["digest"], len(manifest["files"])
    assert capsys.readouterr().out == f"amd64: {digest}: the image that was built, with all of its {count} files\n"


def test_layers_that_were_compressed_anew(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = OciLayout.open(out / f"{NAME}.oci")
    (entry,) = source.index().manifests
    tree = tree_of(source, entry.value, tmp_path / "spool").tree
    layout = OciLayout.create(tmp_path / f"{NAME}.oci")
    layer = LayerWriter(layout, Compression("zstd")).write(changes(None, tree), reason="all", created=0)
    write_layout_index(
        layout, [write_image(layout, [layer], ImageFacts(platform=Platform("linux", "amd64"), created=0))]
    )
    assert main(["verify", str(layout.folder)]) == 4
    assert f"{NAME}-amd64.container.json" in capsys.readouterr().err, "no manifest beside it"
    words = ["verify", str(layout.folder), "--manifest", str(out / f"{NAME}-amd64.container.json")]
    assert main(words) == 0
    assert ": another form of the image that was built" in capsys.readouterr().out


def test_a_file_that_differs_is_named(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = out / f"{NAME}-amd64.container.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["/hello"]["mode"] = "4755"
    del manifest["files"]["/etc"]
    path.write_text(json.dumps(manifest))
    assert main(["verify", str(out / f"{NAME}.oci")]) == 4
    printed, errors = capsys.readouterr()
    assert printed.splitlines() == [
        "amd64: /etc: not in the manifest",
        "amd64: /hello: mode is 0644, should be 4755",
    ]
    assert "is not as its manifest says: 2 differences" in errors


def test_a_damaged_blob(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout = OciLayout.open(out / f"{NAME}.oci")
    (layer,) = [path for path in (layout.folder / "blobs/sha256").iterdir() if path.read_bytes()[:2] == b"\x1f\x8b"][:1]
    layer.write_bytes(layer.read_bytes()[:-1] + b"!")
    assert main(["verify", str(layout.folder)]) == 4
    assert "the blob is damaged" in capsys.readouterr().err


def test_a_tag_that_is_not_there(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(out / f"{NAME}.oci:main")]) == 4
    assert "has no image main" in capsys.readouterr().err


def test_a_layout_where_a_disk_is_wanted(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["boot", str(out / f"{NAME}.oci")]) == 4
    errors = capsys.readouterr().err
    assert f"error: {out}/{NAME}.oci: a folder, not a disk image\n" in errors
    assert "hint: imgkit run, inspect and verify take the container image in such a folder\n" in errors


def test_a_layout_without_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout = OciLayout.create(tmp_path / "x.oci")
    layout.write_index([layout.add(mediatypes.EMPTY, b"{}")])
    assert main(["verify", str(layout.folder)]) == 4
    assert "has no image" in capsys.readouterr().err
    shutil.rmtree(layout.folder)
