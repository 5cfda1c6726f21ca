"""The ways in which writing a disk and reading an image fail, one class each, so that callers can catch them."""

from __future__ import annotations

from pathlib import Path

from imgkit.errors import HostError, InputError, RecipeError
from imgkit.host.room import MAKE_ROOM, free_bytes, no_room, show_room

MAYBE_DAMAGED = "the image may be damaged"
"""The hint for an image that cannot be read."""


class EngineStartError(HostError):
    """The engine cannot work on this host: its bindings, a kernel or a program is missing, or its start failed."""


class NoSpaceError(HostError):
    """The disk of the host is full, or has less space than the work needs."""


class ScriptError(RecipeError):
    """A package's script that ran in the image ended with a failure."""


class EndlessScriptError(InputError):
    """A package's script that ran in the image did not end, or stopped what it ran in."""


class UnreadableImageError(InputError):
    """The image is damaged, or is not made of what imgkit can read."""


class LimitError(InputError):
    """Reading the image took more bytes or more time than the limits allow (:class:`imgkit.engines.limits.Limits`)."""


def no_space(target: Path, needed: int | None = None) -> NoSpaceError:
    """Return the error for a file that could not be written because the disk of the host is full.

    Args:
        needed: how many bytes the file may need; None if that is not known.
    """
    needs = "" if needed is None else f"; the image needs up to {show_room(needed)}"
    message = f"{target}: no space left on device ({show_room(free_bytes(target.parent))} free{needs})"
    return NoSpaceError(message, hint=MAKE_ROOM)


def write_error(target: Path, cause: OSError, needed: int | None = None) -> HostError:
    """Return the error for a file that could not be written; ``needed`` is that of :func:`no_space`."""
    if no_room(cause):
        return no_space(target, needed)
    return HostError(f"{target}: cannot be written: {cause.strerror}")
