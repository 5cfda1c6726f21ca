"""How a machine is found: by its own user only, while its process lives, and by its image."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from imgkit.errors import GuestError, HostError
from imgkit.vm.sessions import runningmachines
from imgkit.vm.sessions.runningmachines import RunningMachine, announced, find, is_private
from imgkit.vm.sessions.sessionserver import attached, serving
from tests.sessions import FakeOpener, FakeSession, open_descriptors

WANTED = {"command": ["sh"], "root": False, "columns": 80, "rows": 24}


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder for machines of this test only."""
    folder = tmp_path / "runtime"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "linux.qcow2"
    path.touch()
    return path


# ---- the list of machines ------------------------------------------------------------------------------------------


def test_a_machine_is_found_by_its_image_while_it_runs(image: Path, tmp_path: Path, runtime: Path) -> None:
    assert find(image) == []
    link = tmp_path / "link.qcow2"
    link.symlink_to(image)
    with announced(image):
        (machine,) = find(link)
        assert (machine.pid, machine.image) == (os.getpid(), image)
        assert machine.folder.parent == runtime / "imgkit"
        assert machine.folder.stat().st_mode & 0o777 == 0o700
        assert machine.folder.parent.stat().st_mode & 0o777 == 0o700
        assert find(tmp_path / "other.qcow2") == []
        with announced(image):
            assert len(find(image)) == 2
    assert find(image) == []
    assert list((runtime / "imgkit").iterdir()) == []


def test_without_a_runtime_folder_it_is_the_cache(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: Path
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "missing"))
    with announced(image):
        (machine,) = find(image)
        assert machine.folder.parent == tmp_path / "cache/imgkit/running"
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
        assert find(image) == [machine], "another shell has the variable"


def test_a_folder_that_others_may_enter_is_not_used(image: Path, tmp_path: Path, runtime: Path) -> None:
    (runtime / "imgkit").mkdir(mode=0o700)
    (runtime / "imgkit").chmod(0o750)
    with announced(image):
        (machine,) = find(image)
        assert machine.folder.parent == tmp_path / "cache/imgkit/running"


def test_no_folder_at_all(image: Path, tmp_path: Path, runtime: Path) -> None:
    (runtime / "imgkit").symlink_to(tmp_path)
    (tmp_path / "cache").write_text("a file")
    with (
        pytest.raises(HostError, match=r"imgkit, .*running: no folder that belongs to you alone$") as caught,
        announced(image),
    ):
        pass
    assert caught.value.hint == "chmod 700, or set XDG_RUNTIME_DIR to a folder of your own"


def test_what_is_private(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir(mode=0o700)
    assert is_private(folder)
    for mode in (0o710, 0o701, 0o720, 0o755):
        folder.chmod(mode)
        assert not is_private(folder), oct(mode)
    folder.chmod(0o700)
    tmp_path.chmod(0o777)
    assert not is_private(folder), "anybody may exchange it"
    tmp_path.chmod(0o1777)
    assert is_private(folder)
    tmp_path.chmod(0o700)
    link = tmp_path / "link"
    link.symlink_to(folder)
    assert not is_private(link)
    assert not is_private(tmp_path / "missing")
    file = tmp_path / "file"
    file.touch(0o700)
    assert not is_private(file)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make folders of another user")
def test_another_users_folder_is_not_looked_into(image: Path, runtime: Path) -> None:
    with announced(image):
        assert len(find(image)) == 1
        place = runtime / "imgkit"
        os.chown(place, 12345, 12345)
        assert not is_private(place)
        assert find(image) == []
        os.chown(place, 0, 0)
        os.chown(runtime, 12345, 12345)
        assert find(image) == [], "its owner may exchange what is in there"
        os.chown(runtime, 0, 0)


def test_the_folder_of_a_dead_process_is_removed(image: Path, runtime: Path) -> None:
    place = runtime / "imgkit"
    place.mkdir(mode=0o700)
    dead = place / "machine-99999999-00000000"
    dead.mkdir(mode=0o700)
    (dead / "machine.json").write_text(json.dumps({"pid": 99999999, "image": str(image)}))
    assert find(image) == []
    assert not dead.exists()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"pid": "x", "image": "/a"}', '{"pid": 1, "image": 2}', "[" * 70_000]
)
def test_a_description_that_is_none(image: Path, text: str) -> None:
    with announced(image):
        (machine,) = find(image)
        (machine.folder / "machine.json").write_text(text)
        assert find(image) == []


# ---- sessions over the socket --------------------------------------------------------------------------------------


def test_another_process_gets_the_ends_of_a_session(image: Path) -> None:
    def greet(session: FakeSession, _wanted: Mapping[str, Any]) -> None:
        session.shows(b"welcome")

    opener = FakeOpener(greet)
    before = open_descriptors()
    with announced(image) as listener, serving(listener, opener):
        (machine,) = find(image)
        with attached(machine, WANTED) as session:
            assert opener.wanted == [WANTED]
            assert session.read(20) == b"welcome"
            session.write(b"hello")
            assert opener.sessions[0].typed() == b"hello"
            with attached(machine, WANTED) as second:
                opener.sessions[1].says(type="exit", exitCode=3)
                assert second.wait(20).exit_code == 3
            opener.over.wait(20)
            assert opener.closed == ["2"]
    assert opener.closed == ["2", "1"]
    assert open_descriptors() == before


def test_sessions_end_with_the_machine(image: Path) -> None:
    with ExitStack() as stack:
        with announced(image) as listener, serving(listener, opener := FakeOpener()):
            session = stack.enter_context(attached(find(image)[0], WANTED))
        assert opener.closed == ["1"]
        with pytest.raises(GuestError, match="the terminal is gone"):
            session.wait(20)


def test_a_refusal_is_passed_on_with_its_hint(image: Path) -> None:
    opener = FakeOpener()
    opener.refusal = GuestError("no terminal", hint="build the image anew")
    with announced(image) as listener, serving(listener, opener):
        (machine,) = find(image)
        with pytest.raises(GuestError, match=r"^no terminal$") as caught, attached(machine, WANTED):
            pass
        assert caught.value.hint == "build the image anew"
        opener.refusal = None
        with attached(machine, WANTED):
            pass


@pytest.mark.parametrize("request_", [b"nonsense\n", b"[]\n", b"", b"{}"])
def test_a_request_that_is_none(image: Path, request_: bytes) -> None:
    with announced(image) as listener, serving(listener, opener := FakeOpener()):
        (machine,) = find(image)
        with machine.connect() as connection:
            connection.sendall(request_)
            connection.shutdown(socket.SHUT_WR)
            answer = json.loads(connection.recv(65536))
        assert answer["error"].startswith("the request is not understood: ")
        assert opener.wanted == []


def test_a_process_that_does_not_answer(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgkit.vm.sessions.sessionserver._ANSWER_TIMEOUT", 0.2)
    with announced(image):
        (machine,) = find(image)
        message = rf"^the machine of process {os.getpid()} does not answer: "
        with pytest.raises(HostError, match=message), attached(machine, WANTED):
            pass


def test_a_process_that_has_ended(tmp_path: Path) -> None:
    machine = RunningMachine(7, tmp_path / "image", tmp_path)
    with pytest.raises(HostError, match=r"^the machine of process 7 does not answer: No such file or directory$"):
        machine.connect()
    with socket.socket(socket.AF_UNIX) as dead, runningmachines._address(tmp_path) as address:
        dead.bind(address)
    with pytest.raises(HostError, match=r"^the machine of process 7 does not answer: Connection refused$"):
        machine.connect()
