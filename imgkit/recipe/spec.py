"""The fields of a recipe: frozen records, which refuse unknown fields and wrong values.

A recipe states facts and nothing else: ``size = "4G"``, ``packages = ["bash", …]``. Names that start with an
underscore, modules, functions and classes are for the recipe's own use; every other name must be a field. The facts
of an architecture are the names of a module of its own (``from .arch import amd64``;
``architectures = {"amd64": amd64}``), in a file below the recipe's folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field

from imgkit.errors import UsageError
from imgkit.recipe.agentspec import AgentSpec
from imgkit.recipe.containerspec import ContainerSpec
from imgkit.recipe.filespecs import FileSpec, OverlaySpec, folder_alone
from imgkit.recipe.module import public_values
from imgkit.recipe.record import Name, RecipeRecord, frozen, matching
from imgkit.recipe.repositoryspec import RepositoryEntry, RepositorySpec

OFFICIAL_MIRROR = "https://dl-cdn.alpinelinux.org/alpine"

_SIZE = re.compile(r"([0-9]{1,18})([KMGT]?)(?:I?B)?", re.ASCII | re.IGNORECASE)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(text: str) -> int:
    """Return the bytes of a size such as ``4G``, ``512M`` or ``1073741824``.

    Units are powers of 1024; ``GiB`` and ``GB`` mean ``G``.

    Raises:
        ValueError: the text is not a size, or the size is zero.
    """
    match = _SIZE.fullmatch(text)
    if match is None or not int(match[1]):
        raise ValueError(f"{text!r} is not a size such as 4G or 512M")
    return int(match[1]) * _UNITS[match[2].upper()]


def _checked_size(text: str) -> str:
    parse_size(text)
    return text


def _image_size(text: str) -> str:
    size = parse_size(text)
    if not 256 << 20 <= size <= 2 << 40:
        raise ValueError(f"{text} is out of range: a disk has 256M to 2T")
    return text


def _module_fields(value: object) -> object:
    """Return the public values of a module; any other value as it is."""
    return public_values(value) if isinstance(value, ModuleType) else value


TIMEZONE = r"^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$"
"""Names of time zones. No part of one begins with a dot."""
TZDATA = "tzdata"
"""The package that has the time zones."""
Overlay: TypeAlias = Annotated[OverlaySpec, BeforeValidator(folder_alone)]
Hostname = Annotated[
    str,
    matching(
        r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
        "is not a host name: lower-case letters, digits and inner hyphens, 63 of them at most",
    ),
]
Size = Annotated[str, AfterValidator(_checked_size)]
ImageSize = Annotated[str, AfterValidator(_image_size)]
Runlevel = Literal["sysinit", "boot", "default", "nonetwork", "shutdown"]
PartitionKind = Literal["bios-boot", "esp", "root"]
ImageFormat: TypeAlias = Literal["qcow2", "raw", "vmdk", "vhdx", "vhd"]
"""The format of the file of a disk image."""
Output: TypeAlias = Literal["disk", "rootfs", "oci", "oci-archive", "docker-archive"]
"""What a build writes: a disk image, its root filesystem alone, or a container image as a folder or as one file."""
DiskOutput: TypeAlias = Literal["disk", "rootfs"]
"""The outputs for machines."""
Shape: TypeAlias = Literal["disk", "container"]
"""What a root filesystem is for: to boot a machine, or to be run by a container engine."""
SHAPES: Mapping[Output, Shape] = MappingProxyType(
    {
        "disk": "disk",
        "rootfs": "disk",
        "oci": "container",
        "oci-archive": "container",
        "docker-archive": "container",
    }
)
"""Output → what the root filesystem in it is for."""


class PartitionSpec(RecipeRecord):
    """One partition. The root needs no ``size``: it is the last on the disk and takes what the others leave.

    Numbers follow from the kind, since hosts rely on them: the ESP is 1, the root 2, the BIOS boot partition 14.
    """

    kind: PartitionKind = Field(examples=["esp"])
    """What it is for: GRUB's core image for a BIOS, the EFI system partition, or the root filesystem."""
    size: Size | None = Field(default=None, examples=["16M"])
    """Its size; the root may leave it out, and then takes the rest of the disk."""


class UserSpec(RecipeRecord):
    """An account that the image has besides those of its packages. Nobody can log into it with a password."""

    name: Name = Field(examples=["agent"])
    """The name of the account, and of its first group."""
    uid: int = Field(ge=1, le=65532, examples=[1000])
    """The number of the account, and of its first group."""
    home: str = Field(default="/", examples=["/home/agent"])
    """Its home directory, which is made."""
    shell: str = Field(default="/bin/sh", examples=["/bin/bash"])
    """Its login shell."""
    groups: tuple[Name, ...] = Field(default=(), examples=[["audio", "video"]])
    """Further groups, which the image must have."""
    owns: tuple[str, ...] = Field(default=(), examples=[["/workspace"]])
    """Directories that are created and belong to this user."""


class Architecture(RecipeRecord):
    """What differs between architectures."""

    alpine: Literal["x86_64", "aarch64"] = Field(examples=["x86_64"])
    """Alpine's name of the architecture, which is a directory on the mirror."""
    packages: tuple[str, ...] = Field(default=(), examples=[["grub-bios"]])
    """Packages of the disk image of this architecture alone."""
    partitions: tuple[PartitionSpec, ...] = Field(examples=[[{"kind": "esp", "size": "16M"}, {"kind": "root"}]])
    """The partitions in their order on the disk; the root is the last one."""
    grub_platforms: tuple[Literal["i386-pc", "x86_64-efi", "arm64-efi"], ...] = Field(examples=[["x86_64-efi"]])
    """The firmware that GRUB starts from: a BIOS (``i386-pc``, needs a bios-boot partition), or EFI (needs an esp)."""
    consoles: tuple[str, ...] = Field(examples=[["tty0", "ttyS0,115200"]])
    """Values of the kernel's ``console=`` arguments; the last one becomes /dev/console."""
    kernel_arguments: tuple[str, ...] = Field(default=(), examples=[["nomodeset"]])
    """Arguments of the kernel, in front of the recipe's own."""


class Recipe(RecipeRecord):
    """Everything that decides what is in an image. Paths are absolute once the recipe is loaded."""

    name: Name = Field(default="linux", examples=["sandbox"])
    """Images are called ``NAME-ARCH.qcow2``, or as their ``format`` is called."""
    mirror: str = Field(default=OFFICIAL_MIRROR, examples=["https://mirror.example.com/alpine"])
    """Where the build downloads from."""
    guest_mirror: str = Field(default=OFFICIAL_MIRROR, examples=["https://mirror.example.com/alpine"])
    """Where the image's own apk downloads from."""
    outputs: Annotated[tuple[Output, ...], Field(min_length=1)] = Field(default=("disk",), examples=[["disk", "oci"]])
    """What a build writes unless it is told otherwise: a disk image, the root filesystem of one for Firecracker and
    Cloud Hypervisor (``rootfs``), or a container image as an OCI layout (``oci``), as an archive of one, or as an
    archive that Docker loads."""
    base: (
        Annotated[str, matching(r"oci:[^\x00-\x20]+", "is not a base such as oci:alpine:3.23 or oci:./folder")] | None
    ) = Field(default=None, examples=["oci:registry.example/team/app:1.0", "oci:./layout"])
    """The container image to start from: ``oci:NAME@DIGEST``, ``oci:NAME:TAG`` or ``oci:./FOLDER``. Without it, a build
    starts from Alpine's minirootfs."""
    base_setuid: Literal["keep", "drop"] = Field(default="keep", examples=["drop"])
    """What happens to set-user-id and set-group-id programs of the base. They are listed in either case."""
    branch: Annotated[
        str, matching(r"v[0-9]+\.[0-9]+|edge|latest-stable", "is not a branch such as v3.23, edge or latest-stable")
    ] = Field(examples=["v3.23", "latest-stable"])
    """Alpine's branch, a directory of the mirror. ``latest-stable`` selects the newest release; the image itself stays
    on that release."""
    version: (
        Annotated[str, matching(r"[0-9]+\.[0-9]+\.[0-9]+(_[a-z0-9]+)?", "is not a version such as 3.23.6")] | None
    ) = Field(default=None, examples=["3.23.6"])
    """Point release of the minirootfs. Without it, the newest one that the mirror lists."""
    repositories: tuple[RepositoryEntry, ...] = Field(
        default=("main", "community"),
        examples=[["main", {"url": "https://apk.example.com/stable", "key": "keys/example.rsa.pub", "tag": "example"}]],
    )
    """Where packages come from, the preferred ones first: repositories of the branch by name, and further ones."""
    release_key: Path | None = Field(default=None, examples=["keys/releases.asc"])
    """OpenPGP certificate that the minirootfs must be signed with. Without it, that of Alpine's releases."""
    size: ImageSize = Field(default="4G", examples=["512M", "8G"])
    """Size of the disk, from 256M to 2T. The file is smaller: empty space takes none."""
    format: ImageFormat = Field(default="qcow2", examples=["raw", "vhd"])
    """Format of the image file: ``qcow2``, ``raw``, ``vmdk`` (VMware), ``vhdx`` (Hyper-V) or ``vhd`` (Azure)."""
    compression: Literal["zstd", "zlib"] = Field(default="zstd", examples=["zlib"])
    """Compression of the qcow2's clusters; QEMU before 5.1 needs zlib."""
    packages: tuple[str, ...] = Field(examples=[["bash", "nodejs>=20", "tool@example", "!mount"]])
    """Packages of every output, as in apk's world: a name, a version (``nodejs>=20``, ``git~2.52``), a tag of one of
    the ``repositories`` (``tool@example``), or what must not be installed (``!mount``)."""
    disk_packages: tuple[str, ...] = Field(default=(), examples=[["linux-virt", "openrc"]])
    """Packages of the disk image alone: the kernel, the init system, tools for disks and network cards."""
    container: ContainerSpec = Field(default_factory=ContainerSpec, examples=[{"user": "agent", "ports": [8080]}])
    """What the container image has besides, and how a container is started."""
    kernel: Name = Field(default="virt", examples=["lts"])
    """Kernel flavour: the package is ``linux-KERNEL``, which must be among the packages."""
    initramfs_features: tuple[Name, ...] = Field(
        default=("base", "ext4", "virtio"), examples=[["base", "ext4", "nvme"]]
    )
    """What the initramfs supports: features of mkinitfs, files in ``/etc/mkinitfs/features.d``."""
    kernel_arguments: tuple[str, ...] = Field(default=(), examples=[["quiet", "sysctl.kernel.sysrq=0"]])
    """Arguments of the kernel."""
    read_only_root: bool = Field(default=False, examples=[True])
    """Whether the root is never written to: changes are kept in memory (half of it at most) and lost at power-off."""
    hostname: Hostname = Field(default="sandbox", examples=["builder"])
    """Name of the machine."""
    network: Literal["dhcp", "none"] = Field(default="dhcp", examples=["none"])
    """How eth0 is set up; nothing ever waits for it."""
    services: Annotated[Mapping[Runlevel, tuple[Name, ...]], AfterValidator(frozen)] = Field(
        default_factory=dict, examples=[{"boot": ["networking", "syslog"], "default": ["app"]}]
    )
    """OpenRC's services of the disk image, by runlevel; a container has none."""
    users: tuple[UserSpec, ...] = Field(
        default=(), examples=[[{"name": "agent", "uid": 1000, "home": "/home/agent", "owns": ["/workspace"]}]]
    )
    """Accounts besides those of the packages."""
    timezone: Annotated[str, matching(TIMEZONE, "is not the name of a time zone such as Europe/Berlin")] | None = Field(
        default=None, examples=["Europe/Berlin", "UTC"]
    )
    """Time zone of the system: a name of the tz database, whose package tzdata is added. Without it, UTC."""
    overlay: Overlay | None = Field(default=None, examples=["files", {"path": "files", "modes": "git"}])
    """Folder that is copied over the root filesystem, by its path or as a record. Everything in it belongs to root."""
    overlays: tuple[Overlay, ...] = Field(default=(), examples=[["common", {"path": "files", "modes": "git"}]])
    """Several such folders, in this order: files of later ones replace those of earlier ones. This, or ``overlay``."""
    files: tuple[FileSpec, ...] = Field(
        default=(),
        examples=[[{"path": "/etc/app/token", "source": "token.txt", "owner": "agent", "mode": "0600"}]],
    )
    """Single files with an owner, a group and a mode. They come after packages, users and overlays."""
    agent: AgentSpec | None = Field(
        default=None, examples=[{"payload": "agents/mine", "command": ["/usr/bin/node", "/opt/agent/index.js"]}]
    )
    """The program that agentd gives prompts to. Without it, the machine's environment decides."""
    agent_runner: Path | None = Field(default=None, examples=["payload"])
    """Folder that replaces /opt/agent-runner. Without it, that of the overlay stays."""
    agent_runner_build: Literal["auto", "0", "1"] = Field(default="auto", examples=["0"])
    """``0`` takes the folder as it is; ``auto`` installs its npm packages and runs none of its code; ``1`` also runs
    ``npm run build``, which is code of the payload, on the host, with the rights of the user who builds."""
    npm_scripts: bool = Field(default=False, examples=[True])
    """Whether npm may run the lifecycle scripts of the payload's packages, on the host."""
    npm_git: bool = Field(default=False, examples=[True])
    """Whether npm may take packages from git repositories, for which it runs git on the host."""
    payload_binaries: Literal["warn", "strict", "prune"] = Field(default="warn", examples=["prune"])
    """What happens to programs and native modules of the payload that cannot run in the image: ``warn`` prints a
    warning, ``strict`` refuses to build, ``prune`` leaves out those for other platforms. The manifest lists all."""
    skip_scripts: tuple[Name, ...] = Field(default=(), examples=[["dbus"]])
    """Packages whose scripts and triggers are not run, because the recipe's author knows that they need not be."""
    architectures: Annotated[
        Mapping[str, Annotated[Architecture, BeforeValidator(_module_fields)]], AfterValidator(frozen)
    ] = Field(
        examples=[
            {
                "amd64": {
                    "alpine": "x86_64",
                    "partitions": [{"kind": "esp", "size": "16M"}, {"kind": "root"}],
                    "grub_platforms": ["x86_64-efi"],
                    "consoles": ["ttyS0"],
                }
            }
        ]
    )
    """What differs between architectures, by imgkit's names of them (``amd64``, ``arm64``). A value may also be a
    module with these names: ``from .arch import amd64``."""

    def architecture(self, name: str) -> Architecture:
        """Return the facts of the architecture ``name``, such as "amd64".

        Raises:
            UsageError: the recipe has no such architecture.
        """
        if name not in self.architectures:
            raise UsageError(
                f"{name}: no such architecture in this recipe", hint=f"it has {', '.join(sorted(self.architectures))}"
            )
        return self.architectures[name]

    def wanted(self, arch: str, shape: Shape) -> tuple[str, ...]:
        """Return the packages that the recipe names for a root filesystem of this shape.

        ``timezone`` adds tzdata, but not to an image that gets no packages: then the base must have the time zones.
        """
        further = self.container.packages if shape == "container" else self.disk_packages
        own = () if shape == "container" else self.architecture(arch).packages
        named = (*self.packages, *further, *own)
        zones = self.timezone is not None and TZDATA not in named and (self.base is None or named)
        return (*named, TZDATA) if zones else named

    @property
    def overlay_folders(self) -> tuple[OverlaySpec, ...]:
        """The folders of ``overlay`` or ``overlays``, in the order in which they are copied."""
        return (*(() if self.overlay is None else (self.overlay,)), *self.overlays)

    @property
    def further_repositories(self) -> tuple[RepositorySpec, ...]:
        """The repositories besides those of the branch."""
        return tuple(one for one in self.repositories if isinstance(one, RepositorySpec))
