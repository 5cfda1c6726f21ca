"""``sort`` and ``ls`` of package scripts, as busybox 1.37 has them: text is compared by its bytes in every language."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cmp_to_key, partial
from getopt import gnu_getopt

from imgkit.rootfs.scripts.budget import whole_number
from imgkit.rootfs.scripts.files import new_file
from imgkit.rootfs.scripts.state import Command, Failed, ShellState, Streams, base_name, options
from imgkit.rootfs.scripts.words import Unsupported
from imgkit.tree import Directory

_KEY = re.compile(r"(\d+)([nrVf]*)(?:,(\d+)([nrVf]*))?")
_NUMBER = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)", re.ASCII)
_ODD_NUMBER = re.compile(r"\s*[-+]?(0x|inf|nan)", re.IGNORECASE)
_SORT = "nrVfust:k:o:"
_DIGITS = frozenset(b"0123456789")


@dataclass(frozen=True)
class _Key:
    """A key that lines are sorted by.

    Attributes:
        first: the number of its first field; 0 makes the whole line the key.
        last: the number of its last field; None for all that follow.
        order: how keys are compared: the options of sort among ``nrVf``.
    """

    first: int
    last: int | None
    order: str

    def of(self, line: str, delimiter: str) -> str:
        """Return the key of a line."""
        if not self.first:
            return line
        return delimiter.join(line.split(delimiter)[self.first - 1 : self.last])


def sort(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """Run ``sort [-nrVfus] [-t X] [-k N[,M]]… [-o FILE] [FILE…]``."""
    flags, operands = options(arguments, _SORT)
    keys = [_parse_key(value) for name, value in gnu_getopt(arguments, _SORT)[0] if name == "-k"]
    lines = [line for operand in operands or ["-"] for line in _lines(state, operand, streams)]
    delimiter = flags.get("t", "")
    if keys and len(delimiter) != 1:
        raise Unsupported("sort -k without a delimiter (-t)")
    order = "".join(letter for letter in "nrVf" if letter in flags)
    keys = [_Key(key.first, key.last, key.order or order) for key in keys] or [_Key(0, None, order)]
    compare = partial(_compare, keys, delimiter)
    characters = sum(map(len, lines))
    state.budget.work((characters + len(lines)) * (len(keys) + 1) * len(lines).bit_length() // 2)

    def compare_lines(left: str, right: str) -> int:
        """Compare two lines by their keys, and then as a whole unless -s is given."""
        result = compare(left, right)
        if result or "s" in flags:
            return result
        whole = _order(_raw(left), _raw(right))
        return -whole if "r" in flags else whole

    lines.sort(key=cmp_to_key(compare_lines))
    if "u" in flags:
        lines = [line for index, line in enumerate(lines) if index == 0 or compare(lines[index - 1], line)]
    _write(state, "".join(f"{line}\n" for line in lines), flags.get("o"), streams)
    return 0


def _parse_key(text: str) -> _Key:
    """Parse the value of an option -k."""
    match = _KEY.fullmatch(text)
    first, first_order, last, last_order = match.groups() if match else ("", "", "", "")
    start, end = whole_number(first), whole_number(last or "0")
    if not start or end is None:
        raise Unsupported(f"sort -k {text[:80]}")
    return _Key(start, end or None, first_order + (last_order or ""))


def _lines(state: ShellState, operand: str, streams: Streams) -> list[str]:
    try:
        text = streams.stdin.read() if operand == "-" else state.read(operand)
    except Failed as cause:
        raise Failed(str(cause), 2) from cause
    return state.lines(state.budget.text(text))


def _write(state: ShellState, text: str, target: str | None, streams: Streams) -> None:
    """Write the result to the file ``target``, or without one to standard output."""
    if target is None:
        streams.out(text)
        return
    path = state.path(target)
    if path not in state.tree:
        new_file(state, path)
    state.write(path, text)


def _compare(keys: Iterable[_Key], delimiter: str, left: str, right: str) -> int:
    """Return a number below, equal to or above 0, as ``left`` is less, equal or greater by the first differing key."""
    for key in keys:
        result = _compare_keys(key.order, key.of(left, delimiter), key.of(right, delimiter))
        if result:
            return -result if "r" in key.order else result
    return 0


def _compare_keys(order: str, left: str, right: str) -> int:
    if "n" in order:
        return _order(_number(left), _number(right))
    if "V" in order:
        return version_order(_raw(left), _raw(right))
    if "f" in order:
        return _order(_raw(left).upper(), _raw(right).upper())
    return _order(_raw(left), _raw(right))


def _order(left: bytes | float, right: bytes | float) -> int:
    return int(left > right) - int(left < right)  # type: ignore[operator]


def _raw(text: str) -> bytes:
    return text.encode(errors="surrogateescape")


def _number(text: str) -> float:
    """Return the number that a text begins with, 0 if there is none."""
    if _ODD_NUMBER.match(text):
        raise Unsupported(f"sort -n of {text!r}")
    match = _NUMBER.match(text)
    return float(match[1]) if match else 0.0


def version_order(left: bytes, right: bytes) -> int:
    """Compare as strverscmp(3): numbers in names count as numbers, 9 before 11.

    Digits after leading zeros are compared as after a decimal point: 1.01 before 1.0 before 1.1.

    Returns:
        -1, 0 or 1, as ``left`` is less, equal or greater.
    """
    same = next((i for i, pair in enumerate(zip(left, right, strict=False)) if pair[0] != pair[1]), None)
    same = min(len(left), len(right)) if same is None else same
    start = same
    while start and left[start - 1] in _DIGITS:
        start -= 1
    left_digits, right_digits = _digits(left, start), _digits(right, start)
    common = left[start:same]
    if left_digits[:1] not in (b"", b"0") and right_digits[:1] not in (b"", b"0"):
        if len(left_digits) != len(right_digits):
            return _order(len(left_digits), len(right_digits))
    elif common and not common.strip(b"0") and (left_digits[len(common) :] or right_digits[len(common) :]):
        return _order(*(_after_zeros(text, same) for text in (left, right)))
    return _order(left[same:], right[same:])


def _digits(text: bytes, start: int) -> bytes:
    """Return the digits from ``start`` on."""
    end = start
    while end < len(text) and text[end] in _DIGITS:
        end += 1
    return text[start:end]


def _after_zeros(text: bytes, at: int) -> bytes:
    """Return the digit that follows common zeros, or a colon, which comes after all digits, for anything else."""
    following = text[at : at + 1]
    return following if following.isdigit() else b":"


# ---- ls ------------------------------------------------------------------------------------------------------------


def ls(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """Run ``ls [-1adApr] [PATH…]``, with one name on each line, as ls writes without a terminal."""
    flags, operands = options(arguments, "1adApr")
    present = [operand for operand in operands or ["."] if _is_there(state, operand, streams)]
    present.sort(key=_raw, reverse="r" in flags)
    folders = [operand for operand in present if state.is_directory(operand) and "d" not in flags]
    plain = [_shown(state, operand, flags, follow=True) for operand in present if operand not in folders]
    parts = ["".join(plain)] if plain else []
    for folder in folders:
        title = f"{folder}:\n" if len(operands) > 1 else ""
        parts.append(title + _listing(state, folder, flags))
    state.budget.memory(2 * sum(map(len, parts)))
    streams.out("\n".join(parts))
    return int(len(present) < len(operands or ["."]))


def _is_there(state: ShellState, operand: str, streams: Streams) -> bool:
    """Return whether an operand of ls exists, and report it if not. A dangling link does not count."""
    try:
        state.existing(operand)
    except Failed as cause:
        streams.err(f"ls: {cause}\n")
        return False
    return True


def _shown(state: ShellState, text: str, flags: Mapping[str, str], *, follow: bool, name: str | None = None) -> str:
    """Return the line that shows one path, under the name ``name`` if that is given."""
    slash = "p" in flags and isinstance(state.node(text, follow=follow), Directory)
    return f"{text if name is None else name}{'/' if slash else ''}\n"


def _listing(state: ShellState, folder: str, flags: Mapping[str, str]) -> str:
    """Return the lines that show the contents of a folder."""
    names = names_in(state, folder)
    if "a" in flags:
        names += [".", ".."]
    elif "A" not in flags:
        names = [name for name in names if not name.startswith(".")]
    names.sort(key=_raw, reverse="r" in flags)
    return "".join(_shown(state, f"{folder}/{name}", flags, follow=False, name=name) for name in names)


def names_in(state: ShellState, folder: str) -> list[str]:
    """Return the names in a directory, sorted.

    Raises:
        Unsupported: the directory is volatile, such as /dev, which only a running system fills.
    """
    path = state.path(folder)
    if path in state.volatile:
        raise Unsupported(f"what is in /{path}, which only a running system knows")
    return [base_name(child) for child in state.children(path)]


COMMANDS: Mapping[str, Command] = {"sort": sort, "ls": ls}
