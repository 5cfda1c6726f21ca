"""Make small replacements of what a build and its boots leave, for tests of publishing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.files import digest

ARCHES = ("amd64", "arm64")


def facts(path: Path) -> dict[str, Any]:
    return {"name": path.name, "sha256": digest(path), "size": path.stat().st_size}


def build(out: Path, arch: str, seed: str = "", image_format: str = "qcow2") -> Path:
    """Make an image of a few KB and the files that a build puts beside it. Another ``seed`` makes other contents."""
    out.mkdir(exist_ok=True)
    image = out / f"linux-{arch}.{image_format}"
    kernel, initramfs = out / f"vmlinuz-virt-{arch}", out / f"initramfs-virt-{arch}"
    for path in (image, kernel, initramfs):
        path.write_bytes(f"{path.name} {seed}\n".encode() * 300)
    image.write_bytes((b"QFI\xfb" if image_format == "qcow2" else bytes(4 << 20)) + image.read_bytes())
    manifest = {
        "manifest": 1,
        "arch": arch,
        "buildId": f"build-{arch}{seed}",
        "image": {**facts(image), "virtualSize": 1 << 32},
        "boot": {"kernel": facts(kernel), "initramfs": facts(initramfs)},
        "files": {},
    }
    image.with_suffix(".manifest.json").write_text(json.dumps(manifest))
    return image


def booted(out: Path, arch: str) -> dict[str, Any]:
    """Return a boot record's facts about the files beside the image that a direct boot uses."""
    return {"kernel": facts(out / f"vmlinuz-virt-{arch}"), "initramfs": facts(out / f"initramfs-virt-{arch}")}


def prove(image: Path, *firmwares: str, **extra: Mapping[str, Any]) -> None:
    """Write a boot record as ``imgkit boot`` does; ``extra`` is added to each of its boots."""
    arch = image.stem.partition("-")[2]
    boot = {"time": "2026-01-02T03:04:05Z", "secondsToReady": 9.5, "accelerator": "tcg", **extra}
    record = {"bootRecord": 1, "image": facts(image), "arch": arch, "boots": dict.fromkeys(firmwares, boot)}
    image.with_suffix(".boot.json").write_text(json.dumps(record))


def proved(out: Path, *arches: str, seed: str = "") -> Path:
    """Return a folder of images that have been booted."""
    for arch in arches or ARCHES:
        prove(build(out, arch, seed), "bios" if arch == "amd64" else "uefi")
    return out
