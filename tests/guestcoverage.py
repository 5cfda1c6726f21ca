"""Which JavaScript the booted guests execute: recorded by Node, fetched before a machine ends (script/coverage.py).

Nothing happens unless ``IMGKIT_COVERAGE`` names a folder. Then test images tell Node to record, and every machine with
a root port leaves what was recorded in that folder, as Node wrote it.
"""

from __future__ import annotations

import base64
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from imgkit.errors import GuestError

if TYPE_CHECKING:
    from tests.rootport import RootedVM

FOLDER = os.environ.get("IMGKIT_COVERAGE")
_IN_GUEST = "/run/imgkit-coverage"
_SERVICES = ("agentd", "imgkit-config")
_FETCH = f"rc-service agentd stop >/dev/null 2>&1; tar -czf - -C {_IN_GUEST} ."


def record_in(overlay: Path) -> None:
    """Change an overlay so that the services written in JavaScript record what they execute."""
    if FOLDER is None:
        return
    for service in _SERVICES:
        with (overlay / "etc/conf.d" / service).open("a") as settings:
            settings.write(f'\nexport NODE_V8_COVERAGE="{_IN_GUEST}"\n')


def fetch_from(vm: RootedVM) -> None:
    """Store what the services of a machine have executed. This ends agentd; a machine that is off has nothing."""
    if FOLDER is None:
        return
    try:
        archive = base64.b64decode(vm.root(f"{{ {_FETCH}; }} | base64", timeout=60).stdout)
    except GuestError:
        return
    Path(FOLDER).mkdir(parents=True, exist_ok=True)
    descriptor, _ = tempfile.mkstemp(prefix="guest-", suffix=".tar.gz", dir=FOLDER)
    with os.fdopen(descriptor, "wb") as file:
        file.write(archive)
