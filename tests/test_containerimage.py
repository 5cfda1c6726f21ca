"""Building container images from the command line: what is in a layout, and what stays the same from build to build."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from fixtures.apkbuild import Entry
from fixtures.keys import Keys
from fixtures.server import NOT_FOUND, Site
from imgkit.oci import layerwriter
from imgkit.oci.compression import compress
from imgkit.oci.descriptors import Descriptor, Platform
from imgkit.oci.layerchanges import changes
from imgkit.oci.layerwriter import LayerWriter
from imgkit.oci.ocilayout import OciLayout
from imgkit.oci.writing import ImageFacts, write_image, write_layout_index
from imgkit.tree import Device, Tree
from tests.commandline import Place
from tests.mirrors import INDEX, RECIPE, REPOSITORY, TIME, Small, minimal, package
from tests.test_faults import FILE, Builder, wants

OCI = ("--output", "oci")
CREATED = "2023-11-14T22:13:20Z"  # TIME
SPEC = (
    RECIPE
    + """
name = "box"
users = [{"name": "agent", "uid": 1000, "home": "/home/agent", "owns": ["/workspace"]}]
container = {
    "packages": ["boxed"],
    "entrypoint": ["/bin/entry"],
    "command": ["sh", "-c", "true"],
    "env": {"LANG": "C.UTF-8", "PATH": "/bin"},
    "user": "agent",
    "workdir": "/workspace",
    "labels": {"org.opencontainers.image.title": "Box", "team": "a"},
    "ports": [8080],
    "volumes": ["/data"],
    "stop_signal": "SIGINT",
}
"""
)


@pytest.fixture
def small(here: Place, keys: Keys) -> Small:
    """Return a mirror with two good packages and a minirootfs that has accounts."""
    tree = minimal(keys)
    tree.write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n", mtime=TIME)
    tree.write("etc/group", "root:x:0:\n", mtime=TIME)
    tree.write("etc/shadow", "root::0:::::\n", mode=0o640, mtime=TIME)
    packages = [
        package("hello", "1.0-r0", FILE, key=keys.signing),
        package("boxed", "1.0-r0", Entry(name="boxed", data=b"boxed\n"), key=keys.signing),
    ]
    return Small(here.base / "mirror", keys, packages).write(tree)


@pytest.fixture
def build(
    here: Place, small: Small, site: Site, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Builder:
    return Builder(here, small, site, capsys, monkeypatch)


@pytest.fixture
def payload(here: Place) -> Path:
    """Return a folder that is taken as the payload as it is."""
    folder = here.base / "payload"
    folder.mkdir()
    (folder / "index.js").write_text("first\n")
    return folder


def with_payload(folder: Path) -> str:
    return f"{SPEC}agent_runner = {str(folder)!r}\nagent_runner_build = '0'\n"


class Built:
    """The image of a layout that has one architecture."""

    def __init__(self, folder: Path) -> None:
        self.layout = OciLayout.open(folder)
        (top,) = self.layout.index().manifests
        self.digest = top.digest
        self.name = top.value.annotations
        self.manifest: dict[str, Any] = json.loads(self.layout.read(top.value))
        described = self.manifest["config"]
        descriptor = Descriptor(described["mediaType"], described["digest"], described["size"])
        self.config: dict[str, Any] = json.loads(self.layout.read(descriptor))

    @property
    def layers(self) -> list[str]:
        return [layer["digest"] for layer in self.manifest["layers"]]

    def names(self, number: int) -> list[str]:
        """Return the names of the entries in a layer."""
        with tarfile.open(self.layout.path(self.layers[number])) as archive:
            return archive.getnames()


def built(build: Builder, *words: str | Path, recipe: str = SPEC) -> Built:
    ran = build(*OCI, *words, recipe=recipe)
    assert ran.status == 0, ran.err
    return Built(build.here.out / "box.oci")


@pytest.mark.slow
def test_the_configuration_says_what_the_recipe_says(build: Builder) -> None:
    image = built(build)
    assert image.config["config"] == {
        "User": "agent",
        "ExposedPorts": {"8080/tcp": {}},
        "Env": ["PATH=/bin", "LANG=C.UTF-8"],
        "Entrypoint": ["/bin/entry"],
        "Cmd": ["sh", "-c", "true"],
        "Volumes": {"/data": {}},
        "WorkingDir": "/workspace",
        "Labels": {
            "org.opencontainers.image.created": CREATED,
            "org.opencontainers.image.title": "Box",
            "team": "a",
        },
        "StopSignal": "SIGINT",
    }
    assert (image.config["os"], image.config["architecture"], image.config["created"]) == ("linux", "amd64", CREATED)
    assert image.manifest["annotations"] == {
        "org.opencontainers.image.created": CREATED,
        "org.opencontainers.image.title": "Box",
    }
    assert image.name["org.opencontainers.image.ref.name"] == "latest"


@pytest.mark.slow
def test_layers_and_their_reasons(build: Builder, payload: Path) -> None:
    image = built(build, recipe=with_payload(payload))
    assert [entry["created_by"] for entry in image.config["history"]] == [
        "packages",
        "users, overlay and agentd",
        "payload",
    ]
    packages, setup, agent = (image.names(number) for number in range(3))
    assert {"hello", "boxed", "lib/apk/db/installed", "etc/passwd"} <= set(packages)
    assert "workspace" not in packages
    assert {"workspace", "etc/passwd"} <= set(setup)
    assert not {"hello", "etc/imgkit-release"} & set(setup)
    assert agent == ["etc", "etc/imgkit-release", "opt", "opt/agent-runner", "opt/agent-runner/index.js"]


def test_without_words_for_a_container_there_is_a_shell(build: Builder) -> None:
    ran = build(*OCI)
    assert ran.status == 0, ran.err
    image = Built(build.here.out / "linux.oci")
    assert image.config["config"]["Cmd"] == ["/bin/sh"]
    assert "Entrypoint" not in image.config["config"]
    assert "boxed" not in image.names(0)


@pytest.mark.slow
def test_the_same_bytes_on_another_day_with_another_umask(
    build: Builder, payload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = built(build, recipe=with_payload(payload))
    shutil.rmtree(build.here.cache)
    build.here.cache.mkdir()
    os.utime(payload / "index.js", (1, 1))
    (payload / "index.js").chmod(0o600)
    monkeypatch.setattr("time.time", lambda: TIME + 400 * 86400.0)
    monkeypatch.setattr(layerwriter, "compress", lambda *a, **k: compress(*a, **{**k, "threads": 3}))
    before = os.umask(0o077)
    try:
        second = built(build, "--allow-stale-mirror", recipe=with_payload(payload))
    finally:
        os.umask(before)
    assert second.digest == first.digest


@pytest.mark.slow
def test_a_changed_payload_changes_its_layer_alone(
    build: Builder, payload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = built(build, recipe=with_payload(payload))
    again = built(build, recipe=with_payload(payload))
    assert again.digest == first.digest
    made: list[str] = []

    def counted(pieces: Any, target: Path, *rest: Any, **options: Any) -> Any:
        blob = compress(pieces, target, *rest, **options)
        made.append(blob.descriptor.digest)
        return blob

    monkeypatch.setattr(layerwriter, "compress", counted)
    (payload / "index.js").write_text("second\n")
    changed = built(build, recipe=with_payload(payload))
    assert changed.layers[:2] == first.layers[:2]
    assert changed.layers[2] != first.layers[2]
    assert made == changed.layers[2:], "the others came from the cache"


def test_a_fixed_time(build: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    image = built(build)
    assert image.config["created"] == "2001-09-09T01:46:40Z"
    assert image.config["config"]["Labels"]["org.opencontainers.image.created"] == "2001-09-09T01:46:40Z"


@pytest.mark.slow
def test_what_a_build_reports(build: Builder) -> None:
    ran = build(*OCI, "--output", "oci-archive", "--output", "docker-archive", "--json", recipe=SPEC)
    (report,) = ran.json()
    out = build.here.out
    image = Built(out / "box.oci")
    assert (report["name"], report["digest"]) == ("box", image.digest)
    assert report["paths"] == [
        str(out / name) for name in ("box.oci", "box.oci.tar", "box-amd64.docker.tar", "box-amd64.container.json")
    ]
    assert sorted(path.name for path in out.iterdir()) == sorted(Path(path).name for path in report["paths"])
    (entry,) = report["images"]
    assert (entry["arch"], entry["digest"]) == ("amd64", image.digest)
    assert [layer["digest"] for layer in entry["layers"]] == image.layers
    manifest = json.loads((out / "box-amd64.container.json").read_text())
    assert manifest["container"]["digest"] == image.digest
    assert [package["name"] for package in manifest["packages"]] == ["boxed", "hello"]
    assert manifest["files"]["/hello"]["size"] == len(FILE.data or b"")
    assert manifest["buildId"] == entry["buildId"]


@pytest.mark.slow
def test_paths_are_printed_without_json(build: Builder) -> None:
    ran = build("--output", "oci-archive", recipe=SPEC)
    assert ran.status == 0, ran.err
    out = build.here.out
    assert ran.out == f"{out}/box.oci.tar\n{out}/box-amd64.container.json\n"


@pytest.mark.slow
def test_an_older_layout_is_replaced(build: Builder) -> None:
    folder = build.here.out / "box.oci"
    first = built(build)
    (folder / "blobs/sha256/left-over").write_text("")
    second = built(build, recipe=SPEC + "hostname = 'other'\nusers = []\n")
    assert second.digest != first.digest
    assert len(list((folder / "blobs/sha256").iterdir())) == 4
    assert sorted(path.name for path in build.here.out.iterdir()) == ["box-amd64.container.json", "box.oci"]


def test_another_folder_in_the_way_stays_as_it_is(build: Builder) -> None:
    folder = build.here.out / "box.oci"
    folder.mkdir(parents=True)
    (folder / "mine").write_text("")
    ran = build(*OCI, recipe=SPEC)
    assert ran.status == 5
    assert ran.errors == [f"error: {folder}: is in the way, and not an OCI image layout"]
    assert ran.hints == ["hint: remove it, or choose another --out"]
    assert [path.name for path in build.here.out.rglob("*")] == ["box.oci", "mine"]


def test_a_build_that_fails_leaves_nothing(build: Builder) -> None:
    build.site.faults[INDEX] = NOT_FOUND
    ran = build(*OCI, recipe=SPEC)
    assert ran.status == 4
    assert build.here.left_over() == []


def test_a_script_that_cannot_be_computed(build: Builder, keys: Keys) -> None:
    odd = package("odd", key=keys.signing, scripts={"post-install": b"#!/bin/sh\nfrobnicate\n"})
    build.small.file(f"{REPOSITORY}/{odd.filename}").write_bytes(odd.blob)
    build.small.index([odd.record])
    ran = build(*OCI, recipe=wants("odd"))
    assert ran.status == 3
    assert "can neither be computed nor run" in ran.errors[0]
    assert ran.hints == ["hint: build a disk on amd64, or state that they need not run: skip_scripts = ['odd']"]


# ---- on an image -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_image_on_an_image_keeps_its_layers_and_its_words(build: Builder, payload: Path) -> None:
    below = built(build, recipe=with_payload(payload))
    base = build.here.base / "base.oci"
    (build.here.out / "box.oci").rename(base)
    upper = f"""{RECIPE}
name = "box"
base = "oci:{base}"
packages = []
overlay = {str(payload)!r}
container = {{"env": {{"LANG": "de_DE"}}, "command": ["top"], "ports": ["53/udp"], "labels": {{"team": "b"}}}}
"""
    image = built(build, recipe=upper)
    assert image.layers[:3] == below.layers
    assert [entry["created_by"] for entry in image.config["history"][:3]] == [
        entry["created_by"] for entry in below.config["history"]
    ]
    assert {"etc/imgkit-release", "index.js"} <= set(image.names(3))
    assert "lib" not in image.names(3), "no package has changed"
    assert image.config["history"][3]["empty_layer"] is True
    runtime = image.config["config"]
    assert (runtime["Entrypoint"], runtime["Cmd"]) == (["/bin/entry"], ["top"])
    assert runtime["Env"] == ["PATH=/bin", "LANG=de_DE"]
    assert (runtime["User"], runtime["WorkingDir"], runtime["StopSignal"]) == ("agent", "/workspace", "SIGINT")
    assert runtime["ExposedPorts"] == {"8080/tcp": {}, "53/udp": {}}
    labels = runtime["Labels"]
    assert (labels["team"], labels["org.opencontainers.image.title"]) == ("b", "Box")
    assert labels["org.opencontainers.image.base.digest"] == below.digest
    assert labels["org.opencontainers.image.base.name"].endswith("base.oci")


@pytest.mark.slow
def test_an_entrypoint_does_not_get_the_command_of_the_base(build: Builder) -> None:
    built(build)
    base = build.here.base / "base.oci"
    (build.here.out / "box.oci").rename(base)
    upper = f"{RECIPE}name = 'box'\nbase = 'oci:{base}'\npackages = []\ncontainer = {{'entrypoint': ['/bin/other']}}\n"
    runtime = built(build, recipe=upper).config["config"]
    assert runtime["Entrypoint"] == ["/bin/other"]
    assert "Cmd" not in runtime
    runtime = built(build, recipe=upper.replace("{'entrypoint': ['/bin/other']}", "{}")).config["config"]
    assert (runtime["Entrypoint"], runtime["Cmd"]) == (["/bin/entry"], ["sh", "-c", "true"])


def test_device_nodes_of_a_base_are_removed_from_the_image(build: Builder, here: Place) -> None:
    tree = Tree()
    tree.mkdir("dev")
    tree.add("dev/console", Device(kind="c", major=5, minor=1))
    tree.add("dev/null", Device(kind="c", major=1, minor=3))
    tree.write("program", "x")
    layout = OciLayout.create(here.base / "base.oci")
    layer = LayerWriter(layout).write(changes(None, tree), reason="base", created=0)
    facts = ImageFacts(platform=Platform("linux", "amd64"), created=0)
    write_layout_index(layout, [write_image(layout, [layer], facts)])
    recipe = f"{RECIPE}name = 'box'\nbase = 'oci:{here.base}/base.oci'\npackages = []\n"
    image = built(build, recipe=recipe)
    assert image.names(0) == ["dev", "dev/console", "dev/null", "program"]
    assert [name for name in image.names(1) if ".wh." in name] == ["dev/.wh.console", "dev/.wh.null"]
