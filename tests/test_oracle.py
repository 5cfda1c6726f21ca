"""Compare a root filesystem that the real apk installed with the same world composed by imgkit.

Whatever differs must be in the table below, with its reason.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from fixtures.mirror import Mirror
from imgkit.apk.stored_scripts import parse_scripts
from imgkit.fetch.cache import Cache
from imgkit.planning.base import Base, fetch_base
from imgkit.planning.download import fetch_packages, open_planned
from imgkit.planning.plan import Plan
from imgkit.planning.resolve import make_plan
from imgkit.recipe import Recipe, load
from imgkit.rootfs.digest import differences, records
from imgkit.rootfs.initramfs.make import install_initramfs
from imgkit.rootfs.install import ScriptReport, install, installed_in, world_in
from imgkit.rootfs.kernel import kernels
from imgkit.rootfs.scripts.effects import Hooks
from imgkit.tree import File, HardLink, Slice, Symlink, Tree
from tests.trees import tree_from_tar

pytestmark = pytest.mark.mirror

ARCHES = {"amd64": "x86_64", "arm64": "aarch64"}
USER = "quicksand"  # the account that the oracle's maker added

# path (or everything below it, with a slash) → why it is not the same
EXCUSED = {
    "/.dockerenv": "the oracle was made in a container",
    "/dev/": "official minirootfs archives leave everything in dev out; the running system has a devtmpfs there",
    "/etc/hostname": "written by the oracle's container engine",
    "/etc/hosts": "written by the oracle's container engine",
    "/etc/resolv.conf": "written by the oracle's container engine",
    "/etc/mtab": "written by the oracle's container engine",
    "/etc/modules": "changed by the oracle's maker",
    "/etc/rc.conf": "changed by the oracle's maker",
    "/etc/network/interfaces": "added by the oracle's maker",
    "/etc/resolv.conf.quicksand": "added by the oracle's maker",
    "/etc/init.d/quicksand-guest-agent": "added by the oracle's maker",
    "/etc/init.d/setup-dns": "added by the oracle's maker",
    "/etc/runlevels/": "no package enables services: links of the oracle's maker",
    "/etc/sudoers.d/quicksand": "added by the oracle's maker",
    "/home/quicksand": "added by the oracle's maker",
    "/usr/local/bin/quicksand-guest-agent": "added by the oracle's maker",
    "/etc/apk/keys/offline-mirror@": "the key of the offline mirror, in its minirootfs",
    "/var/log/apk.log": "a protocol of apk's own runs",
    "/etc/passwd": "compared line by line below",
    "/etc/group": "compared line by line below",
    "/etc/shadow": "compared line by line below",
    "/lib/apk/db/installed": "compared line by line below: packages were packed anew",
    "/lib/apk/db/triggers": "compared line by line below: packages were packed anew",
    "/lib/apk/db/scripts.tar.gz": "compared script by script below: packages were packed anew",
    "/boot/initramfs-virt": "modules.dep.bin in it has another order; compared by the tests of the initramfs",
}


class Composed:
    """The oracle and what imgkit makes of the same world."""

    def __init__(self, arch: str, mirror: Mirror, url: str, folder: Path) -> None:
        self.oracle = tree_from_tar(mirror.oracle[ARCHES[arch]])
        default = load(Path(__file__).parent.parent / "recipes" / "core.py")
        fields = {
            "mirror": url,
            "release_key": mirror.release_key,
            "packages": world_in(self.oracle),
            "disk_packages": (),
        }
        facts = default.architecture(arch).model_copy(update={"packages": ()})
        recipe = default.model_copy(update={**fields, "architectures": {arch: facts}})
        self.plan, self.base, self.report = compose(recipe, arch, folder)
        self.tree = self.base.tree


def compose(recipe: Recipe, arch: str, folder: Path) -> tuple[Plan, Base, ScriptReport]:
    cache = Cache(folder / "cache")
    base = fetch_base(recipe, arch, cache, folder / "minirootfs")
    plan, files = fetch_packages(make_plan(recipe, arch, base, cache), base, cache)
    report = install(
        base.tree,
        [each.package for each in plan.packages],
        partial(open_planned, files, base, folder / "packages"),
        world=plan.world,
        arch=ARCHES[arch],
        epoch=plan.epoch,
        hooks=Hooks(mkinitfs=lambda *_: None),
    )
    for kernel in kernels(base.tree):
        install_initramfs(base.tree, kernel.release, epoch=plan.epoch)
    return plan, base, report


@pytest.fixture(scope="module", params=sorted(ARCHES))
def composed(
    request: pytest.FixtureRequest, mirror: Mirror, mirror_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Composed:
    return Composed(request.param, mirror, mirror_url, tmp_path_factory.mktemp("composed"))


def excused(path: str) -> str | None:
    return next(
        (name for name in EXCUSED if path.rstrip("-") == name or (name[-1] in "/@" and path.startswith(name))), None
    )


def unexplained(oracle: Tree, tree: Tree) -> list[str]:
    lines = differences(records(oracle), records(tree))
    return [line for line in lines if excused(line.partition(": ")[0]) is None]


def test_every_path_is_as_apk_made_it(composed: Composed) -> None:
    assert unexplained(composed.oracle, composed.tree) == []
    assert len(composed.tree) > 2400


def test_every_excuse_is_needed(composed: Composed) -> None:
    lines = differences(records(composed.oracle), records(composed.tree))
    assert {excused(line.partition(": ")[0]) for line in lines} - {None} == set(EXCUSED)


def test_the_comparison_notices_what_it_must(composed: Composed) -> None:
    """The checker's own check: one bit, one mode, one owner, one link, one missing path."""
    changed = composed.tree.copy()
    file = changed["bin/busybox"]
    assert isinstance(file, File)
    assert isinstance(file.content, Slice)
    changed.add(
        "bin/busybox", replace(file, content=Slice(file.content.path, file.content.offset + 1, file.content.size))
    )
    changed.change("etc/fstab", mode=0o600)
    changed.change("sbin/openrc", uid=1)
    changed.symlink("bin/ls", "/bin/busybok")
    changed.remove("usr/sbin/mkinitfs" if "usr/sbin/mkinitfs" in changed else "sbin/mkinitfs")
    assert len(unexplained(composed.oracle, changed)) == 5


def test_no_script_was_left_out(composed: Composed) -> None:
    assert composed.report.pending == ()
    assert composed.report.skipped == ()
    assert all(ran.outcome.status == 0 for ran in composed.report.ran)
    ran = {(ran.package, ran.kind) for ran in composed.report.ran}
    assert {("busybox", "trigger"), ("ca-certificates", "trigger"), ("mkinitfs", "trigger")} <= ran


@pytest.mark.parametrize("name", ["passwd", "group", "shadow"])
def test_accounts_are_the_same_but_for_the_makers_own(composed: Composed, name: str) -> None:
    def lines(tree: Tree) -> list[str]:
        found = [line for line in tree.text(f"etc/{name}").splitlines() if not line.startswith(f"{USER}:")]
        # the day on which an account was made, and the root password's state, which the archive and its maker set
        return [re.sub(r"^(\w+:!):\d+:", r"\1:DAY:", line) for line in found if not line.startswith("root:")]

    assert lines(composed.tree) == lines(composed.oracle)
    assert (composed.tree[f"etc/{name}"].mode, composed.tree[f"etc/{name}"].gid) == (
        composed.oracle[f"etc/{name}"].mode,
        composed.oracle[f"etc/{name}"].gid,
    )


def test_the_installed_database_is_the_same_but_for_what_packing_anew_changes(composed: Composed) -> None:
    def lines(tree: Tree) -> list[str]:
        return [line for line in tree.text("lib/apk/db/installed").splitlines() if line[:2] not in ("C:", "S:")]

    assert lines(composed.tree) == lines(composed.oracle)


def test_triggers_and_scripts_are_the_same(composed: Composed) -> None:
    def globs(tree: Tree) -> list[str]:
        return [line.partition(" ")[2] for line in tree.text("lib/apk/db/triggers").splitlines()]

    def scripts(tree: Tree) -> set[tuple[str, bytes]]:
        found = parse_scripts(tree.read("lib/apk/db/scripts.tar.gz"))
        return {(kind, text) for of_package in found.values() for kind, text in of_package.items()}

    assert globs(composed.tree) == globs(composed.oracle)
    assert scripts(composed.tree) == scripts(composed.oracle)


# ---- apk's own opinion -----------------------------------------------------------------------------------------------


def unpacked(tree: Tree, folder: Path) -> Path:
    """Write the parts of ``tree`` that apk reads as files of this host, without their owners."""
    for path, node in tree.items():
        where = folder / path
        if isinstance(node, File):
            where.write_bytes(node.content.read())
            where.chmod(node.mode & 0o777 | 0o400)
        elif isinstance(node, Symlink):
            where.symlink_to(node.target)
        elif isinstance(node, HardLink):
            where.hardlink_to(folder / node.target)
        elif path:
            where.mkdir()
    return folder


@pytest.fixture(scope="module")
def root(composed: Composed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpacked(composed.tree, tmp_path_factory.mktemp("root"))


@pytest.fixture(scope="module")
def apk(mirror: Mirror, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the real apk of the oracle, run by its own dynamic loader."""
    folder = tmp_path_factory.mktemp("apk")
    tree = tree_from_tar(mirror.oracle["x86_64"])
    wanted = ["lib/ld-musl-x86_64.so.1", "sbin/apk"]
    wanted += [path for path in tree.children("usr/lib") + tree.children("lib") if ".so." in path]
    for path in wanted:
        node = tree.stat(path)
        if isinstance(node, File):
            (folder / path.rpartition("/")[2]).write_bytes(node.content.read())
    (folder / "ld-musl-x86_64.so.1").chmod(0o755)
    return [str(folder / "ld-musl-x86_64.so.1"), "--library-path", str(folder), str(folder / "apk")]


def ask(apk: list[str], *words: str) -> str:
    done = subprocess.run([*apk, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_apk_finds_its_packages(composed: Composed, root: Path, apk: list[str]) -> None:
    arch = ARCHES[composed.plan.arch]
    listed = ask(apk, "--root", str(root), "--arch", arch, "info", "-v").split()
    assert sorted(listed) == sorted(str(each.package) for each in composed.plan.packages)
    names = [record.package.name for record in installed_in(composed.tree)]
    assert sorted(ask(apk, "--root", str(root), "--arch", arch, "info", "-e", *names).split()) == sorted(names)


def test_apk_finds_nothing_wrong_and_notices_what_is(composed: Composed, root: Path, apk: list[str]) -> None:
    words = [
        "--root",
        str(root),
        "--arch",
        ARCHES[composed.plan.arch],
        "audit",
        "--system",
        "--ignore-busybox-symlinks",
    ]
    made = {line.partition(" ")[2] for line in ask(apk, *words).splitlines()}
    # Directories and links that triggers make belong to no package.
    assert {path for path in made if not path.startswith(("etc/ssl/", "boot/", "lib/modules/"))} == set()
    victim = root / "sbin" / "openrc"
    good = victim.read_bytes()
    victim.write_bytes(good[:-1] + b"X")
    try:
        assert "U sbin/openrc" in ask(apk, *words)
    finally:
        victim.write_bytes(good)
