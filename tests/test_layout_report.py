"""What ``imgkit inspect`` says of a container image."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from imgkit.cli.main import main
from imgkit.oci.archives import write_oci_archive
from imgkit.oci.descriptors import Platform
from imgkit.oci.layerchanges import changes
from imgkit.oci.layerwriter import LayerWriter
from imgkit.oci.ocilayout import OciLayout
from imgkit.oci.writing import ImageFacts, write_image, write_layout_index
from imgkit.tree import Tree

DATABASE = """C:Q1wfhYCRBDL4DP2XgUTCHhv7vhYUA=
P:busybox
V:1.37.0-r30
A:x86_64
S:1
I:1
T:t
U:u
L:GPL

"""


@pytest.fixture
def layout(tmp_path: Path) -> OciLayout:
    """Return a layout with an image for each of two platforms."""
    layout = OciLayout.create(tmp_path / "box.oci")
    lower, writer = Tree(), LayerWriter(layout)
    lower.write("bin/su", "su", mode=0o4755)
    lower.write("lib/apk/db/installed", DATABASE)
    upper = lower.copy()
    upper.write("opt/agent", "x")
    layers = [
        writer.write(changes(None, lower), reason="packages", created=0),
        writer.write(changes(upper, upper), reason="nothing", created=0),
        writer.write(changes(lower, upper), reason="payload", created=0),
    ]
    images = [
        write_image(
            layout,
            layers,
            ImageFacts(
                platform=Platform("linux", arch),
                created=0,
                entrypoint=("/bin/su",),
                command=("-c", "id"),
                user="agent",
                workdir="/w",
                labels={"a": "b"},
            ),
        )
        for arch in ("amd64", "riscv64")
    ]
    write_layout_index(layout, images, name="box:latest")
    return layout


def test_tables(layout: OciLayout, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(layout.folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{layout.folder}: 2 images"
    assert [line for line in lines if line.startswith("linux/")] == ["linux/amd64", "linux/riscv64"]
    for line in (
        "entrypoint   /bin/su",
        "command      -c id",
        "user         agent",
        "workdir      /w",
        "set-id       /bin/su",
        "created      1970-01-01T00:00:00Z",
        "9 files, 1 packages",
        "  busybox-1.37.0-r30",
    ):
        assert lines.count(line) == 2, line
    layers = [line.split()[-1] for line in lines if " MB  sha256:" in line]
    assert layers == ["packages", "payload"] * 2


def test_json_of_an_archive(layout: OciLayout, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_oci_archive(layout, tmp_path / "box.tar")
    assert main(["inspect", "--json", str(tmp_path / "box.tar")]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["platform"], second["platform"]) == ("linux/amd64", "linux/riscv64")
    assert first["env"] == ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
    assert (first["labels"], first["privileged"], first["packages"]) == (
        {"a": "b"},
        ["/bin/su"],
        ["busybox-1.37.0-r30"],
    )
    assert [layer["reason"] for layer in first["layers"]] == ["packages", "payload"]


def test_a_damaged_layer_and_what_is_no_layout(
    layout: OciLayout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(tmp_path)]) == 4
    assert "not an OCI image layout" in capsys.readouterr().err
    blob = max((layout.folder / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    assert main(["inspect", str(layout.folder)]) == 4
    assert "the blob is damaged" in capsys.readouterr().err
