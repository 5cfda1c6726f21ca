"""The name of a container image, as users write it: ``[REGISTRY/]NAME[:TAG][@DIGEST]``.

    name = ImageName.parse("alpine:3.22")       # docker.io/library/alpine:3.22
    name = ImageName.parse("registry.example:5000/team/app@sha256:…")
    print(name.registry, name.repository, name.tag, name.digest)

Source: github.com/distribution/reference (``reference.go``, ``regexp.go``, ``normalize.go``), which Docker and Podman
use. There are two differences. The first part of a name that has capital letters but neither a dot nor a colon is
refused here (``Team/app``), where the reference takes it as the name of a registry, which cannot be found then. And
the name of a registry is taken in lower case, because credentials and certificates are looked up by it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from imgkit.errors import UsageError
from imgkit.oci.descriptors import is_digest

DOCKER_HUB = "docker.io"
"""The registry of names that name none."""
DEFAULT_TAG = "latest"
"""The tag of names that have neither a tag nor a digest."""
_OLD_DOCKER_HUB = "index.docker.io"
_OFFICIAL = "library/"  # where Docker Hub has the names of one part
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_REGISTRY = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::(?P<port>[0-9]{{1,5}}))?")
_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_HEX = re.compile(r"[0-9a-f]{64}")
_MAX_REPOSITORY = 255  # characters, without the registry
_MAX_TEXT = 1024
_SHAPE_HINT = "a name is written as [REGISTRY/]NAME[:TAG][@sha256:DIGITS], such as registry.example/team/app:1.0"


class ImageNameError(UsageError):
    """A text is not the name of an image."""


@dataclass(frozen=True)
class ImageName:
    """The name of an image.

    Attributes:
        registry: the host, with a port if it is not the usual one; ``docker.io`` if the user named none.
        repository: the name within the registry, such as ``library/alpine``.
        tag: empty if there is none.
        digest: ``sha256:`` and 64 hexadecimal digits; empty if there is none.
    """

    registry: str
    repository: str
    tag: str = ""
    digest: str = ""

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.full_repository}{tag}{digest}"

    @property
    def full_repository(self) -> str:
        """The registry and the repository, without tag and digest."""
        return f"{self.registry}/{self.repository}"

    @property
    def reference(self) -> str:
        """What a registry is asked for: the digest, or else the tag, or else ``latest``."""
        return self.digest or self.tag or DEFAULT_TAG

    def with_tag(self, tag: str) -> ImageName:
        """Return the name with ``tag`` and without a digest.

        Raises:
            ImageNameError: ``tag`` is not a tag.
        """
        return replace(self, tag=_checked_tag(tag, tag), digest="")

    def with_digest(self, digest: str) -> ImageName:
        """Return the name with ``digest``; its tag stays, as a remark.

        Raises:
            ImageNameError: ``digest`` is not a digest.
        """
        return replace(self, digest=_checked_digest(digest, digest))

    @classmethod
    def parse(cls, text: str) -> ImageName:
        """Parse a name.

        Raises:
            ImageNameError: the text is not the name of an image.
        """
        if len(text) > _MAX_TEXT:
            raise ImageNameError(f"{text[:60]!r}…: has {len(text)} characters, too many for the name of an image")
        if "://" in text:
            raise ImageNameError(f"{text!r}: the name of an image has no scheme", hint=_SHAPE_HINT)
        rest, at, digest = text.partition("@")
        place, tag = _split_tag(rest)
        registry, repository = _split_registry(place, text)
        return cls(
            _checked_registry(registry, text),
            _checked_repository(repository, text),
            "" if tag is None else _checked_tag(tag, text),
            _checked_digest(digest, text) if at else "",
        )


def is_tag(text: str) -> bool:
    """Return whether ``text`` can be a tag: 1 to 128 letters, digits, ``_``, ``.``, ``-``, no ``.`` or ``-`` first."""
    return _TAG.fullmatch(text) is not None


def _split_tag(text: str) -> tuple[str, str | None]:
    """Split off the tag: what follows a colon in the last part. A colon in an earlier part belongs to a port."""
    head, slash, last = text.rpartition("/")
    name, colon, tag = last.partition(":")
    return head + slash + name, tag if colon else None


def _split_registry(place: str, text: str) -> tuple[str, str]:
    """Split a name without tag and digest into registry and repository."""
    first, slash, rest = place.partition("/")
    if not slash:
        return DOCKER_HUB, _OFFICIAL + place
    if not (any(character in first for character in ".:[") or first == "localhost"):
        if first != first.lower():
            raise _capitals(text)
        return DOCKER_HUB, place
    registry = first.lower()
    if registry == _OLD_DOCKER_HUB:
        registry = DOCKER_HUB
    return registry, _OFFICIAL + rest if registry == DOCKER_HUB and "/" not in rest else rest


def _checked_registry(registry: str, text: str) -> str:
    match = _REGISTRY.fullmatch(registry)
    if not match or int(match["port"] or 0) > 65535:
        raise ImageNameError(f"{text!r}: {registry!r} is not the name of a registry", hint=_SHAPE_HINT)
    return registry


def _checked_repository(repository: str, text: str) -> str:
    if _HEX.fullmatch(repository.removeprefix(_OFFICIAL)):
        raise ImageNameError(f"{text!r}: is the digits of a digest, not the name of an image", hint=_SHAPE_HINT)
    if not _REPOSITORY.fullmatch(repository):
        if _REPOSITORY.fullmatch(repository.lower()):
            raise _capitals(text)
        raise ImageNameError(f"{text!r}: is not the name of an image", hint=_SHAPE_HINT)
    if len(repository) > _MAX_REPOSITORY:
        raise ImageNameError(f"{text[:60]!r}…: the repository has more than {_MAX_REPOSITORY} characters")
    return repository


def _capitals(text: str) -> ImageNameError:
    return ImageNameError(f"{text!r}: a repository has capital letters", hint=f"write it in lower case: {_lower(text)}")


def _lower(text: str) -> str:
    """Return a name with registry and repository in lower case; a tag may have capital letters."""
    place, tag = _split_tag(text.partition("@")[0])
    return place.lower() + ("" if tag is None else f":{tag}")


def _checked_tag(tag: str, text: str) -> str:
    if not is_tag(tag):
        hint = "a tag has up to 128 letters, digits, _, . and -, and begins with neither . nor -"
        raise ImageNameError(f"{text!r}: {tag[:140]!r} is not a tag", hint=hint)
    return tag


def _checked_digest(digest: str, text: str) -> str:
    if not is_digest(digest):
        hint = "a digest is sha256: and 64 hexadecimal digits in lower case"
        raise ImageNameError(f"{text!r}: {digest[:80]!r} is not a digest", hint=hint)
    return digest
