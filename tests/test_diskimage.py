"""An image is checked before it is booted: it is a single file, and its format is known."""

from __future__ import annotations

import logging
import os
import struct
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkit.disk import diskimage
from imgkit.disk.qcow2format import MAGIC
from imgkit.engines.imagefile import image_info
from imgkit.errors import HostError, ImgkitError, InputError
from imgkit.vm import VM
from tests.conftest import need_program
from tests.files import public
from tests.tables import head_of
from tests.vmspecs import STYLES

MIB = 1 << 20


def qcow2(path: Path, *options: str) -> Path:
    """Return an image that qemu-img makes."""
    argv: list[str | Path] = [need_program("qemu-img"), "create", "-q", "-f", "qcow2", *options, path, "1M"]
    subprocess.run(argv, check=True, cwd=path.parent)
    return path


def header(**values: int) -> bytes:
    """Return the first bytes of a qcow2 image."""
    fields = {"magic": 0x514649FB, "version": 3, "backing_offset": 0, "backing_size": 0, "cluster_bits": 16}
    fields |= {"size": MIB, "encryption": 0, "l1_size": 0, "l1_offset": 0, "refcounts": 0}
    fields |= {"refcount_clusters": 0, "snapshots": 0, "snapshots_offset": 0, "incompatible": 0, "compatible": 0}
    fields |= {"autoclear": 0, "order": 4, "length": 104}
    return struct.pack(">IIQIIQIIQQIIQQQQII", *(fields | values).values()).ljust(512, b"\0")


def test_formats_are_told_apart(tmp_path: Path) -> None:
    image = qcow2(tmp_path / "a.qcow2")
    assert diskimage.format_of(image) == "qcow2"
    diskimage.check(image, "qcow2")
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1024))
    assert diskimage.format_of(disk) == "raw"
    diskimage.check(disk, "raw")
    disk.write_bytes(b"")
    assert diskimage.format_of(disk) == "raw"


def test_the_layout_is_qemus(tmp_path: Path) -> None:
    """The field is read from the place where qemu-img writes it."""
    for number, (options, words) in enumerate(REFUSED_OPTIONS):
        with pytest.raises(InputError, match=words):
            diskimage.check(qcow2(tmp_path / str(number), *options), "qcow2")


REFUSED_OPTIONS = [
    (["-u", "-b", "/etc/passwd", "-F", "raw"], "refers to another file"),
    (["-u", "-b", 'json:{"driver":"raw","file":{"driver":"file","filename":"/etc/shadow"}}', "-F", "raw"], "refers to"),
    (["-o", "data_file=data,data_file_raw=on"], "refers to another file"),
]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"version": 1}, "version 2 or 3"),
        ({"version": 4}, "version 2 or 3"),
        ({"magic": 0}, "version 2 or 3"),
        ({"backing_offset": 512}, "refers to another file"),
        ({"backing_size": 9}, "refers to another file"),
        ({"incompatible": 4}, "refers to another file"),
        ({"encryption": 1}, "encrypted"),
        ({"incompatible": 2}, "damaged"),
        ({"incompatible": 1 << 40}, "not known here"),
        ({"version": 2, "backing_offset": 512}, "refers to another file"),
    ],
)
def test_headers_that_are_refused(values: dict[str, int], words: str, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(header(**values))
    with pytest.raises(InputError, match=words):
        diskimage.check(image, "qcow2")
    image.write_bytes(header())
    diskimage.check(image, "qcow2")
    image.write_bytes(header(version=2, incompatible=4))
    diskimage.check(image, "qcow2")  # version 2 has no features


@pytest.mark.parametrize("features", [0, 1, 8, 16, 1 | 8 | 16])
def test_features_that_are_known(features: int, tmp_path: Path) -> None:
    """A dirty image, one with another compression, one with extended L2 entries."""
    image = tmp_path / "image"
    image.write_bytes(header(incompatible=features))
    diskimage.check(image, "qcow2")
    image.write_bytes(header(incompatible=features | 32))
    with pytest.raises(InputError, match=r"features of qcow2 that are not known here \(0x20\)$"):
        diskimage.check(image, "qcow2")
    image.write_bytes(header(incompatible=features | 2))
    with pytest.raises(InputError, match=r"is marked as damaged$"):
        diskimage.check(image, "qcow2")


def test_messages_have_the_name_that_is_given(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"")
    with pytest.raises(InputError) as caught:
        diskimage.check(image, "qcow2", name=Path("out/x.qcow2"))
    assert caught.value.message == "out/x.qcow2: not a qcow2 image of version 2 or 3"
    with pytest.raises(InputError) as caught:
        diskimage.check(image, "vmdk", name=Path("out/x.vmdk"))
    assert (caught.value.message, caught.value.hint) == (
        "out/x.vmdk: format vmdk is not supported",
        "qcow2 and raw are",
    )
    with pytest.raises(InputError) as caught:
        diskimage.check(tmp_path / "none", "raw", name=Path("disk"))
    assert caught.value.message == "disk: cannot be read: No such file or directory"


@pytest.mark.slow
@given(st.binary(max_size=600), st.booleans())
def test_any_bytes_end_in_a_word(tmp_path_factory: pytest.TempPathFactory, data: bytes, magic: bool) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(MAGIC + data if magic else data)
    for kind in ("qcow2", "raw"):
        with suppress(InputError):
            diskimage.check(path, kind)
            assert diskimage.format_of(path) in ("qcow2", "raw")


def test_a_raw_disk_that_its_guest_made_look_like_qcow2(tmp_path: Path) -> None:
    image = tmp_path / "disk.raw"
    image.write_bytes(header(backing_offset=512, backing_size=11) + b"/etc/shadow".ljust(512, b"\0"))
    with pytest.raises(InputError, match="though its name says raw"):
        diskimage.format_of(image)
    diskimage.check(image, "raw")  # as which it names nothing


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"KDMV", "vmdk"), (b"# Disk DescriptorFile", "vmdk"), (b"COWD", "vmdk"), (b"conectix", "vpc"),
        (b"vhdxfile", "vhdx"), (b"<<< ", "vdi"), (b"QED\0", "qed"), (b"WithoutFreeSpace", "parallels"),
        (b"WithouFreSpacExt", "parallels"), (b"LUKS\xba\xbe", "luks"),
    ],
)  # fmt: skip
def test_the_formats_that_are_named(start: bytes, name: str, tmp_path: Path) -> None:
    image = tmp_path / "disk"
    image.write_bytes(start)
    with pytest.raises(InputError) as caught:
        diskimage.format_of(image)
    assert caught.value.message == f"{image}: format {name} is not supported"
    assert caught.value.hint == "qcow2 and raw are; qemu-img convert -O qcow2 disk disk.qcow2 makes a copy of it"
    for other in (start[:-1], b"\0" + start):
        image.write_bytes(other)
        assert diskimage.format_of(image) == "raw"


def test_a_vhd_of_fixed_size_is_known_by_its_end(tmp_path: Path) -> None:
    """A raw disk may have that there, if its name says that it is raw."""
    image = tmp_path / "disk.vhd"
    image.write_bytes(head_of(MIB).ljust(MIB, b"\0") + b"conectix".ljust(512, b"\0"))
    with pytest.raises(InputError, match=f"^{image}: format vpc is not supported$"):
        diskimage.format_of(image)
    assert diskimage.format_of(image.rename(tmp_path / "disk.raw")) == "raw"


def test_a_raw_disk_that_lost_its_end(tmp_path: Path) -> None:
    image = tmp_path / "disk.raw"
    image.write_bytes(head_of(MIB).ljust(MIB, b"\0"))
    diskimage.check(image, "raw")
    os.truncate(image, MIB + 512)
    diskimage.check(image, "raw")  # it was enlarged
    os.truncate(image, MIB - 512)
    with pytest.raises(InputError) as caught:
        diskimage.check(image, "raw", name=tmp_path / "shown")
    message = f"{tmp_path / 'shown'}: damaged or truncated: 1048064 bytes of a disk of 1048576"
    assert (caught.value.message, caught.value.hint) == (message, "download or build it again")


def test_what_is_refused_is_said_in_full(tmp_path: Path) -> None:
    image = tmp_path / "disk.raw"
    image.write_bytes(header(incompatible=2))
    with pytest.raises(InputError) as caught:
        diskimage.format_of(image)
    assert caught.value.message == f"{image}: begins as a qcow2 image, though its name says raw"
    assert caught.value.hint == "a guest can write that; rename it if it is qcow2"
    with pytest.raises(InputError) as caught:
        diskimage.check(image, "qcow2")
    assert caught.value.message == f"{image}: is marked as damaged"
    assert caught.value.hint == "qemu-img check -r all mends what can be mended"
    with pytest.raises(InputError) as caught:
        diskimage.check(tmp_path, "raw")
    assert caught.value.message == f"{tmp_path}: not a disk image: it is not a file"
    with pytest.raises(InputError) as caught:
        diskimage.check(tmp_path, "raw", name=Path("a folder"))
    assert caught.value.message == "a folder: not a disk image: it is not a file"


def test_an_image_that_was_looked_at_is_closed(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(header())
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - only their numbers matter
    diskimage.check(image, "qcow2")
    with suppress(InputError):
        diskimage.check(tmp_path, "raw")
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_other_formats_are_not_taken_for_raw_disks(tmp_path: Path) -> None:
    image = tmp_path / "disk"
    for start in (b"KDMV", b"# Disk DescriptorFile\n", b"conectix", b"<<< Oracle VM VirtualBox", b"QED\0"):
        image.write_bytes(start.ljust(1024, b"\0"))
        for look in (diskimage.format_of, image_info):
            with pytest.raises(InputError, match="is not supported"):
                look(image)
    with pytest.raises(InputError, match="format vmdk is not supported"):
        diskimage.check(image, "vmdk")


def test_what_is_no_file_is_no_image(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(InputError, match="it is not a file"):
        diskimage.check(pipe, "raw")
    with pytest.raises(InputError, match="cannot be read: No such file"):
        diskimage.check(tmp_path / "none", "raw")


@pytest.fixture
def fake_qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a QEMU on PATH that ends at once and gives its arguments as the reason."""
    program = tmp_path / "bin" / "qemu-system-x86_64"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$@" >&2\nexit 1\n')
    program.chmod(0o755)
    public(tmp_path)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")


def boot(image: Path, **options: Any) -> ImgkitError:
    """Try to boot the image, and return the message that says why it was not booted."""
    with pytest.raises(ImgkitError) as caught, VM.boot(image, arch="amd64", accelerator="tcg", **options):
        pass
    return caught.value


@pytest.mark.slow
@pytest.mark.parametrize("style", ["harness", "host-app"])
@pytest.mark.usefixtures("fake_qemu")
def test_qemu_is_not_even_started_for_an_image_that_names_others(
    style: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "imgkit.host.process")
    image = tmp_path / "image.img"
    for content in (header(backing_offset=512, backing_size=11), header(incompatible=4), b"KDMV".ljust(512, b"\0")):
        image.write_bytes(content)
        assert isinstance(boot(image, adapt=STYLES[style]), InputError)
    named = tmp_path / "image.raw"
    named.write_bytes(header(backing_offset=512))
    assert isinstance(boot(named, adapt=STYLES[style]), InputError)
    assert isinstance(boot(image, adapt=STYLES[style], format="vpc"), InputError)
    assert "qemu-system" not in caplog.text


@pytest.mark.usefixtures("fake_qemu")
def test_the_format_is_always_named(tmp_path: Path) -> None:
    image = tmp_path / "image.raw"
    image.write_bytes(header(backing_offset=512))
    error = boot(image, format="raw")
    assert isinstance(error, HostError), "QEMU was started, and left"
    assert "format=raw" in error.message


@pytest.mark.vm
def test_a_raw_image_stays_raw_whatever_is_in_it(tmp_path: Path) -> None:
    """QEMU itself gets the disk as it was told, and the host's file is not followed."""
    need_program("qemu-system-x86_64")
    image = tmp_path / "image"
    image.write_bytes((header(backing_offset=512, backing_size=11) + b"/etc/passwd").ljust(MIB, b"\0"))
    with VM.boot(image, arch="amd64", accelerator="tcg", memory_mib=64, format="raw", wait=False) as vm:
        assert any("format=raw" in word for word in vm.argv)
        blocks = vm._running.qmp.execute("query-block")
    assert "/etc/passwd" not in str(blocks)
