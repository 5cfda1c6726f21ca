"""Conditions of package scripts: ``test`` and ``[`` (POSIX.1-2017, with -a, -o and parentheses)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from imgkit.rootfs.scripts.state import Command, Failed, ShellState, Streams
from imgkit.rootfs.scripts.words import Unsupported
from imgkit.tree import Device, Directory, File, Node, Symlink


def test(state: ShellState, arguments: list[str], _: Streams) -> int:
    """Run ``test EXPRESSION``, with -a, -o, ! and parentheses."""
    if not arguments:
        return 1
    words = list(arguments)
    value = _either(state, words)
    if words:
        raise Failed(f"{words[0]}: unknown operand", 2)
    return 0 if value else 1


def bracket(state: ShellState, arguments: list[str], streams: Streams) -> int:
    """Run ``[ EXPRESSION ]``."""
    if not arguments or arguments[-1] != "]":
        raise Failed("missing ]", 2)
    return test(state, arguments[:-1], streams)


# The functions below consume the words of the part of the expression that they evaluate.


def _either(state: ShellState, words: list[str]) -> bool:
    """Evaluate the operands of ``-o``. All of them are evaluated, because an error in the second one always counts."""
    value = _both(state, words)
    while words and words[0] == "-o":
        words.pop(0)
        right = _both(state, words)
        value = value or right
    return value


def _both(state: ShellState, words: list[str]) -> bool:
    """Evaluate the operands of ``-a``."""
    value = _primary(state, words)
    while words and words[0] == "-a":
        words.pop(0)
        right = _primary(state, words)
        value = value and right
    return value


def _primary(state: ShellState, words: list[str]) -> bool:
    """Evaluate one comparison, a test of a file or text, a negation, or an expression in parentheses."""
    if not words:
        raise Failed("argument expected", 2)
    if len(words) >= 3 and (words[1] in _TEXTS or words[1] in _NUMBERS):
        left, operator, right = words[:3]
        del words[:3]
        return _TEXTS[operator](left, right) if operator in _TEXTS else _compare(left, operator, right)
    word = words.pop(0)
    if word == "!" and words:
        return not _primary(state, words)
    if word == "(" and ")" in words:
        value = _either(state, words)
        if not words or words.pop(0) != ")":
            raise Failed("closing paren expected", 2)
        return value
    if words and words[0] not in ("-a", "-o") and re.fullmatch(r"-[a-zA-Z]", word):
        return _unary(state, word, words.pop(0))
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
        return False  # no terminal is there
    if operator not in _FILES:
        raise Unsupported(f"test {operator}")
    if operand == "/dev/null":
        return operator in ("-e", "-c", "-r", "-w")
    try:
        node = state.node(operand, follow=operator not in ("-L", "-h"))
    except Failed:  # an empty text or a loop of links
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
_FILES: Mapping[str, Callable[[Node], bool]] = {  # as root sees it, who may read and write everything
    "-e": lambda _: True,
    "-r": lambda _: True,
    "-w": lambda _: True,
    "-f": lambda node: isinstance(node, File),
    "-d": lambda node: isinstance(node, Directory),
    "-L": lambda node: isinstance(node, Symlink),
    "-h": lambda node: isinstance(node, Symlink),
    "-s": lambda node: not isinstance(node, File) or node.content.size > 0,
    "-x": lambda node: isinstance(node, Directory) or node.mode & 0o111 != 0,
    "-u": lambda node: node.mode & 0o4000 != 0,
    "-g": lambda node: node.mode & 0o2000 != 0,
    "-k": lambda node: node.mode & 0o1000 != 0,
    "-p": lambda node: isinstance(node, Device) and node.kind == "p",
    "-c": lambda node: isinstance(node, Device) and node.kind == "c",
    "-b": lambda node: isinstance(node, Device) and node.kind == "b",
}

COMMANDS: Mapping[str, Command] = {"test": test, "[": bracket}
