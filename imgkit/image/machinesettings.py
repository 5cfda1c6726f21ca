"""What the init of a container machine is told: the text of the file ``machine/run`` on the config drive.

The scripts in ``imgkit/rootfs/initramfs/guest`` read it as shell assignments.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from imgkit.image.firstprocess import FirstProcess

_HOSTNAME = "sandbox"


def service(hostname: str = _HOSTNAME) -> str:
    """Return the settings of a machine whose image has agentd."""
    return f"mode=agentd\nhostname={shlex.quote(hostname)}\n"


def once(first: FirstProcess, shares: Sequence[str], *, work: bool, hostname: str = _HOSTNAME) -> str:
    """Return the settings of a machine that runs one process.

    Args:
        shares: tags of the shares that are mounted below ``/mnt``.
        work: whether the share ``work`` is mounted at ``/workspace/project``.
    """
    tags, place = shlex.quote(" ".join(shares)), "workspace/project" if work else ""
    return f"mode=once\nhostname={shlex.quote(hostname)}\nshares={tags}\nwork={place}\n{first.to_shell()}"
