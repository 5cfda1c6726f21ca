"""Read and change the users and groups of the Tree: etc/passwd, etc/group, etc/shadow and their ``-`` copies.

    add_group(tree, "web", system=True)
    add_user(tree, "web", group="web", system=True, epoch=epoch)

The rules are those of busybox's adduser and addgroup (1.37), as observed: system accounts take the smallest free number
from 100 to 999, others from 1000; a system user without a group of its own goes into ``nogroup`` (65533); a new user
is also listed as a member of its group. The day in etc/shadow is that of the caller's epoch: builds are reproducible.
File formats: passwd(5), group(5), shadow(5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from imgkit.tree import Directory, File, Tree, parent

PASSWD, GROUP, SHADOW = "etc/passwd", "etc/group", "etc/shadow"
UNUSABLE = "*"
"""The password field of etc/shadow for an account without a valid password."""
_NOGROUP = 65533
_SYSTEM = range(100, 1000)
_ORDINARY = range(1000, 60000)
_DAY = 86400
_MAX_NAME = 255
_MAX_ID = (1 << 32) - 2  # of a user or group, as Linux has them


class AccountError(Exception):
    """The account cannot be added or changed; the message is the one of adduser or addgroup."""


@dataclass(frozen=True)
class PasswdEntry:
    """A line of etc/passwd."""

    name: str
    uid: int
    gid: int
    gecos: str = ""
    home: str = "/"
    shell: str = "/sbin/nologin"

    def __str__(self) -> str:
        return f"{self.name}:x:{self.uid}:{self.gid}:{self.gecos}:{self.home}:{self.shell}"


@dataclass(frozen=True)
class GroupEntry:
    """A line of etc/group."""

    name: str
    gid: int
    members: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}:x:{self.gid}:{','.join(self.members)}"


@dataclass(frozen=True)
class AccountNumbers:
    """The numbers of users and groups, by name."""

    users: Mapping[str, int]
    groups: Mapping[str, int]


def lookup(tree: Tree) -> AccountNumbers:
    """Return the numbers of all users and groups of the Tree; ``root`` is 0 even if the files do not exist yet."""
    users = {user.name: user.uid for user in reversed(read_users(tree))}
    groups = {group.name: group.gid for group in reversed(read_groups(tree))}
    return AccountNumbers({"root": 0, **users}, {"root": 0, **groups})


def read_users(tree: Tree) -> list[PasswdEntry]:
    """Return the users in etc/passwd; lines that break the format are left out."""
    users = []
    for line in _lines(tree, PASSWD):
        fields = line.split(":")
        if len(fields) >= 7 and _is_id(fields[2]) and _is_id(fields[3]):
            gecos, home, shell = ":".join(fields[4:-2]), fields[-2], fields[-1]
            users.append(PasswdEntry(fields[0], int(fields[2]), int(fields[3]), gecos, home, shell))
    return users


def read_groups(tree: Tree) -> list[GroupEntry]:
    """Return the groups in etc/group; lines that break the format are left out."""
    groups = []
    for line in _lines(tree, GROUP):
        fields = line.split(":")
        if len(fields) == 4 and _is_id(fields[2]):
            groups.append(GroupEntry(fields[0], int(fields[2]), tuple(filter(None, fields[3].split(",")))))
    return groups


def find_user(tree: Tree, name: str) -> PasswdEntry | None:
    """Return the first user of this name, None if there is none."""
    return next((user for user in read_users(tree) if user.name == name), None)


def find_group(tree: Tree, name: str) -> GroupEntry | None:
    """Return the first group of this name, None if there is none."""
    return next((group for group in read_groups(tree) if group.name == name), None)


def add_group(tree: Tree, name: str, *, gid: int | None = None, system: bool = False, epoch: int = 0) -> GroupEntry:
    """Add a group, as ``addgroup [-S] [-g GID] NAME`` does.

    Raises:
        AccountError: the name is improper, the name or number is in use, or no number is left.
    """
    _check_name(name)
    groups = read_groups(tree)
    if any(group.name == name for group in groups):
        raise AccountError(f"group '{name}' in use")
    taken = {group.gid for group in groups}
    if gid is not None and gid in taken:
        raise AccountError(f"gid '{gid}' in use")
    group = GroupEntry(name, _free(taken, system=system) if gid is None else gid)
    _append(tree, GROUP, str(group), epoch)
    return group


def add_member(tree: Tree, user: str, group: str, *, epoch: int = 0) -> None:
    """Make a user a member of a group, as ``addgroup USER GROUP`` does. Nothing changes if it is one already.

    Raises:
        AccountError: there is no such user or group.
    """
    if find_user(tree, user) is None:
        raise AccountError(f"unknown user {user}")
    entry = _existing_group(tree, group)
    if user not in entry.members:
        _edit(tree, GROUP, group, str(replace(entry, members=(*entry.members, user))), epoch)


def add_user(
    tree: Tree,
    name: str,
    *,
    uid: int | None = None,
    group: str | None = None,
    home: str | None = None,
    shell: str | None = None,
    gecos: str = "",
    system: bool = False,
    make_home: bool = False,
    skeleton: str = "/etc/skel",
    epoch: int = 0,
) -> PasswdEntry:
    """Add a user as ``adduser -D [-S] [-H] [-u UID] [-G GROUP] [-h HOME] [-s SHELL] [-g GECOS] [-k SKELETON] NAME``.

    Raises:
        AccountError: the name is improper, the name or number is in use, the group is unknown, or no number is left.
    """
    _check_name(name)
    users = read_users(tree)
    if any(user.name == name for user in users):
        raise AccountError(f"user '{name}' in use")
    own_group = group is None and not system
    number = _uid(tree, users, uid, system=system, own_group=own_group)
    if own_group:
        gid = add_group(tree, name, gid=number, epoch=epoch).gid
    else:
        gid = _NOGROUP if group is None else _existing_group(tree, group).gid
    shell = shell if shell is not None else ("/sbin/nologin" if system else "/bin/sh")
    user = PasswdEntry(name, number, gid, gecos, home if home is not None else f"/home/{name}", shell)
    _append(tree, PASSWD, str(user), epoch)
    _append(tree, SHADOW, f"{name}:!:{epoch // _DAY}:0:99999:7:::", epoch)
    if not own_group:
        joined = next((entry.name for entry in read_groups(tree) if entry.gid == gid), None)
        if joined is not None:
            add_member(tree, name, joined, epoch=epoch)
    if make_home:
        _make_home(tree, user, skeleton, epoch)
    return user


def set_password(tree: Tree, name: str, field: str, *, epoch: int = 0) -> None:
    """Set the password field of ``name`` in etc/shadow to ``field``: a hash, ``*``, ``!``, or nothing.

    Raises:
        AccountError: etc/shadow has no line for this user, or ``field`` contains a colon or a newline.
    """
    entry = next((line.split(":") for line in _lines(tree, SHADOW) if line.split(":")[0] == name), None)
    if entry is None or len(entry) < 3:
        raise AccountError(f"unknown user {name}")
    if ":" in field or "\n" in field:
        raise AccountError("improper characters in a password field")
    _write(tree, PASSWD, _lines(tree, PASSWD), epoch)  # busybox writes both, so both get a new copy
    _edit(tree, SHADOW, name, ":".join([name, field, str(epoch // _DAY), *entry[3:]]), epoch)


def password(tree: Tree, name: str) -> str | None:
    """Return the password field of ``name`` in etc/shadow, None if it has no line there."""
    return next((line.split(":")[1] for line in _lines(tree, SHADOW) if line.startswith(f"{name}:")), None)


def ensure_group(tree: Tree, name: str, gid: int | None = None, *, epoch: int = 0) -> GroupEntry:
    """Return the group ``name``; add it if it is missing (in the system range unless ``gid`` is given).

    Raises:
        AccountError: it exists with another number, or cannot be added.
    """
    group = find_group(tree, name)
    if group is None:
        return add_group(tree, name, gid=gid, system=True, epoch=epoch)
    if gid is not None and group.gid != gid:
        raise AccountError(f"group '{name}' exists with gid {group.gid}, not {gid}")
    return group


def ensure_user(
    tree: Tree,
    name: str,
    *,
    uid: int | None = None,
    home: str | None = None,
    shell: str = "/bin/sh",
    groups: Sequence[str] = (),
    epoch: int = 0,
) -> PasswdEntry:
    """Return the user ``name`` and make it a member of ``groups``; add it if it is missing.

    A new user gets a primary group of the same name and a home directory of mode 2755. No password is valid for it, but
    the account is not locked for keys. A user or group that exists is used as it is.

    Raises:
        AccountError: the user or group exists with another number, a group of ``groups`` is missing, or a number is in
            use.
    """
    user = find_user(tree, name)
    if user is not None and uid is not None and user.uid != uid:
        raise AccountError(f"user '{name}' exists with uid {user.uid}, not {uid}")
    if user is None:
        ensure_group(tree, name, uid, epoch=epoch)
        number = _free({user.uid for user in read_users(tree)}, system=False) if uid is None else uid
        user = add_user(tree, name, uid=number, group=name, home=home, shell=shell, make_home=True, epoch=epoch)
        set_password(tree, name, UNUSABLE, epoch=epoch)
    for group in groups:
        add_member(tree, name, group, epoch=epoch)
    return user


def _check_name(name: str) -> None:
    """Check a name by busybox's rule: letters, digits, ``_``; ``.`` and ``-`` not first; ``$`` only last.

    Raises:
        AccountError: the name breaks the rule.
    """
    if not name or len(name) > _MAX_NAME:
        raise AccountError("illegal character with code 0 at position 0" if not name else "name is too long")
    for position, character in enumerate(name):
        ordinary = character.isascii() and (character.isalnum() or character == "_")
        inner = position > 0 and (character in ".-" or (character == "$" and position == len(name) - 1))
        if not ordinary and not inner:
            raise AccountError(f"illegal character with code {ord(character)} at position {position}")


def _uid(tree: Tree, users: Sequence[PasswdEntry], uid: int | None, *, system: bool, own_group: bool) -> int:
    """Return the number for a new user; its own group, if it gets one, must be able to have the same number."""
    taken = {user.uid for user in users} | ({group.gid for group in read_groups(tree)} if own_group else set())
    if uid is None:
        return _free(taken, system=system)
    if uid in taken:
        raise AccountError(f"uid '{uid}' in use")
    return uid


def _existing_group(tree: Tree, name: str) -> GroupEntry:
    group = find_group(tree, name)
    if group is None:
        raise AccountError(f"unknown group {name}")
    return group


def _free(taken: set[int], *, system: bool) -> int:
    for number in _SYSTEM if system else _ORDINARY:
        if number not in taken:
            return number
    raise AccountError("no number left")


def _make_home(tree: Tree, user: PasswdEntry, skeleton: str, epoch: int) -> None:
    """Give the home directory its owner and mode 2755; a new one also gets the files of the skeleton."""
    home = tree.resolve(user.home)
    if home not in tree:
        if not isinstance(tree.get(parent(home)), Directory):
            return  # adduser prints an error here, but exits with status 0
        tree.mkdir(home, mtime=epoch)
        _copy_skeleton(tree, tree.resolve(skeleton), home, user)
    if isinstance(tree[home], Directory):
        tree.change(home, mode=0o2755, uid=user.uid, gid=user.gid)


def _copy_skeleton(tree: Tree, skeleton: str, home: str, user: PasswdEntry) -> None:
    if skeleton not in tree or not isinstance(tree[skeleton], Directory):
        return
    for path, node in list(tree.walk(skeleton)):
        if path != skeleton:
            tree.add(home + path[len(skeleton) :], replace(node, uid=user.uid, gid=user.gid))


def _lines(tree: Tree, path: str) -> list[str]:
    """Return the lines of a file. Only a newline ends a line, as for the C library that reads the file in the guest."""
    text = tree.text(path) if isinstance(tree.stat(path), File) else ""
    return text.removesuffix("\n").split("\n") if text else []


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= _MAX_ID


def _append(tree: Tree, path: str, line: str, epoch: int) -> None:
    """Append a line. As busybox, do not create etc/shadow where there is none."""
    if path != SHADOW or isinstance(tree.stat(path), File):
        _write(tree, path, [*_lines(tree, path), line], epoch)


def _edit(tree: Tree, path: str, name: str, line: str, epoch: int) -> None:
    """Replace the first line of ``name`` in the file at ``path``."""
    lines = _lines(tree, path)
    index = next(index for index, old in enumerate(lines) if old.split(":")[0] == name)
    _write(tree, path, [*lines[:index], line, *lines[index + 1 :]], epoch)


def _write(tree: Tree, path: str, lines: Sequence[str], epoch: int) -> None:
    """Replace a file; the old one is kept, with its attributes, under the name that ends in ``-``."""
    place = tree.resolve(path)
    old = tree.get(place)
    if isinstance(old, File):
        tree.add(place + "-", old)
    tree.write(place, "".join(f"{line}\n" for line in lines), mtime=epoch)
