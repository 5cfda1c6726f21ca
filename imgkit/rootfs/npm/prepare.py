"""Install a payload's npm packages on the host for the image's platform, in a copy of the folder.

    folder = prepare(Path("agent"), scratch, build="auto", architecture="aarch64")

npm selects packages for ``--os``, ``--cpu`` and ``--libc`` instead of the host's, so prebuilt native parts are right
for a foreign architecture. No code of the payload runs on the host unless the caller asks for it: ``"1"`` runs its
``build`` script, ``allow_scripts`` the lifecycle scripts of the payload and of its packages. How npm is restricted is
described in :mod:`imgkit.rootfs.npm.npmrunner` (the sandbox), :mod:`~imgkit.rootfs.npm.npmconfig` (the configuration)
and :mod:`~imgkit.rootfs.npm.npmsources` (where packages come from).
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
"""npm supports --cpu and --libc since 10.3.0; older versions leave native packages out. Before 10.9.4 it runs the
``prepare`` script of packages from git repositories in spite of its options."""
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
    """Return the folder that goes into the image for the payload ``source``: itself, or a copy with installed packages.

    Args:
        scratch: an empty or missing folder for the copy; it must exist until the image is written.
        build: AGENT_RUNNER_BUILD. ``"0"``: return ``source``. ``"1"``: run ``npm ci`` (``npm install`` without a lock
            file), then ``npm run build`` if there is such a script. ``"auto"``: install packages if a package.json asks
            for some, and run no script of the payload; npm is not needed for a payload without packages.
        architecture: Alpine's name of the image's architecture.
        allow_scripts: run lifecycle scripts (on the host, with its compilers; see :mod:`imgkit.rootfs.npm.npmrunner`).
        allow_git: run git for packages that come from git repositories.
        offline: use packages in npm's cache only.
        cache: folder of npm's cache, which is made if it is missing; None uses a temporary one.

    Raises:
        InputError: the package.json is missing (for ``"1"``) or not JSON, a package comes from a source that is not
            allowed, or npm could not install or build.
        HostError: npm is missing or too old, or there is no space left.
    """
    manifest = _manifest(source)
    if build == "1" and manifest is None:
        raise InputError(f"{source}/package.json: missing, so nothing can be installed", hint="AGENT_RUNNER_BUILD=0")
    if build == "0" or manifest is None:
        return source
    if build == "auto":
        _warn_of_missing_build(source, manifest)
        if not _asks_for_packages(manifest):
            return source
    _copy(source, scratch)
    lock = next((scratch / name for name in _LOCKS if (scratch / name).is_file()), None)
    _check_sources(scratch, source, lock, allow_git=allow_git)
    if cache is not None:
        cache = cache / ("scripts" if allow_scripts else "plain")  # scripts could change the cache
    with npm_runner(source, scratch, cache, allow_git=allow_git, offline=offline) as runner:
        _check_version(runner.version())
        _install(runner, lock, architecture, allow_scripts=allow_scripts, offline=offline)
        _check_installed(scratch, source, allow_git=allow_git)
        if build == "1" and _has_build(manifest):
            log.info("%s: its build script runs %s", source, runner.rights)
            runner.build(scripts=allow_scripts)
    return scratch


def _check_sources(copy: Path, source: Path, lock: Path | None, *, allow_git: bool) -> None:
    """Check, before npm is started, where the payload's packages come from."""
    shown = source / "package.json"
    manifest = read_json(copy / "package.json", shown)
    check_manifest(shown, manifest, allow_git=allow_git, development=lock is None)
    if lock is not None:
        shown = source / lock.name
        check_lock(shown, read_json(lock, shown), allow_git=allow_git)


def _check_installed(copy: Path, source: Path, *, allow_git: bool) -> None:
    """Check where the packages come from that npm installed, dependencies of packages included.

    npm lists them in a hidden lock file, which is removed: it names the registry of this host, and only npm uses it.
    """
    installed = copy / _MODULES / ".package-lock.json"
    if installed.is_symlink() or not installed.exists():
        return
    check_lock(source / _MODULES, read_json(installed, source / _MODULES), allow_git=allow_git)
    installed.unlink()


def _manifest(source: Path) -> dict[str, Any] | None:
    """Read the payload's package.json, None if there is none."""
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


def _warn_of_missing_build(source: Path, manifest: Mapping[str, Any]) -> None:
    """Warn about a payload that seems to need building: it has a build script, but its main file is missing."""
    main = str(manifest.get("main") or "index.js")
    if _has_build(manifest) and not any(_is_there(source, name) for name in (main, f"{main}.js")):
        log.warning(
            "%s: %s is not there, and AGENT_RUNNER_BUILD=auto does not run the build script of the payload; "
            "run it before, or on this host and with your rights: AGENT_RUNNER_BUILD=1",
            source,
            main,
        )


def _is_there(source: Path, name: str) -> bool:
    with suppress(OSError, ValueError):  # no file can have such a name
        return (source / name).exists()
    return False


def _check_version(version: str) -> None:
    """Raise HostError if this version of npm is too old."""
    numbers = tuple(int(number) for number in re.findall(r"\d+", version))
    if numbers < MINIMUM:
        wanted = ".".join(map(str, MINIMUM))
        raise HostError(
            f"npm {version}: too old to install packages for another platform without running any, {wanted} is needed",
            hint="install a newer Node.js, or install the payload's packages yourself and set AGENT_RUNNER_BUILD=0",
        )


def _copy(source: Path, scratch: Path) -> None:
    """Copy the folder without the packages that were installed for the host."""
    for _ in scan(source, absolute=False):
        pass  # this refuses what cannot be in an image before anything is copied

    def ignored(folder: str, names: Sequence[str]) -> set[str]:
        return {_MODULES} & set(names) if Path(folder) == source else set()

    try:
        shutil.copytree(source, scratch, symlinks=True, ignore=ignored, dirs_exist_ok=True)
    except (OSError, shutil.Error) as cause:
        if _FULL.search(str(cause)):
            raise HostError(f"{scratch}: no space left", hint="make room, or choose another WORK_DIR") from cause
        raise InputError(f"{source}: cannot be copied: {cause}") from cause


def _install(runner: NpmRunner, lock: Path | None, architecture: str, *, allow_scripts: bool, offline: bool) -> None:
    """Run npm to install the packages for the image's platform."""
    if architecture not in CPUS:
        raise InputError(f"{runner.source}: Node's name of the architecture {architecture} is not known")
    unlocked = unlocked_options(runner.source / lock.name) if lock is not None else []
    # npm ci refuses a lock file that lacks packages (or, npm 10, installs without them); npm install adds them.
    command = ["install", "--no-save"] if unlocked else ["ci"] if lock is not None else ["install", "--no-package-lock"]
    platform = ["--omit=dev", "--os=linux", f"--cpu={CPUS[architecture]}", "--libc=musl"]
    network = "--offline" if offline else "--prefer-offline"
    if allow_scripts:
        log.info("%s: lifecycle scripts of its packages run %s", runner.source, runner.rights)
    runner.install([*command, *platform, "--no-audit", "--no-fund", network], scripts=allow_scripts)
    if lock is not None:
        missing = _for_platform(unlocked, CPUS[architecture])
        _warn_of_unlocked(runner.copy, runner.source / lock.name, missing)


def unlocked_options(lock: Path) -> list[str]:
    """Return the optional packages that packages in npm's lock file ask for and that have no entry in it, sorted.

    A lock file has entries for the packages of all platforms. But npm leaves those of other platforms out when it
    writes one beside a ``node_modules`` (issues 4828 and 8320 of npm/cli), so that a lock file from macOS may lack the
    packages that the image needs.

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


def _warn_of_unlocked(folder: Path, lock: Path, names: Sequence[str]) -> None:
    """Warn about packages that the image needs and ``lock`` lacks, whether npm has installed them or not."""
    installed = _packages(folder) if names else set()
    missing = [name for name in names if name not in installed]
    again = f"remove node_modules and {lock.name} and run npm install to have a complete one"
    if missing:
        log.warning("%s: lacks %s, and this npm did not install it; %s", lock, ", ".join(missing), again)
    elif names:
        log.warning("%s: lacks %s, which is now in the image in a version of npm's choice; %s", lock, names[0], again)


def _packages(folder: Path) -> set[str]:
    """Return the names of all packages that are installed anywhere below ``folder``, with their scope."""
    top = os.open(folder, os.O_RDONLY)
    try:
        tree = Walk(top)
        matches = (_INSTALLED.search(tree.path(entry.name)) for entry in tree if stat.S_ISDIR(entry.status.st_mode))
        return {match[1] for match in matches if match is not None}
    finally:
        os.close(top)


def _for_platform(names: Sequence[str], cpu: str) -> list[str]:
    """Return those of ``names`` that are, by npm's conventions, for Linux, this ``cpu`` and musl (or any libc)."""
    for_cpu = [name for name in names if {"linux", cpu} <= _words(name)]
    return [name for name in for_cpu if "musl" in _words(name)] or [
        name for name in for_cpu if not {"gnu", "glibc"} & _words(name)
    ]


def _words(name: str) -> set[str]:
    """Return the words of a package's name: img, sharp, linux, musl and x64 for ``@img/sharp-linuxmusl-x64``."""
    return set(re.findall(r"[a-z0-9]+", name.replace("linuxmusl", "linux-musl")))
