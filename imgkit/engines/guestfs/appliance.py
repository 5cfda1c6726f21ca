"""The process that holds libguestfs; :mod:`imgkit.engines.guestfs.startappliance` is its program.

It answers requests, in order: each is one line of JSON on standard input, each answer one line of JSON on standard
output. A crash of the C library, or a call that hangs, affects this process only. When its input ends, because the
parent has closed it or has died, this process kills its whole group, QEMU included.

It may run in another Python than imgkit (:mod:`imgkit.engines.guestfs.bindings`): this module and what it imports need
the standard library only.

    {"op": "launch", "drives": […], …}        → {"result": {"seconds": 4.2}}
    {"op": "sh", "script": "…"}               → {"result": "what it printed"}
    {"op": "close"}                           → {"result": null}
    a request that fails                      → {"error": "…", "kind": "bindings" | "kernel" | "launch" | "call",
                                                 "console": "the last output of the appliance"}
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import queue
import shlex
import shutil
import signal
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TextIO

from imgkit.engines.guestfs import hostkernel, quickstart

_PR_SET_PDEATHSIG = 1
_MOST_CONSOLE = 4000  # characters of the appliance's console that are kept for error messages

# Under emulation "rep movsb" runs byte by byte, and the kernel prefers it if the processor has the features ERMS or
# FSRM (words 9 and 18 of the kernel's cpufeatures.h). Without them copying is four times faster.
_X86_TCG_ARGUMENTS = "clearcpuid=297,580"
_ARGUMENTS = "mitigations=off lsm=capability"


class ApplianceRequestError(Exception):
    """A request failed. The values of ``kind`` are listed in the module's docstring."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Holder:
    """The libguestfs handle, and what has to be released with it. ``console`` is the appliance's last output."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._stack = ExitStack()
        self.console = ""

    def launch(self, request: dict[str, Any]) -> dict[str, Any]:
        """Start an appliance, and return the seconds that it took.

        Args:
            request: as ``channel._launch_request`` makes it; ``quick`` asks for the quick appliance.

        Raises:
            ApplianceRequestError: the bindings or a kernel are missing, or the start failed.
        """
        started = time.monotonic()
        _bindings()
        if not request["fixed"]:
            try:
                os.environ.update(hostkernel.choice(os.environ))
            except hostkernel.NoKernelError as cause:
                raise ApplianceRequestError("kernel", str(cause)) from cause
        folder = None
        if request["quick"]:
            try:
                folder = self._stack.enter_context(quickstart.appliance(Path(request["cache"])))
            except quickstart.UnavailableError as cause:
                raise ApplianceRequestError("launch", str(cause)) from cause
        self._start(request, folder)
        return {"seconds": time.monotonic() - started}

    def _start(self, request: dict[str, Any], folder: Path | None) -> None:
        guestfs = _bindings()
        handle = guestfs.GuestFS(python_return_dict=True)
        handle.set_event_callback(self._on_console, guestfs.EVENT_APPLIANCE)
        try:
            self._configure(handle, request)
            if folder is not None:
                handle.set_path(str(folder))
            handle.launch()
        except RuntimeError as cause:
            handle.close()
            raise ApplianceRequestError("launch", str(cause)) from cause
        self._handle = handle

    def _configure(self, handle: Any, request: dict[str, Any]) -> None:
        tcg = request["accelerator"] == "tcg"
        x86 = platform.machine() in ("x86_64", "i686")
        handle.set_backend("direct")
        handle.set_backend_setting("force_tcg" if tcg else "force_kvm", "1")
        handle.set_network(False)
        handle.set_memsize(request["memory"])
        handle.set_smp(request["cpus"])
        handle.set_tmpdir(request["tmpdir"])
        if request["cache"]:
            Path(request["cache"]).mkdir(parents=True, exist_ok=True)
            handle.set_cachedir(request["cache"])
        handle.set_append(f"{_ARGUMENTS} {_X86_TCG_ARGUMENTS}" if tcg and x86 else _ARGUMENTS)
        for drive in request["drives"]:
            handle.add_drive_opts(
                drive["path"], format=drive["format"], readonly=drive["readonly"], cachemode=drive["cachemode"]
            )

    def _on_console(self, _event: int, _number: int, text: Any, _array: Any) -> None:
        line = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
        self.console = (self.console + line)[-_MOST_CONSOLE:]

    def shell(self, script: str) -> str:
        """Run a script in the bash of the appliance, with the programs of the appliance, and return its output.

        Raises:
            ApplianceRequestError: no appliance is running, or the script failed.
        """
        if self._handle is None:
            raise ApplianceRequestError("call", "there is no appliance")
        try:
            return str(self._handle.debug("sh", ["bash -c " + shlex.quote(script)]))
        except (RuntimeError, UnicodeDecodeError) as cause:  # the bindings decode text that an image holds
            raise ApplianceRequestError("call", str(cause)) from cause

    def close(self) -> None:
        """Shut the appliance down.

        Raises:
            ApplianceRequestError: the last writes failed.
        """
        handle, self._handle = self._handle, None
        if handle is not None:
            try:
                handle.shutdown()
            except RuntimeError as cause:
                raise ApplianceRequestError("call", str(cause)) from cause
            finally:
                handle.close()
                self._stack.close()

    def answer(self, request: dict[str, Any]) -> Any:
        """Do what a request asks for.

        Raises:
            ApplianceRequestError: the request failed, or there is no such operation.
        """
        operation = request["op"]
        if operation == "launch":
            return self.launch(request)
        if operation == "sh":
            return self.shell(request["script"])
        if operation == "close":
            return self.close()
        raise ApplianceRequestError("call", f"{operation}: no such operation")


def _bindings() -> Any:
    try:
        import guestfs
    except ImportError as cause:
        raise ApplianceRequestError("bindings", str(cause)) from cause
    return guestfs


def _own_socket_folders() -> set[Path]:
    """Return the folders of the sockets that this process has open. For root, libguestfs puts them into ``/tmp``."""
    own = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            own.add(str(descriptor.readlink()))
    lines = Path("/proc/net/unix").read_text().splitlines()
    sockets = [line.split() for line in lines if line.endswith("/guestfsd.sock")]
    return {Path(words[-1]).parent for words in sockets if f"socket:[{words[-2]}]" in own}


def _end_everything() -> None:
    """Remove the folders of our sockets, and kill the whole process group."""
    with suppress(OSError):
        for folder in _own_socket_folders():
            if folder.name.startswith("libguestfs"):
                shutil.rmtree(folder, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)


def _read_requests(requests: queue.Queue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        requests.put(json.loads(line))
    _end_everything()


def _serve(answers: TextIO) -> None:
    requests: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_read_requests, args=(requests,), daemon=True).start()
    holder = Holder()
    while True:
        request = requests.get()
        try:
            answer: dict[str, Any] = {"result": holder.answer(request)}
        except ApplianceRequestError as cause:
            answer = {"error": str(cause), "kind": cause.kind, "console": holder.console}
        print(json.dumps(answer), file=answers, flush=True)


def main() -> None:
    """Serve requests until the input ends.

    The parent has asked the kernel to kill this process when the parent dies. That is switched off here: it would not
    kill QEMU, and it applies when the thread ends that started this process, which may be long before the parent does.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, 0)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # other output of this process must not come between the answers
    _serve(answers)
