"""QEMU gets its files where it may not open them by itself."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imgkit.cli import hostchecks
from imgkit.disk import diskimage
from imgkit.errors import HostError, InputError, UsageError
from imgkit.vm import VM
from imgkit.vm.qemu import argv, handover
from imgkit.vm.qemu.argv import Disk, Share, VmSpec
from imgkit.vm.qemu.firmware import Firmware
from imgkit.vm.sandbox import confinement, identity, landlock
from imgkit.vm.sandbox.identity import Identity
from imgkit.vm.shares.sharedfolder import SharedFolder
from tests.conftest import need, need_program
from tests.vmspecs import writable

STRANGER = Identity(4711, 4712)


@pytest.fixture
def spec(tmp_path: Path) -> VmSpec:
    """Return a machine whose files are for this user alone."""
    names = ("disk", "kernel", "initrd", "code", "variables", "config")
    for name in names:
        (tmp_path / name).write_text(name)
        (tmp_path / name).chmod(0o600)
    (tmp_path / "private").mkdir(mode=0o700)
    disk, kernel, initrd, code, variables, config = (tmp_path / name for name in names)
    return VmSpec(
        arch="amd64",
        disk=Disk(disk, "raw", writable=True),
        console=tmp_path / "private/console",
        log=17,
        firmware="direct",
        kernel=kernel,
        initrd=initrd,
        flash=Firmware(code, variables),
        config=config,
    )


def content(path: Path | None, handed: handover.Handed) -> str:
    """Return what QEMU finds under a name, with the access that it asks for first."""
    assert path is not None
    if path.parent.name == "fdset":
        path = Path(f"/proc/self/fd/{handed.spec.sets[int(path.name)][0]}")
    return path.read_text()


def test_everything_has_a_name_that_another_user_can_open(spec: VmSpec, tmp_path: Path) -> None:
    need("root", identity.can_switch_user())
    with handover.handed(spec, tmp_path / "private", STRANGER) as handed:
        given = handed.spec
        assert given.disk is not None
        assert given.flash is not None
        pairs = {"disk": given.disk.path, "kernel": given.kernel, "initrd": given.initrd, "config": given.config}
        pairs |= {"code": given.flash.code, "variables": given.flash.variables}
        assert {name: content(path, handed) for name, path in pairs.items()} == {name: name for name in pairs}
        assert {path.parent for path in pairs.values() if path} == {Path("/dev/fdset"), Path("/proc/self/fd")}
        for path in (given.kernel, given.initrd):
            assert path is not None
            assert path.stat().st_uid == STRANGER.uid, "a copy"
        assert Path(handed.temporary).stat().st_uid == STRANGER.uid
        assert len(given.sets[int(given.disk.path.name)]) == 2, "one to read, one to write"
        words = argv.arguments(given)
        assert {str(tmp_path / name) for name in pairs}.isdisjoint(words)
        assert sum(word == "-add-fd" for word in words) == sum(map(len, given.sets))
    assert (tmp_path / "private").stat().st_uid == 0, "it stays closed"


LEFT = """
import os, signal, sys
from pathlib import Path
from imgkit.vm.qemu import handover
from imgkit.vm.qemu.argv import VmSpec
from imgkit.vm.sandbox.identity import Identity
from imgkit.vm.qemu.privatefolder import private_folder
user = Identity(4711, 4712) if os.geteuid() == 0 else None
with private_folder() as folder:
    spec = VmSpec(arch="amd64", disk=None, console=folder / "console")
    with handover.handed(spec, folder, user) as handed:
        (handed.writable[0] / "vl.123456").touch()
        print(handed.writable[0], flush=True)
        if sys.argv[1:]:
            for task in Path("/proc/self/task").iterdir():  # its reapers, as at the end of a container
                for child in (task / "children").read_text().split():
                    os.killpg(int(child), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
"""


def handed_over(*words: str, tmpdir: Path | None) -> Path:
    """Where a machine of another process had the changes of its disk."""
    environment = {name: value for name, value in os.environ.items() if name != "TMPDIR"}
    environment |= {} if tmpdir is None else {"TMPDIR": str(tmpdir)}
    argv = [sys.executable, "-c", LEFT, *words]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == (-signal.SIGKILL if words else 0), done.stderr
    return Path(done.stdout.strip())


@pytest.mark.slow
@pytest.mark.parametrize("tmpdir", [True, False])
def test_what_a_killed_process_left_goes_at_the_next_run(tmp_path: Path, tmpdir: bool) -> None:
    """Also what is another user's by then, which is in a folder that is not."""
    need("/proc", sys.platform == "linux")
    place = tmp_path if tmpdir else None
    left = handed_over("killed", tmpdir=place)
    assert left.is_relative_to(tmp_path if tmpdir else "/var/tmp")
    assert (left / "vl.123456").exists()
    assert left.parent.stat().st_uid == os.geteuid()
    again = handed_over(tmpdir=place)
    assert [path for path in (left, left.parent, again, again.parent) if path.exists()] == []


def test_a_user_of_its_own_needs_no_copies(spec: VmSpec, tmp_path: Path) -> None:
    with handover.handed(spec, tmp_path / "private", None) as handed:
        assert handed.spec.kernel == spec.kernel
        assert handed.spec.sets[int(handed.spec.console.name)] == (spec.log,)
        assert spec.log in handed.descriptors
        assert handed.explain(str(handed.spec.console)) == str(spec.console)
        assert Path(handed.temporary).is_dir()
    assert "kernel" not in os.listdir(tmp_path / "private")  # noqa: PTH208 - names


def test_what_was_looked_at_is_what_is_booted(spec: VmSpec, tmp_path: Path) -> None:
    """This holds even if the name refers to another file when QEMU starts."""
    assert spec.disk is not None
    with handover.handed(spec, tmp_path / "private", None) as handed:
        (tmp_path / "other").write_text("other")
        (tmp_path / "other").replace(spec.disk.path)
        assert handed.spec.disk is not None
        assert content(handed.spec.disk.path, handed) == "disk"
        assert handed.explain(f"no {handed.spec.disk.path}.") == f"no {spec.disk.path}."


@pytest.mark.skipif(sys.platform != "linux", reason="descriptors have names on Linux only")
def test_qemu_may_write_where_the_machine_may(spec: VmSpec, tmp_path: Path) -> None:
    assert spec.disk is not None
    machine = replace(spec, disk=replace(spec.disk, writable=False))
    with handover.handed(machine, tmp_path / "private", None) as handed:
        sets = handed.spec.sets
        assert [len(descriptors) for descriptors in sets] == [1, 1, 2, 1, 1], "disk, code, variables, config, console"
        access = [[fcntl.fcntl(each, fcntl.F_GETFL) & os.O_ACCMODE for each in descriptors] for descriptors in sets[:4]]
        assert access == [[os.O_RDONLY], [os.O_RDONLY], [os.O_RDONLY, os.O_RDWR], [os.O_RDONLY]]
        assert handed.spec.flash == Firmware(Path("/dev/fdset/1"), Path("/dev/fdset/2"))
        assert handed.descriptors == [each for descriptors in sets for each in descriptors]
        assert not any(os.get_inheritable(descriptor) for descriptor in handed.descriptors[:-1])
        os.write(sets[2][1], b"changed")
        handed.files.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(sets[0][0])
    assert (tmp_path / "variables").read_text() == "changedes"


def test_a_disk_that_is_not_one_is_refused_by_its_own_name(spec: VmSpec, tmp_path: Path) -> None:
    assert spec.disk is not None
    spec.disk.path.write_bytes(b"QFI\xfb" + bytes(508))
    machine = replace(spec, disk=Disk(spec.disk.path, "qcow2"))
    with pytest.raises(InputError, match=f"^{spec.disk.path}: "), handover.handed(machine, tmp_path / "private", None):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="descriptors have names on Linux only")
def test_a_file_that_is_gone_is_named(spec: VmSpec, tmp_path: Path) -> None:
    (tmp_path / "config").unlink()
    with (
        pytest.raises(HostError, match=f"^{tmp_path}/config: cannot be opened: No such file or directory$"),
        handover.handed(spec, tmp_path / "private", None),
    ):
        pass


def test_names_are_explained_longest_first(tmp_path: Path) -> None:
    with handover.handed(VmSpec("amd64", None, tmp_path), tmp_path, None) as handed:
        for number in range(11):
            handed.lend(Path(f"/file{number}"), number)
        assert handed.explain("no /dev/fdset/10, no /dev/fdset/1.") == "no /file10, no /file1."


@pytest.mark.parametrize("user", [Identity(4711, 4712), Identity(4711, 4712, (4714, 4713))])
@pytest.mark.parametrize("mode", [0o700, 0o070, 0o007, 0o444, 0o111, 0o555])
@pytest.mark.parametrize(("uid", "gid"), [(4711, 1), (1, 4712), (1, 4713), (4711, 4712), (1, 1)])
def test_rights_are_those_of_the_mode(user: Identity, mode: int, uid: int, gid: int) -> None:
    """The owner's digit counts for the owner alone, the group's for its members, and the last for all others."""
    status = os.stat_result((mode, 0, 0, 0, uid, gid, 0, 0, 0, 0))
    digit = mode >> 6 if uid == user.uid else mode >> 3 if gid in (user.gid, *user.groups) else mode
    for rights in (os.R_OK, os.X_OK, os.R_OK | os.X_OK):
        assert handover._may(status, user, rights) == (digit & 7 & rights == rights)


def test_a_kernel_that_everybody_may_read_is_not_copied(spec: VmSpec, tmp_path: Path) -> None:
    need("root", identity.can_switch_user())
    assert spec.kernel is not None
    spec.kernel.chmod(0o644)
    with handover.handed(spec, tmp_path / "private", STRANGER) as handed:
        assert handed.spec.kernel is not None
        assert handed.spec.kernel.samefile(spec.kernel)
        assert (tmp_path / "private/initrd").read_text() == "initrd"
        assert not (tmp_path / "private/kernel").exists()


def test_files_of_one_name_are_not_mixed_up(spec: VmSpec, tmp_path: Path) -> None:
    """A kernel and an initramfs may have the same name in two folders, and even that of a file of the machine's."""
    need("root", identity.can_switch_user())
    for name in ("kernel", "initrd"):
        (tmp_path / f"of {name}").mkdir()
        (tmp_path / f"of {name}/console").write_text(name)
        (tmp_path / f"of {name}/console").chmod(0o600)
    (tmp_path / "private/console").write_text("said")
    machine = replace(spec, kernel=tmp_path / "of kernel/console", initrd=tmp_path / "of initrd/console")
    with handover.handed(machine, tmp_path / "private", STRANGER) as handed:
        for path, text in ((handed.spec.kernel, "kernel"), (handed.spec.initrd, "initrd")):
            assert content(path, handed) == text
            assert path is not None
            assert (path.stat().st_uid, path.stat().st_gid) == (STRANGER.uid, STRANGER.gid)
    assert (tmp_path / "private/console").read_text() == "said"


@pytest.mark.slow
def test_another_user_gets_names_and_not_the_right_to_read(spec: VmSpec, tmp_path: Path) -> None:
    """QEMU opens the kernel, the shares and the folder for changes by itself, as its user."""
    need("root", identity.can_switch_user())
    (tmp_path / "share").mkdir()
    (tmp_path / "share").chmod(0o755)
    machine = replace(spec, shares=(Share("data", tmp_path / "share"), Share("seen", tmp_path, view=99)))
    with handover.handed(machine, tmp_path / "private", STRANGER) as handed:
        first, second = handed.spec.shares
        assert (second.view, 99 in handed.descriptors) == (99, True), "a view is handed on as it is"
        assert first.view is not None
        named = [first.view, *(int(Path(str(path)).name) for path in (handed.spec.kernel, handed.temporary))]
        for descriptor in named:
            assert fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_PATH
            assert descriptor in handed.descriptors
        assert [Path(f"/proc/self/fd/{descriptor}").resolve() for descriptor in named] == [
            tmp_path / "share",
            tmp_path / "private/kernel",
            handed.writable[0],
        ]


@pytest.mark.parametrize("tmpdir", [None, "", "/somewhere"])
@pytest.mark.parametrize("usable", [False, True])
def test_where_a_guests_changes_are(
    tmpdir: str | None, usable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below /var/tmp, which is seldom in memory, unless TMPDIR is set or it cannot be written to."""
    place, private = tmp_path / "var", tmp_path / "private"
    for folder in (place, private):
        folder.mkdir()
    monkeypatch.setattr(handover, "_TEMPORARY", place)
    monkeypatch.setattr("os.access", lambda path, mode: usable and (path, mode) == (place, os.W_OK | os.X_OK))
    monkeypatch.delenv("TMPDIR", raising=False)
    if tmpdir is not None:
        monkeypatch.setenv("TMPDIR", tmpdir)
    previous = os.umask(0)
    try:
        with handover.handed(VmSpec("amd64", None, tmp_path / "console"), private, None) as handed:
            (folder,) = handed.writable
            assert handed.temporary == str(folder)
            assert folder.stat().st_mode & 0o777 == 0o700
            assert folder.is_relative_to(place) == (usable and not tmpdir)
            assert (folder.parent == private) == (not usable or bool(tmpdir))
    finally:
        os.umask(previous)
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("is_pipe", [False, True])
def test_a_disk_that_is_missing_or_no_file_is_refused_before_it_is_opened(
    is_pipe: bool, spec: VmSpec, tmp_path: Path
) -> None:
    """To open a pipe would be to wait for what is written to it."""
    assert spec.disk is not None
    spec.disk.path.unlink()
    if is_pipe:
        os.mkfifo(spec.disk.path)
    with pytest.raises(InputError, match=f"^{tmp_path}/disk: "), handover.handed(spec, tmp_path / "private", None):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="descriptors have names on Linux only")
def test_a_disk_that_is_exchanged_before_it_is_opened_is_refused_by_its_own_name(
    spec: VmSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert spec.disk is not None
    disk = spec.disk.path
    real = diskimage.check

    def check(path: Path, kind: str, *, name: Path | None = None) -> None:
        real(path, kind, name=name)
        disk.unlink(missing_ok=True)
        disk.write_bytes(b"QFI\xfb" + bytes(508))

    disk.write_bytes(b"QFI\xfb" + (3).to_bytes(4, "big") + bytes(96) + (104).to_bytes(4, "big") + bytes(404))
    machine = replace(spec, disk=Disk(disk, "qcow2"))
    real(disk, "qcow2")
    monkeypatch.setattr(diskimage, "check", check)
    with (
        pytest.raises(InputError, match=f"^{disk}: not a qcow2 image"),
        handover.handed(machine, tmp_path / "private", None),
    ):
        pass


def test_a_folder_that_is_closed_to_qemus_user(spec: VmSpec, tmp_path: Path) -> None:
    need("root", identity.can_switch_user())
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    machine = replace(spec, shares=(Share("data", closed),))
    with (
        pytest.raises(HostError, match=r"closed: closed to .*4711:4712") as caught,
        handover.handed(machine, tmp_path / "private", STRANGER),
    ):
        pass
    assert caught.value.hint
    for owner, mode in (((4711, 0), 0o500), ((0, 4712), 0o050), ((0, 0), 0o005)):
        os.chown(closed, *owner)
        closed.chmod(mode)
        with handover.handed(machine, tmp_path / "private", STRANGER) as handed:
            assert handed.spec.shares[0].view in handed.descriptors


def test_what_root_puts_into_a_folder_is_its_owners(tmp_path: Path) -> None:
    need("root", identity.can_switch_user())
    os.chown(tmp_path, 4711, 4712)
    folder = SharedFolder(tmp_path)
    folder.write("deep/file", b"x", mode=0o600)
    folder.close()
    for path in (tmp_path / "deep", tmp_path / "deep/file"):
        assert (path.stat().st_uid, path.stat().st_gid) == (4711, 4712)
    os.chown(tmp_path, 0, 0)
    folder = SharedFolder(tmp_path)
    folder.write("mine", b"x")
    folder.close()
    assert (tmp_path / "mine").stat().st_uid == 0


def test_a_folder_that_was_exchanged_is_not_given_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest replaces the folder by one of root's after it was made and before it is given away."""
    need("root", identity.can_switch_user())
    (tmp_path / "roots").mkdir()
    (tmp_path / "roots/file").touch()
    os.chown(tmp_path, 4711, 4712)
    make = os.mkdir

    def exchange(name: str, mode: int = 0o777, *, dir_fd: int) -> None:
        make(name, mode, dir_fd=dir_fd)
        os.rename("deep", "away", src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        os.rename("roots", "deep", src_dir_fd=dir_fd, dst_dir_fd=dir_fd)

    monkeypatch.setattr(os, "mkdir", exchange)
    folder = SharedFolder(tmp_path)
    folder.mkdir("deep")
    folder.close()
    assert (tmp_path / "deep").stat().st_uid == 0


@pytest.mark.parametrize("names", [{"none"}, {"ipc"}])
def test_only_shares_can_be_read_only(names: set[str], tmp_path: Path) -> None:
    need_program("qemu-system-x86_64")
    with (
        pytest.raises(UsageError, match="no share that can be read-only"),
        VM.boot(None, arch="amd64", accelerator="tcg", shares={"data": tmp_path}, read_only=names),
    ):
        pass


def test_a_host_without_landlock_or_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hostchecks._confinement().name == "sandbox of QEMU"
    for version, good in ((0, False), (1, False), (2, True)):
        monkeypatch.setattr(landlock, "version", lambda _, version=version: version)
        finding = hostchecks._confinement()
        assert finding.ok == (good and confinement.filters_system_calls())
        assert not finding.required
    monkeypatch.setattr(confinement, "filters_system_calls", lambda: False)
    assert "removed afterwards" in hostchecks._confinement().detail


@pytest.mark.vm
def test_locks_of_a_disk_hold_as_long_as_its_machine(tmp_path: Path) -> None:
    """Two machines never write to one image, though QEMU opened neither; a machine that is off lets go of it."""
    need_program("qemu-system-x86_64")
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(1 << 20))
    options: dict[str, Any] = {
        "arch": "amd64",
        "accelerator": "tcg",
        "memory_mib": 64,
        "wait": False,
        "adapt": writable,
    }
    with VM.boot(disk, **options) as first:
        with (
            pytest.raises(HostError, match=f"another process using the image .{disk}.") as caught,
            VM.boot(disk, **options),
        ):
            pass
        assert caught.value.hint == "the image is in use by another program"
        first.kill()
        with VM.boot(disk, **options) as second:
            assert second.alive
