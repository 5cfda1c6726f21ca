"""Download an image as the original application does, implemented from a description of that application alone.

It shares nothing with :mod:`imgkit.publish`. The variables decide the addresses; a file is got with GET, redirects
are followed, it is written to ``NAME.download``, its SHA-256 is compared (of the image only), and it is renamed.
"""

from __future__ import annotations

import hashlib
import shutil
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

VARIANTS = {"x64": "amd64", "arm64": "arm64"}


class ChecksumError(Exception):
    """The application's "checksum mismatch"."""


def read_env(text: str) -> dict[str, str]:
    """Return the variables of a file of lines NAME=VALUE."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


@dataclass(frozen=True)
class App:
    """The application on a computer: its environment, its ``process.arch`` ("x64" or "arm64") and its data folder."""

    env: Mapping[str, str]
    process_arch: str
    data: Path

    @property
    def folder(self) -> Path:
        return self.data / "cowork/sandbox/images" / self.env["COWORK_SANDBOX_IMAGE_VERSION"]

    def variable(self, name: str) -> str | None:
        """Return the value of ``NAME_<ARCH>``, or else of ``NAME``; an empty value counts as unset."""
        variant = VARIANTS[self.process_arch].upper()
        return self.env.get(f"COWORK_SANDBOX_{name}_{variant}") or self.env.get(f"COWORK_SANDBOX_{name}") or None

    def image_url(self) -> str:
        base, version = self.env.get("COWORK_SANDBOX_BASE_URL"), self.env["COWORK_SANDBOX_IMAGE_VERSION"]
        return self.variable("IMAGE_URL") or f"{base}/{version}/image-linux-{self.process_arch}.qcow2"

    def ensure_image(self) -> Path:
        """Return the image, after downloading it if its version is not there.

        Raises:
            ChecksumError: it is not the image of the variables. The download is left behind under its temporary name.
        """
        return self._ensure(f"linux-{self.process_arch}.qcow2", self.image_url(), self.variable("IMAGE_SHA256"))

    def ensure_kernel(self) -> Path | None:
        return self._optional("vmlinuz-virt", self.variable("KERNEL_URL"))

    def ensure_initrd(self) -> Path | None:
        return self._optional("initramfs-virt", self.variable("INITRD_URL"))

    def _optional(self, name: str, url: str | None) -> Path | None:
        return self._ensure(f"{name}-{VARIANTS[self.process_arch]}", url, None) if url else None

    def _ensure(self, name: str, url: str, sha256: str | None) -> Path:
        path, download = self.folder / name, self.folder / f"{name}.download"
        if path.exists():
            return path
        self.folder.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=30) as answer, download.open("wb") as sink:
            shutil.copyfileobj(answer, sink)
        if sha256 and hashlib.sha256(download.read_bytes()).hexdigest().lower() != sha256.lower():
            raise ChecksumError(f"{download.name}: checksum mismatch")
        download.rename(path)
        return path
