"""Faults of a recipe: contradictions between its fields, and a sentence for each fault that pydantic finds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from imgkit.errors import UsageError
from imgkit.host.suggest import did_you_mean
from imgkit.recipe.agentspec import AgentSpec
from imgkit.recipe.basereference import PREFIX, BaseReference
from imgkit.recipe.containerspec import ContainerSpec
from imgkit.recipe.record import RecipeRecord
from imgkit.recipe.spec import Architecture, Recipe, parse_size

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

PATHS = ("release_key", "overlay", "agent_runner")
"""Fields that name a file or folder, relative to the recipe."""

_MINIMUM_ESP = 9 << 20  # FAT16 has at least 4,085 clusters (Microsoft's FAT specification), here of 2 KiB


def sentence(error: ErrorDetails) -> str:
    """Return one fault that pydantic found, as ``field: what is wrong``."""
    location, value = error["loc"], error["input"]
    place = ".".join(str(part) for part in location)
    if error["type"] == "extra_forbidden":
        hint = did_you_mean(str(location[-1]), _model(location).model_fields)
        return f"{place}: no such field" + (f" ({hint})" if hint else "")
    if error["type"] == "missing":
        return f"{place}: must be given"
    message = error["msg"].removeprefix("Value error, ").replace("a valid tuple", "a list, such as [a, b]")
    shown = f" (it is {value!r})" if isinstance(value, (str, int, float, bool, type(None))) else ""
    return f"{place}: {message[:1].lower()}{message[1:]}" + ("" if repr(value) in message else shown)


def _model(location: tuple[int | str, ...]) -> type[RecipeRecord]:
    """Return the record that a field at this place of a recipe belongs to."""
    if len(location) == 3 and location[0] == "architectures":
        return Architecture
    records: dict[int | str, type[RecipeRecord]] = {"container": ContainerSpec, "agent": AgentSpec}
    return records.get(location[0], Recipe) if len(location) == 2 else Recipe


def contradictions(recipe: Recipe) -> Iterator[str]:
    """Yield contradictions between fields, and files that are missing. Each line begins with its field."""
    for field in PATHS:
        path = getattr(recipe, field)
        if path is not None and not (path.is_file() if field == "release_key" else path.is_dir()):
            yield f"{field}: {path} does not exist"
    if recipe.agent is not None and recipe.agent.payload is not None and not recipe.agent.payload.is_dir():
        yield f"agent.payload: {recipe.agent.payload} does not exist"
    yield from _base_faults(recipe.base)
    uids = [user.uid for user in recipe.users]
    if len(set(uids)) < len(uids):
        yield "users: two users have the same uid"
    if not recipe.mirror.startswith(("http://", "https://")):
        yield f"mirror: {recipe.mirror!r} is not an http(s) URL"
    if not recipe.architectures:
        yield "architectures: at least one is needed"
    for name, architecture in recipe.architectures.items():
        yield from (f"architectures.{name}.partitions: {fault}" for fault in _partition_faults(architecture))


def _base_faults(base: str | None) -> Iterator[str]:
    try:
        BaseReference.parse(base or f"{PREFIX}none")
    except UsageError as fault:
        yield f"base: {fault}"


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
        if partition.kind == "esp" and partition.size and parse_size(partition.size) < _MINIMUM_ESP:
            yield f"an esp of {partition.size} is too small: its FAT16 needs 9M"
    if "i386-pc" in architecture.grub_platforms and "bios-boot" not in kinds:
        yield "GRUB for i386-pc needs a bios-boot partition"
    if any(platform.endswith("-efi") for platform in architecture.grub_platforms) and "esp" not in kinds:
        yield "GRUB for EFI needs an esp partition"
