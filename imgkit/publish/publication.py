"""The parts of a publication as values: names, addresses, and the texts of the files that list other files.

The names and variables are those that the downloader of the host application and its two publishing scripts use.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from imgkit.errors import InputError, UsageError
from imgkit.host.jsonfile import parse_json

VERSION = 1
INDEX = "index.json"
ARCHES = ("amd64", "arm64")
ALIASES = {"amd64": ("x64",), "arm64": ()}
"""Other names of an architecture in the names of images: the application asks for Node's ``process.arch``."""

_VERSION = re.compile(r"(?=.*[0-9])[A-Za-z0-9](?:[A-Za-z0-9._+-]{0,62}[A-Za-z0-9])?")
_DEVICE = re.compile(r"(?i)(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\.|$)")
"""Names of devices on Windows, with any extension (Microsoft's "Naming Files, Paths, and Namespaces")."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_URL = re.compile(r"https?://[A-Za-z0-9._~:/%+,=\[\]-]+")
"""Addresses without characters that a shell, which may read publish.env, interprets."""


@dataclass(frozen=True)
class PublishedFile:
    """One published file: its name in the folder of the version, its SHA-256 and its size in bytes."""

    name: str
    sha256: str
    size: int


@dataclass(frozen=True)
class PublishedArchitecture:
    """What is published of one architecture.

    Attributes:
        firmwares: the kinds of firmware that have booted the image; empty for an image that is not proved.
    """

    arch: str
    build_id: str
    image: PublishedFile
    manifest: PublishedFile
    kernel: PublishedFile | None = None
    initramfs: PublishedFile | None = None
    record: PublishedFile | None = None
    firmwares: tuple[str, ...] = ()

    @property
    def suffix(self) -> str:
        """The end of the image's name: ``.qcow2`` or ``.raw``."""
        return f".{self.image.name.rpartition('.')[2]}"

    def files(self) -> Iterator[PublishedFile]:
        """Yield every file, the image under each of its names."""
        yield self.image
        for alias in ALIASES[self.arch]:
            yield PublishedFile(image_name(alias, self.suffix), self.image.sha256, self.image.size)
        yield from (file for file in (self.kernel, self.initramfs, self.manifest, self.record) if file is not None)


@dataclass(frozen=True)
class Publication:
    """One version.

    Attributes:
        base_url: address of the folder of the versions, without a slash at the end; None if it is not known.
        generated_at: time of the publication, as JavaScript's ``Date.toISOString`` writes it.
        architectures: in the order of their names.
    """

    version: str
    base_url: str | None
    generated_at: str
    architectures: tuple[PublishedArchitecture, ...]

    def url(self, file: PublishedFile) -> str:
        """Return the address of ``file``, relative to the folder of the versions if ``base_url`` is None."""
        return f"{self.base_url}/{self.version}/{file.name}" if self.base_url else f"{self.version}/{file.name}"

    def files(self) -> list[PublishedFile]:
        """Return every file with a checksum, in the order of the names."""
        return sorted((file for arch in self.architectures for file in arch.files()), key=lambda file: file.name)


def check_version(text: str) -> str:
    """Check that ``text`` can be a version: the name of a folder, on Windows as well, and a part of addresses.

    Raises:
        UsageError: ``text`` cannot be a version.
    """
    if not _VERSION.fullmatch(text) or ".." in text:
        rule = "letters, digits, '.', '_', '-' and '+' with at least one digit, the first and last no sign, no '..'"
        raise UsageError(f"{text!r} is not a version", hint=f"such as v0.1.5: {rule}")
    if _DEVICE.match(text):
        raise UsageError(f"{text!r} is the name of a device on Windows", hint="such as v0.1.5")
    return text


def check_base_url(text: str) -> str:
    """Check the address of the folder of the versions, and return it without slashes at the end.

    Raises:
        UsageError: ``text`` is not an address, or cannot be written into ``publish.env``.
    """
    hint = "such as https://images.example/sandbox: http or https, no user, no question mark, other signs as %XX"
    try:
        host = urlsplit(text).hostname
    except ValueError:
        host = None
    if not host or not _URL.fullmatch(text):
        raise UsageError(f"base URL {text!r} cannot be used", hint=hint)
    return text.rstrip("/")


def image_name(arch: str, suffix: str) -> str:
    """Return the published name of an image; ``suffix`` is ``.qcow2`` or ``.raw``."""
    return f"image-linux-{arch}{suffix}"


def texts(publication: Publication) -> dict[str, str]:
    """Return the texts of the files that list other files, by name.

    They are in the order in which the files are replaced: the index comes last.
    """
    files = publication.files()
    return {
        **{f"{file.name}.sha256": _sum(file) for file in files},
        "SHA256SUMS": "".join(map(_sum, files)),
        "publish.env": environment(publication),
        "upload-manifest.json": _json(upload_manifest(publication)),
        INDEX: _json(index(publication)),
    }


def _sum(file: PublishedFile) -> str:
    """Return a line in the format of ``sha256sum``."""
    return f"{file.sha256}  {file.name}\n"


def _json(body: Mapping[str, Any]) -> str:
    return json.dumps(body, indent=2, ensure_ascii=False) + "\n"


def upload_manifest(publication: Publication) -> dict[str, Any]:
    """Return the manifest that the application's upload tool writes."""
    return {
        "version": publication.version,
        "generatedAt": publication.generated_at,
        "images": {
            published.arch: {
                "url": publication.url(published.image),
                "sha256": published.image.sha256,
                "fileName": published.image.name,
            }
            for published in publication.architectures
        },
    }


def environment(publication: Publication) -> str:
    """Return the variables that the application reads, one per line, for shells, systemd and ``--env-file``."""
    lines = [f"# Version {publication.version}, for the environment of the host application."]
    if publication.base_url:
        lines.append(f"COWORK_SANDBOX_BASE_URL={publication.base_url}")
    else:
        lines.append("# The addresses are missing: publish again with --base-url or COWORK_SANDBOX_BASE_URL.")
    lines.append(f"COWORK_SANDBOX_IMAGE_VERSION={publication.version}")
    for published in publication.architectures:
        lines += _variables(publication, published)
    return "\n".join(lines) + "\n"


def _variables(publication: Publication, published: PublishedArchitecture) -> Iterator[str]:
    arch = published.arch.upper()
    yield f"COWORK_SANDBOX_IMAGE_SHA256_{arch}={published.image.sha256}"
    if publication.base_url:
        files = (("IMAGE", published.image), ("KERNEL", published.kernel), ("INITRD", published.initramfs))
        for role, file in files:
            if file is not None:
                yield f"COWORK_SANDBOX_{role}_URL_{arch}={publication.url(file)}"


_ROLES = ("image", "kernel", "initramfs", "manifest", "record")


def index(publication: Publication) -> dict[str, Any]:
    """Everything about the publication, for programs; :func:`parse_index` reads it."""
    return {
        "index": VERSION,
        "version": publication.version,
        "generatedAt": publication.generated_at,
        "baseUrl": publication.base_url,
        "architectures": {
            published.arch: {
                "buildId": published.build_id,
                "provedWith": list(published.firmwares),
                "imageNames": [
                    image_name(name, published.suffix) for name in (published.arch, *ALIASES[published.arch])
                ],
                **{role: _entry(publication, getattr(published, role)) for role in _ROLES if getattr(published, role)},
            }
            for published in publication.architectures
        },
    }


def _entry(publication: Publication, file: PublishedFile) -> dict[str, Any]:
    return {"name": file.name, "url": publication.url(file), "sha256": file.sha256, "size": file.size}


def parse_index(data: bytes, where: object) -> Publication:
    """Parse an index.

    Args:
        where: what messages call the index.

    Raises:
        InputError: ``data`` is not an index of this version of its format.
    """
    try:
        body = parse_json(data, where)
        if body["index"] != VERSION:
            raise ValueError(f"version {body['index']}")
        architectures = [_architecture(arch, body["architectures"][arch]) for arch in sorted(body["architectures"])]
        base_url = check_base_url(body["baseUrl"]) if body["baseUrl"] is not None else None
        version = check_version(body["version"])
        return Publication(version, base_url, str(body["generatedAt"]), tuple(architectures))
    except (InputError, ValueError, LookupError, TypeError, AttributeError, UsageError) as cause:
        hint = "choose another version, or remove that folder"
        raise InputError(f"{where}: not an index that this imgkit can add to", hint=hint) from cause


def _architecture(arch: str, body: Mapping[str, Any]) -> PublishedArchitecture:
    files = {role: _file(body[role]) for role in _ROLES if role in body}
    if arch not in ARCHES or "image" not in files or "manifest" not in files:
        raise ValueError(arch)
    return PublishedArchitecture(arch, str(body["buildId"]), firmwares=tuple(map(str, body["provedWith"])), **files)


def _file(body: Mapping[str, Any]) -> PublishedFile:
    if not _NAME.fullmatch(body["name"]) or not _SHA256.fullmatch(body["sha256"]):
        raise ValueError("unusable entry")
    return PublishedFile(body["name"], body["sha256"], int(body["size"]))
