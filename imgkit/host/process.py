"""Start other programs. All programs that imgkit starts are started here.

Arguments are lists, the environment is explicit, and every command is logged in a form that can be pasted into a shell
(``-v`` shows them). There is one exception for each way in which a program fails::

    try:
        output = process.run(["qemu-img", "info", path], timeout=20)
    except process.MissingProgramError as error:
        print(error.program, "is not installed;", error.hint)
    except process.ProgramError as error:
        print(error.last_line)
"""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from imgkit.errors import HostError
from imgkit.host import interrupts

log = logging.getLogger("imgkit.host.process")

PACKAGES = {
    "qemu-img": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-system-aarch64": "qemu-system-arm",
    "supermin": "supermin",
    "npm": "npm",
    "node": "nodejs",
    "bwrap": "bubblewrap",
}
"""Program → the package of Debian and Ubuntu that has it."""
_FORMULAS = {
    "qemu-img": "qemu",
    "qemu-system-x86_64": "qemu",
    "qemu-system-aarch64": "qemu",
    "npm": "node",
    "node": "node",
}

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
# Runs before a program whose whole process group is to end with this process. A shell of the group waits until a pipe
# is closed whose other end only this process has, and then kills the group, itself included. While it lives, the number
# of the group cannot be used for another one.
_WATCHDOG = 'exec 3<&0 </dev/null; { read -r _; kill -KILL 0; } <&3 >/dev/null 2>&1 & exec 3<&-; exec "$@"'


class MissingProgramError(HostError):
    """A program is not on PATH. ``program`` is its name, ``hint`` names the package that has it."""

    def __init__(self, program: str) -> None:
        super().__init__(f"{program}: program not found", hint=how_to_install(Path(program).name))
        self.program = program


def how_to_install(program: str) -> str:
    """Return the command that installs a program: apt-get's, or Homebrew's on macOS; or advice if none is known."""
    installer, packages = ("brew", _FORMULAS) if sys.platform == "darwin" else ("apt-get", PACKAGES)
    package = packages.get(program)
    return f"{installer} install {package}" if package else f"install {program} or put it on PATH"


class ProgramError(HostError):
    """A program failed or was killed.

    Attributes:
        status: as in :attr:`subprocess.Popen.returncode`: negative for a signal.
        last_line: what it wrote last to standard error; empty if it wrote nothing.
    """

    def __init__(self, program: str, status: int, last_line: str) -> None:
        super().__init__(f"{Path(program).name} {ending(status)}" + (f": {last_line}" if last_line else ""))
        self.status = status
        self.last_line = last_line


class ProgramTimeoutError(HostError):
    """A program did not end in time, and was killed."""


def _libc() -> ctypes.CDLL | None:
    """Return the C library.

    It is loaded before any fork, since loading it in the child of a process with threads could deadlock.
    """
    return ctypes.CDLL(None) if sys.platform == "linux" else None


_LIBC = _libc()


def _die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends, for any reason (SIGKILL included)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _before_exec(prepare: Callable[[], object] | None) -> Callable[[], None]:
    """Return the function that a child runs between fork and exec."""

    def before_exec() -> None:
        """Prepare the child."""
        if prepare is not None:
            prepare()
        _die_with_parent()  # last, because becoming another user resets it

    return before_exec


def bounded(memory: int, seconds: int, largest: int = 0) -> Callable[[], None]:
    """Return a function that limits a program which reads hostile files, for the argument ``prepare`` of :func:`run`.

    Args:
        memory: bytes of address space (macOS does not enforce this limit).
        seconds: processor time, of all processors together.
        largest: bytes of a file that the program writes.
    """

    def limit() -> None:
        """Set the limits of the child."""
        for kind, most in (
            (resource.RLIMIT_AS, memory),
            (resource.RLIMIT_CPU, seconds),
            (resource.RLIMIT_FSIZE, largest),
        ):
            hard = resource.getrlimit(kind)[1]
            value = most if hard == resource.RLIM_INFINITY else min(most, hard)
            with suppress(OSError, ValueError):  # the system enforces a limit of its own
                resource.setrlimit(kind, (value, value))

    return limit


def missing(program: str) -> MissingProgramError:
    """Return the error for a program that is not on PATH."""
    return MissingProgramError(program)


def run(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: bytes | None = None,
    timeout: float | None = None,
    prepare: Callable[[], object] | None = None,
    good: Collection[int] = (0,),
) -> bytes:
    """Run a program to its end and return its standard output.

    Args:
        argv: program and arguments.
        env: the whole environment; None keeps this process's own.
        stdin: bytes for its standard input; None gives it an empty one.
        timeout: seconds after which it is killed.
        prepare: as for :func:`start`.
        good: exit statuses that are not failures.

    Raises:
        MissingProgramError: the program is not on PATH.
        ProgramError: the program failed or was killed.
        ProgramTimeoutError: the program took longer than ``timeout``.
        HostError: the program cannot be executed; see :func:`start`.
    """
    pipe = subprocess.PIPE
    with start(argv, env=env, cwd=cwd, stdin=pipe, stdout=pipe, stderr=pipe, prepare=prepare) as child:
        try:
            stdout, stderr = child.communicate(stdin or b"", timeout=timeout)
        except subprocess.TimeoutExpired as late:
            raise ProgramTimeoutError(f"{argv[0]}: no result within {timeout:g} s") from late
    if child.returncode not in good:
        last_line = stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise ProgramError(str(argv[0]), child.returncode, last_line)
    return bytes(stdout)


def ending(status: int) -> str:
    """Return how a process ended, in words, from a ``Popen.returncode``."""
    if status < 0:
        try:
            return f"was killed by {signal.Signals(-status).name}"
        except ValueError:
            return f"was killed by signal {-status}"
    return f"failed with status {status}"


@contextmanager
def start_family(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str],
    cwd: Path,
    stdout: int | None = None,
    stderr: int | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program that starts others, so that all of them end even if this process is killed.

    In every other respect it works like :func:`start`. A process that has left the group for a session of its own
    (setsid(1)) is not ended, neither then nor at the end of the block.

    Args:
        argv: the path of an existing program, and its arguments.
        env, cwd, stdout, stderr: as for :func:`start`; standard input is empty.

    Raises:
        HostError: there is no shell, or no folder ``cwd``.
    """
    reading, writing = os.pipe()  # only this process has the writing end: it is not inherited
    try:
        with start(argv, env=env, cwd=cwd, stdout=stdout, stderr=stderr, watched=reading) as child:
            yield child
    finally:  # the group has ended
        os.close(reading)
        os.close(writing)


@contextmanager
def start(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: int | None = subprocess.DEVNULL,
    stdout: int | None = None,
    stderr: int | None = None,
    pass_fds: Sequence[int] = (),
    prepare: Callable[[], object] | None = None,
    watched: int | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program in a process group of its own, and end the whole group when the block ends.

    Nothing in the group outlives the block. If this process itself is killed, the kernel kills the program (Linux), but
    not what the program has started; :func:`start_family` does that.

    Args:
        argv, env, cwd, stdin, stdout, stderr, pass_fds: as for :class:`subprocess.Popen`.
        prepare: called between fork and exec. It may make system calls of a library that is loaded already, and do
            little else.
        watched: a pipe; when its other end is closed, the whole group is killed. See :func:`start_family`.

    Raises:
        MissingProgramError: there is no such program.
        HostError: the program may not be executed, or ``prepare`` failed.
    """
    words = [str(word) for word in argv]
    log.debug("%s", shlex.join(words))
    if watched is not None:
        words, stdin = ["/bin/sh", "-c", _WATCHDOG, "imgkit-watch", *words], watched
    try:
        with interrupts.postponed():  # Python drops an exception that is raised while it forks
            child = subprocess.Popen(  # ended by the block below
                words,
                env=dict(env) if env is not None else None,
                cwd=cwd,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                pass_fds=pass_fds,
                start_new_session=True,
                preexec_fn=_before_exec(prepare),  # noqa: PLW1509 - calls functions of a loaded library only
            )
    except FileNotFoundError as cause:
        raise missing(words[0]) from cause
    except PermissionError as cause:
        hint = "its folders are closed to the user that it is to run as" if prepare is not None else None
        raise HostError(f"{words[0]}: may not be executed", hint=hint) from cause
    except subprocess.SubprocessError as cause:
        raise HostError(f"{words[0]}: cannot be confined, the kernel refuses what it offered") from cause
    try:
        interrupts.check()
        yield child
    finally:
        _end_group(child)


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """Kill every process that is left in the child's group, and reap the child."""
    with suppress(ProcessLookupError, PermissionError):  # all have ended (macOS: EPERM for a group of zombies)
        os.killpg(child.pid, signal.SIGKILL)
    for pipe in (child.stdin, child.stdout, child.stderr):
        if pipe is not None:
            pipe.close()
    child.wait()
