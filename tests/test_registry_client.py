"""Small rules of the client: pauses, statuses, what is counted, where tokens may be asked for."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

from imgkit.errors import InputError
from imgkit.fetch.checks import TransientError
from imgkit.fetch.deadline import Deadline
from imgkit.oci.descriptors import Descriptor
from imgkit.oci.ocilayout import OciLayout
from imgkit.registry.downloading import BlobDownload
from imgkit.registry.httpcalls import Answer, HttpCall
from imgkit.registry.imageparts import read_parts
from imgkit.registry.logins import Login
from imgkit.registry.pulling import resolve
from imgkit.registry.pushing import push, push_targets
from imgkit.registry.registryerrors import BusyError, RegistryError
from imgkit.registry.remote import RemoteRepository, pause_before
from imgkit.registry.tokens import Authorizer, scope
from imgkit.registry.uploading import BlobUpload, FilePart
from imgkit.registry.wire import Wire, origin
from tests.registries import (
    FakeRegistry,
    Reply,
    Request,
    access,
    break_off,
    fake_registry,
    hang_up,
    reply,
    rule,
    two_architectures,
)

DATA = bytes(range(256)) * 1000
BLOB = Descriptor("application/octet-stream", f"sha256:{hashlib.sha256(DATA).hexdigest()}", len(DATA))


def test_pauses_double_up_to_half_a_minute() -> None:
    fault, options = TransientError(InputError("x")), access(pause=0.5)
    assert [pause_before(number, fault, options) for number in (0, 1, 2, 5, 6, 50)] == [0.5, 1, 2, 16, 30, 30]
    busy = BusyError(InputError("x"), 7.0)
    assert [pause_before(number, busy, options) for number in (0, 3, 4)] == [7, 7, 8]


@pytest.mark.parametrize("status", [200, 201, 202])
def test_statuses_of_a_stored_manifest(status: int, tmp_path: Path) -> None:
    layout = two_architectures(tmp_path / "image.oci")
    parts = read_parts(layout)
    with fake_registry() as registry:

        def store(request: Request) -> Reply:
            _, headers, body = registry.answer(request)
            return status, headers, body

        registry.rules.append(rule("PUT", "/manifests/", store))
        push(layout, parts, push_targets([registry.name("a/b:1")], parts.root), access=access())
        assert registry.tags == {"1"}


def test_a_registry_that_does_not_say_digests(tmp_path: Path) -> None:
    with fake_registry() as registry:
        digest = registry.store("a/b", two_architectures(tmp_path / "image.oci"))
        for said in ({}, {"Docker-Content-Digest": "something"}):
            registry.rules[:] = [rule("HEAD", "/manifests/1", reply(200, said))]
            assert resolve(registry.name("a/b:1"), access=access()) == digest
        asked = len(registry.seen)
        assert resolve(registry.name("a/b").with_digest(digest), access=access()) == digest
        assert len(registry.seen) == asked


# ---- what is counted -------------------------------------------------------------------------------------------------


def repository(registry: FakeRegistry, **options: object) -> RemoteRepository:
    settings = access(**options)
    return RemoteRepository(registry.name("a/b"), settings, Wire(settings))


def test_what_comes_again_is_counted_once(tmp_path: Path) -> None:
    counted: list[int] = []

    whole = rule("GET", "/blobs/", reply(200, {}, DATA))  # although a range was asked for
    with fake_registry(rule("GET", "/blobs/", break_off(DATA, 100_000), times=1), whole) as registry:
        BlobDownload(
            repository(registry), BLOB, tmp_path / "blob", cancelled=threading.Event(), on_bytes=counted.append
        ).fetch()
    assert (tmp_path / "blob").read_bytes() == DATA
    assert sum(counted) == len(DATA)
    assert min(counted) < -1000


def test_what_is_sent_again_is_counted_once(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(DATA)
    for chunk_size in (50_000, 1 << 20):
        counted: list[int] = []
        with fake_registry(rule("PATCH|PUT", "/uploads/", _take_and_hang_up, times=2)) as registry:
            upload = BlobUpload(
                repository(registry, chunk_size=chunk_size),
                BLOB,
                tmp_path / "blob",
                cancelled=threading.Event(),
                on_bytes=counted.append,
            )
            upload.send()
            assert registry.blobs["a/b", BLOB.digest] == DATA
        assert sum(counted) == len(DATA)
        assert upload.bytes_sent > len(DATA)


def _take_and_hang_up(request: Request) -> None:
    request.body()
    hang_up(request)


@pytest.mark.parametrize(("more", "chunks"), [(0, 0), (-1, 2)])
def test_a_blob_of_one_chunk_is_sent_at_once(more: int, chunks: int, tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(DATA)
    with fake_registry() as registry:
        options = repository(registry, chunk_size=len(DATA) + more)
        BlobUpload(options, BLOB, tmp_path / "blob", cancelled=threading.Event()).send()
        assert len([line for line in registry.seen if line.startswith("PATCH")]) == chunks


def test_a_part_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(DATA)
    counted: list[int] = []
    part = FilePart(path, 1000, 2500, counted.append)
    assert len(part) == 2500
    assert list(map(len, part.pieces(1000))) == [1000, 1000, 500]
    assert b"".join(part.pieces(999)) == DATA[1000:3500]
    assert sum(counted) == 5000
    with pytest.raises(OSError, match="became shorter while it was sent"):
        list(FilePart(path, len(DATA) - 10, 11, counted.append).pieces(100))


# ---- tokens ----------------------------------------------------------------------------------------------------------


def authorizer(answer: bytes, login: Login | None, calls: list[HttpCall], *, insecure: bool = False) -> Authorizer:
    def send(call: HttpCall) -> Answer:
        calls.append(call)
        return Answer(200, {}, answer, call.url)

    return Authorizer("r.example", lambda: login, send, insecure=insecure)


def test_token_services_on_plain_http_need_the_option() -> None:
    challenge = 'Bearer realm="http://auth.example/token?x=1",service="s",scope="repository:a/b:pull"'
    scopes = [scope("a/b", "pull,push")]
    with pytest.raises(RegistryError, match="is on plain http") as caught:
        authorizer(b"", None, []).challenged(challenge, scopes, "")
    assert caught.value.hint == "--insecure allows that"
    calls: list[HttpCall] = []
    allowed = authorizer(b'{"token": "t"}', Login("file", "ann", "x"), calls, insecure=True)
    assert allowed.header(scopes) == ""
    allowed.challenged(challenge, scopes, "")
    assert [allowed.header(scopes), allowed.header(scopes)] == ["Bearer t", "Bearer t"]
    (call,) = calls
    assert call.url == "http://auth.example/token?x=1&service=s&scope=repository%3Aa%2Fb%3Apull%2Cpush"
    assert call.authorization == Login("file", "ann", "x").basic


def test_the_exchange_of_an_identity_token_is_a_form() -> None:
    calls: list[HttpCall] = []
    one = authorizer(b'{"access_token": "t"}', Login("file", identity_token="i"), calls)
    one.challenged('Bearer realm="https://auth.example/token"', ["repository:a/b:pull"], "")
    assert one.header(["repository:a/b:pull"]) == "Bearer t"
    assert calls[0].headers == {"Content-Type": "application/x-www-form-urlencoded"}
    assert (calls[0].method, calls[0].authorization) == ("POST", "")


def test_a_bearer_token_of_the_file_is_shown_to_the_registry() -> None:
    calls: list[HttpCall] = []
    one = authorizer(b"", Login("file", bearer_token="b"), calls)
    one.challenged('Bearer realm="https://auth.example/token"', ["repository:a/b:pull"], "")
    assert one.header(["repository:a/b:pull"]) == "Bearer b"
    assert calls == []


def test_bearer_is_preferred_to_basic() -> None:
    calls: list[HttpCall] = []
    one = authorizer(b'{"token": "t"}', Login("file", "ann", "x"), calls)
    one.challenged('Basic realm="x", Bearer realm="https://auth.example/token"', ["s"], "")
    assert one.header(["s"]) == "Bearer t"


def test_origins() -> None:
    assert origin("https://r.example/x") == origin("https://R.example:443/y") == ("https", "r.example", 443)
    assert origin("http://r.example/x") == ("http", "r.example", 80)
    assert len({origin(url) for url in ("https://a", "http://a", "https://b", "https://a:8443", "http://a:443")}) == 5


def test_a_deadline_is_extended_but_never_brought_forward() -> None:
    deadline = Deadline(timeout=100, rate=1)
    deadline.extend(10)
    assert 99 < deadline.left() <= 100
    deadline.extend(500)
    assert 499 < deadline.left() <= 500


def test_a_layout_of_a_pull_has_no_leftovers(tmp_path: Path) -> None:
    from imgkit.registry.pulling import pull_image

    layout = OciLayout.create(tmp_path / "x.oci")
    with fake_registry() as registry:
        registry.store("a/b", two_architectures(tmp_path / "image.oci"))
        pulled = pull_image(registry.name("a/b:1"), layout, access=access())
    assert {path.name for path in layout.folder.iterdir()} == {"oci-layout", "blobs"}
    assert pulled.bytes_kept == 0
    assert pulled.bytes_fetched == sum(path.stat().st_size for path in (layout.folder / "blobs/sha256").iterdir())
