"""GRUB's core images, taken from the cache if an earlier build made them of the same modules: half of it is LZMA."""

from __future__ import annotations

from imgkit.disk.grub import FOLDER, ImageOf, make_image
from imgkit.rootfs.keptsteps import KeptSteps, described
from imgkit.tree import Directory, File, Tree


def image_or_take(kept: KeptSteps) -> ImageOf:
    """Return a function that does what :func:`imgkit.disk.grub.make_image` does.

    Args:
        kept: the results of earlier builds.
    """

    def image_of(tree: Tree, platform: str, root_uuid: str) -> bytes:
        nodes = {path: tree[path] for path in tree.children(f"{FOLDER}/{platform}")}
        if not nodes or not all(isinstance(node, (File, Directory)) for node in nodes.values()):  # links lead anywhere
            return make_image(tree, platform, root_uuid)
        inputs = [platform, root_uuid, *(described(path, node) for path, node in nodes.items())]
        return kept.get("grub", inputs, lambda: make_image(tree, platform, root_uuid))

    return image_of
