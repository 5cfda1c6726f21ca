"""The one door through which imgkit starts other programs.

Arguments are lists, the environment is explicit, and every command is logged so that it can be pasted into a shell
(``-v`` shows them). A program that is missing, dies of a signal or fails has a sentence of its own.
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

# Debian and Ubuntu package of each program that imgkit may start.
PACKAGES = {
    "qemu-img": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-system-aarch64": "qemu-system-arm",
    "grub-mkimage": "grub-common",
    "supermin": "supermin",
    "npm": "npm",
    "node": "nodejs",
    "bwrap": "bubblewrap",
}

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
# In front of a program whose whole process group is to end with this process: a shell of that group waits for the end
# of a pipe of which nobody else has the other end. Being of the group it keeps the group's number from being given
# away, and takes itself along.
_WATCH = 'exec 3<&0 </dev/null; { read -r _; kill -KILL 0; } <&3 >/dev/null 2>&1 & exec 3<&-; exec "$@"'


def _libc() -> ctypes.CDLL | None:
    """The C library, loaded before any fork: loading it in a child that threads left behind could deadlock."""
    return ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


_LIBC = _libc()


def _die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent goes, however it goes (SIGKILL included)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _prepared(prepare: Callable[[], object] | None) -> Callable[[], None]:
    """What a child does before it executes its program."""

    def run() -> None:
        if prepare is not None:
            prepare()
        _die_with_parent()  # last: becoming another user takes it back

    return run


def bounded(memory: int, seconds: int, largest: int = 0) -> Callable[[], None]:
    """For a program that reads hostile files: what it gets at the most.

    Args:
        memory: bytes of address space (macOS does not hold a process to them).
        seconds: of all processors together.
        largest: bytes of a file that it writes.
    """

    def limit() -> None:
        for what, most in (
            (resource.RLIMIT_AS, memory),
            (resource.RLIMIT_CPU, seconds),
            (resource.RLIMIT_FSIZE, largest),
        ):
            hard = resource.getrlimit(what)[1]
            least = most if hard == resource.RLIM_INFINITY else min(most, hard)
            with suppress(OSError, ValueError):  # a limit of this system's own
                resource.setrlimit(what, (least, least))

    return limit


def missing(program: str) -> HostError:
    """The error for a program that is not on PATH, naming the package that has it."""
    package = PACKAGES.get(Path(program).name)
    hint = f"apt-get install {package}" if package else f"install {Path(program).name} or put it on PATH"
    return HostError(f"{program}: program not found", hint=hint)


def paste(argv: Sequence[str]) -> str:
    """``argv`` as one line for a shell."""
    return shlex.join(argv)


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
        good: exit statuses that are no failure.

    Raises:
        HostError: it is missing, failed, died of a signal or took too long; the last line it wrote to standard error
            is part of the message.
    """
    pipe = subprocess.PIPE
    with start(argv, env=env, cwd=cwd, stdin=pipe, stdout=pipe, stderr=pipe, prepare=prepare) as child:
        try:
            stdout, stderr = child.communicate(stdin or b"", timeout=timeout)
        except subprocess.TimeoutExpired as late:
            raise HostError(f"{argv[0]}: no result within {timeout:g} s") from late
    if child.returncode not in good:
        last = stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise HostError(f"{Path(argv[0]).name} {ending(child.returncode)}" + (f": {last}" if last else ""))
    return bytes(stdout)


def ending(status: int) -> str:
    """How a process ended, in words, from a ``Popen.returncode``."""
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
    """As :func:`start`, for a program that starts others: its whole group ends when this process is killed outright.

    What left the group for a session of its own (setsid(1)) goes on, then as at the end of the block.

    Args:
        argv: an existing program's path, and arguments.
        env, cwd, stdout, stderr: as for :func:`start`; standard input is empty.

    Raises:
        HostError: there is no shell, or no folder ``cwd``.
    """
    reading, writing = os.pipe()  # the latter is not inherited
    try:
        with start(argv, env=env, cwd=cwd, stdout=stdout, stderr=stderr, watched=reading) as child:
            yield child
    finally:  # the group is gone
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
    """Start a program in a process group of its own, and end that whole group when the block ends.

    Nothing outlives the block: whatever is still running in the group is killed, and when this process itself is
    killed the kernel takes the program with it (Linux). What the program started is :func:`start_family`'s.

    Args:
        argv, env, cwd, stdin, stdout, stderr, pass_fds: as for :class:`subprocess.Popen`.
        prepare: called between fork and exec, where it may make system calls of a library that is loaded already, and
            little else.
        watched: a pipe at whose end the whole group is killed; see :func:`start_family`.

    Raises:
        HostError: there is no such program, or ``prepare`` failed.
    """
    words = [str(word) for word in argv]
    log.debug("%s", paste(words))
    if watched is not None:
        words, stdin = ["/bin/sh", "-c", _WATCH, "imgkit-watch", *words], watched
    try:
        with interrupts.postponed():  # Python forgets what is raised while it forks
            child = subprocess.Popen(  # the block below is the lifetime
                words,
                env=dict(env) if env is not None else None,
                cwd=cwd,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                pass_fds=pass_fds,
                start_new_session=True,
                preexec_fn=_prepared(prepare),  # noqa: PLW1509 - only calls through an already loaded library
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
    """Kill what is left of the child's process group and reap the child."""
    with suppress(ProcessLookupError, PermissionError):  # all gone already (macOS: EPERM for a group of zombies)
        os.killpg(child.pid, signal.SIGKILL)
    for pipe in (child.stdin, child.stdout, child.stderr):
        if pipe is not None:
            pipe.close()
    child.wait()
