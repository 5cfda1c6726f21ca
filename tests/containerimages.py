"""Container images for tests of machines: Alpine with agentd, Alpine alone, and one static program.

No layer is compressed.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fixtures.mirror import Mirror
from imgkit.fetch.cache import Cache
from imgkit.planning.base import fetch_base
from imgkit.planning.download import fetch_packages, open_planned
from imgkit.planning.resolve import make_plan
from imgkit.recipe import load
from imgkit.rootfs.composecontainer import compose_container
from imgkit.rootfs.steps import PackageSet
from tests.images import RECIPE
from tests.ociimages import AMD64, ARM64, Entry, maker, tar

ALPINE = {"amd64": "x86_64", "arm64": "aarch64"}
PLATFORMS = {"amd64": AMD64, "arm64": ARM64}


def layout_of(place: Path, layer: bytes, config: Mapping[str, Any], arch: str = "amd64") -> Path:
    """Make a layout with one image of one layer.

    Args:
        config: the member ``config`` of the image configuration.
    """
    made = maker(place, compression="tar", platform=PLATFORMS[arch], config={"config": dict(config)})
    made.layout.write_index([made.image(layer)])
    return place


def alpine_alone(place: Path, mirror: Mirror, config: Mapping[str, Any], arch: str = "amd64") -> Path:
    """Make an image of the minirootfs, with two accounts of which one is in a further group."""
    (archive,) = mirror.root.glob(f"**/alpine-minirootfs-*-{ALPINE[arch]}.tar.gz")
    accounts = "root:x:0:0:root:/root:/bin/sh\nweb:x:1500:1600:web:/home/web:/bin/sh\n"
    groups = "root:x:0:root\nweb:x:1600:\nextra:x:1700:web\n"
    added = tar(Entry("etc/passwd", accounts.encode()), Entry("etc/group", groups.encode()))
    made = maker(place, compression="tar", platform=PLATFORMS[arch], config={"config": dict(config)})
    made.layout.write_index([made.image(gzip.decompress(archive.read_bytes()), added)])
    return place


def static_program(mirror: Mirror) -> bytes:
    """Return the static bash of the mirror, which is Debian's."""
    (package,) = mirror.root.glob("**/x86_64/bash-*.apk")
    with tarfile.open(package, "r:gz", ignore_zeros=True) as archive:
        source = archive.extractfile("bin/bash")
        assert source is not None
        return source.read()


def with_agent(place: Path, mirror: Mirror, mirror_url: str, folder: Path) -> Path:
    """Make the container image of recipes/core.py, which has agentd.

    Args:
        folder: an empty folder, which takes the cache and the contents of files.
    """
    recipe = load(RECIPE, {"mirror": mirror_url, "release_key": mirror.release_key})
    cache = Cache(folder / "cache")
    base = fetch_base(recipe, "amd64", cache, folder / "base")
    plan = make_plan(recipe, "amd64", base, cache, shape="container")
    plan, files = fetch_packages(plan, base, cache)
    chosen = tuple(planned.package for planned in plan.packages)
    selection = PackageSet(chosen, partial(open_planned, files, base, folder / "packages"), plan.world)
    composition = compose_container(base.tree, selection, recipe, "amd64", payload=None, epoch=plan.epoch)
    layer = io.BytesIO()
    composition.stages[-1].tree.write_tar(layer)
    return layout_of(place, layer.getvalue(), {"Cmd": ["/bin/bash"], "WorkingDir": "/workspace"})
