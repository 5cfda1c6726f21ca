"""A guest without an image, for tests of imgkit.vm: the kernel of a wheel with an init that plays agentd."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from fixtures.download import member, wheel
from fixtures.mirror import cache_folder
from fixtures.pins import QUICKSAND, WHEELS
from imgkit.tree import File, Inline
from imgkit.tree.cpio import Member, newc
from imgkit.vm import VM

_INIT = Path(__file__).with_name("init.sh")
_ATTACK = Path(__file__).with_name("attack.sh")


@dataclass(frozen=True)
class Guest:
    """The guest's files. ``initrd`` is the wheel's with :file:`init.sh` as its init, ``disk`` an ext4 in a qcow2."""

    kernel: Path
    initrd: Path
    stock_initrd: Path
    disk: Path


def make(folder: Path) -> Guest:
    """Put the files into ``folder``."""
    source = wheel(WHEELS[QUICKSAND, "x86_64"], cache_folder() / "downloads")
    guest = Guest(*(folder / name for name in ("kernel", "initrd", "stock-initrd", "disk.qcow2")))
    guest.kernel.write_bytes(member(source, ".kernel"))
    guest.disk.write_bytes(member(source, ".qcow2"))
    stock = member(source, ".initrd")
    guest.stock_initrd.write_bytes(stock)
    # Several archives may follow one another, the later files win; one that is not compressed starts at a multiple
    # of 4 (the kernel's Documentation/driver-api/early-userspace/buffer-format.rst).
    guest.initrd.write_bytes(stock + bytes(-len(stock) % 4) + _archive("init", _INIT))
    return guest


def attacking(guest: Guest, folder: Path) -> Path:
    """Return an initrd in ``folder`` whose guest attacks its shares before it plays agentd: :file:`attack.sh`."""
    initrd, base = folder / "attacking-initrd", guest.initrd.read_bytes()
    initrd.write_bytes(base + bytes(-len(base) % 4) + _archive("attack.sh", _ATTACK))
    return initrd


def until_it_says(vm: VM, word: str, seconds: float = 120) -> None:
    """Wait until the console of a machine has ``word``."""
    deadline = time.monotonic() + seconds
    while word not in vm.console():
        assert vm.alive, vm.console()
        assert time.monotonic() < deadline, vm.console()
        time.sleep(0.02)


def _archive(name: str, source: Path) -> bytes:
    """Return a cpio archive of one program."""
    return newc(Member(name, File(content=Inline(source.read_bytes()), mode=0o755)))
