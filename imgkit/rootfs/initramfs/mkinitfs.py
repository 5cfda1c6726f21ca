"""Read mkinitfs's configuration in a Tree: ``mkinitfs.conf`` and the lists of files and modules in ``features.d``.

Source: mkinitfs 3.13 as packaged. ``features.d/<feature>.files`` and ``.modules`` hold shell globs, relative to the
root and to the kernel's folder of modules; lines that start with ``#`` are comments.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from imgkit.errors import InputError, RecipeError
from imgkit.rootfs.scripts.budget import Exhausted
from imgkit.rootfs.scripts.pathnames import expand_pathname
from imgkit.rootfs.scripts.state import Failed, ShellState
from imgkit.rootfs.scripts.words import Unsupported
from imgkit.tree import Directory, File, HardLink, Tree

CONFIGURATION = "etc/mkinitfs/mkinitfs.conf"
FEATURES = "etc/mkinitfs/features.d"
_MAX_LIST = 256 << 10  # bytes of a list of files; the longest one of mkinitfs has a few kilobytes
_YES = ("yes", "YES", "true", "TRUE", "1")


@dataclass(frozen=True)
class MkinitfsConfiguration:
    """The settings of ``mkinitfs.conf``. ``level`` is that of the chosen compression, None for the default."""

    features: tuple[str, ...] = ()
    compression: str = "gzip"
    level: int | None = None
    custom_files: tuple[str, ...] = ()
    disabled: bool = False


_ASSIGNMENT = re.compile(
    r"""\s*(?:export\s+)?(?P<name>[A-Za-z_]\w*)=(?P<value>"(?:[^"\\$`]|\\\n)*"|'[^']*'|[^\s"'\\$`;&|<>()#]*)"""
    r"""(?:[ \t]+\#[^\n]*)?[ \t]*(?:\n|;|$)"""
)
_BLANK = re.compile(r"\s*(?:\#[^\n]*)?(?:\n|$)")


def parse_assignments(text: str, name: str) -> dict[str, str]:
    """Return the variables of a shell fragment that only assigns constants: ``NAME=word``, ``NAME="words"``, comments.

    No shell runs, so anything that a shell would have to compute is refused.

    Args:
        name: the path of the file, for errors.

    Raises:
        InputError: there is something else in it; the message names the file and the line.
    """
    variables: dict[str, str] = {}
    place = 0
    while place < len(text):
        blank = _BLANK.match(text, place)
        if blank:
            place = blank.end()
            continue
        assignment = _ASSIGNMENT.match(text, place)
        if not assignment:
            line = text.count("\n", 0, place) + 1
            raise InputError(
                f"/{name}: line {line} is more than the assignment of a constant",
                hint="set the initramfs features in the recipe: no code of the image is run",
            )
        value = assignment["value"]
        variables[assignment["name"]] = (value[1:-1] if value[:1] in ("'", '"') else value).replace("\\\n", "")
        place = assignment.end()
    return variables


def read_configuration(tree: Tree) -> MkinitfsConfiguration:
    """Read the Tree's ``mkinitfs.conf``; a missing one is like an empty one.

    Raises:
        InputError: it has more than assignments of constants, or a compression level is not of the form ``-9``.
    """
    if tree.stat(CONFIGURATION) is None:
        return MkinitfsConfiguration()
    variables = parse_assignments(tree.text(CONFIGURATION), CONFIGURATION)
    compression = variables.get("initfscomp", "gzip")
    level = variables.get(f"complevel_{compression}")
    if level is not None and not re.fullmatch(r"-\d{1,2}", level):
        raise InputError(f"/{CONFIGURATION}: complevel_{compression}={level} is not a compression level such as -9")
    return MkinitfsConfiguration(
        features=tuple(variables.get("features", "").split()),
        compression=compression,
        level=int(level[1:]) if level else None,
        custom_files=tuple(variables.get("custom_files", "").split()),
        disabled=variables.get("disable_trigger", "") in _YES,
    )


def check_features(tree: Tree, features: Sequence[str]) -> None:
    """Check that the Tree has all ``features``.

    Raises:
        RecipeError: a feature is unknown.
        InputError: the Tree has no features at all.
    """
    known = {path.rpartition("/")[2].rpartition(".")[0] for path in tree.children(tree.resolve(FEATURES))}
    if not known:
        raise InputError(f"/{FEATURES}: missing", hint="add the package mkinitfs, or leave out the initramfs")
    unknown = [name for name in features if name not in known]
    if unknown:
        raise RecipeError(
            f"initramfs feature {unknown[0]}: neither /{FEATURES}/{unknown[0]}.files nor .modules is there",
            hint="known are " + " ".join(sorted(known)),
            problems=[f"unknown initramfs feature {name}" for name in unknown],
        )


def feature_files(tree: Tree, features: Sequence[str], suffix: str, base: str) -> Iterator[tuple[str, str]]:
    """Yield (glob, path in the Tree) for everything that the features' lists match.

    A glob of modules that matches nothing is returned with an empty path. A glob of files that matches nothing is left
    out, as mkinitfs does: its lists name files that only some systems have.

    Args:
        suffix: which lists: ``files`` or ``modules``.
        base: the directory that the globs are relative to.
    """
    for feature in features:
        path = f"{FEATURES}/{feature}.{suffix}"
        if tree.stat(path) is None:
            continue
        for line in tree.read(path, _MAX_LIST).decode(errors="surrogateescape").splitlines():
            for glob in () if line.startswith("#") else line.split():
                matches = [file for match in expand_glob(tree, base, glob.lstrip("/")) for file in _files(tree, match)]
                yield from ((glob, match) for match in matches or [""] if match or suffix == "modules")


def _files(tree: Tree, path: str) -> list[str]:
    """Return ``path`` for a file or link, all regular files below a directory, and nothing for a dangling link."""
    if isinstance(tree.get(path), Directory):
        return [below for below, node in tree.walk(path) if isinstance(node, File | HardLink)]
    return [path] if tree.stat(path) is not None else []


def expand_glob(tree: Tree, base: str, glob: str) -> list[str]:
    """Return the paths in the Tree that match ``glob`` below the directory ``base``, as a shell expands it, each once.

    Links to directories are followed, and the paths are those behind them.

    Raises:
        InputError: the pattern is not valid, or stands for too many paths.
    """
    state = ShellState(tree, cwd=f"/{base}", volatile=())
    try:
        matches = [state.path(match, follow=False) for match in expand_pathname(state, glob or ".")]
    except (Failed, Exhausted) as cause:
        raise InputError(f"/{glob}: {cause}") from cause
    except Unsupported as cause:
        raise InputError(f"/{glob}: {cause.construct}") from cause
    return list(dict.fromkeys(matches))
