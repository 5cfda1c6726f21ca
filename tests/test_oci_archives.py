"""Archives of images: their bytes, reading them again, and archives that are not what they should be."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from imgkit.errors import HostError, InputError
from imgkit.oci import unpacking
from imgkit.oci.archives import write_docker_archive, write_oci_archive
from imgkit.oci.descriptors import Descriptor, Platform
from imgkit.oci.documents import parse_manifest
from imgkit.oci.ocilayout import OciLayout
from imgkit.oci.unpacking import opened_layout, unpack_archive
from imgkit.oci.writing import write_layout_index
from tests.ocitrees import small_image

NAME = "docker.io/library/linux:latest"


class Image:
    """A layout with an image for two platforms."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.layout = OciLayout.create(folder / "image.oci")
        self.manifests = [small_image(self.layout, Platform("linux", name)) for name in ("amd64", "arm64")]
        self.top = write_layout_index(self.layout, self.manifests, name=NAME)
        self.archive = folder / "image.tar"

    def files(self) -> dict[str, bytes]:
        root = self.layout.folder
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return Image(tmp_path)


def files_in(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as source:
        names = [member.name for member in source]
        assert names == sorted(names)
        assert {(member.mtime, member.uid, member.gid, member.uname) for member in source} == {(0, 0, 0, "")}
        assert {member.mode for member in source} == {0o644, 0o755}
        streams = {member.name: source.extractfile(member) for member in source if member.isfile()}
        return {name: stream.read() for name, stream in streams.items() if stream is not None}


def test_an_oci_archive_has_the_files_of_the_layout(image: Image) -> None:
    write_oci_archive(image.layout, image.archive)
    assert files_in(image.archive) == image.files()
    again = image.folder / "again.tar"
    for path in image.layout.folder.rglob("*"):
        path.touch()
        if path.is_file():
            path.chmod(0o600)
    write_oci_archive(image.layout, again)
    assert again.read_bytes() == image.archive.read_bytes()


def test_an_archive_for_docker_has_one_image(image: Image) -> None:
    chosen = image.manifests[1]
    write_docker_archive(image.layout, chosen, image.archive, name=NAME)
    files = files_in(image.archive)
    manifest = parse_manifest(image.layout.read(chosen), "")
    config = f"blobs/sha256/{manifest.config.digest[7:]}"
    layers = [f"blobs/sha256/{layer.digest[7:]}" for layer in manifest.layers]
    assert json.loads(files["manifest.json"]) == [{"Config": config, "Layers": layers, "RepoTags": [NAME]}]
    blobs = {f"blobs/sha256/{chosen.digest[7:]}", config, *layers}
    assert set(files) == {*blobs, "index.json", "manifest.json", "oci-layout"}
    assert json.loads(files["index.json"])["manifests"] == [
        {
            "mediaType": chosen.media_type,
            "digest": chosen.digest,
            "size": chosen.size,
            "platform": {"os": "linux", "architecture": "arm64"},
            "annotations": {"io.containerd.image.name": NAME, "org.opencontainers.image.ref.name": "latest"},
        }
    ]
    with opened_layout(image.archive) as layout:
        assert layout.read(layout.index().manifests[0].value) == image.layout.read(chosen)


def test_an_archive_for_docker_without_a_name(image: Image) -> None:
    write_docker_archive(image.layout, image.manifests[0], image.archive)
    files = files_in(image.archive)
    assert json.loads(files["manifest.json"])[0]["RepoTags"] == []
    assert "annotations" not in json.loads(files["index.json"])["manifests"][0]


def test_an_index_is_not_an_image_for_docker(image: Image) -> None:
    with pytest.raises(InputError, match=r"is not an image manifest"):
        write_docker_archive(image.layout, image.top, image.archive)
    assert not image.archive.exists()


def test_archives_are_unpacked(image: Image) -> None:
    write_oci_archive(image.layout, image.archive)
    layout = unpack_archive(image.archive, image.folder / "new")
    assert {str(path.relative_to(layout.folder)): path.read_bytes() for path in layout.folder.rglob("*")
            if path.is_file()} == image.files()  # fmt: skip
    with opened_layout(image.archive) as opened:
        assert opened.read(image.top) == image.layout.read(image.top)
    assert not opened.folder.exists()
    with opened_layout(image.layout.folder) as same:
        assert same.folder == image.layout.folder
    assert same.folder.exists()


def test_archives_of_tar_are_read(image: Image) -> None:
    with tarfile.open(image.archive, "w", format=tarfile.GNU_FORMAT) as archive:
        archive.add(image.layout.folder, ".")
    with opened_layout(image.archive) as layout:
        assert layout.index().manifests[0].digest == image.top.digest


def test_a_target_that_exists_is_kept(image: Image) -> None:
    image.archive.write_bytes(b"old")
    with pytest.raises(HostError, match=r"image\.tar: File exists$"):
        write_oci_archive(image.layout, image.archive)
    assert image.archive.read_bytes() == b"old"


# ---- archives that are refused ---------------------------------------------------------------------------------------

LINK = tarfile.TarInfo("blobs/sha256/" + "0" * 64)
LINK.type, LINK.linkname = tarfile.SYMTYPE, "/etc/passwd"
HINT = "skopeo copy docker-archive:FILE oci:FOLDER makes a layout of an archive of Docker"


def tar_of(files: Mapping[str, bytes], *more: tarfile.TarInfo) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in more:
            archive.addfile(info)
    return sink.getvalue()


BLOB = "blobs/sha256/ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
GOOD = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": b"{}", BLOB: b"abc"}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (lambda: tar_of(GOOD | {BLOB: b"abd"}), rf"{BLOB}: has the digest sha256:a52d159f262b2c6d"),
        (lambda: tar_of(GOOD | {"../x": b""}), r"'\.\./x' is not a file of an OCI image layout$"),
        (lambda: tar_of(GOOD | {"/etc/x": b""}), r"'/etc/x' is not a file of an OCI image layout$"),
        (lambda: tar_of(GOOD | {"blobs/sha256/../../../x": b""}), r"is not a file of an OCI image layout$"),
        (lambda: tar_of(GOOD | {"blobs/sha256/x": b""}), r"is not a file of an OCI image layout$"),
        (lambda: tar_of(GOOD | {"abc/layer.tar": b""}), r"is not a file of an OCI image layout$"),
        (lambda: tar_of(GOOD, LINK), r"'blobs/sha256/0{64}' is not a file$"),
        (lambda: tar_of({"index.json": b"{}"}), r"is not an OCI image layout \(it has no file oci-layout\)$"),
        (lambda: tar_of({"oci-layout": b"{}"}), r"is not an OCI image layout \(it has no file index\.json\)$"),
        (lambda: tar_of(GOOD | {"oci-layout": b"{}"}), r"an OCI image layout of version 'None', not 1\.0\.0$"),
        (
            lambda: tar_of(GOOD | {"index.json": b" " * (4 << 20) + b"x"}),
            r"has a member of 4194305 bytes where at most",
        ),
        (lambda: tar_of(GOOD)[:1000], r"is truncated$"),
        (lambda: b"\x1f\x8b" + bytes(1000), r"is not a tar archive"),
        (lambda: b"", r"is not an OCI image layout"),
    ],
)
def test_archives_that_are_refused(tmp_path: Path, data: Callable[[], bytes], reason: str) -> None:
    (tmp_path / "x.tar").write_bytes(data())
    with pytest.raises(InputError, match=reason), opened_layout(tmp_path / "x.tar"):
        pass
    with pytest.raises(InputError):
        unpack_archive(tmp_path / "x.tar", tmp_path / "in" / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "x.tar"]
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["new"]


def test_archives_of_older_dockers_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar_of({"manifest.json": b"[]", "abc.json": b"{}"}))
    with pytest.raises(InputError) as caught, opened_layout(tmp_path / "x.tar"):
        pass
    assert caught.value.hint == HINT


def test_a_blob_that_comes_twice_is_taken_once(tmp_path: Path) -> None:
    second = tarfile.TarInfo(BLOB)
    (tmp_path / "x.tar").write_bytes(tar_of(GOOD | {"./" + BLOB: b"other"}, second))
    layout = unpack_archive(tmp_path / "x.tar", tmp_path / "new")
    assert layout.path("sha256:" + BLOB[13:]).read_bytes() == b"abc"


def test_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.tar").write_bytes(tar_of(GOOD))
    monkeypatch.setattr(unpacking, "_MOST_FILES", 3)
    unpack_archive(tmp_path / "x.tar", tmp_path / "3")
    monkeypatch.setattr(unpacking, "_MOST_FILES", 2)
    with pytest.raises(InputError, match=r"x\.tar: has more than 2 files$"):
        unpack_archive(tmp_path / "x.tar", tmp_path / "2")


def test_something_else_than_a_file_or_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none: not an OCI image layout"), opened_layout(tmp_path / "none"):
        pass


def test_a_lost_blob_is_an_error(image: Image) -> None:
    manifest = parse_manifest(image.layout.read(image.manifests[0]), "")
    image.layout.path(manifest.layers[0].digest).unlink()
    with pytest.raises(HostError, match=r"No such file or directory$"):
        write_docker_archive(image.layout, image.manifests[0], image.archive)
    assert not image.archive.exists()
    gone = Descriptor(image.top.media_type, "sha256:" + "0" * 64, 1)
    with pytest.raises(InputError, match=r"No such file or directory$"):
        write_docker_archive(image.layout, gone, image.archive)


def test_a_folder_that_cannot_be_written(image: Image) -> None:
    write_oci_archive(image.layout, image.archive)
    with pytest.raises(HostError, match=r"image\.tar/x/blobs.*: Not a directory$"):
        unpack_archive(image.archive, image.archive / "x")
