"""Terminals on real machines: whose they are, what runs on them, and that nobody else in the guest gets at them."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from imgkit.errors import GuestError, UsageError
from imgkit.vm import VM, BootSpec
from imgkit.vm.sessions.guestsession import GuestSession, SessionEnd
from tests import rootport
from tests.conftest import need_program
from tests.images import ROOT, Image
from tests.ptys import UserTerminal
from tests.rootport import RootedVM

pytestmark = pytest.mark.vm

TIMEOUT = 240.0
PATIENCE = 90.0
PROMPT = re.compile(rb"sandbox:[^\r\n]*[$#] $")


@pytest.fixture(scope="module")
def vm(image: Image) -> Iterator[RootedVM]:
    """Yield a machine on which terminals can be opened."""
    options: dict[str, Any] = {
        "accelerator": "tcg",
        "cpus": 1,
        "memory_mib": 1024,
        "timeout": TIMEOUT,
        "terminals": True,
    }
    with rootport.booted(image.disk, arch="amd64", **options) as vm:
        yield vm
        vm.kill()


def until(session: GuestSession, pattern: bytes | re.Pattern[bytes]) -> bytes:
    """Read what the session shows until it matches."""
    wanted = pattern if isinstance(pattern, re.Pattern) else re.compile(re.escape(pattern))
    shown, deadline = b"", time.monotonic() + PATIENCE
    while not wanted.search(shown):
        assert time.monotonic() < deadline, f"{wanted.pattern!r} is not in {shown!r}"
        shown += session.read(1.0)
    return shown


def ask(session: GuestSession, line: str) -> str:
    """Type a command on a terminal without echo and with an empty prompt, and return its output."""
    session.write(f"{line}; echo END''MARK\n".encode())
    return until(session, b"ENDMARK\r\n").decode().replace("\r\n", "\n").removesuffix("ENDMARK\n")


def plain(session: GuestSession) -> None:
    """Wait for the shell, and let it neither echo nor show a prompt."""
    until(session, PROMPT)
    session.write(b"bind 'set enable-bracketed-paste off'; stty -echo; PS1=; echo READY''NOW\n")
    until(session, b"READYNOW\r\n")
    time.sleep(0.5)
    session.take()


# ---- what a terminal is --------------------------------------------------------------------------------------------


def test_a_shell_of_the_agents_user(vm: RootedVM) -> None:
    with vm.terminal(columns=101, rows=33, env={"TERM": "xterm"}) as session:
        plain(session)
        assert ask(session, "id -un; id -G; pwd; stty size; tty") == "agent\n1000\n/workspace\n33 101\n/dev/hvc0\n"
        assert ask(session, "grep -E '^(NoNewPrivs|CapEff|CapPrm|CapBnd)' /proc/self/status | head -1") == (
            "CapPrm:\t0000000000000000\n"
        )
        assert "NoNewPrivs:\t1\n" in ask(session, "cat /proc/self/status")
        assert " iutf8 " in ask(session, "stty -a").replace("\n", " ")
        environment = dict(line.partition("=")[::2] for line in ask(session, "env").splitlines())
        assert environment["TERM"] == "xterm"
        assert environment["HOME"] == "/workspace"
        assert not [name for name in environment if name.startswith("AGENT")]
        assert ask(session, "printf 'a\\303\\244\\342\\202\\254'") == "aä€"
        session.write(b"sleep 1000\n")
        time.sleep(1)
        session.write(b"\x03")
        assert ask(session, "echo interrupted").endswith("interrupted\n")
        session.resize(77, 22)
        time.sleep(1)
        assert ask(session, "stty size") == "22 77\n"
        session.write(b"exit 7\n")
        assert session.wait(PATIENCE) == SessionEnd(7, None)


def test_a_shell_of_root(vm: RootedVM) -> None:
    with vm.terminal(root=True) as session:
        plain(session)
        assert ask(session, "id -u; pwd; stty size; cat /etc/shadow | head -c 5") == "0\n/root\n24 80\nroot:"
        session.write(b"kill -9 $$\n")
        assert session.wait(PATIENCE) == SessionEnd(None, "SIGKILL")


def test_what_is_typed_at_once_is_run(vm: RootedVM) -> None:
    """Nobody has to wait for a prompt: the terminal keeps what was typed, as on a host."""
    with vm.terminal(["bash"], columns=101, rows=33) as session:
        session.write(b"stty size; exit 3\r")
        assert session.wait(PATIENCE) == SessionEnd(3, None)
        assert b"33 101\r\n" in session.read(1.0)


def test_a_reader_that_sleeps_loses_nothing(vm: RootedVM) -> None:
    """QEMU drops what finds no room in the pipe, so half a megabyte must have room there before anybody reads."""
    command = "sleep 1; seq 1 20000; stty -opost; head -c 400000 /usr/bin/node; touch /tmp/written"
    opened = vm.session_host().open(vm.session_start(["sh", "-c", command], root=False, columns=80, rows=24))
    try:
        deadline = time.monotonic() + PATIENCE
        while vm.root("test -e /tmp/written").status:
            assert time.monotonic() < deadline, "the program waits for its reader"
            time.sleep(0.5)
        with closing(GuestSession(opened.control, opened.console)) as session:
            assert session.wait(PATIENCE) == SessionEnd(0, None)
            shown = session.take()
    finally:
        vm.session_host().close(opened.name)
    lines, _, rest = shown.partition(b"20000\r\n")
    assert lines.split(b"\r\n") == [*(b"%d" % number for number in range(1, 20000)), b""]
    assert rest == vm.root("head -c 400000 /usr/bin/node").stdout


def test_a_full_screen_program(vm: RootedVM) -> None:
    """vi draws the whole screen, and draws it again when the size changes."""
    with vm.terminal(["vi", "/etc/passwd"], columns=60, rows=20, env={"TERM": "xterm"}) as session:
        shown = until(session, b"/etc/passwd")
        assert b"root:x:0:0:root:/root:/bin/sh" in shown
        assert b"\x1b[20;1H" in shown, "the status line is the last one"
        session.resize(70, 30)
        session.write(b"\x0c")
        until(session, b"\x1b[30;1H")
        session.write(b":q!\r")
        assert session.wait(PATIENCE) == SessionEnd(0, None)


def test_programs_that_cannot_be_started(vm: RootedVM) -> None:
    for words, message in (
        (["no-such-program"], "command not found: no-such-program"),
        (["/etc"], "command cannot be"),
    ):
        with pytest.raises(GuestError, match=f"^{message}"), vm.terminal(words):
            pass
    with pytest.raises(GuestError, match="is outside"), vm.terminal(["sh"], cwd="/etc"):
        pass


def test_several_at_once_beside_requests(vm: RootedVM) -> None:
    with vm.terminal() as first, vm.terminal(root=True) as second, vm.terminal() as third:
        for session in (first, second, third):
            plain(session)
        assert ask(second, "id -u") == "0\n"
        terminals = {ask(session, "tty") for session in (first, second, third)}
        assert len(terminals) == 3
        assert vm.run("tty").stdout == b"not a tty\n"
        first.write(b"exit\n")
        assert first.wait(PATIENCE) == SessionEnd(0, None)
        assert ask(third, "echo still here") == "still here\n"
    with vm.terminal() as again:
        plain(again)
        assert ask(again, "id -un") == "agent\n"


# ---- the end -------------------------------------------------------------------------------------------------------


def gone(vm: RootedVM, pattern: str) -> bool:
    """Return whether no process of the guest matches within some seconds."""
    return (
        vm.root(f"for i in $(seq 100); do pgrep -f '{pattern}' >/dev/null || exit 0; sleep 0.1; done; exit 1").status
        == 0
    )


def test_closing_a_terminal_ends_what_runs_on_it(vm: RootedVM) -> None:
    with vm.terminal(["sh", "-c", "trap '' HUP; sleep 7777 & sleep 7777"]):
        both = "for i in $(seq 600); do [ $(pgrep -xf 'sleep 7777' | wc -l) = 2 ] && exit 0; sleep 0.1; done; exit 1"
        assert vm.root(both).status == 0, "they have begun"
    assert gone(vm, "[s]leep 7777")
    assert vm.root("cat /sys/class/virtio-ports/*/name | grep -c imgkit.session").text == "0\n"


def test_what_a_shell_leaves_behind_is_ended(vm: RootedVM) -> None:
    with vm.terminal(["sh", "-c", "trap '' HUP; sleep 8888 & exit 0"]) as session:
        assert session.wait(PATIENCE) == SessionEnd(0, None)
        assert gone(vm, "[s]leep 8888")


# ---- who may have one ----------------------------------------------------------------------------------------------

ATTACK = r"""
exec 2>&1
port=$(for p in /sys/class/virtio-ports/*; do grep -q '^imgkit.session' $p/name && echo /dev/${p##*/}; done)
for device in /dev/hvc0 $port /dev/vport*; do
    (: < $device) && echo "read $device"
    (: > $device) && echo "wrote $device"
done
for pid in $(pgrep -f '[s]leep 9999'); do
    cat /proc/$pid/environ >/dev/null && echo "environ of $pid"
    for fd in 0 1 2; do
        (: < /proc/$pid/fd/$fd) && echo "opened fd $fd of $pid"
        (echo stolen > /proc/$pid/fd/$fd) && echo "wrote fd $fd of $pid"
    done
    (: < /proc/$pid/mem) && echo "mem of $pid"
done
mknod /tmp/console c 229 0 && echo made
mkdir -p /sys/class/virtio-ports/vport9p9 && echo ported
ln -s /tmp /dev/virtio-ports/imgkit.session.99 && echo linked
echo 1 > /proc/sys/dev/tty/legacy_tiocsti && echo tiocsti
stty -F /dev/hvc0 rows 1 && echo resized
busybox setsid -c sh -c ': </dev/tty' && echo terminal
true
"""
TELLS = re.compile(r"^(read|wrote|environ|opened|mem|made|ported|linked|tiocsti|resized|terminal).*", re.MULTILINE)


@pytest.mark.parametrize("root", [False, True])
def test_the_agent_gets_at_no_terminal(vm: RootedVM, root: bool) -> None:
    """An agent of the same user can neither read nor write a terminal, nor make one, nor ask for one."""
    with vm.terminal(["sh", "-c", "stty -echo; echo begun; sleep 9999; echo over"], root=root) as session:
        until(session, b"begun\r\n")
        done = vm.run(ATTACK)
        told = [line for line in TELLS.findall(done.text) if not (line == "environ" and not root)]
        assert told == [], done.text
        assert "Permission denied" in done.text
        assert session.read(1.0) == b"", "nothing of it was shown"
        names = vm.root("cat /sys/class/virtio-ports/*/name").text
        assert names.count("imgkit.session") == 1
    assert "imgkit.session.99" not in vm.root("cat /var/log/agentd.log").text


def test_a_terminal_of_the_agent_gives_no_rights(vm: RootedVM) -> None:
    """What is on a terminal is the agent, as in a request: no way to root, to other terminals or to other sessions."""
    with vm.terminal(root=True) as owner, vm.terminal() as session:
        plain(owner)
        plain(session)
        assert "not permitted" in ask(session, "kill -9 1 2>&1")
        assert ask(session, "(: </dev/hvc0) 2>&1; (: </dev/hvc1) 2>&1").count("Permission denied") == 2
        assert ask(session, "su -c id 2>&1 </dev/null").find("uid=0") < 0
        assert ask(owner, "cat /proc/sys/dev/tty/legacy_tiocsti") == "0\n", "no program types into root's terminal"


def test_agentd_that_crashes_ends_the_sessions(vm: RootedVM) -> None:
    with vm.terminal(["sh", "-c", "echo begun; sleep 6666"], root=True) as session:
        until(session, b"begun")
        vm.root("kill -9 $(pgrep -f '^/usr/bin/node /opt/agent-runner/index.js')")
        with pytest.raises(GuestError, match=r"^agentd has ended during the session$"):
            session.wait(PATIENCE)
        assert gone(vm, "[s]leep 6666")
    with vm.terminal() as session:
        plain(session)


# ---- as users have it ----------------------------------------------------------------------------------------------


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "run").mkdir(mode=0o700)
    own = {"XDG_RUNTIME_DIR": str(tmp_path / "run"), "TERM": "xterm", "PYTHONPATH": str(ROOT)}
    return {**os.environ, **own}


def imgkit(*words: str | Path, env: dict[str, str], rows: int = 24, columns: int = 80) -> UserTerminal:
    return UserTerminal([sys.executable, "-m", "imgkit", *words], env=env, rows=rows, columns=columns)


def test_the_commands(image: Image, environment: dict[str, str], tmp_path: Path) -> None:
    """One machine that boot --wait runs, and several terminals on it."""
    need_program("qemu-system-x86_64")
    small = ("--accel", "tcg", "--cpus", "1", "--memory", "1024", "--timeout", str(TIMEOUT))
    (tmp_path / "work").mkdir()
    (tmp_path / "work").chmod(0o777)
    shares = ("--share", f"work={tmp_path}/work")
    with imgkit("boot", image.disk, "--wait", *small, *shares, env=environment) as machine:
        machine.expect(b"opens a terminal in it", TIMEOUT)
        with imgkit("shell", image.disk, env=environment, rows=33, columns=101) as user:
            user.expect(b"Enter ~ . leaves")
            user.expect(b"project$ ")
            user.type(b"stty size; echo \xc3\xa4; touch made\r")
            user.expect(b"33 101\r\n")
            user.expect(b"project$ ")
            assert (tmp_path / "work/made").exists()
            user.resize(20, 60)
            user.type(b"sleep 0.5; less /etc/passwd\r")
            drawn = user.expect(b"\x1b[20;0H")
            assert b"root:x:0:0" in drawn
            user.type(b"q")
            user.expect(b"project$ ")
            user.type(b"top -d 1\r")
            user.expect(b"Load average")
            user.type(b"q")
            user.expect(b"project$ ")
            with imgkit("shell", image.disk, "--root", env=environment) as root:
                root.expect(b"sandbox:~# ")
                root.type(b"id -u; exit 4\r")
                root.expect(b"0\r\n")
                assert root.wait() == 4
                assert root.settings() == root.before
            with imgkit("shell", image.disk, "--memory", "2048", env=environment) as other:
                assert other.wait() == 2
                assert b"--memory describes a new machine" in other.shown
            user.type(b"sleep 1000\r")
            time.sleep(1)
            user.type(b"\x03")
            user.expect(b"project$ ")
            user.type(b"\r~.")
            assert user.wait() == 130
            assert user.settings() == user.before
        with imgkit("shell", image.disk, "--", "sh", "-c", "kill -TERM $$", env=environment) as killed:
            assert killed.wait() == 128 + signal.SIGTERM
        machine.type(b"\x03")
        machine.expect(b"powering off")
        assert machine.wait() == 0
        assert machine.shown.count(b"agentd ready after") == 1
        assert machine.shown.index(b"agentd ready after") < machine.shown.index(b"runs until Ctrl-C")
    assert list((tmp_path / "run/imgkit").iterdir()) == []


def test_a_command_on_a_terminal_of_a_microvm(image: Image, environment: dict[str, str]) -> None:
    """``run -t`` on a machine of its own, which has no PCI."""
    need_program("qemu-system-x86_64")
    small = ("--accel", "tcg", "--cpus", "1", "--memory", "1024", "--timeout", str(TIMEOUT), "--machine", "microvm")
    with imgkit("run", "-t", image.disk, *small, "--", "sh", "-c", "stty size; tty; exit 9", env=environment) as user:
        user.expect(b"24 80\r\n/dev/hvc0\r\n", TIMEOUT)
        assert user.wait() == 9
        assert user.settings() == user.before


def test_a_guest_that_powers_itself_off_and_a_machine_without_terminals(
    image: Image, environment: dict[str, str]
) -> None:
    small = ("--accel", "tcg", "--cpus", "1", "--memory", "1024", "--timeout", str(TIMEOUT))
    with imgkit("boot", image.disk, "--wait", *small, env=environment) as machine:
        machine.expect(b"opens a terminal in it", TIMEOUT)
        with imgkit("shell", image.disk, "--root", "--", "poweroff", "-f", env=environment) as root:
            root.wait()
        assert machine.wait() == 6
        assert b"the guest has powered itself off" in machine.shown


def test_terminals_have_to_be_asked_for(image: Image) -> None:
    """No machine is started for this."""
    machine = SimpleNamespace(spec=BootSpec(image.disk))
    with pytest.raises(UsageError, match=r"^the machine was booted without terminals$") as caught:
        VM.session_host(machine)  # type: ignore[arg-type]
    assert caught.value.hint == "boot with terminals=True"
