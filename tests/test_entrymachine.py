"""The host's side of a machine that runs one process, against a guest that is a socket."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from imgkit.vm import entrymachine
from imgkit.vm.agent.inputs import BytesInput
from imgkit.vm.bootspec import BootSpec
from imgkit.vm.console import Stage
from imgkit.vm.entrymachine import CONTROL, ERRORS, INPUT, KILLED, OUTPUT, EntryMachine
from imgkit.vm.failures import (
    BootError,
    BootTimeoutError,
    CommandTimeoutError,
    KernelPanicError,
    QemuDiedError,
    RequestError,
)
from imgkit.vm.qemu.probe import Accelerator

PANIC = "[    1.5] Kernel panic - not syncing: VFS: Unable to mount root fs\n"
EMULATION = "[    1.3] Oops: int3: 0000 [#1] SMP NOPTI\n" + PANIC


@dataclass
class Guest:
    """The guest's ends of the ports, and what the host sees of the machine."""

    ends: dict[str, socket.socket] = field(default_factory=dict)
    ports: dict[str, socket.socket] = field(default_factory=dict)
    text: str = ""
    status: int | None = None
    killed: bool = False
    takes_input: bool = False

    def __post_init__(self) -> None:
        for name in (OUTPUT, ERRORS, CONTROL, *([INPUT] if self.takes_input else [])):
            self.ports[name], self.ends[name] = socket.socketpair()

    def say(self, port: str, data: bytes) -> None:
        self.ends[port].sendall(data)

    @property
    def started(self) -> Any:
        """What :func:`imgkit.vm.starting.started` yields."""

        def kill() -> None:
            self.killed = True

        child = SimpleNamespace(poll=lambda: self.status, kill=kill)
        console = SimpleNamespace(text=self.text, stage=Stage.KERNEL, quiet=100.0, refresh=lambda: False)
        running = SimpleNamespace(ports=self.ports, child=child, stderr_tail=lambda: "")
        return SimpleNamespace(running=running, console=console, monitor=SimpleNamespace(check=lambda: None))


@pytest.fixture
def booted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[BootSpec]]]:
    """Return a function that lets these guests be booted, one after the other; it returns what was asked for."""
    every: list[Guest] = []

    def prepare(*guests: Guest) -> list[BootSpec]:
        asked: list[BootSpec] = []
        every.extend(guests)

        @contextmanager
        def started(spec: BootSpec, _: object) -> Iterator[Any]:
            asked.append(spec)
            yield guests[len(asked) - 1].started

        monkeypatch.setattr(entrymachine, "started", started)
        monkeypatch.setattr("imgkit.vm.qemu.probe.probe", lambda *_: Accelerator("tcg", "max", ""))
        return asked

    yield prepare
    for guest in every:
        for end in (*guest.ends.values(), *guest.ports.values()):
            end.close()


def boot(timeout: float = 5, *, stop_signal: int = 15, **options: Any) -> Any:
    return EntryMachine.boot(BootSpec(None, arch="amd64"), timeout=timeout, stop_signal=stop_signal, **options)


def test_output_and_status(booted: Callable[..., list[BootSpec]]) -> None:
    """Everything that was written before the status is passed on, through whichever port it comes."""
    guest = Guest()
    asked = booted(guest)
    guest.say(CONTROL, b"started\nexi")
    guest.say(OUTPUT, b"out\xff")
    guest.say(ERRORS, b"err")
    guest.say(CONTROL, b"t 7\n")
    seen: dict[str, bytes] = {"stdout": b"", "stderr": b""}

    def write(stream: str, data: bytes) -> None:
        seen[stream] += data

    with boot() as machine:
        assert machine.follow(write) == 7
        killed_early = guest.killed
    assert (killed_early, guest.killed) == (False, True)
    assert seen == {"stdout": b"out\xff", "stderr": b"err"}
    assert (asked[0].ipc, asked[0].ports) == ("none", (OUTPUT, ERRORS, CONTROL))


def test_all_of_a_long_output_is_passed_on(booted: Callable[..., list[BootSpec]]) -> None:
    guest = Guest()
    booted(guest)
    guest.say(CONTROL, b"started\n")
    long = bytes(range(256)) * 8192

    def send() -> None:
        guest.say(OUTPUT, long)
        guest.say(CONTROL, b"exit 0\n")

    sent = threading.Thread(target=send)
    sent.start()
    pieces: list[bytes] = []
    with boot() as machine:
        assert machine.follow(lambda _, data: pieces.append(data)) == 0
    sent.join()
    assert b"".join(pieces) == long


@pytest.mark.parametrize("said", [b"exit 1000\n", b"exit -1\n", b"exit 3x\n", b"x" * 10000 + b"\n", b"exit\n"])
def test_lines_that_mean_nothing(said: bytes, booted: Callable[..., list[BootSpec]]) -> None:
    guest = Guest()
    booted(guest)
    guest.say(CONTROL, b"started\n" + said + b"exit 3\n")
    with boot() as machine:
        assert machine.follow(lambda *_: None) == 3


def test_a_process_that_does_not_start_in_time(booted: Callable[..., list[BootSpec]]) -> None:
    guest = Guest(text="imgkit: no device\n")
    booted(guest)
    with pytest.raises(BootTimeoutError) as caught, boot(0.3):
        pass
    assert caught.value.message == "the image's program was not started within 0 s"
    assert caught.value.console == "imgkit: no device"
    assert caught.value.hint == "--timeout with a larger number"


def test_a_machine_that_goes_away(booted: Callable[..., list[BootSpec]]) -> None:
    guest = Guest(status=1)
    booted(guest)
    with pytest.raises(QemuDiedError), boot():
        pass
    guest = Guest()
    booted(guest)
    guest.say(CONTROL, b"started\n")
    with boot() as machine:
        for end in guest.ends.values():
            end.close()
        with pytest.raises(BootError, match="the machine has closed its ports"):
            machine.follow(lambda *_: None)


def test_a_panic_of_the_emulation_is_tried_again(booted: Callable[..., list[BootSpec]]) -> None:
    crashed, good = Guest(text=EMULATION), Guest()
    asked = booted(crashed, good)
    good.say(CONTROL, b"started\nexit 0\n")
    with boot() as machine:
        assert machine.follow(lambda *_: None) == 0
    assert len(asked) == 2


@pytest.mark.parametrize(("text", "boots"), [(PANIC, 1), (EMULATION, 3)])
def test_a_panic_that_stays(text: str, boots: int, booted: Callable[..., list[BootSpec]]) -> None:
    asked = booted(*(Guest(text=text) for _ in range(3)))
    with pytest.raises(KernelPanicError), boot():
        pass
    assert len(asked) == boots


def interrupting(guest: Guest, said: bytes) -> Callable[[str, bytes], None]:
    """Return a function that takes output as Ctrl-C would come, and lets the guest answer the signal."""

    def write(_stream: str, data: bytes) -> None:
        if data == b"up":
            guest.say(CONTROL, said)
            raise KeyboardInterrupt

    return write


def test_an_interrupt_asks_the_process_to_end(booted: Callable[..., list[BootSpec]]) -> None:
    guest = Guest()
    booted(guest)
    guest.say(CONTROL, b"started\n")
    guest.say(OUTPUT, b"up")
    with boot(stop_signal=3) as machine:
        assert machine.follow(interrupting(guest, b"exit 5\n")) == 5
    assert guest.ends[CONTROL].recv(100) == b"signal 3\n"


def test_a_process_that_does_not_end_is_ended(
    booted: Callable[..., list[BootSpec]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entrymachine, "KILL_AFTER", 0.3)
    guest = Guest()
    booted(guest)
    guest.say(CONTROL, b"started\n")
    guest.say(OUTPUT, b"up")
    with boot() as machine:
        assert machine.follow(interrupting(guest, b"")) == KILLED
    assert guest.killed


def test_a_time_quota(booted: Callable[..., list[BootSpec]]) -> None:
    guest = Guest()
    booted(guest)
    guest.say(CONTROL, b"started\n")
    with boot() as machine, pytest.raises(RequestError) as caught:
        machine.follow(lambda *_: None, seconds=0.2)
    assert caught.value.message == "the image's program still runs after 0.2 s"
    assert caught.value.hint == "--quota time=… allows more, --quota time=none all"


def test_standard_input_is_sent_and_its_end(booted: Callable[..., list[BootSpec]]) -> None:
    guest = Guest(takes_input=True)
    asked = booted(guest)
    guest.say(CONTROL, b"started\n")
    data = bytes(range(256)) * 20_000  # more than a socket takes at once
    received = bytearray()

    def play() -> None:
        while piece := guest.ends[INPUT].recv(1 << 16):
            received.extend(piece)
        guest.say(CONTROL, b"exit 0\n")

    player = threading.Thread(target=play)
    with boot(takes_input=True) as machine:
        player.start()
        assert machine.follow(lambda *_: None, stdin=BytesInput(data)) == 0
    player.join()
    assert received == data
    assert asked[0].ports == (OUTPUT, ERRORS, CONTROL, INPUT)


def test_input_that_is_not_read_does_not_hold_the_end_up(booted: Callable[..., list[BootSpec]]) -> None:
    guest = Guest(takes_input=True)
    booted(guest)
    guest.say(CONTROL, b"started\nexit 4\n")
    with boot(takes_input=True) as machine:
        assert machine.follow(lambda *_: None, stdin=BytesInput(bytes(10 << 20))) == 4


def test_a_process_that_takes_too_long_is_asked_to_end(booted: Callable[..., list[BootSpec]]) -> None:
    guest = Guest()
    booted(guest)
    guest.say(CONTROL, b"started\n")

    def play() -> None:
        assert guest.ends[CONTROL].recv(99) == b"signal 15\n"
        guest.say(OUTPUT, b"last words")
        guest.say(CONTROL, b"exit 0\n")

    player = threading.Thread(target=play)
    player.start()
    written: list[bytes] = []
    with boot() as machine, pytest.raises(CommandTimeoutError) as caught:
        machine.follow(lambda _, data: written.append(data), limit=0.2)
    player.join()
    assert (caught.value.message, caught.value.exit_status) == ("the image's program was ended after 0.2 s", 124)
    assert written == [b"last words"]
