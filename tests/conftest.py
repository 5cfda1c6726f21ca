"""Fixtures that several rooms share, and the one rule for missing tools."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from fixtures.mirror import Mirror

CI = os.environ.get("CI", "") not in ("", "0", "false")


def need(ability: str, present: object) -> None:
    """Skip on a laptop that lacks ``ability``; fail in CI, where everything must be there."""
    if not present:
        if CI:
            pytest.fail(f"CI must have {ability}")
        pytest.skip(f"needs {ability}")


def need_program(name: str) -> str:
    """The path of program ``name``, under the rule of :func:`need`."""
    path = shutil.which(name)
    need(name, path)
    assert path is not None
    return path


@pytest.fixture(scope="session")
def mirror() -> Mirror:
    """The offline mirror, made on first use."""
    from fixtures.mirror import make

    return make()


@pytest.fixture(scope="session")
def mirror_url(mirror: Mirror) -> Iterator[str]:
    """Base URL of the offline mirror on loopback."""
    from fixtures.server import serve

    with serve(mirror.root) as server:
        yield server.url
