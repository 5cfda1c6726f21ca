"""Builds that are interrupted or killed in the middle of their work leave nothing behind."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.mirror import Mirror
from tests.commandline import ROOT, Place, check_failure, place
from tests.conftest import need, need_program
from tests.images import WITHOUT_NODE

pytestmark = [pytest.mark.mirror, pytest.mark.vm]

STEPS = [
    "plan",
    "fetch packages",
    "prepare the payload",
    "compose the root filesystem",
    "feed the appliance",
    "wait for the appliance",
    "partition and format",
    "populate",
    "shut the appliance down",
    "compress",
]
"""As the log names them. "make the boot loader", "install GRUB" and "map the disk" are left out: they take an instant,
so a signal hits the next one, and a build until then takes seconds. Putting into place is done altogether
(:func:`imgkit.host.interrupts.held_back`)."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Downloads and the quick appliance, made by the first build."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def here(cache: Path) -> Iterator[Place]:
    """Yield a place whose cache is the shared one, with the real bindings."""
    for program in ("qemu-img", "qemu-system-x86_64"):
        need_program(program)
    with place() as one:
        (one.modules / "guestfs.py").unlink()
        one.cache = cache
        one.environment |= {"IMGKIT_CACHE": str(cache), "IMGKIT_APPLIANCE": "", "OUT_DIR": str(one.out)}
        yield one


@pytest.fixture
def words(mirror: Mirror, mirror_url: str) -> list[str]:
    """recipes/core.py, small."""
    words = ["build", str(ROOT / "recipes/core.py"), "--mirror", mirror_url, "--arch", "amd64"]
    return [*words, "--release-key", str(mirror.release_key), "--set", "size=1G", *WITHOUT_NODE]


def wait_for(text: str, here: Place, child: subprocess.Popen[bytes], timeout: float = 180) -> None:
    """Wait until the log has ``text``."""
    deadline = time.monotonic() + timeout
    while text not in here.log():
        assert child.poll() is None, here.log()
        assert time.monotonic() < deadline, here.log()
        time.sleep(0.01)


def outputs(here: Place) -> list[str]:
    return sorted(path.name for path in here.out.iterdir())


IMAGE = ["initramfs-virt-amd64", "linux-amd64.manifest.json", "linux-amd64.qcow2", "vmlinuz-virt-amd64"]


def test_a_signal_at_any_step(here: Place, words: list[str]) -> None:
    """Ctrl-C or SIGTERM, twice where somebody is impatient: status 130, and not a trace. Then a build just works."""
    for number, step in enumerate(STEPS):
        with here.running(*words) as child:
            wait_for(f"{step} …", here, child)
            for sent in (signal.SIGINT, signal.SIGTERM)[number % 2 :]:
                child.send_signal(sent)
            assert child.wait(timeout=30) == 130, here.log()
        assert [line for line in here.log().splitlines() if not line.endswith("…")][-1] == "error: interrupted"
        assert "Traceback" not in here.log()
        assert "Exception ignored" not in here.log()
        assert here.left_over() == [], step
    with here.running(*words) as one, here_again(here).running(*words) as other:
        assert (one.wait(timeout=300), other.wait(timeout=300)) == (0, 0), here.log()
    assert outputs(here) == IMAGE, "two at once into one folder"
    assert here.run("verify", here.out / "linux-amd64.qcow2").status == 0


def here_again(here: Place) -> Place:
    """Return the same place, with a log of its own."""
    again = object.__new__(Place)
    again.__dict__ |= vars(here) | {"base": here.base / "again"}
    again.base.mkdir()
    return again


@pytest.mark.parametrize("step", ["compose the root filesystem", "populate", "compress"])
def test_killed_outright(step: str, here: Place, words: list[str]) -> None:
    """Children die with it; its scratch folder is removed by the next build, whatever becomes of that."""
    with here.running(*words) as child:
        wait_for(f"{step} …", here, child)
        child.send_signal(signal.SIGKILL)
        child.wait(timeout=10)
    deadline = time.monotonic() + 10
    while here.processes() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert here.processes() == []
    assert [path.name[:8] for path in here.out.iterdir()] == [".imgkit-"]
    shutil.rmtree(here.tmp)  # what is in the folder for temporary files is the host's to clean
    here.tmp.mkdir()
    failed = here.run(*words, "--set", "packages=[nonesuch]")
    assert failed.status == 3
    assert list(here.out.iterdir()) == []


# ---- faults that show only when everything is composed --------------------------------------------------------------


def changed_recipe(here: Place) -> Path:
    """Return a copy of recipes/core.py, to be changed."""
    for name in ("recipes", "overlay"):
        shutil.copytree(ROOT / name, here.base / name)
    return here.base / "recipes/core.py"


def test_an_image_too_small_says_how_much_it_needs(here: Place, words: list[str]) -> None:
    recipe = changed_recipe(here)
    (here.base / "overlay/noise").write_bytes(bytes(300 << 20))
    ran = here.run("build", recipe, *words[2:], "--set", "size=256M")
    check_failure(ran, here, 3, "image of 256 MiB is too small for its content, which needs", "set size to")


def test_grub_modules_that_are_not_in_the_image(here: Place, words: list[str]) -> None:
    recipe = changed_recipe(here)
    arch = recipe.parent / "arch/amd64.py"
    arch.write_text(arch.read_text().replace('"grub-bios", ', ""))
    ran = here.run("build", recipe, *words[2:])
    check_failure(ran, here, 3, "GRUB's modules for i386-pc are not in the image", "add grub-bios to the packages")


def test_grub_modules_that_are_damaged(here: Place, words: list[str]) -> None:
    """An overlay can replace every file of a package, those of GRUB too."""
    recipe = changed_recipe(here)
    kernel = here.base / "overlay/usr/lib/grub/i386-pc/kernel.img"
    kernel.parent.mkdir(parents=True)
    kernel.write_bytes(b"no kernel")
    ran = here.run("build", recipe, *words[2:])
    check_failure(ran, here, 3, "GRUB for i386-pc: kernel.img is not an ELF file", "check the package grub-bios")


def test_no_room_for_the_disk(here: Place, words: list[str]) -> None:
    """There is room for the packages, but not for the disk, which is reported before the disk is written."""
    full = here.base / "full"
    full.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=150m", "none", full], capture_output=True, check=False)
    need("the right to mount a small filesystem", mount.returncode == 0)
    try:
        ran = here.run(*words, env={"WORK_DIR": str(full)})
        check_failure(ran, here, 5, "free, and writing the disk needs", "WORK_DIR")
        assert list(full.iterdir()) == []
    finally:
        subprocess.run(["umount", full], check=True)
