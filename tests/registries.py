"""Registries for tests: Debian's docker-registry, and one made by hand that misbehaves where it is told to."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import json
import random
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from imgkit.oci import mediatypes
from imgkit.oci.descriptors import Descriptor, Platform
from imgkit.oci.imagename import ImageName
from imgkit.oci.ocilayout import OciLayout, to_json
from imgkit.registry.access import RegistryAccess
from tests.conftest import need_program

PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in to the network</title></head></html>\n"
_START_TIMEOUT = 20.0


def access(**changes: Any) -> RegistryAccess:
    """Return how tests reach registries: plain http, no credentials, short pauses."""
    usual = RegistryAccess(insecure=True, environ={}, attempts=3, pause=0.01, stall_timeout=20.0, commit_timeout=20.0)
    return replace(usual, **changes)


# ---- images ----------------------------------------------------------------------------------------------------------


def image(layout: OciLayout, layers: Sequence[bytes], architecture: str = "amd64", **further: Any) -> Descriptor:
    """Add an image with these layers (any bytes) to a layout; return its manifest's descriptor."""
    descriptors = [layout.add(mediatypes.LAYER_GZIP, data) for data in layers]
    diff_ids = [f"sha256:{hashlib.sha256(gzip.decompress(data)).hexdigest()}" for data in layers]
    config = {"architecture": architecture, "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    manifest = {
        "schemaVersion": 2,
        "mediaType": mediatypes.MANIFEST,
        "config": layout.add(mediatypes.CONFIG, to_json(config)).to_json(),
        "layers": [descriptor.to_json() for descriptor in descriptors],
        **further,
    }
    return replace(layout.add(mediatypes.MANIFEST, to_json(manifest)), platform=Platform("linux", architecture))


def layer(seed: int, size: int = 3000) -> bytes:
    """Return a layer of random bytes, which do not get smaller."""
    return gzip.compress(random.Random(seed).randbytes(size), 1, mtime=0)


def two_architectures(folder: Path, size: int = 3000) -> OciLayout:
    """Make a layout as imgkit writes it: an index of two images, with a layer that they share."""
    layout = OciLayout.create(folder)
    images = [
        image(layout, [layer(1), layer(2 + number, size)], arch) for number, arch in enumerate(("amd64", "arm64"))
    ]
    layout.write_index(images)
    return layout


def blobs_of(layout: OciLayout) -> dict[str, bytes]:
    """Return all blobs of a layout by their digests."""
    return {f"sha256:{path.name}": path.read_bytes() for path in (layout.folder / "blobs/sha256").iterdir()}


# ---- Debian's docker-registry ----------------------------------------------------------------------------------------


@dataclass
class DockerRegistry:
    """A running docker-registry; ``host`` has its port."""

    host: str
    log: Path

    def name(self, text: str) -> ImageName:
        return ImageName.parse(f"{self.host}/{text}")

    def requests(self, method: str, pattern: str) -> list[str]:
        """Return the paths of the requests that it has answered, by its log."""
        lines = re.findall(rf'"{method} (\S+) HTTP/1.1"', self.log.read_text(errors="replace"))
        return [line for line in lines if re.search(pattern, line)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def docker_registry(
    folder: Path, *, auth: Mapping[str, Any] | None = None, tls: tuple[Path, Path] | None = None
) -> Iterator[DockerRegistry]:
    """Run docker-registry on loopback.

    Args:
        auth: the section ``auth`` of its configuration.
        tls: certificate and key.
    """
    program = need_program("docker-registry")
    folder.mkdir(exist_ok=True)
    host = f"127.0.0.1:{free_port()}"
    options: dict[str, Any] = {"addr": host, "secret": "test"}
    if tls is not None:
        options["tls"] = {"certificate": str(tls[0]), "key": str(tls[1])}
    config = {
        "version": 0.1,
        "log": {"level": "info"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "store")}, "delete": {"enabled": True}},
        "http": options,
        **({"auth": auth} if auth else {}),
    }
    (folder / "config.yml").write_text(yaml.safe_dump(config))
    log = folder / "log"
    with (
        log.open("wb") as sink,
        subprocess.Popen(
            [program, "serve", folder / "config.yml"], stdin=subprocess.DEVNULL, stdout=sink, stderr=sink
        ) as child,
    ):
        try:
            _wait_until_open(host, child)
            yield DockerRegistry(host, log)
        finally:
            child.kill()


def _wait_until_open(host: str, child: subprocess.Popen[bytes]) -> None:
    name, _, port = host.partition(":")
    end = time.monotonic() + _START_TIMEOUT
    while time.monotonic() < end and child.poll() is None:
        with suppress(OSError), socket.create_connection((name, int(port)), timeout=1):
            return
        time.sleep(0.02)
    raise AssertionError("docker-registry does not start")


def htpasswd(folder: Path, user: str, password: str) -> dict[str, Any]:
    """Return the section of basic authentication."""
    line = subprocess.run(
        [need_program("htpasswd"), "-Bbn", user, password], stdin=subprocess.DEVNULL, capture_output=True, check=True
    ).stdout
    (folder / "htpasswd").write_bytes(line)
    return {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}}


def certificates(folder: Path) -> tuple[Path, Path, Path]:
    """Make an authority and a certificate for loopback; return the paths of both and of the latter's key."""
    folder.mkdir(exist_ok=True)
    authority = ec.generate_private_key(ec.SECP256R1())
    root = _certificate("test authority", authority, "test authority", authority, is_authority=True)
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = _certificate("localhost", key, "test authority", authority, is_authority=False)
    paths = folder / "ca.pem", folder / "server.pem", folder / "server.key"
    paths[0].write_bytes(root.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(leaf.public_bytes(serialization.Encoding.PEM))
    paths[2].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


def _certificate(
    subject: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    is_authority: bool,
) -> x509.Certificate:
    import ipaddress

    now = datetime.now(timezone.utc)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if is_authority:
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        builder = builder.add_extension(usage, critical=True)
    else:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


# ---- a registry made by hand -----------------------------------------------------------------------------------------

Reply = tuple[int, Mapping[str, str], bytes]
Rule = Callable[["Request"], "Reply | None"]


@dataclass(frozen=True)
class Request:
    """A request that the registry made by hand has received. ``handler`` can do anything to the connection."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    handler: _Handler = field(repr=False)

    def body(self) -> bytes:
        return self.handler.rfile.read(int(self.headers.get("Content-Length") or 0))


@dataclass
class FakeRegistry:
    """A registry in memory. ``rules`` are asked before it answers itself: what one returns is the answer.

    Attributes:
        url: scheme, host and port.
        manifests: (repository, tag or digest) → (media type, bytes).
        blobs: (repository, digest) → bytes.
        uploads: number → bytes so far.
        seen: method and path of each request, with its query.
        sizes: bytes of the bodies of requests, by method.
    """

    url: str
    rules: list[Rule] = field(default_factory=list)
    manifests: dict[tuple[str, str], tuple[str, bytes]] = field(default_factory=dict)
    blobs: dict[tuple[str, str], bytes] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)
    authorizations: list[str] = field(default_factory=list)
    minimum: int = 0

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc

    def name(self, text: str) -> ImageName:
        return ImageName.parse(f"{self.host}/{text}")

    @property
    def tags(self) -> set[str]:
        """The tags that were written."""
        return {reference for _, reference in self.manifests if ":" not in reference}

    def store(self, repository: str, layout: OciLayout, tag: str = "1") -> str:
        """Have an image from the start; return the digest of its index."""
        for digest, data in blobs_of(layout).items():
            self.blobs[repository, digest] = data
        for item in layout.index().manifests:
            self.manifests[repository, item.digest] = (item.mediaType, self.blobs[repository, item.digest])
        data = (layout.folder / "index.json").read_bytes()
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.manifests[repository, tag] = self.manifests[repository, digest] = (mediatypes.INDEX, data)
        return digest

    def answer(self, request: Request) -> Reply:
        """Answer as the specification says."""
        if request.path == "/v2/":
            return 200, {}, b"{}"
        match = re.fullmatch(r"/v2/(.+)/(manifests|blobs)/(?:(uploads)/)?([^/]*)", request.path)
        if match is None:
            return 404, {}, b""
        repository, kind, uploads, reference = match.groups()
        if uploads:
            return self._upload(repository, reference, request)
        if kind == "manifests":
            return self._manifest(repository, reference, request)
        return self._blob(repository, reference, request)

    def _manifest(self, repository: str, reference: str, request: Request) -> Reply:
        if request.method == "PUT":
            data = request.body()
            digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
            for item in json.loads(data).get("manifests", []) if not reference.startswith("sha256-") else []:
                if (repository, item["digest"]) not in self.manifests:
                    return 404, {}, b'{"errors": [{"code": "MANIFEST_BLOB_UNKNOWN"}]}'
            self.manifests[repository, reference] = (request.headers["Content-Type"], data)
            return 201, {"Docker-Content-Digest": digest}, b""
        found = self.manifests.get((repository, reference))
        if found is None:
            return 404, {}, b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}'
        digest = f"sha256:{hashlib.sha256(found[1]).hexdigest()}"
        return 200, {"Content-Type": found[0], "Docker-Content-Digest": digest}, found[1]

    def _blob(self, repository: str, digest: str, request: Request) -> Reply:
        data = self.blobs.get((repository, digest))
        if data is None:
            return 404, {}, b'{"errors": [{"code": "BLOB_UNKNOWN", "message": "blob unknown"}]}'
        start = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range") or "")
        if start and request.method == "GET":
            first = int(start[1])
            said = f"bytes {first}-{len(data) - 1}/{len(data)}"
            return 206, {"Content-Range": said}, data[first:]
        return 200, {"Content-Type": "application/octet-stream"}, data

    def _upload(self, repository: str, number: str, request: Request) -> Reply:
        if request.method == "POST":
            return self._begin(repository, request)
        if number not in self.uploads:
            return 404, {}, b'{"errors": [{"code": "BLOB_UPLOAD_UNKNOWN"}]}'
        if request.method == "GET":
            return 204, self._place(repository, number), b""
        if request.method == "PATCH":
            if (said := request.headers.get("Content-Range")) and int(said.split("-")[0]) != len(self.uploads[number]):
                return 416, self._place(repository, number), b""
            self.uploads[number] += request.body()
            return 202, self._place(repository, number), b""
        data = self.uploads.pop(number) + request.body()
        wanted = request.query["digest"][0]
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != wanted:
            return 400, {}, b'{"errors": [{"code": "DIGEST_INVALID", "message": "wrong digest"}]}'
        self.blobs[repository, wanted] = data
        return 201, {"Docker-Content-Digest": wanted}, b""

    def _begin(self, repository: str, request: Request) -> Reply:
        if "mount" in request.query:
            digest, source = request.query["mount"][0], request.query["from"][0]
            if (source, digest) in self.blobs:
                self.blobs[repository, digest] = self.blobs[source, digest]
                return 201, {"Docker-Content-Digest": digest}, b""
        number = str(len(self.seen))
        self.uploads[number] = b""
        least = {"OCI-Chunk-Min-Length": str(self.minimum)} if self.minimum else {}
        return 202, {**self._place(repository, number), **least}, b""

    def _place(self, repository: str, number: str) -> dict[str, str]:
        end = max(len(self.uploads[number]) - 1, 0)
        return {"Location": f"/v2/{repository}/blobs/uploads/{number}?state={end}", "Range": f"0-{end}"}


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    registry: FakeRegistry

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        request = Request(self.command, parts.path, parse_qs(parts.query), dict(self.headers.items()), self)
        self.registry.seen.append(f"{self.command} {self.path}")
        self.registry.authorizations.append(self.headers.get("Authorization") or "")
        with suppress(OSError):
            for rule in [*self.registry.rules, self.registry.answer]:
                reply = rule(request)
                if self.close_connection and reply is None:
                    return
                if reply is not None:
                    self._send(*reply)
                    return

    def _send(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204 and "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = _answer  # noqa: N815 - the names are the library's

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Say nothing: clients hang up in these tests."""


@contextmanager
def fake_registry(*rules: Rule) -> Iterator[FakeRegistry]:
    """Run a registry in memory on loopback."""

    class Handler(_Handler):
        pass

    with _Server(("127.0.0.1", 0), Handler) as server:
        Handler.registry = registry = FakeRegistry(f"http://127.0.0.1:{server.server_address[1]}", list(rules))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield registry
        finally:
            server.shutdown()


def rule(method: str, pattern: str, act: Callable[[Request], Reply | None], times: int | None = None) -> Rule:
    """Return a rule for requests whose path matches ``pattern``, for the first ``times`` of them."""
    left = [times]

    def apply(request: Request) -> Reply | None:
        if not re.fullmatch(method, request.method) or not re.search(pattern, request.path) or left[0] == 0:
            return None
        if left[0] is not None:
            left[0] -= 1
        return act(request)

    return apply


def reply(status: int, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Callable[[Request], Reply]:
    """Return what answers like this, after reading the body of the request."""

    def act(request: Request) -> Reply:
        request.body()
        return status, headers or {}, body

    return act


def hang_up(request: Request) -> None:
    """Close the connection without an answer."""
    request.handler.close_connection = True
    with suppress(OSError):
        request.handler.connection.shutdown(socket.SHUT_RDWR)


def break_off(body: bytes, after: int) -> Callable[[Request], None]:
    """Return what announces all of ``body``, sends ``after`` bytes of it, and closes the connection."""

    def act(request: Request) -> None:
        handler = request.handler
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[:after])
        hang_up(request)

    return act


def remove(folder: Path) -> None:
    """Remove a folder, if it is there."""
    shutil.rmtree(folder, ignore_errors=True)
