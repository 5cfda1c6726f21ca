"""A guest works hard on a disk of the native engine: the disk is filled, loses its power, is enlarged and grows."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests import rootport
from tests.conftest import need_program
from tests.images import Builder, Image, rooted
from tests.rootport import RootedVM
from tests.secondopinion import examine
from tests.test_boots import SIZES, TIMEOUT, Sizes, check_growth
from tests.vmspecs import writable

pytestmark = pytest.mark.vm

ENLARGED = 64 << 30
FILES = 100_000

FILL = """
cd /root
free=$(df -k / | tail -n 1 | tr -s ' ' | cut -d ' ' -f 4)
fallocate -l $((free - 65536))k most || exit 1
dd if=/dev/zero of=rest bs=64k 2>said && exit 2
cat said >&2
rm most rest said
"""
"""Reserve all but 64 MiB, so that it takes less time, and write until nothing is left."""
MAKE_FILES = f"""
mkdir /root/many /root/numbers
cd /root/many
seq {FILES} | xargs touch
cd /root/numbers
seq 2000 | split -l 1 -a 3 - x
sync
"""
"""Make empty files, and some with a number in each."""
WRITE_ON = """
cd /root
mkdir unfinished
echo kept >kept; sync
(i=0; while :; do i=$((i + 1)); echo $i >unfinished/$i; mv unfinished/$i unfinished/moved$i; done) >/dev/null 2>&1 &
sleep 3
ls unfinished | wc -l
"""
"""Write something that must survive; then files that may be lost, without end."""


@pytest.fixture
def disk(builder: Builder, tmp_path: Path) -> tuple[Path, Image]:
    """Return an image of 2 GiB, which has enough inodes, and a copy to write to."""
    (tmp_path / "overlay").mkdir()
    words = rooted(tmp_path / "overlay", "2G")
    image = builder.build(tmp_path / "built", "--engine", "native", *words)["amd64"]
    copy = tmp_path / "disk.qcow2"
    shutil.copyfile(image.disk, copy)
    return copy, image


def said(vm: RootedVM, command: str, timeout: float = TIMEOUT) -> list[str]:
    """Run a command as root, which must succeed; return its lines, those of standard error first."""
    done = vm.root(command, timeout=timeout)
    assert done.status == 0, (command, done)
    return (done.stderr.decode() + done.text).splitlines()


def test_it_is_filled_loses_power_and_grows(disk: tuple[Path, Image]) -> None:
    copy, image = disk
    options: dict[str, Any] = {"arch": "amd64", "accelerator": "tcg", "timeout": TIMEOUT, "adapt": writable, "cpus": 1}
    with rootport.booted(copy, **options) as vm:
        assert any("No space left on device" in line for line in said(vm, FILL))
        said(vm, MAKE_FILES)
        assert int(said(vm, WRITE_ON)[-1]) > 1
        os.kill(vm.pid, signal.SIGKILL)
    subprocess.run([need_program("qemu-img"), "resize", "-q", copy, str(ENLARGED)], check=True)
    with rootport.booted(copy, **options) as vm:
        assert any("recovery complete" in line for line in said(vm, "dmesg")), "the journal was replayed"
        check_growth(Sizes.parsed("\n".join(said(vm, SIZES))), image, ENLARGED)
        assert said(vm, "cat /root/kept") == ["kept"]
        assert said(vm, "ls /root/many | sort -n | md5sum") == said(vm, f"seq {FILES} | md5sum")
        assert said(vm, "cat /root/numbers/* | sort -n | md5sum") == said(vm, "seq 2000 | md5sum")
        said(vm, "! dmesg | grep -i 'ext4.*error' && rm -r /root/numbers && echo after >/root/after")
        assert vm.power_off(TIMEOUT), "with a clean filesystem"
    examine(copy)
