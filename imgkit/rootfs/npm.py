"""Installing a payload's npm packages on the host for the image's platform, in a copy of the folder.

npm picks packages for ``--os``, ``--cpu`` and ``--libc`` instead of the host's, so prebuilt native parts are right for
a foreign architecture. Scripts of packages do not run unless the caller allows it.
"""

from __future__ import annotations

import json
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

MINIMUM = (10, 2, 2)  # the first npm that knows --libc; older ones ignore it without a word
TIMEOUT = 900.0  # seconds for one run of npm
_LOCKS = ("package-lock.json", "npm-shrinkwrap.json")
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
    file), then ``npm run build --if-present``. ``"auto"``: install where a package.json asks for packages, build where
    there is no ``node_modules`` yet; npm is not needed for a payload that asks for neither.

    Args:
        scratch: an empty or missing folder for the copy; it must stay until the image is written.
        architecture: Alpine's name of the image's architecture.
        allow_scripts: run lifecycle scripts of packages (on the host, with the host's compilers).
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
    installs = build == "1" or _asks_for_packages(manifest)
    builds = _has_build(manifest) and (build == "1" or not (source / _MODULES).is_dir())
    if not installs and not builds:
        return source
    _check_npm()
    _copy(source, scratch, without_modules=installs)
    if installs:
        _install(scratch, source, architecture, allow_scripts=allow_scripts, offline=offline)
    if builds:
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


def _check_npm() -> None:
    version = process.run(["npm", "--version"], timeout=60).decode(errors="replace").strip()
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:3])
    if numbers < MINIMUM:
        wanted = ".".join(map(str, MINIMUM))
        raise HostError(
            f"npm {version}: too old to install packages for another platform, {wanted} is needed",
            hint="install a newer Node.js, or install the payload's packages yourself and set AGENT_RUNNER_BUILD=0",
        )


def _copy(source: Path, scratch: Path, *, without_modules: bool) -> None:
    for _ in scan(source, absolute=False, follow=False):
        pass  # refuses what cannot be in an image before anything is copied

    def ignored(folder: str, names: Sequence[str]) -> set[str]:
        return {_MODULES} & set(names) if without_modules and Path(folder) == source else set()

    try:
        shutil.copytree(source, scratch, symlinks=True, ignore=ignored, dirs_exist_ok=True)
    except (OSError, shutil.Error) as cause:
        raise InputError(f"{source}: cannot be copied: {cause}") from cause


def _install(folder: Path, source: Path, architecture: str, *, allow_scripts: bool, offline: bool) -> None:
    if architecture not in CPUS:
        raise InputError(f"{source}: Node's name of the architecture {architecture} is not known")
    locked = any((folder / name).is_file() for name in _LOCKS)
    arguments = ["ci"] if locked else ["install", "--no-package-lock"]
    arguments += ["--omit=dev", "--os=linux", f"--cpu={CPUS[architecture]}", "--libc=musl", "--no-audit", "--no-fund"]
    arguments += [] if allow_scripts else ["--ignore-scripts"]
    _npm([*arguments, "--offline" if offline else "--prefer-offline"], folder, source)
    # npm's own notes name the registry that this host uses, and serve only npm.
    (folder / _MODULES / ".package-lock.json").unlink(missing_ok=True)


def _npm(arguments: Sequence[str], folder: Path, source: Path) -> None:
    """Run npm in ``folder``, the copy of ``source``.

    Raises:
        InputError: it failed; the message has what npm said first.
    """
    argv = ["npm", *arguments, "--no-update-notifier", "--loglevel=error", "--logs-max=0", "--no-progress"]
    with process.start(argv, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as child:
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
