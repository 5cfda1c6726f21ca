"""Attacks of a guest's root on the host through the shares, while the machine runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from imgkit.vm import VM
from imgkit.vm.sandbox import confinement, identity, seccomp
from imgkit.vm.shares import idmap
from tests import guest as guests
from tests.conftest import need, need_program
from tests.guest import Guest
from tests.vmspecs import STYLES

pytestmark = pytest.mark.vm

STRANGER = 12345
"""Another user of this host, who has a way into the shared folders."""
ATTEMPTS = ("setuid", "setgid", "given", "block", "character", "linked", "renamed")


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Guest:
    need_program("qemu-system-x86_64")
    return guests.make(tmp_path_factory.mktemp("guest"))


@pytest.fixture
def shares() -> Iterator[dict[str, Path]]:
    """Folders that every user of this host can reach, each with a program in it."""
    top = Path(tempfile.mkdtemp(prefix="imgkit-attacks-"))
    top.chmod(0o755)
    folders = {tag: top / tag for tag in ("work", "data")}
    for folder in folders.values():
        folder.mkdir(mode=0o755)
        shutil.copyfile(need_program("id"), folder / "given")
        (folder / "given").chmod(0o755)
    yield folders
    shutil.rmtree(top)


@contextmanager
def attacked(guest: Guest, shares: Mapping[str, Path], folder: Path, **options: object) -> Iterator[tuple[VM, Seen]]:
    """Yield a machine whose guest has tried everything, and what came of it there."""
    how: dict[str, object] = {"firmware": "direct", "kernel": guest.kernel, "initrd": guests.attacking(guest, folder)}
    how |= {"memory_mib": 256, "cpus": 1, "timeout": 180, "settle": False, "command_line": "console=ttyS0", **options}
    with VM.boot(guest.disk, arch="amd64", accelerator="tcg", shares=shares, **how) as vm:  # type: ignore[arg-type]
        words = [line.split() for line in vm.console().splitlines() if line.startswith("attack ")]
        assert words[-1] == ["attack", "over"]
        yield vm, {(what, tag): int(status) for _, what, tag, status in words[:-1]}


Seen = dict[tuple[str, str], int]


def harmful(folder: Path) -> list[str]:
    """Return the files of a folder that would give rights to a user who runs or opens them."""
    found = []
    for path in folder.rglob("*"):
        status = path.lstat()
        if (not path.is_dir() and status.st_mode & 0o6000) or path.is_block_device() or path.is_char_device():
            found.append(path.name)
    return sorted(found)


def run_by_a_stranger(program: Path) -> int:
    """Return the uid that it says it has."""
    argv: list[str | Path] = [program, "-u"]
    done = subprocess.run(argv, user=STRANGER, group=STRANGER, extra_groups=[], capture_output=True, check=True)
    return int(done.stdout)


def check_nothing_came_of_it(vm: VM, seen: Seen, shares: Mapping[str, Path]) -> None:
    ipc = Path(vm.share("ipc").path)
    for tag, folder in {**shares, "ipc": ipc}.items():
        assert {seen[what, tag] for what in ATTEMPTS if (what, tag) != ("given", "ipc")} == {1}, "a clean refusal"
        assert harmful(folder) == []
        assert (seen["folder", tag], seen["still-works", tag]) == (0, 0)
        assert (folder / "below").stat().st_mode & 0o7777 == 0o1777
    if os.geteuid() == 0:
        assert {run_by_a_stranger(folder / "given") for folder in shares.values()} == {STRANGER}


@pytest.mark.parametrize("style", ["harness", "host-app"])
def test_roots_folders(guest: Guest, shares: dict[str, Path], tmp_path: Path, style: str) -> None:
    """Shown to nobody as its own: the guest may write, and what it writes is root's, without any rights."""
    need("root", identity.can_switch_user())
    with attacked(guest, shares, tmp_path, adapt=STYLES[style]) as (vm, seen):
        user = identity.choose_user(None)
        assert user is not None
        assert {Path(f"/proc/{vm.pid}").stat().st_uid} == {user.uid}
        check_nothing_came_of_it(vm, seen, shares)
        for folder in shares.values():
            assert (folder / "program").stat().st_uid == 0
        assert (vm.share("ipc").path / "program").stat().st_uid == user.uid


def test_an_owners_folder(guest: Guest, shares: dict[str, Path], tmp_path: Path) -> None:
    """QEMU is the owner of the folder to work in; what belongs to root is there as its modes say."""
    need("root", identity.can_switch_user())
    for path in (shares["work"], shares["work"] / "given"):
        os.chown(path, 4711, 4711)
    with attacked(guest, shares, tmp_path) as (vm, seen):
        assert Path(f"/proc/{vm.pid}").stat().st_uid == 4711
        check_nothing_came_of_it(vm, seen, {"work": shares["work"]})
        assert (shares["work"] / "program").stat().st_uid == 4711
        assert seen["chown", "work"] == 1
        assert {status for (_, tag), status in seen.items() if tag == "data"} == {1}
        assert [path.name for path in shares["data"].iterdir()] == ["given"]


def test_without_views_roots_folders_are_as_their_modes_say(
    guest: Guest, shares: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root of a container may not mount. QEMU runs as nobody nevertheless, and the request share works."""
    need("root", identity.can_switch_user())

    def refused(*_: object, **__: object) -> Iterator[int]:
        raise PermissionError(1, "no mounts here")

    monkeypatch.setattr(idmap, "_mapped", refused)
    with attacked(guest, shares, tmp_path) as (vm, seen):
        assert Path(f"/proc/{vm.pid}").stat().st_uid != 0
        assert {status for (_, tag), status in seen.items() if tag in shares} == {1}
        assert seen["copy", "ipc"] == 0
    assert {path.name for folder in shares.values() for path in folder.iterdir()} == {"given"}


def test_the_filter_alone_is_enough(
    guest: Guest, shares: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for every user who is not root, or cannot become another one: here with a QEMU that is root."""
    need("a kernel with filters of calls", confinement.filters_system_calls())
    monkeypatch.setattr(identity, "choose_user", lambda *_, **__: None)
    with attacked(guest, shares, tmp_path) as (vm, seen):
        assert Path(f"/proc/{vm.pid}").stat().st_uid == os.geteuid()
        check_nothing_came_of_it(vm, seen, shares)


def test_without_all_that_the_attack_works_and_is_cleaned_up_after(
    guest: Guest, shares: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the other tests see is not the guest's fault. A kernel without filters has the sweep at the end."""
    monkeypatch.setattr(identity, "choose_user", lambda *_, **__: None)
    monkeypatch.setattr(seccomp, "available", lambda _: False)
    with attacked(guest, shares, tmp_path) as (_, seen):
        assert seen["given", "work"] == seen["setuid", "data"] == seen["renamed", "data"] == 0
        assert harmful(shares["work"]) == ["given", "linked", "program", "renamed"] == harmful(shares["data"])
        if os.geteuid() == 0:
            assert run_by_a_stranger(shares["data"] / "given") in (0, STRANGER)
    assert harmful(shares["work"]) == harmful(shares["data"]) == []


def test_a_teams_folder_stays_one(guest: Guest, shares: dict[str, Path], tmp_path: Path) -> None:
    """Set-group-id, and so is what the guest makes in it, as far as that is folders."""
    need("a kernel whose filters can ask", confinement.supports_notifications())
    for folder in shares.values():
        if os.geteuid() == 0:
            os.chown(folder, 0, 4713)
        folder.chmod(0o2775)
    with attacked(guest, shares, tmp_path) as (_, seen):
        for tag, folder in shares.items():
            assert {seen[what, tag] for what in ATTEMPTS} == {1}
            assert harmful(folder) == []
            assert (folder / "deep").stat().st_mode & 0o7777 == 0o2755, "the client adds the bit of the folder above"
            assert (folder / "deep").stat().st_gid == folder.stat().st_gid


def test_read_only_shares_stay_as_they_are(guest: Guest, shares: dict[str, Path], tmp_path: Path) -> None:
    with attacked(guest, shares, tmp_path, read_only={"data"}) as (_, seen):
        assert seen["copy", "data"] == seen["given", "data"] == seen["folder", "data"] == 1
        assert seen["copy", "work"] == 0
    assert [path.name for path in shares["data"].iterdir()] == ["given"]
    assert (shares["data"] / "given").stat().st_mode & 0o7777 == 0o755
