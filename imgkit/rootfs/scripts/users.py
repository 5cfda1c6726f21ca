"""Commands of package scripts that deal with users: adduser, addgroup, passwd, getent, id, add-shell, as in busybox."""

from __future__ import annotations

from collections.abc import Mapping

from imgkit.rootfs import accounts
from imgkit.rootfs.scripts.state import Command, Failed, ShellState, Streams, number, options
from imgkit.rootfs.scripts.words import Unsupported

_ADDUSER = {
    "home": "h",
    "gecos": "g",
    "shell": "s",
    "ingroup": "G",
    "system": "S",
    "uid": "u",
    "skel": "k",
    "disabled-password": "D",
    "no-create-home": "H",
}


def addgroup(state: ShellState, arguments: list[str], _: Streams) -> int:
    """Run ``addgroup [-S] [-g GID] GROUP`` and ``addgroup USER GROUP``."""
    flags, operands = options(arguments, "Sg:", {"system": "S", "gid": "g"})
    gid = _number(flags.get("g"))
    if len(operands) == 2:
        accounts.add_member(state.accounts(), operands[0], operands[1], epoch=state.epoch)
    elif len(operands) == 1:
        accounts.add_group(state.accounts(), operands[0], gid=gid, system="S" in flags, epoch=state.epoch)
    else:
        raise Failed("usage: addgroup [-g GID] [-S] [USER] GROUP")
    return 0


def adduser(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """Run ``adduser [-SDH] [-h DIR] [-g GECOS] [-s SHELL] [-G GROUP] [-u UID] [-k SKEL] USER`` or ``USER GROUP``."""
    flags, operands = options(arguments, "h:g:s:G:SDHu:k:", _ADDUSER)
    if len(operands) == 2 and not flags:
        return addgroup(state, operands, streams)
    if len(operands) != 1:
        raise Failed("usage: adduser [OPTIONS] USER [GROUP]")
    if not {"S", "D"} & set(flags):
        raise Unsupported("adduser that asks for a password")
    accounts.add_user(
        state.accounts(),
        operands[0],
        uid=_number(flags.get("u")),
        group=flags.get("G"),
        home=flags.get("h"),
        shell=flags.get("s"),
        gecos=flags.get("g", ""),
        system="S" in flags,
        make_home="H" not in flags,
        skeleton=flags.get("k", "/etc/skel"),
        epoch=state.epoch,
    )
    return 0


def _number(text: str | None) -> int | None:
    return None if text is None else number(text)


def passwd(state: ShellState, arguments: list[str], _: Streams) -> int:
    """Run ``passwd -l|-u|-d USER``: lock, unlock, remove the password."""
    flags, operands = options(arguments, "lud")
    if len(operands) != 1 or len(flags) != 1:
        raise Unsupported("passwd that asks for a password")
    name = operands[0]
    old = accounts.password(state.accounts(), name)
    if old is None:
        raise Failed(f"unknown user {name}")
    if "d" not in flags and old.startswith("!") == ("l" in flags):
        raise Failed(f"password for {name} is already {'locked' if 'l' in flags else 'unlocked'}")
    new = "" if "d" in flags else f"!{old}" if "l" in flags else old[1:]
    accounts.set_password(state.tree, name, new, epoch=state.epoch)
    return 0


def chpasswd(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """Run ``chpasswd -e``: set the passwords in lines of ``user:hash``."""
    if arguments not in (["-e"], ["--encrypted"]):
        raise Unsupported("chpasswd with a password in plain text (its hash would be random)")
    for line in state.lines(streams.stdin.read()):
        name, _, password_hash = line.partition(":")
        accounts.set_password(state.accounts(), name, password_hash, epoch=state.epoch)
    return 0


def getent(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """Run ``getent passwd|group [KEY…]``, which prints the lines of users or groups, by name or number."""
    if not arguments or arguments[0] not in ("passwd", "group"):
        raise Unsupported(f"getent {' '.join(arguments)}")
    entries: list[accounts.PasswdEntry] | list[accounts.GroupEntry] = (
        accounts.read_users(state.accounts()) if arguments[0] == "passwd" else accounts.read_groups(state.tree)
    )
    if len(arguments) == 1:
        streams.out("".join(f"{entry}\n" for entry in entries))
    status = 0
    for key in arguments[1:]:
        state.budget.work(len(entries))
        match = next((entry for entry in entries if key in (entry.name, str(_id(entry)))), None)
        if match is None:
            status = 2
        else:
            streams.out(f"{match}\n")
    return status


def _id(entry: accounts.PasswdEntry | accounts.GroupEntry) -> int:
    return entry.uid if isinstance(entry, accounts.PasswdEntry) else entry.gid


def identity(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """Run ``id [-u|-g|-G] [-n] [USER]``; the user is root by default, as scripts run as root."""
    flags, operands = options(arguments, "ugnG")
    name = operands[0] if operands else "root"
    user = accounts.find_user(state.accounts(), name)
    if user is None:
        raise Failed(f"unknown user {name}")
    groups = accounts.read_groups(state.tree)
    letters = "".join(sorted(flags))
    if letters in ("Gn", "G"):
        memberships = [group for group in groups if group.gid == user.gid]
        memberships += [group for group in groups if name in group.members and group.gid != user.gid]
        streams.out(" ".join(group.name if "n" in flags else str(group.gid) for group in memberships) + "\n")
        return 0
    primary = next((group.name for group in groups if group.gid == user.gid), str(user.gid))
    answers = {"u": str(user.uid), "g": str(user.gid), "nu": user.name, "gn": primary, "": f"uid={user.uid}({name})"}
    if letters not in answers:
        raise Unsupported(f"id {' '.join(arguments)}")
    streams.out(answers[letters] + "\n")
    return 0


def add_shell(state: ShellState, arguments: list[str], _: Streams) -> int:
    """Run ``add-shell PATH…``: add lines to etc/shells that it does not have yet."""
    path = state.path("/etc/shells")
    lines = state.lines(state.read("/etc/shells")) if path in state.tree else []
    known = set(lines)
    lines += [shell for shell in dict.fromkeys(arguments) if shell not in known]
    state.write(path, "".join(f"{line}\n" for line in lines))
    return 0


COMMANDS: Mapping[str, Command] = {
    "add-shell": add_shell,
    "addgroup": addgroup,
    "adduser": adduser,
    "chpasswd": chpasswd,
    "getent": getent,
    "id": identity,
    "passwd": passwd,
}
