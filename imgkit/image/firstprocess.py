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
from typing import Literal

from imgkit.errors import InputError, UsageError
from imgkit.oci.documents import RuntimeConfig
from imgkit.rootfs.accounts import PasswdEntry, read_groups, read_users
from imgkit.tree import Tree

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
        stop_signal: number of the signal that asks it to end.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    cwd: str
    uid: int = 0
    gid: int = 0
    account: Literal["root", "named", "number"] = "root"
    stop_signal: int = signal.SIGTERM

    def to_shell(self) -> str:
        """Return the assignments that the init of the machine reads (``rootfs/initramfs/guest``)."""
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        words = ["env", "-i", *variables, *self.argv]
        return (
            f"uid={self.uid}\ngid={self.gid}\naccount={self.account}\ncwd={shlex.quote(self.cwd)}\n"
            f"set -- {shlex.join(words)}\n"
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
    uid, gid, account, home = _user(config.User or "", accounts)
    variables = {"PATH": DEFAULT_PATH, "HOME": home, **_variables(config.Env or [])}
    return FirstProcess(
        argv=argv,
        environment={**variables, **(environment or {})},
        cwd="/" + (cwd or config.WorkingDir or "").strip("/"),
        uid=uid,
        gid=gid,
        account=account,
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


def _user(text: str, accounts: Tree) -> tuple[int, int, Literal["root", "named", "number"], str]:
    """Return uid, gid, the kind of the account, and its home, of ``user``, ``uid``, ``user:group`` and the like."""
    name, colon, group = text.partition(":")
    entry = _find_user(name or "0", accounts)
    if entry is None and not _is_id(name):
        raise InputError(f"the image is run as user {name[:80]!r}, who is not in its /etc/passwd")
    uid = int(name) if entry is None else entry.uid
    gid = _group(group, accounts) if colon and group else 0 if entry is None else entry.gid
    home = entry.home if entry is not None and entry.home else "/"
    if entry is None or (colon and group):
        return uid, gid, "root" if uid == gid == 0 else "number", home
    return uid, gid, "root" if uid == 0 else "named", home


def _find_user(name: str, accounts: Tree) -> PasswdEntry | None:
    users = read_users(accounts)
    by_name = next((user for user in users if user.name == name), None)
    return by_name or next((user for user in users if _is_id(name) and user.uid == int(name)), None)


def _group(name: str, accounts: Tree) -> int:
    entry = next((group for group in read_groups(accounts) if group.name == name), None)
    if entry is not None:
        return entry.gid
    if not _is_id(name):
        raise InputError(f"the image is run as group {name[:80]!r}, which is not in its /etc/group")
    return int(name)


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= _MAX_ID
