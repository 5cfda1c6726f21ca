"""Start the machine that a :class:`~imgkit.vm.bootspec.BootSpec` describes: QEMU's user, its shares, its monitor.

    with started(BootSpec(image), probe("amd64")) as machine:
        machine.running.child.pid

This module does not wait for the guest; :mod:`imgkit.vm.waiting` does.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from imgkit.vm import bootspec
from imgkit.vm.agent.filetransport import FileTransport
from imgkit.vm.bootspec import BootSpec
from imgkit.vm.consolelog import ConsoleLog
from imgkit.vm.net import allowlist, restricted
from imgkit.vm.qemu import argv, launch, portforward, probe
from imgkit.vm.qemu.argv import Share, VmSpec
from imgkit.vm.qemu.launch import Running
from imgkit.vm.qemu.privatefolder import private_folder
from imgkit.vm.qemu.probe import Accelerator
from imgkit.vm.sandbox import confinement, identity
from imgkit.vm.sandbox.identity import Identity
from imgkit.vm.shares import idmap, specialbits
from imgkit.vm.shares.monitor import UsageMonitor, monitor_for, monitored
from imgkit.vm.shares.sharedfolder import SharedFolder

log = logging.getLogger("imgkit.vm")


@dataclass(frozen=True)
class Started:
    """A machine whose QEMU has completed its setup.

    Attributes:
        spec: the specification that was booted.
        running: QEMU; ``running.spec`` is the machine that ``spec`` was resolved to.
        accelerator: the accelerator that QEMU uses.
        console: follows the serial console.
        monitor: ends the machine when it exceeds its quotas.
    """

    spec: BootSpec
    running: Running
    accelerator: Accelerator
    console: ConsoleLog
    monitor: UsageMonitor


@contextmanager
def started(spec: BootSpec, accelerator: Accelerator) -> Iterator[Started]:
    """Run the machine for the length of the block.

    Args:
        spec: what is booted.
        accelerator: the accelerator that works for this user of the host (:func:`imgkit.vm.qemu.probe.probe`).

    Raises:
        UsageError, HostError, InputError: as for :func:`imgkit.vm.bootspec.resolve` and
            :func:`imgkit.vm.qemu.launch.launched`.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(private_folder())
        resolved = bootspec.resolve(spec, accelerator, folder)
        _say_ports(spec, resolved)
        user = _user(spec, accelerator, stack)
        usable = probe.allowed(accelerator, resolved.arch, spec.accelerator, user)
        if usable != accelerator:
            resolved = replace(resolved, accelerator=usable.argument, cpu=spec.cpu or usable.cpu)
        resolved = replace(resolved, shares=_shown(resolved, user, folder.resolve(), stack))
        if spec.network == "restricted":
            resolved = replace(resolved, link=stack.enter_context(restricted.network(allowlist.parse(spec.allow))))
        if spec.ipc == "file":
            _prepare_requests(resolved)
        console = stack.enter_context(closing(ConsoleLog(resolved.console)))
        resolved = replace(resolved, log=console.writing)
        monitor = monitor_for(resolved, spec.quotas, user)
        memory = launch.MEMORY_STEPS if spec.memory_mib is None else (spec.memory_mib,)
        ports = [*([argv.IPC_PORT] if spec.ipc == "serial" else []), *spec.ports]
        running = stack.enter_context(launch.launched(resolved, folder, memory=memory, ports=ports, user=user))
        limit = spec.quotas.disk
        stack.enter_context(monitored(monitor, resolved, limit, running.child, running.stderr, console.shorten))
        yield Started(spec, running, usable, console, monitor)


def _say_ports(spec: BootSpec, resolved: VmSpec) -> None:
    """Log which ports were chosen, if any had to be."""
    if any(forward.host == 0 for forward in portforward.check(spec.publish, spec.network)):
        for forward in resolved.forwards:
            log.info("%s:%d leads to port %d of the guest", forward.address, forward.host, forward.guest)


def _prepare_requests(resolved: VmSpec) -> None:
    """Make the folders of the request share before the guest can access it."""
    ipc = SharedFolder(next(share.path for share in resolved.shares if share.tag == "ipc"))
    FileTransport(ipc).close()


def _user(spec: BootSpec, accelerator: Accelerator, stack: ExitStack) -> Identity | None:
    """Return the user that QEMU runs as if root starts it; None for the user of this process."""
    device = probe.KVM if accelerator.name == "kvm" else None
    work = spec.shares.get("work")
    user = identity.choose_user(None if work is None else Path(work), device=device)
    if user is None:
        return None
    log.debug("QEMU runs as %s", user)
    return stack.enter_context(idmap.in_user_namespace(user))


def _shown(resolved: VmSpec, user: Identity | None, private: Path, stack: ExitStack) -> tuple[Share, ...]:
    """Return the shares as QEMU sees them. Without a filter, special mode bits are removed when the machine ends."""
    for share in resolved.shares:
        if not share.read_only and not confinement.filters_system_calls():
            stack.callback(_sweep, share.path, time.time())
    if user is None:
        return resolved.shares
    return tuple(_view(share, user, private, stack) for share in resolved.shares)


def _view(share: Share, user: Identity, private: Path, stack: ExitStack) -> Share:
    """Return the share as ``user`` sees it. In root's folders, a QEMU that runs as nobody gets root's rights."""
    if share.path.parent == private:
        os.chown(share.path, user.uid, user.gid)
        return share
    return replace(share, view=stack.enter_context(idmap.idmapped_view(share.path, user, read_only=share.read_only)))


def _sweep(folder: Path, since: float) -> None:
    """Remove the set-user-id bits and devices that the guest could make on a kernel without filters."""
    try:
        changed = specialbits.drop_special_bits(folder, since=since)
    except OSError as cause:
        reason = cause.strerror or cause
        log.warning("%s: could not be searched for set-user-id programs of the guest: %s", folder, reason)
        return
    for path in changed:
        log.warning("%s: the guest had made this a set-user-id program or a device, which imgkit has undone", path)
