"""Folders of root's: how root and the user that QEMU runs as change places."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkit.host import process
from imgkit.vm.sandbox import identity
from imgkit.vm.sandbox.confinement import Confinement
from imgkit.vm.sandbox.identity import Identity
from imgkit.vm.shares import idmap
from tests.conftest import need

IDS = st.integers(0, 2**32 - 2)
SOMEBODY = Identity(4711, 4712)


@pytest.fixture
def nobody() -> Iterator[Identity]:
    """Return the user that root's QEMU runs as, without a folder to work in."""
    need("root", identity.can_switch_user())
    user = identity.choose_user(None)
    assert user is not None
    with idmap.in_user_namespace(user) as alone:
        need("user namespaces", alone.namespace is not None)
        yield alone


@given(IDS, IDS, IDS)
def test_the_map_exchanges_two_and_leaves_the_rest(one: int, other: int, third: int) -> None:
    extents = [tuple(map(int, line.split())) for line in idmap.swapped_ids(one, other).splitlines()]
    ends = [inside + count for inside, _, count in extents]
    assert [inside for inside, _, _ in extents] == [0, *ends[:-1]], "no gap, no overlap"
    assert ends[-1] == 2**32 - 1
    for number in (one, other, third, 0, 2**32 - 2):
        expected = {one: other, other: one}.get(number, number)
        (found,) = [outside + number - inside for inside, outside, n in extents if inside <= number < inside + n]
        assert found == expected


def test_root_is_nobody_in_the_view(tmp_path: Path, nobody: Identity) -> None:
    (tmp_path / "file").write_text("x")
    with idmap.idmapped_view(tmp_path, nobody) as view:
        need("idmapped mounts", view is not None)
        seen = Path(f"/proc/self/fd/{view}")
        assert (seen / "file").stat().st_uid == nobody.uid
        assert (seen / "file").stat().st_gid == nobody.gid
        (seen / "new").write_text("x")
        os.chown(seen / "new", nobody.uid, nobody.gid)
        assert (tmp_path / "new").stat().st_uid == 0
    assert not seen.exists()


def test_a_view_that_cannot_be_made_is_missing_and_the_reason_is_logged(
    tmp_path: Path, nobody: Identity, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The kernel says what is wrong, here that there is no such system call."""
    caplog.set_level("DEBUG", "imgkit.vm")
    monkeypatch.setattr(idmap, "_OPEN_TREE", 100_000)
    with idmap.idmapped_view(tmp_path, nobody) as view:
        assert view is None
    assert caplog.messages == [f"{tmp_path}: its owner cannot be mapped: [Errno 38] Function not implemented"]


def test_without_namespaces_the_user_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the process that should make one says is nobody's business."""
    caplog.set_level("DEBUG", "imgkit.vm")
    monkeypatch.setattr(idmap, "_HOLDER", "print(-1)")
    asked: list[dict[str, Any]] = []
    real = process.start

    def start(argv: list[str | Path], **options: Any) -> Any:
        asked.append(options)
        return real(argv, **options)

    monkeypatch.setattr(process, "start", start)
    with idmap.in_user_namespace(SOMEBODY) as user:
        assert user == SOMEBODY
    assert asked == [{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}]
    (message,) = caplog.messages
    assert message.endswith("has no user namespace of its own: no user namespace can be made")


def test_the_process_that_makes_a_namespace_lives_until_it_is_open(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It waits for the end of a pipe. Here it makes no namespace, so that the map cannot be written."""
    need("/proc", sys.platform == "linux")
    caplog.set_level("DEBUG", "imgkit.vm")
    waits = "import os, stat, sys; print(int(not stat.S_ISFIFO(os.fstat(0).st_mode)), flush=True); sys.stdin.read()"
    monkeypatch.setattr(idmap, "_HOLDER", waits)
    with idmap.in_user_namespace(SOMEBODY) as user:
        assert user == SOMEBODY
    (message,) = caplog.messages
    assert message.endswith("has no user namespace of its own: [Errno 1] Operation not permitted")


def test_which_ids_change_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's and the agent's in the namespace, root's and nobody's in a view; the group is that of the folder."""
    asked: list[tuple[object, ...]] = []

    @contextmanager
    def namespace(*ids: tuple[int, int]) -> Iterator[int]:
        asked.append(ids)
        yield 7

    @contextmanager
    def mapped(folder: Path, number: int, *, read_only: bool) -> Iterator[int]:
        asked.append((folder, number, read_only))
        yield 8

    status = os.stat_result((0o40755, 0, 0, 2, 0, 44, 0, 0, 0, 0))
    monkeypatch.setattr(idmap, "_namespace", namespace)
    monkeypatch.setattr(idmap, "_mapped", mapped)
    monkeypatch.setattr(idmap, "can_switch_user", lambda: True)
    monkeypatch.setattr(idmap, "is_nobody", lambda user: user.uid == 65534)
    with idmap.in_user_namespace(SOMEBODY) as user:
        assert user == replace(SOMEBODY, namespace=7, inside=(4711, 4712))
    with idmap.in_user_namespace(Identity(65534, 65533)) as user:
        assert user == Identity(65534, 65533, (), 7, (1000, 1000))
    assert asked == [((4711, 4711), (4712, 4712)), ((65534, 1000), (65533, 1000))]
    asked.clear()
    monkeypatch.setattr(Path, "stat", lambda _: status)
    for read_only in (False, True):
        with idmap.idmapped_view(tmp_path, user, read_only=read_only) as view:
            assert view == 8
    with idmap.idmapped_view(tmp_path, user):
        pass
    ids = ((0, 65534), (44, 65533))
    assert asked == [ids, (tmp_path, 7, False), ids, (tmp_path, 7, True), ids, (tmp_path, 7, False)]


class Kernel:
    """A C library that records the system calls, and answers with a descriptor or with an error."""

    def __init__(self, *answers: int) -> None:
        self.answers = list(answers)
        self.calls: list[tuple[object, ...]] = []

    def syscall(self, *arguments: Any) -> int:
        plain = (each.value if isinstance(each, ctypes.c_long) else each for each in arguments)
        self.calls.append(tuple(plain))
        return self.answers.pop(0)


@pytest.mark.parametrize(("read_only", "attributes"), [(False, 0x100006), (True, 0x100007)])
def test_an_idmapped_mount_in_numbers_of_the_kernels(
    read_only: bool, attributes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """open_tree(2) with OPEN_TREE_CLONE and O_CLOEXEC; mount_setattr(2) with the id map, nosuid and nodev."""
    need("Linux", sys.platform == "linux")
    descriptor = os.open(tmp_path, os.O_RDONLY)
    kernel = Kernel(descriptor, 0)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, use_errno: kernel if use_errno else None)
    with idmap._mapped(tmp_path, 9, read_only=read_only) as tree:
        assert tree == descriptor
        os.fstat(tree)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    packed = struct.pack("=QQQQ", attributes, 0, 0, 9)
    assert kernel.calls == [
        (428, -100, os.fsencode(tmp_path), 1 | os.O_CLOEXEC),
        (442, descriptor, b"", 0x1000, packed, 32),
    ]


def test_a_refused_mount_is_closed_and_its_reason_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("Linux", sys.platform == "linux")
    descriptor = os.open(tmp_path, os.O_RDONLY)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Kernel(descriptor, -1))
    monkeypatch.setattr(ctypes, "get_errno", lambda: 22)
    with pytest.raises(OSError, match=r"\[Errno 22\] Invalid argument"), idmap._mapped(tmp_path, 9, read_only=False):
        pytest.fail("it is no mount")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


@pytest.mark.parametrize(
    ("first", "second", "text"),
    [
        (0, 65534, "0 65534 1\n1 1 65533\n65534 0 1\n65535 65535 4294901760\n"),
        (1000, 1001, "0 0 1000\n1000 1001 1\n1001 1000 1\n1002 1002 4294966293\n"),
        (5, 5, "0 0 4294967295\n"),
        (0, 4294967294, "0 4294967294 1\n1 1 4294967293\n4294967294 0 1\n"),
    ],
)
def test_maps_as_the_kernel_reads_them(first: int, second: int, text: str) -> None:
    assert idmap.swapped_ids(first, second) == idmap.swapped_ids(second, first) == text


def test_namespaces_and_views_leave_no_descriptor_open(tmp_path: Path, nobody: Identity) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - only their number matters
    with idmap.in_user_namespace(SOMEBODY), idmap.idmapped_view(tmp_path, nobody) as view:
        need("idmapped mounts", view is not None)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_nobody_is_the_agent_in_its_namespace(nobody: Identity) -> None:
    assert nobody.inside == (1000, 1000)


def test_a_read_only_view_is_read_only_for_root_too(tmp_path: Path, nobody: Identity) -> None:
    with idmap.idmapped_view(tmp_path, nobody, read_only=True) as view:
        need("idmapped mounts", view is not None)
        with pytest.raises(OSError, match="Read-only file system"):
            Path(f"/proc/self/fd/{view}/new").write_text("x")


def test_a_view_is_for_folders_of_roots_alone(tmp_path: Path, nobody: Identity) -> None:
    for uid in (501, 1000, 1001):
        os.chown(tmp_path, uid, uid)
        with idmap.idmapped_view(tmp_path, nobody) as view:
            assert view is None


def test_a_view_is_for_nobody_alone(tmp_path: Path, nobody: Identity) -> None:
    """Somebody could use QEMU's descriptors where there is no namespace, and has no business with root's folders."""
    with idmap.in_user_namespace(SOMEBODY) as alone:
        assert alone.inside == (SOMEBODY.uid, SOMEBODY.gid)
        for user in (alone, SOMEBODY, replace(nobody, namespace=None)):
            with idmap.idmapped_view(tmp_path, user) as view:
                assert view is None


def test_no_view_without_roots_rights(tmp_path: Path, nobody: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with idmap.idmapped_view(tmp_path, nobody) as view:
        assert view is None
    assert not identity.is_root()


PROCESS = "import sys, time; secret = 'x'; print(flush=True); time.sleep(60)"
LOOK = """
import os, sys
for name in ("mem", "fd/0", "environ", "cwd/"):
    try:
        os.close(os.open(f"/proc/{sys.argv[1]}/{name}", os.O_RDONLY))
        print("open")
    except PermissionError:
        print("closed")
"""


@pytest.mark.parametrize(("alone", "expected"), [(True, {"closed"}), (False, {"open"})])
def test_other_processes_of_that_user_cannot_look_into_it(alone: bool, expected: set[str]) -> None:
    """So the owner of the folder does not get at what root gave to QEMU; without a namespace he would."""
    need("root", identity.can_switch_user())
    with idmap.in_user_namespace(SOMEBODY) if alone else nullcontext(SOMEBODY) as user:
        confinement = Confinement(user, None, None)
        argv = [sys.executable, "-I", "-S", "-c", PROCESS]
        with process.start(argv, stdout=subprocess.PIPE, cwd=Path("/"), prepare=confinement) as child:
            assert child.stdout is not None
            child.stdout.readline()
            look = [sys.executable, "-I", "-S", "-c", LOOK, str(child.pid)]
            done = subprocess.run(look, user=4711, group=4712, extra_groups=[], stdout=subprocess.PIPE, text=True)
    assert set(done.stdout.split()) == expected
