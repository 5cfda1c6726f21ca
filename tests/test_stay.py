"""``imgkit boot --wait`` without a machine: how it ends, and what others are told meanwhile."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from imgkit.cli.terminals import stay
from imgkit.errors import GuestError
from imgkit.vm.failures import QemuDiedError, QuotaError
from imgkit.vm.sessions.runningmachines import find
from imgkit.vm.sessions.sessionserver import attached
from tests.sessions import FakeOpener

WANTED = {"command": None, "root": True, "columns": 80, "rows": 24}


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an image; machines of this test are found by it alone."""
    (tmp_path / "run").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(stay, "_POLL", 0.01)
    path = tmp_path / "linux.qcow2"
    path.touch()
    return path


def machine(*checks: Callable[[], None], status: int | None = None) -> Any:
    """Return a machine of which each check calls the next of ``checks``."""
    steps = iter(checks)
    opener = FakeOpener()

    def session_start(**wanted: Any) -> Mapping[str, Any]:
        return {"mounted": True, **wanted}

    return SimpleNamespace(
        check=lambda: next(steps)(),
        exit_status=status,
        session_start=session_start,
        session_host=lambda: opener,
        opener=opener,
    )


def raises(error: BaseException) -> Callable[[], None]:
    def step() -> None:
        raise error

    return step


def nothing() -> None:
    """Find the machine in order."""


def test_it_stays_until_it_is_interrupted(image: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "imgkit")
    stay.until_interrupted(image, machine(nothing, nothing, raises(KeyboardInterrupt())))
    assert caplog.messages == [
        f"{image} runs until Ctrl-C; imgkit shell {image} opens a terminal in it",
        "powering off",
    ]
    assert find(image) == []


def test_terminals_are_opened_meanwhile(image: Path) -> None:
    def look() -> None:
        (found,) = find(image)
        with attached(found, WANTED):
            assert vm.opener.wanted == [{"mounted": True, **WANTED}]
        assert vm.opener.over.wait(20)
        raise KeyboardInterrupt

    vm = machine(look)
    stay.until_interrupted(image, vm)
    assert vm.opener.closed == ["1"]


def test_a_request_that_lacks_something_is_refused(image: Path) -> None:
    def look() -> None:
        with attached(find(image)[0], {"rows": 1}):
            pass

    def session_start(*, columns: int, rows: int) -> Mapping[str, Any]:
        return {"columns": columns, "rows": rows}

    vm = machine(look)
    vm.session_start = session_start
    with pytest.raises(GuestError, match=r"^the request is not understood: .*'columns'"):
        stay.until_interrupted(image, vm)


def test_a_guest_that_powers_itself_off(image: Path) -> None:
    message = rf"^{image}: the guest has powered itself off$"
    with pytest.raises(GuestError, match=message) as caught:
        stay.until_interrupted(image, machine(nothing, raises(QemuDiedError("QEMU ended")), status=0))
    assert caught.value.exit_status == 6


@pytest.mark.parametrize("error", [QemuDiedError("QEMU was killed"), QuotaError("too much")])
def test_a_machine_that_fails(image: Path, error: GuestError) -> None:
    with pytest.raises(type(error)) as caught:
        stay.until_interrupted(image, machine(raises(error), status=-9))
    assert caught.value is error
    assert find(image) == []
