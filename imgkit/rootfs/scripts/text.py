"""Commands of package scripts that read and write text: echo, printf, cat, grep, cut, test and the like."""

from __future__ import annotations

import re
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from imgkit.rootfs.scripts.budget import whole_number
from imgkit.rootfs.scripts.regex import compile_expressions
from imgkit.rootfs.scripts.state import PATH, Command, Failed, ShellState, Streams, each, options
from imgkit.rootfs.scripts.words import Unsupported
from imgkit.tree import Device, Directory, File, Node, Symlink

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v", "\\": "\\", "e": "\x1b"}
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{1,2}|0?[0-7]{1,3}|.)", re.DOTALL)
# No part of it can match what another one does, or a long one that is none would take quadratic time.
_CONVERSION = re.compile(
    r"%(?P<flags>[-0+ ]*(?P<width>[1-9][0-9]*)?(?:\.(?P<precision>[0-9]+))?)(?P<letter>[%sdixobcu])"
)
_WIDEST = 4096  # characters to which printf fills a value


def _unescape(text: str) -> str:
    def one(found: re.Match[str]) -> str:
        code = found.group(1)
        if code[0] == "x" and len(code) > 1:
            return chr(int(code[1:], 16))
        if code[0] in "01234567":
            return chr(int(code, 8))
        return _ESCAPES.get(code, "\\" + code)

    return _ESCAPE.sub(one, text)


def echo(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """``echo [-neE] WORD…``; escapes only with -e, as Alpine's ash does."""
    flags = ""
    while arguments and re.fullmatch(r"-[neE]+", arguments[0]):
        flags += arguments.pop(0)
    state.budget.memory(2 * sum(map(len, arguments)))
    text = " ".join(arguments)
    state.budget.work(len(text) if "e" in flags else 0)
    streams.out((_unescape(text) if "e" in flags else text) + ("" if "n" in flags else "\n"))
    return 0


def printf(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """``printf FORMAT ARGUMENT…``: %s %d %i %u %x %o %b %c %%; the format is used again while arguments are left."""
    if not arguments:
        raise Failed("usage: printf FORMAT [ARGUMENT...]", 2)
    state.budget.work(2 * len(arguments[0]))
    form, values = _unescape(arguments[0]), deque(arguments[1:])
    while True:
        before = len(values)
        state.budget.work(len(form) + 1)
        streams.out(_CONVERSION.sub(lambda found: state.budget.text(_convert(found, values)), form))
        if not values or len(values) == before:
            return 0


def _convert(found: re.Match[str], values: deque[str]) -> str:
    letter, flags = found.group("letter"), found.group("flags")
    if letter == "%":
        return "%"
    value = values.popleft() if values else ""
    for size in (found.group("width"), found.group("precision")):
        if size and (len(size) > 4 or int(size) > _WIDEST):
            raise Unsupported(f"printf with a width of {size[:20]}")
    if letter in "sbc":
        return f"%{flags}s" % (_unescape(value) if letter == "b" else value[:1] if letter == "c" else value)
    try:
        return f"%{flags}{letter}" % int(value or "0", 0)
    except ValueError as cause:
        raise Failed(f"invalid number '{value[:80]}'") from cause


def cat(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """``cat [FILE…]``."""
    operands = options(arguments, "")[1]
    return each(streams, "cat", operands or ["-"], lambda text: streams.out(_input(state, text, streams)))


def _input(state: ShellState, text: str, streams: Streams) -> str:
    return state.budget.text(streams.stdin.read() if text == "-" else state.read(text))


def grep(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """``grep [-qwxFEivschnl] [-e PATTERN] PATTERN FILE…``."""
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
        found = [line for line in lines if matches(line) != ("v" in flags)]
        status = 0 if found else status
        if "c" in flags:
            streams.out(f"{len(found)}\n")
        elif "q" not in flags:
            prefix = f"{operand}:" if len(operands) > 1 and "h" not in flags else ""
            streams.out("".join(f"{prefix}{line}\n" for line in found))
    return status


def _matcher(state: ShellState, patterns: list[str], flags: Mapping[str, str]) -> Callable[[str], bool]:
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
    """``cut -d X -f N[,M][-] [FILE…]``."""
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
    """The numbers of the fields that ``N,N-M,N-`` names."""
    found = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        start = whole_number(first)
        end = whole_number(last) if last else sys.maxsize - 1 if dash else start
        if start is None or end is None:
            raise Failed(f"invalid field '{part[:80]}'")
        found.append(range(start, end + 1))
    return found


def _picked(fields: list[str], ranges: Sequence[range]) -> list[str]:
    return [field for number, field in enumerate(fields, 1) if any(number in each for each in ranges)]


def head(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """``head [-n N] [FILE]``."""
    arguments = [f"-n{word[1:]}" if re.fullmatch(r"-\d+", word) else word for word in arguments]
    flags, operands = options(arguments, "n:")
    count = whole_number(flags.get("n", "10"))
    if count is None or len(operands) > 1:
        raise Unsupported("this form of head")
    text = _input(state, operands[0] if operands else "-", streams)
    lines = state.lines(text)[:count]
    whole = "".join(f"{line}\n" for line in lines)
    streams.out(whole if text.startswith(whole) else text)  # the last line of a file may lack its newline
    return 0


def _operands(arguments: list[str]) -> list[str]:
    operands = options(arguments, "")[1]
    if not operands:
        raise Failed("missing operand")
    return operands


def basename(_: ShellState, arguments: list[str], streams: Streams) -> int:
    """``basename PATH [SUFFIX]``."""
    operands = _operands(arguments)
    name = operands[0].rstrip("/").rpartition("/")[2] or "/"
    suffix = operands[1] if len(operands) > 1 else ""
    streams.out((name.removesuffix(suffix) or name) + "\n")
    return 0


def dirname(_: ShellState, arguments: list[str], streams: Streams) -> int:
    """``dirname PATH``."""
    operands = _operands(arguments)
    path = operands[0].rstrip("/")
    above = path.rpartition("/")[0].rstrip("/")
    streams.out((above or ("/" if operands[0].startswith("/") else ".")) + "\n")
    return 0


def readlink(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """``readlink [-f] PATH``."""
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
    """``true``, and what has no effect on files."""
    return 0


def fail(*_: object) -> int:
    """``false``."""
    return 1


def pwd(state: ShellState, _: list[str], streams: Streams) -> int:
    """``pwd``."""
    streams.out(state.cwd + "\n")
    return 0


def which(state: ShellState, name: str) -> str | None:
    """Where the image has the program ``name`` on PATH."""
    places = [name] if "/" in name else [f"{directory}/{name}" for directory in PATH.split(":")]
    for place in places:
        node = state.node(place)
        if isinstance(node, File) and node.mode & 0o111:
            return place
    return None


def which_command(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """``which NAME…``."""
    found = [which(state, name) for name in arguments]
    streams.out("".join(f"{place}\n" for place in found if place))
    return 0 if found and all(found) else 1


def test(state: ShellState, arguments: list[str], _: Streams) -> int:
    """``test EXPRESSION``, with -a, -o, ! and parentheses."""
    if not arguments:
        return 1
    rest = list(arguments)
    value = _either(state, rest)
    if rest:
        raise Failed(f"{rest[0]}: unknown operand", 2)
    return 0 if value else 1


def bracket(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """``[ EXPRESSION ]``."""
    if not arguments or arguments[-1] != "]":
        raise Failed("missing ]", 2)
    return test(state, arguments[:-1], streams)


def _either(state: ShellState, rest: list[str]) -> bool:
    value = _both(state, rest)
    while rest and rest[0] == "-o":
        rest.pop(0)
        right = _both(state, rest)
        value = value or right
    return value


def _both(state: ShellState, rest: list[str]) -> bool:
    value = _primary(state, rest)
    while rest and rest[0] == "-a":
        rest.pop(0)
        right = _primary(state, rest)
        value = value and right
    return value


def _primary(state: ShellState, rest: list[str]) -> bool:
    if not rest:
        raise Failed("argument expected", 2)
    if len(rest) >= 3 and (rest[1] in _TEXTS or rest[1] in _NUMBERS):
        left, operator, right = rest[:3]
        del rest[:3]
        return _TEXTS[operator](left, right) if operator in _TEXTS else _compare(left, operator, right)
    word = rest.pop(0)
    if word == "!" and rest:
        return not _primary(state, rest)
    if word == "(" and ")" in rest:
        value = _either(state, rest)
        if not rest or rest.pop(0) != ")":
            raise Failed("closing paren expected", 2)
        return value
    if rest and rest[0] not in ("-a", "-o") and re.fullmatch(r"-[a-zA-Z]", word):
        return _unary(state, word, rest.pop(0))
    return word != ""


def _compare(left: str, operator: str, right: str) -> bool:
    try:
        return _NUMBERS[operator](int(left), int(right))
    except ValueError as cause:
        raise Failed(f"bad number {left[:80]!r} or {right[:80]!r}", 2) from cause


def _unary(state: ShellState, operator: str, operand: str) -> bool:
    if operator in ("-n", "-z"):
        return (operand != "") == (operator == "-n")
    if operator == "-t":
        return False
    if operator not in _FILES:
        raise Unsupported(f"test {operator}")
    if operand == "/dev/null":
        return operator in ("-e", "-c", "-r", "-w")
    if not operand:
        return False
    try:
        node = state.node(operand, follow=operator not in ("-L", "-h"))
    except Failed:  # links in a circle
        return False
    return node is not None and _FILES[operator](node)


_TEXTS: Mapping[str, Callable[[str, str], bool]] = {
    "=": lambda left, right: left == right,
    "==": lambda left, right: left == right,
    "!=": lambda left, right: left != right,
}
_NUMBERS: Mapping[str, Callable[[int, int], bool]] = {
    "-eq": lambda left, right: left == right,
    "-ne": lambda left, right: left != right,
    "-lt": lambda left, right: left < right,
    "-le": lambda left, right: left <= right,
    "-gt": lambda left, right: left > right,
    "-ge": lambda left, right: left >= right,
}
_FILES: Mapping[str, Callable[[Node], bool]] = {  # for root, who may read and write everything
    "-e": lambda _: True,
    "-r": lambda _: True,
    "-w": lambda _: True,
    "-f": lambda node: isinstance(node, File),
    "-d": lambda node: isinstance(node, Directory),
    "-L": lambda node: isinstance(node, Symlink),
    "-h": lambda node: isinstance(node, Symlink),
    "-s": lambda node: not isinstance(node, File) or node.content.size > 0,
    "-x": lambda node: isinstance(node, Directory) or node.mode & 0o111 > 0,
    "-u": lambda node: node.mode & 0o4000 > 0,
    "-g": lambda node: node.mode & 0o2000 > 0,
    "-k": lambda node: node.mode & 0o1000 > 0,
    "-p": lambda node: isinstance(node, Device) and node.kind == "p",
    "-c": lambda node: isinstance(node, Device) and node.kind == "c",
    "-b": lambda node: isinstance(node, Device) and node.kind == "b",
}

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
    "test": test,
    "[": bracket,
    "true": succeed,
    "false": fail,
    "sync": succeed,  # there is no cache to write back
    "sleep": succeed,
    "pwd": pwd,
}
