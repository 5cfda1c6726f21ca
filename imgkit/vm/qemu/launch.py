"""Start QEMU and wait until it answers, with less memory or without QEMU's own sandbox where the host lacks either."""

from __future__ import annotations

import logging
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from imgkit.errors import HostError
from imgkit.host import process
from imgkit.vm import console
from imgkit.vm.qemu import argv, handover
from imgkit.vm.qemu.argv import VmSpec
from imgkit.vm.qemu.handover import Handed
from imgkit.vm.qemu.qmp import Qmp, QmpError
from imgkit.vm.sandbox import confinement
from imgkit.vm.sandbox.confinement import Confinement
from imgkit.vm.sandbox.identity import Identity

log = logging.getLogger("imgkit.vm")

MEMORY_STEPS = (4096, 2048, 1024)
"""Sizes of memory in MiB that are tried in this order if none was requested (the agentd contract)."""
_START_TIMEOUT = 20.0  # seconds for QEMU to set itself up
_NO_SANDBOX = re.compile(r"(?:[^\s:]+: )?-sandbox\b")
"""Start of a QEMU error about ``-sandbox``: the program's name and that word. File names come later in a line."""
_NO_MICROVM = re.compile(r"-machine help|roperty '[^']*microvm-machine\.[^']*' not found")
"""In the last line of a QEMU that was built without the machine, and of one that knows fewer of its properties."""
_VARIABLES = ("PATH", "HOME", "XDG_RUNTIME_DIR", "LD_LIBRARY_PATH")


@dataclass(frozen=True)
class Running:
    """A QEMU process that has completed its setup and answers.

    Attributes:
        child: the process.
        qmp: its control connection.
        ports: the host's ends of the virtio-serial ports, by name.
        spec: the machine, with the memory that it got.
        stderr: file of QEMU's standard error.
    """

    child: subprocess.Popen[bytes]
    qmp: Qmp
    ports: dict[str, socket.socket]
    spec: VmSpec
    stderr: Path

    def stderr_tail(self) -> str:
        """Return the end of what QEMU wrote to standard error."""
        return _tail(self.stderr)


class _Start(Protocol):
    """Starts QEMU for one attempt; ``anywhere`` lets it read files everywhere."""

    def __call__(self, attempt: VmSpec, *, anywhere: bool) -> Running: ...


class _RefusedError(Exception):
    """QEMU ended during its setup.

    ``str()`` gives its error message with the names that the files have on the host.

    Attributes:
        raw: the message as QEMU wrote it, with QEMU's names of the files.
    """

    def __init__(self, raw: str, explained: str) -> None:
        super().__init__(explained)
        self.raw = raw


@contextmanager
def launched(
    spec: VmSpec, folder: Path, *, memory: Sequence[int], ports: Sequence[str], user: Identity | None = None
) -> Iterator[Running]:
    """Run QEMU for the length of the block.

    Args:
        spec: the machine; its memory, ports and qmp are filled in here.
        folder: private folder for standard error.
        memory: sizes in MiB, which are tried in this order.
        ports: names of virtio-serial ports that get a connected socket here, besides those of ``spec``.
        user: the user that QEMU runs as; None for the user of this process.

    Raises:
        HostError: QEMU is missing or refuses its arguments, or it cannot be confined.
        InputError: the disk is not a disk image that can be booted (:func:`imgkit.disk.diskimage.check`).
    """
    with ExitStack() as stack:
        files = stack.enter_context(handover.handed(spec, folder, user))

        def start(attempt: VmSpec, *, anywhere: bool) -> Running:
            confined = confinement.confined(attempt, user, files.writable, anywhere=anywhere)
            return stack.enter_context(_started(attempt, folder, ports, files, confined))

        running = _first(files.spec, memory, start)
        files.files.close()
        yield running


def _first(spec: VmSpec, memory: Sequence[int], start: _Start) -> Running:
    """Start QEMU. As long as it refuses for lack of memory or files, try again with less memory or less confinement.

    Raises:
        HostError: QEMU refuses for another reason.
    """
    sandbox, anywhere = spec.sandbox, False
    sizes = list(memory)
    while True:
        try:
            return start(replace(spec, memory_mib=sizes[0], sandbox=sandbox), anywhere=anywhere)
        except _RefusedError as refused:
            reason = str(refused)
            if sandbox and _NO_SANDBOX.match(refused.raw):
                sandbox = False
                log.warning("QEMU runs without its own sandbox, which is not available: %s", reason)
            elif not anywhere and "ermission denied" in reason:
                anywhere = True
                log.debug("QEMU may read files anywhere, because some of its own are missing: %s", reason)
            elif len(sizes) > 1 and "allocate memory" in reason:
                log.warning("no %d MiB of memory for the guest, trying %d", sizes[0], sizes[1])
                sizes.pop(0)
            else:
                raise HostError(f"QEMU does not start: {reason}", hint=_hint(reason)) from None


def _hint(reason: str) -> str | None:
    if "allocate memory" in reason:
        return "--memory with a smaller number"
    if _NO_MICROVM.search(reason):
        return "--machine microvm needs QEMU 6.0 or newer, built with that machine"
    if "host forwarding rule" in reason:
        return "another program took the port meanwhile; --publish with 0 as the port of the host takes a free one"
    return "the image is in use by another program" if "lock" in reason or "another process" in reason else None


@contextmanager
def _started(
    spec: VmSpec, folder: Path, ports: Sequence[str], files: Handed, confined: AbstractContextManager[Confinement]
) -> Iterator[Running]:
    stderr = folder / "qemu.stderr"
    with ExitStack() as stack:
        near, far = _pair(stack)
        pairs = {name: _pair(stack) for name in ports}
        wired = (*spec.ports, *((name, pair[1].fileno()) for name, pair in pairs.items()))
        link = [] if spec.link is None else [spec.link]
        spec = replace(spec, qmp=far.fileno(), ports=wired)
        sink = stack.enter_context(stderr.open("wb"))
        boundary = stack.enter_context(confined)
        child = stack.enter_context(
            process.start(
                _with_path(argv.arguments(spec)),
                env={name: os.environ[name] for name in _VARIABLES if name in os.environ} | {"TMPDIR": files.temporary},
                cwd=folder,
                stdout=sink.fileno(),
                stderr=sink.fileno(),
                pass_fds=[far.fileno(), *(descriptor for _, descriptor in wired), *files.descriptors, *link],
                prepare=boundary,
            )
        )
        stack.enter_context(boundary.supervised())
        for _, guest_end in ((near, far), *pairs.values()):
            guest_end.close()  # so that the end of QEMU is the end of the stream
        qmp = Qmp(near)
        try:
            qmp.execute("query-status", timeout=_START_TIMEOUT)
        except QmpError as cause:
            refusal = _refusal(child, stderr, cause)
            raise _RefusedError(refusal, files.explain(refusal)) from cause
        yield Running(child, qmp, {name: pair[0] for name, pair in pairs.items()}, spec, stderr)


def _with_path(words: Sequence[str]) -> list[str]:
    """Return ``words`` with the program's full path, because another user's PATH might lead to another program."""
    path = shutil.which(words[0])
    if path is None:
        raise process.missing(words[0])
    return [str(Path(path).absolute()), *words[1:]]


def _refusal(child: subprocess.Popen[bytes], stderr: Path, cause: QmpError) -> str:
    """Return QEMU's own error message, or else how the process ended."""
    try:
        child.wait(timeout=2)
    except subprocess.TimeoutExpired:
        return f"it does not answer: {cause}"
    text = console.clean(_tail(stderr)).strip()
    errors = [line for line in text.splitlines() if "warning" not in line]
    return errors[-1] if errors else process.ending(child.returncode)


def _pair(stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    stack.callback(near.close)
    stack.callback(far.close)
    return near, far


def _tail(path: Path, size: int = 8192) -> str:
    with path.open("rb") as source:
        source.seek(max(0, path.stat().st_size - size))
        return source.read(size).decode(errors="replace")
