"""Exceptions by which a script's ``exit``, ``return``, ``break`` and ``continue`` leave what they are in."""

from __future__ import annotations


class Leave(Exception):  # noqa: N818 - control flow
    """``exit``: the script, or the subshell that it is in, ends with ``status``."""

    def __init__(self, status: int) -> None:
        self.status = status


class Return(Leave):
    """``return``: the function ends with ``status``."""


class Jump(Exception):  # noqa: N818 - control flow
    """``break`` or, with ``again``, ``continue``: it leaves the innermost ``levels`` loops."""

    def __init__(self, levels: int, *, again: bool) -> None:
        self.levels = levels
        self.again = again
