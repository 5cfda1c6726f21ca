"""Build ids: one text for everything that decides an image, which the image has in ``/etc/imgkit-release``.

Two images of one build id are alike: the id is a hash over every path of the root filesystem, the packages, the layout
of the disk, the boot loader, and every field of the recipe that is not named below with the reason why it decides
nothing. So a new field of recipes counts unless somebody has thought about it. The bytes of a disk depend on one thing
more, the version of the appliance's ``mke2fs``; the manifest has the hashes of those bytes::

    facts = disk_facts(recipe, arch, plan, epoch, layout, boot, composition.scripts.pending)
    identity = identify(tree, recipe.name, arch, facts, epoch=epoch)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

from pydantic import BaseModel

from imgkit import __version__
from imgkit.disk.grub import BootFiles
from imgkit.disk.layout import Layout
from imgkit.engines.interface import Script
from imgkit.planning.plan import Plan
from imgkit.recipe import Recipe, Shape
from imgkit.rootfs import digest, systemfiles
from imgkit.rootfs.digest import NodeRecord
from imgkit.rootfs.install import installed_in
from imgkit.rootfs.owners import owners_of
from imgkit.tree import Tree

Facts: TypeAlias = Mapping[str, Any]
"""Values for JSON by name."""

_LENGTH = 16  # hexadecimal digits
_LONGEST = 200  # characters of a text that is stated as it is; of a longer one the hash is

_OF_DISKS = (
    "disk_packages",
    "hostname",
    "initramfs_features",
    "kernel",
    "kernel_arguments",
    "network",
    "read_only_root",
    "services",
    "size",
)
UNDECISIVE: Mapping[Shape, Mapping[str, str]] = MappingProxyType(
    {
        "disk": {"container": "only container images have it"},
        "container": dict.fromkeys(_OF_DISKS, "only disks have it"),
    }
)
"""Fields of a recipe that do not decide an image of one shape → the reason."""
NEVER_DECISIVE: Mapping[str, str] = MappingProxyType(
    {
        "architectures": "only the one that is built counts, and is added under its own name",
        "base": "the plan has the digest of the image, which may lie elsewhere on another computer",
        "compression": "the disk is the same, however its file is compressed",
        "files": "they are in the root filesystem, with owners and modes",
        "format": "the disk is the same in a file of any format",
        "mirror": "the plan has the hashes of all files, wherever they come from",
        "outputs": "each output is an image of its own",
        "overlay": "its files are in the root filesystem, with their modes",
        "overlays": "their files are in the root filesystem, with their modes",
        "repositories": "the plan has the hashes of their packages, and the root filesystem has the list of apk",
        "release_key": "it says who vouches for the minirootfs, whose hash is in the plan",
        "version": "the plan has the hash of the minirootfs that it selects",
    }
)
"""Fields of a recipe that decide no image → the reason. Paths decide nothing either: what lies there does."""


@dataclass(frozen=True)
class ImageIdentity:
    """What an image is, for its manifest.

    Attributes:
        build_id: equal for equal images.
        facts: what it was computed from, besides the files.
        records: a record for every path of the root filesystem (:func:`imgkit.rootfs.digest.records`).
        owners: path → name of the package that the file belongs to.
    """

    build_id: str
    facts: Facts
    records: Mapping[str, NodeRecord]
    owners: Mapping[str, str] = field(default_factory=dict)


def disk_facts(
    recipe: Recipe,
    arch: str,
    plan: Plan,
    epoch: int,
    layout: Layout,
    boot: BootFiles,
    pending: Sequence[Script] = (),
) -> Facts:
    """Return the facts that decide a disk, besides the files of its root filesystem.

    Args:
        arch: imgkit's name of the architecture, such as ``amd64``.
        epoch: the time of everything that the build generates, in seconds since 1970.
        pending: the scripts that run in the appliance when the files have been hashed.
    """
    return {
        **_common(recipe, arch, plan, epoch, "disk"),
        "layout": asdict(layout),
        "boot": {
            "code": hashlib.sha256(boot.boot_code).hexdigest(),
            "core": hashlib.sha256(boot.core).hexdigest(),
            "esp": {name: hashlib.sha256(data).hexdigest() for name, data in sorted(boot.esp.items())},
        },
        "pending": [[script.package, script.kind, script.text, *script.args] for script in pending],
    }


def container_facts(recipe: Recipe, arch: str, plan: Plan, epoch: int) -> Facts:
    """Return the facts that decide a container image, besides the files of its root filesystem.

    Labels that name the commit of the recipe are not among them: a commit that changes nothing in the image would
    change its uppermost layer. The digest of the image covers them.

    Args:
        arch: imgkit's name of the architecture, such as ``amd64``.
        epoch: the time of everything that the build generates, in seconds since 1970.
    """
    return _common(recipe, arch, plan, epoch, "container")


def _common(recipe: Recipe, arch: str, plan: Plan, epoch: int, shape: Shape) -> dict[str, Any]:
    return {
        "imgkit": __version__,  # how filesystems and configurations are written
        "shape": shape,
        "arch": arch,
        "plan": plan.digest,
        "epoch": epoch,
        "recipe": recipe_facts(recipe, arch, shape),
    }


def recipe_facts(recipe: Recipe, arch: str, shape: Shape) -> Facts:
    """Return the fields of a recipe that decide an image of this shape, with the facts of its architecture.

    Paths are None, and of long texts the SHA-256 is there.
    """
    left_out = NEVER_DECISIVE.keys() | UNDECISIVE[shape].keys()
    facts = {name: _plain(getattr(recipe, name)) for name in type(recipe).model_fields if name not in left_out}
    return {**facts, "architecture": _plain(recipe.architecture(arch))}


def _plain(value: object) -> object:
    """Return a value of a recipe as one for JSON.

    Raises:
        TypeError: the value is of a type that nobody has considered here.
    """
    if value is None or isinstance(value, Path):
        return None
    if isinstance(value, str):
        return value if len(value) <= _LONGEST else "sha256:" + hashlib.sha256(value.encode()).hexdigest()
    if isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, BaseModel):
        return {name: _plain(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in sorted(value.items())}
    if isinstance(value, (tuple, list)):
        return [_plain(part) for part in value]
    raise TypeError(f"{type(value).__name__} in a recipe")


def identify(tree: Tree, image: str, arch: str, facts: Facts, *, epoch: int) -> ImageIdentity:
    """Compute the build id of a finished Tree, and write it into the release file.

    Args:
        image: the recipe's name of the image.
        facts: from :func:`disk_facts` or :func:`container_facts`.
        epoch: seconds since 1970 for the time of the release file.
    """
    records = digest.records(tree)
    text = json.dumps(facts, sort_keys=True) + digest.fingerprint(records)
    build_id = hashlib.sha256(text.encode()).hexdigest()[:_LENGTH]
    systemfiles.write_release(tree, image=image, arch=arch, build_id=build_id, epoch=epoch)
    for path in ("etc", systemfiles.RELEASE):
        records["/" + path] = digest.record(tree, tree[path])
    return ImageIdentity(build_id, facts, records, owners_of(installed_in(tree), tree.resolve))
