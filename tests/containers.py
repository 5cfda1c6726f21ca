"""Make the Containerfile's image without docker: mmdebstrap makes the base image, runc does the rest and runs it.

Only root may use runc so. The root filesystem is kept in the user's cache folder, under a name made from all that it
is made of; imgkit's own modules, which the Containerfile copies last, are mounted from the repository instead.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock

from tests import seccomp
from tests.commandline import ROOT
from tests.conftest import need, need_program

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_SUITES = {"12": ("bookworm", "3.11"), "13": ("trixie", "3.13")}  # Debian's release → its name, its Python
_KEPT_DAYS = 7
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# What docker gives to root in a container, without --cap-drop.
_CAPABILITIES = [
    *("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "NET_BIND_SERVICE"),
    *("NET_RAW", "SYS_CHROOT", "MKNOD", "AUDIT_WRITE", "SETFCAP"),
]


@dataclass
class Recipe:
    """A parsed Containerfile.

    Attributes:
        suite: Debian's name for what ``FROM`` says.
        python: its Python, ``major.minor``.
        steps: (instruction, words after it) of each ``COPY`` and ``RUN`` up to the last ``RUN``.
        copied_last: the same of what follows; such lines only change imgkit's modules.
        env: all that ``ENV`` sets.
        workdir, user, entrypoint: of the image.
    """

    suite: str = ""
    python: str = ""
    steps: list[tuple[str, str]] = field(default_factory=list)
    copied_last: list[tuple[str, str]] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    user: str = "root"
    entrypoint: tuple[str, ...] = ()


def read_recipe(text: str) -> Recipe:
    """Parse a Containerfile.

    Raises:
        ValueError: it has an instruction that the repository's Containerfile does not use.
    """
    recipe = Recipe()
    for line in text.replace("\\\n", " ").splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            recipe.suite, recipe.python = _SUITES[rest.removeprefix("docker.io/library/debian:")]
        elif word in ("COPY", "RUN"):
            recipe.copied_last.append((word, rest))
        elif word == "ENV":
            recipe.env.update(_variable(part, {}) for part in shlex.split(rest))
        elif word == "WORKDIR":
            recipe.workdir = rest
        elif word == "USER":
            recipe.user = rest
        elif word == "ENTRYPOINT":
            recipe.entrypoint = tuple(json.loads(rest))
        elif word and not word.startswith("#"):
            raise ValueError(f"{word}: not understood here")
        if word == "RUN":
            recipe.steps += recipe.copied_last
            recipe.copied_last = []
    return recipe


def key(recipe: Recipe) -> str:
    """Return a key that changes whenever the root filesystem would be different."""
    digest = hashlib.sha256(repr((recipe.suite, recipe.steps, _making(recipe))).encode())
    digest.update(Path(__file__).read_bytes())
    for word, rest in recipe.steps:
        for name in shlex.split(rest)[:-1] if word == "COPY" else ():
            digest.update(name.encode() + b"\0" + (ROOT / name).read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _making(recipe: Recipe) -> dict[str, str]:
    """Return the variables that stand in front of the first RUN, and are there while the image is made."""
    return {name: value for name, value in recipe.env.items() if name in ("DEBIAN_FRONTEND", "INITRD")}


@dataclass(frozen=True)
class Container:
    """The image, in which commands can be run."""

    root: Path
    recipe: Recipe

    def run(self, words: Sequence[str], environ: Mapping[str, str], volumes: Path) -> subprocess.CompletedProcess[str]:
        """Do what ``docker run`` does with ``words``, as far as script/container-build needs it.

        Args:
            words: the arguments behind ``run``.
            environ: the environment of ``docker``.
            volumes: folder on the host of the named volumes.
        """
        asked = _parser().parse_args(words)
        env = {**self.recipe.env, **dict(_variable(text, environ) for text in asked.env)}
        uid, gid = (int(number) for number in asked.user.split(":"))
        mounts = [_mount(text, volumes, self.root) for text in asked.volume]
        mounts += [_Mount(str(ROOT / source), target) for source, target in self._modules()]
        tmpfs = [{"destination": path, "type": "tmpfs", "options": _TMPFS} for path in asked.tmpfs]
        config = _config(
            self.root,
            [*self.recipe.entrypoint, *asked.words],
            env,
            (uid, gid),
            asked.workdir,
            [*tmpfs, *(mount.entry() for mount in mounts)],
            capabilities=[] if asked.cap_drop == "ALL" else _CAPABILITIES,
            readonly=asked.read_only,
        )
        config["process"]["noNewPrivileges"] = "no-new-privileges" in asked.security_opt
        config["linux"]["seccomp"] = seccomp.profile()
        return _runc(config, timeout=500)

    def job(self, script: str, env: Mapping[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
        """Do what a runner of CI does that has docker: run a shell's script as the container's root.

        Args:
            script: for ``bash -e``.
            env: the job's variables.
            folder: the checkout on the host, which is the current folder.
        """
        mounts = [_Mount(str(folder), "/project", writable=True)]
        mounts += [_Mount(str(ROOT / source), target) for source, target in self._modules()]
        tmpfs = {"destination": "/tmp", "type": "tmpfs", "options": [each for each in _TMPFS if each != "noexec"]}
        config = _config(
            self.root,
            ["/bin/bash", "-ec", script],
            {**self.recipe.env, **env},
            (0, 0),
            "/project",
            [tmpfs, *(mount.entry() for mount in mounts)],
            _CAPABILITIES,
            readonly=True,
        )
        config["linux"]["seccomp"] = seccomp.profile()
        return _runc(config, timeout=500)

    def _modules(self) -> Iterator[tuple[str, str]]:
        for word, rest in self.recipe.copied_last:
            assert word == "COPY"
            source, target = rest.split()
            yield source, target


def _parser() -> ArgumentParser:
    """Return a parser of the options of ``docker run``. Any other option is an error, so that none is overlooked."""
    parser = ArgumentParser("run", allow_abbrev=False)
    for flag in ("--rm", "--read-only"):
        parser.add_argument(flag, action="store_true", required=True)
    for option in ("--user", "--workdir", "--cap-drop"):
        parser.add_argument(option, required=True)
    for option in ("--env", "--volume", "--tmpfs", "--security-opt"):
        parser.add_argument(option, action="append", default=[])
    parser.add_argument("image", choices=["imgkit-build"])
    parser.add_argument("words", nargs="...")
    return parser


def _variable(text: str, environ: Mapping[str, str]) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    return name, value if equals else environ[name]


@dataclass(frozen=True)
class _Mount:
    source: str
    target: str
    writable: bool = False

    def entry(self) -> dict[str, Any]:
        kind = ["rbind", "rprivate", "rw" if self.writable else "ro"]
        return {"destination": self.target, "type": "bind", "source": self.source, "options": kind}


def _mount(text: str, volumes: Path, root: Path) -> _Mount:
    """Parse ``SOURCE:TARGET[:ro]``. A source without a slash is a volume, which gets the mode of its target."""
    source, target, *mode = text.split(":")
    assert mode in ([], ["ro"])
    if "/" not in source:
        folder = volumes / source
        folder.mkdir(exist_ok=True)
        folder.chmod((root / target.lstrip("/")).stat().st_mode & 0o7777)
        source = str(folder)
    return _Mount(source, target, writable=not mode)


# ---- making it -----------------------------------------------------------------------------------------------------


def container() -> Container:
    """Return the image of the repository's Containerfile, made on first use (two minutes)."""
    need("root, for runc", os.geteuid() == 0)
    need_program("runc")
    need_program("mmdebstrap")
    need(str(KEYRING), KEYRING.exists())
    recipe = read_recipe((ROOT / "Containerfile").read_text())
    cache = Path(platformdirs.user_cache_dir("imgkit")) / "test-container"
    cache.mkdir(parents=True, exist_ok=True)
    root = cache / key(recipe)
    with FileLock(cache / "lock"):
        if not root.exists():
            scratch = Path(tempfile.mkdtemp(dir=cache, prefix="making-"))
            try:
                _make(recipe, scratch)
                (scratch / "root").rename(root)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        os.utime(root)
        for other in cache.iterdir():
            if other.is_dir() and other.stat().st_mtime < time.time() - _KEPT_DAYS * 86400:
                shutil.rmtree(other, ignore_errors=True)
    return Container(root, recipe)


def _make(recipe: Recipe, scratch: Path) -> None:
    root, wheels = scratch / "root", scratch / "wheels"
    argv: list[str | Path] = ["mmdebstrap", "--variant=minbase", "--quiet", f"--keyring={KEYRING}"]
    argv += ["--dpkgopt=force-unsafe-io", recipe.suite, root]  # what is lost with the host is made again
    done = subprocess.run(argv, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    _download_wheels(recipe.python, wheels)
    for word, rest in recipe.steps:
        if word == "COPY":
            *sources, target = shlex.split(rest)
            _copy(sources, target, root)
        else:
            _run_step(rest, recipe, root, wheels)


def _copy(sources: Sequence[str], target: str, root: Path) -> None:
    for source in sources:
        place = root / target.lstrip("/") / (Path(source).name if target.endswith("/") else "")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / source, place)


def _run_step(line: str, recipe: Recipe, root: Path, wheels: Path) -> None:
    """Execute a ``RUN`` line as docker's root. Python's package index is the folder ``wheels`` of the host."""
    env = {"PATH": _PATH, "HOME": "/root", **_making(recipe), "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/mnt/wheels"}
    (root / "mnt/wheels").mkdir(exist_ok=True)
    names = Path("/etc/resolv.conf").resolve()
    mounts = [_Mount(str(wheels), "/mnt/wheels").entry(), _Mount(str(names), "/etc/resolv.conf").entry()]
    config = _config(root, ["/bin/sh", "-c", line], env, (0, 0), "/", mounts, _CAPABILITIES, readonly=False)
    done = _runc(config, timeout=500)
    assert done.returncode == 0, done.stderr
    (root / "mnt/wheels").rmdir()


def _download_wheels(python: str, folder: Path) -> None:
    """Download the wheels of the lock that ``python`` needs. pip by itself would choose those of the host's Python."""
    from packaging.markers import Marker

    target = {"python_full_version": f"{python}.0", "python_version": python, "sys_platform": "linux"}
    wanted = folder.with_suffix(".txt")
    lines = []
    for block in re.split(r"\n(?=\S)", (ROOT / "requirements-dev.lock").read_text()):
        match = re.match(r"(\S+==\S+) ; ([^\\]+?) *(?=\\)", block)
        if not match or Marker(match.group(2)).evaluate(target):
            lines.append(block.replace(match.group(), f"{match.group(1)} ", 1) if match else block)
    wanted.write_text("\n".join(lines))
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    pip: list[str | Path] = [sys.executable, "-m", "pip", "download", *options, "--require-hashes"]
    pip += ["-r", wanted, "-d", folder]
    done = subprocess.run(pip, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr


# ---- runc ----------------------------------------------------------------------------------------------------------

_TMPFS = ["nosuid", "nodev", "noexec", "mode=1777"]
_HIDDEN = ["acpi", "asound", "kcore", "keys", "latency_stats", "timer_list", "timer_stats", "sched_debug", "scsi"]
_READ_ONLY = ["bus", "fs", "irq", "sys", "sysrq-trigger"]


def _config(
    root: Path,
    args: Sequence[str],
    env: Mapping[str, str],
    user: tuple[int, int],
    cwd: str,
    mounts: Sequence[Mapping[str, Any]],
    capabilities: Sequence[str],
    *,
    readonly: bool,
) -> dict[str, Any]:
    """Return a container of the OCI runtime specification as docker makes it, but in the host's network. No devices."""
    names = [f"CAP_{name}" for name in capabilities]
    sets = ("bounding", "effective", "permitted") if user[0] == 0 else ("bounding",)
    nothing = ["nosuid", "noexec", "nodev"]
    return {
        "ociVersion": "1.0.2",
        "root": {"path": str(root), "readonly": readonly},
        "process": {
            "terminal": False,
            "user": {"uid": user[0], "gid": user[1]},
            "args": list(args),
            "env": [f"{name}={value}" for name, value in env.items()],
            "cwd": cwd,
            "capabilities": dict.fromkeys(sets, names),
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": nothing},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": [*nothing, "mode=1777"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*nothing, "ro"]},
            *mounts,
        ],
        "linux": {
            "namespaces": [{"type": name} for name in ("pid", "ipc", "uts", "mount")],
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "maskedPaths": [*(f"/proc/{name}" for name in _HIDDEN), "/sys/firmware"],
            "readonlyPaths": [f"/proc/{name}" for name in _READ_ONLY],
        },
    }


@contextmanager
def _bundle(config: Mapping[str, Any]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="imgkit-bundle-") as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        yield Path(folder)


def _runc(config: Mapping[str, Any], *, timeout: float) -> subprocess.CompletedProcess[str]:
    """Run a container to its end, and remove everything of it in any case."""
    name = f"imgkit-test-{secrets.token_hex(4)}"
    with _bundle(config) as bundle:
        argv: list[str | Path] = ["runc", "run", "--bundle", bundle, name]
        try:
            return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout)
        finally:
            subprocess.run(["runc", "delete", "--force", name], capture_output=True)
