"""The default engine: it writes a disk in the libguestfs appliance, which is started once per image.

The appliance starts in the background as soon as the size of the disk is known, while the Tree is still being made.
What the methods do, and what they raise, is specified in :mod:`imgkit.engines.interface`.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from imgkit.disk.grub import BootFiles
from imgkit.disk.layout import Layout
from imgkit.disk.regions import DiskMap, regions_of
from imgkit.disk.size import check_fits, needed_root_bytes, show_size, too_small
from imgkit.engines.chunks import map_disk
from imgkit.engines.convert import convert
from imgkit.engines.engineerrors import EndlessScriptError, EngineStartError, NoSpaceError, ScriptError
from imgkit.engines.guestfs import scripts
from imgkit.engines.guestfs.appliancestart import check, wait
from imgkit.engines.guestfs.channel import ApplianceError, Channel, Drive, Options, opened
from imgkit.engines.guestfs.feed import Feed, feed_bytes, write_feed
from imgkit.engines.interface import NO_FACTS, EngineName, ImageTarget, Script, TreeFacts
from imgkit.errors import HostError, ImgkitError
from imgkit.host import process
from imgkit.host.progress import Steps
from imgkit.tree import Tree

log = logging.getLogger("imgkit.engines")

_FEED_EXTRA = 256 << 20  # bytes by which the feed can be larger than the disk, for alignment and tar headers
_END_TIMEOUT = 60.0  # seconds that the appliance has to end a script after its timeout
_SPARE = 64 << 20  # bytes that must be free on the host besides what writing the disk needs
_LEAST_FREE = 8 << 20  # bytes with which the work is stopped, since QEMU halts for good when its disk is full


@dataclass(frozen=True)
class GuestfsDisk:
    """A disk that this engine has written.

    Attributes:
        disk: the raw disk.
        used, free: bytes of the root filesystem.
        appliance: which one wrote it, "quick" or "stock".
        launch_seconds: how long that took to start.
    """

    disk: Path
    layout: Layout
    used: int
    free: int
    appliance: str
    launch_seconds: float

    def save(self, target: ImageTarget, steps: Steps) -> DiskMap:
        """Make an image file of the disk, which is moved or converted."""
        with steps.step("map the disk"):
            disk_map = map_disk(self.disk, regions_of(self.layout))
        if target.format == "raw":
            self.disk.rename(target.path)
        else:
            with steps.step("compress"):
                convert(self.disk, target.path, target.compression)
        return disk_map


class GuestfsEngine:
    """One appliance and the scratch disk that it writes. Made by :func:`launch`; can :meth:`write` once."""

    name: EngineName = "guestfs"
    runs_scripts = True

    def __init__(self, channel: Channel, scratch: Path, disk_size: int, options: Options) -> None:
        self._channel = channel
        self._scratch = scratch
        self._disk_size = disk_size
        self._options = options
        self._deadline = time.monotonic() + options.launch_timeout
        self._prepared: tuple[Layout, bool] | None = None  # the layout, and whether the quick appliance was asked

    def prepare(self, layout: Layout) -> None:
        """Ask for partitions and filesystems, which are made as soon as the appliance is up; returns at once.

        Raises:
            ValueError: the layout is of another size than the disk.
        """
        if layout.size_bytes != self._disk_size:
            raise ValueError(f"layout of {layout.size_bytes} bytes for a disk of {self._disk_size}")
        self._prepared = (layout, self._channel.quick)
        for script in (scripts.partition_script(layout), scripts.format_script(layout)):
            self._channel.post({"op": "sh", "script": script})

    def check(self) -> None:
        """Raise now what :meth:`write` would raise later: that no appliance can start on this host.

        Raises:
            EngineStartError: the bindings or a kernel are missing, or the stock appliance has failed already.
        """
        with _other_engine():
            check(self._channel)

    def write(
        self,
        tree: Tree,
        layout: Layout,
        boot: BootFiles,
        steps: Steps,
        run_scripts: Sequence[Script] = (),
        facts: TreeFacts = NO_FACTS,  # noqa: ARG002 - mke2fs and tar in the appliance need none
    ) -> GuestfsDisk:
        """Partition, format and fill the disk, make it boot, and shut the appliance down.

        Arguments and errors are those of :meth:`imgkit.engines.interface.Engine.write`.
        """
        if self._prepared is not None and self._prepared[0] != layout:
            raise ValueError("this is not the layout that was prepared")
        check_fits(tree, layout.root.size, layout.size_bytes)
        self._check_space(feed_bytes(tree, boot, run_scripts) + tree.content_size)
        if self._prepared is None:
            self.prepare(layout)
        with steps.step("feed the appliance"):
            feed = self._feed(tree, boot, run_scripts)
        with steps.step("wait for the appliance"), _other_engine():
            start = wait(self._channel, self._deadline, self._options)
        log.info("%s appliance after %.1f s", start.appliance, start.seconds)
        if start.quick_failure:
            log.warning("no quick appliance: %s", start.quick_failure)
        if self._prepared != (layout, self._channel.quick):  # the appliance that was asked did not start
            self.prepare(layout)
        try:
            used, free = self._work(layout, boot, feed, steps, run_scripts)
        except ApplianceError as cause:
            raise self._failure(cause, tree, layout) from cause
        return GuestfsDisk(self.disk, layout, used, free, start.appliance, start.seconds)

    @property
    def disk(self) -> Path:
        """The raw disk, complete after :meth:`write`."""
        return self._scratch / "disk.raw"

    def _feed(self, tree: Tree, boot: BootFiles, run_scripts: Sequence[Script]) -> Feed:
        path = self._scratch / "feed.raw"
        try:
            with path.open("r+b") as sink:
                feed = write_feed(sink, tree, boot, run_scripts)
        except OSError as cause:
            raise HostError(f"{path}: {cause.strerror or cause}") from cause
        return feed

    def _work(
        self, layout: Layout, boot: BootFiles, feed: Feed, steps: Steps, run_scripts: Sequence[Script]
    ) -> tuple[int, int]:
        with steps.step("partition and format"):
            for _ in range(2):
                self._channel.take(watch=self._watch_space)
        with steps.step("populate"):
            complaints = " ".join(self._shell(scripts.populate_script(feed)).split())
            if complaints:  # tar only warns if it cannot set an extended attribute
                raise HostError(f"unpacking into the image: {complaints[:500]}")
        for number, script in enumerate(run_scripts):
            with steps.step(f"run {script.package}.{script.kind}"):
                self._run(script, scripts.chroot_script(feed, number))
        with steps.step("install GRUB"):
            self._shell(scripts.boot_script(layout, feed, boot.boot_code))
        with steps.step("shut the appliance down"):
            used, free = self._shell(scripts.FINISH_SCRIPT).split()[-2:]
            self._channel.close()
        (self._scratch / "feed.raw").unlink()
        return int(used), int(free)

    def _shell(self, script: str) -> str:
        return self._channel.shell(script, self._watch_space)

    def _run(self, script: Script, text: str) -> None:
        """Run a package's script within its timeout, even if the script stops the appliance that enforces it.

        Args:
            text: the script for the appliance's shell that runs it.
        """
        name = f"{script.package}.{script.kind}"
        hint = f"if it need not run: skip_scripts = ['{script.package}']"
        try:
            self._channel.shell(text, self._watch_space, time.monotonic() + scripts.SCRIPT_SECONDS + _END_TIMEOUT)
        except ApplianceError as cause:
            last_line = cause.message.strip().rpartition("\n")[2]
            if last_line.endswith(scripts.ENDLESS):
                raise EndlessScriptError(f"{name}: the script has {scripts.ENDLESS}", hint=hint) from cause
            raise ScriptError(f"{script.package}: its {script.kind} script failed: {last_line}") from cause
        except TimeoutError:
            raise EndlessScriptError(f"{name}: the script has stopped the appliance", hint=hint) from None

    def _check_space(self, needed: int) -> None:
        free = _free(self._scratch)
        if free < needed + _SPARE:
            raise _no_space(self._scratch, free, needed + _SPARE)

    def _watch_space(self) -> None:
        free = _free(self._scratch)
        if free < _LEAST_FREE:
            raise _no_space(self._scratch, free, _SPARE)

    def _failure(self, cause: ApplianceError, tree: Tree, layout: Layout) -> ImgkitError:
        if "No space left on device" in cause.message:
            others = layout.size_bytes - layout.root.size
            return too_small(layout.size_bytes, others + needed_root_bytes(tree) * 11 // 10)
        message = re.sub(r"\s+", " ", cause.message).strip()
        return HostError(f"writing the disk in the libguestfs appliance failed: {message}")


@contextmanager
def _other_engine() -> Iterator[None]:
    """Add to the hint of an error about an appliance that cannot start that there is another engine.

    Raises:
        HostError: the error, with that hint.
    """
    try:
        yield
    except (EngineStartError, process.MissingProgramError) as failure:
        first = f"{failure.hint}; or " if failure.hint else ""
        failure.hint = f"{first}build without libguestfs: --engine native, or IMGKIT_ENGINE=native"
        raise


def _free(folder: Path) -> int:
    """Return the bytes that this user may still write to the filesystem of ``folder``."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def _no_space(folder: Path, free: int, needed: int) -> NoSpaceError:
    return NoSpaceError(
        f"{folder}: only {show_size(free)} free, and writing the disk needs {show_size(needed)}",
        hint="make room, or point WORK_DIR at a larger disk",
    )


@contextmanager
def launch(scratch: Path, disk_size: int, options: Options) -> Iterator[GuestfsEngine]:
    """Begin to start the appliance, and return at once. With ``options`` bound, this is a ``LaunchEngine``.

    When the block ends, only ``disk.raw`` is left in the scratch folder.

    Args:
        scratch: an empty folder beside the output, for the disk and all temporary files.
        disk_size: bytes, a multiple of 512.
        options: how the appliance runs.

    Raises:
        HostError: the scratch disks cannot be made.
    """
    with ExitStack() as stack:
        disk, feed = scratch / "disk.raw", scratch / "feed.raw"
        for path, size in ((disk, disk_size), (feed, disk_size + _FEED_EXTRA)):
            _make_sparse(path, size)
        stack.callback(feed.unlink, missing_ok=True)
        with _other_engine():
            channel = stack.enter_context(opened(scratch, [Drive(disk), Drive(feed)], options))
        yield GuestfsEngine(channel, scratch, disk_size, options)


def _make_sparse(path: Path, size: int) -> None:
    try:
        with path.open("wb") as file:
            file.truncate(size)
    except OSError as cause:
        raise HostError(f"{path}: {cause.strerror or cause}") from cause
