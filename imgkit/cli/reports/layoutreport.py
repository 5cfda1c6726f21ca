"""What ``imgkit inspect`` says of a container image: its platforms, how it is started, its layers and packages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from imgkit.api.inspecting import ContainerContents


def text(path: Path, images: Sequence[ContainerContents]) -> str:
    """Return the images as tables."""
    lines = [f"{path}: {len(images)} {'image' if len(images) == 1 else 'images'}"]
    for image in images:
        lines += ["", *_table(image)]
    return "\n".join(lines)


def _table(image: ContainerContents) -> list[str]:
    facts = {
        "digest": image.digest,
        "created": image.created,
        "entrypoint": " ".join(image.entrypoint),
        "command": " ".join(image.command),
        "user": image.user or "root",
        "workdir": image.workdir,
        "set-id": " ".join(image.privileged),
    }
    lines = [image.platform, *(f"{name:<12} {value}" for name, value in facts.items() if value)]
    lines += ["", f"{'size':>12}  layer"]
    lines += [f"{layer.size / 1e6:9.1f} MB  {layer.digest[:19]}  {layer.reason[:60]}" for layer in image.layers]
    return [*lines, "", f"{image.files} files, {len(image.packages)} packages", *_wrapped(image.packages)]


def _wrapped(words: Sequence[str]) -> list[str]:
    """Return words in lines of at most 100 characters, each of which begins with two blanks."""
    lines = [" "]
    for word in words:
        if len(lines[-1]) + len(word) > 98:
            lines.append(" ")
        lines[-1] += f" {word}"
    return lines if words else []
