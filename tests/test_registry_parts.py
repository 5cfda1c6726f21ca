"""What belongs to an image, what refers to it, which certificates are trusted, and what an interrupt leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from imgkit.errors import InputError, UsageError
from imgkit.oci import mediatypes
from imgkit.oci.annotations import REF_NAME
from imgkit.oci.descriptors import Descriptor, digest_of
from imgkit.oci.imagename import ImageName
from imgkit.oci.ocilayout import OciLayout, to_json
from imgkit.oci.writing import write_layout_index
from imgkit.registry import roots
from imgkit.registry.httpcalls import HttpCall
from imgkit.registry.imageparts import BASE_NAME, ImageParts, read_parts
from imgkit.registry.pushing import PushResult, push, push_targets
from imgkit.registry.referrers import fallback_tag
from imgkit.registry.roots import TrustedRoots
from imgkit.registry.wire import Wire
from tests.commandline import ROOT
from tests.registries import (
    FakeRegistry,
    Reply,
    Request,
    access,
    certificates,
    docker_registry,
    fake_registry,
    image,
    layer,
    reply,
    rule,
    two_architectures,
)


def named(descriptor: Descriptor, name: str) -> Descriptor:
    return replace(descriptor, platform=None, annotations={REF_NAME: name})


def attach(
    layout: OciLayout, subject: Descriptor, text: bytes = b"{}", kind: str = "application/spdx+json"
) -> Descriptor:
    """Add an SBOM of ``subject`` to a layout."""
    manifest = {
        "schemaVersion": 2,
        "mediaType": mediatypes.MANIFEST,
        "artifactType": kind,
        "config": layout.add(mediatypes.EMPTY, b"{}").to_json(),
        "layers": [layout.add(kind, text).to_json()],
        "subject": replace(subject, platform=None).to_json(),
        "annotations": {"org.opencontainers.image.created": "2026-01-01T00:00:00Z"},
    }
    return layout.add(mediatypes.MANIFEST, to_json(manifest))


# ---- which parts -----------------------------------------------------------------------------------------------------


def test_several_platforms_are_an_index_together(tmp_path: Path) -> None:
    layout = two_architectures(tmp_path / "image.oci")
    parts = read_parts(layout)
    data = (layout.folder / "index.json").read_bytes()
    assert parts.root.digest == digest_of(data)
    assert parts.documents[-1].data == data
    assert [document.descriptor.digest for document in parts.documents[:-1]] == [
        entry.digest for entry in layout.index().manifests
    ]
    assert len(parts.blobs) == 5
    assert [blob.size for blob in parts.blobs] == sorted((blob.size for blob in parts.blobs), reverse=True)
    assert (parts.referrers, parts.bases) == ((), ())


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", [None, "r.example/app:main"])
def test_what_imgkit_writes_is_pushed_with_the_digest_that_it_says(
    count: int, name: str | None, tmp_path: Path
) -> None:
    layout = OciLayout.create(tmp_path / "image.oci")
    images = [image(layout, [layer(1)], arch) for arch in ("amd64", "arm64")][:count]
    written = write_layout_index(layout, images, name=name)
    parts = read_parts(layout)
    assert parts.root.digest == written.digest
    assert len(parts.documents) == (1 if count == 1 else 3)


def test_the_only_entry_is_the_image(tmp_path: Path) -> None:
    layout = OciLayout.create(tmp_path / "image.oci")
    entry = image(layout, [layer(1)])
    for one in (named(entry, "latest"), replace(entry, platform=None), entry):
        layout.write_index([one])
        assert read_parts(layout).root == one
    layout.write_index([])
    with pytest.raises(UsageError, match="has no image, where one is pushed"):
        read_parts(layout)


def test_an_image_is_chosen_by_its_name(tmp_path: Path) -> None:
    layout = OciLayout.create(tmp_path / "image.oci")
    one, two = image(layout, [layer(1)]), image(layout, [layer(2)])
    layout.write_index([named(one, "one"), named(two, "two")])
    assert read_parts(layout, image="two").root.digest == two.digest
    with pytest.raises(UsageError, match="has 2 images, where one is pushed") as caught:
        read_parts(layout)
    assert caught.value.hint == "choose one with --image: one, two"
    with pytest.raises(UsageError, match="has no image 'three'") as caught:
        read_parts(layout, image="three")
    assert caught.value.hint == "choose one with --image: one, two"


def test_architectures_are_chosen(tmp_path: Path) -> None:
    layout = two_architectures(tmp_path / "image.oci")
    entries = [entry.value for entry in layout.index().manifests]
    one = read_parts(layout, architectures=["arm64"])
    assert one.root == entries[1]
    assert len(one.documents) == 1
    assert len(one.blobs) == 3
    both = read_parts(layout, architectures=["arm64", "amd64", "arm64"])
    assert [item["platform"]["architecture"] for item in json.loads(both.documents[-1].data)["manifests"]] == [
        "arm64",
        "amd64",
    ]
    with pytest.raises(UsageError, match="has no image for riscv64") as caught:
        read_parts(layout, architectures=["riscv64"])
    assert caught.value.hint == "it has amd64, arm64"
    layout.write_index([named(entries[0], "one")])
    with pytest.raises(UsageError, match="is the image of one architecture"):
        read_parts(layout, architectures=["amd64"])


def test_bases_are_named_once(tmp_path: Path) -> None:
    layout = OciLayout.create(tmp_path / "image.oci")
    annotations = {BASE_NAME: "registry.example/base:1"}
    layout.write_index([image(layout, [layer(1)], arch, annotations=annotations) for arch in ("amd64", "arm64")])
    assert read_parts(layout).bases == ("registry.example/base:1",)


def nested(layout: OciLayout, depth: int) -> None:
    """Write an index that has ``depth`` further ones inside."""
    inner = image(layout, [layer(1)])
    for _ in range(depth):
        data = to_json({"schemaVersion": 2, "manifests": [inner.to_json()]})
        inner = layout.add(mediatypes.INDEX, data)
    layout.write_index([named(inner, "x")])


def test_nesting_has_a_limit(tmp_path: Path) -> None:
    layout = OciLayout.create(tmp_path / "image.oci")
    nested(layout, 3)
    assert len(read_parts(layout).documents) == 4
    nested(layout, 4)
    with pytest.raises(InputError, match="has more than 4 levels or 1000 documents"):
        read_parts(layout)


def test_targets() -> None:
    root = Descriptor(mediatypes.INDEX, digest_of(b""), 0)

    def targets(*names: str, tags: tuple[str, ...] = ()) -> list[tuple[str, tuple[str, ...]]]:
        found = push_targets([ImageName.parse(name) for name in names], root, tags)
        return [(str(target.name), target.tags) for target in found]

    assert targets("r.example/a") == [("r.example/a", ("latest",))]
    assert targets("r.example/a:1", "r.example/b:2", "r.example/a:3", "r.example/a:1") == [
        ("r.example/a", ("1", "3")),
        ("r.example/b", ("2",)),
    ]
    assert targets("r.example/a", "r.example/b", tags=("x", "y")) == [
        ("r.example/a", ("x", "y")),
        ("r.example/b", ("x", "y")),
    ]
    assert targets(f"r.example/a@{root.digest}") == [("r.example/a", ())]
    assert targets(f"r.example/a:1@{root.digest}") == [("r.example/a", ("1",))]
    with pytest.raises(UsageError, match=f"what is pushed has the digest {root.digest}"):
        targets(f"r.example/a@sha256:{'0' * 64}")
    with pytest.raises(UsageError, match="a:1: has a tag, but --tags names the tags") as caught:
        targets("r.example/a:1", tags=("x",))
    assert caught.value.hint == "write r.example/a"


# ---- referrers -------------------------------------------------------------------------------------------------------


def with_referrers(folder: Path) -> tuple[OciLayout, list[Descriptor]]:
    """Make a layout with an image, an SBOM of its index, a signature of the SBOM, and an SBOM of something else."""
    layout = two_architectures(folder)
    entries = [entry.value for entry in layout.index().manifests]
    index = (layout.folder / "index.json").read_bytes()
    sbom = attach(layout, Descriptor(mediatypes.INDEX, digest_of(index), len(index)))
    signature = attach(layout, sbom, b"signature", "application/x-signature")
    other = attach(layout, Descriptor(mediatypes.MANIFEST, digest_of(b"other"), 5), b"other")
    layout.write_index([signature, *entries, other, sbom])
    return layout, [sbom, signature, other]


def pushed(layout: OciLayout, name: ImageName, parts: ImageParts | None = None, **options: object) -> PushResult:
    parts = parts or read_parts(layout)
    return push(layout, parts, push_targets([name], parts.root), access=access(), **options)  # type: ignore[arg-type]


@pytest.mark.slow
def test_what_refers_to_the_image_is_pushed_after_it(tmp_path: Path) -> None:
    layout, (sbom, signature, other) = with_referrers(tmp_path / "image.oci")
    plain = two_architectures(tmp_path / "plain.oci")
    parts = read_parts(layout)
    assert parts.root == read_parts(plain).root
    assert [(subject, document.descriptor.digest) for subject, document in parts.referrers] == [
        (parts.root.digest, sbom.digest),
        (sbom.digest, signature.digest),
    ]
    with fake_registry() as registry:
        pushed(layout, registry.name("a/b:1"))
        pushed(layout, registry.name("a/b:1"))
        assert ("a/b", other.digest) not in registry.manifests
        kind, data = registry.manifests["a/b", fallback_tag(parts.root.digest)]
        puts = [line for line in registry.seen if line.startswith("PUT") and fallback_tag(parts.root.digest) in line]
        writes = [line.rpartition("/")[2] for line in registry.seen if line.startswith("PUT") and "/manifests/" in line]
    assert kind == mediatypes.INDEX
    (entry,) = json.loads(data)["manifests"]
    assert entry == {
        "mediaType": mediatypes.MANIFEST,
        "digest": sbom.digest,
        "size": sbom.size,
        "artifactType": "application/spdx+json",
        "annotations": {"org.opencontainers.image.created": "2026-01-01T00:00:00Z"},
    }
    assert len(puts) == 1
    assert writes.index("1") > writes.index(sbom.digest) > writes.index(parts.root.digest)


def test_what_others_listed_stays(tmp_path: Path) -> None:
    layout, (sbom, _, other) = with_referrers(tmp_path / "image.oci")
    tag = fallback_tag(read_parts(layout).root.digest)
    listed = to_json({"schemaVersion": 2, "mediaType": mediatypes.INDEX, "manifests": [other.to_json()]})
    with fake_registry() as registry:
        registry.manifests["a/b", tag] = (mediatypes.INDEX, listed)
        pushed(layout, registry.name("a/b:1"))
        data = registry.manifests["a/b", tag][1]
    assert [entry["digest"] for entry in json.loads(data)["manifests"]] == [other.digest, sbom.digest]


def test_a_registry_that_lists_referrers_itself_needs_no_tag(tmp_path: Path) -> None:
    layout, _ = with_referrers(tmp_path / "image.oci")
    with fake_registry() as registry:

        def list_it(request: Request) -> Reply:
            status, headers, body = registry.answer(request)
            return status, {**headers, "OCI-Subject": "sha256:x"}, body

        registry.rules.append(rule("PUT", "/manifests/", list_it))
        pushed(layout, registry.name("a/b:1"))
        assert registry.tags == {"1"}


@pytest.mark.slow
def test_referrers_at_a_real_registry(tmp_path: Path) -> None:
    """docker-registry 2.8 has no referrers API, so they are listed under the tag."""
    layout, (sbom, _, _) = with_referrers(tmp_path / "image.oci")
    with docker_registry(tmp_path / "registry") as registry:
        result = pushed(layout, registry.name("a/b:1"))
        again = pushed(layout, registry.name("a/b:1"))
        wire = Wire(access())
        url = f"http://{registry.host}/v2/a/b/manifests/{fallback_tag(result.root.digest)}"
        call = HttpCall(method="GET", url=url, headers={"Accept": mediatypes.INDEX}, limit=1 << 20)
        answer = wire.exchange(call, threading.Event())
        wire.close()
    assert [entry["digest"] for entry in json.loads(answer.data)["manifests"]] == [sbom.digest]
    assert {part.result for part in (*again.targets[0].blobs, *again.targets[0].documents)} == {"skipped"}


def test_a_dry_run_lists_nothing(tmp_path: Path) -> None:
    layout, _ = with_referrers(tmp_path / "image.oci")
    with fake_registry() as registry:
        result = pushed(layout, registry.name("a/b:1"), dry_run=True)
        assert registry.manifests == {}
        assert {line.split()[0] for line in registry.seen} <= {"HEAD", "GET"}
    assert [part.result for part in result.targets[0].documents] == ["sent"] * 5


# ---- certificates ----------------------------------------------------------------------------------------------------


def test_which_certificates_are_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ca = certificates(tmp_path / "pki")[0]
    folder = tmp_path / "etc/r.example:5000"
    folder.mkdir(parents=True)
    (folder / "a.crt").write_text("-----BEGIN CERTIFICATE-----\nA\n")
    (folder / "client.cert").write_text("not read")
    monkeypatch.setattr(roots, "SYSTEM_FOLDERS", (tmp_path / "etc",))
    usual = tmp_path / "usual.pem"
    usual.write_text("-----BEGIN CERTIFICATE-----\nU\n")
    environ = {"SSL_CERT_FILE": str(usual), "HOME": str(tmp_path)}
    trusted = TrustedRoots(access(environ=environ))
    assert trusted.verify("other.example") == str(usual)
    bundle = Path(trusted.verify("r.example:5000"))
    assert bundle.read_text() == "-----BEGIN CERTIFICATE-----\nU\n\n-----BEGIN CERTIFICATE-----\nA\n"
    assert trusted.verify("r.example:5000") == str(bundle)
    trusted.close()
    assert not bundle.exists()
    both = TrustedRoots(access(environ=environ, ca=ca))
    assert Path(both.verify("other.example")).read_bytes() == usual.read_bytes() + b"\n" + ca.read_bytes()
    assert Path(both.verify("r.example:5000")).read_text().count("BEGIN") == 3
    both.close()


def test_the_usual_certificates(tmp_path: Path) -> None:
    one, two, three = (tmp_path / name for name in ("one.pem", "two.pem", "three.pem"))
    for path in (one, two, three):
        path.write_text("-----BEGIN CERTIFICATE-----\n")
    environ = {"REQUESTS_CA_BUNDLE": str(one), "CURL_CA_BUNDLE": str(two), "SSL_CERT_FILE": str(three)}
    seen = []
    for name in (*environ, None):
        seen.append(TrustedRoots(access(environ=dict(environ))).verify("r.example"))
        environ.pop(name or "", None)
    assert seen[:3] == [str(one), str(two), str(three)]
    assert seen[3].endswith(".pem")
    assert Path(seen[3]).stat().st_size > 100_000
    folder = TrustedRoots(access(environ={"REQUESTS_CA_BUNDLE": str(tmp_path)}, ca=one))
    assert Path(folder.verify("r.example")).read_text().count("BEGIN") == 4
    folder.close()
    with pytest.raises(UsageError, match="/nonexistent: no such file of certificates"):
        TrustedRoots(access(environ={"SSL_CERT_FILE": "/nonexistent"})).verify("r.example")


@pytest.mark.parametrize(
    ("text", "message"), [(None, "cannot be read"), ("no certificate", "has no certificate in PEM")]
)
def test_wrong_files_of_certificates(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=message):
        TrustedRoots(access(ca=path)).verify("r.example")


def test_a_host_is_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.crt").write_text("outside")
    (tmp_path / "certs.d").mkdir()
    monkeypatch.setattr(roots, "SYSTEM_FOLDERS", (tmp_path / "certs.d",))
    for host in ("..", ".", "", "../x"):
        assert not Path(TrustedRoots(access()).verify(host)).read_text().startswith("outside")


# ---- redirects, and interrupts ---------------------------------------------------------------------------------------


def test_redirects_to_plain_http_need_the_option() -> None:
    target = "http://storage.example/x"
    with pytest.raises(InputError, match="is redirected to plain http"):
        Wire(access(insecure=False))._check_target("https://r.example/x", target)
    wire = Wire(access(insecure=True))
    wire._check_target("https://r.example/x", target)
    wire._check_target("http://r.example/x", target)
    wire._check_target("https://r.example/x", "https://storage.example/x")
    for wrong in ("file:///etc/passwd", "ftp://r.example/x", "http:///x", "data:,x"):
        with pytest.raises(InputError, match="which is not on the web"):
            wire._check_target("https://r.example/x", wrong)


def interrupted(registry: FakeRegistry, words: list[str], began: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run imgkit until the registry has seen a request, and press Ctrl-C."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder), "HOME": str(folder)}
    argv = [sys.executable, "-m", "imgkit", *words, "--insecure"]
    with subprocess.Popen(
        argv, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        end = time.monotonic() + 60
        while not any(line.startswith(began) for line in registry.seen) and time.monotonic() < end:
            time.sleep(0.02)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=20)
    return subprocess.CompletedProcess(argv, child.returncode, out, err)


@pytest.mark.slow
def test_an_interrupt_ends_a_push_and_a_pull(tmp_path: Path) -> None:
    layout = two_architectures(tmp_path / "image.oci")
    (tmp_path / "tmp").mkdir()

    def never(request: Request) -> Reply | None:
        time.sleep(60)
        return None

    with fake_registry(rule("PUT", "/uploads/", never), rule("GET", "/blobs/sha256", never)) as registry:
        name = f"{registry.host}/a/b:1"
        ran = interrupted(registry, ["push", str(layout.folder), name], "PUT", tmp_path / "tmp")
        assert (ran.returncode, ran.stderr.splitlines()[-1]) == (130, "error: interrupted")
        assert registry.tags == set()
        registry.store("a/b", layout)
        ran = interrupted(
            registry, ["pull", name, "--out", str(tmp_path / "p.oci")], "GET /v2/a/b/blobs", tmp_path / "tmp"
        )
        assert (ran.returncode, ran.stderr.splitlines()[-1]) == (130, "error: interrupted")
    assert {path.name for path in (tmp_path / "p.oci").iterdir()} == {"oci-layout", "blobs"}
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.slow
def test_an_interrupt_ends_a_pause(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    with fake_registry(rule("GET", "/manifests/", reply(503, {"Retry-After": "50"}))) as registry:
        name = f"{registry.host}/a/b:1"
        words = ["pull", name, "--out", str(tmp_path / "p.oci")]
        ran = interrupted(registry, words, "GET /v2/a/b/manifests", tmp_path / "tmp")
    assert ran.returncode == 130
