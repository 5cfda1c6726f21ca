"""pytest plugin: boot images in tests.

    def test_agent(boot_image):
        vm = boot_image("out/linux-amd64.qcow2", shares={"data": "."})
        assert vm.run(["id", "-un"]).text == "agent\\n"

A machine lives until the end of the test that booted it (``boot_image``) or of the whole run (``boot_image_session``).
``imgkit_vm`` boots the image named by ``--imgkit-image``. When a test fails, its report has the last lines of the
console of each machine that it used.

This module is loaded in every run of pytest wherever imgkit is installed, so it imports nothing at the top that
pytest has not loaded already.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from imgkit.vm import VM
    from imgkit.vm.bootspec import BootSpec, StrPath


class BootImage(Protocol):
    """The function that the ``boot_image`` fixtures return: :meth:`imgkit.vm.VM.boot` without its ``with``."""

    def __call__(self, spec: BootSpec | StrPath | None, **options: Any) -> VM:
        """Boot an image or a specification.

        Args:
            spec: as for :meth:`imgkit.vm.VM.boot`.
            options: its keywords. They win over the command line's options, which do not apply to a specification,
                except ``--imgkit-timeout``.
        """


_MACHINES: pytest.StashKey[list[VM]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the plugin; they are the defaults of every boot."""
    group = parser.getgroup("imgkit", "disk images booted in tests")
    group.addoption("--imgkit-image", metavar="PATH", type=Path, help="image that the imgkit_vm fixture boots")
    group.addoption("--imgkit-arch", metavar="ARCH", help="its architecture: amd64 or arm64 (default: from its name)")
    group.addoption("--imgkit-firmware", metavar="KIND", help="bios, uefi or direct (default: bios, for arm64 uefi)")
    group.addoption("--imgkit-accel", metavar="NAME", help="auto, kvm, hvf or tcg (default: auto)")
    group.addoption("--imgkit-network", metavar="KIND", help="none, user or restricted (default: user)")
    group.addoption(
        "--imgkit-allow",
        metavar="HOST:PORT",
        action="append",
        help="what a restricted network reaches; may be repeated",
    )
    group.addoption("--imgkit-timeout", metavar="S", type=float, help="seconds that a boot may take (default: 180)")


_FIELDS = {
    "arch": "arch",
    "firmware": "firmware",
    "accel": "accelerator",
    "network": "network",
    "allow": "allow",
    "timeout": "timeout",
}
"""The command line's options, and the keywords of :meth:`imgkit.vm.VM.boot` that they are defaults of."""


def _defaults(config: pytest.Config) -> dict[str, Any]:
    """Return what the command line says about every boot."""
    given = {keyword: config.getoption(f"--imgkit-{option}") for option, keyword in _FIELDS.items()}
    return {keyword: value for keyword, value in given.items() if value is not None}


def _factory(node: pytest.Item | pytest.Session, stack: ExitStack) -> BootImage:
    machines = node.stash.setdefault(_MACHINES, [])

    def boot(spec: BootSpec | StrPath | None, **options: Any) -> VM:
        from imgkit.vm import VM, BootSpec  # imported here, since only tests that boot an image need it

        defaults = _defaults(node.config)
        if isinstance(spec, BootSpec):
            defaults = {name: value for name, value in defaults.items() if name == "timeout"}
        if "network" in options:
            defaults.pop("allow", None)  # that is for the command line's network
        vm = stack.enter_context(VM.boot(spec, **{**defaults, **options}))
        machines.append(vm)
        return vm

    return boot


@pytest.fixture
def boot_image(request: pytest.FixtureRequest) -> Iterator[BootImage]:
    """Return a function that boots an image until the end of this test."""
    assert isinstance(request.node, pytest.Item)
    with ExitStack() as stack:
        yield _factory(request.node, stack)


@pytest.fixture(scope="session")
def boot_image_session(request: pytest.FixtureRequest) -> Iterator[BootImage]:
    """Return a function that boots an image until the end of the whole run."""
    with ExitStack() as stack:
        yield _factory(request.session, stack)


@pytest.fixture
def imgkit_vm(request: pytest.FixtureRequest, boot_image: Callable[..., VM]) -> VM:
    """Boot the image of ``--imgkit-image`` for this test."""
    image = request.config.getoption("--imgkit-image")
    if image is None:
        pytest.fail("the imgkit_vm fixture needs --imgkit-image PATH", pytrace=False)
    return boot_image(image)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the consoles of the machines that a failed test used to its report."""
    report = yield
    if report.failed:
        booted = [*item.stash.get(_MACHINES, []), *item.session.stash.get(_MACHINES, [])]
        for number, machine in enumerate(booted, 1):
            report.sections.append((f"console of machine {number}", _tail(machine)))
    return report


def _tail(machine: VM) -> str:
    from imgkit.vm.console import tail

    try:
        return tail(machine.console(), lines=40) or "(nothing was written to the console)"
    except OSError as cause:
        return f"(the console cannot be read: {cause})"
