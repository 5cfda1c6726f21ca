"""Installing a payload's npm packages on the host for the image's platform, in a copy of the folder.

npm picks packages for ``--os``, ``--cpu`` and ``--libc`` instead of the host's, so prebuilt native parts are right for
a foreign architecture. Nothing of the payload's own runs on the host unless the caller asks for it: ``"1"`` runs its
``build`` script, ``allow_scripts`` the lifecycle scripts of it and of its packages.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from imgkit import process
from imgkit.errors import HostError, InputError
from imgkit.rootfs.payload import scan

Build = Literal["auto", "0", "1"]

CPUS: Mapping[str, str] = MappingProxyType({"x86_64": "x64", "aarch64": "arm64", "riscv64": "riscv64"})
"""Alpine's name of an architecture → Node's (``process.arch``)."""

log = logging.getLogger("imgkit")

MINIMUM = (10, 3, 0)  # the first npm that installs for --cpu and --libc; older ones leave native packages out
TIMEOUT = 900.0  # seconds for one run of npm
_LOCKS = ("npm-shrinkwrap.json", "package-lock.json")  # as npm prefers them
_MODULES = "node_modules"


def prepare(
    source: Path,
    scratch: Path,
    *,
    build: Build,
    architecture: str,
    allow_scripts: bool = False,
    offline: bool = False,
) -> Path:
    """The folder to put into the image for the payload ``source``: itself, or a copy with its packages installed.

    ``build`` is AGENT_RUNNER_BUILD. ``"0"``: the folder as it is. ``"1"``: ``npm ci`` (``npm install`` without a lock
    file), then ``npm run build`` where there is such a script. ``"auto"``: install where a package.json asks for
    packages, and run nothing of the payload's; npm is not needed for a payload that asks for none.

    Args:
        scratch: an empty or missing folder for the copy; it must stay until the image is written.
        architecture: Alpine's name of the image's architecture.
        allow_scripts: run lifecycle scripts (on the host, with its compilers and the rights of whoever builds).
        offline: take packages from npm's cache only.

    Raises:
        InputError: the package.json is missing (for ``"1"``) or no JSON, or npm could not install or build.
        HostError: npm is missing or too old.
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
    _check_npm()
    _copy(source, scratch)
    _install(scratch, source, architecture, allow_scripts=allow_scripts, offline=offline)
    if build == "1" and _has_build(manifest):
        _npm(["run", "build", *([] if allow_scripts else ["--ignore-scripts"])], scratch, source)
    return scratch


def _manifest(source: Path) -> dict[str, Any] | None:
    path = source / "package.json"
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as cause:
        raise InputError(f"{path}: cannot be read as JSON: {cause}") from cause
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
    if _has_build(manifest) and not any((source / name).exists() for name in (main, f"{main}.js")):
        log.warning(
            "%s: %s is not there, and AGENT_RUNNER_BUILD=auto does not run the build script of the payload; "
            "run it before, or on this host and with your rights: AGENT_RUNNER_BUILD=1",
            source,
            main,
        )


def _check_npm() -> None:
    version = process.run(["npm", "--version"], timeout=60).decode(errors="replace").strip()
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:3])
    if numbers < MINIMUM:
        wanted = ".".join(map(str, MINIMUM))
        raise HostError(
            f"npm {version}: too old to install packages for another platform, {wanted} is needed",
            hint="install a newer Node.js, or install the payload's packages yourself and set AGENT_RUNNER_BUILD=0",
        )


def _copy(source: Path, scratch: Path) -> None:
    """Copy the folder without the packages that were installed for the host."""
    for _ in scan(source, absolute=False, follow=False):
        pass  # refuses what cannot be in an image before anything is copied

    def ignored(folder: str, names: Sequence[str]) -> set[str]:
        return {_MODULES} & set(names) if Path(folder) == source else set()

    try:
        shutil.copytree(source, scratch, symlinks=True, ignore=ignored, dirs_exist_ok=True)
    except (OSError, shutil.Error) as cause:
        raise InputError(f"{source}: cannot be copied: {cause}") from cause


def _install(folder: Path, source: Path, architecture: str, *, allow_scripts: bool, offline: bool) -> None:
    if architecture not in CPUS:
        raise InputError(f"{source}: Node's name of the architecture {architecture} is not known")
    lock = next((source / name for name in _LOCKS if (source / name).is_file()), None)
    unlocked = unlocked_options(lock) if lock is not None else []
    # npm ci refuses a lock file that lacks packages (or, npm 10, installs without them); npm install adds them.
    command = ["install", "--no-save"] if unlocked else ["ci"] if lock is not None else ["install", "--no-package-lock"]
    platform = ["--omit=dev", "--os=linux", f"--cpu={CPUS[architecture]}", "--libc=musl"]
    scripts = [] if allow_scripts else ["--ignore-scripts"]
    network = "--offline" if offline else "--prefer-offline"
    quiet = {} if allow_scripts else _without_scripts()
    _npm([*command, *platform, "--no-audit", "--no-fund", *scripts, network], folder, source, quiet)
    if lock is not None:
        _mention_unlocked(folder, lock, _meant(unlocked, CPUS[architecture]))
    # npm's own notes name the registry that this host uses, and serve only npm.
    (folder / _MODULES / ".package-lock.json").unlink(missing_ok=True)


def _without_scripts() -> dict[str, str]:
    """Variables for an npm that shall run no scripts.

    npm 10 runs ``prepare`` of workspaces and of packages from git repositories in spite of ``--ignore-scripts``, and
    starts another npm for the latter, which is not given that option. With a shell that does nothing nothing runs (but
    before npm 10.9.4, for ``prepare`` of packages from git repositories, which then uses another shell).
    """
    return {"npm_config_ignore_scripts": "true", "npm_config_script_shell": shutil.which("true") or "true"}


def unlocked_options(lock: Path) -> list[str]:
    """Names of optional packages that packages in npm's lock file ask for and that have no entry in it, sorted.

    A lock file has entries for the packages of all platforms. But npm leaves those of other platforms out when it
    writes one beside a ``node_modules`` (issues 4828 and 8320 of npm/cli), so that a lock file from macOS may know
    nothing of the packages that the image needs.

    Raises:
        InputError: the lock file is not JSON, or of another shape.
    """
    try:
        packages = json.loads(lock.read_bytes()).get("packages", {})
        entries = {str(path).rpartition(f"{_MODULES}/")[2] for path in packages}
        wanted = {name for facts in packages.values() for name in facts.get("optionalDependencies", {})}
    except (OSError, ValueError, AttributeError, TypeError) as cause:
        raise InputError(f"{lock}: cannot be read as a lock file of npm: {cause}") from cause
    return sorted(wanted - entries)


def _mention_unlocked(folder: Path, lock: Path, names: Sequence[str]) -> None:
    """Warn of packages that the image needs and ``lock`` lacks, once npm has done with them what it does."""
    missing = [name for name in names if not any(folder.rglob(f"{_MODULES}/{name}"))]
    again = f"remove node_modules and {lock.name} and run npm install to have a complete one"
    if missing:
        log.warning("%s: lacks %s, and this npm did not install it; %s", lock, ", ".join(missing), again)
    elif names:
        log.warning("%s: lacks %s, which is now in the image in a version of npm's choice; %s", lock, names[0], again)


def _meant(names: Sequence[str], cpu: str) -> list[str]:
    """Those of ``names`` that are, going by the customs of npm, for Linux, this ``cpu`` and musl (or any libc)."""
    here = [name for name in names if {"linux", cpu} <= _words(name)]
    return [name for name in here if "musl" in _words(name)] or [
        name for name in here if not {"gnu", "glibc"} & _words(name)
    ]


def _words(name: str) -> set[str]:
    """The words of a package's name: ``@img/sharp-linuxmusl-x64`` is of img, sharp, linux, musl and x64."""
    return set(re.findall(r"[a-z0-9]+", name.replace("linuxmusl", "linux-musl")))


def _npm(
    arguments: Sequence[str], folder: Path, source: Path, variables: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Run npm in ``folder``, the copy of ``source``, with more ``variables`` in its environment.

    Raises:
        InputError: it failed; the message has what npm said first.
    """
    argv = ["npm", *arguments, "--no-update-notifier", "--loglevel=error", "--logs-max=0", "--no-progress"]
    environment = {**os.environ, **variables}
    with process.start(argv, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as child:
        try:
            output, _ = child.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired as late:
            raise InputError(f"{source}: npm {arguments[0]} did not end within {TIMEOUT:g} s") from late
    if child.returncode != 0:
        said = _complaint(output.decode(errors="replace"))
        raise InputError(
            f"{source}: npm {arguments[0]} {process.ending(child.returncode)}" + (f": {said}" if said else "")
        )


def _complaint(output: str) -> str:
    """The line of npm's output that says what is wrong: the first error that is more than a code, or the last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"npm (ERR!|error) (?!code |errno |syscall )\S", line)]
    return (errors or lines[-1:] or [""])[0]
