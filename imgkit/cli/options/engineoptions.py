"""The option that chooses the engine which writes disks."""

from __future__ import annotations

import argparse
from typing import get_args

from imgkit.api.enginechoice import VARIABLE, EngineChoice


def argument(group: argparse._ActionsContainer) -> None:
    """Add ``--engine`` to a parser, or to a group of its options."""
    group.add_argument(
        "--engine",
        choices=get_args(EngineChoice),
        help="what makes the disk: libguestfs; imgkit itself; or auto, which is libguestfs where it can be used"
        f" (default: {VARIABLE}, or guestfs)",
    )
