"""Run the programs that scripts may call, which are functions on the Tree."""

from __future__ import annotations

from collections.abc import Mapping

from imgkit.rootfs.scripts import conditions, files, find, permissions, sorting, text, triggers, users
from imgkit.rootfs.scripts.budget import COMMAND
from imgkit.rootfs.scripts.state import Command, ShellState, Streams
from imgkit.rootfs.scripts.words import Unsupported

COMMANDS: Mapping[str, Command] = {
    **conditions.COMMANDS,
    **files.COMMANDS,
    **permissions.COMMANDS,
    **text.COMMANDS,
    **users.COMMANDS,
    **find.COMMANDS,
    **sorting.COMMANDS,
    **triggers.NATIVE,
}
_FOLDERS = frozenset({"/bin", "/sbin", "/usr/bin", "/usr/sbin"})


def run_program(state: ShellState, name: str, arguments: list[str], streams: Streams) -> int:
    """Run the program ``name``, which may include its folder, and return its exit status.

    Raises:
        Unsupported: imgkit does not compute this program.
        Failed: the program fails with a message.
    """
    state.budget.work(COMMAND)
    state.budget.words(len(arguments))
    folder, _, base = name.rpartition("/")
    if folder and folder not in _FOLDERS:
        raise Unsupported(f"the command {name}")
    if base == "busybox" and arguments:
        if arguments[0].startswith("-"):
            return triggers.install_links("bin/busybox")(state, arguments, streams)
        return run_program(state, arguments[0], arguments[1:], streams)
    if base not in COMMANDS:
        raise Unsupported(f"the command {name}")
    return COMMANDS[base](state, list(arguments), streams)
