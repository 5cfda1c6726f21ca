"""Push images to the registry that is made by hand, and pull them."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from imgkit.oci.ocilayout import OciLayout
from imgkit.registry.imageparts import read_parts
from imgkit.registry.pulling import fetch_image
from imgkit.registry.pushing import PushResult, push, push_targets
from tests.registries import FakeRegistry, access, image, layer


def pushed(registry: FakeRegistry, layout: OciLayout, *names: str, **options: object) -> PushResult:
    parts = read_parts(layout)
    targets = push_targets([registry.name(name) for name in names or ("a/b:1",)], parts.root)
    return push(layout, parts, targets, access=access(**options))


def one_image(folder: Path, *sizes: int) -> OciLayout:
    layout = OciLayout.create(folder)
    layout.write_index([image(layout, [layer(number, size) for number, size in enumerate(sizes)])])
    return layout


def login(folder: Path, *hosts: str) -> dict[str, str]:
    """Return an environment with credentials for some hosts."""
    secret = base64.b64encode(b"ann:password-of-ann").decode()
    (folder / "auth.json").write_text(json.dumps({"auths": {host: {"auth": secret} for host in hosts}}))
    return {"REGISTRY_AUTH_FILE": str(folder / "auth.json")}


def pull_of(registry: FakeRegistry, folder: Path, name: str = "a/b:1", **options: object) -> OciLayout:
    layout = OciLayout.create(folder)
    fetch_image(registry.name(name), layout, access=access(**options))
    return layout
