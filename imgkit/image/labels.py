"""What the configuration of a container image says: the recipe's words, and labels that follow from git and the plan.

Labels: image-spec 1.1, "Annotations", section "Pre-Defined Annotation Keys". Tools read them from the configuration
(Docker, registries' pages) or from the manifest (OCI's own), so they are in both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from imgkit.host.gitfacts import GitFacts
from imgkit.oci.documents import RuntimeConfig
from imgkit.oci.layerwriter import rfc3339
from imgkit.oci.writing import ImageFacts
from imgkit.planning.baseimage import PLATFORMS, BaseImage
from imgkit.recipe import Recipe

_PREFIX = "org.opencontainers.image."


def facts_of(recipe: Recipe, arch: str, base: BaseImage | None, sources: GitFacts | None, epoch: int) -> ImageFacts:
    """Return what the configuration of an image says besides its layers.

    What the recipe does not say comes from the base image, as with ``FROM`` in a Dockerfile: its command only if the
    recipe has no entrypoint, since it would become the arguments of another program.

    Args:
        arch: imgkit's name of the architecture, ``amd64``.
        base: the image that this one is built on; None for a minirootfs.
        sources: what git knows about the recipe's work tree; None if that is nothing.
        epoch: seconds since 1970 at which the image counts as made.
    """
    container, inherited = recipe.container, RuntimeConfig() if base is None else base.runtime
    labels = {**(inherited.Labels or {}), **labels_of(base, sources, epoch), **container.labels}
    return ImageFacts(
        platform=PLATFORMS[recipe.architecture(arch).alpine],
        created=epoch,
        entrypoint=_words(container.entrypoint, inherited.Entrypoint),
        command=_command(recipe, inherited),
        env={**_variables(inherited.Env or ()), **container.env},
        user=_first(container.user, inherited.User),
        workdir=_first(container.workdir, inherited.WorkingDir),
        labels=labels,
        ports=_union(inherited.ExposedPorts or (), container.ports),
        volumes=_union(inherited.Volumes or (), container.volumes),
        stop_signal=_first(container.stop_signal, inherited.StopSignal),
        annotations={name: value for name, value in labels.items() if name.startswith(_PREFIX)},
    )


def labels_of(base: BaseImage | None, sources: GitFacts | None, epoch: int) -> Mapping[str, str]:
    """Return the labels that need no words of the recipe, without those about which nothing is known."""
    known = {"created": rfc3339(epoch)}
    if base is not None:
        known |= {"base.name": base.source.name, "base.digest": base.source.manifest}
    if sources is not None:
        known |= {"revision": sources.revision, "source": sources.source, "version": sources.version}
    return {f"{_PREFIX}{name}": value for name, value in known.items() if value}


def _command(recipe: Recipe, inherited: RuntimeConfig) -> tuple[str, ...] | None:
    """Return the arguments. An image in which nothing says what runs would be of no use: it runs a shell."""
    container = recipe.container
    if container.command is not None or container.entrypoint is not None:
        return container.command
    if recipe.base is None:
        return ("/bin/sh",)
    return _words(None, inherited.Cmd)


def _words(own: tuple[str, ...] | None, inherited: Sequence[str] | None) -> tuple[str, ...] | None:
    return tuple(inherited) if own is None and inherited is not None else own


def _first(own: str | None, inherited: str | None) -> str | None:
    return inherited if own is None else own


def _variables(environment: Iterable[str]) -> dict[str, str]:
    """Return NAME=VALUE texts as a mapping. The last one counts where a name is there twice, as for engines."""
    return {name: value for name, _, value in (text.partition("=") for text in environment)}


def _union(inherited: Iterable[str], own: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*inherited, *own)))
