"""``busybox --install -s`` without running it.

Alpine's packages list their applets' paths in etc/busybox-paths.d/<program>, equal to ``<program> --list-full``. Where
nothing is at such a path (dangling links count), a symbolic link to the program is made; nothing is replaced.
"""

from __future__ import annotations

from imgkit.tree import Directory, File, Tree, TreeError, check_path, parent

_LISTS = "etc/busybox-paths.d"


def install_links(tree: Tree, program: str = "bin/busybox", *, epoch: int = 0) -> int:
    """Link the applets of ``program`` and return how many links were made.

    Raises:
        TreeError: the Tree has no list of its applets, or an improper one.
    """
    listing = f"{_LISTS}/{program.rpartition('/')[2]}"
    if not isinstance(tree.stat(listing), File):
        raise TreeError(f"{listing}: no list of the applets of {program}")
    made = 0
    for line in tree.text(listing).split():
        made += _link(tree, check_path(line.lstrip("/")), f"/{program}", epoch)
    return made


def _link(tree: Tree, applet: str, target: str, epoch: int) -> bool:
    place = tree.resolve(applet, follow=False)
    if place in tree or not isinstance(tree.get(parent(place)), Directory):
        return False  # a directory that is missing is not made: busybox complains and goes on
    tree.symlink(place, target, mtime=epoch)
    return True
