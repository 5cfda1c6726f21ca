"""A registry that is overloaded, slow or endless, or whose connections break off."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path

import pytest

from imgkit.errors import InputError
from imgkit.fetch.checks import UnreachableError
from imgkit.oci.imagename import ImageName
from imgkit.oci.ocilayout import OciLayout
from imgkit.registry import registryerrors
from imgkit.registry.imageparts import read_parts
from imgkit.registry.pulling import fetch_image, resolve
from imgkit.registry.pushing import push, push_targets
from imgkit.registry.registryerrors import MissingImageError, RegistryError, retry_after
from imgkit.registry.wire import StalledServerError
from tests.registries import (
    PAGE,
    Reply,
    Request,
    access,
    blobs_of,
    break_off,
    fake_registry,
    free_port,
    hang_up,
    layer,
    reply,
    rule,
    two_architectures,
)
from tests.registryimages import one_image, pull_of, pushed

UPLOADS = "/blobs/uploads/"


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

    def note(request: Request) -> None:
        ranges.append(request.headers.get("Range", ""))

    place = f"/blobs/sha256:{hashlib.sha256(largest).hexdigest()}"
    with fake_registry(rule("GET", place, note), rule("GET", place, break_off(largest, 100_000), times=1)) as registry:
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
