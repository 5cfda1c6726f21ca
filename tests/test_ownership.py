"""Folders of other owners than the agent: who may write, and how owner and agent change places."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkit.commands import run
from imgkit.errors import UsageError
from imgkit.vm import ownership
from tests.conftest import need

IDS = st.integers(0, 2**32 - 2)


@pytest.mark.parametrize(
    ("mode", "uid", "gid", "expected"),
    [
        (0o755, 1000, 1000, True),
        (0o755, 0, 0, False),
        (0o777, 0, 0, True),
        (0o775, 0, 1000, True),
        (0o077, 1000, 1000, False),  # the owner's bits count, whatever others may
        (0o707, 0, 1000, False),
        (0o776, 0, 0, False),
        (0o555, 1000, 1000, False),
    ],
)
def test_who_may_write(mode: int, uid: int, gid: int, expected: bool) -> None:
    status = os.stat_result((0o40000 | mode, 1, 1, 2, uid, gid, 0, 0, 0, 0))
    assert ownership.writable(status) is expected


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


def test_no_view_where_none_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "AGENT", tmp_path.stat().st_uid)
    with ownership.as_agents(tmp_path) as view:
        assert view is None


def test_a_folder_that_nobody_can_write_to_is_refused_before_the_boot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    tmp_path.chmod(0o555)
    with pytest.raises(UsageError, match="may not write into it") as caught:
        run._writable(tmp_path)
    assert "chmod" in str(caught.value.hint)
    tmp_path.chmod(0o777)
    assert run._writable(tmp_path) == tmp_path
    with pytest.raises(UsageError, match="no such folder"):
        run._writable(tmp_path / "none")


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
