"""Commands of package scripts that change files, as busybox has them: ln, mkdir, chmod, chown, rm, mv, cp, install …"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from imgkit.rootfs.accounts import lookup
from imgkit.rootfs.scripts.budget import NODE, whole_number
from imgkit.rootfs.scripts.state import Command, Failed, ShellState, Streams, each, options
from imgkit.rootfs.scripts.words import Unsupported
from imgkit.tree import Content, Directory, File, HardLink, Inline, Node, Symlink, parent

_CLAUSE = re.compile(r"([ugoa]*)((?:[-+=][rwxXst]*)+)")
_LONGEST_MODE = 64
_WHO = {"u": 0o4700, "g": 0o2070, "o": 0o0007, "a": 0o7777}
_LARGEST_ID = (1 << 32) - 2  # of a user or group
_BITS = {"r": 0o444, "w": 0o222, "x": 0o111, "X": 0o111, "s": 0o6000, "t": 0o1000}


def _name(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _destination(state: ShellState, source: str, target: str) -> str:
    """Where ``source`` goes: into ``target`` if that is a directory."""
    return f"{target.rstrip('/')}/{_name(source)}" if state.is_directory(target) else target


def _sources(operands: list[str]) -> tuple[list[str], str]:
    if len(operands) < 2:
        raise Failed("missing operand")
    return operands[:-1], operands[-1]


def ln(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """``ln [-sfnv] TARGET… LINK|DIRECTORY``."""
    flags, operands = options(arguments, "sfnv")
    if len(operands) == 1:
        operands = [operands[0], "."]
    sources, target = _sources(operands)

    def link(source: str) -> None:
        keep = "n" in flags and isinstance(state.node(target, follow=False), Symlink)
        place = state.path(target if keep else _destination(state, source, target), follow=False)
        if place in state.tree and "f" not in flags:
            raise Failed(f"{place}: File exists")
        if "s" in flags:
            _replace(state, place, Symlink(target=source, mtime=state.epoch))
            return
        file = state.existing(source, follow=False)
        old = state.tree[file]
        if not isinstance(old, File | HardLink):
            raise Unsupported(f"a hard link to /{file}, which is no regular file")
        _replace(state, place, HardLink(target=old.target if isinstance(old, HardLink) else file, mode=old.mode))

    return each(streams, "ln", sources, link)


def _replace(state: ShellState, place: str, node: Node) -> None:
    if isinstance(state.tree.get(place), Directory) and not isinstance(node, Directory):
        raise Failed(f"{place}: Is a directory")
    state.add(place, node)


def mkdir(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """``mkdir [-pv] [-m MODE] DIRECTORY…``."""
    flags, operands = options(arguments, "pvm:", ["parents", "mode="])
    wanted = flags.get("m", flags.get("mode"))
    parents = "p" in flags or "parents" in flags

    def make(operand: str) -> None:
        path = state.path(operand)
        if path in state.tree:
            if parents and isinstance(state.tree[path], Directory):
                return
            raise Failed(f"can't create directory '{operand}': File exists")
        if state.path(operand, follow=False) in state.tree:  # a link to nothing
            raise Failed(f"can't create directory '{operand}': File exists")
        if parents:
            make_parents(state, path)
        elif not isinstance(state.tree.get(parent(path)), Directory):
            raise Failed(f"can't create directory '{operand}': No such file or directory")
        _new_directory(state, path)
        if wanted is not None:
            state.tree.change(path, mode=mode_of(wanted, state.tree[path], state.umask))

    return each(streams, "mkdir", operands, make)


def _new_directory(state: ShellState, path: str) -> None:
    state.add(path, Directory(mode=0o777 & ~state.umask, mtime=state.epoch))


def make_parents(state: ShellState, path: str) -> None:
    """Make the missing directories above ``path``."""
    above = parent(path)
    if above and above not in state.tree:
        make_parents(state, above)
        _new_directory(state, above)


def mode_of(text: str, node: Node, umask: int) -> int:
    """The mode that chmod's ``text`` (octal or symbolic) makes of that of ``node``.

    Raises:
        Failed: it is not a mode, or longer than one needs to be: it is read again for each file.
    """
    if len(text) > _LONGEST_MODE:
        raise Failed(f"invalid mode '{text[:_LONGEST_MODE]}…'")
    if re.fullmatch(r"[0-7]{1,4}", text):
        return int(text, 8)
    mode = node.mode
    for clause in text.split(","):
        found = _CLAUSE.fullmatch(clause)
        if not found:
            raise Failed(f"invalid mode '{text}'")
        for action in re.findall(r"[-+=][rwxXst]*", found.group(2)):
            mode = _apply(mode, found.group(1), action, umask, runnable=isinstance(node, Directory) or mode & 0o111 > 0)
    return mode


def _apply(mode: int, who: str, action: str, umask: int, *, runnable: bool) -> int:
    mask = 0
    for letter in who or "a":
        mask |= _WHO[letter]
    bits = 0
    for letter in action[1:]:
        bits |= _BITS[letter] if letter != "X" or runnable else 0
    bits &= mask if who else mask & ~umask
    if action[0] == "+":
        return mode | bits
    return mode & ~bits if action[0] == "-" else (mode & ~mask) | bits


def chmod(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """``chmod [-Rvfc] MODE FILE…``; a mode such as ``-x`` is not taken for an option."""
    signs = [word for word in arguments if re.fullmatch(r"-[rwxXst,=+ugoa-]+", word)]
    flags, operands = options([word for word in arguments if word not in signs[:1]], "Rvfc")
    wanted, *files = signs[:1] + operands or [""]
    if not files:
        raise Failed("missing operand")

    def change(path: str) -> None:
        node = state.tree[path]
        state.tree.change(path, mode=mode_of(wanted, node, state.umask))

    def operand(text: str) -> None:
        top = state.existing(text)
        for path in state.walk(top) if "R" in flags else [top]:
            if not isinstance(state.tree[path], Symlink):
                change(path)

    return each(streams, "chmod", files, operand)


def owner_of(state: ShellState, text: str) -> tuple[int | None, int | None]:
    """Numbers for ``user``, ``user:group``, ``user:`` or ``:group``; None where nothing is said.

    Raises:
        Failed: an unknown name.
    """
    names = lookup(state.accounts())
    user, colon, group = text.partition(":")
    return _number(names.users, user, "user"), _number(names.groups, group, "group") if colon else None


def _number(numbers: Mapping[str, int], name: str, what: str) -> int | None:
    if not name:
        return None
    if name in numbers:
        return numbers[name]
    number = whole_number(name)
    if number is not None and number <= _LARGEST_ID:
        return number
    raise Failed(f"unknown {what} {name[:80]}")


def _chown(state: ShellState, flags: Mapping[str, str], uid: int | None, gid: int | None, text: str) -> None:
    recursive, links = "R" in flags, "h" in flags or "R" in flags
    top = state.existing(text, follow=not links)
    for path in state.walk(top) if recursive else [top]:
        set_owner(state, path, uid, gid)


def set_owner(state: ShellState, path: str, uid: int | None, gid: int | None) -> None:
    """chown(2): also takes set-user-id and set-group-id away from a file (not from a directory)."""
    node = state.tree[path]
    mode = node.mode
    if isinstance(node, File | HardLink):
        mode &= ~(0o6000 if mode & 0o010 else 0o4000)
    state.tree.change(path, mode=mode, uid=uid, gid=gid)


def chown(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """``chown [-Rhvfc] OWNER[:GROUP] FILE…``."""
    flags, operands = options(arguments, "Rhvfc", ["recursive", "no-dereference"])
    flags = {**flags, **({"R": ""} if "recursive" in flags else {}), **({"h": ""} if "no-dereference" in flags else {})}
    owner, *files = operands or [""]
    if not files:
        raise Failed("missing operand")
    uid, gid = owner_of(state, owner)
    return each(streams, "chown", files, lambda text: _chown(state, flags, uid, gid, text))


def chgrp(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """``chgrp [-Rhvfc] GROUP FILE…``."""
    flags, operands = options(arguments, "Rhvfc")
    group, *files = operands or [""]
    if not files:
        raise Failed("missing operand")
    gid = owner_of(state, f":{group}")[1]
    return each(streams, "chgrp", files, lambda text: _chown(state, flags, None, gid, text))


def rm(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """``rm [-rRfv] FILE…``."""
    flags, operands = options(arguments, "rRfvi")
    recursive = "r" in flags or "R" in flags

    def remove(text: str) -> None:
        path = state.path(text, follow=False)
        if path not in state.tree:
            if "f" in flags:
                return
            raise Failed(f"can't remove '{text}': No such file or directory")
        if isinstance(state.tree[path], Directory) and not recursive:
            raise Failed(f"'{text}' is a directory")
        remove_all(state, path)

    return each(streams, "rm", operands, remove)


def remove_all(state: ShellState, top: str) -> None:
    """Remove ``top`` and all below it."""
    for path in reversed(state.walk(top)):
        state.tree.remove(path)


def rmdir(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """``rmdir [-p] DIRECTORY…``."""
    flags, operands = options(arguments, "p", ["ignore-fail-on-non-empty"])

    def remove(text: str) -> None:
        path = state.path(text, follow=False)
        if not isinstance(state.tree.get(path), Directory):
            raise Failed(f"'{text}': No such file or directory")
        if state.tree.count(path):
            if "ignore-fail-on-non-empty" in flags:
                return
            raise Failed(f"'{text}': Directory not empty")
        state.tree.remove(path)
        if "p" in flags and parent(text.rstrip("/")):
            remove(parent(text.rstrip("/")))

    return each(streams, "rmdir", operands, remove)


def mv(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """``mv [-fnv] SOURCE… TARGET``."""
    flags, operands = options(arguments, "fnv")
    sources, target = _sources(operands)

    def move(source: str) -> None:
        old = state.existing(source, follow=False)
        new = state.path(_destination(state, source, target), follow=False)
        if "n" in flags and new in state.tree:
            return
        if new == old or new.startswith(old + "/"):
            raise Failed(f"can't rename '{source}': Invalid argument")
        _copy_nodes(state, old, new, keep=True)
        remove_all(state, old)

    return each(streams, "mv", sources, move)


def _copy_nodes(state: ShellState, old: str, new: str, *, keep: bool) -> None:
    """Copy a file or a whole directory, with owners and modes if ``keep``."""
    for path in state.walk(old):
        node = state.tree[path]
        if isinstance(node, HardLink):
            if keep:
                raise Unsupported(f"moving or copying the hard link /{path}")
            node = state.tree[node.target]
        place = new + path[len(old) :]
        if keep:
            state.budget.memory(NODE + len(place))
            state.tree.add(place, node)
        else:
            fresh = replace(node, uid=0, gid=0, mtime=state.epoch)
            mode = node.mode if isinstance(node, Symlink) else node.mode & ~state.umask
            state.add(place, replace(fresh, mode=mode))


def cp(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """``cp [-aprRfdPnv] SOURCE… TARGET``."""
    flags, operands = options(arguments, "aprRfdPnv")
    sources, target = _sources(operands)
    recursive, keep = bool({"a", "r", "R"} & set(flags)), bool({"a", "p"} & set(flags))

    def copy(source: str) -> None:
        follow = not (recursive or {"d", "P"} & set(flags))
        old = state.existing(source, follow=follow)
        new = state.path(_destination(state, source, target), follow=False)
        if isinstance(state.tree[old], Directory) and not recursive:
            raise Failed(f"omitting directory '{source}'")
        if "n" in flags and new in state.tree:
            return
        if new == old or new.startswith(old + "/"):
            raise Failed(f"can't copy '{source}' to itself")
        present = state.tree.get(new)
        node = state.tree[old]
        if not keep and isinstance(present, File) and isinstance(node, File):
            state.tree.add(new, replace(present, content=node.content, mtime=state.epoch))
            return
        _copy_nodes(state, old, new, keep=keep)

    return each(streams, "cp", sources, copy)


def touch(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """``touch [-c] FILE…``."""
    flags, operands = options(arguments, "c")

    def make(text: str) -> None:
        path = state.path(text)
        if path in state.tree:
            node = state.tree[path]
            if not isinstance(node, HardLink):
                state.tree.add(path, replace(node, mtime=state.epoch))
        elif "c" not in flags:
            new_file(state, path)

    return each(streams, "touch", operands, make)


def new_file(state: ShellState, path: str, content: Content = Inline(b"")) -> None:  # noqa: B008 - it is frozen
    """Make a file as open(2) does, the umask applied.

    Raises:
        Failed: the directory is missing.
    """
    if not isinstance(state.tree.get(parent(path)), Directory):
        raise Failed(f"/{path}: No such file or directory")
    state.add(path, File(content=content, mode=0o666 & ~state.umask, mtime=state.epoch))


def _content(state: ShellState, source: str) -> Content:
    if source == "/dev/null":
        return Inline(b"")
    node = state.node(source)
    if not isinstance(node, File):
        raise Failed(f"can't stat '{source}': No such file or directory")
    return node.content


def install(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """``install [-dDvcp] [-m MODE] [-o OWNER] [-g GROUP] SOURCE… TARGET``, or ``-d DIRECTORY…``."""
    flags, operands = options(arguments, "dDvcpm:o:g:", ["directory", "mode=", "owner=", "group="])
    mode = flags.get("m", flags.get("mode", "0755"))
    uid, _ = owner_of(state, flags.get("o", flags.get("owner", "")))
    _, gid = owner_of(state, ":" + flags.get("g", flags.get("group", "")))

    def finish(path: str) -> None:
        set_owner(state, path, uid, gid)
        state.tree.change(path, mode=mode_of(mode, state.tree[path], 0))

    def directory(text: str) -> None:
        path = state.path(text)
        if path not in state.tree:
            make_parents(state, path)
            _new_directory(state, path)
        finish(path)

    def file(source: str) -> None:
        place = state.path(_destination(state, source, operands[-1]))
        if "D" in flags:
            make_parents(state, place)
        content = _content(state, source)
        if place in state.tree:
            state.tree.remove(place)
        new_file(state, place, content)
        finish(place)

    if "d" in flags or "directory" in flags:
        return each(streams, "install", operands, directory)
    return each(streams, "install", _sources(operands)[0], file)


COMMANDS: Mapping[str, Command] = {
    "ln": ln,
    "mkdir": mkdir,
    "chmod": chmod,
    "chown": chown,
    "chgrp": chgrp,
    "rm": rm,
    "rmdir": rmdir,
    "mv": mv,
    "cp": cp,
    "touch": touch,
    "install": install,
}
