"""Folders of root's: how root and the agent change places, and what does not stay set-user-id."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkit.vm import ownership
from tests.conftest import need

IDS = st.integers(0, 2**32 - 2)


@given(IDS, IDS, IDS)
def test_the_map_exchanges_two_and_leaves_the_rest(one: int, other: int, third: int) -> None:
    extents = [tuple(map(int, line.split())) for line in ownership.exchanged(one, other).splitlines()]
    ends = [inside + count for inside, _, count in extents]
    assert [inside for inside, _, _ in extents] == [0, *ends[:-1]], "no gap, no overlap"
    assert ends[-1] == 2**32 - 1
    for number in (one, other, third, 0, 2**32 - 2):
        expected = {one: other, other: one}.get(number, number)
        (found,) = [outside + number - inside for inside, outside, n in extents if inside <= number < inside + n]
        assert found == expected


def test_the_owner_is_the_agent_in_the_view(tmp_path: Path) -> None:
    need("root, on a filesystem that knows idmapped mounts", os.geteuid() == 0)
    (tmp_path / "file").write_text("x")
    with ownership.as_agents(tmp_path) as view:
        need("idmapped mounts", view is not None)
        seen = Path(f"/proc/self/fd/{view}")
        assert (seen / "file").stat().st_uid == ownership.AGENT
        assert (seen / "file").stat().st_gid == ownership.AGENT
        (seen / "new").write_text("x")
        os.chown(seen / "new", ownership.AGENT, ownership.AGENT)
        assert (tmp_path / "new").stat().st_uid == 0
    assert not seen.exists()


def test_a_view_is_for_folders_of_roots_alone(tmp_path: Path) -> None:
    need("root", os.geteuid() == 0)
    for uid in (501, 1000, 1001):
        os.chown(tmp_path, uid, uid)
        with ownership.as_agents(tmp_path) as view:
            assert view is None


def test_no_view_without_roots_rights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with ownership.as_agents(tmp_path) as view:
        assert view is None
    assert not ownership.is_root()


def test_special_bits_of_what_changed_are_dropped(tmp_path: Path) -> None:
    folder, other = tmp_path / "work", tmp_path / "other"
    (folder / "deep").mkdir(parents=True)
    for path in (other, folder / "deep/tool", folder / "plain"):
        path.write_text("#!/bin/sh\n")
        path.chmod(0o6755)
    (folder / "link").symlink_to(other)
    (folder / "plain").chmod(0o644)
    assert ownership.drop_special_bits(folder, since=time.time() + 60) == []
    assert ownership.drop_special_bits(folder, since=time.time() - 60) == [folder / "deep/tool"]
    assert (folder / "deep/tool").stat().st_mode & 0o7777 == 0o755
    assert other.stat().st_mode & 0o7777 == 0o6755, "links are not followed"
