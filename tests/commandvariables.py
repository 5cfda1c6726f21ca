"""The variables that commands read are not those of whoever runs the tests."""

from __future__ import annotations

import pytest

from imgkit.cli.commands import build as build_command


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the variables that commands read."""
    names = [
        "SOURCE_DATE_EPOCH",
        "OUT_DIR",
        "WORK_DIR",
        "ARCHS",
        "SUPERMIN_KERNEL",
        "IMGKIT_LAUNCH_TIMEOUT",
        "IMGKIT_ENGINE",
    ]
    for name in [*names, *build_command.VARIABLES]:
        monkeypatch.delenv(name, raising=False)
