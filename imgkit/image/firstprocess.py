"""The first process of a container: what is run, as whom, where, and with which environment.

    first = first_process(config.runtime, accounts, command=["sh"], environment={"A": "b"})

The rules are those of container engines: image-spec 1.1, "Conversion to OCI Runtime Configuration", and for what that
leaves open those of Docker (a default PATH, HOME of the account, 0 as the group of a uid without an account).
"""

from __future__ import annotations

import re
import shlex
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from imgkit.errors import InputError, UsageError
from imgkit.oci.documents import RuntimeConfig
from imgkit.rootfs.accounts import PasswdEntry, find_group, find_user, read_users
from imgkit.tree import Tree

Account: TypeAlias = Literal["root", "named", "number"]
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MAX_ID = (1 << 32) - 2
_REAL_TIME = re.compile(r"RTM(IN|AX)(?:([+-])([0-9]{1,2}))?")
_RTMIN, _RTMAX = 34, 64  # musl's and glibc's


@dataclass(frozen=True)
class FirstProcess:
    """A process to be started.

    Attributes:
        argv: the program and its arguments.
        environment: all of its variables.
        cwd: the folder that it starts in, absolute.
        uid, gid: its user and its group.
        account: "root"; "named" for an account, whose further groups it has; "number" for a user without an account,
            or with a group that was stated, which has no others.
        login: name of that account, for "named".
        stop_signal: number of the signal that asks it to end.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    cwd: str
    uid: int = 0
    gid: int = 0
    account: Account = "root"
    login: str = ""
    stop_signal: int = signal.SIGTERM

    def to_shell(self) -> str:
        """Return the assignments that the init of the machine reads (``rootfs/initramfs/guest``)."""
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        words = ["env", "-i", *variables, *self.argv]
        return (
            f"uid={self.uid}\ngid={self.gid}\naccount={self.account}\nlogin={shlex.quote(self.login)}\n"
            f"cwd={shlex.quote(self.cwd)}\nset -- {shlex.join(words)}\n"
        )


def first_process(
    config: RuntimeConfig,
    accounts: Tree,
    *,
    command: Sequence[str] = (),
    entrypoint: Sequence[str] | None = None,
    environment: Mapping[str, str] | None = None,
    cwd: str | None = None,
) -> FirstProcess:
    """Return what is run of an image.

    Args:
        config: the image's configuration.
        accounts: a Tree with the image's etc/passwd and etc/group.
        command: replaces the image's command, but not its entry point.
        entrypoint: replaces the image's entry point, and drops the image's command.
        environment: variables besides those of the image, which they replace.
        cwd: the folder to start in; None takes the image's.

    Raises:
        InputError: the image names a user, a group or a signal that does not exist.
        UsageError: neither the image nor the caller says what is to be run.
    """
    fixed = config.Entrypoint or [] if entrypoint is None else entrypoint
    default = config.Cmd or [] if entrypoint is None else []
    argv = (*fixed, *(command or default))
    if not argv or not argv[0]:
        raise UsageError("the image does not say what to run", hint="imgkit run LAYOUT -- COMMAND…")
    user = _user(config.User or "", accounts)
    variables = {"PATH": DEFAULT_PATH, "HOME": user.home, **_variables(config.Env or [])}
    return FirstProcess(
        argv=argv,
        environment={**variables, **(environment or {})},
        cwd="/" + (cwd or config.WorkingDir or "").strip("/"),
        uid=user.uid,
        gid=user.gid,
        account=user.account,
        login=user.login,
        stop_signal=parse_signal(config.StopSignal or "SIGTERM"),
    )


def parse_signal(text: str) -> int:
    """Return the number of a signal: ``SIGTERM``, ``TERM``, ``15`` or ``SIGRTMIN+3``.

    Raises:
        InputError: there is no such signal.
    """
    name = text.strip().upper().removeprefix("SIG")
    if (real_time := _REAL_TIME.fullmatch(name)) is not None:
        step = int(real_time[3] or 0) * (-1 if real_time[2] == "-" else 1)
        number = (_RTMIN if real_time[1] == "IN" else _RTMAX) + step
    else:
        number = int(name) if name.isascii() and name.isdigit() and len(name) < 3 else _NUMBERS.get(name, 0)
    if not 1 <= number <= _RTMAX:
        raise InputError(f"the image's stop signal is {text[:40]!r}, which is no signal")
    return number


# The numbers of x86 and ARM. Python's own are those of the host, which may be macOS.
_NAMES = (
    "HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP TSTP TTIN TTOU URG "
    "XCPU XFSZ VTALRM PROF WINCH IO PWR SYS"
)
_NUMBERS = {name: number for number, name in enumerate(_NAMES.split(), 1)}


def _variables(words: Sequence[str]) -> dict[str, str]:
    pairs = (word.partition("=") for word in words)
    return {name: value for name, equals, value in pairs if name and equals}


@dataclass(frozen=True)
class _User:
    """Who the process is; the attributes are those of :class:`FirstProcess`."""

    uid: int
    gid: int
    account: Account
    home: str = "/"
    login: str = ""


def _user(text: str, accounts: Tree) -> _User:
    """Return whom ``user``, ``uid``, ``user:group`` and the like mean."""
    name, _, group = text.partition(":")
    name = name or "0"
    entry = _find_user(name, accounts)
    if entry is None and not _is_id(name):
        raise InputError(f"the image is run as user {name[:80]!r}, who is not in its /etc/passwd")
    uid = int(name) if entry is None else entry.uid
    gid = _group(group, accounts) if group else 0 if entry is None else entry.gid
    home = entry.home if entry is not None and entry.home else "/"
    if uid == gid == 0:
        return _User(uid, gid, "root", home)
    if entry is None or group or find_user(accounts, entry.name) != entry:
        return _User(uid, gid, "number", home)
    return _User(uid, gid, "named", home, entry.name)


def _find_user(name: str, accounts: Tree) -> PasswdEntry | None:
    """Return the account of this name, or else of this uid; None if there is neither."""
    by_uid = (user for user in read_users(accounts) if _is_id(name) and user.uid == int(name))
    return find_user(accounts, name) or next(by_uid, None)


def _group(name: str, accounts: Tree) -> int:
    entry = find_group(accounts, name)
    if entry is not None:
        return entry.gid
    if not _is_id(name):
        raise InputError(f"the image is run as group {name[:80]!r}, which is not in its /etc/group")
    return int(name)


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= _MAX_ID
