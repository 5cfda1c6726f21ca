"""The agentd contract on booted images, driven from the host as the original application does it (tests/hostapp.py).

The 60 s rule for questions that nobody answers is in tests/agentd/permissions.test.js, with a shorter time. Other
owners of folders, and arm64, are in tests/test_owners.py.
"""

from __future__ import annotations

import base64
import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import entrypoints, hostapp
from tests.files import digest
from tests.hostapp import Event, FileMode, SerialMode, output
from tests.images import ROOT, Image
from tests.rootport import RootCompleted, RootPort
from tests.test_owners import check_serial_turns

pytestmark = pytest.mark.vm

WORK = {"work": {"tag": "work", "guestPath": "/workspace/project"}}
BUSY = 300.0  # seconds that a boot may take on a machine that does other things as well


def sh(script: str, **more: Any) -> Event:
    """Return a request that runs a script in the guest."""
    return {"command": ["/bin/sh", "-c", script], **more}


@dataclass
class Guest:
    """A machine in file mode, its folders on the host, and (beyond the contract) a way to be root in it."""

    app: FileMode
    work: Path
    data: Path
    port: RootPort

    def root(self, script: str) -> RootCompleted:
        done = self.port.run(["/bin/sh", "-c", script], timeout=120)
        assert done.status == 0, (script, done)
        return done


@contextmanager
def folders(top: Path) -> Iterator[dict[str, Path]]:
    """Shares: one to work in, one more, one that nobody may write to."""
    shares = {name: top / name for name in ("work", "data", "locked")}
    for path in shares.values():
        path.mkdir()
        path.chmod(0o777)
    shares["locked"].chmod(0o555)
    yield shares
    shares["locked"].chmod(0o755)


@pytest.fixture(scope="module")
def guest(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    before, top = digest(image.disk), tmp_path_factory.mktemp("host")
    near, far = socket.socketpair()
    extra = ["-device", "virtio-serial-pci", "-chardev", f"socket,id=root,fd={far.fileno()}"]
    extra += ["-device", "virtserialport,chardev=root,name=imgkit.root"]
    how: dict[str, Any] = {"extra": extra, "descriptors": [far.fileno()], "timeout": BUSY}
    with folders(top) as shares, near, far, hostapp.file_mode("amd64", image.disk, top, shares, **how) as app:
        yield Guest(app, shares["work"], shares["data"], RootPort(near))
    assert digest(image.disk) == before, "-snapshot: the image is never changed"


# ---- file mode -----------------------------------------------------------------------------------------------------


def test_the_heartbeat_has_the_contracts_keys_and_goes_on(guest: Guest) -> None:
    beat = guest.app.heartbeat()
    assert beat is not None
    assert beat["ipcMode"] == "file"
    assert beat["ipcMounted"] is True
    assert isinstance(beat["pid"], int)
    assert beat["uptime"] > 0
    newer = guest.app.machine.wait("the next heartbeat", lambda: later(guest.app, beat), 30)
    assert newer["pid"] == beat["pid"]
    assert newer["uptime"] > beat["uptime"]


def later(app: FileMode, beat: Event) -> Event | None:
    now = app.heartbeat()
    return now if now is not None and now["timestamp"] > beat["timestamp"] else None


def test_a_prompt_with_all_keys_of_the_contract(guest: Guest) -> None:
    script = 'cat; echo; echo "$KEY $PWD"; echo \'{"type":"assistant","text":"hi"}\''
    body = {
        "prompt": "what is in ü?",
        "cwd": "/workspace/project",
        "workspaceRoot": "/workspace/project",
        "hostWorkspaceRoot": str(guest.work),
        "mounts": WORK,
        "env": {"AGENT_COMMAND": "/bin/sh -c", "AGENT_ARGS": json.dumps([script]), "KEY": "value"},
        "autoApprove": False,
        "confirmationMode": "modal",
        "systemPrompt": "be brief",
        "imageAttachments": [],
        "memoryEnabled": False,
        "aKeyOfTheFuture": {"is": "ignored"},
    }
    identity = guest.app.send(body)
    assert guest.app.finish(identity)["subtype"] == "success"
    lines = guest.app.stream(identity)
    assert output(lines).decode() == "what is in ü?\nvalue /workspace/project\n"
    assert {"type": "sdk_event", "event": {"type": "assistant", "text": "hi"}} in lines


def test_a_half_written_request_is_neither_run_nor_lost(guest: Guest) -> None:
    result, out = guest.app.run(sh("echo whole", env={"X": "y" * 4000}), pause=2.0)
    assert (result["subtype"], out) == ("success", b"whole\n")


@pytest.mark.parametrize("case", entrypoints.table("machine"), ids=lambda case: case.name)
def test_a_line_of_the_entrypoint_s_table(guest: Guest, case: entrypoints.Case) -> None:
    """agentd starts the agent of a request as the entrypoint of a container does."""
    result, out = guest.app.run({"env": dict(case.env), "awaitSystem": False})
    message = case.error("machine")
    if message is None:
        assert result["exitCode"] == (case.status or 0)
        case.check_output(out)
    else:
        assert (result["subtype"], result["exitCode"], result["result"]) == ("error", case.status, message)
        assert out == b""


def test_permissions_are_asked_for_and_answered(guest: Guest) -> None:
    script = 'for n in 1 2; do agent-ask Bash "{\\"command\\":\\"ls $n\\"}"; echo "status $?"; done'
    identity = guest.app.send(sh(script))
    first = guest.app.question(identity, "permission_request")
    assert (first["toolName"], first["toolInput"]) == ("Bash", {"command": "ls 1"})
    answer = guest.app.answer(first, {"behavior": "allow", "updatedInput": {"command": "ls -l"}})
    second = guest.app.question(identity, "permission_request")
    assert second["toolInput"] == {"command": "ls 2"}
    guest.app.answer(second, {"behavior": "deny", "message": "not that"})
    guest.app.finish(identity)
    assert output(guest.app.stream(identity)) == b'{"command":"ls -l"}\nstatus 0\nstatus 1\n'
    assert b"not that" in output(guest.app.stream(identity), "stderr")
    assert not answer.exists()
    assert list(answer.parent.iterdir()) == []


def test_the_host_does_things_for_the_agent(guest: Guest) -> None:
    identity = guest.app.send(sh('agent-host-tool clipboard \'{"n":1}\'; echo "status $?"'))
    asked = guest.app.question(identity, "host_tool_request")
    assert (asked["toolName"], asked["toolInput"]) == ("clipboard", {"n": 1})
    body = {"type": "host_tool_response", "success": True, "text": "copied"}
    answer = guest.app.answer(asked, body, suffix=".host-tool")
    guest.app.finish(identity)
    assert output(guest.app.stream(identity)) == b"copied\nstatus 0\n"
    assert not answer.exists()


def test_with_auto_approval_nobody_is_asked(guest: Guest) -> None:
    identity = guest.app.send(sh("agent-ask Bash '{}' && echo allowed", autoApprove=True))
    assert guest.app.finish(identity)["subtype"] == "success"
    assert {line["type"] for line in guest.app.stream(identity)} == {"sdk_event"}
    assert output(guest.app.stream(identity)) == b"{}\nallowed\n"


def test_all_mounts_of_a_request_are_there(guest: Guest) -> None:
    (guest.data / "given").write_text("data\n")
    mounts = {**WORK, "data": {"tag": "data", "guestPath": "/mnt/data"}}
    script = "cat /mnt/data/given; echo work >/workspace/project/made; grep -c ' 9p ' /proc/mounts"
    result, out = guest.app.run(sh(script, mounts=mounts))
    assert result["subtype"] == "success"
    assert out == b"data\n3\n"
    assert (guest.work / "made").read_text() == "work\n"


@pytest.mark.parametrize(
    ("tag", "message"), [("locked", "is not writable"), ("no-such-tag", "no-such-tag cannot be mounted")]
)
def test_without_a_writable_work_folder_nothing_runs(guest: Guest, tag: str, message: str) -> None:
    """Nothing is written, in particular not to the VM's own disk."""
    path = f"/workspace/of-{tag}"
    mounts = {"work": {"tag": tag, "guestPath": path}}
    result, out = guest.app.run(sh("echo ran; touch /workspace/ran", cwd=path, mounts=mounts))
    assert result["subtype"] == "error"
    assert message in result["result"]
    assert out == b""
    assert guest.app.run(sh(f"ls -d /workspace/ran {path}/*"))[0]["subtype"] == "error"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (sh("echo ran", cwd="/etc"), "outside"),
        (sh("echo ran", cwd="/workspace/../root"), "outside"),
        (sh("echo ran", mounts={"x": {"tag": "data", "guestPath": "/etc"}}), "not a place for a share"),
        (sh("echo ran", mounts={"x": {"tag": "data", "guestPath": "/workspace/ipc/x"}}), "not a place for a share"),
        ({"command": "echo ran"}, "command"),
        (sh("echo ran", env={"X": 1}), "env"),
    ],
)
def test_requests_that_are_refused(guest: Guest, body: Event, message: str) -> None:
    result, out = guest.app.run(body)
    assert result["subtype"] == "error"
    assert message in result["result"]
    assert out == b""


def test_a_hundred_requests_at_once_and_garbage_among_them(guest: Guest) -> None:
    """Each ends in exactly one result, no two run at the same time; what is no request ends in an error after 30 s."""
    journal = "/workspace/hundred"
    garbage = [guest.app.send(text) for text in ('{"prompt": "never finished', "[]", "\0\xff", "")]
    script = f"echo begin >>{journal}; echo $N; echo end >>{journal}"
    identities = [guest.app.send(sh(script, env={"N": str(number)})) for number in range(100)]
    for number, identity in enumerate(identities):
        assert guest.app.finish(identity, 200)["subtype"] == "success"
        assert output(guest.app.stream(identity)) == f"{number}\n".encode()
    _, out = guest.app.run(sh(f"cat {journal}"))
    assert out.split() == [b"begin", b"end"] * 100
    for identity in garbage:
        assert guest.app.finish(identity, 60)["subtype"] == "error"


def test_no_request_runs_twice(guest: Guest) -> None:
    identity = guest.app.send(sh("echo once >>/workspace/once"))
    guest.app.finish(identity)
    before = guest.app.stream(identity)
    guest.app.send(sh("echo twice >>/workspace/once"), identity=identity)
    path = guest.app.ipc / "requests" / f"{identity}.json"
    guest.app.machine.wait("the request to go", lambda: not path.exists(), 60)
    assert guest.app.run(sh("cat /workspace/once"))[1] == b"once\n"
    assert guest.app.stream(identity) == before


def test_output_as_it_is(guest: Guest) -> None:
    """The output has a line of megabytes, binary data, and no newline at the end."""
    script = "head -c 3000000 /dev/zero | tr '\\0' x; echo; printf 'a\\000\\377b'; echo oops >&2; exit 7"
    identity = guest.app.send(sh(script))
    result = guest.app.finish(identity)
    assert (result["subtype"], result["exitCode"]) == ("error", 7)
    assert output(guest.app.stream(identity)) == b"x" * 3_000_000 + b"\na\0\xffb"
    assert output(guest.app.stream(identity), "stderr") == b"oops\n"


def test_cancelling_ends_everything_that_the_agent_started(guest: Guest) -> None:
    identity = guest.app.send(sh("sleep 4242 & echo started; sleep 4242"))
    guest.app.machine.wait("the output", lambda: output(guest.app.stream(identity)), 30)
    (guest.app.ipc / "requests" / f"{identity}.cancel").touch()
    result = guest.app.finish(identity, 30)
    assert (result["subtype"], result["cancelled"]) == ("error", True)
    assert guest.root("pgrep -f '^sleep 4242' || true").stdout == b""


def test_what_an_agent_left_running_ends_before_anything_is_mounted(guest: Guest) -> None:
    guest.app.run(sh("setsid sleep 4545 >/dev/null 2>&1 & sleep 1", mounts=WORK))
    guest.app.run(sh("true", mounts=WORK))
    assert guest.root("pgrep -f '^sleep 4545'").stdout, "what is mounted already ends nothing"
    mounts = {"x": {"tag": "no-such-tag", "guestPath": "/workspace/x"}}
    assert guest.app.run(sh("true", mounts=mounts))[0]["subtype"] == "error"
    assert guest.root("pgrep -f '^sleep 4545' || true").stdout == b""


def test_what_the_agent_is(guest: Guest) -> None:
    """The agent has no privileges, and cannot reach the channel through which requests arrive."""
    script = "cat /proc/self/status; ls /workspace/ipc; id; ls -ld /workspace"
    identity = guest.app.send(sh(script))
    guest.app.finish(identity)
    out = output(guest.app.stream(identity)).decode()
    status = dict(line.split(":\t", 1) for line in out.splitlines() if ":\t" in line)
    assert status["Uid"].split() == status["Gid"].split() == ["1000"] * 4
    assert status["Groups"].strip() == ""
    assert status["NoNewPrivs"] == "1"
    assert all(int(status[name], 16) == 0 for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"))
    assert "uid=1000(agent) gid=1000(agent)" in out
    assert " agent    agent " in out.splitlines()[-1]
    assert b"/workspace/ipc: Operation not permitted" in output(guest.app.stream(identity), "stderr")


def test_the_kernel_is_told_what_a_sandbox_never_needs(guest: Guest) -> None:
    stated = (ROOT / "overlay/etc/sysctl.d/imgkit.conf").read_text()
    pairs = dict(re.findall(r"^([a-z][\w.]+) = (\d+)$", stated, re.MULTILINE))
    assert len(pairs) >= 5
    look = f"sysctl {' '.join(pairs)}"
    wanted = [f"{name} = {value}" for name, value in pairs.items()]
    guest.app.machine.wait("the settings", lambda: guest.root(look).text.splitlines() == wanted, 60)


# ---- what goes wrong in the guest ----------------------------------------------------------------------------------


def test_a_crash_of_agentd(guest: Guest) -> None:
    """The supervisor starts agentd again; the running request ends in an error and is not run again."""
    app = guest.app
    before = app.heartbeat()
    assert before is not None
    identity = app.send(sh("echo ran >>/workspace/crash; echo started; sleep 4343"))
    app.machine.wait("the output", lambda: output(app.stream(identity)), 30)
    waiting = app.send(sh("cat /workspace/crash"))
    guest.root(f"kill -9 {before['pid']}")
    result = app.finish(identity, 60)
    assert result["subtype"] == "error"
    assert "not run again" in result["result"]
    assert app.finish(waiting)["subtype"] == "success"
    assert output(app.stream(waiting)) == b"ran\n"
    assert guest.root("pgrep -f '^sleep 4343' || true").stdout == b""
    after = app.heartbeat()
    assert after is not None
    assert after["pid"] != before["pid"]
    assert "agentd: ended with status" in app.machine.console.read_text(errors="replace")


def test_a_clock_that_jumps(guest: Guest) -> None:
    guest.root("date -s '2001-02-03 04:05:06'")
    identity = guest.app.send(sh("date +%Y; agent-ask Bash '{}'"))
    guest.app.answer(guest.app.question(identity, "permission_request"), {"behavior": "allow"})
    assert guest.app.finish(identity)["subtype"] == "success"
    assert output(guest.app.stream(identity)).startswith(b"2001\n")
    guest.root(f"date -s @{int(time.time())}")
    guest.app.machine.wait("a fresh heartbeat", guest.app.ready, 60)


def test_a_full_disk(guest: Guest) -> None:
    guest.root(
        "fallocate -l $(df -k / | tail -n 1 | tr -s ' ' | cut -d ' ' -f 4)K /fill; dd if=/dev/zero of=/rest; true"
    )
    try:
        result, out = guest.app.run(sh("echo hello; echo more >/workspace/more"))
        assert out == b"hello\n"
        assert result["subtype"] == "error", "there is no room for the agent's file"
        guest.app.machine.wait("a fresh heartbeat", guest.app.ready, 60)
    finally:
        guest.root("rm /fill /rest")
    assert guest.app.run(sh("echo more >/workspace/more"))[0]["subtype"] == "success"


def test_a_share_that_disappears(guest: Guest) -> None:
    """agentd notices that its folder is not the share any more, and mounts it again."""
    before = guest.app.heartbeat()
    assert before is not None
    guest.root("umount -l /workspace/ipc")
    identity = guest.app.send(sh("echo back"))
    assert guest.app.finish(identity, 60)["subtype"] == "success"
    guest.app.machine.wait("a heartbeat in the share", lambda: later(guest.app, before), 60)
    names = [name.encode() for name in ("heartbeat", "requests", "responses", "streams")]

    def is_back() -> bool:
        return sorted(guest.root("ls -A /workspace/ipc | grep -v .heartbeat.").stdout.split()) == names

    # What agentd has open is the old mount, through which the host gets both of these until agentd looks again.
    guest.app.machine.wait("the share at its place", is_back, 60)


# ---- serial mode ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def port(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SerialMode]:
    with hostapp.serial_mode("amd64", image.disk, tmp_path_factory.mktemp("serial"), timeout=BUSY) as app:
        yield app


def test_serial_heartbeat(port: SerialMode) -> None:
    beat = port.wait("a heartbeat", lambda message: message["type"] == "heartbeat")
    assert beat["ipcMode"] == "serial"
    assert beat["ipcMounted"] is not False
    assert abs(beat["timestamp"] / 1000 - time.time()) < 120


def test_serial_mode_takes_the_applications_requests(port: SerialMode) -> None:
    check_serial_turns(port)


def test_serial_request_and_questions(port: SerialMode) -> None:
    script = "agent-ask Bash '{\"a\":1}'; echo $?; agent-host-tool clip '{}'; echo $?"
    identity = port.request(sh(script))
    asked = port.machine.wait("a question", lambda: of_kind(port, identity, "permission_request"), 60)
    port.send(
        {
            "type": "permission_response",
            "requestId": asked["requestId"],
            "result": {"behavior": "deny", "message": "no"},
        }
    )
    tool = port.machine.wait("a tool call", lambda: of_kind(port, identity, "host_tool_request"), 60)
    port.send({"type": "host_tool_response", "requestId": tool["requestId"], "success": True, "text": "done"})
    assert port.finish(identity)["subtype"] == "success"
    assert output(port.stream(identity)) == b"1\ndone\n0\n"


def of_kind(port: SerialMode, identity: str, kind: str) -> Event | None:
    return next((line for line in port.stream(identity) if line["type"] == kind), None)


def test_serial_files_in_both_directions(port: SerialMode) -> None:
    base = "/workspace/project"
    big = bytes(range(256)) * 5000
    chunks = [big[start : start + (512 << 10)] for start in range(0, len(big), 512 << 10)]
    port.send({"type": "push_file", "basePath": base, "path": "in/small", "data": encoded(b"small")})
    for index, chunk in enumerate(chunks):
        piece = {"transferId": "t", "basePath": base, "path": "in/big", "chunkIndex": index, "data": encoded(chunk)}
        port.send({"type": "push_file_chunk", "totalChunks": len(chunks), **piece})
    port.send({"type": "push_file_complete", "transferId": "t", "basePath": base, "path": "in/big", "totalChunks": 3})
    script = "cat in/small; cp in/big out; mkdir -p d/e; echo small >d/e/f; ln -s /etc/shadow link"
    identity = port.request(sh(script, cwd=base, workspaceRoot=base, mounts=WORK))
    assert port.finish(identity)["subtype"] == "success"
    assert output(port.stream(identity)) == b"small"
    port.wait("the end of the big file", lambda message: of_sync(message, "file_sync_complete", "out"))
    pieces = [message for message in port.messages if of_sync(message, "file_sync_chunk", "out")]
    assert [piece["chunkIndex"] for piece in pieces] == list(range(len(chunks)))
    assert b"".join(base64.b64decode(piece["data"]) for piece in pieces) == big
    small = port.wait("the small file", lambda message: of_sync(message, "file_sync", "d/e/f"))
    assert base64.b64decode(small["data"]) == b"small\n"
    assert not any(message.get("path") == "link" for message in port.messages)


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def of_sync(message: Event, kind: str, path: str) -> bool:
    return message["type"] == kind and message.get("path") == path


def test_serial_pushes_that_leave_their_folder(port: SerialMode) -> None:
    places = [("/workspace/project", "../../etc/x"), ("/workspace/project", "/etc/x"), ("/etc", "x")]
    for base, path in places:
        port.send({"type": "push_file", "basePath": base, "path": path, "data": encoded(b"x")})
    port.connection.sendall(b"this is no JSON\n[]\n")
    identity = port.request(sh("ls /etc/x /workspace/etc/x"))
    assert port.finish(identity)["subtype"] == "error"
    refused = [message for message in port.messages if message["type"] == "push_error"]
    assert [message["path"] for message in refused] == [path for _, path in places]


def test_serial_without_a_share_nothing_else_is_mounted(port: SerialMode) -> None:
    identity = port.request(sh("grep -c ' 9p ' /proc/mounts"))
    port.finish(identity)
    assert output(port.stream(identity)) == b"0\n"
