"""The interface of an engine, which turns a Tree and a Layout into a disk image, and reads images back.

Each engine is a package beside this module, with a function of type :data:`LaunchEngine` to write disks, and one that
opens images as an :class:`~imgkit.engines.reading.ImageReader`. The rest of imgkit knows engines by these types only; a
build chooses one in :mod:`imgkit.cli.commands.build`::

    with launch(scratch, layout.size_bytes) as engine:
        engine.prepare(layout)                        # as early as possible
        tree, boot = …                                # the long work
        disk = engine.write(tree, layout, boot, steps)
        map = disk.save(ImageTarget(out / "image.qcow2"), steps)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Protocol, TypeAlias

from imgkit.disk.diskimage import Format
from imgkit.disk.grub import BootFiles
from imgkit.disk.layout import Layout
from imgkit.disk.regions import DiskMap
from imgkit.host.progress import Steps
from imgkit.tree import Tree


class Script(Protocol):
    """A package's script whose effects could not be computed, so that it runs in the image's root filesystem."""

    @property
    def package(self) -> str:
        """The name of the package."""
        ...

    @property
    def kind(self) -> str:
        """When the script runs, such as ``post-install``."""
        ...

    @property
    def text(self) -> str:
        """The script. Bytes that are not UTF-8 are surrogates (:func:`os.fsdecode`)."""
        ...

    @property
    def args(self) -> Sequence[str]:
        """Its arguments, such as the version of the package."""
        ...


@dataclass(frozen=True)
class TreeFacts:
    """What is known of a Tree besides what is in it. An engine may use it to do less work.

    Attributes:
        hashes: path of a file → SHA-256 of its content, for as many files as are known.
        owners: path of a file → name of its package, for those that belong to one.
        epoch: the time of what a filesystem has besides the Tree, in seconds since 1970.
    """

    hashes: Mapping[str, bytes] = field(default_factory=lambda: MappingProxyType({}))
    owners: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    epoch: int = 0


NO_FACTS = TreeFacts()
"""Nothing is known."""

EngineName: TypeAlias = Literal["guestfs", "native"]
"""The engines by name."""
Compression: TypeAlias = Literal["zstd", "zlib"]
"""How a qcow2 is compressed. zstd can be read by QEMU 5.1 and newer; zlib by every version, and takes longer."""


@dataclass(frozen=True)
class ImageTarget:
    """An image file that is to be made.

    Attributes:
        path: a new file, usually under a temporary name, which the caller renames.
        compression: of a qcow2; a raw image is not compressed.
    """

    path: Path
    format: Format = "qcow2"
    compression: Compression = "zstd"


class WrittenDisk(Protocol):
    """A disk that an engine has written. Its bytes lie in the scratch folder until they are saved."""

    @property
    def used(self) -> int:
        """Bytes of the root filesystem that are in use."""
        ...

    @property
    def free(self) -> int:
        """Bytes of the root filesystem that are free."""
        ...

    def save(self, target: ImageTarget, steps: Steps) -> DiskMap:
        """Make an image file of the disk. Can be called once, also when the engine has ended.

        Args:
            steps: records how long each step takes.

        Returns:
            The SHA-256 of every chunk of the disk.

        Raises:
            NoSpaceError: the disk of the target is full.
            HostError: the file cannot be written, or something that the disk is made of was changed meanwhile.

        No file is left at the target after an error.
        """
        ...


class Engine(Protocol):
    """Writes one disk. It may start in the background, while the Tree is still being made."""

    @property
    def name(self) -> EngineName:
        """Which engine it is."""
        ...

    @property
    def runs_scripts(self) -> bool:
        """Whether it can run scripts of the host's own architecture (``run_scripts`` of :meth:`write`)."""
        ...

    def prepare(self, layout: Layout) -> None:
        """Ask for the partitions and filesystems of ``layout``; returns at once.

        Calling it is optional: :meth:`write` does the same, later.

        Raises:
            ValueError: the layout is of another size than the disk that the engine was launched for.
        """

    def check(self) -> None:
        """Raise now what :meth:`write` would raise later, as far as it is known already.

        Raises:
            EngineStartError: the engine cannot work on this host.
        """

    def write(
        self,
        tree: Tree,
        layout: Layout,
        boot: BootFiles,
        steps: Steps,
        run_scripts: Sequence[Script] = (),
        facts: TreeFacts = NO_FACTS,
    ) -> WrittenDisk:
        """Partition, format and fill the disk, and make it boot. Can be called once.

        Args:
            tree: the root filesystem.
            boot: the boot loader: its boot code, core image, and the files of the EFI system partition.
            steps: records how long each step takes.
            run_scripts: scripts that are run in the root filesystem when it is complete, in this order.
            facts: what is known of the Tree.

        Raises:
            RecipeError: the Tree does not fit, or one of ``run_scripts`` failed (:class:`ScriptError`).
            EndlessScriptError: one of ``run_scripts`` does not end.
            HostError: the engine cannot be started (:class:`EngineStartError`) or failed, or the host's disk is full
                (:class:`NoSpaceError`).
            ValueError: another layout was prepared.
        """
        ...


LaunchEngine: TypeAlias = Callable[[Path, int], AbstractContextManager[Engine]]
"""Starts an engine: an empty scratch folder and the size of the disk in bytes → the engine, for a ``with`` block.

What the written disk is made of lies in the scratch folder and stays when the block ends; nothing else does.
"""
