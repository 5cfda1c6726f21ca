"""The errors of imgkit, one class for each party at fault, and the exit statuses of the program.

Every error has a message of one line that names what is wrong, and a hint if there is a remedy. The command line
prints both in one place (:func:`imgkit.cli.main.main`) and exits with the ``exit_status`` of the class:

======  =======================  ==================================================================================
status  class                    cause
======  =======================  ==================================================================================
0       none                     The command succeeded. A reader that closes our output early is not a failure.
1       none                     ``imgkit diff`` found a difference.
2       :class:`UsageError`      The command line or an environment variable is wrong.
3       :class:`RecipeError`     The recipe is wrong.
4       :class:`InputError`      An input is missing or cannot be trusted; or an image differs from its manifest.
5       :class:`HostError`       This host lacks something; or ``imgkit doctor`` misses something that is required.
6       :class:`GuestError`      The guest failed.
70      anything else            A bug in imgkit, the only failure with a traceback (``--debug`` prints one for all).
124     a :class:`GuestError`    The command of ``imgkit run`` was ended because of ``--limit``, as by timeout(1).
130     KeyboardInterrupt        Ctrl-C, SIGTERM or SIGHUP.
======  =======================  ==================================================================================

``imgkit run`` exits with the status of the guest's command instead, where 128 and more stand for a signal.

Packages that know the cause more precisely define subclasses, so that a caller can catch the errors it can handle:
:mod:`imgkit.host.process` for other programs, :mod:`imgkit.engines.engineerrors` for disks and images, and
:mod:`imgkit.vm.failures` for guests::

    try:
        build(request)
    except MissingProgramError as error:
        install(error.program)
    except ImgkitError as error:
        print(error, error.hint)
"""

from __future__ import annotations

from collections.abc import Sequence

from imgkit.host import namesake, terminal

namesake.refuse()  # once more than imgkit/__init__.py, which may be the other project's

DIFFERENT = 1
"""Exit status of ``imgkit diff`` if there is a difference, as that of diff(1)."""
BUG = 70
"""Exit status for an exception that is not one of these."""
INTERRUPTED = 130
"""Exit status after a signal that ends the program."""


class ImgkitError(Exception):
    """Base class of all expected failures.

    Attributes:
        message: one line that names the thing. It may quote a mirror, a guest or a file name as it is; ``str()`` of the
            error has control characters escaped and can be printed to a terminal.
        hint: what to do about it, in one line; None if there is nothing to advise.
        exit_status: the exit status of the command line.
    """

    exit_status = BUG

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
    """The recipe is wrong. ``problems`` holds every fault that was found, each as one line."""

    exit_status = 3

    def __init__(self, message: str, *, hint: str | None = None, problems: Sequence[str] = ()) -> None:
        super().__init__(message, hint=hint)
        self.problems = tuple(problems)


class InputError(ImgkitError):
    """An input (download, package, signature, payload, image) is missing or cannot be trusted."""

    exit_status = 4


class HostError(ImgkitError):
    """This host lacks something: a program, a library, a kernel, space."""

    exit_status = 5


class GuestError(ImgkitError):
    """The guest failed: the image does not boot, the agent does not answer, or a request went wrong.

    Attributes:
        console: the last lines of the guest's console, safe to show on a terminal; empty if there are none.
    """

    exit_status = 6
    console = ""
