"""Build a container image. :func:`build_container` runs the steps in order; other modules do the work::

result = build_container(ContainerRequest(recipe, ("amd64", "arm64"), Path("out"), cache, ("oci",)))
print(result.digest)

All architectures are built one after the other into one layout, since nothing of the target runs and compression uses
all processors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from imgkit.fetch.cache import Cache
from imgkit.host.gitfacts import GitFacts
from imgkit.host.progress import Steps
from imgkit.image import gathering
from imgkit.image.buildid import ImageIdentity, container_facts, identify
from imgkit.image.containerfiles import BuiltImage, place_container
from imgkit.image.containermanifest import describe_container
from imgkit.image.labels import facts_of
from imgkit.image.workspace import workspace
from imgkit.oci.compression import Compression
from imgkit.oci.layercache import LayerCache
from imgkit.oci.layerchanges import changes
from imgkit.oci.layerwriter import ImageLayer, LayerWriter
from imgkit.oci.ocilayout import OciLayout
from imgkit.oci.writing import write_image, write_layout_index
from imgkit.planning.baseimage import BaseImage
from imgkit.planning.plan import Plan
from imgkit.recipe import Output, Recipe, Shape
from imgkit.registry.access import RegistryAccess
from imgkit.rootfs.composecontainer import ContainerComposition, compose_container
from imgkit.tree import File, Inline, Tree

_NO_PLANS: Mapping[str, Plan] = MappingProxyType({})


@dataclass(frozen=True)
class ContainerRequest:
    """What to build and where to put it.

    Attributes:
        arches: imgkit's names of the architectures, ``amd64``.
        out: the folder for the results.
        outputs: which of the forms of a container image to write.
        work: the folder for scratch files; None makes one in ``out``.
        locked: architecture → the plan of a lock file, which is built exactly; plans are made for the others.
        allow_stale: warn of an old or misplaced index or minirootfs instead of refusing it.
        access: how the registry of the recipe's base is reached; None for the usual way.
        epoch: the time of what a build generates, in seconds since 1970 (SOURCE_DATE_EPOCH); None takes the plan's.
        sources: what git knows about the recipe's work tree; None if that is nothing.
    """

    recipe: Recipe
    arches: Sequence[str]
    out: Path
    cache: Cache
    outputs: Sequence[Output] = ("oci",)
    work: Path | None = None
    locked: Mapping[str, Plan] = field(default_factory=lambda: _NO_PLANS)
    allow_stale: bool = False
    epoch: int | None = None
    sources: GitFacts | None = None
    access: RegistryAccess | None = None


@dataclass(frozen=True)
class ContainerResult:
    """The files that a build put into place.

    Attributes:
        paths: the layout or the archives, and the manifests beside them.
        digest: what the image is called by content: that of the index, or of the manifest if there is only one.
        images: one for each architecture.
        steps: how long each step took.
    """

    paths: tuple[Path, ...]
    digest: str
    images: tuple[BuiltImage, ...]
    steps: Steps


@dataclass(frozen=True)
class _RootRequest:
    """The request for the root filesystem of one architecture (:class:`imgkit.image.gathering.RootRequest`)."""

    recipe: Recipe
    arch: str
    cache: Cache
    locked: Plan | None
    allow_stale: bool
    access: RegistryAccess | None
    shape: Shape = "container"


def build_container(request: ContainerRequest) -> ContainerResult:
    """Make a container image. Nothing appears in ``out`` before all of it is there.

    Raises:
        ImgkitError: the build failed; the subclass says whose fault it is. No output file and no process is left.
    """
    steps = Steps()
    with workspace(request.out, request.work) as work:
        layout = OciLayout.create(work / "layout")
        writer = LayerWriter(
            layout, Compression(request.recipe.container.compression), cache=LayerCache(request.cache.folder)
        )
        images = tuple(_build(request, arch, layout, writer, work, steps) for arch in request.arches)
        name = f"docker.io/library/{request.recipe.name}:latest"
        top = write_layout_index(layout, [image.manifest for image in images], name=name)
        with steps.step("put into place"):
            paths = place_container(request.recipe, request.outputs, layout, images, request.out, name=name)
    return ContainerResult(paths, top.digest, images, steps)


def _build(
    request: ContainerRequest, arch: str, layout: OciLayout, writer: LayerWriter, work: Path, steps: Steps
) -> BuiltImage:
    """Write the image of one architecture into the layout."""
    recipe = request.recipe
    root = _RootRequest(recipe, arch, request.cache, request.locked.get(arch), request.allow_stale, request.access)
    folder = work / arch
    folder.mkdir()
    with steps.step(f"{arch}: plan"):
        base, plan = gathering.plan(root, folder / "base")
    with steps.step(f"{arch}: fetch packages"):
        plan, packages = gathering.packages(root, base, plan, folder / "packages")
    with steps.step(f"{arch}: prepare the payload"):
        payload = gathering.payload(root, folder / "payload")
        agent = gathering.agent_payload(root, folder / "agent")
    epoch = plan.epoch if request.epoch is None else request.epoch
    with steps.step(f"{arch}: compose the root filesystem"):
        composition = compose_container(base.tree, packages, recipe, arch, payload=payload, agent=agent, epoch=epoch)
        gathering.judge(root, plan, base, composition.binaries)
        identity = identify(
            composition.tree, recipe.name, arch, container_facts(recipe, arch, plan, epoch), epoch=epoch
        )
    with steps.step(f"{arch}: write the layers"):
        below = () if base.image is None else _base_layers(base.image, layout)
        layers = (*below, *_write_layers(composition, identity, _lower(base.image), writer, epoch))
        facts = facts_of(recipe, arch, base.image, request.sources, epoch)
        manifest = write_image(layout, layers, facts)
    description = describe_container(recipe, plan, composition, identity, manifest, layers, base.image)
    return BuiltImage(arch, manifest, identity.build_id, layers, description)


def _base_layers(image: BaseImage, layout: OciLayout) -> Sequence[ImageLayer]:
    """Copy the layers of the base into the layout, as they are."""
    image.copy_layers(layout)
    return image.layers


def _lower(image: BaseImage | None) -> Tree | None:
    """Return what the layers of the base hold, with stand-ins for device nodes, so that a whiteout removes them."""
    if image is None:
        return None
    tree = image.tree.copy()
    for path in image.left_out:
        tree.add(path, File(content=Inline(b"")))
    return tree


def _write_layers(
    composition: ContainerComposition, identity: ImageIdentity, before: Tree | None, writer: LayerWriter, epoch: int
) -> tuple[ImageLayer, ...]:
    """Write a layer for each stage.

    Args:
        before: what the layers of the base image hold; None if there are none.
    """
    hashes = {path[1:]: record["sha256"] for path, record in identity.records.items() if "sha256" in record}
    layers = []
    for stage in composition.stages:
        layer = changes(before, stage.tree)
        known = {
            path: hashes[path] for path, node in layer.entries if composition.tree.get(path) == node and path in hashes
        }
        layers.append(writer.write(layer, reason=stage.reason, created=epoch, hashes=known))
        before = stage.tree
    return tuple(layers)
