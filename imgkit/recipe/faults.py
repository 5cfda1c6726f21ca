"""Faults of a recipe: contradictions between its fields, and a sentence for each fault that pydantic finds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from imgkit.errors import UsageError
from imgkit.host.suggest import did_you_mean
from imgkit.recipe import sourcefaults
from imgkit.recipe.basereference import PREFIX, BaseReference
from imgkit.recipe.mirroraddress import mirror_fault
from imgkit.recipe.record import RecipeRecord, records_in
from imgkit.recipe.repositoryspec import NAME_FORM, RECORD_FORM
from imgkit.recipe.spec import Architecture, Recipe, parse_size

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

EXTENDS = "extends"
"""The field that names the recipe to build on (:mod:`imgkit.recipe.extending`); it is gone once a recipe is loaded."""
REFERENCE = "docs/reference/recipe.md"
"""The page that has all fields."""
_KEY = "[key]"  # pydantic's mark in the place of a fault of a key itself
_IN_SHORT: Mapping[str, str] = {"missing": "must be given", "too_short": "must not be empty"}
_MOST_LISTED = 15  # fields of a record that a message lists; there are more in a recipe
_MINIMUM_ESP = 9 << 20  # FAT16 has at least 4,085 clusters (Microsoft's FAT specification), here of 2 KiB


def sentences(errors: Sequence[ErrorDetails]) -> list[str]:
    """Return the faults that pydantic found, each as ``field: what is wrong``.

    A list whose entries are wrong is too short for pydantic as well, which does not count them. That is left out.
    """
    faulty = {error["loc"][:length] for error in errors for length in range(len(error["loc"]))}
    return [_sentence(error) for error in errors if error["type"] != "too_short" or error["loc"] not in faulty]


def _sentence(error: ErrorDetails) -> str:
    location = tuple(part for part in error["loc"] if part not in (NAME_FORM, RECORD_FORM, _KEY))
    place, value = ".".join(str(part) for part in location), error["input"]
    if error["type"] == "extra_forbidden":
        return f"{place}: no such field ({_known(location)})"
    if error["type"] in _IN_SHORT:
        return f"{place}: {_IN_SHORT[error['type']]}"
    message = error["msg"].removeprefix("Value error, ").replace("a valid tuple", "a list, such as [a, b]")
    is_short = isinstance(value, (str, int, float, bool, type(None))) and "@" not in str(value)  # it may be a password
    shown = f" (it is {value!r})" if is_short and repr(value) not in message else ""
    return f"{place}: {message[:1].lower()}{message[1:]}{shown}"


def _known(location: tuple[int | str, ...]) -> str:
    """Return the hint for a field that does not exist: the most similar one, or where all of them are."""
    known = [*_model(location).model_fields, *([EXTENDS] if len(location) == 1 else [])]
    hint = did_you_mean(str(location[-1]), known)
    if hint is None:
        hint = f"there are {', '.join(known)}" if len(known) <= _MOST_LISTED else f"{REFERENCE} has all fields"
    return hint


def _model(location: tuple[int | str, ...]) -> type[RecipeRecord]:
    """Return the record that a field at this place of a recipe belongs to."""
    record: type[RecipeRecord] = Recipe
    for part in location[:-1]:
        if isinstance(part, str) and part in record.model_fields:
            record = next(records_in(record.model_fields[part].annotation), record)
    return record


def contradictions(recipe: Recipe) -> Iterator[str]:
    """Yield contradictions between fields, and files that are missing. Each line begins with its field."""
    yield from sourcefaults.missing(recipe)
    yield from sourcefaults.file_faults(recipe)
    yield from sourcefaults.repository_faults(recipe)
    yield from _base_faults(recipe.base)
    uids = [user.uid for user in recipe.users]
    if len(set(uids)) < len(uids):
        yield "users: two users have the same uid"
    if fault := mirror_fault(recipe.mirror):
        yield f"mirror: {fault}"
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
