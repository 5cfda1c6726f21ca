"""A registry that misbehaves: clear errors, nothing under a tag, and no credentials for anybody else."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path

import pytest

from imgkit.errors import InputError
from imgkit.fetch.checks import UnreachableError
from imgkit.oci import mediatypes
from imgkit.oci.imagename import ImageName
from imgkit.oci.ocilayout import OciLayout, to_json
from imgkit.registry import registryerrors
from imgkit.registry.imageparts import read_parts
from imgkit.registry.pulling import fetch_image, resolve
from imgkit.registry.pushing import PushResult, push, push_targets
from imgkit.registry.registryerrors import DeniedError, MissingImageError, RegistryError, retry_after
from imgkit.registry.wire import StalledServerError
from tests.registries import (
    PAGE,
    FakeRegistry,
    Reply,
    Request,
    Rule,
    access,
    blobs_of,
    fake_registry,
    free_port,
    hang_up,
    image,
    layer,
    reply,
    rule,
    two_architectures,
)

UPLOADS = "/blobs/uploads/"


def pushed(registry: FakeRegistry, layout: OciLayout, *names: str, **options: object) -> PushResult:
    parts = read_parts(layout)
    targets = push_targets([registry.name(name) for name in names or ("a/b:1",)], parts.root)
    return push(layout, parts, targets, access=access(**options))


def one_image(folder: Path, *sizes: int) -> OciLayout:
    layout = OciLayout.create(folder)
    layout.write_index([image(layout, [layer(number, size) for number, size in enumerate(sizes)])])
    return layout


def login(folder: Path, *hosts: str) -> dict[str, str]:
    """Return an environment with credentials for some hosts."""
    secret = base64.b64encode(b"ann:password-of-ann").decode()
    (folder / "auth.json").write_text(json.dumps({"auths": {host: {"auth": secret} for host in hosts}}))
    return {"REGISTRY_AUTH_FILE": str(folder / "auth.json")}


def test_the_registry_made_by_hand_works(tmp_path: Path) -> None:
    layout = two_architectures(tmp_path / "image.oci")
    with fake_registry() as registry:
        result = pushed(registry, layout, "a/b:1", "c/d:2", "c/d:3")
        assert registry.tags == {"1", "2", "3"}
        assert {part.result for part in result.targets[1].blobs} == {"mounted"}
        copy = OciLayout.create(tmp_path / "copy.oci")
        digest = resolve(registry.name("c/d:3"), access=access())
        assert fetch_image(registry.name("c/d:3"), copy, access=access()).digest == digest == result.root.digest


# ---- the order of a push ---------------------------------------------------------------------------------------------


def test_tags_are_written_last(tmp_path: Path) -> None:
    layout = two_architectures(tmp_path / "image.oci")
    with fake_registry() as registry:
        pushed(registry, layout, "a/b:1", "c/d:2")
        writes = [line.split()[1] for line in registry.seen if line.startswith("PUT") and "/manifests/" in line]
    index = read_parts(layout).root.digest
    assert [place.rpartition("/")[2] for place in writes[-4:]] == [writes[-4].rpartition("/")[2], index, "1", "2"]
    assert all("sha256:" in place for place in writes[:-2])
    assert len(writes) == 8


@pytest.mark.parametrize(
    ("method", "pattern"),
    [
        ("HEAD", r"/blobs/sha256"),
        ("POST", UPLOADS),
        ("PUT", UPLOADS),
        ("HEAD", "/manifests/sha256"),
        ("PUT", "/manifests/sha256"),
    ],
)
@pytest.mark.parametrize("status", [400, 403, 405, 500, 503, 307])
def test_nothing_is_under_a_tag_if_anything_fails(method: str, pattern: str, status: int, tmp_path: Path) -> None:
    layout = two_architectures(tmp_path / "image.oci")
    repository = "a/b" if (method, pattern) == ("PUT", UPLOADS) else "c/d"  # blobs of the second one are mounted
    with fake_registry(rule(method, f"{repository}{pattern}", reply(status))) as registry:
        with pytest.raises(RegistryError, match=rf"{repository}.*: the registry answers {status}") as caught:
            pushed(registry, layout, "a/b:1", "c/d:2", attempts=2)
        assert registry.tags == set()
    assert "\n" not in caught.value.message


def test_what_the_registry_says_is_shown(tmp_path: Path) -> None:
    layout = one_image(tmp_path / "image.oci", 10)
    body = json.dumps(
        {"errors": [{"code": "DENIED", "message": "quota of \x1b[31mteam exceeded" + "x" * 500}]}
    ).encode()
    with fake_registry(rule("POST", UPLOADS, reply(403, {}, body))) as registry, pytest.raises(DeniedError) as caught:
        pushed(registry, layout)
    assert "answers 403: DENIED: quota of " in caught.value.message
    assert len(caught.value.message) < 500
    assert "\x1b" not in str(caught.value)
    assert caught.value.hint == "the account may not do this: check its rights, and the name of the repository"


# ---- lies ------------------------------------------------------------------------------------------------------------

OTHER = f"sha256:{'5' * 64}"


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        (rule("PUT", "/manifests/", reply(201, {"Docker-Content-Digest": OTHER})), "says that the digest is"),
        (rule("PUT", UPLOADS, reply(201, {"Docker-Content-Digest": OTHER})), "says that the digest is"),
        (rule("HEAD", "/blobs/", reply(200, {"Content-Length": "1"})), "the registry has 1 bytes under this digest"),
        (rule("HEAD", "/manifests/sha256", reply(200, {"Docker-Content-Digest": OTHER})), "says that the digest is"),
        (rule("POST", UPLOADS, reply(202)), "does not say where to send the blob"),
        (rule("POST", UPLOADS, reply(202, {"Location": "http://192.0.2.1/x"})), "'http://192.0.2.1/x', another server"),
        (rule("POST", UPLOADS, reply(202, {"Location": "file:///etc/passwd"})), "'file:///etc/passwd', another server"),
        (rule("POST", UPLOADS, reply(202, {"Location": "//192.0.2.1/x"})), "'http://192.0.2.1/x', another server"),
        (rule("POST", UPLOADS, reply(202, {"Location": "http://[/x"})), "another server"),
        (rule("POST", UPLOADS, reply(201)), "the registry answers 201"),
        (rule("PATCH", UPLOADS, reply(202, {"Location": "/v2/a/b/blobs/uploads/1", "Range": "0-99999"})), "'0-99999'"),
        (rule("PATCH", UPLOADS, reply(202, {"Location": "/v2/a/b/blobs/uploads/1", "Range": "5-9"})), "'5-9'"),
        (rule("PATCH", UPLOADS, reply(202, {"Location": "/v2/a/b/blobs/uploads/1", "Range": "x"})), "'x'"),
    ],
)
def test_lies_about_what_was_pushed(lie: Rule, message: str, tmp_path: Path) -> None:
    layout = one_image(tmp_path / "image.oci", 30_000)
    with fake_registry(lie) as registry:
        with pytest.raises(RegistryError, match=message.replace("/", "/")):
            pushed(registry, layout, chunk_size=10_000)
        assert registry.tags == set()


def test_a_location_of_plain_http_on_https_names_the_proxy(tmp_path: Path) -> None:
    from imgkit.registry.bloblookup import upload_location
    from imgkit.registry.httpcalls import Answer

    answer = Answer(
        202, {"Location": "http://registry.example/v2/x"}, b"", "https://registry.example/v2/a/blobs/uploads/"
    )
    with pytest.raises(RegistryError, match="another server") as caught:
        upload_location(answer)
    assert (
        caught.value.hint
        == "a proxy before the registry does not tell it that the outside is https (X-Forwarded-Proto)"
    )


def test_a_damaged_blob_of_the_layout_is_not_sent(tmp_path: Path) -> None:
    layout = one_image(tmp_path / "image.oci", 3000)
    blob = max(blobs_of(layout), key=lambda digest: layout.path(digest).stat().st_size)
    layout.path(blob).write_bytes(bytes(layout.path(blob).stat().st_size))
    with fake_registry() as registry:
        with pytest.raises(InputError, match="the blob is damaged"):
            pushed(registry, layout)
        assert (registry.tags, list(registry.blobs)) == (set(), [key for key in registry.blobs if key[1] != blob])


def pull_of(registry: FakeRegistry, folder: Path, name: str = "a/b:1", **options: object) -> OciLayout:
    layout = OciLayout.create(folder)
    fetch_image(registry.name(name), layout, access=access(**options))
    return layout


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        (rule("GET", "/manifests/1", reply(200, {"Content-Type": "text/html"}, PAGE)), "sent a web page instead"),
        (
            rule("GET", "/manifests/1", reply(200, {"Content-Type": mediatypes.MANIFEST}, PAGE)),
            "not JSON",
        ),
        (
            rule("GET", "/manifests/1", reply(200, {"Content-Type": "application/json"}, b"{}")),
            "has the media type 'application/json', which is not one of an image",
        ),
        (
            rule(
                "GET",
                "/manifests/1",
                reply(200, {"Content-Type": "application/vnd.docker.distribution.manifest.v1+prettyjws"}, b"{}"),
            ),
            "is a manifest of schema version 1",
        ),
        (
            rule(
                "GET",
                "/manifests/1",
                reply(200, {"Content-Type": mediatypes.INDEX, "Docker-Content-Digest": OTHER}, b"{}"),
            ),
            f"the registry says that the digest is '{OTHER}', but it is sha256:44136fa3",
        ),
        (
            rule("GET", "/manifests/sha256", reply(200, {"Content-Type": mediatypes.MANIFEST}, b"{}")),
            "sent a document with the digest sha256:44136fa3",
        ),
        (
            rule("GET", "/manifests/1", reply(200, {"Content-Type": mediatypes.INDEX}, b"[" * (5 << 20))),
            "the answer is longer than the 4194304 bytes",
        ),
        (
            rule(
                "GET",
                "/manifests/1",
                reply(
                    200,
                    {"Content-Type": mediatypes.INDEX, "Content-Encoding": "gzip"},
                    gzip.compress(bytes(50 << 20), 1),
                ),
            ),
            r"the answer is compressed \(gzip\), which was not asked for",
        ),
        (rule("GET", "/blobs/", reply(200, {}, PAGE)), "sent a web page instead"),
        (rule("GET", "/blobs/", reply(200, {}, b"x")), "the registry sends 1 bytes instead of"),
        (
            rule("GET", "/blobs/", reply(200, {}, bytes(100_000))),
            "sends more than the .* bytes that the image announces",
        ),
        (
            rule("GET", "/blobs/", lambda request: (200, {}, bytes(len(layer(1))))),
            "sends (a blob with the digest|more than the|.* bytes instead of)",
        ),
        (rule("GET", "/blobs/", reply(206, {"Content-Range": "bytes 7-9/10"}, b"123")), "sends 'bytes 7-9/10'"),
        (rule("GET", "/blobs/", reply(404)), "the registry answers 404"),
        (rule("GET", "/manifests/1", reply(404, {}, PAGE)), "answers 404: a web page, not the answer of a registry"),
        (rule("GET", "/blobs/", reply(302, {"Location": "file:///etc/passwd"})), "which is not on the web"),
        (rule("GET", "/blobs/", lambda request: (302, {"Location": request.path}, b"")), "is redirected in circles"),
    ],
)
def test_lies_about_what_is_pulled(lie: Rule, message: str, tmp_path: Path) -> None:
    with fake_registry(lie) as registry:
        registry.store("a/b", two_architectures(tmp_path / "image.oci"))
        with pytest.raises(InputError, match=message) as caught:
            pull_of(registry, tmp_path / "pulled.oci")
    assert len(caught.value.message) < 700
    left = OciLayout.open(tmp_path / "pulled.oci")
    assert all(f"sha256:{hashlib.sha256(data).hexdigest()}" == digest for digest, data in blobs_of(left).items())
    assert {path.name for path in left.folder.iterdir()} == {"oci-layout", "blobs"}


def test_a_blob_of_another_content(tmp_path: Path) -> None:
    source = one_image(tmp_path / "image.oci", 3000)
    largest = max(blobs_of(source).values(), key=len)
    other = rule(
        "GET", f"/blobs/sha256:{hashlib.sha256(largest).hexdigest()}", lambda _: (200, {}, bytes(len(largest)))
    )
    with fake_registry(other) as registry:
        registry.store("a/b", source)
        with pytest.raises(RegistryError, match="the registry sends a blob with the digest sha256:"):
            pull_of(registry, tmp_path / "pulled.oci")


def test_an_index_that_announces_something_else(tmp_path: Path) -> None:
    source = two_architectures(tmp_path / "image.oci")
    entry = source.index().manifests[0].value
    for changes, message in (
        ({"size": entry.size + 1}, f"has {entry.size} bytes of .*, where the index announces {entry.size + 1} bytes"),
        ({"mediaType": mediatypes.DOCKER_MANIFEST}, "where the index announces .* bytes of application/vnd.docker"),
    ):
        index = to_json({"schemaVersion": 2, "manifests": [{**entry.to_json(), **changes}]})
        with fake_registry() as registry:
            registry.store("a/b", source)
            registry.manifests["a/b", "1"] = (mediatypes.INDEX, index)
            with pytest.raises(RegistryError, match=message):
                pull_of(registry, tmp_path / "pulled.oci")


def test_indexes_within_indexes_end(tmp_path: Path) -> None:
    with fake_registry() as registry:
        registry.store("a/b", two_architectures(tmp_path / "image.oci"))
        inner = registry.manifests["a/b", "1"][1]
        for depth in range(1, 5):
            digest = f"sha256:{hashlib.sha256(inner).hexdigest()}"
            registry.manifests["a/b", digest] = (mediatypes.INDEX, inner)
            entry = {"mediaType": mediatypes.INDEX, "digest": digest, "size": len(inner)}
            inner = to_json({"schemaVersion": 2, "manifests": [entry]})
            registry.manifests["a/b", f"deep-{depth}"] = (mediatypes.INDEX, inner)
        pull_of(registry, tmp_path / "two.oci", "a/b:deep-2")
        with pytest.raises(InputError, match="more than 4 levels of indexes or 1000 documents"):
            pull_of(registry, tmp_path / "three.oci", "a/b:deep-3")


# ---- credentials stay where they belong ------------------------------------------------------------------------------


def basic(registry_header: str = 'Basic realm="test"') -> Rule:
    """Ask for authentication, once per request without it."""

    def ask(request: Request) -> Reply | None:
        if request.headers.get("Authorization"):
            return None
        request.body()
        return 401, {"WWW-Authenticate": registry_header}, b""

    return rule(".*", "", ask)


def test_redirects_to_another_host_get_no_credentials(tmp_path: Path) -> None:
    source = two_architectures(tmp_path / "image.oci")
    with fake_registry() as storage, fake_registry(basic()) as registry:
        registry.store("a/b", source)
        storage.store("a/b", source)
        elsewhere = rule("GET", "/blobs/", lambda request: (307, {"Location": storage.url + request.path}, b""))
        registry.rules.append(elsewhere)
        pulled = pull_of(registry, tmp_path / "pulled.oci", environ=login(tmp_path, registry.host, storage.host))
    assert blobs_of(pulled).keys() > blobs_of(source).keys()
    assert len(storage.authorizations) == 5
    assert set(storage.authorizations) == {""}
    assert registry.authorizations.count("") == 1


def test_a_challenge_of_another_host_is_not_answered(tmp_path: Path) -> None:
    source = two_architectures(tmp_path / "image.oci")
    with fake_registry(basic()) as storage, fake_registry(basic()) as registry:
        registry.store("a/b", source)
        elsewhere = rule("GET", "/blobs/", lambda request: (307, {"Location": storage.url + request.path}, b""))
        registry.rules.append(elsewhere)
        with pytest.raises(DeniedError, match="the registry answers 401"):
            pull_of(registry, tmp_path / "pulled.oci", environ=login(tmp_path, registry.host, storage.host))
    assert set(storage.authorizations) == {""}


def test_credentials_of_netrc_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login ann password from-netrc\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with fake_registry() as registry:
        registry.store("a/b", two_architectures(tmp_path / "image.oci"))
        pull_of(registry, tmp_path / "pulled.oci")
        assert set(registry.authorizations) == {""}


def test_proxies_are_not_used_for_loopback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with fake_registry() as registry:
        registry.store("a/b", two_architectures(tmp_path / "image.oci"))
        pull_of(registry, tmp_path / "pulled.oci")


def test_proxies_are_used_for_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = two_architectures(tmp_path / "image.oci")
    with fake_registry() as registry:
        registry.store("a/b", source)
        monkeypatch.setenv("http_proxy", registry.url)
        monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
        with pytest.raises(UnreachableError, match="the proxy does not let it through"):
            resolve(ImageName.parse("registry.example/a/b:1"), access=access())


# ---- tokens ----------------------------------------------------------------------------------------------------------


def bearer(realm: Callable[[], str], wanted: str, scope: str = "repository:a/b:pull") -> Rule:
    """Ask for the token ``wanted``."""

    def ask(request: Request) -> Reply | None:
        if request.headers.get("Authorization") == f"Bearer {wanted}":
            return None
        request.body()
        return 401, {"WWW-Authenticate": f'Bearer realm="{realm()}/token",service="test",scope="{scope}"'}, b""

    return rule(".*", "/v2/", ask)


def tokens(answer: bytes, headers: dict[str, str] | None = None, status: int = 200) -> Rule:
    return rule("GET|POST", "/token", reply(status, headers, answer))


def test_anonymous_tokens_for_public_images(tmp_path: Path) -> None:
    with fake_registry(tokens(b'{"token": "t"}')) as registry:
        registry.rules.append(bearer(lambda: registry.url, "t"))
        registry.store("a/b", two_architectures(tmp_path / "image.oci"))
        pull_of(registry, tmp_path / "pulled.oci")
        asked = [line for line in registry.seen if "/token" in line]
    assert asked == ["GET /token?service=test&scope=repository%3Aa%2Fb%3Apull"]


def test_another_scope_is_asked_for_later(tmp_path: Path) -> None:
    """The registry wants a scope of its own making for blobs, such as one of a namespace before the name."""

    def token(request: Request) -> Reply:
        kind = "wide" if any("proxy/a/b" in scope for scope in request.query["scope"]) else "narrow"
        return 200, {}, json.dumps({"access_token": kind}).encode()

    with fake_registry(rule("GET", "/token", token)) as registry:
        registry.rules.append(
            rule(
                "GET",
                "/blobs/",
                lambda request: (
                    None
                    if request.headers["Authorization"] == "Bearer wide"
                    else (
                        401,
                        {"WWW-Authenticate": f'Bearer realm="{registry.url}/token",scope="repository:proxy/a/b:pull"'},
                        b"",
                    )
                ),
            )
        )
        registry.rules.append(
            rule(
                "GET",
                "/manifests/",
                lambda request: (
                    None
                    if request.headers.get("Authorization")
                    else (401, {"WWW-Authenticate": f'Bearer realm="{registry.url}/token"'}, b"")
                ),
            )
        )
        registry.store("a/b", two_architectures(tmp_path / "image.oci"))
        pull_of(registry, tmp_path / "pulled.oci")
        assert set(registry.authorizations) == {"", "Bearer narrow", "Bearer wide"}


def test_tokens_without_end(tmp_path: Path) -> None:
    with fake_registry(tokens(b'{"token": "never-enough"}')) as registry:
        registry.rules.append(bearer(lambda: registry.url, "something else", "repository:x/y:delete"))
        with pytest.raises(
            DeniedError, match=r"the registry answers 401 \(again and again, whatever token it is shown\)"
        ):
            resolve(registry.name("a/b:1"), access=access())
        assert len(registry.seen) == 5


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (tokens(PAGE), "/token: the server sent a web page instead"),
        (tokens(b"{}"), "/token: the token service's answer has no token"),
        (tokens(b'{"token": "a b"}'), "the token service's answer has no token"),
        (tokens(b'{"token": "a\\nX-Header: b"}'), "the token service's answer has no token"),
        (tokens(b"[]"), "the token service's answer is not valid"),
        (tokens(b"{"), "the token service's answer is not valid"),
        (tokens(b'{"token": "' + b"x" * 70_000 + b'"}'), "the answer is longer than the 65536 bytes"),
        (tokens(gzip.compress(bytes(1 << 20)), {"Content-Encoding": "gzip"}), "the answer is compressed"),
        (tokens(b"", status=403), "/token.*: the registry answers 403"),
        (tokens(b"", status=500), "/token.*: the registry answers 500"),
        (tokens(b"", status=404), "/token.*: the registry answers 404"),
    ],
)
def test_token_services_that_misbehave(answer: Rule, message: str, tmp_path: Path) -> None:
    with fake_registry(answer) as registry:
        registry.rules.append(bearer(lambda: registry.url, "t"))
        with pytest.raises(InputError, match=message):
            resolve(registry.name("a/b:1"), access=access())


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ('Bearer realm="file:///etc/passwd"', "names no token service: 'file:///etc/passwd' is not a URL"),
        ("Bearer", "names no token service: '' is not a URL"),
        ('Bearer realm="http://[x"', "is not a URL"),
        ('Digest realm="x", Negotiate', "asks for authentication by digest, negotiate, not Bearer or Basic"),
        ("", "asks for authentication by nothing that imgkit knows"),
    ],
)
def test_challenges_that_cannot_be_met(header: str, message: str) -> None:
    ask = rule(".*", "", reply(401, {"WWW-Authenticate": header}))
    with fake_registry(ask) as registry, pytest.raises(InputError, match=message):
        resolve(registry.name("a/b:1"), access=access())


def test_refused_credentials_name_their_source_only(tmp_path: Path) -> None:
    with fake_registry(tokens(b"", status=401)) as registry:
        registry.rules.append(bearer(lambda: registry.url, "t"))
        with pytest.raises(DeniedError, match="the token service refuses the credentials of") as caught:
            resolve(registry.name("a/b:1"), access=access(environ=login(tmp_path, registry.host)))
        assert "password-of-ann" not in f"{caught.value!r}{caught.value.__cause__!r}"
        assert registry.authorizations[-1] == "Basic " + base64.b64encode(b"ann:password-of-ann").decode()


def test_identity_tokens_are_exchanged(tmp_path: Path) -> None:
    bodies: list[bytes] = []

    def exchange(request: Request) -> Reply:
        bodies.append(request.body())
        return 200, {}, b'{"access_token": "t", "expires_in": 300}'

    with fake_registry(rule("POST", "/token", exchange)) as registry:
        registry.rules.append(bearer(lambda: registry.url, "t"))
        registry.store("a/b", two_architectures(tmp_path / "image.oci"))
        (tmp_path / "auth.json").write_text(json.dumps({"auths": {registry.host: {"identitytoken": "secret-id"}}}))
        resolve(registry.name("a/b:1"), access=access(environ={"REGISTRY_AUTH_FILE": str(tmp_path / "auth.json")}))
        assert not any("secret-id" in line for line in registry.seen)
    assert bodies == [
        b"grant_type=refresh_token&service=test&client_id=imgkit&scope=repository%3Aa%2Fb%3Apull&refresh_token=secret-id"
    ]


def test_tokens_expire(tmp_path: Path) -> None:
    count = [0]

    def token(_: Request) -> Reply:
        count[0] += 1
        return 200, {}, json.dumps({"token": f"t{count[0]}", "expires_in": 0.001}).encode()

    with fake_registry(rule("GET", "/token", token)) as registry:
        registry.rules.append(
            rule(
                ".*",
                "/v2/",
                lambda request: (
                    None
                    if request.headers.get("Authorization") == f"Bearer t{count[0]}"
                    else (401, {"WWW-Authenticate": f'Bearer realm="{registry.url}/token"'}, b"")
                ),
            )
        )
        registry.store("a/b", two_architectures(tmp_path / "image.oci"))
        pull_of(registry, tmp_path / "pulled.oci", workers=1)
    assert count[0] > 3


def test_a_token_that_the_registry_no_longer_takes_is_renewed(tmp_path: Path) -> None:
    count = [0]

    def token(_: Request) -> Reply:
        count[0] += 1
        return 200, {}, json.dumps({"token": f"t{count[0]}", "expires_in": 3600}).encode()

    with fake_registry(rule("GET", "/token", token)) as registry:
        ask = 401, {"WWW-Authenticate": f'Bearer realm="{registry.url}/token"'}, b""
        registry.rules.append(rule("GET", "/blobs/", lambda _: ask, times=1))
        registry.rules.append(rule(".*", "/v2/", lambda one: None if one.headers.get("Authorization") else ask))
        registry.store("a/b", two_architectures(tmp_path / "image.oci"))
        pull_of(registry, tmp_path / "pulled.oci", workers=1)
    assert count[0] == 2


# ---- overload and broken connections ---------------------------------------------------------------------------------


def test_overload_passes(tmp_path: Path) -> None:
    layout = two_architectures(tmp_path / "image.oci")
    busy = [rule(".*", pattern, reply(status), times=1) for pattern, status in (("/blobs/sha", 503), (UPLOADS, 429))]
    with fake_registry(*busy, rule("PUT", "/manifests/1", reply(502), times=2)) as registry:
        pushed(registry, layout)
        assert registry.tags == {"1"}


def test_refusals_are_not_repeated(tmp_path: Path) -> None:
    with fake_registry(rule("POST", UPLOADS, reply(400))) as registry:
        with pytest.raises(RegistryError, match=rf"^{registry.host}/a/b@sha256:\w+: the registry answers 400$"):
            pushed(registry, one_image(tmp_path / "image.oci", 10), workers=1)
        assert len([line for line in registry.seen if line.startswith("POST")]) == 1


def test_what_the_registry_asks_to_wait_is_waited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(threading.Event, "wait", _noting(pauses, threading.Event.wait))
    with fake_registry(rule("HEAD", "/manifests/", reply(429, {"Retry-After": "7"}), times=2)) as registry:
        digest = registry.store("a/b", two_architectures(tmp_path / "image.oci"))
        assert resolve(registry.name("a/b:1"), access=access()) == digest
    assert pauses == [7.0, 7.0]


def _noting(pauses: list[float], real: Callable[..., bool]) -> Callable[..., bool]:
    def wait(event: threading.Event, timeout: float | None = None) -> bool:
        if timeout is not None and timeout > 5:
            pauses.append(timeout)
            return False
        return real(event, timeout)

    return wait


def test_retry_after_is_seconds_or_a_date_and_has_a_limit() -> None:
    def date(seconds: float) -> str:
        return format_datetime(datetime.now(timezone.utc) + timedelta(seconds=seconds), usegmt=True)

    assert [retry_after(text) for text in ("0", "7", "59", "61", "9" * 50)] == [0, 7, 59, 60, 60]
    assert [retry_after(text) for text in ("", "-5", "1.5", "soon", "٣")] == [0, 0, 0, 0, 0]
    assert 20 < retry_after(date(30)) <= 30
    assert retry_after(date(100_000)) == registryerrors.MAX_WAIT == 60
    assert retry_after(date(-100)) == 0


def test_5xx_storms_end(tmp_path: Path) -> None:
    with fake_registry(rule(".*", "/a/b/", reply(500, {}, PAGE))) as registry:
        with pytest.raises(RegistryError, match="the registry answers 500"):
            resolve(registry.name("a/b:1"), access=access(attempts=3))
        assert len([line for line in registry.seen if "a/b" in line]) == 3


def drop(request: Request, keep: int) -> None:
    """Take ``keep`` bytes of a chunk into the upload, and drop the connection."""
    data = request.handler.rfile.read(keep)
    number = request.path.rpartition("/")[2]
    request.handler.registry.uploads[number] += data
    hang_up(request)


@pytest.mark.parametrize("keep", [0, 1, 5000, 10_000])
def test_an_upload_goes_on_where_it_was_dropped(keep: int, tmp_path: Path) -> None:
    layout = one_image(tmp_path / "image.oci", 30_000)
    size = len(layer(0, 30_000))
    with fake_registry() as registry:
        seen: list[str] = []

        def second_chunk(request: Request) -> Reply | None:
            seen.append(request.headers["Content-Range"])
            if len(seen) == 2:
                drop(request, keep)
            return None

        registry.rules.append(rule("PATCH", UPLOADS, second_chunk))
        result = pushed(registry, layout, chunk_size=10_000)
        assert registry.tags == {"1"}
        posts = [line for line in registry.seen if line.startswith("POST")]
    after = 10_000 + keep
    expected = ["0-9999", "10000-19999", f"{after}-{min(after + 10_000, size) - 1}"]
    assert seen[:3] == expected
    assert len(posts) == 2  # one for each blob: nothing was started over
    assert result.targets[0].blobs[0].bytes_sent >= size


def test_an_upload_that_the_registry_has_lost_starts_anew(tmp_path: Path) -> None:
    """As distribution 2.8 does after a chunk that broke off."""
    layout = one_image(tmp_path / "image.oci", 30_000)
    with fake_registry() as registry:

        def lose(request: Request) -> None:
            registry.uploads.clear()
            hang_up(request)

        registry.rules.append(rule("PATCH", UPLOADS, lose, times=1))
        pushed(registry, layout, chunk_size=10_000, workers=1)
        assert registry.tags == {"1"}
        assert len([line for line in registry.seen if line.startswith("POST")]) == 3


def test_an_upload_whose_last_answer_was_lost_is_found(tmp_path: Path) -> None:
    layout = one_image(tmp_path / "image.oci", 30_000)
    with fake_registry() as registry:

        def complete(request: Request) -> None:
            registry.answer(request)
            hang_up(request)

        registry.rules.append(rule("PUT", UPLOADS, complete, times=1))
        pushed(registry, layout, workers=1)
        assert registry.tags == {"1"}
        assert len([line for line in registry.seen if line.startswith("PUT") and UPLOADS in line]) == 2


def test_uploads_that_always_break_off_end(tmp_path: Path) -> None:
    layout = one_image(tmp_path / "image.oci", 30_000)
    for chunk_size in (10_000, 100_000):
        with fake_registry(rule("PATCH|PUT", UPLOADS, hang_up)) as registry:
            with pytest.raises(
                InputError, match=rf"^{registry.url}/v2/a/b/blobs/uploads/\d+: the connection broke off$"
            ):
                pushed(registry, layout, chunk_size=chunk_size, workers=1)
            assert registry.tags == set()
            assert len(registry.seen) < 20


def test_uploads_that_creep_on_end(tmp_path: Path) -> None:
    layout = one_image(tmp_path / "image.oci", 30_000)
    with fake_registry(rule("PATCH", UPLOADS, lambda request: drop(request, 1))) as registry:
        with pytest.raises(InputError, match="the connection broke off"):
            pushed(registry, layout, chunk_size=10_000, workers=1)
        assert registry.tags == set()


@pytest.mark.parametrize("status", [400, 404, 405, 416, 501])
@pytest.mark.parametrize("refused", ["first", "second", "last"])
def test_a_registry_without_chunks_gets_the_blob_at_once(refused: str, status: int, tmp_path: Path) -> None:
    layout = one_image(tmp_path / "image.oci", 30_000, 29_000)

    def refuse(request: Request) -> Reply | None:
        wanted = {"first": "0-9999", "second": "10000-19999", "last": None}[refused]
        if request.headers.get("Content-Range") != wanted:
            return None
        if refused == "last" and request.headers["Content-Length"] != "0":
            return None
        request.body()
        return status, {}, b""

    with fake_registry(rule("PUT" if refused == "last" else "PATCH", UPLOADS, refuse)) as registry:
        pushed(registry, layout, chunk_size=10_000, workers=1)
        assert registry.tags == {"1"}
        chunks = [line for line in registry.seen if line.startswith("PATCH")]
    assert len(chunks) == {"first": 1, "second": 2, "last": 4}[refused]  # of the first blob only


def test_a_registry_that_refuses_chunks_for_another_reason_is_not_asked_again(tmp_path: Path) -> None:
    layout = one_image(tmp_path / "image.oci", 30_000)
    with fake_registry(rule("PATCH", UPLOADS, reply(413))) as registry:
        with pytest.raises(RegistryError, match="answers 413") as caught:
            pushed(registry, layout, chunk_size=10_000, workers=1)
        assert len([line for line in registry.seen if line.startswith("PATCH")]) == 1
    assert caught.value.hint is not None
    assert caught.value.hint.endswith("or try a smaller --chunk-size")


def test_the_range_of_a_chunk_may_be_that_of_the_chunk(tmp_path: Path) -> None:
    """As Amazon's registry answers."""
    layout = one_image(tmp_path / "image.oci", 30_000)
    with fake_registry() as registry:

        def take(request: Request) -> Reply:
            status, headers, body = registry.answer(request)
            return status, {**headers, "Range": "0-9999"}, body

        registry.rules.append(rule("PATCH", UPLOADS, take))
        pushed(registry, layout, chunk_size=10_000)
        assert registry.tags == {"1"}
        assert len([line for line in registry.seen if line.startswith("PATCH")]) == 4


def test_cookies_are_not_returned(tmp_path: Path) -> None:
    cookies: list[str | None] = []
    with fake_registry() as registry:

        def bake(request: Request) -> Reply:
            cookies.append(request.headers.get("Cookie"))
            status, headers, body = registry.answer(request)
            return status, {**headers, "Set-Cookie": "sid=1; Path=/"}, body

        registry.rules.append(bake)
        registry.store("a/b", two_architectures(tmp_path / "image.oci"))
        pull_of(registry, tmp_path / "pulled.oci")
    assert len(cookies) > 5
    assert set(cookies) == {None}


def test_chunks_are_as_large_as_the_registry_wants(tmp_path: Path) -> None:
    layout = one_image(tmp_path / "image.oci", 30_000)
    with fake_registry() as registry:
        registry.minimum = 20_000
        pushed(registry, layout, chunk_size=10_000)
        assert len([line for line in registry.seen if line.startswith("PATCH")]) == 2


@pytest.mark.parametrize("status", [201, 202, 403])
def test_what_cannot_be_mounted_is_sent(status: int, tmp_path: Path) -> None:
    layout = one_image(tmp_path / "image.oci", 3000)
    parts = read_parts(layout)
    rules = [] if status == 202 else [rule("POST", UPLOADS, _refuse_mount)] if status == 403 else []
    with fake_registry(*rules) as registry:
        if status == 201:
            registry.blobs.update({("base", digest): data for digest, data in blobs_of(layout).items()})
        targets = push_targets([registry.name("a/b:1")], parts.root)
        result = push(layout, parts, targets, access=access(), mount_from=["other", "base"])
        posts = [line for line in registry.seen if line.startswith("POST")]
        assert registry.tags == {"1"}
    assert {part.result for part in result.targets[0].blobs} == {"mounted" if status == 201 else "sent"}
    assert all("mount=" in line for line in posts) == (status != 403)
    assert len(posts) == {201: 4, 202: 4, 403: 6}[status]


def _refuse_mount(request: Request) -> Reply | None:
    return (403, {}, b"") if "mount" in request.query else None


def test_a_download_goes_on_where_it_broke_off(tmp_path: Path) -> None:
    source = one_image(tmp_path / "image.oci", 300_000)
    largest = max(blobs_of(source).values(), key=len)
    ranges: list[str] = []

    def half(request: Request) -> None:
        handler = request.handler
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(largest)))
        handler.end_headers()
        handler.wfile.write(largest[:100_000])
        hang_up(request)

    def note(request: Request) -> None:
        ranges.append(request.headers.get("Range", ""))

    place = f"/blobs/sha256:{hashlib.sha256(largest).hexdigest()}"
    with fake_registry(rule("GET", place, note), rule("GET", place, half, times=1)) as registry:
        registry.store("a/b", source)
        pulled = pull_of(registry, tmp_path / "pulled.oci")
    assert blobs_of(pulled).keys() > blobs_of(source).keys()
    assert ranges[0] == ""
    assert 0 < int(ranges[1].removeprefix("bytes=").removesuffix("-")) <= 100_000


# ---- slow and endless ------------------------------------------------------------------------------------------------


def endless(first: bytes, then: bytes, pause: float) -> Callable[[Request], None]:
    def act(request: Request) -> None:
        with_pause = request.handler.wfile
        with_pause.write(first)
        try:
            while True:
                with_pause.write(then)
                time.sleep(pause)
        except OSError:
            request.handler.close_connection = True

    return act


def silent(request: Request) -> None:
    request.handler.connection.settimeout(30)
    request.handler.rfile.read(1 << 20)
    request.handler.close_connection = True


@pytest.mark.hostile
@pytest.mark.parametrize(
    "act",
    [
        silent,
        endless(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", 0.1),
        endless(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", 0.1),
        endless(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b"x", 0.2),
        endless(b"HTTP/1.1 401 Unauthorized\r\n\r\n", b"x", 0.2),
    ],
)
def test_slow_servers_meet_the_deadline(act: Callable[[Request], None], tmp_path: Path) -> None:
    with fake_registry(rule(".*", "/a/b/", act)) as registry, pytest.raises(InputError) as caught:
        fetch_image(registry.name("a/b:1"), OciLayout.create(tmp_path / "x"), access=access(stall_timeout=1.0))
    assert (
        "stalled" in caught.value.message
        or "100 headers" in caught.value.message
        or "broke off" in caught.value.message
    )


@pytest.mark.hostile
def test_a_registry_that_takes_nothing_in_meets_the_deadline(tmp_path: Path) -> None:
    layout = one_image(tmp_path / "image.oci", 30_000_000)

    def take_nothing(request: Request) -> None:
        time.sleep(8)
        hang_up(request)

    with fake_registry(rule("PUT|PATCH", UPLOADS, take_nothing)) as registry:
        with pytest.raises(StalledServerError, match="stalled"):
            pushed(registry, layout, stall_timeout=1.0, commit_timeout=1.0, chunk_size=64 << 20, workers=1)
        assert registry.tags == set()


def test_an_endless_blob_is_cut_off(tmp_path: Path) -> None:
    act = endless(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", bytes(1 << 16), 0.0)
    with fake_registry(rule("GET", "/blobs/", act)) as registry:
        registry.store("a/b", two_architectures(tmp_path / "image.oci"))
        with pytest.raises(RegistryError, match="sends more than the"):
            pull_of(registry, tmp_path / "pulled.oci")


def test_a_failure_of_one_blob_ends_the_others(tmp_path: Path) -> None:
    layout = one_image(tmp_path / "image.oci", 3000, 3001, 3002)

    def slow(request: Request) -> Reply | None:
        if request.headers["Content-Length"] != str(len(layer(2, 3002))):
            time.sleep(5)
        return 400, {}, b""

    with fake_registry(rule("PUT", UPLOADS, slow)) as registry:
        with pytest.raises(RegistryError, match="answers 400"):
            pushed(registry, layout)
        assert registry.tags == set()


def test_a_registry_that_is_not_there() -> None:
    name = ImageName.parse(f"127.0.0.1:{free_port()}/a/b:1")
    for insecure, scheme in ((False, "https"), (True, "http")):
        with pytest.raises(UnreachableError) as caught:
            resolve(name, access=access(insecure=insecure))
        assert (
            caught.value.message == f"{scheme}://{name.registry}/v2/a/b/manifests/1: 127.0.0.1 refuses the connection"
        )


def test_a_missing_image_is_said_so() -> None:
    with fake_registry() as registry, pytest.raises(MissingImageError) as caught:
        resolve(registry.name("a/b:1"), access=access())
    assert caught.value.message == f"{registry.host}/a/b:1: the registry answers 404"
    assert caught.value.hint == "check the name of the registry and of the repository"
