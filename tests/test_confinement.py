"""What QEMU may not do, tried by a program that is started in QEMU's place."""

from __future__ import annotations

import grp
import os
import pwd
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from imgkit.cli import hostchecks
from imgkit.errors import HostError
from imgkit.host import process
from imgkit.vm.qemu.argv import Share, VmSpec
from imgkit.vm.sandbox import confinement, identity, landlock, seccomp, supervisor
from imgkit.vm.sandbox.identity import Identity
from imgkit.vm.shares import idmap
from tests.conftest import need, need_program
from tests.files import public

TRY = """
import ctypes, os, socket, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
folder, chmod = sys.argv[1], {"x86_64": 90}.get(os.uname().machine)
os.umask(0)
def tell(name, attempt):
    try:
        result = attempt()
        print(name, "fine" if result is None or result >= 0 else ctypes.get_errno())
    except OSError as error:
        print(name, error.errno)
def opened(flags, mode, name="made"):
    return lambda: os.close(os.open(f"{folder}/{name}", flags | os.O_WRONLY, mode))
def raw(number, *arguments):
    wide = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    return lambda: libc.syscall(ctypes.c_long(number), *wide)
here = f"{folder}/file".encode()
how = (ctypes.c_uint64 * 3)(os.O_CREAT | os.O_WRONLY, 0o4755, 0)
opened(os.O_CREAT, 0o644, "file")()
descriptor = os.open(f"{folder}/file", os.O_RDONLY)
MODES = {"plain": 0o755, "sticky": 0o1777, "setuid": 0o4755, "setgid": 0o2755, "bare-setuid": 0o4000}
for name, mode in MODES.items():
    tell(f"chmod-{name}", lambda: os.chmod(f"{folder}/file", mode))
    tell(f"fchmod-{name}", lambda: os.fchmod(descriptor, mode))
    tell(f"fchmodat2-{name}", raw(452, -100, here, mode, 0))
    tell(f"open-{name}", opened(os.O_CREAT, mode, f"open-{name}"))
    tell(f"mknod-{name}", lambda: os.mknod(f"{folder}/mknod-{name}", 0o100000 | mode))
os.path.isdir(f"{folder}/below") or os.mkdir(f"{folder}/below")
below = os.open(f"{folder}/below", os.O_RDONLY)
within = os.open(folder, os.O_RDONLY)
os.path.islink(f"{folder}/way") or os.symlink("below", f"{folder}/way")
tell("folder-fchmod", lambda: os.fchmod(below, 0o2755))
tell("folder-chmod", lambda: os.chmod(f"/proc/self/fd/{below}", 0o2750))
tell("folder-chmodat", lambda: os.chmod("below", 0o2775, dir_fd=within))
tell("folder-both", lambda: os.fchmod(below, 0o6755))
tell("folder-path", lambda: os.chmod(f"{folder}/below", 0o2755))
tell("folder-link", raw(452, within, b"way", 0o2755, 0x100))
tell("folder-nothing", lambda: os.chmod("nothing", 0o2755, dir_fd=within))
tell("folder-closed", raw({"x86_64": 91}.get(os.uname().machine, 52), 999, 0o2755))
tell("folder-bad-memory", raw({"x86_64": 268}.get(os.uname().machine, 53), within, 8, 0o2755))
tell("file-chmod", lambda: os.chmod(f"/proc/self/fd/{descriptor}", 0o2755))
tell("high-bits", raw(chmod, here, 0o4755 | 1 << 40) if chmod else lambda: (_ for _ in ()).throw(OSError(1, "")))
tell("temporary", lambda: os.close(os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o4755)))
tell("mode-without-creation", opened(0, 0o4755, "file"))
tell("openat2", raw(437, -100, f"{folder}/openat2".encode(), how, 24))
tell("io-uring", raw(425, 8, ctypes.create_string_buffer(120)))
tell("fifo", lambda: os.mkfifo(f"{folder}/fifo"))
tell("block", lambda: os.mknod(f"{folder}/block", 0o060666, os.makedev(254, 0)))
tell("character", lambda: os.mknod(f"{folder}/character", 0o020666, os.makedev(1, 1)))
tell("whiteout", raw({"x86_64": 316}.get(os.uname().machine, 276), -100, here, -100, f"{folder}/gone".encode(), 4))
tell("unshare", lambda: libc.unshare(0x10000000))
SIGCHLD, THREAD, VM, SIGHAND = 17, 0x10000, 0x100, 0x800
start = {"x86_64": 56}.get(os.uname().machine, 220)
def started(make):
    pid = make()
    pid or os._exit(0)
    return os.waitpid(pid, 0)[0] if pid > 0 else pid
def thread():
    runner = threading.Thread(target=lambda: None)
    runner.start()
    runner.join()
tell("fork", lambda: started(os.fork))
tell("clone", lambda: started(raw(start, SIGCHLD, 0, 0, 0, 0)))
tell("clone-namespace", lambda: started(raw(start, SIGCHLD | 0x10000000, 0, 0, 0, 0)))
tell("clone-thread-namespace", raw(start, THREAD | VM | SIGHAND | 0x10000000, 0, 0, 0, 0))
tell("clone3", raw(435, 0, 0))
tell("execveat", raw({"x86_64": 322}.get(os.uname().machine, 281), -1, 0, 0, 0, 0))
tell("spawn", lambda: started(lambda: os.posix_spawn("/proc/self/exe", ["python", "-c", ""], {})))
tell("thread", thread)
tell("inet", lambda: socket.socket(socket.AF_INET).close())
tell("unix", lambda: socket.socket(socket.AF_UNIX).close())
tell("netlink", lambda: socket.socket(socket.AF_NETLINK).close())
tell("pair", lambda: [end.close() for end in socket.socketpair()] and None)
for name, path in (("inside", f"{folder}/file"), *(word.split("=", 1) for word in sys.argv[2:])):
    tell(f"read-{name}", lambda: open(path).close())
    tell(f"write-{name}", lambda: open(path, "r+").close())
tell("connect", lambda: socket.create_connection(("127.0.0.1", 1)).close())
print("uid", os.getuid())
"""
SPEC = VmSpec(arch="amd64", disk=None, console=Path("/nonexistent/console"))
REFUSED, ABSENT, FAMILY = "1", "38", "97"  # EPERM, ENOSYS, EAFNOSUPPORT


def attempts(spec: VmSpec, folder: Path, *names: str, user: Identity | None = None) -> dict[str, str]:
    """What became of each attempt in ``folder``: "fine", or the number of the error. ``names``: WHAT=PATH to open."""
    need("a kernel with filters of calls", confinement.filters_system_calls())
    argv: list[str | Path] = [sys.executable, "-I", "-S", "-c", TRY, folder, *names]
    with (
        confinement.confined(spec, user, [folder], anywhere=True) as prepare,
        process.start(argv, stdout=subprocess.PIPE, prepare=prepare) as child,
        prepare.supervised(),
    ):
        printed, _ = child.communicate(timeout=30)
        assert child.returncode == 0
    return dict(line.split() for line in printed.decode().splitlines())


def shared(folder: Path, **options: bool) -> VmSpec:
    return replace(SPEC, shares=(Share("work", folder, **options),))


def modes(folder: Path) -> set[int]:
    return {path.lstat().st_mode & 0o6000 for path in folder.rglob("*")}


def test_no_special_modes_come_from_a_guest(tmp_path: Path) -> None:
    seen = attempts(shared(tmp_path), tmp_path)
    for what in ("chmod", "fchmod", "open", "mknod"):
        assert seen[f"{what}-plain"] == seen[f"{what}-sticky"] == "fine"
        for mode in ("setuid", "setgid", "bare-setuid"):
            assert seen[f"{what}-{mode}"] == REFUSED, (what, mode)
    assert {seen[f"fchmodat2-{mode}"] for mode in ("setuid", "setgid")} <= {REFUSED, ABSENT}
    assert seen["high-bits"] == REFUSED, "the kernel looks at the lower half only"
    assert seen["temporary"] == REFUSED
    assert seen["mode-without-creation"] == "fine", "then the mode is not looked at"
    assert seen["openat2"] == seen["io-uring"] == ABSENT
    assert {path.name for path in tmp_path.iterdir() if path.lstat().st_mode & 0o6000} <= {"below"}


def test_folders_may_be_set_group_id_and_nothing_else(tmp_path: Path) -> None:
    """As those of teams are: the client of the guest asks for it with every folder that is made in one."""
    need("a kernel whose filters can ask", confinement.supports_notifications())
    seen = attempts(shared(tmp_path), tmp_path)
    assert seen["folder-fchmod"] == seen["folder-chmod"] == seen["folder-chmodat"] == "fine"
    assert (tmp_path / "below").stat().st_mode & 0o7777 == 0o2775
    refused = ("both", "path", "nothing", "closed", "bad-memory")
    assert {seen[f"folder-{what}"] for what in refused} == {REFUSED}
    assert seen["folder-link"] in (REFUSED, ABSENT)
    assert seen["file-chmod"] == REFUSED


def test_folders_of_others_are_not_changed_for_a_qemu_that_is_nobody(tmp_path: Path) -> None:
    """The supervisor runs as root, but does only what QEMU's user could do."""
    need("root", identity.can_switch_user())
    need("a kernel whose filters can ask", confinement.supports_notifications())
    user = identity.choose_user(None)
    assert user is not None
    folder = public(tmp_path) / "roots"
    folder.mkdir()
    folder.chmod(0o777)
    script = """if True:
        import os, sys
        own = os.mkdir(sys.argv[1] + "/own")
        for name in ("", "/own"):
            try:
                os.fchmod(os.open(sys.argv[1] + name, os.O_RDONLY), 0o2755)
                print("fine")
            except OSError as error:
                print(error.errno)
    """
    argv: list[str | Path] = [sys.executable, "-I", "-S", "-c", script, folder]
    with (
        confinement.confined(shared(folder), user, [folder], anywhere=True) as prepare,
        process.start(argv, stdout=subprocess.PIPE, prepare=prepare) as child,
        prepare.supervised(),
    ):
        assert child.communicate(timeout=30)[0].split() == [REFUSED.encode(), b"fine"]
    assert folder.stat().st_mode & 0o7777 == 0o777


def test_without_an_answer_nobody_waits_for_ever(tmp_path: Path) -> None:
    need("a kernel whose filters can ask", confinement.supports_notifications())
    script = "import os, sys, time; time.sleep(1); os.fchmod(os.open(sys.argv[1], os.O_RDONLY), 0o2755)"
    argv: list[str | Path] = [sys.executable, "-I", "-S", "-c", script, tmp_path]
    with (
        confinement.confined(shared(tmp_path), None, [tmp_path], anywhere=True) as prepare,
        process.start(argv, stderr=subprocess.PIPE, prepare=prepare) as child,
    ):
        with prepare.supervised():
            pass
        assert b"Function not implemented" in child.communicate(timeout=20)[1]


def test_where_another_filter_asks_already_this_one_refuses(tmp_path: Path) -> None:
    """Some container managers have such a filter, and a process has at most one filter with notifications."""
    need("a kernel whose filters can ask", confinement.supports_notifications())
    script = "import os, sys; os.fchmod(os.open(sys.argv[1], os.O_RDONLY), 0o2755)"
    argv: list[str | Path] = [sys.executable, "-I", "-S", "-c", script, tmp_path]
    with (
        confinement.confined(shared(tmp_path), None, [], anywhere=True) as outer,
        confinement.confined(shared(tmp_path), None, [], anywhere=True) as inner,
    ):

        def both() -> None:
            outer()
            inner()

        with (
            process.start(argv, stderr=subprocess.PIPE, prepare=both) as child,
            outer.supervised(),
            inner.supervised(),
        ):
            assert b"Operation not permitted" in child.communicate(timeout=20)[1]


def test_a_folder_of_another_group_does_not_become_its_groups(tmp_path: Path) -> None:
    """chmod(2) does this for users outside of the group; the supervisor is root, which is in every group."""
    need("root", identity.can_switch_user())
    need("a kernel whose filters can ask", confinement.supports_notifications())
    user = identity.choose_user(None)
    assert user is not None
    public(tmp_path)
    for name, group, mode in (("own", user.gid, 0o755), ("team", 4713, 0o2755), ("other", 4713, 0o755)):
        (tmp_path / name).mkdir()
        os.chown(tmp_path / name, user.uid, group)
        (tmp_path / name).chmod(mode)
    script = "import os, sys; [os.chmod(n, 0o2775, dir_fd=os.open(sys.argv[1], 0)) for n in ('own', 'team', 'other')]"
    argv: list[str | Path] = [sys.executable, "-I", "-S", "-c", script, tmp_path]
    with (
        confinement.confined(shared(tmp_path), user, [], anywhere=True) as prepare,
        process.start(argv, prepare=prepare) as child,
        prepare.supervised(),
    ):
        assert child.wait(20) == 0
    assert [(tmp_path / name).stat().st_mode & 0o7777 for name in ("own", "team", "other")] == [0o2775, 0o2775, 0o775]


def test_a_kernel_that_cannot_ask_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "available", lambda *_: False)
    seen = attempts(shared(tmp_path), tmp_path)
    assert seen["folder-fchmod"] == seen["folder-chmod"] == seen["chmod-setgid"] == REFUSED
    assert seen["chmod-plain"] == "fine"


def test_no_device_nodes_come_from_a_guest(tmp_path: Path) -> None:
    seen = attempts(shared(tmp_path), tmp_path)
    assert seen["fifo"] == "fine"
    assert seen["block"] == seen["character"] == seen["whiteout"] == seen["unshare"] == REFUSED
    assert not any(path.is_block_device() or path.is_char_device() for path in tmp_path.iterdir())


def test_without_a_filter_all_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The filter is the cause of what the tests above observe."""
    need("a kernel with filters of calls", confinement.filters_system_calls())
    monkeypatch.setattr(seccomp, "filter_program", lambda *_, **__: None)
    seen = attempts(shared(tmp_path), tmp_path)
    assert seen["chmod-setuid"] == seen["open-setgid"] == seen["mknod-bare-setuid"] == seen["temporary"] == "fine"
    assert modes(tmp_path) > {0}


def qemu_is(program: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    program.parent.mkdir()
    program.write_bytes(content)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))


def test_no_process_is_started_and_threads_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    qemu_is(tmp_path / "bin/qemu-system-x86_64", b"\x7fELF", monkeypatch)
    seen = attempts(shared(tmp_path), tmp_path)
    for what in ("fork", "clone", "clone-namespace", "clone-thread-namespace", "execveat", "spawn"):
        assert seen[what] == REFUSED, what
    assert seen["clone3"] == ABSENT
    assert seen["thread"] == "fine"


@pytest.mark.slow
def test_a_callers_arguments_and_scripts_may_start_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    qemu_is(tmp_path / "bin/qemu-system-x86_64", b"\x7fELF", monkeypatch)
    assert attempts(replace(shared(tmp_path), extra=("-S",)), tmp_path)["fork"] == "fine"
    (tmp_path / "bin/qemu-system-x86_64").write_text("#!/bin/sh\n")
    seen = attempts(shared(tmp_path), tmp_path)
    assert seen["fork"] == seen["clone"] == seen["thread"] == "fine"
    assert seen["clone-thread-namespace"] == "22"  # EINVAL
    assert seen["unshare"] == REFUSED


@pytest.mark.parametrize("network", [True, False])
def test_sockets_are_the_networks(network: bool, tmp_path: Path) -> None:
    seen = attempts(replace(shared(tmp_path), network=network), tmp_path)
    assert seen["inet"] == ("fine" if network else FAMILY)
    assert seen["unix"] == seen["netlink"] == FAMILY
    assert seen["pair"] == "fine"
    assert attempts(replace(shared(tmp_path), extra=("-S",)), tmp_path)["unix"] == "fine"


def test_files_are_the_shares(tmp_path: Path) -> None:
    need("Landlock", confinement.landlock_version())
    share, other = tmp_path / "share", tmp_path / "other"
    share.mkdir()
    other.write_text("")
    (share / "link").symlink_to(other)
    words = [f"other={other}", f"link={share}/link", "mem=/proc/self/mem", "null=/dev/null"]
    seen = attempts(shared(share), share, *words)
    assert seen["read-inside"] == seen["write-inside"] == seen["read-null"] == seen["write-null"] == "fine"
    assert seen["write-other"] == seen["write-link"] == seen["write-mem"] == "13"


def test_what_is_read_only_stays_as_it_is(tmp_path: Path) -> None:
    need("Landlock", confinement.landlock_version())
    share, scratch = tmp_path / "share", tmp_path / "scratch"
    for path in (share, scratch):
        path.mkdir()
    (share / "file").write_text("")
    seen = attempts(shared(share, read_only=True), scratch, f"share={share}/file")
    assert (seen["read-share"], seen["write-share"]) == ("fine", "13")


def test_reading_is_for_named_files_and_the_system(tmp_path: Path) -> None:
    spec = replace(shared(tmp_path / "share"), kernel=tmp_path / "kernel")
    allowed = dict(confinement.rules(spec, [tmp_path / "private"], anywhere=False))
    assert {Path("/"), Path("/etc"), Path("/home"), Path("/tmp"), Path("/var"), Path("/proc"), Path("/dev")}.isdisjoint(
        allowed
    )
    assert Path("/") in dict(confinement.rules(spec, [], anywhere=True))
    assert allowed[tmp_path / "kernel"] < allowed[tmp_path / "share"] == allowed[tmp_path / "private"]


def test_libraries_elsewhere_open_their_folders_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many users set LD_LIBRARY_PATH for other programs (conda, CUDA)."""
    need("Landlock", confinement.landlock_version())
    need_program("qemu-system-x86_64")
    for name in ("one", "other", "third"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "lib.so").write_text(f"{name}\n")
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{tmp_path}/one:relative::{tmp_path}/none;{tmp_path}/third")
    argv: list[str | Path] = [need_program("cat"), *(tmp_path / name / "lib.so" for name in ("one", "other", "third"))]
    with (
        confinement.confined(shared(tmp_path / "share"), None, []) as prepare,
        process.start(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, prepare=prepare) as child,
        prepare.supervised(),
    ):
        printed, said = child.communicate(timeout=30)
    assert printed == b"one\nthird\n"
    assert said.count(b"Permission denied") == 1


def test_nobody_has_nothing(tmp_path: Path) -> None:
    need("root", identity.can_switch_user())
    user = identity.choose_user(None)
    assert user is not None
    tmp_path.chmod(0o777)
    public(tmp_path)
    with idmap.in_user_namespace(user) as seen_as:
        assert seen_as.inside == (idmap.AGENT, idmap.AGENT)
        seen = attempts(shared(tmp_path), tmp_path, "shadow=/etc/shadow", user=seen_as)
        assert seen["uid"] == "1000", "in its own eyes"
    assert (tmp_path / "made").exists() is False
    assert (tmp_path / "file").stat().st_uid == user.uid
    assert seen["read-shadow"] == "13"
    assert seen["folder-fchmod"] == "fine"


def test_the_owner_of_the_folder_runs_qemu(tmp_path: Path) -> None:
    need("root", identity.can_switch_user())
    os.chown(tmp_path, 4711, 4711)
    assert identity.choose_user(tmp_path) == Identity(4711, 4711)
    os.chown(tmp_path, 4711, 0)
    chosen = identity.choose_user(tmp_path)
    assert chosen is not None
    assert chosen.uid == 4711
    assert chosen.gid not in (0, 4711), "root's group is not lent"
    os.chown(tmp_path, 0, 0)
    nobody = identity.choose_user(tmp_path)
    assert nobody == identity.choose_user(None)
    assert nobody is not None
    assert identity.is_nobody(nobody)
    assert not identity.is_nobody(chosen)


@pytest.mark.parametrize(
    ("gid", "name", "members", "groups"),
    [
        (4720, "team", [4711, 4720, 4721], (4720,)),
        (4720, "team", [4711, 4721], ()),
        (4720, "docker", [4711, 4720], ()),
        (0, "root", [4711, 0], ()),
        (4711, "alice", [4711], ()),
    ],
)
def test_of_the_owners_groups_the_folders_own_is_kept(
    gid: int, name: str, members: list[int], groups: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Colleagues' files in a team's folder are open to its group. Other groups, and mighty ones, are not lent."""
    need("root", identity.can_switch_user())
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: pwd.struct_passwd(("alice", "x", uid, 4711, "", "/", "/bin/sh")))
    monkeypatch.setattr(os, "getgrouplist", lambda *_: members)
    monkeypatch.setattr(grp, "getgrgid", lambda number: grp.struct_group((name, "x", number, [])))
    os.chown(tmp_path, 4711, gid)
    assert identity.choose_user(tmp_path) == Identity(4711, 4711, groups)


def test_only_the_accelerators_group_is_kept(tmp_path: Path) -> None:
    need("root", identity.can_switch_user())
    device = tmp_path / "kvm"
    device.touch()
    os.chown(device, 0, 4713)
    for mode, groups in ((0o660, (4713,)), (0o600, ()), (0o640, ())):
        device.chmod(mode)
        chosen = identity.choose_user(None, device=device)
        assert chosen is not None
        assert chosen.groups == groups


@pytest.mark.slow
def test_a_root_without_capabilities_stays_what_it_is(tmp_path: Path) -> None:
    need("root", identity.can_switch_user())
    need("setpriv", Path("/usr/bin/setpriv").exists())
    script = "from imgkit.vm.sandbox import identity; print(identity.is_root(), identity.choose_user(None))"
    argv = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-c", script]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout == "True None\n"


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["chown", "dac_override", "fowner", "setgid", "setuid", "kill"])
def test_a_root_that_lacks_one_capability_starts_qemu_as_itself(missing: str) -> None:
    """Such a root could not give files away, become the other user, or end its processes."""
    need("root", identity.can_switch_user())
    need("setpriv", Path("/usr/bin/setpriv").exists())
    script = "from imgkit.vm.sandbox import identity; print(identity.can_switch_user())"
    argv = ["setpriv", f"--bounding-set=-{missing}", f"--inh-caps=-{missing}", sys.executable, "-c", script]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.slow
def test_a_root_that_lacks_other_capabilities_starts_qemu_as_another_user() -> None:
    """This does not depend on the name of the process, which is part of the file that is read."""
    need("root", identity.can_switch_user())
    need("setpriv", Path("/usr/bin/setpriv").exists())
    script = "from pathlib import Path; Path('/proc/self/comm').write_text('a:b:c'); "
    script += "from imgkit.vm.sandbox import identity; print(identity.can_switch_user())"
    drop = "-dac_read_search,-fsetid,-setpcap,-mknod,-sys_chroot"
    argv = ["setpriv", f"--bounding-set={drop}", f"--inh-caps={drop}", sys.executable, "-c", script]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


_TRACER = "CapEff:\t0000000000080000\n"


@pytest.mark.parametrize(
    ("level", "status", "changes", "why"),
    [
        (None, "CapEff:\t0\n", False, ""),
        ("0", "CapEff:\t0\n", False, ""),
        ("1", "CapEff:\t0\n", False, ""),
        ("2", "CapEff:\t0\n", False, "kernel.yama.ptrace_scope is 2"),
        ("2", _TRACER, True, ""),
        ("3", _TRACER, True, "kernel.yama.ptrace_scope is 3"),
        ("1", "CapEff:\t0\n", True, "root lacks CAP_SYS_PTRACE here"),
        (None, _TRACER, True, ""),
    ],
)
def test_where_it_cannot_be_read_what_qemu_asks_for(
    level: str | None,
    status: str,
    changes: bool,
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``imgkit doctor`` says that no folder can be set-group-id then."""
    need("a kernel with filters of calls", confinement.filters_system_calls())
    scope, facts = tmp_path / "scope", tmp_path / "status"
    facts.write_text(status)
    if level is not None:
        scope.write_text(f"{level}\n")
    assert supervisor.obstacle(scope, facts, changes=changes) == why
    monkeypatch.setattr(supervisor, "obstacle", lambda: why)
    assert (f"set-group-id for folders: refused, as {why}" in hostchecks._confinement().detail) is bool(why)


def test_other_machines_have_no_filter() -> None:
    assert seccomp.filter_program("riscv64", ()) is None
    assert {len(seccomp.filter_program(name, (2, 10)) or b"") % 8 for name in seccomp.SYSCALL_TABLES} == {0}


@pytest.mark.parametrize(
    ("machine", "header"),
    [("x86_64", "x86_64-linux-gnu/asm/unistd_64.h"), ("aarch64", "asm-generic/unistd.h")],
)
def test_numbers_are_the_kernels(machine: str, header: str) -> None:
    """The calls that a filter is about, as the kernel's headers number them."""
    path = Path("/usr/include", header)
    need("the kernel's headers", path.exists())
    found = re.findall(r"#define __NR_(\w+) (\d+)$", path.read_text(), re.MULTILINE)
    known = {int(number): name for name, number in found}
    calls = seccomp.SYSCALL_TABLES[machine]
    changing = (*calls.modes, *calls.creates)
    assert {known[number] for number, _ in changing if number in known} == MODES[machine]
    assert (known[calls.fchmod], known[calls.seccomp], known[calls.clone]) == ("fchmod", "seccomp", "clone")
    assert {known[number] for number in calls.starts} == STARTS[machine]
    assert {known[number] for number, *_ in calls.opens} == OPENS[machine]
    assert {known[number] for number, _ in calls.nodes} == NODES[machine]
    assert (known[calls.renameat2], known[calls.socket]) == ("renameat2", "socket")
    assert {known[number] for number in calls.forbidden if number in known} == set(FORBIDDEN.split()) & {
        *known.values()
    }


MODES = {"x86_64": {"chmod", "fchmod", "fchmodat", "creat"}, "aarch64": {"fchmod", "fchmodat"}}
OPENS = {"x86_64": {"open", "openat"}, "aarch64": {"openat"}}
STARTS = {"x86_64": {"fork", "vfork", "execveat"}, "aarch64": {"execveat"}}
NODES = {"x86_64": {"mknod", "mknodat"}, "aarch64": {"mknodat"}}
FORBIDDEN = """
ptrace process_vm_readv process_vm_writev mount umount2 pivot_root chroot unshare setns open_by_handle_at
bpf perf_event_open kexec_load kexec_file_load init_module finit_module delete_module
add_key request_key keyctl swapon swapoff reboot acct syslog quotactl
open_tree move_mount fsopen fsconfig fsmount fspick pidfd_getfd mount_setattr
"""


@pytest.mark.parametrize("processes", [False, True])
@pytest.mark.parametrize("network", [False, True])
def test_both_filters_are_for_what_the_machine_needs(
    processes: bool, network: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that is used where a container's manager has a filter with notifications as well as the usual one."""
    asked: list[tuple[object, ...]] = []

    def record(machine: str, families: tuple[int, ...], *, notify: bool = False, processes: bool = False) -> None:
        asked.append((machine, tuple(families), notify, processes))

    monkeypatch.setattr(seccomp, "filter_program", record)
    monkeypatch.setattr(confinement, "filters_system_calls", lambda: True)
    monkeypatch.setattr(confinement, "supports_notifications", lambda: True)
    monkeypatch.setattr(confinement, "_starts_processes", lambda _: processes)
    with confinement.confined(replace(SPEC, network=network), None, [tmp_path]) as prepare:
        assert (prepare.plain_filter, prepare.notifying_filter, prepare.channel) == (None, None, None)
    families = seccomp.INET if network else ()
    assert asked == [(os.uname().machine, families, notify, processes) for notify in (False, True)]


@pytest.mark.parametrize(
    ("filters", "files", "message"),
    [
        (True, True, []),
        (False, True, ["this kernel confines QEMU without a seccomp filter"]),
        (True, False, ["this kernel confines QEMU without Landlock"]),
    ],
)
def test_what_the_kernel_lacks_is_logged(
    filters: bool,
    files: bool,
    message: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    need("a kernel with filters of calls", confinement.filters_system_calls())
    need("Landlock", confinement.landlock_version())
    caplog.set_level("DEBUG", "imgkit.vm")
    if not filters:
        monkeypatch.setattr(seccomp, "available", lambda _: False)
    if not files:
        monkeypatch.setattr(landlock, "version", lambda _: 1)
        assert confinement.landlock_version() == 0
    with confinement.confined(SPEC, None, [tmp_path]) as prepare:
        assert (prepare.plain_filter is not None, prepare.ruleset is not None) == (filters, files)
    assert caplog.messages == message


def test_a_kernel_that_refuses_a_rule_is_an_error_of_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("Landlock", confinement.landlock_version())
    monkeypatch.setattr(landlock, "_ADD_RULE", 100_000)
    with (
        pytest.raises(HostError, match="QEMU cannot be confined: landlock: ENOSYS"),
        confinement.confined(SPEC, None, [tmp_path]),
    ):
        pytest.fail("it is not confined")


def test_the_files_of_a_machine(tmp_path: Path) -> None:
    """QEMU may open the files that it reads and writes, and no others in their folder."""
    names = {name: tmp_path / name for name in ("kernel", "initrd", "config", "console", "private", "work", "data")}
    spec = replace(
        SPEC,
        kernel=names["kernel"],
        initrd=names["initrd"],
        config=names["config"],
        console=names["console"],
        shares=(Share("work", names["work"]), Share("data", names["data"], read_only=True)),
    )
    rules = confinement.rules(spec, [names["private"]], anywhere=False)
    rights = {path.name: right for path, right in rules if path.is_relative_to(tmp_path)}
    written = dict.fromkeys(("console", "private", "work"), landlock.WRITE)
    assert rights == {**dict.fromkeys(("kernel", "initrd", "config", "data"), landlock.READ), **written}
    assert Path("/") not in dict(rules)
    assert dict(rules)[Path("/usr")] == landlock.RUN
    assert dict(rules)[Path("/dev/null")] == landlock.DEVICE
    assert dict(rules)[Path("/etc/passwd")] == landlock.READ
    assert (Path("/"), landlock.RUN) in confinement.rules(spec, [], anywhere=True)
