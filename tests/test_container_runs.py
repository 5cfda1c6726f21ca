"""The container image of recipes/sandbox_image.py as other tools see it: skopeo, umoci, and runc, which runs it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from imgkit.image.manifest import read_manifest
from imgkit.oci.ocilayout import OciLayout
from tests.conftest import need, need_program
from tests.entrypoints import Box, Ended, environment, rights
from tests.images import ROOT, Builder
from tests.images import environment as build_environment

pytestmark = pytest.mark.vm

RECIPE = ROOT / "recipes" / "sandbox_image.py"
# What the offline mirror has of the recipe's packages.
WORDS = ("--set", "packages=[bash, curl, nodejs, npm]", "--set", "container={entrypoint: [/usr/local/bin/entrypoint], "
         "command: [/bin/bash, -c, id -un], workdir: /workspace, env: {IMAGE: '1'}, stop_signal: SIGINT}")  # fmt: skip
NAME = "sandbox-image"
ARCHES = ("amd64", "arm64")


@dataclass(frozen=True)
class Built:
    """A container image for two architectures, built once."""

    out: Path
    digest: str

    @property
    def layout(self) -> str:
        """The layout in skopeo's words."""
        return f"oci:{self.out / NAME}.oci:latest"


@pytest.fixture(scope="module")
def built(mirror: Any, mirror_url: str, tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("container")
    words = ("--mirror", mirror_url, "--release-key", str(mirror.release_key))
    builder = Builder(words, build_environment(folder / "cache"))
    outputs = ("--output", "oci", "--output", "oci-archive", "--output", "docker-archive")
    done = builder.run("build", RECIPE, "--arch", "all", *outputs, "--out", folder / "out", "--json", *words, *WORDS)
    assert done.returncode == 0, done.stderr
    (report,) = json.loads(done.stdout)
    return Built(folder / "out", report["digest"])


def skopeo(*words: str) -> Any:
    program = need_program("skopeo")
    return subprocess.run([program, *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def rootfs(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the root filesystem of the amd64 image as umoci unpacks it."""
    need("root, for umoci to set owners", os.geteuid() == 0)
    folder = tmp_path_factory.mktemp("unpacked")
    skopeo("copy", "--override-arch", "amd64", built.layout, f"oci:{folder}/one:latest")
    umoci = need_program("umoci")
    subprocess.run([umoci, "unpack", "--image", f"{folder}/one:latest", folder / "bundle"], check=True)
    return folder / "bundle" / "rootfs"


# ---- what other tools read -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHES)
def test_skopeo_reads_every_architecture(built: Built, arch: str) -> None:
    config = json.loads(skopeo("inspect", "--override-arch", arch, "--config", built.layout))
    assert (config["architecture"], config["os"]) == (arch, "linux")
    assert config["config"]["Entrypoint"] == ["/usr/local/bin/entrypoint"]
    assert config["config"]["WorkingDir"] == "/workspace"
    assert "org.opencontainers.image.created" in config["config"]["Labels"]
    facts = json.loads(skopeo("inspect", "--override-arch", arch, built.layout))
    manifest = read_manifest(built.out / f"{NAME}-{arch}.container.json")
    assert facts["Layers"] == [layer["digest"] for layer in manifest["container"]["layers"]]


def test_the_layout_and_its_archive_have_the_same_index(built: Built) -> None:
    layout = OciLayout.open(built.out / f"{NAME}.oci")
    assert [entry.digest for entry in layout.index().manifests] == [built.digest]
    archived = skopeo("inspect", "--raw", f"oci-archive:{built.out / NAME}.oci.tar:latest")
    assert archived == skopeo("inspect", "--raw", built.layout)
    platforms = [entry["platform"]["architecture"] for entry in json.loads(archived)["manifests"]]
    assert platforms == list(ARCHES)


@pytest.mark.parametrize("arch", ARCHES)
def test_docker_s_archive_has_the_same_layers(built: Built, arch: str) -> None:
    archive = f"docker-archive:{built.out / NAME}-{arch}.docker.tar"
    config = json.loads(skopeo("inspect", "--config", archive))
    assert config == json.loads(skopeo("inspect", "--override-arch", arch, "--config", built.layout))


def test_skopeo_finds_every_blob_right(built: Built, tmp_path: Path) -> None:
    """A copy verifies the digests of all blobs, and of what they inflate to where the form changes."""
    skopeo("copy", "--all", built.layout, f"dir:{tmp_path}/dir")
    assert json.loads((tmp_path / "dir/manifest.json").read_text())["manifests"]
    skopeo("copy", "--override-arch", "arm64", built.layout, f"docker-archive:{tmp_path}/docker.tar:x:y")
    assert (tmp_path / "docker.tar").stat().st_size > 1 << 20


def test_the_unpacked_files_are_the_composed_ones(built: Built, rootfs: Path) -> None:
    """Path, mode, owner, link, size: everything that the manifest says of a file."""
    expected = read_manifest(built.out / f"{NAME}-amd64.container.json")["files"]
    actual = {"/": rootfs, **{f"/{path.relative_to(rootfs)}": path for path in rootfs.rglob("*")}}
    assert sorted(actual) == sorted(expected)
    wrong = [path for path, place in actual.items() if _facts(place) != _expected(expected[path])]
    assert wrong == []
    assert {record["type"] for record in expected.values()} >= {"directory", "file", "symbolic link"}


def _facts(path: Path) -> tuple[Any, ...]:
    status = path.lstat()
    link = path.readlink() if path.is_symlink() else None
    size = status.st_size if stat.S_ISREG(status.st_mode) else None
    mode = None if link else f"{stat.S_IMODE(status.st_mode):04o}"
    return mode, status.st_uid, status.st_gid, size, None if link is None else os.fspath(link)


def _expected(record: Any) -> tuple[Any, ...]:
    mode = None if "target" in record else record["mode"]
    return mode, record["uid"], record["gid"], record.get("size"), record.get("target")


# ---- running it ------------------------------------------------------------------------------------------------------


class Image:
    """Runs the image as an engine does: with its entrypoint, its command or another one, its environment and folder."""

    def __init__(self, built: Built, rootfs: Path) -> None:
        self.config = json.loads(skopeo("inspect", "--override-arch", "amd64", "--config", built.layout))["config"]
        self.box = Box(rootfs)

    def run(self, *command: str, env: dict[str, str] | None = None, **how: Any) -> Ended:
        given = dict(pair.split("=", 1) for pair in self.config["Env"]) | (env or {})
        return self.box.run(command or self.config["Cmd"], given, entrypoint=self.config["Entrypoint"], **how)


@pytest.fixture(scope="module")
def image(built: Built, rootfs: Path) -> Image:
    need_program("runc")
    return Image(built, rootfs)


def test_it_runs_as_it_says(image: Image) -> None:
    ended = image.run()
    assert (ended.status, ended.output) == (0, b"agent\n")


def test_another_command_and_its_exit_status(image: Image) -> None:
    ended = image.run("sh", "-c", "id; pwd; exit 7")
    assert ended.status == 7
    assert ended.output == b"uid=1000(agent) gid=1000(agent)\n/workspace\n"


def test_node_runs_without_root_s_rights(image: Image) -> None:
    ended = image.run("node", "-p", "process.getuid() + ' ' + process.env.SESSION_TOKEN", env={"SESSION_TOKEN": "x"})
    assert (ended.status, ended.output) == (0, b"1000 undefined\n")
    fields = rights(image.run("cat", "/proc/self/status").output.decode())
    assert (fields["CapEff"], fields["CapPrm"], fields["NoNewPrivs"]) == ("0" * 16, "0" * 16, "1")


def test_the_environment_is_the_image_s_and_the_caller_s(image: Image) -> None:
    found = environment(image.run("cat", "/proc/self/environ", env={"KEY": "value"}).output)
    assert (found["IMAGE"], found["KEY"], found["HOME"], found["USER"]) == ("1", "value", "/home/agent", "agent")


@pytest.mark.parametrize("readonly", [True, False])
def test_a_read_only_root(image: Image, readonly: bool) -> None:
    ended = image.run("sh", "-c", "touch /workspace/file && rm /workspace/file", readonly=readonly)
    assert (ended.status == 0) is not readonly
    assert ("Read-only file system" in ended.errors) is readonly


def test_a_signal_reaches_the_agent(image: Image) -> None:
    script = "trap 'echo asked; exit 5' INT; echo ready; while :; do sleep 0.1; done"
    given = dict(pair.split("=", 1) for pair in image.config["Env"])
    with image.box.started(["sh", "-c", script], given, entrypoint=image.config["Entrypoint"]) as container:
        assert container.read_line() == b"ready\n"
        container.kill(image.config["StopSignal"])
        ended = container.end()
    assert (ended.status, ended.output) == (5, b"asked\n")
