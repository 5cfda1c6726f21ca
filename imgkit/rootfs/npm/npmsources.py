"""Where a payload's packages come from, as its package.json and its lock file say.

Packages come from a registry, from a URL of an archive, or from the payload's own folder. Those from git repositories
make npm run git on the host, so they must be allowed. What is outside of the payload's folder never is a package: npm
installs in a copy of the folder, and what is elsewhere on the host is not the payload's to read.

What is written here is looked at before npm is started, for the sake of a clear message; what packages of packages ask
for is npm's to find out. It is kept from git by its configuration, and what it installed is looked at again.

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
from imgkit.rootfs.paths import leads_out

MAX_BYTES = 64 << 20
"""Of a package.json or a lock file."""

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
    """What a JSON file of a payload says.

    Args:
        shown: its name in messages, if that is not ``path``.

    Raises:
        InputError: it is no regular file, too large, no JSON, or nested absurdly deep.
        FileNotFoundError: it is missing.
    """
    shown = shown or path
    if not path.exists():
        raise FileNotFoundError(path)
    data = jsonfile.read_bytes(path, MAX_BYTES, name=shown)
    try:
        return json.loads(data)  # as npm does: of names that occur twice the last one counts
    except ValueError as cause:
        raise InputError(f"{shown}: cannot be read as JSON: {cause}") from cause
    except RecursionError as cause:
        raise InputError(f"{shown}: cannot be read as JSON: it is nested too deeply") from cause


def check_manifest(path: Path, manifest: Mapping[str, Any], *, allow_git: bool, development: bool) -> None:
    """Check what the package.json at ``path`` asks for.

    Args:
        development: whether npm will look at packages for development (it does without a lock file).

    Raises:
        InputError: a package from a git repository that is not allowed, or one outside of the folder.
    """
    for name, spec in _specs(manifest, development=development):
        _check(f"{path}: {name}", spec, allow_git=allow_git)
    for pattern in _workspaces(manifest):
        if is_outside(pattern.lstrip("!")):
            raise InputError(f"{path}: the workspace {pattern!r} leads out of the payload's folder")


def check_lock(path: Path, lock: object, *, allow_git: bool) -> None:
    """Check what npm's lock file at ``path`` says of its packages. Those for development only are not installed.

    Raises:
        InputError: as for :func:`check_manifest`, or it is of another shape.
    """
    if not isinstance(lock, dict):
        raise InputError(f"{path}: cannot be read as a lock file of npm: not an object")
    for name, entry in _entries(path, lock):
        if entry.get("dev") is True:
            continue
        where = f"{path}: {name!r}"
        for key in ("resolved", "version"):
            value = entry.get(key)
            if isinstance(value, str) and entry.get("link") is True and is_outside(value):
                raise InputError(f"{where}: leads out of the payload's folder")
            if isinstance(value, str) and entry.get("link") is not True:
                _check(where, value, allow_git=allow_git)


def is_outside(path: str) -> bool:
    """Whether a path is not one below the folder that it is relative to, judged by its text."""
    plain = path.replace("\\", "/")
    if plain.startswith(("/", "~")) or re.match(r"[a-zA-Z]:", plain):
        return True
    return leads_out(plain)


def is_git(spec: str) -> bool:
    """Whether a specification (what follows a package's name) is one of a git repository."""
    return _GIT.fullmatch(spec.strip()) is not None


def _check(where: str, spec: str, *, allow_git: bool) -> None:
    shown = repr(spec[:200])
    if local := _LOCAL.fullmatch(spec.strip()):
        path = unquote(local["named"]) if local["named"] is not None else local["bare"]
        if is_outside(path):
            raise InputError(
                f"{where}: {shown} is outside of the payload's folder",
                hint="copy the package into the folder, or install the packages yourself and set AGENT_RUNNER_BUILD=0",
            )
    elif is_git(spec) and not allow_git:
        raise InputError(f"{where}: {shown} comes from a git repository", hint=GIT_HINT)


GIT_HINT = "depend on a version from a registry, or let npm run git on this host: npm_git = True in the recipe"


def _specs(manifest: Mapping[str, Any], *, development: bool) -> Iterator[tuple[str, str]]:
    """Each name and specification in a package.json, overrides of any depth included."""
    kinds = (*_KINDS, "devDependencies") if development else _KINDS
    left = [manifest[kind] for kind in (*kinds, "overrides") if isinstance(manifest.get(kind), dict)]
    while left:
        for name, spec in left.pop().items():
            if isinstance(spec, dict):
                left.append(spec)
            elif isinstance(spec, str):
                yield str(name), spec


def _workspaces(manifest: Mapping[str, Any]) -> list[str]:
    stated = manifest.get("workspaces")
    if isinstance(stated, dict):
        stated = stated.get("packages")
    return [pattern for pattern in stated if isinstance(pattern, str)] if isinstance(stated, list) else []


def _entries(path: Path, lock: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each package of a lock file: by its place in versions 2 and 3, by its name in version 1.

    Raises:
        InputError: a place is outside of the folder.
    """
    packages = lock.get("packages")
    if isinstance(packages, dict):
        for place, entry in packages.items():
            if place and is_outside(place):
                raise InputError(f"{path}: {place!r} is outside of the payload's folder")
            if place and isinstance(entry, dict):
                yield place, entry
    left = [lock.get("dependencies")]
    while left:
        dependencies = left.pop()
        for name, entry in dependencies.items() if isinstance(dependencies, dict) else ():
            if isinstance(entry, dict):
                yield name, entry
                left.append(entry.get("dependencies"))
