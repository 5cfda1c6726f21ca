"""What ``imgkit boot`` makes of its options, down to the machine that they ask for, without a machine."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from imgkit import cli
from imgkit.commands import machine
from tests.conftest import need_program
from tests.publications import facts


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image with a kernel and an initramfs beside it."""
    path = tmp_path / "linux-amd64.qcow2"
    subprocess.run([need_program("qemu-img"), "create", "-q", "-f", "qcow2", path, "1M"], check=True)
    for name in ("vmlinuz-virt-amd64", "initramfs-virt-amd64"):
        (tmp_path / name).write_text(name)
    return path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What each machine was asked for; they all come up at once and stay off."""
    calls: list[dict[str, Any]] = []

    @contextmanager
    def boot(disk: Path, *, arch: str, firmware: str, **options: Any) -> Iterator[SimpleNamespace]:
        calls.append({"disk": disk, "arch": arch, "firmware": firmware, **options})
        yield SimpleNamespace(
            what=SimpleNamespace(arch=arch, firmware=firmware),
            verdict=SimpleNamespace(accelerator="tcg"),
            memory_mib=4096,
            seconds_to_ready=9.5,
            seconds_to_settled=None,
            heartbeat=lambda: None,
            power_off=lambda: True,
            stages=dict,
        )

    monkeypatch.setattr(machine, "VM", SimpleNamespace(boot=boot))
    return calls


@pytest.mark.parametrize(("words", "settle"), [([], True), (["--no-wait"], False)])
def test_whether_the_guest_is_waited_for(
    words: list[str], settle: bool, image: Path, asked: list[dict[str, Any]]
) -> None:
    assert cli.main(["boot", str(image), *words]) == 0
    assert [call["settle"] for call in asked] == [settle]


def test_a_direct_boot_is_a_record_of_all_three_files(image: Path, asked: list[dict[str, Any]]) -> None:
    kernel, initramfs = (image.with_name(f"{what}-virt-amd64") for what in ("vmlinuz", "initramfs"))
    assert cli.main(["boot", str(image), "--firmware", "direct"]) == 0
    assert [(call["kernel"], call["initrd"]) for call in asked] == [(kernel, initramfs)]
    record = json.loads(image.with_suffix(".boot.json").read_text())
    assert record["image"] == facts(image)
    assert record["boots"]["direct"]["kernel"] == facts(kernel)
    assert record["boots"]["direct"]["initramfs"] == facts(initramfs)


def test_other_boots_take_nothing_from_beside_the_image(image: Path, asked: list[dict[str, Any]]) -> None:
    assert cli.main(["boot", str(image), "--firmware", "uefi"]) == 0
    assert [(call["kernel"], call["initrd"]) for call in asked] == [(None, None)]
    assert {"kernel", "initramfs"}.isdisjoint(json.loads(image.with_suffix(".boot.json").read_text())["boots"]["uefi"])
