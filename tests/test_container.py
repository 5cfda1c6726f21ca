"""The Containerfile's image builds without any privilege, as script/container-build asks docker to run it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from fixtures.mirror import Mirror
from imgkit.cli import newproject
from tests.containers import Container, container
from tests.images import ROOT, Images, environment

pytestmark = pytest.mark.vm

CALLER = 1234  # a uid that neither the host nor the image knows
DOCKER = """\
#!/bin/sh
[ "$1" = run ] && printf '%s\\0' "$@" >"$RECORD"
exit 0
"""
# What a recipe sees is what the build can do: it is read by the very process.
EVIDENCE = """
import ctypes, json, os
from .core import *

def refused(action):
    try:
        action()
    except OSError as error:
        return error.strerror

def call(*arguments):
    if ctypes.CDLL(None, use_errno=True).syscall(*arguments) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

def write(path):
    return lambda: open(path, "x").close()

def collect():
    # of x86-64 and of the generic table that arm64 has: mount, unshare
    mount, unshare = (165, 272) if os.uname().machine == "x86_64" else (40, 97)
    return {
        "status": dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines()),
        "devices": sorted(os.listdir("/dev")),
        "refused": {
            "recipe": refused(write("recipes/new")),
            "program": refused(write("/imgkit/new")),
            "system": refused(write("/etc/new")),
            "mount": refused(lambda: call(mount, b"none", b"/tmp", b"tmpfs", 0, None)),
            "namespace": refused(lambda: call(unshare, 0x10000000)),
            "scratch": refused(write("/tmp/new")),
        },
    }

with open("out/evidence.json", "w") as _file:
    json.dump(collect(), _file)
"""


@dataclass(frozen=True)
class Project:
    """A user's folder with a recipe, and an image of the Containerfile to build it in."""

    folder: Path
    image: Container
    volumes: Path

    def build(self, *words: str | Path, caller: int = CALLER) -> subprocess.CompletedProcess[str]:
        """Run ``script/container-build`` as that user, and then what it asked docker for."""
        record, programs = self.folder / "record", self.folder / "bin"
        env = {**environment(self.volumes), "PATH": f"{programs}:/usr/bin:/bin", "RECORD": str(record)}
        env |= {"HOME": str(self.folder), "AGENT_RUNNER_BUILD": "auto"}
        argv = [ROOT / "script/container-build", "--tool", "docker", "--recipe", "recipes/evidence.py", *words]
        subprocess.run(argv, cwd=self.folder, env=env, check=True, user=caller, group=caller, extra_groups=[])
        return self.image.run(record.read_text().split("\0")[1:-1], env, self.volumes)

    @property
    def evidence(self) -> Any:
        return json.loads((self.folder / "out/evidence.json").read_text())


@pytest.fixture(scope="module")
def image() -> Container:
    return container()


@pytest.fixture
def project(image: Container, mirror: Mirror) -> Iterator[Project]:
    """Outside of pytest's folders, which only root may enter."""
    base = Path(tempfile.mkdtemp(prefix="imgkit-container-"))
    base.chmod(0o755)
    folder = base / "project"
    for name in ("recipes", "overlay"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "recipes/evidence.py").write_text(EVIDENCE)
    shutil.copy(mirror.release_key, folder / "release-key.asc")
    (folder / "bin").mkdir()
    (folder / "bin/docker").write_text(DOCKER)
    (folder / "bin/docker").chmod(0o755)
    (base / "volumes").mkdir()
    for path in (folder, *folder.rglob("*")):
        os.chown(path, CALLER, CALLER, follow_symlinks=False)
    yield Project(folder, image, base / "volumes")
    shutil.rmtree(base)


def test_a_container_without_privileges_builds(project: Project, mirror_url: str, images: Images) -> None:
    done = project.build("amd64", "--", "--mirror", mirror_url, "--release-key", "release-key.asc", "--json")
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)
    assert result["image"] == "out/linux-amd64.qcow2", "a path that the caller can use"
    out = project.folder / "out"
    (out / "evidence.json").rename(project.folder / "evidence.json")
    manifest = json.loads((project.folder / result["manifest"]).read_text())
    assert manifest["files"] == images["amd64"].manifest["files"], "the same as outside"
    assert sorted(path.name for path in out.iterdir()) == [
        "initramfs-virt-amd64",
        "linux-amd64.manifest.json",
        "linux-amd64.qcow2",
        "vmlinuz-virt-amd64",
    ]
    assert {path.stat().st_uid for path in out.iterdir()} == {CALLER}
    assert subprocess.run(["qemu-img", "check", "-q", out / "linux-amd64.qcow2"]).returncode == 0


def test_root_without_capabilities_builds(project: Project, mirror_url: str) -> None:
    """The caller may be root, or the container's root may be the caller (docker without root)."""
    for path in (project.folder, *project.folder.rglob("*")):
        os.chown(path, 0, 0, follow_symlinks=False)
    words = ["amd64", "--", "--mirror", mirror_url, "--release-key", "release-key.asc", "--json"]
    done = project.build(*words, caller=0)
    assert done.returncode == 0, done.stderr
    assert {path.stat().st_uid for path in (project.folder / "out").iterdir()} == {0}
    assert int(project.evidence["status"]["CapEff"], 16) == 0


def test_the_build_could_do_nothing_else(project: Project, mirror_url: str) -> None:
    """The build fails, because the mirror has no such branch, and the script ends with its status."""
    words = ["amd64", "--", "--mirror", mirror_url, "--release-key", "release-key.asc", "--set", "branch=v9.9"]
    done = project.build(*words)
    assert done.returncode == 4, done.stderr
    assert sum(line.startswith("error: ") for line in done.stderr.splitlines()) == 1
    evidence = project.evidence
    status = {name: value.split() for name, value in evidence["status"].items()}
    assert {int(status[name][0], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert (status["Seccomp"], status["NoNewPrivs"]) == (["2"], ["1"])
    assert set(status["Uid"]) == set(status["Gid"]) == {str(CALLER)}
    common = {
        "fd",
        "full",
        "null",
        "ptmx",
        "pts",
        "random",
        "shm",
        "stderr",
        "stdin",
        "stdout",
        "tty",
        "urandom",
        "zero",
    }
    assert set(evidence["devices"]) <= common | {"console", "core", "mqueue"}
    forbidden = dict.fromkeys(("recipe", "program", "system"), "Read-only file system")
    forbidden |= dict.fromkeys(("mount", "namespace"), "Operation not permitted")
    assert evidence["refused"] == {**forbidden, "scratch": None}


def test_the_job_of_gitlab(image: Container, mirror: Mirror, mirror_url: str, tmp_path: Path) -> None:
    """Everything but the installation of programs, which the container has: imgkit builds, and its image is tested."""
    job = yaml.safe_load((ROOT / "docs/howto/ci/gitlab.yml").read_text())["build-image"]
    assert set(newproject.PACKAGES.split()) <= set(job["before_script"][1].split())
    assert f"{newproject.DISTRIBUTION}[test] @ " in job["before_script"][3]
    for path, text in newproject.project("sandbox", "core", "").items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    shutil.copy(mirror.release_key, tmp_path / "key.asc")
    env = {"ALPINE_MIRROR": mirror_url, "ALPINE_RELEASE_KEY": "key.asc", "HOME": "/tmp", "WORK_DIR": ""}
    env["IMGKIT_CACHE"] = job["variables"]["IMGKIT_CACHE"].replace("$CI_PROJECT_DIR", "/project")
    done = image.job("\n".join(job["script"]), env, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {
        "sandbox-amd64.qcow2",
        "sandbox-amd64.manifest.json",
    }
