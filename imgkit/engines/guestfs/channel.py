"""The host's end of the pipe to the process that holds libguestfs (:mod:`imgkit.engines.guestfs.appliance`)."""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

from imgkit.engines.guestfs import quickstart
from imgkit.errors import HostError, ImgkitError
from imgkit.host import process
from imgkit.host.scratch import folder

Accelerator: TypeAlias = Literal["tcg", "kvm"]

_SOCKET_NAME = "/libguestfsXXXXXX/guestfsd.sock"
_SOCKET_LIMIT = 107  # sun_path of Linux without its final zero
_FINAL = ("bindings", "kernel")  # failures that are the same for the quick appliance and the stock one
_POLL = 0.5  # seconds between two looks at deadline and watch


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
        accelerator: the verdict of the probe; "tcg" always works.
        memory: MiB.
        cpus: processors; one is best under TCG when the host works at the same time.
        launch_timeout: seconds after which a start is given up.
        cache: folder for quick appliances; None uses libguestfs' stock one.
    """

    accelerator: Accelerator = "tcg"
    memory: int = 1024
    cpus: int = 1
    launch_timeout: float = 120.0
    cache: Path | None = None


class ApplianceError(Exception):
    """A request to the appliance failed: ``kind`` as in :mod:`imgkit.engines.guestfs.appliance`, ``console`` its last
    words."""

    def __init__(self, kind: str, message: str, console: str) -> None:
        super().__init__(message)
        self.kind, self.message, self.console = kind, message, console


class Channel:
    """Requests and answers. One request at a time, except that a launch may be under way (:meth:`post`)."""

    def __init__(self, scratch: Path, drives: Sequence[Drive], options: Options, sockets: Path) -> None:
        self.quick = _may_be_quick(options)
        self._scratch, self._drives, self._options = scratch, drives, options
        self._environment = {
            **_environment(sockets),
            "TMPDIR": str(scratch),
        }  # supermin leaves things when it is killed
        self._stack = ExitStack()
        self._begin()

    def _begin(self) -> None:
        argv = [sys.executable, "-m", "imgkit.engines.guestfs.appliance"]
        pipe = subprocess.PIPE
        with self._log.open("ab") as errors:
            start = process.start(argv, env=self._environment, stdin=pipe, stdout=pipe, stderr=errors.fileno())
            self._child = self._stack.enter_context(start)
        self._answers: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._read, args=(self._child, self._answers), name="appliance", daemon=True).start()
        self.post(_launch_request(self._scratch, self._drives, self._options, quick=self.quick))

    def restart_stock(self) -> None:
        """Give the quick appliance up and begin to start the stock one."""
        self.end()
        self.quick = False
        self._begin()

    def end(self) -> None:
        """End the process and all that it started, in order if possible: that tidies up more than killing it does."""
        with self._stack, suppress(OSError, subprocess.TimeoutExpired):
            if self._child.stdin is not None:
                self._child.stdin.close()
            self._child.wait(timeout=5)
        for left_over in self._scratch.glob("libguestfs*"):
            shutil.rmtree(left_over, ignore_errors=True)

    @property
    def _log(self) -> Path:
        return self._scratch / "appliance.log"

    @staticmethod
    def _read(child: subprocess.Popen[bytes], answers: queue.Queue[dict[str, Any] | None]) -> None:
        source = child.stdout
        assert source is not None
        with suppress(ValueError):  # closed under us, or the child died in the middle of a line
            for line in source:
                answers.put(json.loads(line))
        answers.put(None)

    def post(self, request: Mapping[str, Any]) -> None:
        """Send a request; :meth:`take` gets its answer."""
        sink: IO[bytes] | None = self._child.stdin
        assert sink is not None
        try:
            sink.write(json.dumps(request).encode() + b"\n")
            sink.flush()
        except OSError:
            return  # it died: take() says so

    def take(self, deadline: float | None = None, watch: Callable[[], None] | None = None) -> Any:
        """The answer to the oldest request that has none yet.

        Args:
            deadline: in the time of :func:`time.monotonic`; after it TimeoutError is raised.
            watch: called twice a second while waiting; what it raises ends the wait.

        Raises:
            ApplianceError: the request failed.
            HostError: the process died.
            TimeoutError: nothing until ``deadline``.
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
        """The oldest answer that nobody took yet, if it is there and says that its request failed."""
        with suppress(IndexError):  # nothing there
            answer = self._answers.queue[0]
            if answer is not None and "error" in answer:
                return ApplianceError(answer["kind"], answer["error"], answer["console"])
        return None

    def ask(
        self, request: Mapping[str, Any], watch: Callable[[], None] | None = None, deadline: float | None = None
    ) -> Any:
        """:meth:`post` and :meth:`take`."""
        self.post(request)
        return self.take(deadline, watch)

    def call(self, name: str, *arguments: Any) -> Any:
        """A method of the libguestfs handle."""
        return self.ask({"op": "call", "name": name, "args": list(arguments)})

    def shell(self, script: str, watch: Callable[[], None] | None = None, deadline: float | None = None) -> str:
        """A script run by the appliance's bash; what it printed. A status other than 0 is an ApplianceError."""
        return str(self.ask({"op": "sh", "script": script}, watch, deadline))

    def close(self) -> None:
        """Shut the appliance down in order, so that all it wrote is on the disk."""
        self.ask({"op": "close"})

    def _died(self) -> HostError:
        try:
            status = self._child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            status = 1
        last = self._log.read_text(errors="replace").strip().rpartition("\n")[2]
        return HostError(f"the process that holds libguestfs {process.ending(status)}" + (f": {last}" if last else ""))


@contextmanager
def opened(scratch: Path, drives: Sequence[Drive], options: Options) -> Iterator[Channel]:
    """Start the process and, in it, the appliance; :func:`wait` until it is up. All of it ends with the block.

    Args:
        scratch: folder for libguestfs' temporary files.
    """
    with _socket_folder(scratch) as sockets:
        channel = Channel(scratch, drives, options, sockets)
        try:
            yield channel
        finally:
            channel.end()


_HOME = Path(__file__).resolve().parents[3]
_KEPT = ("LIBGUESTFS_HV", "LIBGUESTFS_PATH", "LIBGUESTFS_CACHEDIR")


def _environment(sockets: Path) -> dict[str, str]:
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(sockets), "LC_ALL": "C.UTF-8"}
    for name in [name for name in environment if name.startswith("LIBGUESTFS_") and name not in _KEPT]:
        del environment[name]
    paths = (str(_HOME), environment.get("PYTHONPATH"))
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    return environment


def _may_be_quick(options: Options) -> bool:
    """Not when the user asks for the stock appliance, or has a ready-made one."""
    wanted = os.environ.get("IMGKIT_APPLIANCE") != "stock" and not os.environ.get("LIBGUESTFS_PATH")
    return options.cache is not None and wanted


def _launch_request(scratch: Path, drives: Sequence[Drive], options: Options, *, quick: bool) -> dict[str, Any]:
    return {
        "op": "launch",
        "accelerator": options.accelerator,
        "memory": options.memory,
        "cpus": options.cpus,
        "cache": str(options.cache) if options.cache else "",
        "quick": quick,
        "fixed": bool(os.environ.get("LIBGUESTFS_PATH")),  # a ready-made appliance of the user's
        "tmpdir": str(scratch),
        # Scratch disks are worth nothing before the end, so nothing waits for the host's disk.
        "drives": [
            {**asdict(drive), "path": str(drive.path), "cachemode": "writeback" if drive.readonly else "unsafe"}
            for drive in drives
        ],
    }


@contextmanager
def _socket_folder(scratch: Path) -> Iterator[Path]:
    """A folder for libguestfs' sockets: ``scratch``, or a temporary one where that path is too long for a socket."""
    if len(os.fsencode(scratch)) + len(_SOCKET_NAME) <= _SOCKET_LIMIT:
        yield scratch
        return
    with folder() as short:
        yield short


def wait(channel: Channel, deadline: float, options: Options) -> dict[str, Any]:
    """Wait until the appliance is up. Where the quick one fails in whatever way, the stock one is started.

    Returns:
        ``appliance`` ("quick" or "stock"), ``seconds`` that the start took, ``note`` (why not quick).

    Raises:
        HostError: it cannot be started here, with what to do about it.
    """
    note = ""
    if channel.quick:
        try:
            return {**channel.take(deadline), "appliance": "quick", "note": ""}
        except TimeoutError:
            note = f"nothing within {options.launch_timeout:g} s"
        except HostError as cause:
            note = cause.message
        except ApplianceError as cause:
            if cause.kind in _FINAL:
                raise launch_error(cause) from cause
            note = cause.message
        channel.restart_stock()
        deadline = time.monotonic() + options.launch_timeout
    try:
        return {**channel.take(deadline), "appliance": "stock", "note": note}
    except TimeoutError:
        raise HostError(
            f"the libguestfs appliance did not start within {options.launch_timeout:g} s",
            hint="libguestfs-test-tool shows where it hangs",
        ) from None
    except ApplianceError as cause:
        if note.startswith(quickstart.NO_SUPERMIN):
            raise process.missing("supermin") from cause
        raise launch_error(cause) from cause


def check(channel: Channel) -> None:
    """Look at a start that is under way and does not have to be waited for yet.

    Raises:
        HostError: it has failed, and no other appliance could do better.
    """
    failure = channel.failure()
    if failure is not None and (failure.kind in _FINAL or not channel.quick):
        raise launch_error(failure) from failure


def launch_error(cause: ApplianceError) -> ImgkitError:
    """The error for a start that failed, in words and with a remedy."""
    if cause.kind == "bindings":
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        return HostError(
            f"libguestfs' Python bindings cannot be imported by {sys.executable} (Python {version}): {cause.message}",
            hint="apt-get install python3-guestfs, and make the virtual environment with the distribution's own"
            " python3 and --system-site-packages",
        )
    if cause.kind == "kernel" and "not readable" in cause.message:
        return HostError(
            f"libguestfs needs a kernel, and {cause.message} by this user",
            hint="sudo chmod 0644 /boot/vmlinuz-*; or without root: apt-get download linux-image-$(uname -r),"
            " dpkg-deb -x it, and set SUPERMIN_KERNEL to its boot/vmlinuz-…",
        )
    if cause.kind == "kernel":
        return HostError(
            f"libguestfs needs a kernel: {cause.message}",
            hint="apt-get install linux-image-amd64 (Ubuntu: linux-image-generic, arm64: linux-image-arm64)",
        )
    for word, program in (("supermin", "supermin"), ("qemu-system", "qemu-system-x86_64")):
        if f"{word}" in cause.message and ("No such file" in cause.message or "not found" in cause.message):
            return process.missing(program)
    first = cause.message.strip().partition("\n")[0]  # the rest is advice for users of the library
    words = cause.console.strip().rpartition("\n")[2].strip()
    said = f"; the last it said: {words[-200:]}" if words else ""
    return HostError(
        f"the libguestfs appliance did not start: {first}{said}",
        hint="libguestfs-test-tool shows why",
    )
