"""Commands of package scripts that change files, as busybox has them: ln, mkdir, rm, mv, cp, touch, install …"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from imgkit.rootfs.scripts.budget import NODE
from imgkit.rootfs.scripts.permissions import mode_of, owner_of, set_owner
from imgkit.rootfs.scripts.state import Command, Failed, ShellState, Streams, base_name, for_each_operand, options
from imgkit.rootfs.scripts.words import Unsupported
from imgkit.tree import Content, Directory, File, HardLink, Inline, Symlink, parent


def _destination(state: ShellState, source: str, target: str) -> str:
    """Return the path to which ``source`` goes: a path in ``target`` if that is a directory, else ``target``."""
    return f"{target.rstrip('/')}/{base_name(source)}" if state.is_directory(target) else target


def _sources(operands: list[str]) -> tuple[list[str], str]:
    """Split the operands into the sources and the target, which is the last one."""
    if len(operands) < 2:
        raise Failed("missing operand")
    return operands[:-1], operands[-1]


def ln(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """Run ``ln [-sfnv] TARGET… LINK|DIRECTORY``."""
    flags, operands = options(arguments, "sfnv")
    if len(operands) == 1:
        operands = [operands[0], "."]
    sources, target = _sources(operands)

    def link(source: str) -> None:
        replaces_link = "n" in flags and isinstance(state.node(target, follow=False), Symlink)
        place = state.path(target if replaces_link else _destination(state, source, target), follow=False)
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

    return for_each_operand(streams, "ln", sources, link)


def _replace(state: ShellState, place: str, node: Symlink | HardLink) -> None:
    """Put a link in place of whatever is not a directory."""
    if isinstance(state.tree.get(place), Directory):
        raise Failed(f"{place}: Is a directory")
    state.add(place, node)


def mkdir(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """Run ``mkdir [-pv] [-m MODE] DIRECTORY…``."""
    flags, operands = options(arguments, "pvm:", {"parents": "p", "mode": "m"})
    parents = "p" in flags

    def make(operand: str) -> None:
        path = state.path(operand)
        if path in state.tree:
            if parents and isinstance(state.tree[path], Directory):
                return
            raise Failed(f"can't create directory '{operand}': File exists")
        if state.path(operand, follow=False) in state.tree:  # a dangling link
            raise Failed(f"can't create directory '{operand}': File exists")
        if parents:
            make_parents(state, path)
        elif not isinstance(state.tree.get(parent(path)), Directory):
            raise Failed(f"can't create directory '{operand}': No such file or directory")
        _new_directory(state, path)
        if "m" in flags:
            state.tree.change(path, mode=mode_of(flags["m"], state.tree[path], state.umask))

    return for_each_operand(streams, "mkdir", operands, make)


def _new_directory(state: ShellState, path: str) -> None:
    state.add(path, Directory(mode=0o777 & ~state.umask, mtime=state.epoch))


def make_parents(state: ShellState, path: str) -> None:
    """Make the missing directories above ``path``."""
    folder = parent(path)
    if folder and folder not in state.tree:
        make_parents(state, folder)
        _new_directory(state, folder)


def rm(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """Run ``rm [-rRfvi] FILE…``."""
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

    return for_each_operand(streams, "rm", operands, remove)


def remove_all(state: ShellState, top: str) -> None:
    """Remove ``top`` and everything below it."""
    for path in reversed(state.walk(top)):
        state.tree.remove(path)


def rmdir(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """Run ``rmdir [-p] DIRECTORY…``."""
    flags, operands = options(arguments, "p", {"ignore-fail-on-non-empty": "i"})

    def remove(text: str) -> None:
        path = state.path(text, follow=False)
        if not isinstance(state.tree.get(path), Directory):
            raise Failed(f"'{text}': No such file or directory")
        if state.tree.count(path):
            if "i" in flags:
                return
            raise Failed(f"'{text}': Directory not empty")
        state.tree.remove(path)
        if "p" in flags and parent(text.rstrip("/")):
            remove(parent(text.rstrip("/")))

    return for_each_operand(streams, "rmdir", operands, remove)


def mv(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """Run ``mv [-fnv] SOURCE… TARGET``."""
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

    return for_each_operand(streams, "mv", sources, move)


def _copy_nodes(state: ShellState, old: str, new: str, *, keep: bool) -> None:
    """Copy a file or a directory with everything below it.

    Args:
        keep: keep owners, modes and times; otherwise the copies belong to root and are new, and the umask applies.
    """
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
            fresh = replace(node, uid=0, gid=0, mtime=state.epoch, nanoseconds=0)
            mode = node.mode if isinstance(node, Symlink) else node.mode & ~state.umask
            state.add(place, replace(fresh, mode=mode))


def cp(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """Run ``cp [-aprRfdPnv] SOURCE… TARGET``."""
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
            state.tree.add(new, replace(present, content=node.content, mtime=state.epoch, nanoseconds=0))
            return
        _copy_nodes(state, old, new, keep=keep)

    return for_each_operand(streams, "cp", sources, copy)


def touch(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """Run ``touch [-c] FILE…``."""
    flags, operands = options(arguments, "c")

    def make(text: str) -> None:
        path = state.path(text)
        if path in state.tree:
            node = state.tree[path]
            if not isinstance(node, HardLink):
                state.tree.add(path, replace(node, mtime=state.epoch, nanoseconds=0))
        elif "c" not in flags:
            new_file(state, path)

    return for_each_operand(streams, "touch", operands, make)


def new_file(state: ShellState, path: str, content: Content = Inline(b"")) -> None:  # noqa: B008 - it is frozen
    """Make a file as open(2) does; the umask applies.

    Raises:
        Failed: there is no such directory.
    """
    if not isinstance(state.tree.get(parent(path)), Directory):
        raise Failed(f"/{path}: No such file or directory")
    state.add(path, File(content=content, mode=0o666 & ~state.umask, mtime=state.epoch))


def _content(state: ShellState, source: str) -> Content:
    """Return the content of a file that is installed."""
    if source == "/dev/null":
        return Inline(b"")
    node = state.node(source)
    if not isinstance(node, File):
        raise Failed(f"can't stat '{source}': No such file or directory")
    return node.content


def install(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """Run ``install [-dDvcp] [-m MODE] [-o OWNER] [-g GROUP] SOURCE… TARGET``, or ``-d DIRECTORY…``."""
    long = {"directory": "d", "mode": "m", "owner": "o", "group": "g"}
    flags, operands = options(arguments, "dDvcpm:o:g:", long)
    uid, _ = owner_of(state, flags.get("o", ""))
    _, gid = owner_of(state, ":" + flags.get("g", ""))

    def finish(path: str) -> None:
        set_owner(state, path, uid, gid)
        usual = replace(state.tree[path], mode=0o755)
        state.tree.change(path, mode=mode_of(flags.get("m", "755"), usual, state.umask))

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
        new_file(state, place, _content(state, source))
        finish(place)

    if "d" in flags:
        return for_each_operand(streams, "install", operands, directory)
    return for_each_operand(streams, "install", _sources(operands)[0], file)


COMMANDS: Mapping[str, Command] = {
    "ln": ln,
    "mkdir": mkdir,
    "rm": rm,
    "rmdir": rmdir,
    "mv": mv,
    "cp": cp,
    "touch": touch,
    "install": install,
}
