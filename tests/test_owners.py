"""The host application runs QEMU as the desktop's user, and the agent works as the owner of the folder.

The application's exact arguments (tests/hostapp.py) with QEMU as macOS' first user and as a CI runner's, its own
requests in both modes on both architectures, and ``imgkit run`` as an ordinary user.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imgkit.vm import VM
from tests import hostapp
from tests.conftest import need, need_program
from tests.hostapp import ATTACHMENT, Event, FileMode, SerialMode, output, real_request
from tests.images import ROOT, Builder, Image, Images

pytestmark = pytest.mark.vm

DIALOUT = 20  # Alpine's group, and on macOS that of every user
BUSY = 300.0  # seconds that a boot may take on a machine that does other things as well


@pytest.fixture
def public() -> Iterator[Path]:
    """Yield a folder that every user of this host can reach: pytest's own are for the user who runs the tests."""
    folder = Path(tempfile.mkdtemp(prefix="imgkit-owners-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def published(path: Path, folder: Path) -> Path:
    """Return a name of the file at ``path`` that every user can read."""
    near = folder / path.name
    if not near.exists():
        try:
            near.hardlink_to(path)
        except OSError:  # on another filesystem
            shutil.copyfile(path, near)
        near.chmod(0o644)
    return near


def given(folder: Path, owner: tuple[int, int]) -> dict[str, Path]:
    """The shares of the application, as a user has them: readable for everybody, writable for the owner alone."""
    shares = {"work": folder / "work", "skills0": folder / "skills", "locked": folder / "locked"}
    for path in shares.values():
        path.mkdir(mode=0o755)
    shares["locked"].chmod(0o555)
    (shares["work"] / "given").write_text("given\n")
    (shares["skills0"] / "skill").write_text("a skill\n")
    if os.geteuid() == 0:
        for path in (*shares.values(), shares["work"] / "given", shares["skills0"] / "skill"):
            os.chown(path, *owner)
    return shares


def agent(script: str) -> dict[str, str]:
    """Variables that make this script the agent: the application's requests have no command."""
    return {"AGENT_COMMAND": "/bin/sh -c", "AGENT_ARGS": json.dumps([script])}


def prompted(app: FileMode, work: Path, script: str, **more: Any) -> list[str]:
    """Return what the agent writes in answer to a request of the application, line by line."""
    identity = app.send(real_request(work, "hello", env=agent(script), **more), pause=0.5)
    result = app.finish(identity)
    assert result["subtype"] == "success", (result, output(app.stream(identity), "stderr"))
    return output(app.stream(identity)).decode().splitlines()


FIRST = """id -un; id -u; id -g >group; echo "$HOME $TZ"; stat -c %u "$HOME"; cat "$SKILLS_ROOT/skill"
hostname; ip addr show lo | grep -c 127.0.0.1/8; ip route | grep -c ^default
echo made >made; mkdir folder; mv made folder; echo more >>given; chmod 600 given; echo mine >"$HOME/mine"; cat"""
SECOND = 'cat "$HOME/mine" folder/made given; rm -r folder; id -un'


def check_turns(app: FileMode, work: Path, uid: int, gid: int) -> None:
    """Two turns of a session, the first of which is sent at once; what the agent makes is the user's."""
    lines = prompted(app, work, FIRST, imageAttachments=[ATTACHMENT])
    assert lines[:5] == ["agent", str(uid), "/workspace Europe/Berlin", str(uid), "a skill"]
    assert lines[5:8] == ["sandbox", "1", "1"], "the first command finds a name, a loopback device and a route"
    assert lines[8:] == ["hello"]
    assert (work / "group").read_text() == f"{gid}\n"
    assert {path.stat().st_uid for path in [work, *work.rglob("*")]} == {uid}
    assert (work / "given").stat().st_mode & 0o777 == 0o600, "the agent may change what is the user's"
    assert prompted(app, work, SECOND, sessionId="s-1") == ["mine", "made", "given", "more", "agent"]
    assert not (work / "folder").exists()


def check_questions(app: FileMode, shares: dict[str, Path]) -> None:
    """The agent may ask, and a folder that its owner cannot write to is refused."""
    identity = app.send({"command": ["/bin/sh", "-c", "agent-ask Bash '{}'; echo $?; uname -m"]}, pause=1)
    app.answer(app.question(identity, "permission_request"), {"behavior": "allow"})
    assert app.finish(identity)["subtype"] == "success"
    assert output(app.stream(identity)).split()[:2] == [b"{}", b"0"]
    mounts = {"work": {"tag": "locked", "guestPath": "/workspace/locked"}}
    result, out = app.run({"command": ["/bin/echo", "ran"], "mounts": mounts})
    assert (result["subtype"], out) == ("error", b"")
    assert "is not writable" in result["result"]
    assert "let its owner write to it" in result["result"]
    assert list(shares["locked"].iterdir()) == []


@pytest.mark.parametrize(("arch", "uid", "gid"), [("amd64", 501, 20), ("arm64", 1001, 1001)])
def test_the_desktops_user_runs_qemu(arch: str, uid: int, gid: int, images: Images, public: Path) -> None:
    need_program(hostapp.BINARY[arch])
    user = (uid, gid) if os.geteuid() == 0 else None
    image, shares = images[arch], given(public, (uid, gid))
    files = [published(path, public) for path in (image.disk, image.kernel, image.initramfs)]
    how: dict[str, Any] = {"kernel": files[1:], "user": user, "timeout": BUSY}
    with hostapp.file_mode(arch, files[0], public, shares, **how) as app:
        if user:
            check_turns(app, shares["work"], uid, 1000 if gid == DIALOUT else gid)
        else:
            check_turns(app, shares["work"], os.geteuid(), os.getegid())
        check_questions(app, shares)
        if user is not None:
            assert {path.stat().st_uid for path in app.ipc.rglob("*")} == {uid}, "QEMU was not root"


def test_every_user_runs_commands_in_a_folder_of_its_own(builder: Builder, image: Image, public: Path) -> None:
    """``imgkit run --work .`` by a user whose uid is no account of the image, but whose gid is a group (nogroup)."""
    need_program("qemu-system-x86_64")
    uid = 65533 if os.geteuid() == 0 else os.geteuid()
    work, home = public / "work", public / "home"
    for path in (work, home):
        path.mkdir(mode=0o700)
    (work / "in").write_text("in\n")
    identity: dict[str, Any] = {}
    if os.geteuid() == 0:
        for path in (work, home, work / "in"):
            os.chown(path, uid, uid)
        identity = {"user": uid, "group": uid, "extra_groups": []}
    script = "id -un; id -u; cat in; hostname; ip route | grep -c ^default; echo out >out; chmod 640 in"
    words = ["run", published(image.disk, public), "--accel", "tcg", "--cpus", "1", "--timeout", "300", "--work", "."]
    argv = [sys.executable, "-m", "imgkit", *map(str, words), "--", "/bin/sh", "-c", script]
    kept = {name: value for name, value in builder.env.items() if not name.startswith("XDG_")}
    env = {**kept, "HOME": str(home), "TMPDIR": str(home), "IMGKIT_CACHE": str(home / "cache"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, env=env, cwd=work, capture_output=True, text=True, timeout=400, **identity)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["agent", str(uid), "in", "sandbox", "1"]
    assert (work / "out").stat().st_uid == uid
    assert (work / "in").stat().st_mode & 0o777 == 0o640
    assert work.stat().st_mode & 0o777 == 0o700, "nothing was opened to others"


def test_a_folder_to_work_in_that_is_for_reading_only(image: Image, public: Path) -> None:
    """What its owner alone may read is read, and nothing is written."""
    work = public / "work"
    work.mkdir(mode=0o700)
    (work / "in").write_text("in\n")
    owner = 4711 if os.geteuid() == 0 else os.geteuid()
    for path in (work, work / "in"):
        os.chown(path, owner, owner)
    options: dict[str, Any] = {"cpus": 1, "timeout": BUSY}
    with VM.boot(published(image.disk, public), shares={"work": work}, read_only={"work"}, **options) as vm:
        done = vm.run("id -u; pwd; cat in; touch out", timeout=BUSY)
    assert done.stdout.decode().split() == [str(owner), "/workspace/project", "in"], done.stderr
    assert b"Read-only file system" in done.stderr
    assert [path.name for path in work.iterdir()] == ["in"]


def test_serial_mode_takes_the_same_request(images: Images, tmp_path: Path) -> None:
    """The machine of tests/test_contract.py is asked the same on amd64."""
    need_program(hostapp.BINARY["arm64"])
    image = images["arm64"]
    kernel = (image.kernel, image.initramfs)
    with hostapp.serial_mode("arm64", image.disk, tmp_path, kernel=kernel, timeout=BUSY) as app:
        check_serial_turns(app)


def check_serial_turns(app: SerialMode) -> None:
    """As on Windows: skill files come over the port before the first request, and nobody's uid shows."""
    base = "/workspace/project/SKILLs/one"
    app.send({"type": "push_file", "basePath": base, "path": "SKILL.md", "data": "YSBza2lsbAo="})
    script = "id -un; id -u; cat SKILLs/one/SKILL.md; echo made >made; cat; grep -c ' 9p ' /proc/mounts"
    lines, _ = serial_turn(app, script, imageAttachments=[ATTACHMENT])
    assert lines == ["agent", "1000", "a skill", "hello0"], "no share is mounted"
    app.wait("the new file", lambda message: message["type"] == "file_sync" and message["path"] == "made")
    assert serial_turn(app, "cat made; hostname", sessionId="s-1")[0] == ["made", "sandbox"]


def serial_turn(app: SerialMode, script: str, **more: Any) -> tuple[list[str], Event]:
    identity = app.request(real_request(Path("C:/p"), "hello", skills=False, env=agent(f"{script}; true"), **more))
    result = app.finish(identity)
    assert result["subtype"] == "success", (result, app.stream(identity))
    return output(app.stream(identity)).decode().splitlines(), result


# ---- one machine, several owners -----------------------------------------------------------------------------------

OWNERS = {"first": (1001, 1001), "second": (1002, 100), "roots": (0, 0), "mails": (8, 12), "agents": (1000, 1000)}


@pytest.fixture
def several(image: Image, public: Path) -> Iterator[tuple[FileMode, dict[str, Path]]]:
    """Yield a machine whose QEMU is root, so that the guest sees every owner."""
    need("root", os.geteuid() == 0)
    shares = {tag: public / tag for tag in OWNERS}
    for tag, path in shares.items():
        path.mkdir(mode=0o755)
        os.chown(path, *OWNERS[tag])
    with hostapp.file_mode("amd64", image.disk, public, shares, timeout=BUSY) as app:
        yield app, shares


def test_turns_of_other_owners(several: tuple[FileMode, dict[str, Path]]) -> None:
    app, shares = several

    def turn(tag: str, script: str) -> tuple[Event, list[str], str]:
        mounts = {"work": {"tag": tag, "guestPath": f"/workspace/{tag}"}}
        body = {"command": ["/bin/sh", "-c", script], "cwd": f"/workspace/{tag}", "mounts": mounts}
        identity = app.send(body)
        result, lines = app.finish(identity), app.stream(identity)
        return result, output(lines).decode().splitlines(), output(lines, "stderr").decode()

    leave = "setsid sleep 4747 >/dev/null 2>&1 & echo mine >$HOME/mine; echo tmp >/tmp/mine; sleep 1; "
    who = "id -un; id -u; id -g; stat -c %u:%g $HOME $HOME/mine /tmp/mine; echo x >made; rm -f $HOME/mine; "
    assert turn("agents", leave + who)[1] == ["agent", "1000", "1000", "1000:1000", "1000:1000", "1000:1000"]
    result, lines, _ = turn("first", "ps -o pid,user,args | grep '[s]leep 4747'; echo; " + who)
    assert result["subtype"] == "success"
    assert lines[:4] == ["", "agent", "1001", "1001"], "no process of the earlier uid is left"
    assert turn("second", who)[1][:3] == ["agent", "1002", "1001"], "100 is the group users, which is not taken over"
    for tag, owner in (("first", 1001), ("second", 1002), ("agents", 1000)):
        assert (shares[tag] / "made").stat().st_uid == owner
    for tag, advice in (("roots", "it belongs to root"), ("mails", "uid 8 is the account mail of this image")):
        result, lines, _ = turn(tag, "echo ran >ran")
        assert result["subtype"] == "error"
        assert "is not writable for uid 1002" in result["result"]
        assert advice in result["result"]
        assert list(shares[tag].iterdir()) == []
    turn("second", "setsid sleep 4848 >/dev/null 2>&1 & sleep 1")
    result, lines, _ = turn("agents", "ps -o pid,user,args | grep '[s]leep 4848'; echo; " + who)
    assert lines[:3] == ["", "agent", "1000"], "a folder that is mounted already ends leftovers of another owner, too"
