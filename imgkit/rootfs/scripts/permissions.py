"""Commands of package scripts that change modes and owners, as busybox has them: chmod, chown, chgrp."""

from __future__ import annotations

import re
from collections.abc import Mapping

from imgkit.rootfs.accounts import lookup
from imgkit.rootfs.scripts.budget import whole_number
from imgkit.rootfs.scripts.state import Command, Failed, ShellState, Streams, for_each_operand, options
from imgkit.tree import Directory, File, HardLink, Node, Symlink

_CLAUSE = re.compile(r"([ugoa]*)((?:[-+=][rwxXst]*)+)")
_MAX_MODE = 64  # characters of a mode, which is parsed again for every file
_MAX_ID = (1 << 32) - 2  # of a user or group
_CLASSES = {"u": 0o4700, "g": 0o2070, "o": 0o0007, "a": 0o7777}
_PERMISSIONS = {"r": 0o444, "w": 0o222, "x": 0o111, "X": 0o111, "s": 0o6000, "t": 0o1000}


def mode_of(text: str, node: Node, umask: int) -> int:
    """Return the mode that ``chmod TEXT`` gives to ``node``.

    Args:
        text: an octal or symbolic mode, such as ``755`` or ``u+x,go-w``.
        node: what is changed.
        umask: permissions that a clause without ``ugoa`` leaves alone.

    Raises:
        Failed: the text is not a mode, or has more than 64 characters.
    """
    if len(text) > _MAX_MODE:
        raise Failed(f"invalid mode '{text[:_MAX_MODE]}…'")
    if re.fullmatch(r"[0-7]{1,4}", text):
        return int(text, 8)
    mode = node.mode
    for clause in text.split(","):
        match = _CLAUSE.fullmatch(clause)
        if not match:
            raise Failed(f"invalid mode '{text}'")
        for action in re.findall(r"[-+=][rwxXst]*", match[2]):
            executable = isinstance(node, Directory) or mode & 0o111 > 0
            mode = _changed(mode, match[1], action, umask, executable=executable)
    return mode


def _changed(mode: int, classes: str, action: str, umask: int, *, executable: bool) -> int:
    """Apply one action of a clause to ``mode``, such as ``+x`` for the classes ``ug``, and return the result."""
    mask = 0
    for letter in classes or "a":
        mask |= _CLASSES[letter]
    bits = 0
    for letter in action[1:]:
        bits |= _PERMISSIONS[letter] if letter != "X" or executable else 0
    bits &= mask if classes else mask & ~umask
    if action[0] == "+":
        return mode | bits
    return mode & ~bits if action[0] == "-" else (mode & ~mask) | bits


def chmod(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """Run ``chmod [-Rvfc] MODE FILE…``; a mode such as ``-x`` is not taken for an option."""
    signs = [word for word in arguments if re.fullmatch(r"-[rwxXst,=+ugoa-]+", word)]
    flags, operands = options([word for word in arguments if word not in signs[:1]], "Rvfc")
    mode, *files = signs[:1] + operands or [""]
    if not files:
        raise Failed("missing operand")

    def change(file: str) -> None:
        top = state.existing(file)
        for path in state.walk(top) if "R" in flags else [top]:
            node = state.tree[path]
            if not isinstance(node, Symlink):
                state.tree.change(path, mode=mode_of(mode, node, state.umask))

    return for_each_operand(streams, "chmod", files, change)


def owner_of(state: ShellState, text: str) -> tuple[int | None, int | None]:
    """Return the uid and gid of ``user``, ``user:group``, ``user:`` or ``:group``; None for a part that is missing.

    Raises:
        Failed: a name is unknown.
    """
    numbers = lookup(state.accounts())
    user, colon, group = text.partition(":")
    return _number(numbers.users, user, "user"), _number(numbers.groups, group, "group") if colon else None


def _number(numbers: Mapping[str, int], name: str, kind: str) -> int | None:
    if not name:
        return None
    if name in numbers:
        return numbers[name]
    number = whole_number(name)
    if number is not None and number <= _MAX_ID:
        return number
    raise Failed(f"unknown {kind} {name[:80]}")


def set_owner(state: ShellState, path: str, uid: int | None, gid: int | None) -> None:
    """Change the owner as chown(2) does, which also clears set-user-id and set-group-id, but not of a directory."""
    node = state.tree[path]
    mode = node.mode
    if isinstance(node, File | HardLink):
        mode &= ~(0o6000 if mode & 0o010 else 0o4000)
    state.tree.change(path, mode=mode, uid=uid, gid=gid)


def chown(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """Run ``chown [-Rhvfc] OWNER[:GROUP] FILE…``."""
    flags, operands = options(arguments, "Rhvfc", {"recursive": "R", "no-dereference": "h"})
    owner, *files = operands or [""]
    if not files:
        raise Failed("missing operand")
    uid, gid = owner_of(state, owner)
    return for_each_operand(streams, "chown", files, lambda file: _chown(state, flags, uid, gid, file))


def chgrp(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """Run ``chgrp [-Rhvfc] GROUP FILE…``."""
    flags, operands = options(arguments, "Rhvfc")
    group, *files = operands or [""]
    if not files:
        raise Failed("missing operand")
    _, gid = owner_of(state, f":{group}")
    return for_each_operand(streams, "chgrp", files, lambda file: _chown(state, flags, None, gid, file))


def _chown(state: ShellState, flags: Mapping[str, str], uid: int | None, gid: int | None, file: str) -> None:
    """Change the owner of a file, or with -R of all below it; -R and -h change links instead of what they lead to."""
    top = state.existing(file, follow="h" not in flags and "R" not in flags)
    for path in state.walk(top) if "R" in flags else [top]:
        set_owner(state, path, uid, gid)


COMMANDS: Mapping[str, Command] = {"chmod": chmod, "chown": chown, "chgrp": chgrp}
