"""Commands of package scripts that read and write text: echo, printf, cat, grep, cut, head and the like."""

from __future__ import annotations

import re
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from imgkit.rootfs.scripts.budget import whole_number
from imgkit.rootfs.scripts.regex import compile_expressions
from imgkit.rootfs.scripts.state import PATH, Command, Failed, ShellState, Streams, base_name, for_each_operand, options
from imgkit.rootfs.scripts.words import Unsupported
from imgkit.tree import File, Symlink

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v", "\\": "\\", "e": "\x1b"}
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{1,2}|0?[0-7]{1,3}|.)", re.DOTALL)
# No two parts can match the same characters: otherwise a long text that does not match would take quadratic time.
_CONVERSION = re.compile(
    r"%(?P<flags>[-0+ ]*(?P<width>[1-9][0-9]*)?(?:\.(?P<precision>[0-9]+))?)(?P<letter>[%sdixobcu])"
)
_MAX_WIDTH = 4096  # characters to which printf pads a value


def _unescape(text: str) -> str:
    """Return ``text`` with the backslash escapes of ``echo -e`` and ``printf`` replaced."""

    def character(match: re.Match[str]) -> str:
        code = match[1]
        if code[0] == "x" and len(code) > 1:
            return chr(int(code[1:], 16))
        if code[0] in "01234567":
            return chr(int(code, 8))
        return _ESCAPES.get(code, "\\" + code)

    return _ESCAPE.sub(character, text)


def echo(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """Run ``echo [-neE] WORD…``; escapes are replaced only with -e, as in Alpine's ash."""
    flags = ""
    while arguments and re.fullmatch(r"-[neE]+", arguments[0]):
        flags += arguments.pop(0)
    state.budget.memory(2 * sum(map(len, arguments)))
    text = " ".join(arguments)
    state.budget.work(len(text) if "e" in flags else 0)
    streams.out((_unescape(text) if "e" in flags else text) + ("" if "n" in flags else "\n"))
    return 0


def printf(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """Run ``printf FORMAT ARGUMENT…``: %s %d %i %u %x %o %b %c %%; the format is repeated while arguments are left."""
    if not arguments:
        raise Failed("usage: printf FORMAT [ARGUMENT...]", 2)
    state.budget.work(2 * len(arguments[0]))
    format_, values = _unescape(arguments[0]), deque(arguments[1:])
    while True:
        before = len(values)
        state.budget.work(len(format_) + 1)
        streams.out(_CONVERSION.sub(lambda match: state.budget.text(_convert(match, values)), format_))
        if not values or len(values) == before:
            return 0


def _convert(match: re.Match[str], values: deque[str]) -> str:
    """Return the text of one conversion of ``printf``, which takes the next of ``values``."""
    letter, flags = match["letter"], match["flags"]
    if letter == "%":
        return "%"
    value = values.popleft() if values else ""
    for size in (match["width"] or "0", match["precision"] or "0"):
        count = whole_number(size)
        if count is None or count > _MAX_WIDTH:
            raise Unsupported(f"printf with a width of {size[:20]}")
    if letter in "sbc":
        return f"%{flags}s" % (_unescape(value) if letter == "b" else value[:1] if letter == "c" else value)
    try:
        return f"%{flags}{letter}" % int(value or "0", 0)
    except ValueError as cause:
        raise Failed(f"invalid number '{value[:80]}'") from cause


def cat(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """Run ``cat [FILE…]``."""
    operands = options(arguments, "")[1] or ["-"]
    return for_each_operand(streams, "cat", operands, lambda file: streams.out(_input(state, file, streams)))


def _input(state: ShellState, operand: str, streams: Streams) -> str:
    """Return the contents of a file, or with ``-`` of standard input."""
    return state.budget.text(streams.stdin.read() if operand == "-" else state.read(operand))


def grep(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """Run ``grep [-qwxFEivsch] [-e PATTERN] PATTERN [FILE…]``."""
    flags, operands = options(arguments, "qwxFEivschoe:")
    if "o" in flags:
        raise Unsupported("grep -o")
    patterns = (flags["e"] if "e" in flags else operands.pop(0) if operands else "").split("\n")
    matches = _matcher(state, patterns, flags)
    status = 1
    for operand in operands or ["-"]:
        try:
            lines = state.lines(_input(state, operand, streams))
        except Failed as cause:
            if "s" not in flags:
                streams.err(f"grep: {cause}\n")
            status = 2 if status == 1 else status
            continue
        selected = [line for line in lines if matches(line) != ("v" in flags)]
        status = 0 if selected else status
        if "c" in flags:
            streams.out(f"{len(selected)}\n")
        elif "q" not in flags:
            prefix = f"{operand}:" if len(operands) > 1 and "h" not in flags else ""
            streams.out("".join(f"{prefix}{line}\n" for line in selected))
    return status


def _matcher(state: ShellState, patterns: list[str], flags: Mapping[str, str]) -> Callable[[str], bool]:
    """Return a function that returns whether one of the patterns of grep is in a line."""
    around = ("^", "$") if "x" in flags else ("before", "after") if "w" in flags else None
    try:
        compiled = compile_expressions(
            patterns,
            state.budget,
            extended="E" in flags,
            literal="F" in flags,
            ignore_case="i" in flags,
            around=around,
        )
    except ValueError as cause:
        raise Unsupported(f"the regular expression {patterns[0][:80]!r}: {cause}") from cause
    return lambda line: compiled.search(line, state.budget)


def cut(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """Run ``cut [-s] [-d X] -f LIST [FILE…]``, with a list such as ``1,3-5,7-``."""
    flags, operands = options(arguments, "d:f:s")
    if not re.fullmatch(r"\d+(-\d*)?(,\d+(-\d*)?)*", flags.get("f", "")):
        raise Unsupported("cut without a list of fields")
    delimiter = flags.get("d", "\t")
    if len(delimiter) != 1:
        raise Unsupported(f"cut with the delimiter {delimiter[:20]!r}")
    ranges = _ranges(flags["f"])
    for operand in operands or ["-"]:
        for line in state.lines(_input(state, operand, streams)):
            fields = state.budget.pieces(line, delimiter)
            state.budget.work(len(fields) * len(ranges) // 8)
            if len(fields) > 1:
                streams.out(delimiter.join(_picked(fields, ranges)) + "\n")
            elif "s" not in flags:
                streams.out(line + "\n")
    return 0


def _ranges(text: str) -> list[range]:
    """Return the ranges of field numbers in a list such as ``N,N-M,N-``."""
    ranges = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        start = whole_number(first)
        end = whole_number(last) if last else sys.maxsize if dash else start
        if start is None or end is None:
            raise Failed(f"invalid field '{part[:80]}'")
        ranges.append(range(start, end + 1))
    return ranges


def _picked(fields: list[str], ranges: Sequence[range]) -> list[str]:
    return [field for number, field in enumerate(fields, 1) if any(number in numbers for numbers in ranges)]


def head(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """Run ``head [-n N] [FILE]`` and ``head -N [FILE]``."""
    arguments = [f"-n{word[1:]}" if re.fullmatch(r"-\d+", word) else word for word in arguments]
    flags, operands = options(arguments, "n:")
    count = whole_number(flags.get("n", "10"))
    if count is None or len(operands) > 1:
        raise Unsupported("this form of head")
    text = _input(state, operands[0] if operands else "-", streams)
    lines = state.lines(text)[:count]
    start = "".join(f"{line}\n" for line in lines)
    streams.out(start if text.startswith(start) else text)  # the last line of a file may lack its newline
    return 0


def _operands(arguments: list[str]) -> list[str]:
    """Return the operands of a command without options. There must be at least one."""
    operands = options(arguments, "")[1]
    if not operands:
        raise Failed("missing operand")
    return operands


def basename(_: ShellState, arguments: list[str], streams: Streams) -> int:
    """Run ``basename PATH [SUFFIX]``."""
    operands = _operands(arguments)
    name = base_name(operands[0]) or "/"
    suffix = operands[1] if len(operands) > 1 else ""
    streams.out((name.removesuffix(suffix) or name) + "\n")
    return 0


def dirname(_: ShellState, arguments: list[str], streams: Streams) -> int:
    """Run ``dirname PATH``."""
    operands = _operands(arguments)
    folder = operands[0].rstrip("/").rpartition("/")[0].rstrip("/")
    streams.out((folder or ("/" if operands[0].startswith("/") else ".")) + "\n")
    return 0


def readlink(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """Run ``readlink [-f] PATH``."""
    flags, operands = options(arguments, "fn")
    text = operands[0] if operands else ""
    if not text:
        return 1
    if "f" in flags:
        streams.out("/" + state.path(text) + "\n")
        return 0
    node = state.node(text, follow=False)
    if not isinstance(node, Symlink):
        return 1
    streams.out(node.target + "\n")
    return 0


def succeed(*_: object) -> int:
    """Return 0, as ``true`` and commands do that have no effect on files."""
    return 0


def fail(*_: object) -> int:
    """Return 1, as ``false`` does."""
    return 1


def pwd(state: ShellState, _: list[str], streams: Streams) -> int:
    """Run ``pwd``."""
    streams.out(state.cwd + "\n")
    return 0


def which(state: ShellState, name: str) -> str | None:
    """Return the path of the program ``name``, which is looked for on PATH; None if there is none."""
    places = [name] if "/" in name else [f"{directory}/{name}" for directory in PATH.split(":")]
    for place in places:
        node = state.node(place)
        if isinstance(node, File) and node.mode & 0o111:
            return place
    return None


def which_command(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """Run ``which NAME…``."""
    places = [which(state, name) for name in arguments]
    streams.out("".join(f"{place}\n" for place in places if place))
    return 0 if places and all(places) else 1


COMMANDS: Mapping[str, Command] = {
    "echo": echo,
    "printf": printf,
    "cat": cat,
    "grep": grep,
    "fgrep": lambda state, arguments, streams: grep(state, ["-F", *arguments], streams),
    "egrep": lambda state, arguments, streams: grep(state, ["-E", *arguments], streams),
    "cut": cut,
    "head": head,
    "basename": basename,
    "dirname": dirname,
    "readlink": readlink,
    "which": which_command,
    "true": succeed,
    "false": fail,
    "sync": succeed,  # there is no cache to write back
    "sleep": succeed,
    "pwd": pwd,
}
