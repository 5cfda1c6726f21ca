"""The handle of a machine, and waiting for it. The machine is a sleeping process, and the test plays the guest."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest

from imgkit.errors import UsageError
from imgkit.vm import VM, BootError, BootSpec, Quotas, booted, power, running, waiting
from imgkit.vm.agent.callbacks import deny_permission, reject_host_tool
from imgkit.vm.agent.protocol import Heartbeat
from imgkit.vm.consolelog import ConsoleLog
from imgkit.vm.failures import AgentError, BootTimeoutError, KernelPanicError, QemuDiedError, QuotaError
from imgkit.vm.qemu.argv import Share, VmSpec
from imgkit.vm.qemu.launch import Running
from imgkit.vm.qemu.probe import Accelerator
from imgkit.vm.qemu.qmp import Qmp, QmpError
from imgkit.vm.shares.monitor import UsageMonitor
from imgkit.vm.starting import Started
from imgkit.vm.waiting import Pulse

SLEEP = "import signal, time; signal.signal(signal.SIGUSR1, lambda *_: exit(0)); print(flush=True); time.sleep(60)"


@dataclass
class FakeQmp:
    """Counts the commands. The machine is switched off by the press of this number."""

    child: subprocess.Popen[bytes]
    off_at: int = 1
    asked: list[str] = field(default_factory=list)

    def execute(self, command: str) -> None:
        self.asked.append(command)
        if len(self.asked) >= self.off_at:
            self.child.send_signal(10)  # SIGUSR1
        raise QmpError("QEMU is ending")


@dataclass
class Guest:
    """A stand-in for a machine, with the actions of a guest."""

    vm: VM
    folder: Path
    qmp: FakeQmp
    monitor: UsageMonitor

    @property
    def child(self) -> subprocess.Popen[bytes]:
        return self.qmp.child

    def say(self, text: str) -> None:
        """Write to the console."""
        with (self.folder / "console").open("a") as sink:
            sink.write(text)

    def beat(self, *, age: float = 0.0, **system: bool) -> None:
        """Write a heartbeat."""
        now = (time.time() - age) * 1000
        values = {"timestamp": now, "pid": 1, "uptime": 2, "ipcMode": "file", "ipcMounted": True, "system": system}
        partial = self.folder / "ipc" / ".partial"
        partial.write_text(json.dumps(values))
        partial.rename(self.folder / "ipc" / "heartbeat")


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    for name in ("ipc", "work", "data"):
        (tmp_path / name).mkdir()
    (tmp_path / "stderr").write_text("qemu: a last word\n")
    child = subprocess.Popen([sys.executable, "-c", SLEEP], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    shares = tuple(Share(name, tmp_path / name) for name in ("ipc", "work", "data"))
    resolved = VmSpec("amd64", None, tmp_path / "console", memory_mib=77, shares=shares)
    qmp = FakeQmp(child)
    spec = BootSpec(None, quotas=Quotas(seconds=30))
    monitor = UsageMonitor([])
    with closing(ConsoleLog(tmp_path / "console")) as log:
        started = Running(child, cast(Qmp, qmp), {}, resolved, tmp_path / "stderr")
        vm = VM(Started(spec, started, Accelerator("tcg", "max", "as requested"), log, monitor))
        yield Guest(vm, tmp_path, qmp, monitor)
        vm.close()
    child.kill()
    child.wait()
    child.stdout.close()


def later(seconds: float, action: Callable[..., object], **values: Any) -> None:
    threading.Timer(seconds, action, kwargs=values).start()


def test_what_the_handle_says(guest: Guest) -> None:
    vm = guest.vm
    assert (vm.arch, vm.firmware, vm.memory_mib, vm.accelerator.name) == ("amd64", "bios", 77, "tcg")
    assert (vm.pid, vm.alive) == (guest.child.pid, True)
    assert vm.argv[0] == "qemu-system-x86_64"
    assert (vm.seconds_to_ready, vm.seconds_to_settled, vm.heartbeat()) == (None, None, None)
    assert (vm.console(), vm.stages()) == ("", {})
    guest.say("x" * (3 << 20) + "\n[    1.000000] y\nAlpine Init 3.0\n")
    assert vm.console().endswith("Alpine Init 3.0\n"), "it is read to its end"
    assert list(vm.stages()) == ["firmware", "kernel", "initramfs"]
    assert vm.share("data").path == guest.folder / "data"
    with pytest.raises(KeyError):
        vm.share("none")
    with pytest.raises(UsageError, match="files go through shares in file mode"):
        _ = vm.serial


def test_a_console_that_grows_for_ever_is_not_read_for_ever(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(booted, "_CONSOLE_READS", 3)
    looks = iter(range(100))
    monkeypatch.setattr(guest.vm._log, "refresh", lambda: next(looks) >= 0)
    guest.vm.console()
    assert next(looks) == 3


# ---- ready and settled -----------------------------------------------------------------------------------------------


def test_ready_is_a_fresh_heartbeat(guest: Guest) -> None:
    guest.beat(age=20)
    later(0.4, guest.beat)
    beat = guest.vm.wait_ready(30)
    assert beat.pid == 1
    assert guest.vm.seconds_to_ready is not None
    assert 0.3 < guest.vm.seconds_to_ready < 25


def test_an_old_heartbeat_is_named_when_the_time_is_over(guest: Guest) -> None:
    guest.beat(age=20)
    with pytest.raises(AgentError, match=r"agentd is not ready after 0 s: its heartbeat is 20 s old"):
        guest.vm.wait_ready(0)
    assert guest.vm.seconds_to_ready is None


@pytest.mark.slow
def test_a_guest_whose_clock_is_slow_does_not_stand_still(guest: Guest) -> None:
    """A heartbeat that is followed by a newer one, which is just as old."""
    guest.beat(age=80)
    later(0.3, guest.beat, age=70)
    with pytest.raises(
        AgentError, match=r"1 s: its heartbeats arrive, but the guest's clock is 7[01] s behind the host's"
    ):
        guest.vm.wait_ready(1.2)


def a_beat(timestamp: float, *, mounted: bool = True) -> Heartbeat:
    return Heartbeat(timestamp, 1, 2.0, "file", mounted)


def test_what_an_old_heartbeat_means() -> None:
    pulse = Pulse()
    assert pulse.trouble(a_beat(100), 120, 5000) == "its heartbeat is 20 s old", "there was only one so far"
    assert pulse.trouble(a_beat(100), 130, 5010) == "its heartbeat is 30 s old"
    slow = "its heartbeats arrive, but the guest's clock is {} s behind the host's"
    assert pulse.trouble(a_beat(105), 132, 5012) == slow.format(27)
    assert pulse.trouble(a_beat(105), 161.9, 5041.9) == slow.format(57)
    assert pulse.trouble(a_beat(105), 162, 5042) == "its heartbeat is 57 s old", "no other came for half a minute"
    assert pulse.trouble(a_beat(155), 163, 5043) == "", "the clock was set"
    assert pulse.trouble(a_beat(50), 170, 5050) == slow.format(120), "the clock was set back"
    assert pulse.trouble(a_beat(60, mounted=False), 171, 5051).startswith("it runs, but the ipc share is not mounted")


def test_no_heartbeat_at_all(guest: Guest) -> None:
    begun = time.monotonic()
    with pytest.raises(BootTimeoutError, match=r"no heartbeat within 1 s: nothing was written to the console"):
        guest.vm.wait_ready(0.6)
    assert 0.5 < time.monotonic() - begun < 20


def test_settled_is_a_system_that_lacks_nothing(guest: Guest) -> None:
    guest.beat(hostname=True, network=False)
    later(0.3, guest.beat, hostname=True, network=True)
    assert guest.vm.settle(30) == ()
    assert guest.vm.seconds_to_settled is not None
    assert 0.2 < guest.vm.seconds_to_settled < 25


def test_what_never_settles_is_named(guest: Guest, caplog: pytest.LogCaptureFixture) -> None:
    assert guest.vm.settle(0) == ("heartbeat",)
    guest.beat(hostname=False, loopback=True, network=False)
    assert guest.vm.settle(0.2) == ("hostname", "network")
    assert guest.vm.seconds_to_settled is None
    assert caplog.messages == [
        f"agentd is ready, and the guest still has no {what}" for what in ("heartbeat", "hostname and no network")
    ]


# ---- failures --------------------------------------------------------------------------------------------------------

PANIC = "Kernel panic - not syncing: gone\n"
GRUB = "Welcome to GRUB!\nMinimal BASH-like line editing\n"


@pytest.mark.parametrize(("text", "message"), [(PANIC, "kernel panic: gone"), (GRUB, "GRUB ended at its prompt")])
def test_a_boot_ends_as_soon_as_the_console_shows_a_failure(guest: Guest, text: str, message: str) -> None:
    guest.say(text)
    begun = time.monotonic()
    with pytest.raises(BootError, match=message):
        guest.vm.wait_ready(60)
    assert 0.9 < time.monotonic() - begun < 30, "the rest of the message is waited for"


@pytest.mark.slow
def test_once_it_is_up_only_a_panic_ends_a_machine(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    guest.say(GRUB)
    guest.vm.console()
    time.sleep(1.1)
    guest.vm.check()
    guest.say(PANIC)
    guest.vm.console()
    time.sleep(1.1)
    with pytest.raises(KernelPanicError, match="kernel panic: gone") as caught:
        guest.vm.check()
    assert "not syncing" in caught.value.console


def test_a_running_machines_console_is_looked_at_once_in_a_while(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter(range(100))
    monkeypatch.setattr(guest.vm._log, "refresh", lambda: next(looks))
    for _ in range(5):
        guest.vm.check()
    assert next(looks) == 1
    monkeypatch.setattr(waiting, "_CONSOLE_INTERVAL", 0.0)
    guest.vm.check()
    assert next(looks) == 3


def test_a_machine_that_is_gone(guest: Guest) -> None:
    guest.vm.check()
    guest.child.kill()
    guest.child.wait()
    with pytest.raises(QemuDiedError, match=r"^QEMU was killed by SIGKILL: qemu: a last word"):
        guest.vm.check()
    assert not guest.vm.alive


def test_a_machine_that_ended_by_itself(guest: Guest) -> None:
    assert guest.vm.power_off(30)
    with pytest.raises(QemuDiedError, match=r"^QEMU ended: qemu: a last word"):
        guest.vm.settle(30)


def test_a_quota_that_was_exceeded_comes_before_the_death_that_it_caused(guest: Guest) -> None:
    guest.monitor._fail(QuotaError("too much"))
    guest.child.kill()
    guest.child.wait()
    with pytest.raises(QuotaError, match="too much"):
        guest.vm.check()


# ---- requests --------------------------------------------------------------------------------------------------------


def submitted(guest: Guest, **options: Any) -> Any:
    """Return the request as the guest finds it."""
    with guest.vm.request(command=["true"], **options):
        (path,) = (guest.folder / "ipc" / "requests").glob("*.json")
        text = path.read_text()
        path.unlink()
        return json.loads(text)


def test_a_request_has_every_share_and_starts_in_the_one_to_work_in(guest: Guest) -> None:
    request = submitted(guest)
    assert request["mounts"] == {
        "work": {"tag": "work", "guestPath": "/workspace/project"},
        "data": {"tag": "data", "guestPath": "/mnt/data"},
    }
    assert request["cwd"] == "/workspace/project"


def test_a_request_with_its_own_mounts_and_folder(guest: Guest) -> None:
    request = submitted(guest, mounts={}, env={"A": "b"}, extra={"more": 1}, auto_approve=True)
    assert (request["mounts"], "cwd" in request) == ({}, False)
    assert (request["env"], request["more"], request["autoApprove"]) == ({"A": "b"}, 1, True)
    assert submitted(guest, cwd="/tmp")["cwd"] == "/tmp"


def test_a_request_asks_for_nothing_by_default(guest: Guest) -> None:
    request = submitted(guest)
    assert request == {
        "command": ["true"],
        "cwd": "/workspace/project",
        "env": {},
        "mounts": request["mounts"],
        "autoApprove": False,
    }
    with guest.vm.request(prompt="hello", mounts={"work": {"tag": "work", "guestPath": "/w"}}):
        (path,) = (guest.folder / "ipc" / "requests").glob("*.json")
        asked = json.loads(path.read_text())
    assert (asked["prompt"], asked["cwd"], "command" in asked) == ("hello", "/w", False)


@pytest.mark.parametrize(
    ("timeout", "quota", "seconds", "hint"),
    [
        (None, None, None, "a longer timeout= of the request"),
        (5.0, None, 5.0, "a longer timeout= of the request"),
        (5.0, 5.0, 5.0, "a longer timeout= of the request"),
        (5.0, 5.1, 5.0, "a longer timeout= of the request"),
        (5.0, 4.9, 4.9, "--quota time=… (Quotas.seconds) allows more, --quota time=none all"),
        (None, 30.0, 30.0, "--quota time=… (Quotas.seconds) allows more, --quota time=none all"),
    ],
)
def test_a_request_has_the_shorter_of_two_times(
    timeout: float | None,
    quota: float | None,
    seconds: float | None,
    hint: str,
    guest: Guest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the callbacks of the caller, and a look at whether the machine still runs."""
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(running, "AgentRequest", lambda *_, **options: asked.append(options))
    callbacks: dict[str, Any] = {"on_permission": lambda _: True, "on_host_tool": lambda _: None}
    guest.vm.spec = replace(guest.vm.spec, quotas=Quotas(seconds=quota))
    guest.vm.request(command=["true"], timeout=timeout, **callbacks)
    assert asked == [
        {**callbacks, "timeout": seconds, "timeout_hint": hint, "limit": None, "stdin": None, "alive": guest.vm.check}
    ]
    guest.vm.request(command=["true"])
    assert (asked[1]["on_permission"], asked[1]["on_host_tool"]) == (deny_permission, reject_host_tool)


@pytest.mark.parametrize(
    ("command", "words"), [("ls | wc", ["/bin/sh", "-c", "ls | wc"]), (("ls", "-l"), ["ls", "-l"])]
)
def test_a_command_is_a_request_of_its_words(
    command: str | tuple[str, ...], words: list[str], guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(guest.vm, "request", lambda **options: asked.append(options) or "request")  # type: ignore[func-returns-value]
    monkeypatch.setattr(running, "collect", lambda request: f"result of {request}")
    assert str(guest.vm.run(command)) == "result of request"
    defaults = {"env": None, "cwd": None, "auto_approve": False, "timeout": 120.0, "stdin": None}
    given: dict[str, Any] = {"env": {"A": "b"}, "cwd": "/tmp", "auto_approve": True, "timeout": 7.0}
    guest.vm.run(command, **given)
    assert asked == [{"command": words, **defaults}, {"command": words, **given, "stdin": None}]
    guest.vm.run(command, input=b"abc")
    assert asked[2]["stdin"].read() == b"abc"


def test_waiting_does_not_keep_a_processor_busy(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host is looked at a few times a second, whatever is waited for."""
    pauses: list[float] = []
    sleep = time.sleep

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        sleep(0.01)

    monkeypatch.setattr(time, "sleep", pause)
    guest.qmp.off_at = 99
    guest.vm.settle(0.1)
    with pytest.raises(BootTimeoutError):
        guest.vm.wait_ready(0.1)
    assert 2 <= len(pauses) <= 22
    before = len(pauses)
    guest.vm.power_off(0.1)
    assert 1 <= len(pauses) - before <= 11
    assert min(pauses) >= 0.05


# ---- power -----------------------------------------------------------------------------------------------------------


def test_the_power_button_is_pressed_until_the_guest_hears_it(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "_PRESS_INTERVAL", 0.2)
    guest.qmp.off_at = 3
    guest.say("last words\n")
    assert guest.vm.power_off(30)
    assert guest.qmp.asked == ["system_powerdown"] * 3
    assert guest.child.wait() == 0
    assert guest.vm._log.text == "last words\n"


def test_the_power_button_is_not_pressed_all_the_time(guest: Guest) -> None:
    guest.qmp.off_at = 99
    assert not guest.vm.power_off(0.5)
    assert len(guest.qmp.asked) == 1
    assert guest.child.wait() == -9, "switched off"


@pytest.mark.parametrize(("ready", "timeout"), [(None, 60.0), (5.0, 60.0), (48.8, 146.4)])
def test_who_was_slow_to_boot_may_be_slow_to_shut_down(
    guest: Guest, ready: float | None, timeout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a run of all tests, a guest that was ready after 48.8 s was not off a minute later."""
    waited: list[float] = []

    def off(_: object, seconds: float) -> bool:
        waited.append(seconds)
        return True

    monkeypatch.setattr(power, "press_until_off", off)
    guest.vm._progress.seconds_to_ready = ready
    assert guest.vm.power_off()
    assert waited == pytest.approx([timeout])


def test_a_machine_that_is_off_has_no_button(guest: Guest) -> None:
    guest.vm.kill()
    assert guest.child.returncode == -9
    assert guest.vm.power_off(30)
    assert guest.qmp.asked == []


def test_a_closed_handle_gives_back_its_descriptors(guest: Guest) -> None:
    before = len([*Path("/dev/fd").iterdir()])
    guest.vm.close()
    assert len([*Path("/dev/fd").iterdir()]) == before - 3
