"""The user that QEMU runs as: who that is, and what such a user may open. Nobody becomes another user here."""

from __future__ import annotations

import ctypes
import grp
import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from imgkit.vm.sandbox import identity
from imgkit.vm.sandbox.identity import NOBODY, Identity
from tests.conftest import need

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")


def account(name: str, uid: int, gid: int) -> pwd.struct_passwd:
    return pwd.struct_passwd((name, "x", uid, gid, "", "/", "/bin/sh"))


@pytest.fixture
def accounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, pwd.struct_passwd]:
    """Return the accounts of this host, which the test may change. pytest's own folder is named after the real ones."""
    known = {"nobody": account("nobody", 99, 98), "alice": account("alice", 4711, 4712)}

    def by_number(uid: int) -> pwd.struct_passwd:
        for each in known.values():
            if each.pw_uid == uid:
                return each
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwnam", lambda name: known[name])
    monkeypatch.setattr(pwd, "getpwuid", by_number)
    monkeypatch.setattr(os, "getgrouplist", lambda *_: [4712, 4713])
    monkeypatch.setattr(grp, "getgrgid", lambda gid: grp.struct_group((f"group{gid}", "x", gid, [])))
    monkeypatch.setattr(identity, "can_switch_user", lambda: True)
    return known


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (account("nobody", 99, 98), (99, 98)),
        (account("nobody", 1, 1), (1, 1)),
        (account("nobody", 0, 98), (65534, 65534)),
        (account("nobody", 99, 0), (65534, 65534)),
        (None, (65534, 65534)),
    ],
)
def test_nobody_is_an_account_that_is_not_roots(
    entry: pwd.struct_passwd | None, expected: tuple[int, int], accounts: dict[str, pwd.struct_passwd]
) -> None:
    if entry is None:
        del accounts["nobody"]
    else:
        accounts["nobody"] = entry
    user = identity.choose_user(None)
    assert user == Identity(*expected)
    assert NOBODY == 65534
    assert identity.is_nobody(user)
    assert not identity.is_nobody(Identity(expected[0] + 1, expected[1]))


def folder(path: Path, uid: int, gid: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that seems to have this owner."""
    status = os.stat_result((0o40755, 0, 0, 2, uid, gid, 0, 0, 0, 0))
    real = Path.stat
    monkeypatch.setattr(Path, "stat", lambda self, **more: status if self == path else real(self, **more))
    return path


@pytest.mark.parametrize(
    ("owner", "primary", "expected"),
    [
        ((4711, 4712), 4712, Identity(4711, 4712)),
        ((4711, 4712), 1, Identity(4711, 1, (4712,))),
        ((4711, 0), 4712, Identity(4711, 4712)),
        ((4711, 4713), 4712, Identity(4711, 4712, (4713,))),
        ((4711, 4714), 4712, Identity(4711, 4712)),
        ((4711, 4713), 0, Identity(4711, 98, (4713,))),
        ((4711, 4713), None, Identity(4711, 98)),
        ((4711, 4711), None, Identity(4711, 4711)),
        ((1, 4713), None, Identity(1, 98)),
        ((0, 4713), None, Identity(99, 98)),
        ((0, 0), None, Identity(99, 98)),
    ],
)
def test_the_owner_of_the_folder_has_its_own_group_and_that_of_its_team(
    owner: tuple[int, int],
    primary: int | None,
    expected: Identity,
    accounts: dict[str, pwd.struct_passwd],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An owner without an account has no team; root's folders are nobody's business."""
    if primary is None:
        del accounts["alice"]
    else:
        accounts["alice"] = account("alice", 4711, primary)
    assert identity.choose_user(folder(tmp_path, *owner, monkeypatch)) == expected


@pytest.mark.parametrize(
    "group", ["root", "wheel", "sudo", "docker", "libvirt", "adm", "disk", "shadow", "input", "kvm"]
)
def test_a_team_with_rights_over_the_host_is_none(
    group: str, accounts: dict[str, pwd.struct_passwd], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grp, "getgrgid", lambda gid: grp.struct_group((group, "x", gid, [])))
    assert identity.choose_user(folder(tmp_path, 4711, 4713, monkeypatch)) == Identity(4711, 4712)


def test_a_team_without_a_name_is_one(
    accounts: dict[str, pwd.struct_passwd], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(gid: int) -> grp.struct_group:
        raise KeyError(gid)

    monkeypatch.setattr(grp, "getgrgid", unknown)
    assert identity.choose_user(folder(tmp_path, 4711, 4713, monkeypatch)) == Identity(4711, 4712, (4713,))


@pytest.mark.parametrize(
    ("mode", "gid", "groups"),
    [
        (0o660, 4720, (4720,)),
        (0o666, 1, (1,)),
        (0o660, 0, ()),
        (0o640, 4720, ()),
        (0o620, 4720, ()),
        (0o606, 4720, ()),
        (0o600, 4720, ()),
    ],
)
def test_the_group_of_a_device_that_it_may_read_and_write(
    mode: int,
    gid: int,
    groups: tuple[int, ...],
    accounts: dict[str, pwd.struct_passwd],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = tmp_path / "kvm"
    status = os.stat_result((0o20000 | mode, 0, 0, 1, 0, gid, 0, 0, 0, 0))
    real = Path.stat
    monkeypatch.setattr(Path, "stat", lambda self, **more: status if self == device else real(self, **more))
    assert identity.choose_user(None, device=device) == Identity(99, 98, groups)
    assert identity.choose_user(None, device=tmp_path / "none") == Identity(99, 98)


def test_groups_are_in_order_and_once(
    accounts: dict[str, pwd.struct_passwd], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for device_group, groups in ((4700, (4700, 4713)), (4713, (4713,)), (4800, (4713, 4800))):
        monkeypatch.setattr(identity, "_device_group", lambda _, gid=device_group: (gid,))
        assert identity.choose_user(folder(tmp_path, 4711, 4713, monkeypatch)) == Identity(4711, 4712, groups)


# ---- the user namespace of this process ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "is_mapped"), [(99, False), (100, True), (109, True), (110, False), (20, True), (21, False), (5, False)]
)
def test_ids_that_the_namespace_has(number: int, is_mapped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first column counts, which is the number inside (user_namespaces(7))."""
    monkeypatch.setattr(Path, "read_text", lambda self: {"/proc/self/uid_map": "100 5 10\n20 700 1\n"}[str(self)])
    assert identity._is_mapped("uid_map", number) is is_mapped


@pytest.mark.parametrize("text", ["", "nonsense\n"])
def test_a_map_that_is_not_one_has_no_ids(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda _: text)
    assert identity._is_mapped("gid_map", 0) is False
    assert identity._is_mapped("missing", 0) is False


def test_without_a_map_no_id_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", fail)
    assert identity._is_mapped("uid_map", 0) is False


@pytest.mark.parametrize("missing", ["uid_map", "gid_map"])
def test_a_user_whom_the_container_lacks_is_not_chosen(
    missing: str,
    accounts: dict[str, pwd.struct_passwd],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG", "imgkit.vm")
    asked: list[tuple[str, int]] = []

    def is_mapped(name: str, number: int) -> bool:
        asked.append((name, number))
        return name != missing

    monkeypatch.setattr(identity, "_is_mapped", is_mapped)
    assert identity.choose_user(None) is None
    assert caplog.messages == ["nobody (99:98) is no user of this container"]
    assert asked == [("uid_map", 99), ("gid_map", 98)][: len(asked)]


@pytest.mark.parametrize("root", [False, True])
def test_this_user_stays_what_it_is(
    root: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "imgkit.vm")
    monkeypatch.setattr(identity, "can_switch_user", lambda: False)
    monkeypatch.setattr(identity, "is_root", lambda: root)
    assert identity.choose_user(None) is None
    assert bool(caplog.messages) is root


@pytest.mark.parametrize(
    ("platform", "uid", "is_root"), [("linux", 0, True), ("linux", 1, False), ("darwin", 0, False)]
)
def test_root_is_root_on_linux(platform: str, uid: int, is_root: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    assert identity.is_root() is is_root
    if not is_root:
        assert identity.can_switch_user() is False


ALL = 0b11101011  # linux/capability.h: CHOWN, DAC_OVERRIDE, FOWNER, KILL, SETGID, SETUID


@pytest.mark.parametrize(
    ("capabilities", "setgroups", "can"),
    [
        (ALL, "allow", True),
        ((1 << 41) - 1, "allow", True),
        (ALL, "deny", False),
        *((ALL & ~(1 << number), "allow", False) for number in (0, 1, 3, 5, 6, 7)),
        (ALL & ~(1 << 2), "allow", True),
        (0, "allow", False),
        (None, "allow", False),
        (ALL, None, False),
    ],
)
def test_a_root_that_can_start_programs_as_others(
    capabilities: int | None, setgroups: str | None, can: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {"/proc/self/status": "A:\t\n"}
    if capabilities is not None:
        texts = {"/proc/self/status": f"Name:\tx:y\nCapEff:\t{capabilities:016x}\n"}
    if setgroups is not None:
        texts["/proc/self/setgroups"] = f"{setgroups}\n"

    def read(path: Path) -> str:
        if str(path) not in texts:
            raise FileNotFoundError
        return texts[str(path)]

    monkeypatch.setattr(identity, "is_root", lambda: True)
    monkeypatch.setattr(Path, "read_text", read)
    assert identity.can_switch_user() is can


# ---- becoming the user -----------------------------------------------------------------------------------------------


class Libc:
    """A C library that becomes nobody else, and notes who it would be."""

    def __init__(self, **answers: int) -> None:
        self.answers = answers
        self.calls: list[tuple[object, ...]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*words: object) -> int:
            self.calls.append((name, *words))
            return self.answers.get(name, 0)

        return call


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Return the supplementary groups that were set."""
    seen: list[tuple[int, ...]] = []
    monkeypatch.setattr(os, "setgroups", seen.append)
    monkeypatch.setattr(ctypes, "get_errno", lambda: 1)
    return seen


def assume(user: Identity, libc: Libc) -> list[tuple[object, ...]]:
    user.assume(cast("ctypes.CDLL", libc))
    return libc.calls


def test_all_three_ids_are_the_users(groups: list[tuple[int, ...]]) -> None:
    calls = assume(Identity(11, 12, (13,)), Libc())
    assert calls == [("setresgid", 12, 12, 12), ("setresuid", 11, 11, 11)], "the group first, while it may be changed"
    assert groups == [(13,)]


def test_in_a_namespace_the_ids_are_those_inside(groups: list[tuple[int, ...]]) -> None:
    user = Identity(11, 12).in_namespace(7, (1000, 1001))
    assert user == Identity(11, 12, (), 7, (1000, 1001))
    inside = [("setns", 7, 0x10000000), ("setresgid", 1001, 1001, 1001), ("setresuid", 1000, 1000, 1000)]
    assert assume(user, Libc()) == inside
    assert groups == [()]


@pytest.mark.parametrize(
    ("failing", "last"), [("setns", "setns"), ("setresgid", "setresgid"), ("setresuid", "setresuid")]
)
def test_nothing_is_started_by_a_process_that_could_not_become_the_user(
    failing: str, last: str, groups: list[tuple[int, ...]]
) -> None:
    libc = Libc(**{failing: -1})
    with pytest.raises(OSError, match="setns" if failing == "setns" else "setresuid") as raised:
        assume(Identity(11, 12, (), 7, (1, 2)), libc)
    assert raised.value.errno == 1
    assert libc.calls[-1][0] == last
    assert groups == [()]


def test_the_name_of_a_user_in_messages(accounts: dict[str, pwd.struct_passwd]) -> None:
    assert str(Identity(4711, 7)) == "alice (4711:7)"
    assert str(Identity(4712, 7)) == "a user without a name (4712:7)"


# ---- what a user may open --------------------------------------------------------------------------------------------


def test_it_is_tried_as_that_user_without_the_callers_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def run(command: list[str], **options: Any) -> Any:
        asked.append({"command": command, **options})
        return subprocess.CompletedProcess(command, status)

    monkeypatch.setattr(subprocess, "run", run)
    for status in (0, 1):
        assert identity.can_open(Identity(11, 12, (13,)), tmp_path) is (status == 0)
    (options, _) = asked
    assert options["command"][-1] == str(tmp_path)
    who = {"user": 11, "group": 12, "extra_groups": (13,), "cwd": "/"}
    quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    assert {**options, **who, **quiet, "check": False} == options
    assert 1 <= options["timeout"] <= 60


@pytest.mark.parametrize("cause", [OSError("no shell"), subprocess.TimeoutExpired("sh", 10)])
def test_what_cannot_be_tried_is_closed(cause: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, **__: object) -> None:
        raise cause

    monkeypatch.setattr(subprocess, "run", run)
    assert identity.can_open(Identity(11, 12), tmp_path) is False


def test_to_open_is_to_read_and_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read, and nothing is changed."""
    need("/bin/sh", Path("/bin/sh").exists())
    real = subprocess.run

    def run(command: list[str], *, user: int, group: int, extra_groups: tuple[int, ...], **options: Any) -> Any:
        return real(command, **options)

    monkeypatch.setattr(subprocess, "run", run)
    (tmp_path / "a file").write_text("text")
    assert identity.can_open(Identity(0, 0), tmp_path / "a file")
    assert (tmp_path / "a file").read_text() == "text"
    assert not identity.can_open(Identity(0, 0), tmp_path / "none/file")
    assert not identity.can_open(Identity(0, 0), tmp_path), "a folder cannot be written to"
