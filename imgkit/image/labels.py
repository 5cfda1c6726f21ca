"""What the configuration of a container image says: the recipe's words, and labels that follow from git and the plan.

Labels: image-spec 1.1, "Annotations", section "Pre-Defined Annotation Keys". Tools read them from the configuration
(Docker, registries' pages) or from the manifest (OCI's own), so they are in both.
"""

from __future__ import annotations

from collections.abc import Mapping

from imgkit.host.gitfacts import GitFacts
from imgkit.oci.descriptors import Platform
from imgkit.oci.layerwriter import rfc3339
from imgkit.oci.writing import ImageFacts
from imgkit.recipe import Recipe

_PREFIX = "org.opencontainers.image."
# arm64 has a variant in what buildx writes, and engines compare it with their own.
_VARIANTS = {"arm64": "v8"}


def platform_of(arch: str) -> Platform:
    """Return the platform of an image for an architecture, whose names here are those of Go."""
    return Platform("linux", arch, _VARIANTS.get(arch, ""))


def facts_of(recipe: Recipe, arch: str, sources: GitFacts | None, epoch: int) -> ImageFacts:
    """Return what the configuration of an image says besides its layers.

    Args:
        arch: imgkit's name of the architecture, ``amd64``.
        sources: what git knows about the recipe's work tree; None if that is nothing.
        epoch: seconds since 1970 at which the image counts as made.
    """
    container = recipe.container
    labels = {**labels_of(sources, epoch), **container.labels}
    return ImageFacts(
        platform=platform_of(arch),
        created=epoch,
        entrypoint=container.entrypoint,
        command=_command(recipe),
        env=container.env,
        user=container.user,
        workdir=container.workdir,
        labels=labels,
        ports=container.ports,
        volumes=container.volumes,
        stop_signal=container.stop_signal,
        annotations={name: value for name, value in labels.items() if name.startswith(_PREFIX)},
    )


def labels_of(sources: GitFacts | None, epoch: int) -> Mapping[str, str]:
    """Return the labels that need no words of the recipe, without those about which nothing is known."""
    known = {"created": rfc3339(epoch)}
    if sources is not None:
        known |= {"revision": sources.revision, "source": sources.source, "version": sources.version}
    return {f"{_PREFIX}{name}": value for name, value in known.items() if value}


def _command(recipe: Recipe) -> tuple[str, ...] | None:
    """Return the recipe's command. An image in which nothing says what runs would be of no use: it runs a shell."""
    container = recipe.container
    if container.command is None and container.entrypoint is None and recipe.base is None:
        return ("/bin/sh",)
    return container.command
