"""Credentials for a registry go to nobody else, and token services that misbehave are noticed."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from imgkit.errors import InputError
from imgkit.fetch.checks import UnreachableError
from imgkit.oci.imagename import ImageName
from imgkit.registry.pulling import resolve
from imgkit.registry.registryerrors import DeniedError
from tests.registries import PAGE, Reply, Request, Rule, access, blobs_of, fake_registry, reply, rule, two_architectures
from tests.registryimages import login, pull_of

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
