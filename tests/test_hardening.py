"""The image of recipes/core.py has no login, no way to become root and no identity. Its read-only variant boots."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from imgkit.disk.grub import kernel_arguments
from tests import rootport
from tests.conftest import need_program
from tests.files import digest
from tests.images import Builder, Image, Images, overlay_with_root, quick_kernel
from tests.rootport import RootedVM
from tests.vmspecs import writable

TIMEOUT = 300.0


class Files:
    """The finished image's root filesystem, read by e2fsprogs from the disk itself."""

    def __init__(self, image: Image, folder: Path) -> None:
        self.records: dict[str, dict[str, Any]] = dict(image.manifest["files"])
        (root,) = [part for part in image.manifest["disk"]["partitions"] if part["kind"] == "root"]
        raw = folder / "disk.raw"
        subprocess.run([need_program("qemu-img"), "convert", "-O", "raw", image.disk, raw], check=True)
        self._argv = [need_program("debugfs"), f"{raw}?offset={root['start']}", "-R"]

    def debugfs(self, command: str) -> str:
        return subprocess.run([*self._argv, command], capture_output=True, check=True, text=True).stdout

    def text(self, path: str) -> str:
        return self.debugfs(f"cat {path}")

    def matching(self, pattern: str) -> list[str]:
        return [path for path in self.records if re.search(pattern, path)]


@pytest.fixture(scope="module", params=["amd64", "arm64"])
def files(request: pytest.FixtureRequest, images: Images, tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(images[request.param], tmp_path_factory.mktemp("hardening"))


@pytest.mark.vm
def test_nobody_logs_in(files: Files) -> None:
    """No password is right, no terminal asks for one, no server lets anybody in."""
    for name in ("shadow", "shadow-"):
        entries = [line.split(":") for line in files.text(f"/etc/{name}").splitlines()]
        assert {"root", "agent"} <= {entry[0] for entry in entries}
        assert all(entry[1][:1] in ("!", "*") for entry in entries), entries
    assert all(line.split(":")[1] == "x" for line in files.text("/etc/passwd").splitlines())
    assert [line.split(":")[0] for line in files.text("/etc/passwd").splitlines() if line.split(":")[2] == "0"] == [
        "root"
    ]
    inittab = files.text("/etc/inittab")
    assert "openrc default" in inittab
    assert "getty" not in inittab
    started = [line.split(":")[3].split()[0] for line in inittab.splitlines() if line.startswith("::")]
    assert "/usr/local/lib/imgkit/ahead" in started
    for path in started:
        record = files.records[path]
        assert record["type"] == "symlink" or int(record["mode"], 8) & 0o111, f"{path} can be started"
    assert files.matching(r"/(sshd|dropbear|telnetd|doas|sudo|su)$") == ["/bin/su"], "busybox's, which is not setuid"


@pytest.mark.vm
def test_nothing_gives_privileges(files: Files) -> None:
    """No set-uid program, no file capabilities, nothing outside its own folder that the agent could change."""
    programs = {path: record for path, record in files.records.items() if record["type"] == "file"}
    assert [path for path, record in programs.items() if int(record["mode"], 8) & 0o6000] == []
    assert [path for path, record in files.records.items() if "xattrs" in record] == []
    anyones = {
        path
        for path, record in files.records.items()
        if record["type"] in ("file", "directory") and int(record["mode"], 8) & 0o002
    }
    assert anyones == {"/tmp", "/tmp/.ICE-unix", "/tmp/.X11-unix", "/var/tmp"}
    assert {files.records[path]["uid"] for path in anyones} == {0}
    assert all(files.records[path]["mode"] == "1777" for path in anyones)
    owned = {path for path, record in files.records.items() if 1000 in (record["uid"], record["gid"])}
    assert owned == {"/workspace"}
    said = files.debugfs("stat /opt/agent-runner")
    assert "Mode:  0755" in said
    assert re.search(r"User: +0 +Group: +0\b", said), "and so on the disk itself"


@pytest.mark.vm
def test_no_identity_is_baked_in(files: Files) -> None:
    assert files.matching(r"ssh_host_.*key|/etc/machine-id|/var/lib/dbus/machine-id|random-seed|seedrng/") == []
    assert files.matching(r"^/etc/resolv\.conf|authorized_keys|/\.(ash|bash)_history|/root/.+") == []
    temporary = files.matching(r"^/(var/log|var/cache|tmp|var/tmp|run)/")
    left = [path for path in temporary if files.records[path]["type"] != "directory"]
    assert left == ["/var/cache/rc/depconfig", "/var/cache/rc/deptree"], "OpenRC's, the same for every image"
    assert files.matching("^/etc/hostname$") == ["/etc/hostname"], "the search finds what is there"


# ---- root read-only ------------------------------------------------------------------------------------------------


def test_kernel_arguments_of_a_read_only_root() -> None:
    assert "rootflags=rw" in kernel_arguments("u", ["ttyS0"])
    words = kernel_arguments("u", ["ttyS0"], ["quiet"], read_only=True)
    assert "overlaytmpfs" in words
    assert "rootflags=rw" not in words


AGENTD = """
AGENTD_ENTRY="/srv/agent/index.js"
AGENTD_WORKDIR="/srv/work"
AGENTD_NODE_OPTS="--no-warnings --stack-size=900"
"""


def settle_elsewhere(overlay: Path) -> None:
    """Let agentd be somewhere else, with another folder and options for Node."""
    (overlay / "etc/conf.d/agentd").write_text(AGENTD)
    (overlay / "srv/work").mkdir(parents=True)
    (overlay / "opt/agent-runner").rename(overlay / "srv/agent")


def check_agentd_elsewhere(vm: RootedVM) -> None:
    agentd = "/proc/$(pgrep -f '^/usr/bin/node .*[i]ndex.js')"
    said = vm.root(f"cd {agentd} && tr '\\0' ' ' <cmdline && echo && readlink cwd")
    assert said.text.splitlines() == ["/usr/bin/node --no-warnings --stack-size=900 /srv/agent/index.js ", "/srv/work"]
    assert vm.root("test -e /opt/agent-runner; echo $?").text == "1\n"


@pytest.mark.vm
def test_a_read_only_root_and_an_agentd_elsewhere(builder: Builder, tmp_path: Path) -> None:
    """Everything can be written, nothing reaches the disk, and the next boot is like the first.

    /etc/conf.d/agentd of this image says that agentd is somewhere else: one boot less than an image of its own.
    """
    need_program("qemu-system-x86_64")
    overlay = overlay_with_root(tmp_path)
    settle_elsewhere(overlay)
    sets = ("read_only_root=true", f"overlay={overlay}", "size=1G", "name=ro")
    words = [word for setting in sets for word in ("--set", setting)]
    image = builder.build(tmp_path / "out", "--arch", "amd64", *words, *quick_kernel())["amd64"]
    disk = tmp_path / "disk.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", image.disk, disk], check=True)
    before = digest(disk)
    options: dict[str, Any] = {"arch": "amd64", "accelerator": "tcg", "timeout": TIMEOUT, "adapt": writable}
    # Two CPUs hang now and then under multi-threaded emulation, and this machine must power off.
    options |= {"cpus": 1, "memory_mib": 1024}
    for last in (False, True):
        with rootport.booted(disk, **options) as vm:
            assert (
                vm.run("test -e /workspace/x; echo $?; echo hello >/workspace/x; cat /workspace/x").text == "1\nhello\n"
            )
            assert vm.root("echo x >/etc/x && echo x >/usr/x && cat /etc/x").text == "x\n"
            mounts = [line.split() for line in vm.root("cat /proc/mounts").text.splitlines()]
            assert {mount[2] for mount in mounts if mount[1] == "/"} == {"overlay"}
            (lower,) = [mount for mount in mounts if mount[2] == "ext4"]
            assert "ro" in lower[3].split(",")
            assert vm.root("sync; touch /media/root-ro/x").status != 0
            check_agentd_elsewhere(vm)
            assert not last or vm.power_off()
        assert digest(disk) == before
