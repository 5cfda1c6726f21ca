"""The field ``container`` of a recipe: what only its container image has, and how a container is started.

The defaults say nothing, so an image with a base keeps what the base says. Names and meanings are those of the image
configuration (image-spec 1.1, "Image Configuration", member ``config``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from imgkit.recipe.record import RecipeRecord, frozen, matching

_PORT = re.compile(r"([0-9]{1,5})(/(?:tcp|udp|sctp))?", re.ASCII)
_SIGNAL = re.compile(r"SIG[A-Z0-9]+([+-][0-9]{1,2})?|[0-9]{1,2}", re.ASCII)


def _port(value: object) -> str:
    """Return a port as images name it: ``8080/tcp`` for 8080 and "8080"."""
    match = _PORT.fullmatch(str(value))
    if match is None or not 1 <= int(match[1]) <= 65535:
        raise ValueError("is not a port such as 8080 or 53/udp")
    return f"{int(match[1])}{match[2] or '/tcp'}"


def _signal(text: str) -> str:
    if not _SIGNAL.fullmatch(text):
        raise ValueError("is not a signal such as SIGTERM or SIGRTMIN+3")
    return text


def _environment(variables: Mapping[str, str]) -> Mapping[str, str]:
    for name in variables:
        if not name or "=" in name:
            raise ValueError(f"{name!r} is not the name of a variable")
    return frozen(variables)


Word = Annotated[str, matching(r"[^\x00]*", "has a zero byte in it")]
Port = Annotated[str, BeforeValidator(_port)]
ContainerFolder = Annotated[str, matching(r"/[^\x00-\x1f\x7f]*", "is not an absolute path")]


class ContainerSpec(RecipeRecord):
    """What a recipe's container image has, and how a container is started."""

    packages: tuple[str, ...] = Field(default=(), examples=[["tini"]])
    """Packages of the container image alone."""
    entrypoint: tuple[Word, ...] | None = Field(default=None, examples=[["/usr/local/bin/entrypoint"]])
    """The program and its first arguments."""
    command: tuple[Word, ...] | None = Field(default=None, examples=[["/bin/bash"]])
    """Further arguments, or the whole command if there is no entrypoint. Whoever starts a container may replace it."""
    env: Annotated[Mapping[str, Word], AfterValidator(_environment)] = Field(
        default_factory=dict, examples=[{"LANG": "C.UTF-8"}]
    )
    """Variables of the environment, besides those of the base."""
    user: str | None = Field(default=None, examples=["agent", "1000:1000"])
    """Who the program starts as: ``agent``, ``1000`` or ``1000:1000``; without it, root."""
    workdir: ContainerFolder | None = Field(default=None, examples=["/workspace"])
    """Where the program starts."""
    labels: Annotated[Mapping[str, Word], AfterValidator(frozen)] = Field(
        default_factory=dict, examples=[{"org.opencontainers.image.title": "sandbox"}]
    )
    """Facts about the image. Those of ``org.opencontainers.image`` that are not given are filled in."""
    ports: tuple[Port, ...] = Field(default=(), examples=[[8080, "53/udp"]])
    """Ports on which the program listens: 8080, or "53/udp"."""
    volumes: tuple[ContainerFolder, ...] = Field(default=(), examples=[["/workspace"]])
    """Folders whose contents are kept apart from the container."""
    stop_signal: Annotated[str, AfterValidator(_signal)] | None = Field(default=None, examples=["SIGTERM"])
    """What asks the program to end."""
    compression: Literal["gzip", "zstd"] = Field(default="gzip", examples=["zstd"])
    """Compression of the layers. Docker before version 23 cannot read zstd."""
