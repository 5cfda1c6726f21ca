"""From a real image to the host application: booted once, proved by that, published, downloaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fixtures.server import serve
from tests.files import digest
from tests.hostdownload import App, read_env
from tests.images import Builder, Image
from tests.publications import facts

pytestmark = pytest.mark.vm


def test_boot_publish_and_download(builder: Builder, image: Image, tmp_path: Path) -> None:
    out, target = tmp_path / "out", tmp_path / "publish"
    out.mkdir()
    for path in image.disk.parent.iterdir():
        if path.is_file() and not path.name.endswith(".boot.json"):
            shutil.copy(path, out)
    disk, words = out / image.disk.name, ("publish", "v1.0", "--from", out, "--to", target, "--name", "test")
    refused = builder.run(*words)
    assert refused.returncode == 4
    assert f"error: {disk}: no boot has proved it" in refused.stderr
    before = digest(disk)

    booted = builder.run("boot", disk, "--accel", "tcg", "--cpus", "1", "--timeout", "300", "--json")
    assert booted.returncode == 0, booted.stderr
    assert digest(disk) == before
    said = json.loads(booted.stdout)
    record = json.loads((out / "test-amd64.boot.json").read_text())
    assert record["image"] == facts(disk)
    assert record["image"]["sha256"] == image.manifest["image"]["sha256"]
    boot = record["boots"]["bios"]
    assert boot["secondsToReady"] == said["secondsToReady"]
    assert boot["accelerator"] == "tcg"
    assert boot["buildId"] == boot["agent"]["buildId"] == image.manifest["buildId"]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [disk.name, "test-amd64.boot.json", "test-amd64.manifest.json", image.kernel.name, image.initramfs.name]
    )

    target.mkdir()
    with serve(target) as site:
        done = builder.run(*words, "--base-url", site.url)
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{target}/v1.0\n"
        app = App(read_env((target / "v1.0/publish.env").read_text()), "x64", tmp_path / "data")
        assert digest(app.ensure_image()) == before
        assert app.ensure_kernel() is not None
    index = json.loads((target / "v1.0/index.json").read_text())
    assert index["architectures"]["amd64"]["provedWith"] == ["bios"]
