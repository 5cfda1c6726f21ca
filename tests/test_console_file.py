"""The file of the console: a guest can neither redirect it nor fill the disk with it."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from imgkit.errors import HostError, UsageError
from imgkit.vm import VM, consolelog
from imgkit.vm.console import Stage
from imgkit.vm.consolelog import ConsoleLog
from imgkit.vm.shares import usage
from imgkit.vm.shares.monitor import UsageMonitor
from tests.conftest import need_program
from tests.vmspecs import STYLES

FIRMWARE: dict[str, Any] = {"arch": "amd64", "accelerator": "tcg", "memory_mib": 64, "wait": False}
"""A machine of nothing but firmware, which says so on the console."""


def eventually(true: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 60
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@pytest.fixture
def share(tmp_path: Path) -> Path:
    """Return a folder that guests may write to, beside a file that they may not."""
    (tmp_path / "share").mkdir()
    (tmp_path / "other").write_text("other")
    return tmp_path / "share"


def direct(share: Path) -> Path:
    return share / "console.log"


def by_a_link_to_elsewhere(share: Path) -> Path:
    """Make the link that an earlier guest may have left, and return its path."""
    (share / "console.log").symlink_to("../other")
    return share / "console.log"


def by_a_folder_that_is_elsewhere(share: Path) -> Path:
    (share / "logs").symlink_to(share.parent)
    return share / "logs/other"


def by_the_users_own_link(share: Path) -> Path:
    (share / "console.log").symlink_to(share.parent / "other")
    (share.parent / "mine").symlink_to("share/console.log")
    return share.parent / "mine"


def through_it_and_out_again(share: Path) -> Path:
    return share / "../other"


@pytest.mark.parametrize(
    "way",
    [
        direct,
        by_a_link_to_elsewhere,
        by_a_folder_that_is_elsewhere,
        by_the_users_own_link,
        through_it_and_out_again,
    ],
)
@pytest.mark.parametrize("tag", ["work", "ipc"])
def test_no_console_where_a_guest_may_write(share: Path, way: Callable[[Path], Path], tag: str) -> None:
    need_program("qemu-system-x86_64")
    with (
        pytest.raises(UsageError, match=r"a console cannot be in .*share, where the guest may write") as caught,
        VM.boot(None, shares={tag: share}, console=way(share), **FIRMWARE),
    ):
        pass
    assert caught.value.hint
    assert (share.parent / "other").read_text() == "other"


@pytest.mark.parametrize("name", ["mine", "mine/log", "none/log"])
def test_a_path_that_leads_nowhere(share: Path, name: str) -> None:
    need_program("qemu-system-x86_64")
    (share.parent / "mine").symlink_to("mine")
    with (
        pytest.raises(HostError, match=f"{name}: cannot be looked up"),
        VM.boot(None, shares={"work": share}, console=share.parent / name, **FIRMWARE),
    ):
        pass


def test_a_link_in_the_last_place_is_not_followed(share: Path) -> None:
    """A link may be put there between the check and the opening."""
    with pytest.raises(HostError, match=r"console\.log: cannot be written to and read"):
        ConsoleLog(by_a_link_to_elsewhere(share))


def fifo(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/null")


def folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(("make", "kind"), [(fifo, HostError), (device, UsageError), (folder, HostError)])
def test_only_regular_files_are_consoles(tmp_path: Path, make: Callable[[Path], None], kind: type[Exception]) -> None:
    path = tmp_path / "console"
    make(path)
    before = len(os.listdir("/dev/fd"))  # noqa: PTH208 - names
    with pytest.raises(kind, match=r"cannot be written to|no regular file"):
        ConsoleLog(path.resolve())
    assert len(os.listdir("/dev/fd")) == before  # noqa: PTH208


def test_whatever_takes_the_name_is_neither_read_nor_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consolelog, "MAX_FILE", 1000)
    path, other = tmp_path / "console", tmp_path / "other"
    other.write_text("other" * 1000)
    with closing(ConsoleLog(path)) as log:
        os.write(log.writing, b"y" * 2000)
        path.unlink()
        path.symlink_to(other)
        assert log.refresh()
        log.shorten()
        assert set(log.text) == {"y"}
    assert other.read_text() == "other" * 1000


def test_a_closed_log_touches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its descriptors may belong to other files by then, while the monitor's thread still runs."""
    monkeypatch.setattr(consolelog, "MAX_FILE", 0)
    log = ConsoleLog(tmp_path / "console")
    log.close()
    log.close()
    with (tmp_path / "other").open("wb+") as one, (tmp_path / "more").open("wb+") as more:
        for file in (one, more):
            file.write(b"x" * 10)
            file.flush()
        log.shorten()
        assert not log.refresh()
        assert os.fstat(one.fileno()).st_size == os.fstat(more.fileno()).st_size == 10


def test_only_a_machines_own_part_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it is read or shortened, 900 earlier bytes leave the machine its 1000."""
    monkeypatch.setattr(consolelog, "MAX_FILE", 1000)
    path = tmp_path / "console"
    path.write_bytes(b"e" * 900)
    with closing(ConsoleLog(path)) as log:
        os.write(log.writing, b"x" * 1000)
        log.shorten()
        assert log.refresh()
        assert log.text == "x" * 1000
        assert path.stat().st_size == 1900
        os.write(log.writing, b"y")
        log.shorten()
        assert path.stat().st_size == 900
        assert log.text == "x" * 1000 + "y"
        os.write(log.writing, b"z")
        assert log.refresh()
        assert log.text.endswith("yz"), "it goes on where it was cut"


def test_what_nobody_read_is_lost_but_for_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consolelog, "MAX_FILE", 1000)
    monkeypatch.setattr(consolelog, "KEEP", 100)
    with closing(ConsoleLog(tmp_path / "console")) as log:
        os.write(log.writing, b"x" * 1000 + b"y" * 100)
        log.shorten()
        assert log.text == "y" * 100


def test_limits() -> None:
    assert (consolelog.KEEP, consolelog.MAX_FILE) == (256 << 10, 64 << 20)


@pytest.mark.parametrize("links", [39, 40])
def test_links_are_not_followed_for_ever(tmp_path: Path, links: int) -> None:
    (tmp_path / "0").mkdir()
    for number in range(links):
        (tmp_path / str(number + 1)).symlink_to(str(number))
    path = tmp_path / str(links) / "console"
    if links == 40:
        with pytest.raises(OSError, match="Too many levels of symbolic links"):
            list(consolelog.folders_on_the_way(path))
    else:
        assert tmp_path / "0" in set(consolelog.folders_on_the_way(path))


def test_a_console_that_nobody_reads_stays_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consolelog, "MAX_FILE", 1000)
    monkeypatch.setattr(usage, "INTERVAL", 0.02)
    path = tmp_path / "console"
    path.write_text("earlier\n")
    with closing(ConsoleLog(path)) as log:
        looking = UsageMonitor([])
        with looking.running(lambda: None, lambda: None, log.shorten):
            for turn in range(3):
                os.write(log.writing, b"%d" % turn * 2000)
                assert eventually(lambda: path.stat().st_size == len("earlier\n"))
        looking.check()
        assert log.text.endswith("2"), "what was cut away was read before"
    assert path.read_text() == "earlier\n"


def test_a_mebibyte_is_read_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "console"
    with closing(ConsoleLog(path)) as log:
        assert log.refresh() is False
        assert log.text == ""
        path.write_bytes(b"x" * (1 << 20) + b"y")
        assert [log.refresh() for _ in range(3)] == [True, True, False]
        assert log.text == "x" * ((256 << 10) - 1) + "y"


def test_stages_keep_the_time_at_which_they_showed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    path = tmp_path / "console"
    with closing(ConsoleLog(path)) as log:
        assert (log.stage, log.times, log.quiet) == (Stage.NOTHING, {}, 0.0)
        for now[0], text in (
            (101.5, "x\n"),
            (103.0, "y\n"),
            (104.0, "[    1.000000] k\nAlpine Init 3\n"),
            (109.0, "z"),
        ):
            with path.open("a") as sink:
                sink.write(text)
            assert log.refresh()
        assert log.times == {Stage.FIRMWARE: 1.5, Stage.KERNEL: 4.0, Stage.INITRAMFS: 4.0}
        assert log.stage == Stage.INITRAMFS
        now[0] = 111.0
        assert not log.refresh()
        assert log.quiet == 2.0
    assert log.text.endswith("z")


def test_a_file_that_is_cut_is_appended_to_from_then_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A QEMU without append mode has switched it off, and would leave a hole of the size of what was cut."""
    monkeypatch.setattr(consolelog, "MAX_FILE", 10)
    path = tmp_path / "console"
    path.write_text("earlier\n")
    with closing(ConsoleLog(path)) as log:
        assert fcntl.fcntl(log.writing, fcntl.F_GETFL) & (os.O_ACCMODE | os.O_APPEND) == os.O_WRONLY | os.O_APPEND
        fcntl.fcntl(log.writing, fcntl.F_SETFL, os.O_NONBLOCK)
        os.lseek(log.writing, 8, os.SEEK_SET)
        os.write(log.writing, b"x" * 11)
        log.shorten()
        assert fcntl.fcntl(log.writing, fcntl.F_GETFL) & (os.O_APPEND | os.O_NONBLOCK) == os.O_APPEND | os.O_NONBLOCK
        os.write(log.writing, b"y")
        assert path.read_text() == "earlier\ny"
        assert log.refresh()
        assert log.text == "x" * 11 + "y"


def test_a_new_file_has_the_mode_that_the_user_gives_to_files(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        with closing(ConsoleLog(tmp_path / "console")):
            assert (tmp_path / "console").stat().st_mode & 0o7777 == 0o666
    finally:
        os.umask(previous)


def test_a_file_that_is_exchanged_while_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = tmp_path / "console", os.open

    def exchange(name: str | Path, flags: int, *rest: int) -> int:
        descriptor = real(name, flags, *rest)
        if flags & os.O_CREAT:
            path.unlink()
            os.close(real(path, os.O_CREAT | os.O_WRONLY))
        return descriptor

    monkeypatch.setattr(os, "open", exchange)
    before = len(os.listdir("/dev/fd"))  # noqa: PTH208 - names
    with pytest.raises(HostError, match=r"console: was exchanged while it was opened"):
        ConsoleLog(path)
    assert len(os.listdir("/dev/fd")) == before  # noqa: PTH208


@pytest.mark.vm
@pytest.mark.parametrize("style", ["harness", "host-app"])
def test_a_machines_console_that_nobody_reads_stays_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, style: str
) -> None:
    need_program("qemu-system-x86_64")
    monkeypatch.setattr(consolelog, "MAX_FILE", 20)
    monkeypatch.setattr(usage, "INTERVAL", 0.02)
    console = tmp_path / "console"
    console.write_text("earlier\n")
    with VM.boot(None, adapt=STYLES[style], console=console, **FIRMWARE) as vm:
        assert eventually(lambda: "SeaBIOS" in vm._log.text), "read by the watcher"
        assert eventually(lambda: console.stat().st_size <= 20 + len("earlier\n"))
    assert console.read_text().startswith("earlier\n") == (style == "harness")


@pytest.mark.vm
@pytest.mark.parametrize("style", ["harness", "host-app"])
def test_a_machines_console_is_the_file_that_was_opened(tmp_path: Path, style: str) -> None:
    """The console stays the same file, even if its name is a link by the end of the boot."""
    need_program("qemu-system-x86_64")
    console, other = tmp_path / "console", tmp_path / "other"
    other.write_text("other")
    with VM.boot(None, adapt=STYLES[style], console=console, **FIRMWARE) as vm:
        console.rename(tmp_path / "moved")
        console.symlink_to(other)
        assert eventually(lambda: "SeaBIOS" in vm.console())
    assert "SeaBIOS" in (tmp_path / "moved").read_text()
    assert other.read_text() == "other"
