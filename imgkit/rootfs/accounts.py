"""Users and groups of the Tree: etc/passwd, etc/group, etc/shadow and the copies that end in ``-``.

The rules are those of busybox's adduser and addgroup (1.37), measured: system accounts take the smallest free number
from 100 to 999, others from 1000; a system user without a group of its own goes into ``nogroup`` (65533); whoever is
added is also listed as a member. The day in etc/shadow comes from the caller's epoch, so builds are reproducible.
File formats: passwd(5), group(5), shadow(5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from imgkit.tree import Directory, File, Tree, parent

PASSWD, GROUP, SHADOW = "etc/passwd", "etc/group", "etc/shadow"
NOGROUP = 65533
_SYSTEM = range(100, 1000)
_ORDINARY = range(1000, 60000)
_DAY = 86400
_MAX_NAME = 255
_MAX_ID = (1 << 32) - 2  # of a user or group, as Linux has them


class AccountError(Exception):
    """What adduser or addgroup would say before it fails."""


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
    """Numbers by name."""

    users: Mapping[str, int]
    groups: Mapping[str, int]


def lookup(tree: Tree) -> AccountNumbers:
    """The numbers that names stand for in the Tree now; ``root`` is 0 even where there are no files yet."""
    users = {user.name: user.uid for user in reversed(read_users(tree))}
    groups = {group.name: group.gid for group in reversed(read_groups(tree))}
    return AccountNumbers({"root": 0, **users}, {"root": 0, **groups})


def read_users(tree: Tree) -> list[PasswdEntry]:
    """The lines of etc/passwd that are of the format; others are left out."""
    users = []
    for line in _lines(tree, PASSWD):
        fields = line.split(":")
        if len(fields) >= 7 and _is_id(fields[2]) and _is_id(fields[3]):
            gecos, home, shell = ":".join(fields[4:-2]), fields[-2], fields[-1]
            users.append(PasswdEntry(fields[0], int(fields[2]), int(fields[3]), gecos, home, shell))
    return users


def read_groups(tree: Tree) -> list[GroupEntry]:
    """The lines of etc/group that are of the format; others are left out."""
    groups = []
    for line in _lines(tree, GROUP):
        fields = line.split(":")
        if len(fields) == 4 and _is_id(fields[2]):
            groups.append(GroupEntry(fields[0], int(fields[2]), tuple(filter(None, fields[3].split(",")))))
    return groups


def find_user(tree: Tree, name: str) -> PasswdEntry | None:
    """The user of this name."""
    return next((user for user in read_users(tree) if user.name == name), None)


def find_group(tree: Tree, name: str) -> GroupEntry | None:
    """The group of this name."""
    return next((group for group in read_groups(tree) if group.name == name), None)


def add_group(tree: Tree, name: str, *, gid: int | None = None, system: bool = False, epoch: int = 0) -> GroupEntry:
    """``addgroup [-S] [-g GID] NAME``.

    Raises:
        AccountError: an improper name, name or number in use, no number left.
    """
    check_name(name)
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
    """``addgroup USER GROUP``; nothing happens if the user is a member already.

    Raises:
        AccountError: there is no such user or group.
    """
    if find_user(tree, user) is None:
        raise AccountError(f"unknown user {user}")
    found = find_group(tree, group)
    if found is None:
        raise AccountError(f"unknown group {group}")
    if user not in found.members:
        _edit(tree, GROUP, group, str(replace(found, members=(*found.members, user))), epoch)


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
    """``adduser -D [-S] [-H] [-u UID] [-G GROUP] [-h HOME] [-s SHELL] [-g GECOS] [-k SKELETON] NAME``.

    Raises:
        AccountError: an improper name, name or number in use, unknown group, no number left.
    """
    check_name(name)
    users = read_users(tree)
    if any(user.name == name for user in users):
        raise AccountError(f"user '{name}' in use")
    own_group = group is None and not system
    number = _uid(tree, users, uid, system=system, own_group=own_group)
    gid = add_group(tree, name, gid=number, epoch=epoch).gid if own_group else _primary(tree, group)
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
    """Put ``field`` (a hash, ``*``, ``!``, or nothing) where etc/shadow has the password of ``name``.

    Raises:
        AccountError: there is no such user, or no line for it in etc/shadow.
    """
    entry = next((line.split(":") for line in _lines(tree, SHADOW) if line.split(":")[0] == name), None)
    if entry is None or len(entry) < 3:
        raise AccountError(f"unknown user {name}")
    if ":" in field or "\n" in field:
        raise AccountError("improper characters in a password field")
    _write(tree, PASSWD, _lines(tree, PASSWD), epoch)  # busybox writes both, so both get a new copy
    _edit(tree, SHADOW, name, ":".join([name, field, str(epoch // _DAY), *entry[3:]]), epoch)


def password(tree: Tree, name: str) -> str | None:
    """The password field of ``name`` in etc/shadow."""
    return next((line.split(":")[1] for line in _lines(tree, SHADOW) if line.startswith(f"{name}:")), None)


def ensure_group(tree: Tree, name: str, gid: int | None = None, *, epoch: int = 0) -> GroupEntry:
    """The group ``name``, made (system range unless ``gid`` is given) if it is missing.

    Raises:
        AccountError: it exists with another number, or cannot be made.
    """
    found = find_group(tree, name)
    if found is None:
        return add_group(tree, name, gid=gid, system=True, epoch=epoch)
    if gid is not None and found.gid != gid:
        raise AccountError(f"group '{name}' exists with gid {found.gid}, not {gid}")
    return found


def ensure_user(
    tree: Tree,
    name: str,
    *,
    uid: int | None = None,
    gid: int | None = None,
    home: str | None = None,
    shell: str = "/bin/sh",
    groups: Sequence[str] = (),
    shadow_field: str = "*",
    epoch: int = 0,
) -> PasswdEntry:
    """The user ``name`` with a primary group of the same name, a home directory (2755) and membership in ``groups``.

    Whatever exists already is used as it is. The default field of etc/shadow lets nobody in by password, but does not
    lock the account for keys.

    Raises:
        AccountError: user or group exist with other numbers, a group of ``groups`` is missing, a number is in use.
    """
    found = find_user(tree, name)
    if found is not None and uid is not None and found.uid != uid:
        raise AccountError(f"user '{name}' exists with uid {found.uid}, not {uid}")
    if found is None:
        ensure_group(tree, name, gid if gid is not None else uid, epoch=epoch)
        number = _free({user.uid for user in read_users(tree)}, system=False) if uid is None else uid
        found = add_user(tree, name, uid=number, group=name, home=home, shell=shell, make_home=True, epoch=epoch)
        set_password(tree, name, shadow_field, epoch=epoch)
    for group in groups:
        add_member(tree, name, group, epoch=epoch)
    return found


def check_name(name: str) -> None:
    """busybox's rule for names: letters, digits, ``_``; ``.`` and ``-`` not first; ``$`` only last.

    Raises:
        AccountError: the name breaks it.
    """
    if not name or len(name) > _MAX_NAME:
        raise AccountError("illegal character with code 0 at position 0" if not name else "name is too long")
    for position, character in enumerate(name):
        ordinary = character.isascii() and (character.isalnum() or character == "_")
        inner = position > 0 and (character in ".-" or (character == "$" and position == len(name) - 1))
        if not ordinary and not inner:
            raise AccountError(f"illegal character with code {ord(character)} at position {position}")


def _uid(tree: Tree, users: Sequence[PasswdEntry], uid: int | None, *, system: bool, own_group: bool) -> int:
    """The number for a new user; that of its own group must be free as well."""
    taken = {user.uid for user in users} | ({group.gid for group in read_groups(tree)} if own_group else set())
    if uid is None:
        return _free(taken, system=system)
    if uid in taken:
        raise AccountError(f"uid '{uid}' in use")
    return uid


def _primary(tree: Tree, group: str | None) -> int:
    if group is None:
        return NOGROUP
    found = find_group(tree, group)
    if found is None:
        raise AccountError(f"unknown group {group}")
    return found.gid


def _free(taken: set[int], *, system: bool) -> int:
    for number in _SYSTEM if system else _ORDINARY:
        if number not in taken:
            return number
    raise AccountError("no number left")


def _make_home(tree: Tree, user: PasswdEntry, skeleton: str, epoch: int) -> None:
    """Make or take over the home directory: owner and mode 2755; a new one gets what the skeleton has."""
    home = tree.resolve(user.home)
    if home not in tree:
        if not isinstance(tree.get(parent(home)), Directory):
            return  # adduser complains here, and exits 0 all the same
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
    """The lines of a file; only a newline ends one, as for the C library that reads it in the guest."""
    text = tree.text(path) if isinstance(tree.stat(path), File) else ""
    return text.removesuffix("\n").split("\n") if text else []


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= _MAX_ID


def _append(tree: Tree, path: str, line: str, epoch: int) -> None:
    """Add a line. busybox makes no etc/shadow where there is none."""
    if path != SHADOW or isinstance(tree.stat(path), File):
        _write(tree, path, [*_lines(tree, path), line], epoch)


def _edit(tree: Tree, path: str, name: str, line: str, epoch: int) -> None:
    """Replace the first line of ``name``."""
    lines = _lines(tree, path)
    index = next(index for index, old in enumerate(lines) if old.split(":")[0] == name)
    _write(tree, path, [*lines[:index], line, *lines[index + 1 :]], epoch)


def _write(tree: Tree, path: str, lines: Sequence[str], epoch: int) -> None:
    """Write a file anew; the old one, attributes and all, stays as the copy that ends in ``-``."""
    where = tree.resolve(path)
    old = tree.get(where)
    if isinstance(old, File):
        tree.add(where + "-", old)
    tree.write(where, "".join(f"{line}\n" for line in lines), mtime=epoch)
