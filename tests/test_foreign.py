"""Programs that cannot run in the image are errors before anything is written; every program of an image can."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from fixtures.ext4 import read_tree
from imgkit.rootfs.binaries import elf
from imgkit.rootfs.binaries.libraries import check_architecture
from imgkit.tree import File
from tests.elves import make_elf
from tests.images import ROOT, Builder, Images
from tests.test_disks import unpacked

pytestmark = pytest.mark.vm


def payload(folder: Path, name: str, program: bytes) -> Path:
    shutil.copytree(ROOT / "overlay/opt/agent-runner", folder)
    (folder / name).write_bytes(program)
    return folder


@pytest.mark.parametrize(
    ("arch", "program", "message"),
    [
        ("amd64", make_elf("aarch64"), "/opt/agent-runner/tool: is for aarch64, the image for x86_64"),
        ("arm64", make_elf("x86_64"), "/opt/agent-runner/tool: is for x86_64, the image for aarch64"),
        (
            "amd64",
            make_elf("x86_64", interpreter="/lib64/ld-linux-x86-64.so.2"),
            "/opt/agent-runner/tool: is for glibc, the image has musl",
        ),
    ],
    ids=["arm64-in-amd64", "amd64-in-arm64", "glibc"],
)
def test_a_payload_for_something_else_is_refused_where_the_recipe_is_strict(
    builder: Builder, tmp_path: Path, arch: str, program: bytes, message: str
) -> None:
    out, runner = tmp_path / "out", payload(tmp_path / "runner", "tool", program)
    fields = ("--set", "agent_runner_build='0'", "--set", "payload_binaries=strict")
    refused(builder.attempt(out, "--arch", arch, "--agent-runner", runner, *fields), out, message)


def test_outside_the_payload_everything_is_strict(builder: Builder, tmp_path: Path) -> None:
    out, overlay = tmp_path / "out", tmp_path / "overlay"
    shutil.copytree(ROOT / "overlay", overlay, symlinks=True)
    for name in ("opt/agent-runner/tool", "usr/local/bin/tool"):
        (overlay / name).parent.mkdir(parents=True, exist_ok=True)
        (overlay / name).write_bytes(make_elf("aarch64"))
    message = "/usr/local/bin/tool: is for aarch64, the image for x86_64\n"
    refused(builder.attempt(out, "--arch", "amd64", "--set", f"overlay={overlay}"), out, message)


def refused(done: subprocess.CompletedProcess[str], out: Path, message: str) -> None:
    assert done.returncode == 4, done.stderr
    assert f"error: {message}" in done.stderr
    assert done.stderr.count("error: ") == 1
    assert not out.exists() or not list(out.iterdir())


@pytest.mark.parametrize(("arch", "machine"), [("amd64", "x86_64"), ("arm64", "aarch64")])
def test_every_program_of_an_image_is_for_its_machine(images: Images, tmp_path: Path, arch: str, machine: str) -> None:
    """Read back from the finished disk: none has a problem, and the check does see programs and modules."""
    tree = read_tree(unpacked(images[arch], tmp_path).parts["root"])
    assert check_architecture(tree, machine) == []
    other = "aarch64" if machine == "x86_64" else "x86_64"
    foreign = check_architecture(tree, other)
    modules = sum(path.endswith((".ko", ".ko.gz")) for path, node in tree.items() if isinstance(node, File))
    programs = sum(
        1
        for path, node in tree.walk("usr/bin")
        if isinstance(node, File) and elf.parse_header(elf.read_part(node.content, 0, elf.HEADER_SIZE)) is not None
    )
    assert modules > 300
    assert programs > 5
    assert len(foreign) > modules + programs
    assert f"/usr/bin/node: is for {machine}, the image for {other}" in foreign
