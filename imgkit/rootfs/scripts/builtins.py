"""Commands that belong to the shell itself, because they read or change its variables, options and control flow.

They are those of POSIX.1-2017, 2.14, with ``cd``, ``command``, ``local``, ``read``, ``umask`` and ``wait``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn, TypeAlias

from imgkit.rootfs.scripts.budget import whole_number
from imgkit.rootfs.scripts.control import Jump, Leave, Return
from imgkit.rootfs.scripts.expansion import FIRST_JOB
from imgkit.rootfs.scripts.state import Failed, Streams, number
from imgkit.rootfs.scripts.text import which
from imgkit.rootfs.scripts.words import Unsupported

if TYPE_CHECKING:
    from imgkit.rootfs.scripts.shellprogram import Shell

Builtin: TypeAlias = "Callable[[Shell, list[str], Streams], int]"

_OPTIONS = {"e": "errexit", "u": "nounset", "x": "xtrace"}
_IN_THE_SHELL = frozenset({"[", "echo", "printf", "test", "true"})  # what ash has besides the commands of this module


def _nothing(_: Shell, __: list[str], ___: Streams) -> int:
    """Run ``:``, which does nothing."""
    return 0


def _source(shell: Shell, arguments: list[str], streams: Streams) -> int:
    """Run ``. FILE``."""
    return shell.source(arguments, streams)


def _break(_: Shell, arguments: list[str], __: Streams) -> NoReturn:
    """Run ``break [LEVELS]``."""
    raise Jump(_count(arguments), again=False)


def _continue(_: Shell, arguments: list[str], __: Streams) -> NoReturn:
    """Run ``continue [LEVELS]``."""
    raise Jump(_count(arguments), again=True)


def _cd(shell: Shell, arguments: list[str], _: Streams) -> int:
    """Run ``cd DIRECTORY``."""
    if len(arguments) != 1 or arguments[0] in ("", "-"):
        raise Unsupported("cd without a directory")
    if not shell.state.is_directory(arguments[0]):
        raise Failed(f"can't cd to {arguments[0]}: No such file or directory", 2)
    shell.state.cwd = "/" + shell.state.path(arguments[0])
    return 0


def _command(shell: Shell, arguments: list[str], streams: Streams) -> int:
    """Run ``command NAME [ARGUMENT…]``, which runs no function, and ``command -v NAME``, which looks for one."""
    if arguments[:1] not in (["-v"], ["-V"]):
        return shell.execute(arguments, streams) if arguments else 0
    if len(arguments) < 2:
        return 127
    name = arguments[1]
    is_known = name in shell.functions or name in BUILTINS or name in _IN_THE_SHELL
    place = name if is_known else which(shell.state, name)
    streams.out(f"{place}\n" if place else "")
    return 0 if place else 127


def _exec(shell: Shell, arguments: list[str], streams: Streams) -> NoReturn:
    """Run ``exec COMMAND…``."""
    if not arguments:
        raise Unsupported("exec without a command")
    raise Leave(shell.call(arguments, streams))


def _exit(shell: Shell, arguments: list[str], _: Streams) -> NoReturn:
    """Run ``exit [STATUS]``."""
    raise Leave(_count(arguments, shell.status) & 0xFF)


def _return(shell: Shell, arguments: list[str], _: Streams) -> NoReturn:
    """Run ``return [STATUS]``."""
    raise Return(_count(arguments, shell.status) & 0xFF)


def _declare(shell: Shell, arguments: list[str], _: Streams) -> int:
    """Run ``export``, ``local`` and ``readonly``; the status is 0 even if a ``$(…)`` in their arguments has failed.

    There is one set of variables, because no command here reads its environment.
    """
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name.startswith("-"):
            raise Unsupported(f"the option {name}")
        if equals:
            shell.assign(name, value)
    return 0


def _read(shell: Shell, arguments: list[str], streams: Streams) -> int:
    """Run ``read [-r] NAME…``: the words of a line become variables, the last one takes the rest of the line."""
    names = [name for name in arguments if name != "-r"]
    if not names or any(name.startswith("-") for name in names):
        raise Unsupported("this form of read")
    line = shell.state.budget.text(streams.stdin.readline())
    words = line.rstrip("\n").strip(" \t").split(None, len(names) - 1) if line else []
    for index, name in enumerate(names):
        shell.assign(name, words[index] if index < len(words) else "")
    return 0 if line.endswith("\n") else 1


def _set(shell: Shell, arguments: list[str], _: Streams) -> int:
    """Run ``set [-eux] [-o OPTION] [--] [ARGUMENT…]``."""
    while arguments and arguments[0][:1] in ("-", "+"):
        word = arguments.pop(0)
        if word == "--":
            shell.arguments = arguments
            return 0
        _set_options(shell, word, arguments)
    if arguments:
        shell.arguments = arguments
    return 0


def _set_options(shell: Shell, word: str, arguments: list[str]) -> None:
    """Switch options on (``-e``) or off (``+e``); the name after an ``o`` is taken from ``arguments``."""
    for letter in word[1:]:
        name = _OPTIONS.get(letter)
        if letter == "o" and arguments:
            name = arguments.pop(0)
        if name not in ("errexit", "nounset", "pipefail", "xtrace"):
            raise Unsupported(f"set {word}")
        if word[0] == "-":
            shell.options.add(name)
        else:
            shell.options.discard(name)


def _shift(shell: Shell, arguments: list[str], _: Streams) -> int:
    """Run ``shift [COUNT]``."""
    count = _count(arguments)
    if count > len(shell.arguments):
        raise Failed("can't shift that many")
    del shell.arguments[:count]
    return 0


def _umask(shell: Shell, arguments: list[str], streams: Streams) -> int:
    """Run ``umask [MODE]``, in octal digits."""
    if not arguments:
        streams.out(f"{shell.state.umask:04o}\n")
    elif len(arguments[0]) > 4 or not arguments[0] or arguments[0].strip("01234567"):
        raise Unsupported(f"umask {arguments[0]}")
    else:
        shell.state.umask = int(arguments[0], 8)
    return 0


def _unset(shell: Shell, arguments: list[str], _: Streams) -> int:
    """Run ``unset NAME…``."""
    for name in arguments:
        if name.startswith("-"):
            raise Unsupported(f"unset {name}")
        shell.variables.pop(name, None)
    return 0


def _wait(shell: Shell, arguments: list[str], _: Streams) -> int:
    """Run ``wait [JOB…]``, which returns the status of the last job; all jobs have ended already."""
    status = 0
    for word in arguments:
        if not word.isdecimal():
            raise Unsupported(f"wait {word}")
        index = number(word) - FIRST_JOB
        status = shell.jobs[index] if 0 <= index < len(shell.jobs) else 127
    return status


def _count(arguments: Sequence[str], default: int = 1) -> int:
    """Return the only argument of a command as a number, or the default without arguments."""
    if not arguments:
        return default
    value = whole_number(arguments[0])
    if value is None:
        raise Failed(f"Illegal number: {arguments[0][:80]}", 2)
    return value


BUILTINS: Mapping[str, Builtin] = {
    ":": _nothing,
    ".": _source,
    "break": _break,
    "cd": _cd,
    "command": _command,
    "continue": _continue,
    "exec": _exec,
    "exit": _exit,
    "export": _declare,
    "local": _declare,
    "read": _read,
    "readonly": _declare,
    "return": _return,
    "set": _set,
    "shift": _shift,
    "umask": _umask,
    "unset": _unset,
    "wait": _wait,
}
