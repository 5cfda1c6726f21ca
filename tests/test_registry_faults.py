"""A registry that lies about what is pushed and pulled: clear errors, and nothing under a tag."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import pytest

from imgkit.errors import InputError
from imgkit.oci import mediatypes
from imgkit.oci.ocilayout import OciLayout, to_json
from imgkit.registry.imageparts import read_parts
from imgkit.registry.pulling import fetch_image, resolve
from imgkit.registry.registryerrors import DeniedError, RegistryError
from tests.registries import PAGE, Rule, access, blobs_of, fake_registry, layer, reply, rule, two_architectures
from tests.registryimages import one_image, pull_of, pushed

UPLOADS = "/blobs/uploads/"


@pytest.mark.slow
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


@pytest.mark.slow
def test_tags_are_written_last(tmp_path: Path) -> None:
    layout = two_architectures(tmp_path / "image.oci")
    with fake_registry() as registry:
        pushed(registry, layout, "a/b:1", "c/d:2")
        writes = [line.split()[1] for line in registry.seen if line.startswith("PUT") and "/manifests/" in line]
    index = read_parts(layout).root.digest
    assert [place.rpartition("/")[2] for place in writes[-4:]] == [writes[-4].rpartition("/")[2], index, "1", "2"]
    assert all("sha256:" in place for place in writes[:-2])
    assert len(writes) == 8


@pytest.mark.slow
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


@pytest.mark.slow
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
