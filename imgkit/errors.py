"""What can go wrong, by whose fault it is.

Every error is one line that names the thing, and where there is something to do about it one hint. The command line
prints them in one place (:func:`imgkit.cli.main.main`) and turns the class into the exit status. Whatever else escapes
is a bug in imgkit (status 70).
"""

from __future__ import annotations

from collections.abc import Sequence

from imgkit.host import terminal


class ImgkitError(Exception):
    """Base of all expected failures. ``exit_status`` is what the command line leaves with.

    ``message`` is as it was given. It may quote a mirror, a guest or a file name: ``str()`` is fit for a terminal.
    """

    exit_status = 70

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return terminal.block(self.message)


class UsageError(ImgkitError):
    """The command line or an environment variable is wrong."""

    exit_status = 2


class RecipeError(ImgkitError):
    """The recipe is wrong. ``problems`` holds every fault found, each one line."""

    exit_status = 3

    def __init__(self, message: str, *, hint: str | None = None, problems: Sequence[str] = ()) -> None:
        super().__init__(message, hint=hint)
        self.problems = tuple(problems)


class InputError(ImgkitError):
    """An input (download, package, signature, payload) could not be had or cannot be trusted."""

    exit_status = 4


class HostError(ImgkitError):
    """This host lacks something: a program, a library, a kernel, space."""

    exit_status = 5


class GuestError(ImgkitError):
    """The guest failed: the image does not boot, the agent does not answer, a request went wrong."""

    exit_status = 6
