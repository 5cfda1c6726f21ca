"""Composing the root filesystem of an image from small parts: what is written, in which order, what is refused."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from imgkit.errors import InputError, RecipeError
from imgkit.recipe import OverlaySpec, Recipe, UserSpec, load
from imgkit.rootfs.compose import Composition, compose
from imgkit.rootfs.steps import PackageSet
from imgkit.tree import Directory, Tree
from tests.elves import make_elf
from tests.images import RECIPE
from tests.test_initramfs import alpine
from tests.test_install import Built, built, file
from tests.trees import read_newc

EPOCH = 1_700_000_000
UUID = "11111111-2222-3333-4444-555555555555"


def base() -> Tree:
    tree = alpine()
    tree.write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")
    tree.write("etc/group", "root:x:0:\n")
    tree.write("etc/shadow", "root::0:::::\n", mode=0o640)
    tree.mkdir("tmp", mode=0o1777)
    tree.write("etc/init.d/sysctl", "#!/sbin/openrc-run\ndepend() {\n\tbefore x\n}\n", mode=0o755)
    tree.mkdir("etc/runlevels/boot")
    return tree


def recipe(**changes: Any) -> Recipe:
    stated = {"initramfs_features": ("base",), "services": {"boot": ("sysctl",)}, "users": (), "overlay": None}
    if isinstance(changes.get("overlay"), Path):
        changes["overlay"] = OverlaySpec(path=changes["overlay"])
    return load(RECIPE).model_copy(update=stated | changes)


def make(
    tree: Tree | None = None, *packages: Built, payload: Path | None = None, can_run: bool = False, **changes: Any
) -> Composition:
    files = {package.identity: verified for package, verified in packages}
    selection = PackageSet(
        tuple(package for package, _ in packages), lambda package: files[package.identity], ("alpine-base",)
    )
    chosen = recipe(**changes)
    return compose(
        tree or base(),
        selection,
        chosen,
        "amd64",
        payload=payload,
        can_run=can_run,
        root_uuid=UUID,
        epoch=EPOCH,
    )


def test_everything_that_the_recipe_states_is_in_the_tree() -> None:
    made = make(None, built("a", file("usr/a", "a")))
    tree = made.tree
    assert tree.text("usr/a") == "a"
    assert tree.text("etc/apk/world") == "alpine-base\n"
    assert tree.text("etc/apk/arch") == "x86_64\n"
    assert tree.text("etc/hostname") == "sandbox\n"
    assert tree.text("etc/hosts") == "127.0.0.1\tlocalhost sandbox\n::1\tlocalhost sandbox\n"
    assert tree.text("etc/network/interfaces") == "auto lo\niface lo inet loopback\n\nauto eth0\niface eth0 inet dhcp\n"
    assert tree.text("etc/fstab") == f"UUID={UUID}\t/\text4\trw,relatime\t0 0\n"
    assert tree.text("etc/shadow").startswith("root:*:")
    assert "etc/runlevels/boot/sysctl" in tree
    assert "depinfo_0_service='sysctl'" in tree.text("var/cache/rc/deptree")
    assert (made.kernel.release, made.kernel.image) == ("6.18.0-0-virt", "boot/vmlinuz-virt")
    grub = tree.text("boot/grub/grub.cfg")
    assert "/boot/vmlinuz-virt" in grub
    assert UUID in grub
    assert "console=" in grub, "of the architecture"
    assert "sysctl.kernel.sysrq=0" in grub, "of the recipe"
    for path in (
        "etc/mkinitfs/mkinitfs.conf",
        "etc/hostname",
        "etc/hosts",
        "etc/network/interfaces",
        "etc/fstab",
        "etc/shadow",
        "lib/apk/db/installed",
        "var/cache/rc/deptree",
        "tmp/.X11-unix",
        "etc/apk/repositories",
        "boot/grub/grub.cfg",
        "boot/initramfs-virt",
    ):
        assert tree[path].mtime == EPOCH, path


def test_a_read_only_root_without_a_network() -> None:
    tree = make(read_only_root=True, network="none").tree
    assert tree.text("etc/fstab") == "overlay\t/\toverlay\trw\t0 0\n"
    assert "overlaytmpfs" in tree.text("boot/grub/grub.cfg")
    assert tree.text("etc/network/interfaces") == "auto lo\niface lo inet loopback\n"


def test_the_initramfs_has_the_recipes_features_and_the_images_own_mkinitfs_too() -> None:
    tree = base()
    tree.write("etc/mkinitfs/mkinitfs.conf", 'features="net"\ninitfscomp=gzip\n  features=ext4\n')
    tree = make(tree, initramfs_features=("base", "ext4")).tree
    assert tree.text("etc/mkinitfs/mkinitfs.conf") == 'features="base ext4"\ninitfscomp=gzip\n'
    names = {member.name for member in read_newc(gzip.decompress(tree.read("boot/initramfs-virt")))}
    assert any(name.endswith("ext4.ko.gz") for name in names)
    assert not any(name.endswith("/net/a.ko.gz") for name in names)


def test_a_package_that_makes_the_initramfs_is_computed() -> None:
    """The initramfs that the script asks for is made once, at the end."""
    made = make(None, built("a", scripts={"post-install": "mkinitfs -o /boot/initramfs-virt 6.18.0-0-virt"}))
    assert [(script.kind, script.outcome.status) for script in made.scripts.ran] == [("post-install", 0)]
    assert "boot/initramfs-virt" in made.tree


def test_an_image_without_a_configuration_of_mkinitfs() -> None:
    tree = base()
    tree.remove("etc/mkinitfs/mkinitfs.conf")
    assert make(tree).tree.text("etc/mkinitfs/mkinitfs.conf") == 'features="base"\n'


def test_every_kernel_gets_an_initramfs_and_the_flavour_of_the_recipe_boots() -> None:
    tree = base()
    other = "lib/modules/6.20.0-0-lts"
    tree.write(f"{other}/modules.dep", "kernel/drivers/block/loop.ko.gz:\n")
    tree.write(f"{other}/kernel/drivers/block/loop.ko.gz", gzip.compress(make_elf(kind=1, sections={".modinfo": b""})))
    tree.write(f"{other}/kernel-suffix", "-lts\n")
    tree.write("boot/vmlinuz-lts", b"image")
    made = make(tree)
    assert made.kernel.release == "6.18.0-0-virt"
    assert {"boot/initramfs-virt", "boot/initramfs-lts"} <= set(made.tree)
    assert "/boot/vmlinuz-virt " in made.tree.text("boot/grub/grub.cfg")
    made = make(tree, kernel="lts")
    assert made.kernel.release == "6.20.0-0-lts"
    assert "/boot/vmlinuz-lts " in made.tree.text("boot/grub/grub.cfg")


def test_the_newest_of_several_kernels_of_the_flavour_boots() -> None:
    tree = base()
    for release in ("6.9.0-0-virt", "6.20.0-0-virt"):
        tree.write(f"lib/modules/{release}/modules.dep", "")
        tree.write(f"lib/modules/{release}/kernel-suffix", "-virt\n")
    tree.write("etc/mkinitfs/features.d/base.modules", "")
    assert make(tree).kernel.release == "6.20.0-0-virt"


def test_no_kernel_of_the_recipes_flavour() -> None:
    with pytest.raises(RecipeError, match=r"^no kernel linux-lts in the image$") as caught:
        make(kernel="lts")
    assert caught.value.hint == "add linux-lts to packages"


def test_scripts_that_can_neither_be_computed_nor_run() -> None:
    packages = [built(name, scripts={"post-install": "frobnicate"}) for name in ("b", "a")]
    with pytest.raises(RecipeError, match=r"^amd64: scripts that can neither be computed nor run") as caught:
        make(None, *packages)
    assert str(caught.value).count("frobnicate") == 2
    assert caught.value.hint == "build a disk on amd64, or state that they need not run: skip_scripts = ['a', 'b']"
    assert [script.package for script in make(None, *packages, can_run=True).scripts.pending] == ["b", "a"]
    assert make(None, *packages, skip_scripts=("a", "b")).scripts.skipped == ("b.post-install", "a.post-install")


def test_a_tree_in_which_the_recipe_cannot_be_applied() -> None:
    tree = base()
    tree.write("etc/shadow", "")
    with pytest.raises(RecipeError, match=r"^the image cannot be set up as the recipe says: unknown user root$"):
        make(tree)
    tree = base()
    tree.mkdir("etc/hostname")
    with pytest.raises(RecipeError, match=r"^the image cannot be set up as the recipe says: etc/hostname"):
        make(tree)


def test_a_user_that_cannot_be_added() -> None:
    user = load(RECIPE).users[0].model_copy(update={"groups": ("nope",)})
    with pytest.raises(RecipeError, match=r"^user agent: unknown group nope$"):
        make(users=(user,))


def test_users_own_their_folders() -> None:
    tree = make(users=load(RECIPE).users).tree
    assert (tree["workspace"].uid, tree["workspace"].gid) == (1000, 1000)


def test_a_user_is_as_the_recipe_says() -> None:
    """Folders are reached through links, and an existing one changes hands."""
    tree = base()
    tree.write("etc/group", "root:x:0:\nwheel:x:10:\n", mtime=5)
    tree.mkdir("srv/real", mode=0o700, uid=5, mtime=5)
    tree.symlink("srv/link", "real")
    user = UserSpec(
        name="web", uid=1234, home="/srv", shell="/bin/false", groups=("wheel",), owns=("/srv/link", "/new")
    )
    tree = make(tree, users=(user,)).tree
    assert tree.text("etc/passwd").endswith("web:x:1234:1234::/srv:/bin/false\n")
    assert tree.text("etc/group") == "root:x:0:\nwheel:x:10:web\nweb:x:1234:web\n"
    assert (tree["etc/passwd"].mtime, tree["etc/group"].mtime) == (EPOCH, EPOCH)
    assert tree["srv/real"] == Directory(mode=0o700, uid=1234, gid=1234, mtime=5)
    assert tree["new"] == Directory(uid=1234, gid=1234, mtime=EPOCH)


def test_an_image_without_tmp_gets_no_folders_in_it() -> None:
    tree = base()
    tree.remove("tmp")
    assert "tmp" not in make(tree).tree


def test_a_payload_s_file_replaces_the_overlay_s_folder(tmp_path: Path) -> None:
    """What the overlay had in the payload's place is no binary of the payload."""
    overlay, payload = tmp_path / "overlay", tmp_path / "payload"
    (overlay / "opt/agent-runner/old").mkdir(parents=True)
    (overlay / "opt/agent-runner/old/tool").write_bytes(make_elf("aarch64"))
    payload.mkdir()
    (payload / "old").write_text("text")
    made = make(overlay=overlay, payload=payload)
    assert made.tree.text("opt/agent-runner/old") == "text"
    assert made.binaries.foreign == ()
    kept = make(overlay=overlay)
    assert [binary.path for binary in kept.binaries.foreign] == ["opt/agent-runner/old/tool"]


def test_a_service_that_the_image_lacks() -> None:
    with pytest.raises(RecipeError, match=r"^sysctll: no such service in the image$"):
        make(services={"boot": ("sysctll",)})


def test_programs_of_another_machine_outside_the_payload() -> None:
    tree = base()
    tree.write("usr/bin/one", make_elf("aarch64"))
    with pytest.raises(InputError, match=r"^/usr/bin/one: is for aarch64, the image for x86_64$") as caught:
        make(tree)
    assert caught.value.hint == "programs and modules must be built for musl on the image's machine"
    tree = base()
    for count, name in enumerate(("one", "two", "three")):
        tree.write(f"usr/bin/{name}", make_elf("aarch64"))
        with pytest.raises(InputError, match=r" for x86_64$" if count == 0 else rf" \(and {count} more\)$"):
            make(tree)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a payload with a program for another machine."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "index.js").write_text("code")
    (tmp_path / "bin/tool").write_bytes(make_elf("aarch64"))
    return tmp_path


@pytest.mark.parametrize(("policy", "kept"), [("warn", True), ("strict", True), ("prune", False)])
def test_programs_of_another_machine_in_the_payload(policy: str, kept: bool, folder: Path) -> None:
    made = make(payload=folder, payload_binaries=policy)
    assert [binary.path for binary in made.binaries.foreign] == ["opt/agent-runner/bin/tool"]
    assert ("opt/agent-runner/bin/tool" in made.tree) is kept
    assert made.tree.text("opt/agent-runner/index.js") == "code"


def test_the_overlay_is_merged_and_the_payload_replaces_that_of_the_overlay(folder: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "overlay"
    (overlay / "opt/agent-runner").mkdir(parents=True)
    (overlay / "opt/agent-runner/old.js").write_text("old")
    (overlay / "etc").mkdir()
    (overlay / "etc/motd").write_text("hello")
    payload = tmp_path / "payload"
    payload.mkdir()
    (payload / "index.js").write_text("new")
    kept = make(overlay=overlay)
    assert kept.tree.text("opt/agent-runner/old.js") == "old"
    made = make(overlay=overlay, payload=payload)
    assert made.tree.text("etc/motd") == "hello"
    assert [path for path, _ in made.tree.walk("opt/agent-runner")][1:] == ["opt/agent-runner/index.js"]


def test_an_overlay_cannot_bring_programs_of_another_machine(tmp_path: Path) -> None:
    """The recipe's policy applies only to the payload's own folder."""
    overlay = tmp_path / "overlay"
    (overlay / "opt/agent-runner-2").mkdir(parents=True)
    (overlay / "opt/agent-runner-2/tool").write_bytes(make_elf("aarch64"))
    with pytest.raises(InputError, match="/opt/agent-runner-2/tool: is for aarch64"):
        make(overlay=overlay)
