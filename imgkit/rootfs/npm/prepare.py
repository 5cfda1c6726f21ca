"""Installing a payload's npm packages on the host for the image's platform, in a copy of the folder.

npm picks packages for ``--os``, ``--cpu`` and ``--libc`` instead of the host's, so prebuilt native parts are right for
a foreign architecture. Nothing of the payload's own runs on the host unless the caller asks for it: ``"1"`` runs its
``build`` script, ``allow_scripts`` the lifecycle scripts of it and of its packages. What npm is kept from otherwise is
in :mod:`imgkit.rootfs.npm.npmrunner` (where it runs), :mod:`~imgkit.rootfs.npm.npmconfig` (what it is told) and
:mod:`~imgkit.rootfs.npm.npmsources` (where packages come from).
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from imgkit.errors import HostError, InputError
from imgkit.host.walk import Walk
from imgkit.rootfs.npm.npmrunner import NpmRunner, npm_runner
from imgkit.rootfs.npm.npmsources import check_lock, check_manifest, read_json
from imgkit.rootfs.payload import scan

Build = Literal["auto", "0", "1"]

CPUS: Mapping[str, str] = MappingProxyType({"x86_64": "x64", "aarch64": "arm64", "riscv64": "riscv64"})
"""Alpine's name of an architecture → Node's (``process.arch``)."""

log = logging.getLogger("imgkit")

MINIMUM = (10, 9, 4)
"""npm installs for --cpu and --libc since 10.3.0; older ones leave native packages out. Before 10.9.4 it runs the
``prepare`` script of packages that come from git repositories whatever it is told."""
_LOCKS = ("npm-shrinkwrap.json", "package-lock.json")  # as npm prefers them
_FULL = re.compile("|".join(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT)))
_MODULES = "node_modules"
_INSTALLED = re.compile(r"(?:^|/)node_modules/((?:@[^/]+/)?[^@/][^/]*)$")


def prepare(
    source: Path,
    scratch: Path,
    *,
    build: Build,
    architecture: str,
    allow_scripts: bool = False,
    allow_git: bool = False,
    offline: bool = False,
    cache: Path | None = None,
) -> Path:
    """The folder to put into the image for the payload ``source``: itself, or a copy with its packages installed.

    ``build`` is AGENT_RUNNER_BUILD. ``"0"``: the folder as it is. ``"1"``: ``npm ci`` (``npm install`` without a lock
    file), then ``npm run build`` where there is such a script. ``"auto"``: install where a package.json asks for
    packages, and run nothing of the payload's; npm is not needed for a payload that asks for none.

    Args:
        scratch: an empty or missing folder for the copy; it must stay until the image is written.
        architecture: Alpine's name of the image's architecture.
        allow_scripts: run lifecycle scripts (on the host, with its compilers; see :mod:`imgkit.rootfs.npm.npmrunner`).
        allow_git: run git for packages that come from git repositories.
        offline: take packages from npm's cache only.
        cache: folder of npm's cache, which is made; None keeps nothing for the next time.

    Raises:
        InputError: the package.json is missing (for ``"1"``) or no JSON, a package comes from where it must not, or npm
            could not install or build.
        HostError: npm is missing or too old, or there is no room.
    """
    manifest = _manifest(source)
    if build == "1" and manifest is None:
        raise InputError(f"{source}/package.json: missing, so nothing can be installed", hint="AGENT_RUNNER_BUILD=0")
    if build == "0" or manifest is None:
        return source
    if build == "auto":
        _mention_build(source, manifest)
        if not _asks_for_packages(manifest):
            return source
    _copy(source, scratch)
    lock = next((scratch / name for name in _LOCKS if (scratch / name).is_file()), None)
    _check_sources(scratch, source, lock, allow_git=allow_git)
    if cache is not None:
        cache = cache / ("scripts" if allow_scripts else "plain")  # scripts could change it
    with npm_runner(source, scratch, cache, allow_git=allow_git, offline=offline) as started:
        _check_version(started.version())
        _install(started, lock, architecture, allow_scripts=allow_scripts, offline=offline)
        _check_installed(scratch, source, allow_git=allow_git)
        if build == "1" and _has_build(manifest):
            log.info("%s: its build script runs %s", source, started.rights)
            started.build(scripts=allow_scripts)
    return scratch


def _check_sources(copy: Path, source: Path, lock: Path | None, *, allow_git: bool) -> None:
    """Refuse, before npm is started, packages from git repositories that are not allowed, and from elsewhere."""
    shown = source / "package.json"
    manifest = read_json(copy / "package.json", shown)
    check_manifest(shown, manifest, allow_git=allow_git, development=lock is None)
    if lock is not None:
        shown = source / lock.name
        check_lock(shown, read_json(lock, shown), allow_git=allow_git)


def _check_installed(copy: Path, source: Path, *, allow_git: bool) -> None:
    """Look at what npm noted down of its work, which has the packages of packages, too, and remove the note.

    It names the registry that this host uses, and serves only npm.
    """
    note = copy / _MODULES / ".package-lock.json"
    if note.is_symlink() or not note.exists():
        return
    check_lock(source / _MODULES, read_json(note, source / _MODULES), allow_git=allow_git)
    note.unlink()


def _manifest(source: Path) -> dict[str, Any] | None:
    path = source / "package.json"
    try:
        manifest = read_json(path)
    except FileNotFoundError:
        return None
    if not isinstance(manifest, dict):
        raise InputError(f"{path}: not an object")
    return manifest


def _asks_for_packages(manifest: Mapping[str, Any]) -> bool:
    return any(manifest.get(key) for key in ("dependencies", "optionalDependencies", "peerDependencies", "workspaces"))


def _has_build(manifest: Mapping[str, Any]) -> bool:
    scripts = manifest.get("scripts")
    return isinstance(scripts, dict) and "build" in scripts


def _mention_build(source: Path, manifest: Mapping[str, Any]) -> None:
    """Warn of a payload that looks as if it had to be built first: it has a build script, and not its main file."""
    main = str(manifest.get("main") or "index.js")
    if _has_build(manifest) and not any(_is_there(source, name) for name in (main, f"{main}.js")):
        log.warning(
            "%s: %s is not there, and AGENT_RUNNER_BUILD=auto does not run the build script of the payload; "
            "run it before, or on this host and with your rights: AGENT_RUNNER_BUILD=1",
            source,
            main,
        )


def _is_there(source: Path, name: str) -> bool:
    with suppress(OSError, ValueError):  # no file has such a name
        return (source / name).exists()
    return False


def _check_version(version: str) -> None:
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:3])
    if numbers < MINIMUM:
        wanted = ".".join(map(str, MINIMUM))
        raise HostError(
            f"npm {version}: too old to install packages for another platform without running any, {wanted} is needed",
            hint="install a newer Node.js, or install the payload's packages yourself and set AGENT_RUNNER_BUILD=0",
        )


def _copy(source: Path, scratch: Path) -> None:
    """Copy the folder without the packages that were installed for the host."""
    for _ in scan(source, absolute=False):
        pass  # refuses what cannot be in an image before anything is copied

    def ignored(folder: str, names: Sequence[str]) -> set[str]:
        return {_MODULES} & set(names) if Path(folder) == source else set()

    try:
        shutil.copytree(source, scratch, symlinks=True, ignore=ignored, dirs_exist_ok=True)
    except (OSError, shutil.Error) as cause:
        if _FULL.search(str(cause)):
            raise HostError(f"{scratch}: no space left", hint="make room, or choose another WORK_DIR") from cause
        raise InputError(f"{source}: cannot be copied: {cause}") from cause


def _install(started: NpmRunner, lock: Path | None, architecture: str, *, allow_scripts: bool, offline: bool) -> None:
    if architecture not in CPUS:
        raise InputError(f"{started.source}: Node's name of the architecture {architecture} is not known")
    unlocked = unlocked_options(started.source / lock.name) if lock is not None else []
    # npm ci refuses a lock file that lacks packages (or, npm 10, installs without them); npm install adds them.
    command = ["install", "--no-save"] if unlocked else ["ci"] if lock is not None else ["install", "--no-package-lock"]
    platform = ["--omit=dev", "--os=linux", f"--cpu={CPUS[architecture]}", "--libc=musl"]
    network = "--offline" if offline else "--prefer-offline"
    if allow_scripts:
        log.info("%s: lifecycle scripts of its packages run %s", started.source, started.rights)
    started.install([*command, *platform, "--no-audit", "--no-fund", network], scripts=allow_scripts)
    if lock is not None:
        missing = _meant(unlocked, CPUS[architecture])
        _mention_unlocked(started.copy, started.source / lock.name, missing)


def unlocked_options(lock: Path) -> list[str]:
    """Names of optional packages that packages in npm's lock file ask for and that have no entry in it, sorted.

    A lock file has entries for the packages of all platforms. But npm leaves those of other platforms out when it
    writes one beside a ``node_modules`` (issues 4828 and 8320 of npm/cli), so that a lock file from macOS may know
    nothing of the packages that the image needs.

    Raises:
        InputError: the lock file is not JSON, or of another shape.
    """
    try:
        packages = read_json(lock).get("packages", {})
        entries = {str(path).rpartition(f"{_MODULES}/")[2] for path in packages}
        wanted = {name for facts in packages.values() for name in facts.get("optionalDependencies", {})}
    except (OSError, ValueError, AttributeError, TypeError) as cause:
        raise InputError(f"{lock}: cannot be read as a lock file of npm: {cause}") from cause
    return sorted(wanted - entries)


def _mention_unlocked(folder: Path, lock: Path, names: Sequence[str]) -> None:
    """Warn of packages that the image needs and ``lock`` lacks, once npm has done with them what it does."""
    installed = _packages(folder) if names else set()
    missing = [name for name in names if name not in installed]
    again = f"remove node_modules and {lock.name} and run npm install to have a complete one"
    if missing:
        log.warning("%s: lacks %s, and this npm did not install it; %s", lock, ", ".join(missing), again)
    elif names:
        log.warning("%s: lacks %s, which is now in the image in a version of npm's choice; %s", lock, names[0], again)


def _packages(folder: Path) -> set[str]:
    """The names of all packages that are installed somewhere below ``folder``, with their scope."""
    top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        tree = Walk(top)
        found = (_INSTALLED.search(tree.path(entry.name)) for entry in tree if stat.S_ISDIR(entry.status.st_mode))
        return {match[1] for match in found if match is not None}
    finally:
        os.close(top)


def _meant(names: Sequence[str], cpu: str) -> list[str]:
    """Those of ``names`` that are, going by the customs of npm, for Linux, this ``cpu`` and musl (or any libc)."""
    here = [name for name in names if {"linux", cpu} <= _words(name)]
    return [name for name in here if "musl" in _words(name)] or [
        name for name in here if not {"gnu", "glibc"} & _words(name)
    ]


def _words(name: str) -> set[str]:
    """The words of a package's name: ``@img/sharp-linuxmusl-x64`` is of img, sharp, linux, musl and x64."""
    return set(re.findall(r"[a-z0-9]+", name.replace("linuxmusl", "linux-musl")))
