"""A booted image: the handle that tests and commands hold.

The process belongs to the thread that boots: on Linux QEMU is killed when that thread ends, however it ends.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from imgkit.errors import UsageError
from imgkit.host import process
from imgkit.vm import bootspec, console
from imgkit.vm.agent import requests
from imgkit.vm.agent.answers import OnHostTool, OnPermission, no_tool, refuse
from imgkit.vm.agent.filemode import FileMode
from imgkit.vm.agent.protocol import Heartbeat
from imgkit.vm.agent.requests import AgentRequest, Completed, Transport
from imgkit.vm.agent.serialmode import SerialMode
from imgkit.vm.bootspec import Boot
from imgkit.vm.consolelog import ConsoleLog
from imgkit.vm.failures import KernelPanicError
from imgkit.vm.net import restricted, rules
from imgkit.vm.qemu import argv, launch, machines, probe
from imgkit.vm.qemu.launch import Running
from imgkit.vm.qemu.privatefolder import private_folder
from imgkit.vm.qemu.probe import Accelerator
from imgkit.vm.qemu.qmp import QmpError
from imgkit.vm.rootport import RootCompleted, RootPort
from imgkit.vm.sandbox import confinement, identity
from imgkit.vm.shares import ownership, sweep
from imgkit.vm.shares.folder import Folder
from imgkit.vm.shares.quotas import Quotas
from imgkit.vm.shares.watcher import Watcher, watcher_of, watching

log = logging.getLogger("imgkit.vm")

StrPath: TypeAlias = "str | os.PathLike[str]"

TIMEOUT = 180.0
"""Seconds that a boot gets by default (the agentd contract)."""
POWER_OFF = 60.0
"""Seconds that a guest gets to shut down; emulated ones need ten, on a busy host thirty."""
SETTLE = 20.0
"""Seconds that a system gets, once its agent is ready, for its host name, loopback device and network."""
POLL = 0.1
_PRESS = 2.0
_EMULATION_TRIES = 3
_LOOKS = 100  # of a MiB each: more than a console file has


class VM:
    """A running machine. Made by :meth:`boot`; over when that block ends."""

    def __init__(self, what: Boot, running: Running, verdict: Accelerator, log_: ConsoleLog, watcher: Watcher) -> None:
        self.what = what
        self.accelerator = verdict
        self.memory_mib = running.spec.memory_mib
        self.argv = argv.arguments(running.spec)
        self.seconds_to_ready: float | None = None
        self.seconds_to_settled: float | None = None
        self._running = running
        self._log = log_
        self._watcher = watcher
        self._started = time.monotonic()
        self._looked = 0.0
        self._off = False
        self._stack = ExitStack()
        self._folders: dict[str, Folder] = {}
        self._transport = self._connect()
        self._root = RootPort(running.ports[argv.ROOT_PORT], self.check) if what.root_port else None

    # ---- booting -------------------------------------------------------------------------------------------------

    @classmethod
    @contextmanager
    def boot(
        cls,
        image: StrPath | None,
        *,
        arch: str | None = None,
        firmware: str | None = None,
        kernel: StrPath | None = None,
        initrd: StrPath | None = None,
        command_line: str | None = None,
        memory_mib: int | None = None,
        cpus: int = 2,
        accelerator: str = "auto",
        cpu: str | None = None,
        shares: Mapping[str, StrPath] | None = None,
        read_only: Collection[str] = (),
        ipc: str = "file",
        config: bytes | None = None,
        network: str | bool = "user",
        allow: Sequence[str] = (),
        style: str = "harness",
        bus: str = "virtio-blk",
        format: str | None = None,
        writable: bool = False,
        root_port: bool = False,
        console: StrPath | None = None,
        extra: Sequence[str] = (),
        quotas: Quotas | None = None,
        timeout: float = TIMEOUT,
        wait: bool = True,
        settle: bool = True,
    ) -> Iterator[VM]:
        """Boot an image, wait until its agent is ready, and switch the machine off when the block ends.

        Args:
            image: disk image, qcow2 or raw, in one file; never written to, unless ``writable``. None boots without one.
            arch: "amd64" or "arm64"; None takes it from the image's name, else the host's.
            firmware: "bios", "uefi", or "direct" with ``kernel``, ``initrd`` and ``command_line`` (None: the host
                application's); None is "bios" for amd64 and "uefi" for arm64.
            memory_mib: None tries 4096, 2048 and 1024.
            cpus: number of virtual CPUs.
            accelerator: "auto", "kvm", "hvf" or "tcg"; cpu: model, None for the quickest one.
            shares: tag → host folder. "ipc" may name a folder of one's own; otherwise a private one is made.
            read_only: tags of the shares that the guest cannot change, not even its root.
            ipc: "file" for requests over the ipc share, "serial" for the virtio-serial port.
            config: an ISO image with per-boot configuration; it exists on the host only as long as the machine.
            network: "none", "user" (QEMU's user network: everything that the host reaches, its own services included,
                those as 10.0.2.2) or "restricted" (what ``allow`` names). True and False stand for "user" and "none".
            allow: what a guest in a restricted network reaches: "HOST:PORT", "*.HOST:PORT" or "ADDRESS:PORT" each.
            style: "harness", or "host-app" for the agentd contract's own QEMU arguments.
            bus: "virtio-blk" or "virtio-scsi".
            format: "qcow2" or "raw"; None looks at the first bytes, which a guest that writes to a raw image may
                change: a file called ``….raw`` is never taken for qcow2.
            writable: what the guest writes stays in the image: for a private copy that is booted more than once.
            root_port: offer the port of :mod:`imgkit.vm.rootport`.
            console: regular file that the console is appended to (style "host-app" empties it first), and not in a
                share that the guest may write to; None keeps it private.
            extra: further arguments for QEMU.
            quotas: what the guest may take of the host's disk, and of time; None is the default of
                :class:`imgkit.vm.shares.quotas.Quotas`. The machine is ended when it takes more.
            timeout: seconds until the agent must be ready.
            wait: False hands the machine over at once; see :meth:`wait_ready`.
            settle: False does not wait for the host name, the loopback device and the network; see :meth:`settle`.

        Raises:
            UsageError: arguments contradict one another.
            HostError: QEMU, firmware or image are missing, or QEMU refuses.
            InputError: the image refers to other files, or is of a format that is not booted.
            BootError: the guest did not come up; the class says how.
        """
        arch = arch or (machines.host_arch() if image is None else machines.guess_arch(Path(image)))
        what = Boot(
            image=_path(image),
            arch=arch,
            firmware=firmware or machines.machine(arch).firmware,
            kernel=_path(kernel),
            initrd=_path(initrd),
            command_line=command_line,
            memory_mib=memory_mib,
            cpus=cpus,
            accelerator=accelerator,
            cpu=cpu,
            shares={tag: Path(folder) for tag, folder in (shares or {}).items()},
            read_only=frozenset(read_only),
            format=format,
            ipc=ipc,
            config=config,
            network=bootspec.network_kind(network=network, allow=allow),
            allow=tuple(allow),
            style=style,
            bus=bus,
            writable=writable,
            root_port=root_port,
            console=_path(console),
            extra=tuple(extra),
            quotas=quotas or Quotas(),
        )
        deadline = time.monotonic() + timeout
        verdict = probe.probe(what.arch, what.accelerator)
        for attempt in range(1, _EMULATION_TRIES + 1):
            with ExitStack() as stack:
                vm = stack.enter_context(_machine(what, verdict))
                try:
                    if wait:
                        vm._wait_ready(deadline, timeout)
                    if wait and settle:
                        vm.settle()
                except KernelPanicError as panic:
                    if not panic.emulation or attempt == _EMULATION_TRIES:
                        raise
                    log.warning("emulation crashed the guest's kernel (%s); booting again", panic.message)
                    continue
                yield vm
                return

    def wait_ready(self, timeout: float = TIMEOUT) -> Heartbeat:
        """Wait for the agent's heartbeat, as the contract defines readiness.

        Raises:
            BootError: QEMU died, the console shows a failure, or the time is over; the class says which.
        """
        return self._wait_ready(time.monotonic() + timeout, timeout)

    def _wait_ready(self, deadline: float, given: float) -> Heartbeat:
        """Until ``deadline`` on the monotonic clock; messages name the ``given`` seconds that it came of."""
        trouble = ""
        while True:
            beat = self._transport.heartbeat()
            if beat is not None:
                trouble = beat.trouble(time.time())
                if not trouble:
                    self.seconds_to_ready = time.monotonic() - self._started
                    return beat
            self.check(booting=True)
            if time.monotonic() >= deadline:
                raise console.late(given, self._log.quiet, self._log.text, trouble)
            time.sleep(POLL)

    def settle(self, timeout: float = SETTLE) -> tuple[str, ...]:
        """Wait until commands find what they expect: a host name, a loopback device and, if there is a card, a network.

        The agent is ready before them, and says in its heartbeat what is still to come. In the guest, requests wait
        for the same (docs/agentd.md).

        Returns:
            What is still missing when the time is over; empty if nothing is. It is logged, too.

        Raises:
            BootError: the machine is gone, or its console shows a failure.
        """
        deadline = time.monotonic() + timeout
        while True:
            beat = self._transport.heartbeat()
            missing = ("heartbeat",) if beat is None else beat.missing()
            if not missing:
                self.seconds_to_settled = time.monotonic() - self._started
                return ()
            if time.monotonic() >= deadline:
                log.warning("the guest has come up without its %s", ", ".join(missing))
                return missing
            self.check()
            time.sleep(POLL)

    def check(self, *, booting: bool = False) -> None:
        """Raise if the machine is gone or (while booting) its console shows a failure.

        Raises:
            BootError: the machine is gone, or its console shows a failure.
            QuotaError: it was ended because it took more than it may.
        """
        self._watcher.check()
        ended = self._running.child.poll()
        if ended is None and not booting and time.monotonic() - self._looked < 1:
            return
        self._looked = time.monotonic()
        self._log.refresh()
        if ended is not None:
            how = "ended" if ended == 0 else process.ending(ended)
            raise console.died(how, self._running.said(), self._log.text)
        finding = console.diagnose(self._log.text)
        if finding is None or self._log.quiet < finding.patience:
            return
        if booting or finding.kind is KernelPanicError:
            raise console.failure(finding, self._log.text)

    # ---- looking -------------------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether QEMU still runs."""
        return self._running.child.poll() is None

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._running.child.pid

    def console(self) -> str:
        """The console's text so far (at most the last 256 Ki characters), without control sequences."""
        for _ in range(_LOOKS):  # a guest may write faster than anybody can read
            if not self._log.refresh():
                break
        return self._log.text

    def stages(self) -> Mapping[str, float]:
        """Seconds after which each stage of the boot showed on the console."""
        return {stage.name.lower(): seconds for stage, seconds in self._log.times.items()}

    def heartbeat(self) -> Heartbeat | None:
        """The newest heartbeat."""
        return self._transport.heartbeat()

    def share(self, tag: str) -> Folder:
        """A shared folder, for reading and writing without being led astray by what the guest puts there."""
        return self._folders[tag]

    # ---- doing ---------------------------------------------------------------------------------------------------

    def request(
        self,
        *,
        prompt: str | None = None,
        command: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        mounts: Mapping[str, Mapping[str, str]] | None = None,
        on_permission: OnPermission = refuse,
        on_host_tool: OnHostTool = no_tool,
        auto_approve: bool = False,
        timeout: float | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> AgentRequest:
        """Hand a request to the agent; see :func:`imgkit.vm.agent.requests.compose` and
        :class:`imgkit.vm.agent.requests.AgentRequest`.

        ``mounts`` None mounts every share: ``work`` at /workspace/project (and starts there), others at /mnt/TAG.
        """
        if mounts is None:
            mounts = {tag: {"tag": tag, "guestPath": _guest_path(tag)} for tag in self._folders if tag != "ipc"}
        if cwd is None and "work" in mounts:
            cwd = mounts["work"]["guestPath"]
        body = requests.compose(
            prompt=prompt,
            command=command,
            env=env,
            cwd=cwd,
            mounts=mounts,
            auto_approve=auto_approve,
            extra=extra,
        )
        seconds, late = _sooner(timeout, self.what.quotas.seconds)
        return AgentRequest(
            self._transport,
            body,
            on_permission=on_permission,
            on_host_tool=on_host_tool,
            timeout=seconds,
            late=late,
            alive=self.check,
        )

    def run(
        self,
        command: Sequence[str] | str,
        *,
        timeout: float | None = 120.0,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        auto_approve: bool = False,
    ) -> Completed:
        """Run a command in the guest as the agent's user; a string is given to ``/bin/sh -c``.

        What the command asks the host (``agent-ask``) is denied, unless ``auto_approve`` has the guest allow it.

        Raises:
            RequestError: no result in time. BootError: the machine died.
        """
        words = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        request = self.request(command=words, env=env, cwd=cwd, auto_approve=auto_approve, timeout=timeout)
        return requests.collect(request)

    def root(self, command: Sequence[str] | str, *, stdin: bytes = b"", timeout: float = 60.0) -> RootCompleted:
        """Run a command as root, where the image under test has the helper of :mod:`imgkit.vm.rootport`.

        Raises:
            UsageError: the machine was booted without ``root_port``. GuestError: the helper does not answer.
        """
        if self._root is None:
            raise UsageError("this machine has no root port", hint="boot it with root_port=True")
        words = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        return self._root.run(words, stdin=stdin, timeout=timeout)

    @property
    def serial(self) -> SerialMode:
        """The serial transport, for pushing and receiving files.

        Raises:
            UsageError: the machine was booted in file mode.
        """
        if not isinstance(self._transport, SerialMode):
            raise UsageError("files go through shares in file mode", hint="boot with ipc='serial'")
        return self._transport

    def power_off(self, timeout: float = POWER_OFF) -> bool:
        """Press the power button and wait; whether the guest shut itself down. One that does not is switched off.

        The button is pressed again and again: a guest that has just come up may not listen yet, and one that is
        shutting down takes no notice.
        """
        deadline = time.monotonic() + timeout
        pressed = 0.0
        while self.alive and time.monotonic() < deadline:
            if time.monotonic() - pressed >= _PRESS:
                pressed = time.monotonic()
                with suppress(QmpError):  # QEMU may be ending just now
                    self._running.qmp.execute("system_powerdown")
            time.sleep(POLL)
        clean = not self.alive
        if not clean:
            self.kill()
        self._log.refresh()
        return clean

    def kill(self) -> None:
        """Pull the plug."""
        self._running.child.kill()
        self._running.child.wait()

    # ---- inside --------------------------------------------------------------------------------------------------

    def _connect(self) -> Transport:
        for share in self._running.spec.shares:
            self._folders[share.tag] = folder = Folder(share.path)
            self._stack.callback(folder.close)
        if self.what.ipc == "serial":
            return SerialMode(self._running.ports[argv.IPC_PORT])
        return FileMode(self._folders["ipc"])

    def close(self) -> None:
        """Give back descriptors; :meth:`boot` calls it."""
        self._stack.close()


def _path(given: StrPath | None) -> Path | None:
    return None if given is None else Path(given)


def _guest_path(tag: str) -> str:
    return "/workspace/project" if tag == "work" else f"/mnt/{tag}"


def _sooner(own: float | None, quota: float | None) -> tuple[float | None, str]:
    """The lesser of a request's own seconds and the quota's, where None is no limit, and what allows more."""
    if quota is None or (own is not None and own <= quota):
        return own, "a longer timeout= of the request"
    return quota, "--quota time=… (Quotas.seconds) allows more, --quota time=none all"


def _user(what: Boot, verdict: Accelerator, stack: ExitStack) -> identity.Identity | None:
    """Whom QEMU runs as, where root starts it."""
    device = probe.KVM if verdict.name == "kvm" else None
    user = identity.choose(what.shares.get("work"), device=device)
    if user is None:
        return None
    log.debug("QEMU runs as %s", user)
    return stack.enter_context(ownership.apart(user))


def _shown(share: argv.Share, user: identity.Identity | None, private: Path, stack: ExitStack) -> argv.Share:
    """A share as QEMU sees it: a QEMU that is nobody may do in root's folders what root may."""
    if not share.read_only and not confinement.filters_calls():
        stack.callback(_swept, share.path, time.time())
    if user is None:
        return share
    if share.path.parent == private:
        os.chown(share.path, user.uid, user.gid)
        return share
    return replace(share, view=stack.enter_context(ownership.view(share.path, user, read_only=share.read_only)))


def _swept(folder: Path, since: float) -> None:
    """What a kernel without filters let through does not stay."""
    try:
        changed = sweep.drop_special_bits(folder, since=since)
    except OSError as cause:
        log.warning("%s: not looked through for set-user-id programs of the guest: %s", folder, cause.strerror or cause)
        return
    for path in changed:
        log.warning("%s: the guest had made it set-user-id or a device; it is not any more", path)


@contextmanager
def _machine(what: Boot, verdict: Accelerator) -> Iterator[VM]:
    """A started machine, not waited for."""
    if what.ipc not in ("file", "serial"):
        raise UsageError(f"{what.ipc}: unknown way to talk to the agent", hint="known are file and serial")
    with ExitStack() as stack:
        folder = stack.enter_context(private_folder())
        spec = bootspec.spec(what, verdict, folder)
        user = _user(what, verdict, stack)
        verdict = probe.allowed(verdict, what.arch, what.accelerator, user)
        spec = replace(spec, accelerator=verdict.argument, cpu=what.cpu or verdict.cpu)
        spec = replace(spec, shares=tuple(_shown(share, user, folder.resolve(), stack) for share in spec.shares))
        if what.network == "restricted":
            spec = replace(spec, link=stack.enter_context(restricted.network(rules.parse(what.allow))))
        ports = [argv.IPC_PORT] if what.ipc == "serial" else []
        ports += [argv.ROOT_PORT] if what.root_port else []
        memory = launch.MEMORY_STEPS if what.memory_mib is None else (what.memory_mib,)
        if what.ipc == "file":  # before the guest can see it
            ipc = Folder(next(share.path for share in spec.shares if share.tag == "ipc"))
            FileMode(ipc).close()
        log_ = stack.enter_context(closing(ConsoleLog(spec.console, anew=spec.style == "host-app")))
        spec = replace(spec, log=log_.writing)
        watcher = watcher_of(spec, what.quotas, user)
        running = stack.enter_context(launch.launched(spec, folder, memory=memory, ports=ports, user=user))
        measured = watching(watcher, spec, what.quotas.disk, running.child, running.stderr, log_.shorten)
        stack.enter_context(measured)
        vm = VM(what, running, verdict, log_, watcher)
        stack.callback(vm.close)
        yield vm
