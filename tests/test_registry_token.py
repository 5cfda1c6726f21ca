"""docker-registry with a token service, which is part of the test: scopes, signatures, and a dropped upload."""

from __future__ import annotations

import base64
import json
import random
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509 import load_pem_x509_certificate

from imgkit.oci.ocilayout import OciLayout
from imgkit.registry.imageparts import read_parts
from imgkit.registry.pulling import pull_image, resolve
from imgkit.registry.pushing import PushResult, push, push_targets
from imgkit.registry.registryerrors import DeniedError
from tests.registries import (
    DockerRegistry,
    FakeRegistry,
    Reply,
    Request,
    access,
    blobs_of,
    certificates,
    docker_registry,
    fake_registry,
    image,
    layer,
    rule,
    two_architectures,
)


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@dataclass
class TokenService:
    """Gives whoever asks what the table allows: anonymous clients may pull from public/, ann may do everything."""

    certificate: Path
    key: Path
    asked: list[list[str]] = field(default_factory=list)

    def answer(self, request: Request) -> Reply:
        secret = base64.b64encode(b"ann:word").decode()
        authorization = request.headers.get("Authorization")
        if authorization not in (None, f"Basic {secret}"):
            return 401, {}, b"{}"
        scopes = request.query.get("scope", [])
        self.asked.append(scopes)
        granted = []
        for scope in scopes:
            kind, name, actions = scope.split(":")
            wanted = actions.split(",")
            allowed = wanted if authorization else ["pull"] if name.startswith("public/") else []
            granted.append({"type": kind, "name": name, "actions": [one for one in wanted if one in allowed]})
        return 200, {}, json.dumps({"token": self._token(granted), "expires_in": 300}).encode()

    def _token(self, granted: Sequence[Mapping[str, object]]) -> str:
        chain = load_pem_x509_certificate(self.certificate.read_bytes()).public_bytes(serialization.Encoding.DER)
        head = {"typ": "JWT", "alg": "ES256", "x5c": [base64.b64encode(chain).decode()]}
        now = int(time.time())
        claims = {
            **{"iss": "test", "sub": "", "aud": "registry", "exp": now + 300, "nbf": now - 60, "iat": now},
            **{"jti": str(len(self.asked)), "access": granted},
        }
        text = f"{encoded(json.dumps(head).encode())}.{encoded(json.dumps(claims).encode())}"
        key = serialization.load_pem_private_key(self.key.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        r, s = decode_dss_signature(key.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{text}.{encoded(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[DockerRegistry, TokenService, FakeRegistry]]:
    """Yield a registry, the service that it wants tokens of, and the server of that service."""
    folder = tmp_path_factory.mktemp("token")
    ca, certificate, key = certificates(folder / "pki")
    service = TokenService(certificate, key)
    with fake_registry(rule("GET", "/token", service.answer)) as server:
        auth = {
            "token": {
                "realm": f"{server.url}/token",
                "service": "registry",
                "issuer": "test",
                "rootcertbundle": str(ca),
            }
        }
        with docker_registry(folder / "registry", auth=auth) as registry:
            yield registry, service, server


def pushed(layout: OciLayout, registry: DockerRegistry, *names: str, **options: object) -> PushResult:
    parts = read_parts(layout)
    return push(
        layout, parts, push_targets([registry.name(name) for name in names], parts.root), access=access(**options)
    )


def login(folder: Path, host: str, password: str = "word") -> dict[str, str]:
    secret = base64.b64encode(f"ann:{password}".encode()).decode()
    (folder / "auth.json").write_text(json.dumps({"auths": {host: {"auth": secret}}}))
    return {"REGISTRY_AUTH_FILE": str(folder / "auth.json")}


@pytest.mark.slow
def test_tokens_for_each_repository(guarded: tuple[DockerRegistry, TokenService, FakeRegistry], tmp_path: Path) -> None:
    registry, service, _ = guarded
    environ = login(tmp_path, registry.host)
    layout = two_architectures(tmp_path / "image.oci")
    result = pushed(layout, registry, "public/a:1", "team/b:1", environ=environ)
    assert {part.result for part in result.targets[1].blobs} == {"mounted"}
    assert ["repository:team/b:pull,push"] in service.asked
    assert ["repository:public/a:pull", "repository:team/b:pull,push"] in service.asked
    asked = len(service.asked)
    assert asked <= 5  # one token for each set of scopes, not for each request
    anonymous = OciLayout.create(tmp_path / "pulled.oci")
    assert pull_image(registry.name("public/a:1"), anonymous, access=access()).root.digest == result.root.digest
    assert service.asked[asked:] == [["repository:public/a:pull"]]


@pytest.mark.slow
def test_what_a_token_does_not_allow(
    guarded: tuple[DockerRegistry, TokenService, FakeRegistry], tmp_path: Path
) -> None:
    registry, _, server = guarded
    layout = two_architectures(tmp_path / "image.oci")
    with pytest.raises(DeniedError, match="the registry answers 401"):
        pushed(layout, registry, "public/c:1")
    with pytest.raises(DeniedError, match="the registry answers 401"):
        resolve(registry.name("team/b:1"), access=access())
    with pytest.raises(
        DeniedError, match=f"^{server.url}/token: the token service refuses the credentials of"
    ) as caught:
        pushed(layout, registry, "team/c:1", environ=login(tmp_path, registry.host, "guessed-word"))
    assert "guessed-word" not in caught.value.message


# ---- a proxy that drops connections ----------------------------------------------------------------------------------


@dataclass
class Dropper:
    """Passes bytes between clients and a server, and drops the connection after ``limits[n]`` bytes of upload."""

    host: str
    limits: list[int]
    bytes_up: int = 0
    dropped: int = 0


@contextmanager
def dropping(target: str, *limits: int) -> Iterator[Dropper]:
    server = socket.create_server(("127.0.0.1", 0))
    proxy = Dropper(f"127.0.0.1:{server.getsockname()[1]}", list(limits))
    name, _, port = target.partition(":")

    def down(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def up(client: socket.socket) -> None:
        with suppress(OSError), client, socket.create_connection((name, int(port))) as upstream:
            threading.Thread(target=down, args=(upstream, client), daemon=True).start()
            while data := client.recv(1 << 16):
                proxy.bytes_up += len(data)
                upstream.sendall(data)
                if proxy.limits and proxy.bytes_up > proxy.limits[0]:
                    proxy.limits.pop(0)
                    proxy.dropped += 1
                    client.shutdown(socket.SHUT_RDWR)
                    return

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = server.accept()
                threading.Thread(target=up, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield proxy
    finally:
        server.close()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with docker_registry(tmp_path_factory.mktemp("plain")) as registry:
        yield registry


@pytest.mark.slow
@pytest.mark.parametrize("chunk_size", [1 << 20, 64 << 20])
def test_an_upload_that_is_dropped_half_way_arrives(chunk_size: int, plain: DockerRegistry, tmp_path: Path) -> None:
    layout = OciLayout.create(tmp_path / "image.oci")
    size = 4 << 20
    layout.write_index([image(layout, [layer(chunk_size, size)])])
    parts = read_parts(layout)
    repository = f"team/dropped-{chunk_size}"
    with dropping(plain.host, 2_500_000, 5_500_000) as proxy:
        name = plain.name(f"{repository}:1").parse(f"{proxy.host}/{repository}:1")
        result = push(
            layout, parts, push_targets([name], parts.root), access=access(chunk_size=chunk_size, workers=1, attempts=5)
        )
        assert proxy.dropped == 2
    copy = OciLayout.create(tmp_path / "copy.oci")
    assert pull_image(plain.name(f"{repository}:1"), copy, access=access()).root.digest == result.root.digest
    assert blobs_of(copy).keys() >= blobs_of(layout).keys()
    assert result.targets[0].blobs[0].bytes_sent > size


@pytest.mark.slow
def test_only_the_changed_layer_passes_the_line(plain: DockerRegistry, tmp_path: Path) -> None:
    """Counted where the bytes pass, headers and all."""
    lower = layer(random.Random(5).randrange(1000), 3 << 20)
    before = OciLayout.create(tmp_path / "before.oci")
    before.write_index([image(before, [lower, layer(1001, 50_000)])])
    after = OciLayout.create(tmp_path / "after.oci")
    after.write_index([image(after, [lower, layer(1002, 50_000)])])
    with dropping(plain.host) as proxy:
        counts = []
        for layout in (before, after):
            parts = read_parts(layout)
            targets = push_targets([plain.name("x").parse(f"{proxy.host}/team/moves:1")], parts.root)
            start = proxy.bytes_up
            push(layout, parts, targets, access=access())
            counts.append(proxy.bytes_up - start)
    assert counts[0] > (3 << 20) + 50_000
    assert 50_000 < counts[1] < 60_000
