"""The connection to the process that holds libguestfs (:mod:`imgkit.engines.guestfs.appliance`)::

with opened(scratch, [Drive(disk)], options) as channel:
    start = wait(channel, deadline, options)      # of imgkit.engines.guestfs.appliancestart
    print(channel.shell("ls /"))
    channel.close()
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

from imgkit.engines.guestfs import bindings
from imgkit.errors import HostError
from imgkit.host import process
from imgkit.host.scratch import folder

Accelerator: TypeAlias = Literal["tcg", "kvm"]

_SOCKET_NAME = "/libguestfsXXXXXX/guestfsd.sock"
_SOCKET_LIMIT = 107  # sun_path of Linux without its final zero
_POLL = 0.5  # seconds between two checks of the deadline and of ``watch``
_END_TIMEOUT = 5.0  # seconds for the process to end by itself


@dataclass(frozen=True)
class Drive:
    """A drive of the appliance. The first is ``/dev/sda`` to libguestfs, and SCSI target 0."""

    path: Path
    format: Literal["raw", "qcow2"] = "raw"
    readonly: bool = False


@dataclass(frozen=True)
class Options:
    """How the appliance runs.

    Attributes:
        accelerator: what the probe has found to work; "tcg" works everywhere.
        memory: MiB.
        cpus: processors. One is best under TCG if the host works at the same time.
        launch_timeout: seconds that the start may take.
        cache: folder for quick appliances; None starts libguestfs' stock appliance.
    """

    accelerator: Accelerator = "tcg"
    memory: int = 1024
    cpus: int = 1
    launch_timeout: float = 120.0
    cache: Path | None = None


class ApplianceError(Exception):
    """A request to the appliance failed.

    Attributes:
        kind: what failed; see :mod:`imgkit.engines.guestfs.appliance`.
        console: the last output of the appliance.
    """

    def __init__(self, kind: str, message: str, console: str) -> None:
        super().__init__(message)
        self.kind, self.message, self.console = kind, message, console


class Channel:
    """Requests to the process, and its answers, in order. ``quick`` is whether the quick appliance is in use."""

    def __init__(self, scratch: Path, drives: Sequence[Drive], options: Options, sockets: Path) -> None:
        self.quick = _may_be_quick(options)
        self._scratch, self._drives, self._options = scratch, drives, options
        self._environment = {**_environment(sockets), "TMPDIR": str(scratch)}  # a killed supermin leaves files there
        self._stack = ExitStack()
        self._begin()

    def _begin(self) -> None:
        argv = bindings.choose(self._environment).argv([str(_PROGRAM)])
        pipe = subprocess.PIPE
        with self._log.open("ab") as errors:
            start = process.start(argv, env=self._environment, stdin=pipe, stdout=pipe, stderr=errors.fileno())
            self._child = self._stack.enter_context(start)
        self._answers: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._read, args=(self._child, self._answers), name="appliance", daemon=True).start()
        self.post(_launch_request(self._scratch, self._drives, self._options, quick=self.quick))

    def restart_stock(self) -> None:
        """End the quick appliance, and begin to start the stock one."""
        self.end()
        self.quick = False
        self._begin()

    def end(self) -> None:
        """End the process and everything that it started.

        The process first gets the chance to end by itself, since it then removes files that a killed process leaves.
        """
        with self._stack, suppress(OSError, subprocess.TimeoutExpired):
            if self._child.stdin is not None:
                self._child.stdin.close()
            self._child.wait(timeout=_END_TIMEOUT)
        for left_over in self._scratch.glob("libguestfs*"):
            shutil.rmtree(left_over, ignore_errors=True)

    @property
    def _log(self) -> Path:
        return self._scratch / "appliance.log"

    @staticmethod
    def _read(child: subprocess.Popen[bytes], answers: queue.Queue[dict[str, Any] | None]) -> None:
        source = child.stdout
        assert source is not None
        with suppress(ValueError):  # the pipe was closed while it was read, or the child died in the middle of a line
            for line in source:
                answers.put(json.loads(line))
        answers.put(None)

    def post(self, request: Mapping[str, Any]) -> None:
        """Send a request. :meth:`take` returns its answer."""
        sink: IO[bytes] | None = self._child.stdin
        assert sink is not None
        try:
            sink.write(json.dumps(request).encode() + b"\n")
            sink.flush()
        except OSError:
            return  # the process has died, which take() reports

    def take(self, deadline: float | None = None, watch: Callable[[], None] | None = None) -> Any:
        """Wait for the answer to the oldest request that has none yet, and return it.

        Args:
            deadline: in the time of :func:`time.monotonic`.
            watch: called twice a second while waiting; an exception that it raises ends the wait.

        Raises:
            ApplianceError: the request failed.
            HostError: the process died.
            TimeoutError: there was no answer until ``deadline``.
        """
        while True:
            try:
                answer = self._answers.get(timeout=_POLL)
                break
            except queue.Empty:
                if watch is not None:
                    watch()
                if deadline is not None and time.monotonic() > deadline:
                    raise TimeoutError from None
        if answer is None:
            raise self._died()
        if "error" in answer:
            raise ApplianceError(answer["kind"], answer["error"], answer["console"])
        return answer["result"]

    def failure(self) -> ApplianceError | None:
        """Return the failure of the oldest request whose answer has not been taken; None if there is none so far."""
        with suppress(IndexError):  # there is no answer yet
            answer = self._answers.queue[0]
            if answer is not None and "error" in answer:
                return ApplianceError(answer["kind"], answer["error"], answer["console"])
        return None

    def ask(
        self, request: Mapping[str, Any], watch: Callable[[], None] | None = None, deadline: float | None = None
    ) -> Any:
        """Send a request and return its answer; see :meth:`take`."""
        self.post(request)
        return self.take(deadline, watch)

    def shell(self, script: str, watch: Callable[[], None] | None = None, deadline: float | None = None) -> str:
        """Run a script in the bash of the appliance, and return what it printed.

        Raises:
            ApplianceError: the script ended with another status than 0.
        """
        return str(self.ask({"op": "sh", "script": script}, watch, deadline))

    def close(self) -> None:
        """Shut the appliance down, so that everything that it wrote is on the disk."""
        self.ask({"op": "close"})

    def _died(self) -> HostError:
        try:
            status = self._child.wait(timeout=_END_TIMEOUT)
        except subprocess.TimeoutExpired:
            status = 1
        last_line = self._log.read_text(errors="replace").strip().rpartition("\n")[2]
        cause = process.ending(status) + (f": {last_line}" if last_line else "")
        return HostError(f"the process that holds libguestfs {cause}")


@contextmanager
def opened(scratch: Path, drives: Sequence[Drive], options: Options) -> Iterator[Channel]:
    """Start the process, and begin to start the appliance in it. All of it ends with the block.

    Args:
        scratch: folder for libguestfs' temporary files.
        drives: the drives of the appliance; see :class:`Drive`.

    Raises:
        EngineStartError: no Python of this host can import libguestfs' bindings.
    """
    with _socket_folder(scratch) as sockets:
        channel = Channel(scratch, drives, options, sockets)
        try:
            yield channel
        finally:
            channel.end()


_PROGRAM = Path(__file__).resolve().with_name("startappliance.py")
_KEPT_VARIABLES = ("LIBGUESTFS_HV", "LIBGUESTFS_PATH", "LIBGUESTFS_CACHEDIR")


def _environment(sockets: Path) -> dict[str, str]:
    """Return the environment of the process. Variables that would change how libguestfs works are left out."""
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(sockets), "LC_ALL": "C.UTF-8"}
    for name in [name for name in environment if name.startswith("LIBGUESTFS_") and name not in _KEPT_VARIABLES]:
        del environment[name]
    return environment


def _may_be_quick(options: Options) -> bool:
    """Return whether the quick appliance may be used: the user has not asked for the stock one or provided another."""
    allowed = os.environ.get("IMGKIT_APPLIANCE") != "stock" and not os.environ.get("LIBGUESTFS_PATH")
    return options.cache is not None and allowed


def _launch_request(scratch: Path, drives: Sequence[Drive], options: Options, *, quick: bool) -> dict[str, Any]:
    return {
        "op": "launch",
        "accelerator": options.accelerator,
        "memory": options.memory,
        "cpus": options.cpus,
        "cache": str(options.cache) if options.cache else "",
        "quick": quick,
        "fixed": bool(os.environ.get("LIBGUESTFS_PATH")),  # the user's own appliance
        "tmpdir": str(scratch),
        # A scratch disk is of no use before it is complete, so that no write has to reach the host's disk.
        "drives": [
            {**asdict(drive), "path": str(drive.path), "cachemode": "writeback" if drive.readonly else "unsafe"}
            for drive in drives
        ],
    }


@contextmanager
def _socket_folder(scratch: Path) -> Iterator[Path]:
    """A folder for libguestfs' sockets: ``scratch``, or a temporary one if that path is too long for a socket."""
    if len(os.fsencode(scratch)) + len(_SOCKET_NAME) <= _SOCKET_LIMIT:
        yield scratch
        return
    with folder() as short:
        yield short
