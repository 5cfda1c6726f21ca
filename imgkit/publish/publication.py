"""What a publication consists of, as values: names, addresses, and the text of every file that lists others.

The names and variables are those that the host application's downloader and its two publishing scripts use.
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
"""Further names of an architecture in names of images: the application asks for Node's ``process.arch``."""

_VERSION = re.compile(r"(?=.*[0-9])[A-Za-z0-9](?:[A-Za-z0-9._+-]{0,62}[A-Za-z0-9])?")
_DEVICE = re.compile(r"(?i)(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\.|$)")
"""What Windows takes for a device, whatever follows the first dot (Naming Files, Paths, and Namespaces)."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_URL = re.compile(r"https?://[A-Za-z0-9._~:/%+,=\[\]-]+")  # nothing that a shell reading publish.env would act upon


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
        firmwares: those with which the image was seen to boot; empty for an unproved image.
    """

    arch: str
    build_id: str
    image: PublishedFile
    manifest: PublishedFile
    kernel: PublishedFile | None = None
    initramfs: PublishedFile | None = None
    record: PublishedFile | None = None
    firmwares: tuple[str, ...] = ()

    def files(self) -> Iterator[PublishedFile]:
        """Every file, the image under each of its names."""
        yield self.image
        for alias in ALIASES[self.arch]:
            yield PublishedFile(image_name(alias), self.image.sha256, self.image.size)
        yield from (file for file in (self.kernel, self.initramfs, self.manifest, self.record) if file is not None)


@dataclass(frozen=True)
class Publication:
    """One version.

    Attributes:
        base_url: address of the folder that holds the versions, without a slash at the end; None if it is not known.
        generated_at: as JavaScript's ``Date.toISOString`` writes it.
        architectures: in the order of their names.
    """

    version: str
    base_url: str | None
    generated_at: str
    architectures: tuple[PublishedArchitecture, ...]

    def url(self, file: PublishedFile) -> str:
        """The address of ``file``; relative to the folder that holds the versions where its address is not known."""
        return f"{self.base_url}/{self.version}/{file.name}" if self.base_url else f"{self.version}/{file.name}"

    def files(self) -> list[PublishedFile]:
        """Every file with a checksum, in the order of the names."""
        return sorted((file for each in self.architectures for file in each.files()), key=lambda file: file.name)


def check_version(text: str) -> str:
    """A version is a folder's name, on Windows too, and a part of addresses, and has a digit in it.

    Raises:
        UsageError: ``text`` is not one.
    """
    if not _VERSION.fullmatch(text) or ".." in text:
        what = "letters, digits, '.', '_', '-' and '+' with at least one digit, the first and last no sign, no '..'"
        raise UsageError(f"{text!r} is not a version", hint=f"such as v0.1.5: {what}")
    if _DEVICE.match(text):
        raise UsageError(f"{text!r} is the name of a device on Windows", hint="such as v0.1.5")
    return text


def check_base_url(text: str) -> str:
    """An address under which the versions will be found, without slashes at the end.

    Raises:
        UsageError: it cannot be written into ``publish.env``, or is not an address.
    """
    hint = "such as https://images.example/sandbox: http or https, no user, no question mark, other signs as %XX"
    try:
        host = urlsplit(text).hostname
    except ValueError:
        host = None
    if not host or not _URL.fullmatch(text):
        raise UsageError(f"base URL {text!r} cannot be used", hint=hint)
    return text.rstrip("/")


def image_name(arch: str) -> str:
    """The published name of an image."""
    return f"image-linux-{arch}.qcow2"


def texts(publication: Publication) -> dict[str, str]:
    """Files about other files, by name and in the order in which they are to be replaced: the index comes last."""
    files = publication.files()
    return {
        **{f"{file.name}.sha256": _sum(file) for file in files},
        "SHA256SUMS": "".join(map(_sum, files)),
        "publish.env": environment(publication),
        "upload-manifest.json": _json(upload_manifest(publication)),
        INDEX: _json(index(publication)),
    }


def _sum(file: PublishedFile) -> str:
    """A line as ``sha256sum`` prints and reads it."""
    return f"{file.sha256}  {file.name}\n"


def _json(body: Mapping[str, Any]) -> str:
    return json.dumps(body, indent=2, ensure_ascii=False) + "\n"


def upload_manifest(publication: Publication) -> dict[str, Any]:
    """What the application's own upload tool writes."""
    return {
        "version": publication.version,
        "generatedAt": publication.generated_at,
        "images": {
            each.arch: {
                "url": publication.url(each.image),
                "sha256": each.image.sha256,
                "fileName": each.image.name,
            }
            for each in publication.architectures
        },
    }


def environment(publication: Publication) -> str:
    """The variables that the application reads, one a line, for shells, systemd and ``--env-file``."""
    lines = [f"# Version {publication.version}, for the environment of the host application."]
    if publication.base_url:
        lines.append(f"COWORK_SANDBOX_BASE_URL={publication.base_url}")
    else:
        lines.append("# The addresses are missing: publish again with --base-url or COWORK_SANDBOX_BASE_URL.")
    lines.append(f"COWORK_SANDBOX_IMAGE_VERSION={publication.version}")
    for each in publication.architectures:
        lines += _variables(publication, each)
    return "\n".join(lines) + "\n"


def _variables(publication: Publication, each: PublishedArchitecture) -> Iterator[str]:
    arch = each.arch.upper()
    yield f"COWORK_SANDBOX_IMAGE_SHA256_{arch}={each.image.sha256}"
    if publication.base_url:
        for what, file in (("IMAGE", each.image), ("KERNEL", each.kernel), ("INITRD", each.initramfs)):
            if file is not None:
                yield f"COWORK_SANDBOX_{what}_URL_{arch}={publication.url(file)}"


_ROLES = ("image", "kernel", "initramfs", "manifest", "record")


def index(publication: Publication) -> dict[str, Any]:
    """Everything about the publication, for programs; :func:`parse_index` reads it."""
    return {
        "index": VERSION,
        "version": publication.version,
        "generatedAt": publication.generated_at,
        "baseUrl": publication.base_url,
        "architectures": {
            each.arch: {
                "buildId": each.build_id,
                "provedWith": list(each.firmwares),
                "imageNames": [image_name(name) for name in (each.arch, *ALIASES[each.arch])],
                **{role: _entry(publication, getattr(each, role)) for role in _ROLES if getattr(each, role)},
            }
            for each in publication.architectures
        },
    }


def _entry(publication: Publication, file: PublishedFile) -> dict[str, Any]:
    return {"name": file.name, "url": publication.url(file), "sha256": file.sha256, "size": file.size}


def parse_index(data: bytes, where: object) -> Publication:
    """The publication that an index describes.

    Args:
        where: the index, for the message.

    Raises:
        InputError: it is not an index of this version.
    """
    try:
        body = parse_json(data, where)
        if body["index"] != VERSION:
            raise ValueError(f"version {body['index']}")
        found = [_architecture(arch, body["architectures"][arch]) for arch in sorted(body["architectures"])]
        base_url = check_base_url(body["baseUrl"]) if body["baseUrl"] is not None else None
        return Publication(check_version(body["version"]), base_url, str(body["generatedAt"]), tuple(found))
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
