"""What ``imgkit pull`` leaves behind where it fails."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import pytest

from imgkit.cli.main import main
from imgkit.oci.ocilayout import OciLayout
from tests.registries import FakeRegistry, Reply, Request, blobs_of, fake_registry, image, layer, rule


def pull(registry: FakeRegistry, folder: Path) -> int:
    return main(["pull", f"{registry.host}/a/b:1", "--insecure", "--out", str(folder)])


def digest(number: int) -> str:
    return f"sha256:{hashlib.sha256(layer(number)).hexdigest()}"


def source_of(folder: Path) -> OciLayout:
    layout = OciLayout.create(folder)
    layout.write_index([image(layout, [layer(1), layer(2)])])
    return layout


def test_an_image_that_is_not_there_leaves_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with fake_registry() as registry:
        assert pull(registry, tmp_path / "new.oci") == 4
        assert not (tmp_path / "new.oci").exists()
        (tmp_path / "mine.oci").mkdir()
        assert pull(registry, tmp_path / "mine.oci") == 4
        assert (tmp_path / "mine.oci").is_dir(), "it was there before"
    assert "404" in capsys.readouterr().err


@pytest.mark.slow
def test_blobs_that_are_complete_stay_for_the_next_pull(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = source_of(tmp_path / "source.oci")
    first = OciLayout(tmp_path / "new.oci").path(digest(1))

    def missing(request: Request) -> Reply:
        deadline = time.monotonic() + 30
        while not first.exists() and time.monotonic() < deadline:  # both are fetched at a time
            time.sleep(0.01)
        return 404, {}, b""

    with fake_registry(rule("GET", f"/blobs/{digest(2)}", missing)) as registry:
        registry.store("a/b", source)
        assert pull(registry, tmp_path / "new.oci") == 4
        kept = set(blobs_of(OciLayout.open(tmp_path / "new.oci")))
        assert (digest(1) in kept, digest(2) in kept) == (True, False)
        assert not (tmp_path / "new.oci/index.json").exists()
        registry.rules.clear()
        assert pull(registry, tmp_path / "new.oci") == 0
    assert set(blobs_of(OciLayout.open(tmp_path / "new.oci"))) >= set(blobs_of(source))
