"""Write the system's own files as the recipe says: host name, disks, network, users and release file."""

from __future__ import annotations

import re
from pathlib import Path

from imgkit.errors import RecipeError
from imgkit.host.jsonfile import read_bytes
from imgkit.recipe import Recipe, RepositorySpec, UserSpec
from imgkit.rootfs.accounts import UNUSABLE, AccountError, ensure_user, set_password
from imgkit.rootfs.openrc.services import enable, refuse_unsafe_order
from imgkit.tree import Tree

RELEASE = "etc/imgkit-release"
_APK = "etc/apk"
_ALPINE_RELEASE = "etc/alpine-release"
_MAX_KEY = 1 << 16
_LOOPBACK = "auto lo\niface lo inet loopback\n"
_DHCP = "\nauto eth0\niface eth0 inet dhcp\n"
_SOCKET_FOLDERS = ("tmp/.ICE-unix", "tmp/.X11-unix")


def configure_machine(tree: Tree, recipe: Recipe, *, root_uuid: str, epoch: int) -> None:
    """Write the files that only a machine has: its name, network cards and disks. Engines give containers their own.

    Args:
        root_uuid: UUID of the root filesystem, for ``fstab``. Alpine's init leaves the root read-only unless there is a
            line for it.
        epoch: seconds since 1970 for the times of the files.
    """
    host = recipe.hostname
    tree.write("etc/hostname", f"{host}\n", mtime=epoch)
    tree.write("etc/hosts", f"127.0.0.1\tlocalhost {host}\n::1\tlocalhost {host}\n", mtime=epoch)
    interfaces = _LOOPBACK + (_DHCP if recipe.network == "dhcp" else "")
    tree.write("etc/network/interfaces", interfaces, mtime=epoch)
    tree.write("etc/fstab", _fstab(root_uuid, read_only=recipe.read_only_root), mtime=epoch)


def configure(tree: Tree, recipe: Recipe, *, epoch: int) -> None:
    """Write apk's repositories and the users into ``tree``, for machines and containers.

    Args:
        epoch: seconds since 1970 for the times of the files.

    Raises:
        RecipeError: a user cannot be added.
    """
    if _APK in tree:
        _write_repositories(tree, recipe, epoch)
    _make_socket_folders(tree, epoch)
    for user in recipe.users:
        _add_user(tree, user, epoch)


def lock_root(tree: Tree, *, epoch: int) -> None:
    """Make that nobody can log in as root with a password.

    Raises:
        AccountError: the image has no user root.
    """
    set_password(tree, "root", UNUSABLE, epoch=epoch)


def _write_repositories(tree: Tree, recipe: Recipe, epoch: int) -> None:
    branch = guest_branch(tree, recipe.branch)
    lines = [_line(entry, f"{recipe.guest_mirror}/{branch}") for entry in recipe.repositories]
    tree.write(f"{_APK}/repositories", "".join(lines), mtime=epoch)
    for entry in recipe.further_repositories:
        if entry.folder is None and entry.key is not None:
            _add_key(tree, entry.key, epoch)


def _add_key(tree: Tree, key: Path, epoch: int) -> None:
    """Add the key of a repository to those that the image's own apk trusts, so that it can use the repository.

    Raises:
        RecipeError: the image has another key of this name, and apk knows keys by their names.
    """
    place, data = f"{_APK}/keys/{key.name}", read_bytes(key, _MAX_KEY)
    if tree.stat(place) is not None and tree.read(place) != data:
        raise RecipeError(f"repositories: {key}: the image has another key of this name", hint="rename one of them")
    tree.write(place, data, mtime=epoch)


def _line(entry: str | RepositorySpec, branch: str) -> str:
    """Return the line of a repository for apk; none for a folder on this computer, which the image cannot reach."""
    if isinstance(entry, str):
        return f"{branch}/{entry}\n"
    tag = f"@{entry.tag} " if entry.tag else ""
    return f"{tag}{entry.url}\n" if entry.folder is None else ""


def _add_user(tree: Tree, user: UserSpec, epoch: int) -> None:
    """Add an account, and the directories that belong to it."""
    try:
        ensure_user(tree, user.name, uid=user.uid, home=user.home, shell=user.shell, groups=user.groups, epoch=epoch)
    except AccountError as cause:
        raise RecipeError(f"user {user.name}: {cause}") from cause
    for folder in user.owns:
        path = tree.resolve(folder)
        tree.mkdir(path, mtime=epoch)
        tree.change(path, uid=user.uid, gid=user.uid)


def _make_socket_folders(tree: Tree, epoch: int) -> None:
    """Make the folders in which X and its session managers put their sockets, and which must belong to root.

    Otherwise OpenRC's bootmisc makes them at every boot, while agents may already use /tmp. Only root can remove or
    rename them there, because /tmp is sticky.
    """
    for path in _SOCKET_FOLDERS:
        if "tmp" in tree:
            tree.mkdir(path, mode=0o1777, mtime=epoch)


def guest_branch(tree: Tree, branch: str) -> str:
    """Return the branch from which the image's own apk installs packages.

    It is ``branch``, except for ``latest-stable``, a link that mirrors move to the next branch with each release: an
    image that followed it would one day mix the packages of two releases. Instead it is the branch of the release that
    ``tree`` has, according to the file of the package alpine-release.
    """
    if branch != "latest-stable" or _ALPINE_RELEASE not in tree:
        return branch
    release = re.match(r"(\d+\.\d+)\.\d+", tree.text(_ALPINE_RELEASE))
    return f"v{release[1]}" if release else branch


def _fstab(root_uuid: str, *, read_only: bool) -> str:
    """Return the line of the root. A read-only root is the lower layer of an overlay that the initramfs has mounted.

    The filesystem is not checked at boot (the last 0): the kernel replays the journal, and nobody could answer fsck.
    """
    if read_only:
        return "overlay\t/\toverlay\trw\t0 0\n"
    return f"UUID={root_uuid}\t/\text4\trw,relatime\t0 0\n"


def enable_services(tree: Tree, recipe: Recipe) -> None:
    """Link the recipe's services into their runlevels. The overlay must be in the Tree, as it may have some of them.

    Raises:
        RecipeError: the image lacks a service, or a service would act as root on the agent's files.
    """
    for runlevel, names in recipe.services.items():
        for name in names:
            enable(tree, runlevel, name)
    refuse_unsafe_order(tree)


def write_release(tree: Tree, *, image: str, arch: str, build_id: str, epoch: int) -> None:
    """Write ``/etc/imgkit-release``, which identifies the image for agentd's heartbeat and for people."""
    text = f"IMGKIT_IMAGE={image}\nIMGKIT_ARCH={arch}\nIMGKIT_BUILD_ID={build_id}\n"
    tree.write(RELEASE, text, mtime=epoch)
