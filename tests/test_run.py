"""``imgkit run`` on a booted image: status, streams, folders, an interrupt."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.images import ROOT, Builder, Image
from tests.terminals import run_on_terminal

pytestmark = pytest.mark.vm

WORDS = ("--accel", "tcg", "--cpus", "1", "--timeout", "300")
"""One CPU: QEMU's multi-threaded emulation of several fails now and then, and says so on standard error."""


@pytest.fixture(scope="module")
def disk(image: Image) -> Path:
    return image.disk


def command(disk: Path, *words: str | Path) -> list[str]:
    return [sys.executable, "-m", "imgkit", "run", str(disk), *WORDS, *map(str, words)]


def environment(builder: Builder, tmp: Path) -> dict[str, str]:
    tmp.mkdir()
    return {**builder.env, "TMPDIR": str(tmp)}


def test_streams_status_environment_and_a_folder_of_our_own(builder: Builder, disk: Path, tmp_path: Path) -> None:
    """The folder belongs to whoever runs the tests, and nobody else may write to it. What root owns, the agent may
    write because imgkit says so; what uid 1000 owns, because the contract does.
    """
    work, secret = tmp_path / "work", tmp_path / "key"
    work.mkdir(mode=0o755)
    (work / "in").write_text("input\n")
    (work / "in").chmod(0o600)
    if os.geteuid() not in (0, 1000):
        work.chmod(0o777)
        (work / "in").chmod(0o666)
    secret.write_bytes(b"the key")
    script = "cat in; printf 'a\\000\\377\\r\\n'; echo \"$A $KEY\" >&2; mkdir d; echo x >d/out; echo more >>in; "
    script += "cp /bin/busybox d/tool; chmod 6755 d/tool 2>/dev/null; exit 3"
    words = ("--work", work, "--env", "A=1 2", "--secret", f"KEY={secret}", "--", "/bin/sh", "-c", script)
    environment_ = environment(builder, tmp_path / "tmp")
    done = subprocess.run(command(disk, *words), env=environment_, cwd=ROOT, capture_output=True, timeout=400)
    assert done.returncode == 3, done.stderr
    assert done.stdout == b"input\na\0\xff\r\n"
    assert done.stderr == b"1 2 the key\n"
    assert (work / "d/out").read_text() == "x\n"
    assert (work / "in").read_text() == "input\nmore\n"
    if os.geteuid() in (0, 1000):
        assert {path.stat().st_uid for path in [work, *work.rglob("*")]} == {os.geteuid()}
    if os.geteuid() == 0:
        assert (work / "d/tool").stat().st_mode & 0o7777 == 0o755, "the agent's program is not set-user-id root"
    assert list((tmp_path / "tmp").iterdir()) == []


def test_fifty_folders_and_a_signal(builder: Builder, disk: Path, tmp_path: Path) -> None:
    shares = []
    for number in range(50):
        folder = tmp_path / f"share {number}"
        folder.mkdir()
        (folder / "number").write_text(f"{number}\n")
        shares += ["--share", f"s{number}={folder}"]
    script = "for n in $(seq 0 49); do cat /mnt/s$n/number; done; kill -9 $$"
    words = command(disk, *shares, "--", "/bin/sh", "-c", script)
    done = subprocess.run(words, env=dict(builder.env), cwd=ROOT, capture_output=True, timeout=400)
    assert done.returncode == 128 + 9, done.stderr
    assert done.stdout.split() == [str(number).encode() for number in range(50)]


def test_standard_input_that_is_large_and_one_that_never_ends(builder: Builder, disk: Path) -> None:
    """What the command does not read is not waited for: the pipe below stays open all the time."""
    data = random.Random(2).randbytes(10_000_000)
    words = command(disk, "--", "/bin/sh", "-c", "head -c 9000000 | sha256sum; exit 4")
    with subprocess.Popen(
        words, env=dict(builder.env), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        try:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(data[:9_000_000])
            child.stdin.flush()
            assert child.stdout.read().split() == [hashlib.sha256(data[:9_000_000]).hexdigest().encode(), b"-"]
            assert child.wait(60) == 4
        finally:
            child.kill()


def test_a_limit_ends_the_command_and_shows_what_it_wrote(builder: Builder, disk: Path) -> None:
    script = "trap 'echo last; exit 0' TERM; echo first; while :; do sleep 0.2; done"
    words = command(disk, "--limit", "3", "--", "/bin/sh", "-c", script)
    done = subprocess.run(words, env=dict(builder.env), cwd=ROOT, capture_output=True, timeout=400)
    assert done.returncode == 124
    assert done.stdout == b"first\nlast\n"
    assert done.stderr.endswith(b"error: the command was ended after 3 s\nhint: --limit with a larger number\n")


def test_a_terminal_shows_the_boot_and_then_only_the_output(builder: Builder, disk: Path) -> None:
    words = command(disk, "-i", "--", "/bin/sh", "-c", 'read -r line; echo "got $line"; sleep 1; echo end')
    session = run_on_terminal(words, env=builder.env, typed=b"typed\n", timeout=400)
    assert session.status == 0
    assert session.ever(r"^ +[0-9]+ s  services start$")
    assert session.screen.text[-2:] == ["got typed", "end"]
    assert not any(" s  " in line for line in session.screen.text)


def test_an_interrupt_leaves_nothing(builder: Builder, disk: Path, tmp_path: Path) -> None:
    """Ctrl-C goes to the whole foreground group, as from a terminal."""
    words = command(disk, "--", "/bin/sh", "-c", "echo started; sleep 600")
    env = environment(builder, tmp_path / "tmp")
    with subprocess.Popen(
        words, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"started\n"
            machines = qemus(tmp_path / "tmp")
            assert len(machines) == 1
            os.killpg(child.pid, signal.SIGINT)
            _, said = child.communicate(timeout=30)
        finally:
            child.kill()
    assert child.returncode == 130
    assert said == b"error: interrupted\n"
    deadline = time.monotonic() + 10
    while (qemus(tmp_path / "tmp") or any((tmp_path / "tmp").iterdir())) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert qemus(tmp_path / "tmp") == []
    assert list((tmp_path / "tmp").iterdir()) == []


def qemus(place: Path) -> list[int]:
    """Return the QEMUs of machines whose private folder is in ``place``. Their arguments do not name the image."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if b"qemu-system" in words[0] and (path.parent / "cwd").readlink().is_relative_to(place):
                found.append(int(path.parent.name))
    return found
