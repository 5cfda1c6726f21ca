"""Check where the packages of a payload come from, according to its package.json and its lock file.

Packages come from a registry, from a URL of an archive, or from the payload's own folder. Packages from git
repositories make npm run git on the host, so they must be allowed. A package outside of the payload's folder is always
refused: npm installs in a copy of the folder, and the payload has no right to read other files of the host.

These files are checked before npm is started, for a clear message. Only npm finds out what the packages themselves
depend on: npm's configuration keeps it from running git, and the installed packages are checked afterwards.

Forms of a specification: https://docs.npmjs.com/cli/using-npm/package-spec; lock file:
https://docs.npmjs.com/cli/configuring-npm/package-lock-json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from imgkit.errors import InputError
from imgkit.host import jsonfile
from imgkit.tree import leads_out

_MAX_BYTES = 64 << 20  # of a package.json or a lock file

_HOSTED = r"(github\.com|gitlab\.com|bitbucket\.org|gist\.github\.com)"
_GIT = re.compile(
    r"git\+.*|(git|ssh|github|gitlab|bitbucket|gist):.*"  # git+https://…, github:user/repository
    r"|[^/:@]+@[^/:]+:.*"  # git@host:path
    r"|(?![.~@])[^/:@#\s]+/[^/:@#\s]+(#.*)?"  # user/repository
    rf"|https?://([^/@]*@)?(www\.)?{_HOSTED}/[^/]+/[^/]+?(\.git)?/?(#.*)?",
    re.DOTALL | re.IGNORECASE,
)
_LOCAL = re.compile(r"(file|link):(?://(?=/|[.~]))?(?P<named>.*)|(?P<bare>(\.|~/|/|[a-zA-Z]:[\\/]).*)", re.DOTALL)
_KINDS = ("dependencies", "optionalDependencies", "peerDependencies")


def read_json(path: Path, shown: Path | None = None) -> Any:
    """Read a JSON file of a payload.

    Args:
        shown: its name in messages, if that is not ``path``.

    Raises:
        InputError: it is not a regular file, too large, not JSON, or nested too deeply.
        FileNotFoundError: it is missing.
    """
    shown = shown or path
    if not path.exists():
        raise FileNotFoundError(path)
    data = jsonfile.read_bytes(path, _MAX_BYTES, name=shown)
    try:
        return json.loads(data)  # as npm does: if a name occurs twice, the last one counts
    except ValueError as cause:
        raise InputError(f"{shown}: cannot be read as JSON: {cause}") from cause
    except RecursionError as cause:
        raise InputError(f"{shown}: cannot be read as JSON: it is nested too deeply") from cause


def check_manifest(path: Path, manifest: Mapping[str, Any], *, allow_git: bool, development: bool) -> None:
    """Check what the package.json at ``path`` asks for.

    Args:
        allow_git: whether packages may come from git repositories.
        development: whether npm will resolve packages for development too, as it does without a lock file.

    Raises:
        InputError: a package comes from a git repository, which is not allowed, or is outside of the folder.
    """
    for name, spec in _specs(manifest, development=development):
        _check(f"{path}: {name}", spec, allow_git=allow_git)
    for pattern in _workspaces(manifest):
        if is_outside(pattern.lstrip("!")):
            raise InputError(f"{path}: the workspace {pattern!r} leads out of the payload's folder")


def check_lock(path: Path, lock: object, *, allow_git: bool) -> None:
    """Check where the packages in npm's lock file at ``path`` come from.

    Packages that are for development only are ignored, because they are not installed.

    Raises:
        InputError: see :func:`check_manifest`; or ``lock`` is not an object.
    """
    if not isinstance(lock, dict):
        raise InputError(f"{path}: cannot be read as a lock file of npm: not an object")
    for name, entry in _entries(path, lock):
        if entry.get("dev") is True:
            continue
        label = f"{path}: {name!r}"
        for key in ("resolved", "version"):
            value = entry.get(key)
            if isinstance(value, str) and entry.get("link") is True and is_outside(value):
                raise InputError(f"{label}: leads out of the payload's folder")
            if isinstance(value, str) and entry.get("link") is not True:
                _check(label, value, allow_git=allow_git)


def is_outside(path: str) -> bool:
    """Return whether the text of a path leads out of the folder that it is relative to. Windows paths count as well."""
    plain = path.replace("\\", "/")
    if plain.startswith(("/", "~")) or re.match(r"[a-zA-Z]:", plain):
        return True
    return leads_out(plain)


def is_git(spec: str) -> bool:
    """Return whether a specification (what follows a package's name) names a git repository."""
    return _GIT.fullmatch(spec.strip()) is not None


def _check(label: str, spec: str, *, allow_git: bool) -> None:
    """Refuse a specification that is outside of the folder, or names a git repository if that is not allowed."""
    shown = repr(spec[:200])
    if local := _LOCAL.fullmatch(spec.strip()):
        path = unquote(local["named"]) if local["named"] is not None else local["bare"]
        if is_outside(path):
            raise InputError(
                f"{label}: {shown} is outside of the payload's folder",
                hint="copy the package into the folder, or install the packages yourself and set AGENT_RUNNER_BUILD=0",
            )
    elif is_git(spec) and not allow_git:
        raise InputError(f"{label}: {shown} comes from a git repository", hint=GIT_HINT)


GIT_HINT = "depend on a version from a registry, or let npm run git on this host: npm_git = True in the recipe"


def _specs(manifest: Mapping[str, Any], *, development: bool) -> Iterator[tuple[str, str]]:
    """Yield each name and specification in a package.json, including overrides of any depth."""
    kinds = (*_KINDS, "devDependencies") if development else _KINDS
    todo = [manifest[kind] for kind in (*kinds, "overrides") if isinstance(manifest.get(kind), dict)]
    while todo:
        for name, spec in todo.pop().items():
            if isinstance(spec, dict):
                todo.append(spec)
            elif isinstance(spec, str):
                yield str(name), spec


def _workspaces(manifest: Mapping[str, Any]) -> list[str]:
    """Return the patterns of a package.json's workspaces."""
    stated = manifest.get("workspaces")
    if isinstance(stated, dict):
        stated = stated.get("packages")
    return [pattern for pattern in stated if isinstance(pattern, str)] if isinstance(stated, list) else []


def _entries(path: Path, lock: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (name, facts) of each package of a lock file; the name is its path in versions 2 and 3.

    Raises:
        InputError: a path is outside of the folder.
    """
    packages = lock.get("packages")
    if isinstance(packages, dict):
        for place, entry in packages.items():
            if place and is_outside(place):
                raise InputError(f"{path}: {place!r} is outside of the payload's folder")
            if place and isinstance(entry, dict):
                yield place, entry
    todo = [lock.get("dependencies")]
    while todo:
        dependencies = todo.pop()
        for name, entry in dependencies.items() if isinstance(dependencies, dict) else ():
            if isinstance(entry, dict):
                yield name, entry
                todo.append(entry.get("dependencies"))
