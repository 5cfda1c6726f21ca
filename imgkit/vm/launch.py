"""Starting QEMU: from a description to a process that answers, with less memory or without sandbox where it must be."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from imgkit import process
from imgkit.errors import HostError
from imgkit.vm import argv, console
from imgkit.vm.argv import VmSpec
from imgkit.vm.qmp import Qmp, QmpError

log = logging.getLogger("imgkit.vm")

MEMORY_STEPS = (4096, 2048, 1024)
"""MiB that are tried one after the other where none was asked for (the agentd contract)."""
_GREETING = 20.0  # seconds for QEMU to set itself up
_KEPT = ("PATH", "HOME", "TMPDIR", "XDG_RUNTIME_DIR", "LD_LIBRARY_PATH")


@dataclass(frozen=True)
class Running:
    """A QEMU that has set itself up. ``ports`` are the host's ends of the virtio-serial ports."""

    child: subprocess.Popen[bytes]
    qmp: Qmp
    ports: dict[str, socket.socket]
    spec: VmSpec
    stderr: Path

    def said(self) -> str:
        """The end of what QEMU wrote to standard error."""
        return _tail(self.stderr)


class _RefusedError(Exception):
    """QEMU left while it set itself up."""


@contextmanager
def launched(spec: VmSpec, folder: Path, *, memory: Sequence[int], ports: Sequence[str]) -> Iterator[Running]:
    """Run QEMU for the length of the block.

    Args:
        spec: the machine; its memory, ports and qmp are filled in here.
        folder: private folder for standard error.
        memory: sizes in MiB to be tried.
        ports: names of the virtio-serial ports.

    Raises:
        HostError: QEMU is missing or refuses its arguments.
    """
    with ExitStack() as stack:
        yield _first(spec, memory, lambda attempt: stack.enter_context(_started(attempt, folder, ports)))


def _first(spec: VmSpec, memory: Sequence[int], start: Callable[[VmSpec], Running]) -> Running:
    """The first start that works out."""
    sandbox = spec.sandbox
    sizes = list(memory)
    while True:
        try:
            return start(replace(spec, memory_mib=sizes[0], sandbox=sandbox))
        except _RefusedError as refused:
            said = str(refused)
            if sandbox and ("sandbox" in said or "seccomp" in said):
                sandbox = False
                log.debug("this QEMU has no sandbox: %s", said)
            elif len(sizes) > 1 and "allocate memory" in said:
                log.warning("no %d MiB of memory for the guest, trying %d", sizes[0], sizes[1])
                sizes.pop(0)
            else:
                raise HostError(f"QEMU does not start: {said}", hint=_hint(said)) from None


def _hint(said: str) -> str | None:
    if "allocate memory" in said:
        return "--memory with a smaller number"
    return "the image is in use by another program" if "lock" in said else None


@contextmanager
def _started(spec: VmSpec, folder: Path, ports: Sequence[str]) -> Iterator[Running]:
    stderr = folder / "qemu.stderr"
    with ExitStack() as stack:
        near, far = _pair(stack)
        pairs = {name: _pair(stack) for name in ports}
        wired = tuple((name, pair[1].fileno()) for name, pair in pairs.items())
        views = [share.view for share in spec.shares if share.view is not None]
        link = [] if spec.link is None else [spec.link]
        spec = replace(spec, qmp=far.fileno(), ports=wired)
        sink = stack.enter_context(stderr.open("wb"))
        child = stack.enter_context(
            process.start(
                argv.arguments(spec),
                env={name: os.environ[name] for name in _KEPT if name in os.environ},
                cwd=folder,
                stdout=sink.fileno(),
                stderr=sink.fileno(),
                pass_fds=[far.fileno(), *(descriptor for _, descriptor in wired), *views, *link],
            )
        )
        for _, guest_end in ((near, far), *pairs.values()):
            guest_end.close()  # so that the end of QEMU is the end of the stream
        qmp = Qmp(near)
        try:
            qmp.execute("query-status", timeout=_GREETING)
        except QmpError as cause:
            raise _refusal(child, stderr, cause) from cause
        yield Running(child, qmp, {name: pair[0] for name, pair in pairs.items()}, spec, stderr)


def _refusal(child: subprocess.Popen[bytes], stderr: Path, cause: QmpError) -> _RefusedError:
    """QEMU's own words, or else how it ended."""
    try:
        child.wait(timeout=2)
    except subprocess.TimeoutExpired:
        return _RefusedError(f"it does not answer: {cause}")
    said = console.clean(_tail(stderr)).strip()
    errors = [line for line in said.splitlines() if "warning" not in line]
    return _RefusedError(errors[-1] if errors else process.ending(child.returncode))


def _pair(stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    stack.callback(one.close)
    stack.callback(other.close)
    return one, other


def _tail(path: Path, size: int = 8192) -> str:
    with path.open("rb") as source:
        source.seek(max(0, path.stat().st_size - size))
        return source.read(size).decode(errors="replace")
