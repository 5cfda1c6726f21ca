"""The fields ``overlay``, ``overlays`` and ``files`` of a recipe: what it puts into the image from the host."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from imgkit.recipe.record import RecipeRecord
from imgkit.tree import TreeError, check_path

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*\$?")
_MOST_ID = (1 << 32) - 2  # the last number means "unchanged" to chown(2)
_OCTAL = re.compile(r"(?:0o)?([0-7]{1,6})")
_SPECIAL = "set-user-id, set-group-id and sticky bits are not given to the files of a recipe"
# 0o640 and 640 look alike, and some decimal numbers are also possible modes: 400 is 0o620. These are refused.
_USUAL_MODES = frozenset({400, 440, 444, 500, 550, 555, 600, 640, 644, 660, 664, 666, 700, 750, 755, 770, 775, 777})


def _image_path(text: str) -> str:
    """Return an absolute path of the image that has no ``.``, ``..`` or empty parts."""
    if not text.startswith("/") or text == "/":
        raise ValueError(f"{text!r} is not the absolute path of a file in the image")
    try:
        check_path(text[1:])
    except TreeError as cause:
        raise ValueError(str(cause)) from cause
    return text


def _account(value: object) -> object:
    """Return a name, or a number as an int."""
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        value = int(value)
    number = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_ID
    if not number and not (isinstance(value, str) and _NAME.fullmatch(value)):
        raise ValueError("is neither the name nor the number of an account")
    return value


def _mode(value: object) -> object:
    """Return permission bits. Text is octal, as for chmod(1); a number is what Python reads: ``0o640``."""
    match = _OCTAL.fullmatch(value) if isinstance(value, str) else None
    if match is not None:
        mode = int(match[1], 8)
    elif isinstance(value, int) and not isinstance(value, bool):
        if value in _USUAL_MODES:
            raise ValueError(f"{value} is 0o{value:o} in octal, which is hardly meant: write '0{value}' or 0o{value}")
        mode = value
    else:
        raise ValueError("is not a mode such as '0640' or 0o640")
    if not 0 <= mode <= 0o7777:
        raise ValueError("is not a mode such as '0640' or 0o640")
    if mode > 0o777:
        raise ValueError(_SPECIAL)
    return mode


def folder_alone(value: object) -> object:
    """Return the fields of an overlay that is given by its path alone."""
    if value == "":
        raise ValueError("is not the path of a folder")
    return {"path": value} if isinstance(value, (str, Path)) else value


ImagePath = Annotated[str, BeforeValidator(lambda value: _image_path(value) if isinstance(value, str) else value)]
Account = Annotated[str | int, BeforeValidator(_account)]
Mode = Annotated[int, BeforeValidator(_mode)]


class OverlaySpec(RecipeRecord):
    """A folder that is copied over the root filesystem. A path alone stands for one with ``modes = "host"``."""

    path: Path = Field(examples=["files"])
    """The folder, relative to the recipe."""
    modes: Literal["host", "git"] = Field(default="host", examples=["git"])
    """Permission bits of what is copied: ``host`` keeps those that files and folders have; ``git`` gives what git
    keeps, 0755 to folders and to files that their owner may execute, 0644 to others, so that every clone of a
    repository makes the same image, whatever the umask. Set-user-id, set-group-id and sticky bits are never kept."""


class FileSpec(RecipeRecord):
    """One file of the image. Missing folders on its way are made for root with mode 0755."""

    path: ImagePath = Field(examples=["/etc/app/token"])
    """Where it is in the image: an absolute path. Links to folders on its way are followed inside the image; a link in
    its own place is replaced."""
    source: Path | None = Field(default=None, examples=["token.txt"])
    """The file of the host that has its contents, relative to the recipe. Either this or ``content`` must be given."""
    content: str | bytes | None = Field(default=None, examples=["interval = 60\n"])
    """Its contents; text is written as UTF-8."""
    owner: Account = Field(default="root", examples=["agent", 1000])
    """The account that it belongs to: one of the recipe's ``users`` or of a package, or a number."""
    group: Account | None = Field(default=None, examples=["www-data", 82])
    """Its group. Without it, the first group of the owner."""
    mode: Mode | None = Field(default=None, examples=["0640", 0o600])
    """Its permission bits in octal: ``"0640"``, or ``0o640`` in Python. Without it, 0755 if its source can be executed,
    else 0644."""

    @model_validator(mode="after")
    def _one_origin(self) -> FileSpec:
        if (self.source is None) == (self.content is None):
            raise ValueError("it must have either source or content")
        return self
