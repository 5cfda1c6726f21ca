"""What programs that know nothing of imgkit say of a disk image: qemu-img, sgdisk, fsck.fat, e2fsck and dumpe2fs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from imgkit.disk.layout import TYPE_GUIDS
from imgkit.engines.guestfs.scripts import EXT4_FEATURES
from tests.conftest import need_program

_SECTOR = 512
_FOREIGN = {".vmdk": "vmdk", ".vhdx": "vhdx", ".vhd": "vpc"}


def examine(image: Path) -> None:
    """Fail if one of the programs has something to say against a disk with an ext4 root, or its features are others.

    Args:
        image: a disk in any format that builds make, or a root filesystem alone. It is not changed.
    """
    with raw_copy(image) as raw:
        said = objections(raw)
        assert not said, "\n".join(said)
        assert features(raw) == set(EXT4_FEATURES.split(","))


@contextmanager
def raw_copy(image: Path) -> Iterator[Path]:
    """Yield a raw disk with the bytes of ``image``: a sparse copy, which is removed afterwards."""
    with TemporaryDirectory(prefix=f"{image.name}-") as folder:
        raw = Path(folder, "disk.raw")
        if image.suffix == ".qcow2":
            said = _run("qemu-img", "check", "-f", "qcow2", image)
            assert said.returncode == 0, said.stdout
            assert "No errors were found on the image" in said.stdout
            converted = _run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, raw)
            assert converted.returncode == 0, converted.stdout
        elif image.suffix in _FOREIGN:
            converted = _run("qemu-img", "convert", "-f", _FOREIGN[image.suffix], "-O", "raw", image, raw)
            assert converted.returncode == 0, converted.stdout
        else:
            copied = _run("cp", "--sparse=always", image, raw)
            assert copied.returncode == 0, copied.stdout
        yield raw


def objections(raw: Path) -> list[str]:
    """Return what sgdisk, fsck.fat and e2fsck have to say against a raw disk."""
    said = []
    if is_bare(raw):
        checked = _run("e2fsck", "-fn", raw)
        return [f"root: {checked.stdout}"] if checked.returncode else []
    table = _run("sgdisk", "-v", raw)
    # A damaged copy of the table is no problem to sgdisk, which would replace it: it is cautious about a "corrupt GPT".
    if table.returncode or "No problems found" not in table.stdout or "corrupt GPT" in table.stdout:
        said.append(f"sgdisk: {table.stdout}")
    for kind, start, size in partitions(raw):
        if kind == "esp":
            with TemporaryDirectory() as folder:
                piece = Path(folder, "esp")
                with raw.open("rb") as source, piece.open("wb") as sink:
                    source.seek(start)
                    sink.write(source.read(size))
                checked = _run("fsck.fat", "-n", piece)
        elif kind == "root":
            checked = _run("e2fsck", "-fn", f"{raw}?offset={start}")
        else:
            continue
        if checked.returncode:
            said.append(f"{kind}: {checked.stdout}")
    return said


def features(raw: Path) -> set[str]:
    """Return the features of the root filesystem of a raw disk, as dumpe2fs prints them."""
    [start] = [0] if is_bare(raw) else [start for kind, start, _ in partitions(raw) if kind == "root"]
    said = _run("dumpe2fs", "-h", f"{raw}?offset={start}").stdout
    found = re.search(r"^Filesystem features: +(.*)$", said, re.MULTILINE)
    assert found is not None, said
    return set(found[1].split())


def is_bare(raw: Path) -> bool:
    """Return whether a raw disk is a filesystem without a partition table: its superblock has the magic of ext4."""
    with raw.open("rb") as source:
        return source.read(1082)[1080:] == b"\x53\xef"


def partitions(raw: Path) -> list[tuple[str, int, int]]:
    """Return the kind, the start and the size in bytes of each partition of a raw disk, as sfdisk finds them."""
    said = _run("sfdisk", "--json", raw).stdout
    # A warning stands before the JSON if one of the two copies of the table is damaged.
    found = json.loads(said[said.index("{") :])["partitiontable"]["partitions"]
    kinds = {guid: kind for kind, guid in TYPE_GUIDS.items()}
    return [(kinds[part["type"]], part["start"] * _SECTOR, part["size"] * _SECTOR) for part in found]


def _run(program: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a program; what it writes to standard error is in ``stdout`` as well."""
    path = shutil.which(program) or need_program(program)
    return subprocess.run([path, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
