"""Folders of root's: how root and the user that QEMU runs as change places."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

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
    caplog.set_level("DEBUG", "imgkit.vm")
    monkeypatch.setattr(idmap, "_HOLDER", "print(-1)")
    with idmap.in_user_namespace(SOMEBODY) as user:
        assert user == SOMEBODY
    (message,) = caplog.messages
    assert message.endswith("has no user namespace of its own: no user namespace can be made")


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
