"""Push and pull against Debian's docker-registry, with skopeo as the second opinion."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgkit.cli.main import main
from imgkit.oci import mediatypes
from imgkit.oci.archives import write_oci_archive
from imgkit.oci.descriptors import Platform
from imgkit.oci.imagename import ImageName
from imgkit.oci.ocilayout import OciLayout
from imgkit.registry.imageparts import BASE_NAME, read_parts
from imgkit.registry.pulling import fetch_image, pull_image, resolve
from imgkit.registry.pushing import PushResult, push, push_targets
from imgkit.registry.registryerrors import DeniedError, MissingImageError
from tests.conftest import need_program
from tests.registries import (
    DockerRegistry,
    access,
    blobs_of,
    certificates,
    docker_registry,
    htpasswd,
    image,
    layer,
    two_architectures,
)


@pytest.fixture(scope="module")
def open_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    """Yield a registry on plain http that asks nobody for credentials."""
    with docker_registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@pytest.fixture
def repository(request: pytest.FixtureRequest) -> str:
    """Return a repository that no other test uses."""
    return "team/" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]


def pushed(layout: OciLayout, *names: ImageName, **options: object) -> PushResult:
    parts = read_parts(layout)
    return push(layout, parts, push_targets(names, parts.root), access=access(**options))


def skopeo(*words: str | Path) -> bytes:
    argv = [need_program("skopeo"), *map(str, words)]
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=60).stdout


def results(result: PushResult, number: int = 0) -> list[str]:
    return [part.result for part in result.targets[number].blobs]


@pytest.mark.slow
def test_skopeo_reads_what_was_pushed(open_registry: DockerRegistry, repository: str, tmp_path: Path) -> None:
    layout = two_architectures(tmp_path / "image.oci")
    result = pushed(layout, open_registry.name(f"{repository}:1.0"), open_registry.name(f"{repository}:latest"))
    index = (layout.folder / "index.json").read_bytes()
    for tag in ("1.0", "latest"):
        assert (
            skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{open_registry.host}/{repository}:{tag}")
            == index
        )
    assert result.root.digest == f"sha256:{hashlib.sha256(index).hexdigest()}"
    skopeo(
        "copy",
        "--all",
        "--src-tls-verify=false",
        f"docker://{open_registry.host}/{repository}:1.0",
        f"dir:{tmp_path / 'd'}",
    )
    copied = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "d").iterdir()}
    assert {digest.removeprefix("sha256:") for digest in blobs_of(layout)} <= copied


def test_what_is_there_is_not_sent(open_registry: DockerRegistry, repository: str, tmp_path: Path) -> None:
    layout = two_architectures(tmp_path / "image.oci")
    name = open_registry.name(f"{repository}:1")
    first, second = pushed(layout, name), pushed(layout, name)
    assert set(results(first)) == {"sent"}
    assert set(results(second)) == {"skipped"}
    assert [part.bytes_sent for part in first.targets[0].blobs] == [
        part.descriptor.size for part in first.targets[0].blobs
    ]
    assert second.targets[0].bytes_of("sent") == 0
    assert second.targets[0].bytes_of("skipped") == first.targets[0].bytes_of("sent") > 0


def test_a_changed_layer_is_all_that_moves(open_registry: DockerRegistry, repository: str, tmp_path: Path) -> None:
    before = OciLayout.create(tmp_path / "before.oci")
    before.write_index([image(before, [layer(1, 200_000), layer(2)])])
    pushed(before, open_registry.name(f"{repository}:1"))
    after = OciLayout.create(tmp_path / "after.oci")
    after.write_index([image(after, [layer(1, 200_000), layer(3, 5000)])])
    result = pushed(after, open_registry.name(f"{repository}:1"))
    sent = {part.descriptor.size: part.result for part in result.targets[0].blobs}
    assert sent[len(layer(1, 200_000))] == "skipped"
    assert sent[len(layer(3, 5000))] == "sent"
    assert 5000 < result.targets[0].bytes_of("sent") < 7000


def test_blobs_are_mounted_from_another_repository_of_the_push(
    open_registry: DockerRegistry, repository: str, tmp_path: Path
) -> None:
    layout = two_architectures(tmp_path / "image.oci")
    result = pushed(layout, open_registry.name(f"{repository}/a:1"), open_registry.name(f"{repository}/b:1"))
    assert set(results(result, 0)) == {"sent"}
    assert set(results(result, 1)) == {"mounted"}
    assert {part.source for part in result.targets[1].blobs} == {f"{repository}/a"}
    asked = open_registry.requests("POST", rf"{repository}/b/blobs/uploads/\?mount=")
    assert len(asked) == len(result.targets[1].blobs) == 5
    assert not open_registry.requests("PUT", f"{repository}/b/blobs/uploads")


def test_layers_are_mounted_from_the_base_that_the_manifest_names(
    open_registry: DockerRegistry, repository: str, tmp_path: Path
) -> None:
    base = OciLayout.create(tmp_path / "base.oci")
    base.write_index([image(base, [layer(7, 9000)])])
    pushed(base, open_registry.name(f"{repository}/base:1"))
    layout = OciLayout.create(tmp_path / "image.oci")
    annotations = {BASE_NAME: f"{open_registry.host}/{repository}/base:1"}
    layout.write_index([image(layout, [layer(7, 9000), layer(8)], annotations=annotations)])
    result = pushed(layout, open_registry.name(f"{repository}/app:1"))
    assert {part.descriptor.size: part.source for part in result.targets[0].blobs if part.source} == {
        len(layer(7, 9000)): f"{repository}/base"
    }
    assert result.targets[0].bytes_of("mounted") == len(layer(7, 9000))


def test_large_blobs_go_in_chunks(open_registry: DockerRegistry, repository: str, tmp_path: Path) -> None:
    layout = OciLayout.create(tmp_path / "image.oci")
    layout.write_index([image(layout, [layer(9, 250_000)])])
    result = pushed(layout, open_registry.name(f"{repository}:1"), chunk_size=100_000)
    assert result.targets[0].blobs[0].bytes_sent == len(layer(9, 250_000))
    assert len(open_registry.requests("PATCH", repository)) == 3
    raw = skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{open_registry.host}/{repository}:1")
    assert raw == layout.read(result.root)


def test_a_dry_run_writes_nothing(open_registry: DockerRegistry, repository: str, tmp_path: Path) -> None:
    layout = two_architectures(tmp_path / "image.oci")
    parts = read_parts(layout)
    names = [open_registry.name(f"{repository}/a:1"), open_registry.name(f"{repository}/b")]
    result = push(layout, parts, push_targets(names, parts.root), access=access(), dry_run=True)
    assert set(results(result, 0)) == {"sent"}
    assert set(results(result, 1)) == {"mounted"}
    assert result.dry_run
    assert result.targets[0].bytes_of("sent") == sum(
        part.descriptor.size for part in (*result.targets[0].blobs, *result.targets[0].documents)
    )
    for method in ("POST", "PUT", "PATCH"):
        assert not open_registry.requests(method, repository)
    with pytest.raises(MissingImageError, match=f"{repository}/a:1: the registry answers 404"):
        resolve(names[0], access=access())


def test_a_dry_run_finds_what_could_be_mounted(open_registry: DockerRegistry, repository: str, tmp_path: Path) -> None:
    layout = two_architectures(tmp_path / "image.oci")
    pushed(layout, open_registry.name(f"{repository}/a:1"))
    parts = read_parts(layout)
    targets = push_targets([open_registry.name(f"{repository}/b:1")], parts.root)
    result = push(layout, parts, targets, access=access(), mount_from=[f"{repository}/a"], dry_run=True)
    assert set(results(result)) == {"mounted"}


def test_what_skopeo_pushed_is_pulled(open_registry: DockerRegistry, repository: str, tmp_path: Path) -> None:
    source = OciLayout.create(tmp_path / "source.oci")
    source.write_index([image(source, [layer(1), layer(2)])])
    place = f"docker://{open_registry.host}/{repository}:docker"
    skopeo("copy", "-q", "--format=v2s2", "--dest-tls-verify=false", f"oci:{source.folder}", place)
    layout = OciLayout.create(tmp_path / "pulled.oci")
    pulled = pull_image(open_registry.name(f"{repository}:docker"), layout, access=access())
    assert pulled.root.media_type == mediatypes.DOCKER_MANIFEST
    assert pulled.entries == (pulled.root,)
    assert {f"sha256:{hashlib.sha256(data).hexdigest()}" for data in blobs_of(layout).values()} == set(blobs_of(layout))
    assert blobs_of(source).keys() & blobs_of(layout).keys() >= {
        f"sha256:{hashlib.sha256(layer(number)).hexdigest()}" for number in (1, 2)
    }
    again = pull_image(open_registry.name(f"{repository}:docker"), layout, access=access())
    assert again.bytes_fetched == 0
    assert again.bytes_kept > 6000


@pytest.mark.slow
def test_an_index_is_pulled_whole_or_one_architecture_of_it(
    open_registry: DockerRegistry, repository: str, tmp_path: Path
) -> None:
    source = two_architectures(tmp_path / "image.oci")
    name = open_registry.name(f"{repository}:1")
    digest = pushed(source, name).root.digest
    assert resolve(name, access=access()) == digest
    whole = OciLayout.create(tmp_path / "whole.oci")
    assert fetch_image(name, whole, access=access()).digest == digest
    assert blobs_of(whole) == {**blobs_of(source), digest: (source.folder / "index.json").read_bytes()}
    part = OciLayout.create(tmp_path / "part.oci")
    pulled = pull_image(name.with_digest(digest), part, [Platform("linux", "arm64", "v8")], access=access())
    assert pulled.root.digest == digest
    (entry,) = pulled.entries
    assert entry.platform == Platform("linux", "arm64")
    assert part.has(entry)
    assert len(blobs_of(part)) == 5  # index, manifest, configuration, two layers
    with pytest.raises(MissingImageError, match="has no image for linux/riscv64") as caught:
        fetch_image(name, part, [Platform("linux", "riscv64")], access=access())
    assert caught.value.hint == "it has linux/amd64, linux/arm64"


@pytest.mark.slow
def test_damaged_blobs_of_the_layout_are_fetched_anew(
    open_registry: DockerRegistry, repository: str, tmp_path: Path
) -> None:
    source = two_architectures(tmp_path / "image.oci")
    name = open_registry.name(f"{repository}:1")
    pushed(source, name)
    layout = OciLayout.create(tmp_path / "pulled.oci")
    pull_image(name, layout, access=access())
    whole = blobs_of(layout)
    for digest, data in whole.items():
        layout.path(digest).write_bytes(bytes(len(data)))
    pulled = pull_image(name, layout, access=access())
    assert blobs_of(layout) == whole
    assert pulled.bytes_kept == 0


# ---- authentication and TLS ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def closed_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[DockerRegistry, Path]]:
    """Yield a registry with TLS and basic authentication, and the file of its authority."""
    folder = tmp_path_factory.mktemp("closed")
    ca, certificate, key = certificates(folder / "pki")
    auth = htpasswd(folder, "ann", "secret:word")
    with docker_registry(folder / "registry", auth=auth, tls=(certificate, key)) as registry:
        yield registry, ca


def login_file(path: Path, host: str, user: str = "ann", password: str = "secret:word") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    secret = base64.b64encode(f"{user}:{password}".encode()).decode()
    path.write_text(json.dumps({"auths": {host: {"auth": secret}}}))
    return path


@pytest.mark.slow
def test_basic_authentication_over_tls(
    closed_registry: tuple[DockerRegistry, Path], repository: str, tmp_path: Path
) -> None:
    registry, ca = closed_registry
    login_file(tmp_path / ".docker/config.json", registry.host)
    options = {"insecure": False, "ca": ca, "environ": {"HOME": str(tmp_path)}}
    layout = two_architectures(tmp_path / "image.oci")
    name = registry.name(f"{repository}:1")
    digest = pushed(layout, name, **options).root.digest
    assert resolve(name, access=access(**options)) == digest
    environ = {"HOME": str(tmp_path), "SSL_CERT_FILE": str(ca)}
    assert resolve(name, access=access(insecure=True, ca=None, environ=environ)) == digest


def test_without_credentials_or_with_wrong_ones(closed_registry: tuple[DockerRegistry, Path], tmp_path: Path) -> None:
    registry, ca = closed_registry
    name = registry.name("team/app:1")
    hint = f"log in first: docker login {registry.host}, or podman login {registry.host}"
    with pytest.raises(DeniedError, match="asks for a password, and there is none") as caught:
        resolve(name, access=access(insecure=False, ca=ca))
    assert caught.value.hint == hint
    path = login_file(tmp_path / "auth.json", registry.host, password="guessed-password")
    with pytest.raises(DeniedError, match="refuses the credentials of") as caught:
        resolve(name, access=access(insecure=False, ca=ca, environ={"REGISTRY_AUTH_FILE": str(path)}))
    assert caught.value.message == f"{registry.host}: refuses the credentials of {path} ({registry.host})"


def test_certificates_are_verified_with_insecure_as_well(
    closed_registry: tuple[DockerRegistry, Path], tmp_path: Path
) -> None:
    registry, _ = closed_registry
    login_file(tmp_path / ".docker/config.json", registry.host)
    for insecure in (False, True):
        with pytest.raises(Exception, match=r"no secure connection to 127.0.0.1 .*CERTIFICATE_VERIFY_FAILED"):
            resolve(registry.name("a/b"), access=access(insecure=insecure, environ={"HOME": str(tmp_path)}))
    assert not registry.requests("GET", "a/b")


def test_the_folders_of_certificates_of_docker_and_podman(
    closed_registry: tuple[DockerRegistry, Path], tmp_path: Path
) -> None:
    registry, ca = closed_registry
    folder = tmp_path / ".config/containers/certs.d" / registry.host
    folder.mkdir(parents=True)
    (folder / "ca.crt").write_bytes(ca.read_bytes())
    login_file(tmp_path / ".config/containers/auth.json", registry.host)
    with pytest.raises(MissingImageError, match="the registry answers 404: MANIFEST_UNKNOWN"):
        fetch_image(
            registry.name("a/b:1"),
            OciLayout.create(tmp_path / "x.oci"),
            access=access(insecure=False, environ={"HOME": str(tmp_path)}),
        )


def test_plain_http_needs_the_option(open_registry: DockerRegistry) -> None:
    with pytest.raises(Exception, match="no TLS there") as caught:
        resolve(open_registry.name("a/b:1"), access=access(insecure=False))
    assert getattr(caught.value, "hint", None) == "if the registry speaks plain http, --insecure allows that"


# ---- the commands ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_commands(
    open_registry: DockerRegistry, repository: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    layout = two_architectures(tmp_path / "image.oci")
    place = f"{open_registry.host}/{repository}"
    assert main(["push", str(layout.folder), place, "--tags", "1.0,latest", "--insecure", "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["targets"][0]["tags"] == ["1.0", "latest"]
    assert document["targets"][0]["bytes"] == {
        "sent": document["targets"][0]["bytes"]["sent"],
        "mounted": 0,
        "skipped": 0,
    }
    assert {blob["result"] for blob in document["targets"][0]["blobs"]} == {"sent"}
    assert main(["push", str(layout.folder), f"{place}:one", "--arch", "arm64", "--insecure"]) == 0
    captured = capfd.readouterr()
    assert f"tag        {place}:one (written)" in captured.out
    assert f"{place}:one: sha256:" in captured.err
    assert main(["pull", f"{place}:one", "--insecure", "--out", str(tmp_path / "p.oci"), "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["mediaType"] == mediatypes.MANIFEST
    assert document["bytes"]["kept"] == 0
    assert main(["push", str(tmp_path / "p.oci"), f"{place}:two", "--insecure", "--json"]) == 0
    again = json.loads(capfd.readouterr().out)
    assert again["digest"] == document["digest"]
    assert main(["pull", f"{place}:latest", "--insecure", "--out", str(tmp_path / "p.oci"), "--arch", "amd64"]) == 0
    (entry,) = OciLayout.open(tmp_path / "p.oci").index().manifests
    assert entry.platform is not None
    assert entry.platform.architecture == "amd64"


def test_an_archive_is_pushed(
    open_registry: DockerRegistry, repository: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    layout = two_architectures(tmp_path / "image.oci")
    archive = tmp_path / "image.oci.tar"
    write_oci_archive(layout, archive)
    place = f"{open_registry.host}/{repository}"
    assert main(["push", str(archive), place, "--insecure", "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["digest"] == read_parts(layout).root.digest
    assert main(["push", str(archive), place, "--arch", "s390x"]) == 2
    assert f"error: {archive}: has no image for s390x" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["push", "{layout}", "a:1", "--tags", "2"], "docker.io/library/a:1: has a tag, but --tags names the tags"),
        (["push", "{layout}", "a", "--tags", "x y"], "'x y': 'x y' is not a tag"),
        (["push", "{layout}", "A"], "'A': a repository has capital letters"),
        (["push", "{layout}", "a", "--chunk-size", "0"], "--chunk-size 0: is not between 1 and 1024"),
        (["push", "{layout}", "a", "--chunk-size", "1025"], "--chunk-size 1025: is not between 1 and 1024"),
        (["push", "{layout}", "a", "--arch", "s390x"], "{layout}: has no image for s390x"),
        (["push", "{layout}", "a", "--image", "x"], "{layout}: has no image 'x'"),
        (["push", "{layout}", "a", "--tags", "auto", "--source", "/"], "/: --tags auto needs git, and a work tree"),
        (["push", "{layout}", "a", "--mount-from", "X"], "'docker.io/X': a repository has capital letters"),
        (["pull", "a", "--out", "{folder}"], "{folder}: is not empty, and not an OCI image layout"),
    ],
)
def test_wrong_command_lines(words: list[str], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    layout = two_architectures(tmp_path / "image.oci")
    places = {"layout": str(layout.folder), "folder": str(tmp_path)}
    assert main([word.format(**places) for word in words]) == 2
    assert f"error: {message.format(**places)}" in capfd.readouterr().err
