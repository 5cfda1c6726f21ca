"""Triggers, and the programs of the system that scripts may call and imgkit computes itself.

:data:`NATIVE` maps the name of such a program to its equivalent on the Tree. The program that a script calls decides,
not the package that the script is from: the rest of a trigger is interpreted as well, and one that calls something
unknown is refused. So the scripts of busybox, ca-certificates, kmod and mkinitfs work unchanged, in any version.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress

from imgkit.errors import RecipeError
from imgkit.rootfs import busybox, cacerts
from imgkit.rootfs.openrc import services
from imgkit.rootfs.scripts.budget import HEAVY, MAX_PATTERN, Budget
from imgkit.rootfs.scripts.patterns import shell_pattern
from imgkit.rootfs.scripts.state import Command, Failed, ShellState, Streams, options
from imgkit.rootfs.scripts.words import Unsupported
from imgkit.tree import File, Tree, TreeError

_UPDATE_HOOKS = "etc/ca-certificates/update.d"
_PART = re.compile(r"/[A-Za-z0-9_-]+$")  # names of the scripts that run-parts runs
_MODULE = re.compile(r"\.ko(\.gz|\.xz|\.zst)?")


def matching_directories(
    directories: Iterable[str],
    globs: Iterable[str],
    *,
    modified: Collection[str] | None = None,
    budget: Budget | None = None,
) -> tuple[str, ...]:
    """Return the directories that a trigger is called with, as sorted absolute paths (apk passes them unsorted).

    Args:
        directories: all directories of the installed database, relative to the root.
        globs: the patterns of the trigger, matched with FNM_PATHNAME, so ``*`` stops at a slash. A pattern that starts
            with ``+`` matches modified directories only.
        modified: directories that this run changed; None means all, as on a fresh install. The trigger of a package
            that is being installed sees everything that matches, so pass this for older packages only.
        budget: what compiling and matching the patterns is charged to; by default a budget for this call.

    Raises:
        Exhausted: the patterns cost more than one run of a script may.
    """
    budget = budget or Budget()
    matching: set[str] = set()
    patterns = []
    for glob in globs:
        if len(glob) > MAX_PATTERN:
            continue  # no path is that long
        with suppress(ValueError):  # for fnmatch(3), too, a pattern that is not valid matches nothing
            compiled = shell_pattern(glob.removeprefix("+"), budget, pathname=True)
            patterns.append((compiled, len(glob), glob.startswith("+")))
    for directory in directories:
        path = "/" + directory.strip("/")
        is_modified = modified is None or directory in modified
        depth = path.count("/") + 1
        for pattern, length, modified_only in patterns:
            budget.work(1)
            if (is_modified or not modified_only) and len(pattern.parts) == depth:
                budget.scan(len(path), length)
                if pattern.fullmatch(path):
                    matching.add(path)
    return tuple(sorted(matching))


def unlisted_modules(tree: Tree, release: str) -> list[str]:
    """Return the modules in lib/modules/<release> that modules.dep does not list, and those that it lists but that are
    missing."""
    top = tree.resolve(f"lib/modules/{release}")
    index = f"{top}/modules.dep"
    text = tree.text(index) if isinstance(tree.stat(index), File) else ""
    listed = {line.partition(":")[0] for line in text.splitlines() if line}
    present = {
        path[len(top) + 1 :]
        for path, node in (tree.walk(top) if top in tree else ())
        if isinstance(node, File) and _MODULE.search(path)
    }
    return sorted(present ^ listed)


def depmod(state: ShellState, arguments: list[str], _: Streams) -> int:
    """Run ``depmod [-a] RELEASE``, which does nothing if the index in the kernel's package is complete."""
    state.budget.work(HEAVY)
    operands = options(arguments, "a")[1]
    if len(operands) != 1:
        raise Unsupported("depmod for the running kernel")
    release = operands[0]
    if state.path(f"/lib/modules/{release}") not in state.tree:
        raise Failed(f"depmod: could not open directory /lib/modules/{release}")
    unlisted = unlisted_modules(state.tree, release)
    if unlisted:
        raise Unsupported(f"depmod {release}: {unlisted[0]} is not in the kernel's index of modules")
    return 0


def mkinitfs(state: ShellState, arguments: list[str], _: Streams) -> int:
    """Run ``mkinitfs -o FILE RELEASE``."""
    state.budget.work(HEAVY)
    flags, operands = options(arguments, "o:")
    if "o" not in flags or len(operands) != 1:
        raise Unsupported(f"mkinitfs {' '.join(arguments)}")
    if state.hooks.mkinitfs is None:
        raise Unsupported("mkinitfs")
    state.hooks.mkinitfs(state.tree, operands[0], state.path(flags["o"]))
    return 0


def update_ca_certificates(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """Run ``update-ca-certificates``: write the bundle and its links, then run /etc/ca-certificates/update.d."""
    state.budget.work(HEAVY)
    options(arguments, "v", {"verbose": "v"})
    cacerts.update(state.tree, epoch=state.epoch)
    for path in state.tree.children(_UPDATE_HOOKS):
        node = state.tree.stat(path)
        if isinstance(node, File) and node.mode & 0o111 and _PART.search(path):
            state.interpret(state, state.read(f"/{path}"), streams)
    return 0


def c_rehash(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """Run ``c_rehash DIRECTORY``."""
    state.budget.work(HEAVY)
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise Unsupported(f"c_rehash {' '.join(arguments)}")
    for warning in cacerts.rehash(state.tree, state.existing(arguments[0]), epoch=state.epoch):
        streams.err(f"WARNING: {warning}\n")
    return 0


def install_links(program: str) -> Command:
    """Return the command ``PROGRAM --install -s``, for busybox and busybox-extras."""

    def install(state: ShellState, arguments: list[str], _: Streams) -> int:
        if arguments != ["--install", "-s"]:
            raise Unsupported(f"{program} {' '.join(arguments)}")
        state.budget.work(HEAVY // 4)
        try:
            busybox.install_links(state.tree, program, epoch=state.epoch)
        except TreeError as cause:
            raise Unsupported(str(cause)) from cause
        return 0

    return install


def rc_update(state: ShellState, arguments: list[str], _: Streams) -> int:
    """Run ``rc-update [-q] add|del SERVICE RUNLEVEL``."""
    words = [word for word in arguments if word not in ("-q", "--quiet")]
    if len(words) != 3 or words[0] not in ("add", "del", "delete"):
        raise Unsupported(f"rc-update {' '.join(arguments)}")
    action, service, level = words
    try:
        if action == "add":
            services.enable(state.tree, level, service, epoch=state.epoch)
        else:
            services.disable(state.tree, level, service)
    except RecipeError as cause:
        raise Failed(cause.message) from cause
    return 0


def _nothing_runs(*_: object) -> int:
    """Fail, as a program does that needs a running system."""
    raise Failed("there is no running system to talk to")


# These talk to services or to the kernel. They change no files, and fail where no system is running.
_RUNTIME = ("dbus-send", "killall", "modprobe", "pkill", "rc-service", "sysctl", "udevadm")

NATIVE: Mapping[str, Command] = {
    **dict.fromkeys(_RUNTIME, _nothing_runs),
    "busybox-extras": install_links("bin/busybox-extras"),
    "c_rehash": c_rehash,
    "depmod": depmod,
    "mkinitfs": mkinitfs,
    "rc-update": rc_update,
    "update-ca-certificates": update_ca_certificates,
}
