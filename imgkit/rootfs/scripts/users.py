"""Commands of package scripts that deal with users: adduser, addgroup, passwd, getent, id, add-shell, as in busybox."""

from __future__ import annotations

from collections.abc import Mapping

from imgkit.rootfs import accounts
from imgkit.rootfs.scripts.state import Command, Failed, ShellState, Streams, number, options
from imgkit.rootfs.scripts.words import Unsupported


def addgroup(state: ShellState, arguments: list[str], _: Streams) -> int:
    """``addgroup [-S] [-g GID] GROUP`` and ``addgroup USER GROUP``."""
    flags, operands = options(arguments, "Sg:", ["system", "gid="])
    gid = _number(flags.get("g", flags.get("gid")))
    if len(operands) == 2:
        accounts.add_member(state.accounts(), operands[0], operands[1], epoch=state.epoch)
    elif len(operands) == 1:
        system = "S" in flags or "system" in flags
        accounts.add_group(state.accounts(), operands[0], gid=gid, system=system, epoch=state.epoch)
    else:
        raise Failed("usage: addgroup [-g GID] [-S] [USER] GROUP")
    return 0


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


def adduser(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """``adduser [-SDH] [-h DIR] [-g GECOS] [-s SHELL] [-G GROUP] [-u UID] [-k SKEL] USER``, ``adduser USER GROUP``."""
    long = ["home=", "gecos=", "shell=", "ingroup=", "system", "uid=", "skel=", "disabled-password", "no-create-home"]
    found, operands = options(arguments, "h:g:s:G:SDHu:k:", long)
    flags = {
        _ADDUSER.get(name, {"disabled-password": "D", "no-create-home": "H"}.get(name, name)): value
        for name, value in found.items()
    }
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
    """``passwd -l|-u|-d USER``: lock, unlock, no password."""
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
    """``chpasswd -e``: lines of ``user:hash``."""
    if arguments not in (["-e"], ["--encrypted"]):
        raise Unsupported("chpasswd with a password in plain text (its hash would be random)")
    for line in state.lines(streams.stdin.read()):
        name, _, field = line.partition(":")
        accounts.set_password(state.accounts(), name, field, epoch=state.epoch)
    return 0


def getent(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """``getent passwd|group KEY…``."""
    if not arguments or arguments[0] not in ("passwd", "group"):
        raise Unsupported(f"getent {' '.join(arguments)}")
    entries: list[accounts.PasswdEntry] | list[accounts.GroupEntry] = (
        accounts.read_users(state.accounts()) if arguments[0] == "passwd" else accounts.read_groups(state.tree)
    )
    status = 0
    for key in arguments[1:]:
        state.budget.work(len(entries))
        found = [each for each in entries if key in (each.name, str(_id(each)))][:1]
        streams.out("".join(f"{each}\n" for each in found))
        status = status if found else 2
    if len(arguments) == 1:
        streams.out("".join(f"{each}\n" for each in entries))
    return status


def _id(entry: accounts.PasswdEntry | accounts.GroupEntry) -> int:
    return entry.uid if isinstance(entry, accounts.PasswdEntry) else entry.gid


def identity(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """``id [-u|-g|-un|-gn|-Gn] USER``."""
    flags, operands = options(arguments, "ugnG")
    name = operands[0] if operands else "root"
    user = accounts.find_user(state.accounts(), name)
    if user is None:
        raise Failed(f"unknown user {name}")
    groups = accounts.read_groups(state.tree)
    kinds = "".join(sorted(flags))
    if kinds in ("Gn", "G"):
        mine = [each for each in groups if each.gid == user.gid]
        mine += [each for each in groups if name in each.members and each.gid != user.gid]
        streams.out(" ".join(each.name if "n" in flags else str(each.gid) for each in mine) + "\n")
        return 0
    primary = next((each.name for each in groups if each.gid == user.gid), str(user.gid))
    answers = {"u": str(user.uid), "g": str(user.gid), "nu": user.name, "gn": primary, "": f"uid={user.uid}({name})"}
    if kinds not in answers:
        raise Unsupported(f"id {' '.join(arguments)}")
    streams.out(answers[kinds] + "\n")
    return 0


def add_shell(state: ShellState, arguments: list[str], _: Streams) -> int:
    """``add-shell PATH…``: lines of etc/shells, each once."""
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
