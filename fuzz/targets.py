"""Every parser that reads untrusted bytes, by name.

Whatever a target does besides returning or raising the errors that it names (another exception, more than
:data:`fuzz.target.SECONDS`, a limit of memory that the runner sets) is a fault.
"""

from __future__ import annotations

from collections.abc import Mapping

from fuzz import guests, images, lists, packages, roots, scripts
from fuzz.target import Target

TARGETS: Mapping[str, Target] = {
    **packages.TARGETS,
    **lists.TARGETS,
    **images.TARGETS,
    **roots.TARGETS,
    **scripts.TARGETS,
    **guests.TARGETS,
}
