"""``sort`` and ``ls`` of package scripts, as busybox 1.37 has them: bytes decide, whatever the language."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cmp_to_key, partial
from getopt import gnu_getopt

from imgkit.rootfs.scripts.budget import whole_number
from imgkit.rootfs.scripts.files import new_file
from imgkit.rootfs.scripts.state import Command, Failed, ShellState, Streams, options
from imgkit.rootfs.scripts.words import Unsupported
from imgkit.tree import Directory

_KEY = re.compile(r"(\d+)([nrVf]*)(?:,(\d+)([nrVf]*))?")
_NUMBER = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)", re.ASCII)
_ODD_NUMBER = re.compile(r"\s*[-+]?(0x|inf|nan)", re.IGNORECASE)
_SORT = "nrVfust:k:o:"
_DIGITS = frozenset(b"0123456789")


@dataclass(frozen=True)
class _Key:
    """What is compared: fields ``first`` to ``last`` (0: all that follow), and how: letters of nrVf."""

    first: int
    last: int
    how: str

    def of(self, line: str, delimiter: str) -> str:
        if not self.first:
            return line
        return delimiter.join(line.split(delimiter)[self.first - 1 : self.last or None])


def sort(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """``sort [-nrVfus] [-t X] [-k N[,M]]… [-o FILE] [FILE…]``."""
    flags, operands = options(arguments, _SORT)
    keys = [_key(value) for name, value in gnu_getopt(arguments, _SORT)[0] if name == "-k"]  # there may be several
    lines = [line for operand in operands or ["-"] for line in _lines(state, operand, streams)]
    delimiter = flags.get("t", "")
    if keys and len(delimiter) != 1:
        raise Unsupported("sort -k without a delimiter (-t)")
    how = "".join(letter for letter in "nrVf" if letter in flags)
    compare = partial(
        _compare, [_Key(key.first, key.last, key.how or how) for key in keys] or [_Key(0, 0, how)], delimiter
    )
    characters = sum(map(len, lines))
    state.budget.work((characters + len(lines)) * (len(keys) + 1) * len(lines).bit_length() // 2)
    reverse = -1 if "r" in flags else 1

    def whole(left: str, right: str) -> int:
        """Ties of all keys are decided by the whole lines."""
        by_key = compare(left, right)
        return by_key if by_key or "s" in flags else reverse * _order(_raw(left), _raw(right))

    lines.sort(key=cmp_to_key(whole))
    if "u" in flags:
        lines = [line for index, line in enumerate(lines) if index == 0 or compare(lines[index - 1], line)]
    _put(state, "".join(f"{line}\n" for line in lines), flags.get("o"), streams)
    return 0


def _key(text: str) -> _Key:
    found = _KEY.fullmatch(text)
    first, how, last, more = found.groups() if found else ("", "", "", "")
    start, end = whole_number(first), whole_number(last or "0")
    if not start or end is None:
        raise Unsupported(f"sort -k {text[:80]}")
    return _Key(start, end, how + (more or ""))


def _lines(state: ShellState, operand: str, streams: Streams) -> list[str]:
    try:
        text = streams.stdin.read() if operand == "-" else state.read(operand)
    except Failed as cause:
        raise Failed(str(cause), 2) from cause
    return state.lines(state.budget.text(text))


def _put(state: ShellState, text: str, target: str | None, streams: Streams) -> None:
    if target is None:
        streams.out(text)
        return
    path = state.path(target)
    if path not in state.tree:
        new_file(state, path)
    state.write(path, text)


def _compare(keys: Iterable[_Key], delimiter: str, left: str, right: str) -> int:
    """Less, equal or greater, by the first key that differs."""
    for key in keys:
        result = _by(key.how, key.of(left, delimiter), key.of(right, delimiter))
        if result:
            return -result if "r" in key.how else result
    return 0


def _by(how: str, left: str, right: str) -> int:
    if "n" in how:
        return _order(_number(left), _number(right))
    if "V" in how:
        return version_order(_raw(left), _raw(right))
    if "f" in how:
        return _order(_raw(left).upper(), _raw(right).upper())
    return _order(_raw(left), _raw(right))


def _order(left: bytes | float, right: bytes | float) -> int:
    return int(left > right) - int(left < right)  # type: ignore[operator]


def _raw(text: str) -> bytes:
    return text.encode(errors="surrogateescape")


def _number(text: str) -> float:
    if _ODD_NUMBER.match(text):
        raise Unsupported(f"sort -n of {text!r}")
    found = _NUMBER.match(text)
    return float(found.group(1)) if found else 0.0


def version_order(left: bytes, right: bytes) -> int:
    """Less, equal or greater, as strverscmp(3) says: numbers in names count as numbers, 9 before 11.

    Digits after leading zeros are as after a decimal point: 1.01 before 1.0 before 1.1.
    """
    same = next((i for i, pair in enumerate(zip(left, right, strict=False)) if pair[0] != pair[1]), None)
    same = min(len(left), len(right)) if same is None else same
    start = same
    while start and left[start - 1] in _DIGITS:
        start -= 1
    ones, others = _digits(left, start), _digits(right, start)
    zeros = left[start:same]
    if ones[:1] not in (b"", b"0") and others[:1] not in (b"", b"0"):
        if len(ones) != len(others):
            return _order(len(ones), len(others))
    elif zeros and not zeros.strip(b"0") and (ones[len(zeros) :] or others[len(zeros) :]):
        return _order(*(_after_zeros(text, same) for text in (left, right)))
    return _order(left[same:], right[same:])


def _digits(text: bytes, start: int) -> bytes:
    end = start
    while end < len(text) and text[end] in _DIGITS:
        end += 1
    return text[start:end]


def _after_zeros(text: bytes, at: int) -> int:
    """The weight of what follows common zeros: a digit is less than anything else, the end included."""
    following = text[at] if at < len(text) else 0
    return (following - ord("0")) % 256


# ---- ls ------------------------------------------------------------------------------------------------------------


def ls(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """``ls [-1adApr] [PATH…]``, one name a line, as it writes where no terminal is."""
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
    """Whether something is; a link to nothing is not."""
    try:
        state.existing(operand)
    except Failed as cause:
        streams.err(f"ls: {cause}\n")
        return False
    return True


def _shown(state: ShellState, text: str, flags: Mapping[str, str], *, follow: bool, name: str | None = None) -> str:
    slash = "p" in flags and isinstance(state.node(text, follow=follow), Directory)
    return f"{text if name is None else name}{'/' if slash else ''}\n"


def _listing(state: ShellState, folder: str, flags: Mapping[str, str]) -> str:
    names = names_in(state, folder)
    if "a" in flags:
        names += [".", ".."]
    elif "A" not in flags:
        names = [name for name in names if not name.startswith(".")]
    names.sort(key=_raw, reverse="r" in flags)
    return "".join(_shown(state, f"{folder}/{name}", flags, follow=False, name=name) for name in names)


def names_in(state: ShellState, folder: str) -> list[str]:
    """The names in a directory, sorted.

    Raises:
        Unsupported: it is /dev, /proc or /sys, which only a running system fills.
    """
    path = state.path(folder)
    if path in ("dev", "proc", "sys"):
        raise Unsupported(f"what is in /{path}, which only a running system knows")
    return [child.rpartition("/")[2] for child in state.children(path)]


COMMANDS: Mapping[str, Command] = {"sort": sort, "ls": ls}
