"""The native engine as a whole: what it writes is read back by other readers, and what it cannot do it says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from fixtures.ext4 import read_tree
from imgkit.disk.layout import bare_layout
from imgkit.disk.regions import regions_of
from imgkit.engines.chunks import map_disk
from imgkit.engines.engineerrors import ScriptError
from imgkit.engines.interface import ImageTarget, TreeFacts
from imgkit.engines.native.nativeengine import NativeEngine, launch
from imgkit.errors import HostError, RecipeError
from imgkit.host.progress import Steps
from imgkit.tree import Directory, File, HardLink, Inline, Tree
from tests.ext4trees import described, pattern
from tests.nativedisks import BOOT, SEED, layout_of
from tests.qcow2reader import read_qcow2

MIB = 1 << 20
SIZE = 160 * MIB
FACTS = TreeFacts(epoch=1_700_000_000)


@dataclass(frozen=True)
class Script:
    """A script that cannot be computed."""

    package: str = "odd"
    kind: str = "post-install"
    text: str = "#!/bin/sh\n"
    args: tuple[str, ...] = ()


def tree_of() -> Tree:
    tree = Tree()
    tree.write("etc/hostname", b"native\n", mtime=7)
    tree.write("usr/bin/tool", pattern(3 * MIB, 2), mode=0o755)
    tree.add("usr/bin/alias", HardLink(target="usr/bin/tool"))
    tree.add("tmp", Directory(mode=0o1777))
    return tree


def engine(folder: Path, size: int = SIZE) -> NativeEngine:
    with launch(folder, size) as made:
        return made


@pytest.mark.slow
def test_a_disk_has_all_that_was_asked_for(tmp_path: Path) -> None:
    layout, steps = layout_of(SIZE), Steps()
    written = engine(tmp_path).write(tree_of(), layout, BOOT, steps, facts=FACTS)
    disk_map = written.save(ImageTarget(tmp_path / "disk.raw", "raw"), steps)
    assert disk_map == map_disk(tmp_path / "disk.raw", regions_of(layout))
    data = (tmp_path / "disk.raw").read_bytes()
    assert len(data) == SIZE
    assert data[:440] == BOOT.boot_code
    assert data[512:520] == b"EFI PART"
    bios = layout.get("bios-boot")
    assert bios is not None
    assert data[bios.start : bios.start + len(BOOT.core)] == BOOT.core
    root = tmp_path / "root.raw"
    root.write_bytes(data[layout.root.start : layout.root.start + layout.root.size])
    assert described(read_tree(root)) == described(tree_of())
    assert written.used + written.free > layout.root.size * 8 // 10
    assert written.used > 3 * MIB
    assert [step.name for step in steps.finished] == ["lay out the disk", "write the image"]


@pytest.mark.slow
def test_both_formats_have_the_same_disk(tmp_path: Path) -> None:
    for name in ("raw", "qcow2"):
        (tmp_path / name).mkdir()
    layout = layout_of(SIZE)
    first = engine(tmp_path / "raw").write(tree_of(), layout, BOOT, Steps(), facts=FACTS)
    second = engine(tmp_path / "qcow2").write(tree_of(), layout, BOOT, Steps(), facts=FACTS)
    raw, qcow2 = tmp_path / "disk.raw", tmp_path / "disk.qcow2"
    assert first.save(ImageTarget(raw, "raw"), Steps()) == second.save(ImageTarget(qcow2), Steps())
    found, data = read_qcow2(qcow2), raw.read_bytes()
    size = found.cluster_size
    clusters = {number: data[number * size : (number + 1) * size] for number in range(SIZE // size)}
    assert found.clusters == {number: cluster for number, cluster in clusters.items() if any(cluster)}


def test_a_root_filesystem_alone(tmp_path: Path) -> None:
    layout = bare_layout(64 * MIB, SEED)
    written = engine(tmp_path, 64 * MIB).write(tree_of(), layout, BOOT, Steps(), facts=FACTS)
    written.save(ImageTarget(tmp_path / "root.ext4", "raw"), Steps())
    assert described(read_tree(tmp_path / "root.ext4")) == described(tree_of())


def test_scripts_that_cannot_be_computed_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ScriptError, match=r"^odd: its post-install script cannot be computed, and the native"
    ) as caught:
        engine(tmp_path).write(tree_of(), layout_of(SIZE), BOOT, Steps(), [Script()])
    assert caught.value.hint == "--engine guestfs runs it; if it need not run: skip_scripts = ['odd']"
    assert not list(tmp_path.iterdir())


def test_content_that_is_too_large(tmp_path: Path) -> None:
    tree = tree_of()
    tree.add("large", File(content=Inline(bytes(150 * MIB))))
    with pytest.raises(RecipeError, match="image of 160 MiB is too small for its content, which needs ") as caught:
        engine(tmp_path).write(tree, layout_of(SIZE), BOOT, Steps())
    assert caught.value.hint is not None
    assert "set size to" in caught.value.hint


def test_what_ext4_cannot_store_is_named_and_the_disk_is_closed(tmp_path: Path) -> None:
    tree = tree_of()
    tree.add("etc/odd", File(content=Inline(b"x"), xattrs={"user.large": bytes(5000)}))
    with pytest.raises(RecipeError, match=r"^/etc/odd: its extended attributes of 5010 bytes do not fit"):
        engine(tmp_path).write(tree, layout_of(SIZE), BOOT, Steps())
    open_files = [path.resolve() for path in Path("/proc/self/fd").iterdir()] if Path("/proc/self/fd").is_dir() else []
    assert tmp_path / "generated" not in open_files


def test_a_layout_of_another_size_is_a_programming_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="layout of 167772160 bytes for a disk of 5"):
        engine(tmp_path, 5).prepare(layout_of(SIZE))


def test_a_scratch_folder_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="generated: No such file or directory"):
        engine(tmp_path / "gone").write(tree_of(), layout_of(SIZE), BOOT, Steps())
