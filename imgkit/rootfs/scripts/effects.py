"""Compute the effects of package scripts on the Tree, without ever running a program of the target::

    outcome = run_script(tree, text, package="nginx", kind="post-install", args=["1.2-r0"])

:func:`run_script` interprets a script on a copy of the Tree, and adopts the copy only if it knew every construct and
every command that the script reached. Anything unknown is refused with package, script and line, never guessed. A
caller that can run programs of the target (in the appliance, on the same architecture) uses :func:`attempt`, which
returns such a script as a :class:`Pending`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

from imgkit.errors import InputError
from imgkit.rootfs.scripts.budget import Exhausted
from imgkit.rootfs.scripts.control import Leave
from imgkit.rootfs.scripts.redirections import collector
from imgkit.rootfs.scripts.shellprogram import Shell, environment
from imgkit.rootfs.scripts.state import Failed, Hooks, ShellState, Streams
from imgkit.rootfs.scripts.words import Unsupported
from imgkit.tree import Tree

__all__ = ["Hooks", "Outcome", "Pending", "Unsupported", "attempt", "run_script"]

_INTERPRETER = re.compile(
    r"#![ \t]*(?:/bin/sh|/bin/ash|/bin/busybox[ \t]+(?:sh|ash)|/usr/bin/env[ \t]+sh|(?P<dash>(?:/usr)?/bin/dash))"
    r"(?:[ \t]+-(?P<flags>[eux]+))?[ \t]*"
)
_MAX_MESSAGES = 200


@dataclass(frozen=True)
class Outcome:
    """How a script ended. A status other than 0 does not stop an installation (apk only marks the package).

    Attributes:
        status: the exit status of the script.
        messages: the last 200 lines that it wrote to standard output and standard error.
    """

    status: int
    messages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pending:
    """A script that imgkit cannot compute, and that has changed nothing in the Tree.

    Attributes:
        package: the package's name.
        kind: ``pre-install``, ``post-install`` or ``trigger``.
        text: the script itself.
        args: its arguments.
        reason: what the interpreter cannot compute, with the line.
    """

    package: str
    kind: str
    text: str
    args: tuple[str, ...]
    reason: str


def run_script(
    tree: Tree,
    text: str,
    *,
    package: str,
    kind: str,
    args: Sequence[str] = (),
    epoch: int = 0,
    hooks: Hooks | None = None,
) -> Outcome:
    """Compute what a script does to ``tree``: all of it, or nothing.

    Args:
        tree: the root filesystem, which is also the script's working directory.
        text: the script, with its ``#!`` line (bytes that are not UTF-8 as surrogates).
        package: name of the package, for messages and ``$APK_PACKAGE``.
        kind: which script it is, for messages and ``$APK_SCRIPT``.
        args: its arguments: the version, or the directories of a trigger.
        epoch: seconds since 1970, for everything that depends on the date.
        hooks: what other parts of imgkit compute.

    Raises:
        Unsupported: the script does something that imgkit does not compute. The Tree is unchanged.
        InputError: the script asks for more than a package script may (:mod:`imgkit.rootfs.scripts.budget`), so it is
            hostile or broken. The Tree is unchanged.
    """
    variables = environment(package, kind)

    def interpret(state: ShellState, inner: str, streams: Streams) -> None:
        _run(Shell(state, (), variables), inner, streams)

    state = ShellState(tree.copy(), epoch=epoch, hooks=hooks or Hooks(), interpret=interpret)
    output: list[str] = []
    sink = collector(output, state.budget)
    streams = Streams(io.StringIO(), sink, sink)
    shell = Shell(state, args, variables)
    try:
        status = _run(shell, text, streams)
    except RecursionError as cause:
        raise Unsupported("nesting without end", line=shell.line, where=f"{package}.{kind}") from cause
    except Exhausted as cause:
        raise InputError(
            f"{package}.{kind}, line {shell.line}: the script {cause}",
            hint=f"if it need not run: skip_scripts = ['{package}']",
        ) from cause
    except Unsupported as refusal:
        line = refusal.line or shell.line
        raise Unsupported(refusal.construct, line=line, where=f"{package}.{kind}") from refusal
    tree.replace_with(state.tree)
    return Outcome(status, tuple("".join(output).splitlines()[-_MAX_MESSAGES:]))


def attempt(
    tree: Tree,
    text: str,
    *,
    package: str,
    kind: str,
    args: Sequence[str] = (),
    epoch: int = 0,
    hooks: Hooks | None = None,
) -> Outcome | Pending:
    """Call :func:`run_script`, and return a script that imgkit cannot compute as a :class:`Pending`.

    Raises:
        InputError: the script asks for more than a package script may.
    """
    try:
        return run_script(tree, text, package=package, kind=kind, args=args, epoch=epoch, hooks=hooks)
    except Unsupported as refusal:
        return Pending(package, kind, text, tuple(args), str(refusal))


def _interpreter(text: str) -> re.Match[str]:
    """Return the groups ``dash`` and ``flags`` of the pattern that matches the ``#!`` line.

    Raises:
        Unsupported: there is no such line, the interpreter is unknown, or the script uses something that dash lacks.
    """
    first = text.partition("\n")[0]
    match = _INTERPRETER.fullmatch(first)
    if not match:
        construct = f"the interpreter {first[2:].strip()}" if first.startswith("#!") else "no #! line"
        raise Unsupported(construct, line=1)
    if match["dash"] and "&>" in text:
        raise Unsupported("&> in a script for dash", line=text[: text.index("&>")].count("\n") + 1)
    return match


def _run(shell: Shell, text: str, streams: Streams) -> int:
    """Run a whole script, from its ``#!`` line on, and return its status."""
    try:
        interpreter = _interpreter(text)
        shell.dash = bool(interpreter["dash"])
        if interpreter["flags"]:
            shell.call(["set", f"-{interpreter['flags']}"], streams)
        return shell.run_text(text, streams)
    except Leave as leave:
        return leave.status
    except Failed as cause:
        streams.err(f"{cause}\n")
        return cause.status
