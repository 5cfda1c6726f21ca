"""Redirections of commands (POSIX.1-2017, 2.7): where standard output goes, and what standard input has."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from imgkit.rootfs.scripts.budget import Budget
from imgkit.rootfs.scripts.files import new_file
from imgkit.rootfs.scripts.state import ShellState, Sink, Streams
from imgkit.rootfs.scripts.syntax import Redirect
from imgkit.rootfs.scripts.words import Unsupported, Word


def discard(_: str) -> None:
    """Drop a text: the sink of /dev/null."""


def collector(collected: list[str], budget: Budget) -> Sink:
    """Return a sink that appends texts to a list and charges them to ``budget``."""

    def collect(text: str) -> None:
        collected.append(budget.text(text))

    return collect


def standard_input(texts: Sequence[str], budget: Budget) -> io.StringIO:
    """Return texts as an input. Four bytes of memory are charged for each character."""
    budget.memory(4 * sum(map(len, texts)))
    return io.StringIO(budget.joined(texts))


def redirect(
    state: ShellState, redirects: Iterable[Redirect], streams: Streams, expand: Callable[[Word], str]
) -> Streams:
    """Apply the redirections of a command in their order, and return its streams.

    Args:
        state: the files.
        redirects: the redirections.
        streams: the streams that the command would have without them.
        expand: expands the word after an operator to a text.

    Raises:
        Failed: a file cannot be read or written.
        Unsupported: a redirection that imgkit does not compute.
    """
    for redirection in redirects:
        target, operator = expand(redirection.target), redirection.operator
        if operator in (">&", "<&"):
            streams = _duplicated(redirection.descriptor, target, streams)
        elif operator in ("<", "<<"):
            text = target if operator == "<<" else state.read(target)
            if redirection.descriptor != 0:
                raise Unsupported(f"the redirection {redirection.descriptor}{operator}")
            streams = replace(streams, stdin=standard_input([text], state.budget))
        else:
            sink = _opened(state, target, streams, append=operator == ">>")
            streams = _with_sink(streams, redirection.descriptor, sink)
    return streams


def _duplicated(descriptor: int, target: str, streams: Streams) -> Streams:
    """Return the streams after a redirection such as ``2>&1``."""
    sinks: dict[str, Sink] = {"1": streams.out, "2": streams.err, "-": discard}
    if target not in sinks:
        raise Unsupported(f"the redirection {descriptor}>&{target}")
    return _with_sink(streams, descriptor, sinks[target])


def _opened(state: ShellState, target: str, streams: Streams, *, append: bool) -> Sink:
    """Return a sink that writes to a file, which is created or, unless ``append``, emptied at once."""
    special: dict[str, Sink] = {"/dev/null": discard, "/dev/stdout": streams.out, "/dev/stderr": streams.err}
    if target in special:
        return special[target]
    path = state.path(target)
    if path not in state.tree:
        new_file(state, path)
    elif not append:
        state.tree.write(path, b"", mtime=state.epoch)

    def write(text: str) -> None:
        state.write(path, state.tree.text(path) + text)

    return write


def _with_sink(streams: Streams, descriptor: int, sink: Sink) -> Streams:
    if descriptor == 1:
        return replace(streams, out=sink)
    if descriptor == 2:
        return replace(streams, err=sink)
    raise Unsupported(f"the redirection of descriptor {descriptor}")
