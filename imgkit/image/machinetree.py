"""Turn the root filesystem of a container image into that of a machine: mount points, and the kernel's modules."""

from __future__ import annotations

from imgkit.errors import InputError
from imgkit.rootfs.kernel import Kernel
from imgkit.tree import Directory, Tree, TreeError

AGENT = "opt/agent-runner/index.js"
"""The program that answers the host's requests, if an image has it (docs/reference/agentd.md)."""
_AGENT_NEEDS = ("bin/busybox", "bin/setpriv", "bin/sh", "etc/passwd")  # what agentd runs and reads
_NODES = ("usr/bin/node", "usr/local/bin/node")
_MOUNT_POINTS = {
    **dict.fromkeys(("dev", "proc", "sys", "run", "etc", "mnt"), 0o755),
    "tmp": 0o1777,
}
"""Folders that every machine has, and their modes if the image lacks them."""


def has_agent(tree: Tree) -> bool:
    """Return whether agentd is in the image, with everything that it runs."""
    try:
        needed = all(tree.stat(path) is not None for path in (AGENT, *_AGENT_NEEDS))
        return needed and any(tree.stat(path) is not None for path in _NODES)
    except TreeError:  # links in a circle
        return False


def become_machine(tree: Tree, modules: Tree, kernel: Kernel, *, epoch: int) -> str:
    """Add to ``tree`` what a machine needs besides an image.

    Args:
        tree: the root filesystem of the image; it is changed.
        modules: the Tree of the kernel's package.
        epoch: modification time of what is made, in seconds since 1970.

    Returns:
        The folder of the kernels' modules, which is below ``usr`` in a usr-merged image.

    Raises:
        InputError: the image has something in the place of a folder that a machine needs.
    """
    for path, mode in _MOUNT_POINTS.items():
        if not isinstance(tree.get(path), Directory):
            if path in tree:
                tree.remove(path)  # a link there would lead the mounts of the machine elsewhere
            tree.mkdir(path, mode=mode, mtime=epoch)
    try:
        return _add_modules(tree, modules, kernel, epoch)
    except TreeError as cause:
        raise InputError(f"the image has no room for the kernel's modules: {cause}") from cause


def _add_modules(tree: Tree, modules: Tree, kernel: Kernel, epoch: int) -> str:
    """Copy the modules; those of other kernels that the image may have stay."""
    top = tree.resolve("lib/modules")
    tree.mkdir(top, mtime=epoch)
    place = f"{top}/{kernel.release}"
    for path in reversed([path for path, _ in tree.walk(place)] if place in tree else []):
        tree.remove(path)
    for path, node in modules.walk(kernel.directory):
        tree.add(place + path.removeprefix(kernel.directory), node)
    return top
