"""A disk that is full during a build: how much is needed, how much is free, and where else to go."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from fixtures.server import Site
from imgkit.errors import HostError
from imgkit.host import room
from imgkit.image.workspace import workspace
from tests.commandline import Place, check_failure
from tests.mirrors import RECIPE, Small


def test_room_that_is_just_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "free_bytes", lambda _: 10 << 20)
    room.check_room(tmp_path, 10 << 20, "x")
    with pytest.raises(HostError) as caught:
        room.check_room(tmp_path, (10 << 20) + 1, "unpacking the packages")
    assert caught.value.message == f"{tmp_path}: only 10 MiB free, and unpacking the packages needs 11 MiB"
    assert caught.value.hint == room.MAKE_ROOM
    assert "WORK_DIR" in room.MAKE_ROOM


def test_what_is_free_is_what_this_user_may_write(tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    assert abs(room.free_bytes(tmp_path) - status.f_bavail * status.f_frsize) < 1 << 30


def test_a_disk_that_became_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "free_bytes", lambda _: 1)
    error = room.no_room_for(tmp_path, "the contents of files")
    assert error.message == f"{tmp_path}: no space left for the contents of files (1 MiB free)"
    assert error.hint == room.MAKE_ROOM


def test_a_build_says_how_much_is_free(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"^here: no space left \(\d+ MiB free\)$") as caught, workspace(tmp_path, None):
        raise OSError(errno.ENOSPC, "No space left on device", "here")
    assert caught.value.hint == room.MAKE_ROOM


@pytest.mark.slow
def test_packages_that_cannot_be_unpacked_here(here: Place, small: Small, site: Site) -> None:
    """Their sizes are in the index, so it is known before anything is unpacked."""
    record = small.packages[0].record
    assert "\nI:" in record
    size = 1 << 44
    small.index(["\n".join(f"I:{size}" if line.startswith("I:") else line for line in record.split("\n"))])
    here.recipe.write_text(RECIPE)
    words: list[str | Path] = [
        "build",
        here.recipe,
        "--mirror",
        site.url,
        "--release-key",
        small.release_key,
        "--output",
        "oci",
    ]
    ran = here.run(*words, "--out", here.out)
    message = f"free, and unpacking the packages needs {size >> 20} MiB"
    check_failure(ran, here, 5, message, hint="WORK_DIR")
