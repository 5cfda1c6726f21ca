"""Link the applets of busybox, as ``busybox --install -s`` does, without running it.

Alpine's packages list their applets' paths in etc/busybox-paths.d/<program>, equal to ``<program> --list-full``. Where
nothing is at such a path (dangling links count), a symbolic link to the program is made; nothing is replaced.
"""

from __future__ import annotations

from imgkit.tree import Directory, File, Tree, TreeError, check_path, parent

_LISTS = "etc/busybox-paths.d"


def install_links(tree: Tree, program: str = "bin/busybox", *, epoch: int = 0) -> int:
    """Link the applets of ``program`` and return how many links were made.

    Raises:
        TreeError: the Tree has no list of the applets, or there is an improper path in it.
    """
    listing = f"{_LISTS}/{program.rpartition('/')[2]}"
    if not isinstance(tree.stat(listing), File):
        raise TreeError(f"{listing}: no list of the applets of {program}")
    applets = [check_path(path.lstrip("/")) for path in tree.text(listing).split()]
    return sum(_link(tree, applet, f"/{program}", epoch) for applet in applets)


def _link(tree: Tree, applet: str, target: str, epoch: int) -> bool:
    """Make one link if its place is free; return whether it was made."""
    place = tree.resolve(applet, follow=False)
    if place in tree or not isinstance(tree.get(parent(place)), Directory):
        return False  # busybox prints an error if the directory is missing, and goes on
    tree.symlink(place, target, mtime=epoch)
    return True
