"""The ways in which writing a disk and reading an image fail, one class each, so that callers can catch them."""

from __future__ import annotations

from imgkit.errors import HostError, InputError, RecipeError

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
