"""Which engine writes a disk: the one that was named, or one that this host can run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from imgkit.api import applianceoptions
from imgkit.api.enginechoice import engine_for, engine_name
from imgkit.engines.engineerrors import EngineStartError
from imgkit.engines.guestfs import bindings, hostkernel, hostsupport
from imgkit.engines.guestfs import guestfsengine as guestfs
from imgkit.engines.guestfs.hostsupport import HostLack, lacks
from imgkit.engines.native import nativeengine as native
from imgkit.errors import UsageError
from imgkit.fetch.cache import default_folder


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> list[HostLack]:
    """Return what this host lacks for libguestfs: nothing yet."""
    missing: list[HostLack] = []

    def found(environment: Mapping[str, str]) -> Iterator[HostLack]:
        assert environment is os.environ
        yield from missing

    monkeypatch.setattr(hostsupport, "lacks", found)
    monkeypatch.delenv("IMGKIT_ENGINE", raising=False)
    return missing


@pytest.mark.parametrize(
    ("choice", "variable", "usable", "engine"),
    [
        (None, None, False, "guestfs"),
        (None, "", True, "guestfs"),
        (None, "native", True, "native"),
        (None, "auto", True, "guestfs"),
        (None, "auto", False, "native"),
        ("guestfs", "native", False, "guestfs"),
        ("native", "guestfs", True, "native"),
        ("auto", "guestfs", False, "native"),
        ("auto", "native", True, "guestfs"),
    ],
)
def test_options_come_before_the_variable(
    choice: str | None, variable: str | None, usable: bool, engine: str, missing: list[HostLack], monkeypatch: Any
) -> None:
    if variable is not None:
        monkeypatch.setenv("IMGKIT_ENGINE", variable)
    if not usable:
        missing.append(HostLack("supermin: program not found", "apt-get install supermin"))
    assert engine_name(choice) == engine


def test_engines_that_there_are_not(missing: list[HostLack], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"^docker: unknown engine$") as caught:
        engine_for("docker")
    assert caught.value.hint == "known are guestfs, native, auto"
    monkeypatch.setenv("IMGKIT_ENGINE", "docker")
    with pytest.raises(UsageError, match=r"^IMGKIT_ENGINE=docker: unknown engine$"):
        engine_for()
    assert not missing


def test_what_the_engines_are_launched_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(applianceoptions, "appliance_options", lambda: "options")
    launch: Any = engine_for("guestfs")
    assert isinstance(launch, partial)
    assert (launch.func, launch.keywords) == (guestfs.launch, {"options": "options"})
    launch = engine_for("native")
    assert (launch.func, launch.keywords) == (native.launch, {"cache": default_folder()})


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return the environment of a host that can run the appliance."""
    for name in ("supermin", "qemu-system-x86_64"):
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(bindings, "choose", lambda environment: None)
    monkeypatch.setattr(hostkernel, "choice", lambda environment: {})
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "host", "6", "1", "x86_64")))
    return {"PATH": str(tmp_path)}


def test_a_host_that_lacks_nothing(host: dict[str, str]) -> None:
    assert list(lacks(host)) == []


@pytest.mark.parametrize(("program", "package"), [("supermin", "supermin"), ("qemu-system-x86_64", "qemu-system-x86")])
def test_a_program_that_is_missing(program: str, package: str, host: dict[str, str]) -> None:
    (Path(host["PATH"]) / program).unlink()
    assert list(lacks(host)) == [HostLack(f"{program}: program not found", f"apt-get install {package}")]


def test_bindings_and_kernels_that_are_missing(host: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def no_bindings(environment: object) -> None:
        raise EngineStartError("no bindings", hint="install them")

    def no_kernel(environment: object) -> None:
        raise hostkernel.NoKernelError("none in /boot")

    monkeypatch.setattr(bindings, "choose", no_bindings)
    monkeypatch.setattr(hostkernel, "choice", no_kernel)
    first, second = lacks(host)
    assert first == HostLack("no bindings", "install them")
    assert (second.what, "linux-image" in second.fix) == ("kernel: none in /boot", True)


def test_a_fixed_appliance_needs_neither_supermin_nor_a_kernel(
    host: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_kernel(environment: object) -> None:
        raise hostkernel.NoKernelError("none in /boot")

    monkeypatch.setattr(hostkernel, "choice", no_kernel)
    (tmp_path / "supermin").unlink()
    fixed = tmp_path / "appliance"
    fixed.mkdir()
    environment = {**host, "LIBGUESTFS_PATH": f"/nowhere:{fixed}"}
    assert len(list(lacks(environment))) == 2
    (fixed / "README.fixed").touch()
    assert list(lacks(environment)) == []
