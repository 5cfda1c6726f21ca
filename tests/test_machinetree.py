"""The root filesystem of a container image becomes that of a machine; the initramfs that starts it."""

from __future__ import annotations

import gzip
import subprocess
from pathlib import Path

import pytest

from imgkit.errors import InputError
from imgkit.image.machinetree import become_machine, has_agent
from imgkit.rootfs.initramfs import machineinit
from imgkit.rootfs.initramfs.machineinit import init_version, machine_initramfs
from imgkit.rootfs.kernel import Kernel
from imgkit.tree import Directory, Symlink, Tree
from tests.conftest import need_program

KERNEL = Kernel("6.1-virt", "lib/modules/6.1-virt", "-virt")
EPOCH = 1_700_000_000
DRIVERS = ("ext4", "isofs", "virtio_net", "af_packet", "9pnet_virtio", "9p", "virtio-rng")


def modules() -> Tree:
    """Return the files of a kernel's package, in which ext4 needs two others; virtio_blk is built in."""
    tree = Tree()
    for name in (*DRIVERS, "jbd2", "mbcache"):
        tree.write(f"{KERNEL.directory}/kernel/{name}.ko.gz", gzip.compress(name.encode()))
    needed = {"ext4": " kernel/jbd2.ko.gz kernel/mbcache.ko.gz", "jbd2": " kernel/mbcache.ko.gz"}
    lines = [f"kernel/{name}.ko.gz:{needed.get(name, '')}\n" for name in (*DRIVERS, "jbd2", "mbcache")]
    tree.write(f"{KERNEL.directory}/modules.dep", "".join(lines))
    tree.write(f"{KERNEL.directory}/modules.builtin", "kernel/drivers/block/virtio_blk.ko\n")
    return tree


def alpine() -> Tree:
    tree = Tree()
    tree.write("bin/busybox", "busybox", mode=0o755)
    tree.write("lib/ld-musl-x86_64.so.1", "musl", mode=0o755)
    return tree


# ---- the image -------------------------------------------------------------------------------------------------------


def test_a_machine_has_its_mount_points_and_the_kernels_modules() -> None:
    tree = Tree()
    assert become_machine(tree, modules(), KERNEL, epoch=EPOCH) == "lib/modules"
    assert {path for path in tree if "/" not in path} == {"", "dev", "proc", "sys", "run", "etc", "mnt", "tmp", "lib"}
    assert tree["tmp"] == Directory(mode=0o1777, mtime=EPOCH)
    assert tree["proc"] == Directory(mtime=EPOCH)
    assert tree.read("lib/modules/6.1-virt/kernel/ext4.ko.gz") == gzip.compress(b"ext4")


def test_what_an_image_has_stays() -> None:
    tree = Tree()
    tree.mkdir("tmp", mode=0o755, uid=5)
    tree.write("lib/modules/5.0/old", "old")
    become_machine(tree, modules(), KERNEL, epoch=EPOCH)
    assert tree["tmp"] == Directory(mode=0o755, uid=5)
    assert tree.text("lib/modules/5.0/old") == "old"


def test_modules_of_the_same_release_are_replaced() -> None:
    tree = Tree()
    tree.write("lib/modules/6.1-virt/kernel/foreign.ko", "foreign")
    tree.write("lib/modules/6.1-virt/kernel/ext4.ko.gz/in-the-way", "")
    become_machine(tree, modules(), KERNEL, epoch=EPOCH)
    assert "lib/modules/6.1-virt/kernel/foreign.ko" not in tree
    assert tree.read("lib/modules/6.1-virt/kernel/ext4.ko.gz") == gzip.compress(b"ext4")


def test_modules_are_below_usr_in_a_merged_image() -> None:
    tree = Tree()
    tree.mkdir("usr/lib")
    tree.symlink("lib", "/usr/lib")
    assert become_machine(tree, modules(), KERNEL, epoch=EPOCH) == "usr/lib/modules"
    assert tree["lib"] == Symlink(target="/usr/lib")


def test_no_link_leads_a_mount_elsewhere() -> None:
    tree = Tree()
    tree.symlink("proc", "/etc")
    tree.write("sys", "a file")
    become_machine(tree, modules(), KERNEL, epoch=EPOCH)
    assert isinstance(tree["proc"], Directory)
    assert isinstance(tree["sys"], Directory)


def test_an_image_without_room_for_modules() -> None:
    tree = Tree()
    tree.write("lib", "a file")
    with pytest.raises(InputError, match="no room for the kernel's modules"):
        become_machine(tree, modules(), KERNEL, epoch=EPOCH)
    circle = Tree()
    circle.symlink("lib", "lib")
    with pytest.raises(InputError, match=r"no room for the kernel's modules: .*too many levels"):
        become_machine(circle, modules(), KERNEL, epoch=EPOCH)


def agent_image() -> Tree:
    tree = Tree()
    for path in ("opt/agent-runner/index.js", "bin/busybox", "etc/passwd", "usr/bin/node"):
        tree.write(path, "")
    for path in ("bin/setpriv", "bin/sh"):
        tree.symlink(path, "/bin/busybox")
    return tree


@pytest.mark.parametrize(
    "missing", ["opt/agent-runner/index.js", "bin/busybox", "bin/setpriv", "bin/sh", "etc/passwd", "usr/bin/node"]
)
def test_agentd_is_in_an_image_with_all_that_it_runs(missing: str) -> None:
    tree = agent_image()
    assert has_agent(tree)
    tree.remove(missing)
    assert not has_agent(tree)


def test_node_of_another_place() -> None:
    tree = agent_image()
    tree.remove("usr/bin/node")
    tree.write("usr/local/bin/node", "")
    assert has_agent(tree)
    tree.remove("opt/agent-runner/index.js")
    tree.symlink("opt/agent-runner/index.js", "index.js")
    assert not has_agent(tree)


# ---- the initramfs ---------------------------------------------------------------------------------------------------


def members(archive: bytes) -> dict[str, bytes]:
    """Return the regular files of a newc archive, read as the format says."""
    files: dict[str, bytes] = {}
    at = 0
    while True:
        fields = [int(archive[at + 6 + 8 * number : at + 14 + 8 * number], 16) for number in range(13)]
        name = archive[at + 110 : at + 110 + fields[11] - 1].decode()
        data = at + (110 + fields[11] + 3) // 4 * 4
        if name == "TRAILER!!!":
            return files
        assert fields[5] == EPOCH, name
        if fields[1] & 0o170000 == 0o100000:
            files[name] = archive[data : data + fields[6]]
        at = data + (fields[6] + 3) // 4 * 4


def initramfs(tree: Tree | None = None, programs: Tree | None = None) -> bytes:
    return machine_initramfs(programs or alpine(), tree or modules(), KERNEL, arch="x86_64", epoch=EPOCH)


def test_drivers_come_after_what_they_need() -> None:
    files = members(initramfs())
    order = files["modules/order"].decode().split()
    assert order == [
        *("mbcache.ko", "jbd2.ko", "ext4.ko", "isofs.ko", "virtio_net.ko", "af_packet.ko"),
        *("9pnet_virtio.ko", "9p.ko", "virtio_rng.ko"),
    ]
    assert files["modules/jbd2.ko"] == b"jbd2"
    assert files["bin/busybox"] == files["tools/busybox"] == b"busybox"
    assert files["lib/ld-musl-x86_64.so.1"] == files["tools/ld"] == b"musl"
    assert initramfs() == initramfs()


def test_what_an_initramfs_lacks_is_named() -> None:
    tree = modules()
    dependencies = tree.text(f"{KERNEL.directory}/modules.dep")
    tree.write(f"{KERNEL.directory}/modules.dep", dependencies.replace("kernel/9p.ko.gz:\n", ""))
    with pytest.raises(InputError, match=r"kernel 6\.1-virt has no module 9p$"):
        initramfs(tree)
    tree = modules()
    tree.write(f"{KERNEL.directory}/kernel/9p.ko.gz", "damaged")
    with pytest.raises(InputError, match=r"kernel/9p\.ko\.gz: damaged kernel module"):
        initramfs(tree)
    with pytest.raises(InputError, match="the minirootfs lacks a program of the initramfs: bin/busybox"):
        initramfs(programs=Tree())


def test_other_scripts_are_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    version = init_version()
    assert len(version) == 16
    original = machineinit._guest
    monkeypatch.setattr(machineinit, "_guest", lambda name: original(name) + b"#" * (name == "start.sh"))
    assert init_version() != version


@pytest.mark.parametrize("name", ["init.sh", "enter.sh", "start.sh", "dhcp.sh"])
def test_the_scripts_are_shell(name: str) -> None:
    shell = need_program("sh")
    script = Path(machineinit.__file__).parent / "guest" / name
    assert subprocess.run([shell, "-n", script], check=False).returncode == 0


def test_the_settings_are_those_of_other_machines() -> None:
    """The kernel's settings of the overlay are all there."""
    root = Path(__file__).parents[1]

    def settings(path: Path) -> set[str]:
        return {line for line in path.read_text().splitlines() if line and not line.startswith("#")}

    here = settings(Path(machineinit.__file__).parent / "guest/settings.conf")
    assert settings(root / "overlay/etc/sysctl.d/imgkit.conf") <= here
