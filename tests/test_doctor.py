"""``imgkit doctor`` on hosts that lack something: it says what is missing, what it is for, and how to get it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commandline import Place, Ran, path_without, place
from tests.conftest import need_program

pytestmark = pytest.mark.vm  # nothing boots here, but everything must be there to be taken away

NOBODY = 65534
GUESTFS = "build with libguestfs"
PROGRAMS = {
    "supermin": (GUESTFS, "supermin"),
    "qemu-img": (f"{GUESTFS}, boot and verify", "qemu-utils"),
    "qemu-system-x86_64": ("boot amd64", "qemu-system-x86"),
}


@pytest.fixture
def here() -> Iterator[Place]:
    for program in (*PROGRAMS, "qemu-system-aarch64", "bwrap"):
        need_program(program)
    with place() as folders:
        yield folders


def says(ran: Ran, mark: str, name: str, purpose: str, fix: str) -> None:
    """Check that this finding is the only bad one, besides that of the engine that needs it."""
    lines = ran.out.splitlines()
    if purpose == GUESTFS:
        (at,) = (number for number, line in enumerate(lines) if line.startswith("missing  engine guestfs "))
        assert "lacks: " in lines[at], ran.out
        del lines[at : at + 2]
    (at,) = (number for number, line in enumerate(lines) if not line.startswith(("ok ", " ")))
    assert lines[at].startswith(f"{mark}  {name} "), ran.out
    assert f"needed to {purpose}; fix: {fix}" in lines[at + 1], ran.out


def test_nothing_is_missing(here: Place) -> None:
    ran = here.run("doctor")
    assert ran.status == 0
    checks = [line for line in ran.out.splitlines() if not line.startswith(" ")]
    assert all(line.startswith("ok ") for line in checks), ran.out
    assert "MISSING" not in ran.out


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_that_are_missing(program: str, here: Place) -> None:
    ran = here.run("doctor", env=path_without(here, program))
    assert ran.status == 5
    purpose, package = PROGRAMS[program]
    lines = ran.out.splitlines()
    (at,) = (number for number, line in enumerate(lines) if line.startswith("MISSING"))
    assert lines[at].split(maxsplit=2) == ["MISSING", program, "not on PATH"]
    assert lines[at + 1].strip() == f"needed to {purpose}; fix: apt-get install {package}"


def test_libguestfs_may_be_missing_where_another_engine_was_chosen(here: Place) -> None:
    without = path_without(here, "supermin")
    for engine, status in (("native", 0), ("auto", 0), ("guestfs", 5)):
        ran = here.run("doctor", env={**without, "IMGKIT_ENGINE": engine})
        assert ran.status == status, ran.out
        assert any(line.split()[1:3] == ["engine", "native"] for line in ran.out.splitlines())
    says(ran, "MISSING", "supermin", GUESTFS, "apt-get install supermin")


def test_what_only_other_architectures_need_is_no_failure(here: Place) -> None:
    ran = here.run("doctor", env=path_without(here, "qemu-system-aarch64"))
    assert ran.status == 0
    assert "MISSING" not in ran.out
    assert any(line.split()[:2] == ["missing", "qemu-system-aarch64"] for line in ran.out.splitlines()), ran.out


def test_which_isolation_npm_gets(here: Place) -> None:
    """A missing isolation is not a failure, because most containers cannot have it."""
    ran = here.run("doctor", env=path_without(here, "bwrap"))
    assert ran.status == 0
    says(ran, "missing", "bubblewrap", "keep npm from the host's files", "apt-get install bubblewrap")
    forbidden = here.base / "bin/bwrap"
    forbidden.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    forbidden.chmod(0o755)
    ran = here.run("doctor", env={"PATH": str(here.base / "bin")})
    assert ran.status == 0
    says(ran, "missing", "bubblewrap", "keep npm from the host's files", "allow user namespaces")
    assert "No permissions to create new namespace; npm runs with your rights" in ran.out


def test_bindings_that_are_missing(here: Place) -> None:
    (here.modules / "guestfs.py").write_text("raise ImportError('made for another Python')")
    ran = here.run("doctor", env={"IMGKIT_GUESTFS_PYTHON": sys.executable})
    assert ran.status == 5
    says(ran, "MISSING", "libguestfs bindings", GUESTFS, "correct IMGKIT_GUESTFS_PYTHON, or unset it")
    assert f"cannot be imported by {sys.executable} (ImportError: made for another Python)" in ran.out


def test_a_kernel_that_is_missing(here: Place) -> None:
    ran = here.run("doctor", env={"SUPERMIN_KERNEL": str(here.base / "vmlinuz")})
    assert ran.status == 5
    says(ran, "MISSING", "kernel", GUESTFS, "correct it")


def test_a_kernel_that_may_not_be_read(here: Place) -> None:
    """The user may not read the kernel: on Ubuntu only root may."""
    kernel = here.base / "vmlinuz"
    kernel.write_bytes(b"MZ")
    kernel.chmod(0)
    ran = as_somebody(here, {"SUPERMIN_KERNEL": str(kernel)})
    assert ran.status == 5
    says(ran, "MISSING", "kernel", GUESTFS, f"sudo chmod 0644 {kernel}")
    kernel.chmod(0o644)
    assert as_somebody(here, {"SUPERMIN_KERNEL": str(kernel)}).status == 0


def as_somebody(here: Place, env: dict[str, str]) -> Ran:
    """Run ``imgkit doctor`` as an ordinary user who owns the folders of the place."""
    root = os.geteuid() == 0
    if root:
        for path in (here.base, here.tmp, here.modules):
            os.chown(path, NOBODY, NOBODY)
    done = subprocess.run(
        here.command("doctor"),
        env={**here.environment, "XDG_CACHE_HOME": str(here.base), **env},
        cwd=here.base,
        capture_output=True,
        text=True,
        check=False,
        user=NOBODY if root else None,
        group=NOBODY if root else None,
        extra_groups=[] if root else None,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def test_a_folder_that_cannot_be_written_to(here: Place) -> None:
    """Not even root can write to the folder."""
    ran = here.run("doctor", "--out", Path("/proc/nowhere"))
    assert ran.status == 5
    says(ran, "MISSING", "space", "build", "choose another folder with --out")
