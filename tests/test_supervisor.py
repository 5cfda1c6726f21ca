"""The supervisor of the filter of system calls, call by call: this process is the one that is supervised."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from imgkit.vm.sandbox import supervisor
from imgkit.vm.sandbox.identity import Identity
from imgkit.vm.sandbox.seccomp import SYSCALL_TABLES
from imgkit.vm.sandbox.supervisor import ListenerChannel, Supervisor
from tests.conftest import need

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")

CALLS = SYSCALL_TABLES["x86_64"]
CHMOD, FCHMOD, FCHMODAT, FCHMODAT2 = 90, 91, 268, 452
HIGH = 1 << 32  # the kernel looks at the lower half of a descriptor and of a mode


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of this user with a folder, a file and a link to the folder in it."""
    (tmp_path / "below").mkdir(mode=0o755)
    (tmp_path / "file").touch(mode=0o644)
    (tmp_path / "link").symlink_to("below")
    (tmp_path / "below").chmod(0o755)
    return tmp_path


def decide(number: int, *arguments: int | bytes, user: Identity | None = None, valid: bool = True) -> int:
    """Return the decision on a call whose texts are in the memory of this process."""
    texts = [ctypes.create_string_buffer(each, 512) for each in arguments if isinstance(each, bytes)]
    addresses = iter([ctypes.addressof(text) for text in texts])
    words = tuple(next(addresses) if isinstance(each, bytes) else each for each in arguments)
    return Supervisor(CALLS, user).decide(os.getpid(), number, words, lambda: valid)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def opened(path: Path) -> int:
    return os.open(path, os.O_RDONLY)


def test_each_call_can_set_the_bit_of_a_folder(folder: Path) -> None:
    top, below = opened(folder), opened(folder / "below")
    calls: list[tuple[int, tuple[int | bytes, ...]]] = [
        (FCHMOD, (below, 0o2751)),
        (FCHMOD, (HIGH | below, HIGH | stat.S_IFDIR | 0o2752)),
        (CHMOD, (b"/proc/self/fd/%d" % below, 0o2753)),
        (FCHMODAT, (top, b"below", 0o2754)),
        (FCHMODAT2, (HIGH | top, b"below", 0o2755, 0)),
        (FCHMODAT, (-1, b"/proc/self/fd/%d" % below, 0o2756)),
        (FCHMODAT, (top, b"below", 0o3757)),
    ]
    for number, arguments in calls:
        assert decide(number, *arguments) == 0
        wanted = next(each for each in reversed(arguments) if isinstance(each, int) and each)
        assert mode(folder / "below") == wanted & 0o7777
    os.close(top)
    os.close(below)


@pytest.mark.parametrize(
    "name", [b"file", b"link", b"..", b"", b"below/", b"./below", b"/", b"none", b"x" * 256, b"/proc/self/fd/x"]
)
def test_a_name_is_that_of_a_folder_right_in_the_folder(name: bytes, folder: Path) -> None:
    top = opened(folder)
    before = mode(folder), mode(folder / "below"), mode(folder / "file")
    assert decide(FCHMODAT, top, name, 0o2700) == errno.EPERM
    assert (mode(folder), mode(folder / "below"), mode(folder / "file")) == before
    os.close(top)


def test_the_longest_name(folder: Path) -> None:
    top = opened(folder)
    (folder / ("x" * 255)).mkdir()
    assert decide(FCHMODAT, top, b"x" * 255, 0o2700) == 0
    assert mode(folder / ("x" * 255)) == 0o2700
    os.close(top)


def test_a_path_is_that_of_a_descriptor(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the process is, and what a path means to it, is not known to this one."""
    monkeypatch.chdir(folder)
    for path in (b"below", os.fsencode(folder / "below"), b"/proc/self/fd/12345678"):
        assert decide(CHMOD, path, 0o2700) == errno.EPERM
    assert mode(folder / "below") == 0o755


@pytest.mark.parametrize("bits", [0o4755, 0o6755, 0o4000])
def test_the_other_bit_is_set_for_no_folder(bits: int, folder: Path) -> None:
    below = opened(folder / "below")
    assert decide(FCHMOD, below, bits) == errno.EPERM
    assert mode(folder / "below") == 0o755
    os.close(below)


def test_what_does_not_wait_any_more_is_not_served(folder: Path) -> None:
    """The id of the thread may be another's, whose descriptors are other files."""
    below = opened(folder / "below")
    assert decide(FCHMOD, below, 0o2755, valid=False) == errno.EPERM
    assert mode(folder / "below") == 0o755
    os.close(below)


def test_what_cannot_be_looked_at_is_refused(folder: Path) -> None:
    for number, arguments in (
        (FCHMOD, (99999, 0o2755)),
        (FCHMODAT, (99999, b"below", 0o2755)),
        (FCHMODAT, (0, 8, 0o2755)),
    ):
        assert decide(number, *cast("tuple[int, ...]", arguments)) == errno.EPERM
    file = opened(folder / "file")
    for number, words in ((FCHMOD, (file, 0o2755)), (FCHMODAT, (file, b"below", 0o2755))):
        assert decide(number, *cast("tuple[int, ...]", words)) == errno.EPERM
    os.close(file)


@pytest.mark.parametrize(("cause", "number"), [(OSError(30, "read-only"), 30), (OSError("strange"), errno.EPERM)])
def test_the_call_fails_as_the_change_did(
    cause: OSError, number: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise cause

    below = opened(folder / "below")
    monkeypatch.setattr(Path, "chmod", fail)
    assert decide(FCHMOD, below, 0o2755) == number
    os.close(below)


def test_no_descriptor_is_left_open(folder: Path) -> None:
    top = opened(folder)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - only their number matters
    for name in (b"below", b"file", b"none", b".."):
        decide(FCHMODAT, top, name, 0o2755)
        decide(FCHMODAT, top, name, 0o4755)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    os.close(top)


@pytest.mark.parametrize(
    ("owner", "group", "had", "becomes"),
    [
        (4711, 4712, 0o755, 0o2770),
        (4711, 4713, 0o755, 0o2770),
        (4711, 4714, 0o755, 0o770),
        (4711, 4714, 0o2755, 0o2770),
        (4710, 4712, 0o755, None),
    ],
)
def test_only_what_qemus_user_could_do_is_done(
    owner: int, group: int, had: int, becomes: int | None, folder: Path
) -> None:
    """That is, to the user's own folders; chmod(2) clears the bit for a group that the user is not in."""
    need("root", os.geteuid() == 0)
    below = opened(folder / "below")
    os.fchown(below, owner, group)
    os.fchmod(below, had)
    decision = decide(FCHMOD, below, 0o2770, user=Identity(4711, 4712, (4713,)))
    assert decision == (errno.EPERM if becomes is None else 0)
    assert mode(folder / "below") == (had if becomes is None else becomes)
    os.close(below)


# ---- the descriptor of the notifications -----------------------------------------------------------------------------


def test_a_descriptor_that_is_sent_is_received() -> None:
    channel = ListenerChannel()
    reading, writing = os.pipe()
    channel.send(reading)
    received = channel.receive()
    assert received is not None
    os.write(writing, b"x")
    assert os.read(received, 9) == b"x"
    for descriptor in (reading, writing, received):
        os.close(descriptor)
    channel.close()
    channel.close()


def test_a_process_that_sent_none() -> None:
    """It ended before, or had no filter with notifications."""
    channel = ListenerChannel()
    assert channel.receive() is None
    channel.close()
    channel = ListenerChannel()
    channel._sender.send(b".")
    assert channel.receive() is None
    channel.close()
    assert channel.receive() is None


def eventually(true: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 60
    while not true() and time.monotonic() < deadline:
        time.sleep(0.002)
    return true()


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "imgkit-supervisor"]


def test_notifications_are_received_until_the_block_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - only their number matters
    seen: list[tuple[int, Supervisor]] = []
    watching = Supervisor(CALLS, None)

    def respond(listener: int, responsible: Supervisor) -> None:
        os.read(listener, 1)
        seen.append((listener, responsible))

    monkeypatch.setattr(supervisor, "_respond", respond)
    reading, writing = os.pipe()
    with supervisor.supervising(reading, watching):
        (thread,) = threads()
        assert thread.daemon
        for number in (1, 2):
            os.write(writing, b"x")
            assert eventually(lambda number=number: len(seen) == number)  # type: ignore[misc]
    assert seen == [(reading, watching)] * 2
    assert threads() == []
    os.close(writing)
    assert len(os.listdir("/proc/self/fd")) == before, "the listener is closed, too"  # noqa: PTH208


def test_the_end_of_the_last_process_ends_the_thread() -> None:
    reading, writing = os.pipe()
    with supervisor.supervising(reading, Supervisor(CALLS, None)):
        os.close(writing)
        assert eventually(lambda: threads() == [])
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(reading)


def test_nothing_is_supervised_without_a_listener() -> None:
    with supervisor.supervising(None, Supervisor(CALLS, None)):
        assert threads() == []


# ---- one notification (linux/seccomp.h) ------------------------------------------------------------------------------

RECEIVE, SEND, IS_VALID = 0xC0502100, 0xC0182101, 0x80082102


class Listener:
    """Stands in for the kernel's end: one notification, and the response to it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gone: set[int] = set()
        self.responses: list[tuple[int, ...]] = []
        self.asked: list[int] = []
        monkeypatch.setattr(fcntl, "ioctl", self.ioctl)

    def ioctl(self, listener: int, request: int, data: Any) -> int:
        assert listener == 5
        if request in self.gone:
            raise FileNotFoundError
        if request == RECEIVE:
            assert bytes(data) == bytes(80)
            data[:] = struct.pack("=QIIiIQ6Q", 77, 4711, 0, FCHMOD, 0xC000003E, 0, 1, 2, 3, 4, 5, 6)
        elif request == IS_VALID:
            self.asked.append(struct.unpack("=Q", data)[0])
        else:
            assert request == SEND
            self.responses.append(struct.unpack("=QqiI", data))
        return 0


class Decision(Supervisor):
    """Notes what it is asked, and gives one answer."""

    def __init__(self, answer: int | Exception) -> None:
        super().__init__(CALLS, None)
        object.__setattr__(self, "answer", answer)
        object.__setattr__(self, "asked", [])

    def decide(self, pid: int, number: int, arguments: tuple[int, ...], valid: Callable[[], bool]) -> int:
        asked = cast("Any", self)
        asked.asked.append((pid, number, arguments, valid()))
        if isinstance(asked.answer, Exception):
            raise asked.answer
        return int(asked.answer)


@pytest.mark.parametrize("answer", [0, 1, 30])
@pytest.mark.parametrize("valid", [False, True])
def test_a_notification_and_its_response(answer: int, valid: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, responsible = Listener(monkeypatch), Decision(answer)
    kernel.gone = set() if valid else {IS_VALID}
    supervisor._respond(5, responsible)
    assert cast("Any", responsible).asked == [(4711, FCHMOD, (1, 2, 3, 4, 5, 6), valid)]
    assert kernel.responses == [(77, 0, -answer, 0)]
    assert kernel.asked == ([77] if valid else [])


def test_a_fault_of_the_supervisor_is_logged_and_refuses(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Otherwise the guest would wait for ever."""
    kernel = Listener(monkeypatch)
    supervisor._respond(5, Decision(ZeroDivisionError("strange")))
    assert kernel.responses == [(77, 0, -errno.EPERM, 0)]
    assert caplog.messages == ["the supervisor of the seccomp filter failed"]


@pytest.mark.parametrize("number", [RECEIVE, SEND])
def test_a_thread_that_was_killed_meanwhile_needs_no_response(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Listener(monkeypatch)
    kernel.gone = {number}
    supervisor._respond(5, Decision(0))
    assert kernel.responses == []


class Kernel:
    """A C library whose system call gives one answer."""

    def __init__(self, answer: int) -> None:
        self.answer = answer
        self.calls: list[tuple[object, ...]] = []

    def syscall(self, *arguments: Any) -> int:
        self.calls.append(tuple(each.value if isinstance(each, ctypes.c_long) else bytes(each) for each in arguments))
        return self.answer


@pytest.mark.parametrize(("answer", "is_available"), [(0, True), (-1, False), (1, False)])
def test_whether_the_kernel_can_notify(answer: int, is_available: bool) -> None:
    """SECCOMP_GET_ACTION_AVAIL of SECCOMP_RET_USER_NOTIF."""
    kernel = Kernel(answer)
    assert supervisor.available(cast("ctypes.CDLL", kernel), CALLS) is is_available
    assert kernel.calls == [(317, 2, 0, struct.pack("=I", 0x7FC00000))]
