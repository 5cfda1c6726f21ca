"""Recipes: Python modules whose public names are the fields of one frozen :class:`Recipe`.

A recipe states facts and nothing else: ``size = "4G"``, ``packages = ["bash", …]``. Names that start with an
underscore, modules, functions and classes are the recipe's own business; every other name must be a field. The facts
of an architecture are the names of a module of its own (``from .arch import amd64``;
``architectures = {"amd64": amd64}``), found next to the recipe. Loading changes nothing outside: nothing stays in
``sys.modules``, no ``.pyc`` is written, and all that is wrong is reported at once.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, MappingProxyType, ModuleType
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from imgkit.errors import RecipeError, UsageError

K = TypeVar("K")
V = TypeVar("V")

OFFICIAL_MIRROR = "https://dl-cdn.alpinelinux.org/alpine"

_SIZE = re.compile(r"([0-9]{1,18})([KMGT]?)(?:I?B)?", re.ASCII | re.IGNORECASE)
_SMALLEST_ESP = 9 << 20  # FAT16 has at least 4,085 clusters (Microsoft's FAT specification), here of 2 KiB
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(text: str) -> int:
    """Bytes that ``4G``, ``512M`` or ``1073741824`` stand for (powers of 1024; ``GiB`` and ``GB`` mean ``G``).

    Raises:
        ValueError: it is nothing of the kind, or zero.
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


def _frozen(mapping: Mapping[K, V]) -> Mapping[K, V]:
    return MappingProxyType(dict(mapping))


def _module_fields(value: object) -> object:
    """A module stands for the mapping of its public names."""
    return fields_of(value) if isinstance(value, ModuleType) else value


Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+-]*$")]
Hostname = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
Size = Annotated[str, AfterValidator(_checked_size)]
ImageSize = Annotated[str, AfterValidator(_image_size)]
Runlevel = Literal["sysinit", "boot", "default", "nonetwork", "shutdown"]
PartitionKind = Literal["bios-boot", "esp", "root"]


class _Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class PartitionSpec(_Spec):
    """One partition. ``size`` may be left out for the root, which takes what is left and comes last on the disk.

    Numbers follow from the kind, because hosts rely on them: the ESP is 1, the root 2, the BIOS boot partition 14.
    """

    kind: PartitionKind
    size: Size | None = None


class UserSpec(_Spec):
    """An account that the image has beyond those of its packages; nobody can log into it with a password."""

    name: Name
    uid: int = Field(ge=1, le=65532)
    home: str = "/"
    shell: str = "/bin/sh"
    groups: tuple[Name, ...] = ()
    owns: tuple[str, ...] = ()
    """Directories that are made and given to this user."""


class Architecture(_Spec):
    """What differs from one architecture to the next."""

    alpine: Literal["x86_64", "aarch64"]
    """Alpine's name of it: the directory on the mirror."""
    packages: tuple[str, ...] = ()
    partitions: tuple[PartitionSpec, ...]
    grub_platforms: tuple[Literal["i386-pc", "x86_64-efi", "arm64-efi"], ...]
    consoles: tuple[str, ...]
    """Kernel ``console=`` arguments; the last one becomes /dev/console."""
    kernel_arguments: tuple[str, ...] = ()
    """In front of the recipe's own."""


class Recipe(_Spec):
    """Everything that decides what an image is. Paths are absolute once loaded."""

    name: Name = "linux"
    """Images are called ``<name>-<arch>.qcow2``."""
    mirror: str = OFFICIAL_MIRROR
    """Where the build downloads from."""
    guest_mirror: str = OFFICIAL_MIRROR
    """Where the image's own apk downloads from."""
    branch: Annotated[str, StringConstraints(pattern=r"^(v[0-9]+\.[0-9]+|edge|latest-stable)$")]
    """Directory of the mirror. ``latest-stable`` is the newest release's; the image itself keeps to that release."""
    version: Annotated[str, StringConstraints(pattern=r"^[0-9]+\.[0-9]+\.[0-9]+(_[a-z0-9]+)?$")] | None = None
    """Point release of the minirootfs; None takes the newest that the mirror lists."""
    repositories: tuple[Annotated[str, StringConstraints(pattern=r"^[a-z0-9/_-]+$")], ...] = ("main", "community")
    release_key: Path | None = None
    """OpenPGP certificate that signs the minirootfs; None is the one of Alpine's releases."""
    size: ImageSize = "4G"
    compression: Literal["zstd", "zlib"] = "zstd"
    """Of the qcow2's clusters; QEMU before 5.1 needs zlib."""
    packages: tuple[str, ...]
    kernel: Name = "virt"
    """Kernel flavour: the package is ``linux-<kernel>``."""
    initramfs_features: tuple[Name, ...] = ("base", "ext4", "virtio")
    kernel_arguments: tuple[str, ...] = ()
    read_only_root: bool = False
    """The root is never written to: what changes is kept in memory (half of it at most) and gone after the boot."""
    hostname: Hostname = "sandbox"
    network: Literal["dhcp", "none"] = "dhcp"
    """How eth0 is set up; nothing ever waits for it."""
    services: Annotated[Mapping[Runlevel, tuple[Name, ...]], AfterValidator(_frozen)] = Field(default_factory=dict)
    users: tuple[UserSpec, ...] = ()
    overlay: Path | None = None
    """Folder copied over the root filesystem as it is."""
    agent_runner: Path | None = None
    """Folder that replaces /opt/agent-runner; None keeps the overlay's."""
    agent_runner_build: Literal["auto", "0", "1"] = "auto"
    """``0`` takes the folder as it is; ``auto`` installs its npm packages and runs none of its code; ``1`` also runs
    ``npm run build``: code of the payload, on the host, with the rights of whoever builds."""
    npm_scripts: bool = False
    """Whether npm may run the lifecycle scripts of the payload's packages, on the host."""
    npm_git: bool = False
    """Whether npm may take packages from git repositories, for which it runs git on the host."""
    payload_binaries: Literal["warn", "strict", "prune"] = "warn"
    """What is done about programs and native modules of the payload that cannot run in the image: ``warn`` says so,
    ``strict`` refuses to build, ``prune`` leaves out those for other platforms. The manifest has all of them."""
    skip_scripts: tuple[Name, ...] = ()
    """Packages whose scripts and triggers are not run, because the recipe's author knows that they need not be."""
    architectures: Annotated[
        Mapping[str, Annotated[Architecture, BeforeValidator(_module_fields)]], AfterValidator(_frozen)
    ]

    def architecture(self, name: str) -> Architecture:
        """The facts of architecture ``name``.

        Raises:
            UsageError: the recipe has no such architecture.
        """
        if name not in self.architectures:
            raise UsageError(
                f"{name}: no such architecture in this recipe", hint=f"it has {', '.join(sorted(self.architectures))}"
            )
        return self.architectures[name]


def fields_of(module: ModuleType) -> dict[str, Any]:
    """The public names of a module that are values: what it states."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not isinstance(value, ModuleType)
        and not callable(value)
        and name != "annotations"
    }


def load(
    path: Path,
    overrides: Mapping[str, object] = MappingProxyType({}),
    origins: Mapping[str, str] = MappingProxyType({}),
) -> Recipe:
    """Load and check a recipe.

    Args:
        path: the recipe's file.
        overrides: fields that the command line or the environment set; they replace the recipe's.
        origins: where overrides come from, for messages: field → ``--mirror``, ``IMAGE_SIZE``.

    Raises:
        RecipeError: it is missing, not Python, raises, or states something wrong; every fault is in ``problems``.
        UsageError: nothing is wrong but overrides.
    """
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [other.name for other in path.parent.glob("*.py")], n=1)
        hint = f"did you mean {path.parent / near[0]}?" if near else "give the path of a recipe, e.g. recipes/alpine.py"
        raise RecipeError(f"{path}: no such recipe", hint=hint)
    stated = {**fields_of(_execute(path)), **overrides}
    for name in ("release_key", "overlay", "agent_runner"):
        if isinstance(stated.get(name), (str, Path)) and stated[name] != "":
            stated[name] = (path.parent / stated[name]).resolve()
    try:
        recipe = Recipe.model_validate(stated)
    except ValidationError as invalid:
        problems = [_sentence(error) for error in invalid.errors()]
        raise _faults(path, problems, origins) from invalid
    problems = list(_contradictions(recipe))
    if problems:
        raise _faults(path, problems, origins)
    return recipe


def parse_setting(text: str) -> tuple[str, object]:
    """``NAME=VALUE`` of the command line as a field's name and value; all but text fields are read as YAML.

    Raises:
        UsageError: it has no ``=``, or no recipe has such a field.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--set {text}: no '=' in it", hint="write --set size=8G")
    if name not in Recipe.model_fields:
        known = f"the fields are {', '.join(Recipe.model_fields)}"
        raise UsageError(f"--set {name}: recipes have no such field", hint=_near(name, Recipe) or known)
    annotation = Recipe.model_fields[name].annotation
    if isinstance(annotation, type) and issubclass(annotation, str):
        return name, value
    try:
        parsed = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError) as cause:  # also numbers that Python does not convert
        raise UsageError(f"--set {text[:80]}: not a value in YAML", hint="lists are written [a, b]") from cause
    return name, value if isinstance(parsed, (int, float)) and not isinstance(parsed, bool) else parsed


def _faults(path: Path, problems: list[str], origins: Mapping[str, str]) -> RecipeError | UsageError:
    """The error for faults, each of which begins with its field. What the recipe does not state is not its fault."""
    fields = [re.split(r"[.:]", problem)[0] for problem in problems]
    if all(field in origins for field in fields):
        return UsageError(
            "; ".join(
                origins[field] + problem.removeprefix(field) for field, problem in zip(fields, problems, strict=True)
            )
        )
    if len(problems) == 1:
        return RecipeError(f"{path}: {problems[0]}", problems=problems)
    return RecipeError(f"{path}: {len(problems)} faults: " + "; ".join(problems), problems=problems)


def _execute(path: Path) -> ModuleType:
    """Run the recipe as the module of a package whose folder is the recipe's own, so that relative imports work."""
    package = f"_imgkit_recipe_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(f"{package}.{path.stem}", path)
    if spec is None:
        raise RecipeError(f"{path}: not a Python file", hint="a recipe's name ends in .py")
    module = importlib.util.module_from_spec(spec)
    parent = ModuleType(package)
    parent.__path__ = [str(path.resolve().parent)]
    with _isolated(package):
        sys.modules[package] = parent
        sys.modules[spec.name] = module
        try:
            exec(_compile(path), vars(module))  # noqa: S102 - a recipe is a program, run because its user asked for it
        except (KeyboardInterrupt, MemoryError, RecipeError):
            raise
        except SyntaxError as cause:
            raise RecipeError(f"{cause.filename or path}:{cause.lineno}: not Python: {cause.msg}") from cause
        except BaseException as cause:  # whatever a recipe raises, SystemExit included, is the recipe's fault
            where = traceback.extract_tb(cause.__traceback__)[-1]
            raise RecipeError(f"{where.filename}:{where.lineno}: {type(cause).__name__}: {cause}") from cause
    return module


def _compile(path: Path) -> CodeType:
    try:
        return compile(path.read_bytes(), path, "exec")
    except ValueError as cause:  # bytes that are no UTF-8, or null ones
        raise RecipeError(f"{path}: not Python: {cause}") from cause
    except OSError as cause:
        raise RecipeError(f"{path}: {cause.strerror}") from cause


@contextmanager
def _isolated(package: str) -> Iterator[None]:
    """Leave no trace of the modules below ``package``, in memory or on disk."""
    without = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = without
        for name in [name for name in sys.modules if name == package or name.startswith(package + ".")]:
            del sys.modules[name]


def _near(name: str, model: type[BaseModel]) -> str | None:
    near = difflib.get_close_matches(name, model.model_fields, n=1)
    return f"did you mean {near[0]}?" if near else None


def _sentence(error: Any) -> str:
    """One fault that pydantic found, as ``field: what is wrong``."""
    place = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        model = Architecture if len(error["loc"]) == 3 and error["loc"][0] == "architectures" else Recipe
        near = _near(str(error["loc"][-1]), model)
        return f"{place}: no such field" + (f" ({near})" if near else "")
    if error["type"] == "missing":
        return f"{place}: must be given"
    message = str(error["msg"]).removeprefix("Value error, ").replace("a valid tuple", "a list, such as [a, b]")
    given = f" (it is {error['input']!r})" if isinstance(error["input"], (str, int, float, bool, type(None))) else ""
    return f"{place}: {message[:1].lower()}{message[1:]}" + ("" if repr(error["input"]) in message else given)


def _contradictions(recipe: Recipe) -> Iterator[str]:
    """Faults that only show when several fields are seen together, and files that are not there."""
    for field in ("release_key", "overlay", "agent_runner"):
        path = getattr(recipe, field)
        if path is not None and not (path.is_file() if field == "release_key" else path.is_dir()):
            yield f"{field}: {path} is not there"
    uids = [user.uid for user in recipe.users]
    if len(set(uids)) < len(uids):
        yield "users: two users have the same uid"
    if not recipe.mirror.startswith(("http://", "https://")):
        yield f"mirror: {recipe.mirror!r} is no http(s) URL"
    if not recipe.architectures:
        yield "architectures: there is none"
    for name, architecture in recipe.architectures.items():
        yield from (f"architectures.{name}.partitions: {fault}" for fault in _partition_faults(architecture))


def _partition_faults(architecture: Architecture) -> Iterator[str]:
    partitions = architecture.partitions
    kinds = [partition.kind for partition in partitions]
    if len(set(kinds)) < len(kinds):
        yield "two partitions are of the same kind"
    if "root" not in kinds or kinds[-1] != "root":
        yield "there must be a root partition, in the last place"
    for partition in partitions:
        if partition.size is None and partition.kind != "root":
            yield f"the {partition.kind} partition needs a size"
        if partition.kind == "esp" and partition.size and parse_size(partition.size) < _SMALLEST_ESP:
            yield f"an esp of {partition.size} is too small: its FAT16 needs 9M"
    if "i386-pc" in architecture.grub_platforms and "bios-boot" not in kinds:
        yield "GRUB for i386-pc needs a bios-boot partition"
    if any(platform.endswith("-efi") for platform in architecture.grub_platforms) and "esp" not in kinds:
        yield "GRUB for EFI needs an esp partition"
