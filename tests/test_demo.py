"""``script/build``: which mirror it takes, and that it says why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.mirror import Mirror
from fixtures.server import NOT_FOUND, Fault, Site, serve
from script import demo

LISTING = "latest-stable/releases/x86_64/latest-releases.yaml"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Stands in for the official mirror."""
    listing = tmp_path / LISTING
    listing.parent.mkdir(parents=True)
    listing.write_text("- flavor: alpine-minirootfs\n")
    with serve(tmp_path) as one:
        monkeypatch.setattr(demo, "OFFICIAL_MIRROR", one.url.rstrip("/"))
        yield one


def test_the_official_mirror_is_taken_where_it_answers(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    with demo.mirror() as options:
        assert options == []
    assert site.requests[f"/{LISTING}"] == 1
    assert capsys.readouterr() == ("", "mirror: the official one\n")


@pytest.mark.mirror
@pytest.mark.parametrize(
    ("fault", "reason"), [(NOT_FOUND, "404"), (Fault(status=503), "503"), (Fault(stall=0), "stalled")]
)
def test_the_offline_mirror_is_taken_where_it_does_not(
    fault: Fault,
    reason: str,
    site: Site,
    mirror: Mirror,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if fault.stall is not None:
        monkeypatch.setattr(demo, "PATIENCE", 0.5)
    site.faults[f"/{LISTING}"] = fault
    falls_back(mirror, reason, capsys)


@pytest.mark.mirror
def test_the_offline_mirror_is_taken_where_nobody_listens(
    mirror: Mirror, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "OFFICIAL_MIRROR", "http://127.0.0.1:9")
    falls_back(mirror, "refuses the connection", capsys)


def falls_back(mirror: Mirror, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    with demo.mirror() as (name, url, key_name, key):
        assert (name, key_name) == ("--mirror", "--release-key")
        assert url.startswith("http://127.0.0.1:")
        assert Path(key).read_bytes() == mirror.release_key.read_bytes()
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert out == ""
    assert line.startswith("mirror: the offline one of fixtures/, because of the official one: ")
    assert LISTING in line
    assert reason in line
