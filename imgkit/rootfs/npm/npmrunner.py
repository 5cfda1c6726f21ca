"""Run npm with an environment, a home and a configuration made by imgkit, if possible inside bubblewrap.

    with npm_runner(source, copy, cache, allow_git=False, offline=False) as runner:
        runner.install(["ci", "--omit=dev"], scripts=False)

Inside bubblewrap npm sees the system's programs and its own installation, read-only, and of the rest of the host only
the copy of the payload, its cache and an empty home. It sees no other processes and has no privileges. It has the
host's network, to download packages, unless the build is offline. bubblewrap needs user namespaces; if it is missing,
or may not make them (as in most containers), npm runs like any other program of this user.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from imgkit.errors import HostError, InputError
from imgkit.host import process, scratch
from imgkit.rootfs.npm import npmconfig
from imgkit.rootfs.npm.npmsources import GIT_HINT

log = logging.getLogger("imgkit")

_TIMEOUT = 900.0  # seconds for one run of npm
_VERSION_TIMEOUT = 60.0  # seconds for npm --version
_PROBE_TIMEOUT = 10.0  # seconds for a program that does nothing inside bubblewrap
_PROBE_TRIES = 3

_CERTIFICATES = ("NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE", "SSL_CERT_DIR", "GIT_SSL_CAINFO", "GIT_SSL_CAPATH")
_VARIABLES = (
    *("http_proxy", "https_proxy", "no_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"),
    *_CERTIFICATES,
    *("NODE_USE_ENV_PROXY", "NODE_USE_SYSTEM_CA", "SOURCE_DATE_EPOCH"),
)
"""The environment variables of this process that npm gets: proxies, certificates, and the time."""

_FIXED = MappingProxyType(
    {
        "LANG": "C.UTF-8",
        # npm may be a wrapper of corepack, which would download and run the npm that the payload's package.json names.
        "COREPACK_ENABLE_PROJECT_SPEC": "0",
        "COREPACK_ENV_FILE": "0",
        "COREPACK_ENABLE_DOWNLOAD_PROMPT": "0",
        # If git may run, then without any configuration, without questions, and not on files of the host.
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ALLOW_PROTOCOL": "https:http:ssh:git",
    }
)

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store")
_SETTINGS = (  # of /etc: names of hosts and users, certificates, the linker; nothing that only root may read
    *("resolv.conf", "hosts", "host.conf", "nsswitch.conf", "gai.conf", "services", "protocols", "passwd", "group"),
    *("localtime", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "crypto-policies"),
    *("ssl/certs", "ssl/openssl.cnf", "ca-certificates", "pki/tls/certs", "pki/ca-trust", "static"),
)
_NAMESPACES = (
    *("--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-uts", "--unshare-cgroup-try"),
    *("--new-session", "--die-with-parent", "--cap-drop", "ALL"),
)
MISSING = "not on PATH"
"""The result of :func:`sandbox_problem` if there is no bubblewrap."""

_WRAPPER_HINT = (
    "npm gets no HOME and few variables of yours: if this is the wrapper of a version manager (Volta, asdf, mise), put"
    " the folder of the real npm and node first on PATH"
)
# Names of programs that do not exist: npm's error message has them in it.
_NO_GIT = "git-is-not-allowed"
_MISSING_GIT = "git-is-not-installed"
_FULL = re.compile(r"\b(ENOSPC|EDQUOT)\b")  # Node's names
_GIT_REFUSED = re.compile(rf"EALLOWGIT|{_NO_GIT}")


@dataclass(frozen=True)
class NpmRunner:
    """Runs npm on the copy of a payload.

    Attributes:
        source: the payload, for messages.
        npm: the program.
        folder: the folder of npm's home and configuration, which is removed at the end.
        copy: the folder in which npm installs.
        cache: the folder of npm's cache.
        environment: all variables that npm gets.
        wrapper: the command that starts the program: bubblewrap with its options, or nothing.
        git: the program that npm uses as git.
    """

    source: Path
    npm: str
    folder: Path
    copy: Path
    cache: Path
    environment: Mapping[str, str]
    wrapper: tuple[str, ...]
    git: str

    @property
    def rights(self) -> str:
        """The rights with which code of the payload runs, as a phrase for messages."""
        return "inside bubblewrap" if self.wrapper else "with your rights on this host"

    def version(self) -> str:
        """Return the version that npm prints.

        Raises:
            HostError: npm failed.
        """
        argv = [*self.wrapper, self.npm, "--version"]
        try:
            output = process.run(argv, env=self.environment, cwd=self.folder / "home", timeout=_VERSION_TIMEOUT)
        except HostError as cause:
            if self.wrapper:
                raise
            raise HostError(f"{self.npm}: {cause.message}", hint=_WRAPPER_HINT) from cause
        return output.decode(errors="replace").strip()

    def install(self, arguments: Sequence[str], *, scripts: bool) -> None:
        """Run npm to install packages in the copy.

        Args:
            arguments: npm's command and its options.
            scripts: whether lifecycle scripts of the packages and of the payload may run.

        Raises:
            InputError: npm failed or took too long; the message has npm's first error.
            HostError: there is no space left, or git is missing.
        """
        options = [*arguments, f"--userconfig={self.folder / 'npmrc'}", f"--cache={self.cache}"]
        self._run([*options, *([] if scripts else ["--ignore-scripts"])], {} if scripts else _without_scripts())

    def build(self, *, scripts: bool) -> None:
        """Run the payload's ``build`` script, without the configuration and the cache that :meth:`install` uses.

        Args:
            scripts: whether ``prebuild`` and ``postbuild`` may run.

        Raises:
            InputError: npm failed or took too long; the message has npm's first error.
            HostError: there is no space left, or git is missing.
        """
        (self.folder / "npmrc").unlink(missing_ok=True)  # it has credentials
        options = ["run", "build", f"--userconfig={self.folder / 'npmrc'}", f"--cache={self.folder / 'home/cache'}"]
        self._run([*options, *([] if scripts else ["--ignore-scripts"])], {})

    def _run(self, arguments: Sequence[str], variables: Mapping[str, str]) -> None:
        argv = [*self.wrapper, self.npm, *arguments, *self._options()]
        environment = {**self.environment, **variables}
        home = self.folder / "home"
        pipe, both = subprocess.PIPE, subprocess.STDOUT
        with process.start_family(argv, cwd=home, env=environment, stdout=pipe, stderr=both) as child:
            try:
                output, _ = child.communicate(timeout=_TIMEOUT)
            except subprocess.TimeoutExpired as late:
                raise InputError(f"{self.source}: npm {arguments[0]} did not end within {_TIMEOUT:g} s") from late
        if child.returncode != 0:
            raise self._failure(arguments[0], child.returncode, output.decode(errors="replace"))

    def _options(self) -> list[str]:
        """Return the options that name programs and folders: no configuration can change what the command line says.

        With ``--prefix`` npm does not look for a package.json in the folders above.
        """
        return [
            f"--prefix={self.copy}",
            f"--globalconfig={self.folder / 'none'}",
            f"--git={self.git}",
            "--allow-git=none" if self.git.endswith(_NO_GIT) else "--allow-git=all",  # npm 11.10 and newer
            *("--no-update-notifier", "--loglevel=error", "--logs-max=0", "--no-progress"),
        ]

    def _failure(self, command: str, status: int, output: str) -> InputError | HostError:
        """Return the error for a run of npm that failed."""
        if _FULL.search(output):
            return HostError(f"{self.copy}: npm {command}: no space left", hint="make room, or choose another WORK_DIR")
        if _MISSING_GIT in output:
            return process.missing("git")
        error = _first_error(output)
        hint = GIT_HINT if _GIT_REFUSED.search(output) else None
        reason = "wants a package from a git repository: " if hint else ""
        message = f"{self.source}: {reason}npm {command} {process.ending(status)}" + (f": {error}" if error else "")
        return InputError(message, hint=hint)


@contextmanager
def npm_runner(source: Path, copy: Path, cache: Path | None, *, allow_git: bool, offline: bool) -> Iterator[NpmRunner]:
    """Prepare npm to work on ``copy`` during the block, in which the copy's ``.npmrc`` is moved away.

    Args:
        source: the payload's folder; programs in it are not used as npm.
        cache: the folder of npm's cache, which is made if it is missing; None makes one for this block only.
        allow_git: whether npm may run git.
        offline: whether npm gets no network.

    Raises:
        HostError: npm is missing, or a folder cannot be made.
        InputError: the payload's ``.npmrc`` cannot be read.
    """
    path = _search_path(source)
    npm = shutil.which("npm", path=path)
    if npm is None:
        raise process.missing("npm")
    with scratch.folder(copy.parent, f"{copy.name}-npm-") as folder:
        cache = cache or folder / "home/cache"
        for needed in (folder / "home/tmp", cache):
            needed.mkdir(parents=True, exist_ok=True)
        host_files = _configure(source, copy, folder, npm)
        git = shutil.which("git", path=path) or str(folder / _MISSING_GIT) if allow_git else str(folder / _NO_GIT)
        plain = NpmRunner(source, npm, folder, copy, cache.resolve(), _environment(folder, path), (), git)
        with _set_aside(copy / npmconfig.NAME, folder / "npmrc-of-the-payload"):
            yield _sandboxed(plain, path, host_files, offline=offline)


def _search_path(source: Path) -> str:
    """Return PATH without entries that are relative or in the payload."""
    top = source.resolve()
    entries = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return os.pathsep.join(
        entry for entry in entries if Path(entry).is_absolute() and not Path(entry).resolve().is_relative_to(top)
    )


def _environment(folder: Path, path: str) -> dict[str, str]:
    passed = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    own = {"PATH": path, "HOME": str(folder / "home"), "TMPDIR": str(folder / "home/tmp")}
    return {**passed, **_FIXED, **own}


def _configure(source: Path, copy: Path, folder: Path, npm: str) -> tuple[Path, ...]:
    """Write npm's configuration; return the files of the host that it names."""
    configuration = npmconfig.settings(copy / npmconfig.NAME, _configurations(npm), dict(os.environ))
    if configuration.ignored:
        log.warning(
            "%s: npm is not told of %s; what your host or network needs belongs in your own ~/.npmrc",
            source / npmconfig.NAME,
            ", ".join(configuration.ignored),
        )
    (folder / "npmrc").touch(mode=0o600)  # it has credentials
    (folder / "npmrc").write_text(configuration.text)
    named = [Path(place) for name in _CERTIFICATES for place in os.environ.get(name, "").split(os.pathsep)]
    return tuple(path for path in (*configuration.files, *named) if path.is_absolute())


def _configurations(npm: str) -> list[Path]:
    """Return the configuration files of the host in npm's order: the system's, npm's own, and the user's."""
    installed = Path(npm).resolve().parts
    paths = [Path("/etc/npmrc")]
    if "lib" in installed:
        paths.append(Path(*installed[: installed.index("lib")], "etc/npmrc"))
    variables = {name.lower(): value for name, value in os.environ.items()}
    own = variables.get("npm_config_userconfig") or f"{os.environ.get('HOME', '')}/{npmconfig.NAME}"
    return [path for path in (*paths, Path(own)) if path.is_absolute()]  # a relative one might be the payload's


@contextmanager
def _set_aside(path: Path, place: Path) -> Iterator[None]:
    """Move the file at ``path`` to ``place`` during the block. At the end it replaces what is then at ``path``."""
    exists = os.path.lexists(path)
    if exists:
        path.rename(place)
    try:
        yield
    finally:
        if exists:
            with suppress(IsADirectoryError):  # a script that was allowed to run made a folder
                place.rename(path)


# ---- bubblewrap ------------------------------------------------------------------------------------------------------


def _sandboxed(plain: NpmRunner, path: str, files: Sequence[Path], *, offline: bool) -> NpmRunner:
    """Return a runner inside bubblewrap if npm can be started there; else log the reason and return ``plain``."""
    program = shutil.which("bwrap", path=path)
    if program is None:
        log.info("npm runs without a sandbox: bubblewrap is not installed")
        return plain
    wrapped = NpmRunner(
        **{**vars(plain), "wrapper": (program, *_bubblewrap_options(plain, path, files, offline=offline))}
    )
    try:
        wrapped.version()
    except HostError as problem:
        log.info("npm runs without a sandbox: %s", problem.message)
        return plain
    return wrapped


def _bubblewrap_options(plain: NpmRunner, path: str, files: Sequence[Path], *, offline: bool) -> list[str]:
    """Return bubblewrap's options (bwrap(1)): an empty root, into which what npm needs is bound."""
    shown = [*_SYSTEM, *(f"/etc/{name}" for name in _SETTINGS)]
    shown += [str(place) for name in ("npm", "node", "git") for place in _installation(name, path)]
    options = [*_NAMESPACES, *(["--unshare-net"] if offline else []), "--tmpfs", "/tmp"]  # noqa: S108 - a new one
    for place in dict.fromkeys([*shown, *map(str, files)]):
        if place not in _SYSTEM and place.startswith(tuple(f"{folder}/" for folder in _SYSTEM)):
            continue
        options += ["--ro-bind-try", place, place]
    options += ["--proc", "/proc", "--dev", "/dev"]
    config = str(plain.folder / "npmrc")
    options += ["--ro-bind-try", config, config]
    for folder in (plain.folder / "home", plain.cache, plain.copy):
        options += ["--bind", str(folder), str(folder)]
    return [*options, "--chdir", str(plain.folder / "home"), "--"]


def _installation(name: str, path: str) -> Iterator[Path]:
    """Yield the folders of a program and its libraries: those of every link on the way to it and of the program."""
    program = shutil.which(name, path=path)
    hops = [Path(program)] if program else []
    while hops and hops[-1].is_symlink() and len(hops) < 40:
        hops.append(hops[-1].parent / hops[-1].readlink())
    for hop in {*hops, *(hop.resolve() for hop in hops)}:
        if "node_modules" in hop.parts:  # npm's own program is in lib/node_modules/npm/bin
            yield Path(*hop.parts[: hop.parts.index("node_modules") + 1])
        elif hop.parent.name == "bin":
            prefix = hop.parent.parent
            yield from (hop.parent, prefix / "lib", prefix / "pyvenv.cfg")
        else:
            yield hop.parent


def sandbox_problem() -> str | None:
    """Return why npm cannot be run inside bubblewrap on this host, None if it can.

    Bubblewrap fails if something is mounted or unmounted at the same moment, so it gets another try.
    """
    program = shutil.which("bwrap")
    if program is None:
        return MISSING
    argv = [program, *_NAMESPACES, "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "true"]
    problem = None
    for _ in range(_PROBE_TRIES):
        try:
            process.run(argv, timeout=_PROBE_TIMEOUT)
        except HostError as error:
            problem = error.message
        else:
            return None
    return problem


def _without_scripts() -> dict[str, str]:
    """Return variables for an npm that must not run scripts.

    npm 10 runs ``prepare`` of workspaces and of packages from git repositories in spite of ``--ignore-scripts``, and
    starts another npm for the latter without that option. With a shell that does nothing, no script runs.
    """
    return {"npm_config_ignore_scripts": "true", "npm_config_script_shell": shutil.which("true") or "true"}


def _first_error(output: str) -> str:
    """Return the first error in npm's output that is more than a code, or else the last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"npm (ERR!|error) (?!code |errno |syscall )\S", line)]
    return (errors or lines[-1:] or [""])[0]
