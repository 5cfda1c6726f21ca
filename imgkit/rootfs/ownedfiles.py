"""Put the ``files`` of a recipe into the Tree: single files with an owner, a group and a mode."""

from __future__ import annotations

import stat
from collections.abc import Mapping

from imgkit.errors import InputError, RecipeError
from imgkit.host.suggest import did_you_mean
from imgkit.recipe import FileSpec, Recipe
from imgkit.rootfs.accounts import lookup, read_users
from imgkit.tree import Content, Directory, File, Inline, Slice, Tree, TreeError, parent


def add_files(tree: Tree, recipe: Recipe, *, epoch: int) -> list[str]:
    """Put the recipe's files into the Tree. Its packages, users and overlays must be in it already.

    Args:
        epoch: modification time of everything that is written, seconds since 1970.

    Returns:
        The paths in the Tree that were written, without folders.

    Raises:
        RecipeError: an account is not in the image, or a file cannot be where the recipe wants it.
        InputError: a source cannot be read.
    """
    accounts = Accounts(tree)
    return [_add(tree, file, accounts, epoch) for file in recipe.files]


class Accounts:
    """The accounts of an image, by name and number."""

    def __init__(self, tree: Tree) -> None:
        numbers = lookup(tree)
        self._users, self._groups = numbers.users, numbers.groups
        self._first_groups = {user.uid: user.gid for user in reversed(read_users(tree))}

    def of(self, file: FileSpec) -> tuple[int, int]:
        """Return the numbers of a file's user and group.

        Raises:
            RecipeError: the image has no such account, or does not say which group goes with a number.
        """
        uid = _number(file, "owner", file.owner, self._users)
        if file.group is not None:
            return uid, _number(file, "group", file.group, self._groups)
        if uid not in self._first_groups and uid != 0:
            raise RecipeError(
                f"files: {file.path}: no account has the number {uid}, so its group must be given",
                hint=f'write "group": {uid}',
            )
        return uid, self._first_groups.get(uid, 0)


def _number(file: FileSpec, field: str, account: str | int, known: Mapping[str, int]) -> int:
    if isinstance(account, int):
        return account
    if account not in known:
        kind = "user" if field == "owner" else "group"
        hint = did_you_mean(account, known) or f"add the package that makes the {kind}, or the account to users"
        raise RecipeError(f"files: {file.path}: {field}: the image has no {kind} {account}", hint=hint)
    return known[account]


def _add(tree: Tree, file: FileSpec, accounts: Accounts, epoch: int) -> str:
    """Put one file into the Tree; return its path there."""
    uid, gid = accounts.of(file)
    content, mode = _content(file)
    folder, _, name = file.path.lstrip("/").rpartition("/")
    try:
        path = f"{tree.resolve(folder)}/{name}".lstrip("/")
        if isinstance(tree.get(path), Directory):
            raise RecipeError(f"files: {file.path}: is a directory in the image")
        tree.mkdir(parent(path), mtime=epoch)
        mode = mode if file.mode is None else file.mode
        tree.add(path, File(content=content, mode=mode, uid=uid, gid=gid, mtime=epoch))
    except TreeError as cause:
        raise RecipeError(f"files: {file.path}: cannot be made: {cause}") from cause
    return path


def _content(file: FileSpec) -> tuple[Content, int]:
    """Return the contents of a file, and the mode that it gets if the recipe does not say one."""
    if file.source is None:
        text = file.content if file.content is not None else ""
        return Inline(text.encode() if isinstance(text, str) else text), 0o644
    try:
        status = file.source.stat()
        with file.source.open("rb"):
            pass  # raises OSError if this user cannot read it
    except OSError as cause:
        raise InputError(f"{file.source}: cannot be read: {cause.strerror}") from cause
    size = status.st_size
    return (Slice(file.source, 0, size) if size else Inline(b"")), (0o755 if status.st_mode & stat.S_IXUSR else 0o644)
