"""Steps whose results are kept: what comes from the cache is what would be computed, and every input counts."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import imgkit
from imgkit.apk.index import Repository
from imgkit.apk.package import PackageFile
from imgkit.apk.unpack import PackageEntry
from imgkit.host import programversion
from imgkit.image import keptbootloader
from imgkit.image.keptbootloader import image_or_take
from imgkit.rootfs import install as installing
from imgkit.rootfs import keptinstallation
from imgkit.rootfs.binaries import libraries
from imgkit.rootfs.binaries.libraries import check_architecture
from imgkit.rootfs.initramfs import make
from imgkit.rootfs.initramfs.mkinitfs import CONFIGURATION, read_configuration
from imgkit.rootfs.install import ScriptReport
from imgkit.rootfs.keptinstallation import install_or_take
from imgkit.rootfs.keptsteps import KeptSteps, described
from imgkit.rootfs.scripts.effects import Hooks
from imgkit.tree import (
    Content,
    Device,
    Directory,
    File,
    HardLink,
    HashedSlice,
    Inline,
    Node,
    Symlink,
    Tree,
    cpio,
    sha256_of,
)
from tests.elves import make_elf
from tests.test_initramfs import EPOCH, RELEASE, alpine
from tests.test_install import Built, built, directory, file


def facts(tree: Tree) -> list[object]:
    """Return all that a Tree says, with the bytes of its contents."""
    return [
        (path, replace(node, content=Inline(node.content.read())) if isinstance(node, File) else node)
        for path, node in tree.items()
    ]


# ---- any step --------------------------------------------------------------------------------------------------------


def test_a_result_is_computed_once(tmp_path: Path) -> None:
    calls: list[int] = []

    def compute() -> bytes:
        calls.append(1)
        return b"result"

    kept = KeptSteps(tmp_path)
    assert kept.get("initramfs", ["a", 1], compute) == kept.get("initramfs", ["a", 1], compute) == b"result"
    assert len(calls) == 1
    kept.get("initramfs", ["a", 2], compute)
    kept.get("services", ["a", 1], compute)
    assert len(calls) == 3


def test_nothing_is_kept_without_a_folder() -> None:
    inputs = iter(["not needed"])
    kept = KeptSteps()
    assert not kept.keeps
    assert kept.get("initramfs", inputs, lambda: b"a") == b"a"
    assert list(inputs) == ["not needed"]
    assert kept.store("initramfs", "ab" * 32, b"a") == b"a"
    assert kept.take("initramfs", "ab" * 32) is None


def test_other_code_does_not_get_earlier_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "package").mkdir()
    module = tmp_path / "package" / "module.py"
    module.write_text("a = 1\n")
    monkeypatch.setattr(imgkit, "__file__", str(tmp_path / "package" / "__init__.py"))
    versions = set()
    for change in (lambda: None, lambda: module.write_text("a = 22\n"), lambda: os.utime(module, (5, 5))):
        change()
        programversion.program_version.cache_clear()
        versions.add(programversion.program_version())
    (tmp_path / "package" / "__pycache__").mkdir()
    (tmp_path / "package" / "__pycache__" / "x.pyc").write_text("")
    programversion.program_version.cache_clear()
    versions.add(programversion.program_version())
    programversion.program_version.cache_clear()
    assert len(versions) == 3


def test_everything_about_a_node_is_described() -> None:
    nodes: list[Node] = [
        File(content=Inline(b"a")),
        File(content=Inline(b"b")),
        File(content=Inline(b"a"), mode=0o600),
        File(content=Inline(b"a"), uid=1),
        File(content=Inline(b"a"), gid=1),
        File(content=Inline(b"a"), mtime=1),
        File(content=Inline(b"a"), xattrs={"user.x": b"1"}),
        Directory(),
        Symlink(target="a"),
        Symlink(target="b"),
        HardLink(target="a"),
        Device(kind="c", major=1),
        Device(kind="c", minor=1),
        Device(kind="b", major=1),
    ]
    assert len({repr(described(path, node)) for path in ("x", "y") for node in nodes}) == 2 * len(nodes)


# ---- the installed packages ------------------------------------------------------------------------------------------


class Installations:
    """Installs packages as builds do; ``computed`` counts what was not taken from the cache."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.computed = 0
        install = installing.install

        def counting(*words: Any, **options: Any) -> ScriptReport:
            self.computed += 1
            return install(*words, **options)

        monkeypatch.setattr(keptinstallation, "install", counting)

    def run(
        self, *packages: Built, tree: Tree | None = None, epoch: int = EPOCH, **options: Any
    ) -> tuple[Tree, ScriptReport]:
        base = Tree() if tree is None else tree.copy()
        files: dict[str, PackageFile] = {package.identity: verified for package, verified in packages}
        settings: dict[str, Any] = {"world": ("a",), "arch": "x86_64", "epoch": epoch, "hooks": Hooks(), **options}
        report = install_or_take(
            base,
            [package for package, _ in packages],
            lambda package: files[package.identity],
            KeptSteps(self.folder),
            **settings,
        )
        return base, report


@pytest.fixture
def installations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installations:
    return Installations(tmp_path / "cache", monkeypatch)


def hashed(path: Path, name: str, data: bytes) -> PackageEntry:
    """Return a file whose content is in a spool."""
    path.write_bytes(b"before" + data)
    content = HashedSlice(path, 6, len(data), sha256_of(Inline(data)), data[:4])
    return PackageEntry(name, File(content=content, mode=0o755), b"\0" * 20, "root", "root")


def some(spool: Path) -> Sequence[Built]:
    scripts = {
        "pre-install": "echo one; exit 3",
        "post-install": "cp /usr/large /usr/copy; ln /usr/large /usr/hard; echo '\xe4' >/usr/text",
        "trigger": "frobnicate $1",
    }
    entries = (directory("usr"), hashed(spool, "usr/large", bytes(range(256)) * 99), file("usr/a", "a"))
    return [built("a", *entries, scripts=scripts, triggers=["/usr"]), built("b", file("usr/b", "b"))]


def test_a_kept_installation_is_what_is_computed(installations: Installations, tmp_path: Path) -> None:
    base = Tree()
    base.write("etc/motd", "hello", mode=0o600, uid=5, mtime=9)
    cold, report = installations.run(*some(tmp_path / "spool"), tree=base)
    assert [ran.outcome.status for ran in report.ran] == [3, 0]
    assert report.ran[0].outcome.messages == ("one",)
    assert [pending.kind for pending in report.pending] == ["trigger"]
    warm, again = installations.run(*some(tmp_path / "spool"), tree=base)
    assert installations.computed == 1
    assert facts(warm) == facts(cold)
    assert again == report
    content = warm["usr/copy"].content if isinstance(warm["usr/copy"], File) else None
    assert isinstance(content, HashedSlice), "the contents of packages are not in the record"
    for tree in (cold, warm):  # hard links are known
        tree.remove("usr/large")
    assert facts(warm) == facts(cold)
    assert warm.count_links("usr/copy") == cold.count_links("usr/copy")


def changed_base(mode: int) -> Tree:
    tree = Tree()
    tree.mkdir("etc", mode=mode)
    return tree


@pytest.mark.parametrize(
    "change",
    [
        {"world": ("a", "b")},
        {"arch": "aarch64"},
        {"epoch": EPOCH + 1},
        {"skip": ("a",)},
        {"tree": changed_base(0o700)},
        {"tree": changed_base(0o755)},
    ],
)
def test_every_input_of_an_installation_counts(
    change: dict[str, Any], installations: Installations, tmp_path: Path
) -> None:
    packages = some(tmp_path / "spool")
    installations.run(*packages)
    warm, report = installations.run(*packages, **change)
    assert installations.computed == 2
    installations.folder = tmp_path / "empty"
    cold, expected = installations.run(*packages, **change)
    assert (facts(warm), report) == (facts(cold), expected)


def test_the_records_and_the_order_of_packages_count(installations: Installations, tmp_path: Path) -> None:
    (one, verified), other = some(tmp_path / "spool")
    installations.run((one, verified), other)
    installations.run(other, (one, verified))
    installations.run((replace(one, description="another"), verified), other)
    assert installations.computed == 3
    installations.run((replace(one, repository=Repository(3, "http://other.test/")), verified), other)
    assert installations.computed == 3, "the mirror decides nothing"


def test_a_content_that_this_build_lacks_is_a_miss(installations: Installations, tmp_path: Path) -> None:
    first, second = some(tmp_path / "spool")
    installations.run(first, second)
    package, _ = first
    _, verified = built("a", directory("usr"), hashed(tmp_path / "other", "usr/large", b"another content"))
    tree, _ = installations.run((package, verified), second)
    assert installations.computed == 2
    assert tree.read("usr/large") == b"another content"


def test_a_damaged_installation_is_computed_anew(installations: Installations, tmp_path: Path) -> None:
    packages = some(tmp_path / "spool")
    expected = facts(installations.run(*packages)[0])
    (path,) = installations.folder.glob("installed/*/*.record")
    path.write_bytes(path.read_bytes()[:-1])
    assert facts(installations.run(*packages)[0]) == expected
    assert facts(installations.run(*packages)[0]) == expected
    assert installations.computed == 2


# ---- the initramfs ---------------------------------------------------------------------------------------------------


DEP = f"lib/modules/{RELEASE}/modules.dep"


class Initramfs:
    """Makes initramfs as builds do; ``written`` counts what was not taken from the cache."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kept = KeptSteps(folder)
        self.written = 0

        def counting(*words: Any) -> int:
            self.written += 1
            return cpio.write_newc(*words)

        monkeypatch.setattr(make, "write_newc", counting)

    def of(self, tree: Tree, *, epoch: int = EPOCH) -> bytes:
        """Return the initramfs of a Tree, which is compared with one that is computed without a cache."""
        configuration = read_configuration(tree)
        data = make.make_initramfs(tree, RELEASE, configuration, epoch=epoch, kept=self.kept)
        before = self.written
        assert data == make.make_initramfs(tree, RELEASE, configuration, epoch=epoch)
        self.written = before
        return data


@pytest.fixture
def initramfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Initramfs:
    return Initramfs(tmp_path / "cache", monkeypatch)


def test_an_initramfs_is_written_once(initramfs: Initramfs) -> None:
    tree = alpine()
    data = initramfs.of(tree)
    tree.write("etc/motd", "an overlay that the initramfs has nothing of")
    assert initramfs.of(tree) == data
    assert initramfs.written == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: tree.write("bin/busybox", tree.read("bin/busybox") + b"x"),
        lambda tree: tree.change("bin/busybox", mode=0o700),
        lambda tree: tree.write("usr/share/mkinitfs/initramfs-init", "#!/bin/sh\n# other\n"),
        lambda tree: tree.write("etc/apk/keys/two.rsa.pub", "key"),
        lambda tree: tree.write(CONFIGURATION, 'features="base"\n'),
        lambda tree: tree.write(CONFIGURATION, 'features="base ext4"\ncustom_files="/etc/apk/keys/one.rsa.pub"\n'),
        lambda tree: tree.write(CONFIGURATION, 'features="base ext4"\ninitfscomp=none\n'),
        lambda tree: tree.write(CONFIGURATION, 'features="base ext4"\ncomplevel_gzip=-1\n'),
        lambda tree: tree.write(DEP, tree.text(DEP) + "kernel/another.ko:\n"),
        lambda tree: tree.write(f"lib/modules/{RELEASE}/modules.order", "kernel/other.ko\n"),
        lambda tree: tree.write(f"lib/modules/{RELEASE}/modules.builtin", "kernel/other.ko\n"),
    ],
)
def test_every_input_of_an_initramfs_counts(change: Callable[[Tree], object], initramfs: Initramfs) -> None:
    tree = alpine()
    initramfs.of(tree)
    change(tree)
    after = initramfs.of(tree)
    assert initramfs.written == 2
    assert initramfs.of(tree) == after
    assert initramfs.written == 2


def test_the_epoch_of_an_initramfs_counts(initramfs: Initramfs) -> None:
    assert initramfs.of(alpine()) != initramfs.of(alpine(), epoch=EPOCH + 1)


# ---- kernel modules and GRUB -----------------------------------------------------------------------------------------


def test_kernel_modules_are_examined_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def head(path: str, content: Content) -> bytes:
        opened.append(path)
        return content.read()

    monkeypatch.setattr(libraries, "_module_head", head)
    tree, kept = Tree(), KeptSteps(tmp_path)
    for name, data in {"a": make_elf(kind=1), "b": make_elf("aarch64", kind=1), "c": b"text"}.items():
        tree.write(f"lib/modules/6/{name}.ko", data)
    problems = [
        "/lib/modules/6/b.ko: is for aarch64, the image for x86_64",
        "/lib/modules/6/c.ko: not an ELF kernel module",
    ]
    for _ in range(2):
        assert check_architecture(tree, "x86_64", kept=kept) == problems
        assert len(opened) == 3
    assert check_architecture(tree, "x86_64") == problems
    assert len(opened) == 6
    assert len(check_architecture(tree, "aarch64", kept=kept)) == 2
    assert len(opened) == 9
    tree.write("lib/modules/6/c.ko", make_elf(kind=1))
    assert check_architecture(tree, "x86_64", kept=kept) == problems[:1]
    assert len(opened) == 12


def test_core_images_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def make_image(tree: Tree, platform: str, root_uuid: str) -> bytes:
        made.append(platform)
        return tree.read(f"usr/lib/grub/{platform}/kernel.img") + root_uuid.encode()

    monkeypatch.setattr(keptbootloader, "make_image", make_image)
    tree, image_of = Tree(), image_or_take(KeptSteps(tmp_path))
    for platform in ("i386-pc", "x86_64-efi"):
        tree.write(f"usr/lib/grub/{platform}/kernel.img", platform)
    for _ in range(2):
        assert image_of(tree, "i386-pc", "1-2") == b"i386-pc1-2"
        assert image_of(tree, "x86_64-efi", "1-2") == b"x86_64-efi1-2"
        assert image_of(tree, "i386-pc", "3-4") == b"i386-pc3-4"
        assert len(made) == 3
    tree.write("usr/lib/grub/i386-pc/kernel.img", "other")
    assert image_of(tree, "i386-pc", "1-2") == b"other1-2"
    tree.symlink("usr/lib/grub/i386-pc/kernel.img", "/kernel.img")
    for text in ("one", "two"):
        tree.write("kernel.img", text)
        assert image_of(tree, "i386-pc", "1-2") == f"{text}1-2".encode(), "a link leads to what is in no key"
    tree.mkdir("elsewhere")
    tree.symlink("usr/lib/grub/arm64-efi", "/elsewhere")
    for text in ("one", "two"):
        tree.write("elsewhere/kernel.img", text)
        assert image_of(tree, "arm64-efi", "1-2") == f"{text}1-2".encode()
