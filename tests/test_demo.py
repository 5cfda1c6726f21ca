"""``script/build``: which recipe and which mirror it uses, and that it gives the reason."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.mirror import Mirror
from fixtures.server import HTML, NOT_FOUND, Fault, Site, serve
from imgkit.errors import HostError
from script import demo
from tests.commandline import ROOT, Place

LISTING = "latest-stable/releases/x86_64/latest-releases.yaml"
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def no_mirror_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALPINE_MIRROR", raising=False)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Stands in for the official mirror."""
    listing = tmp_path / LISTING
    listing.parent.mkdir(parents=True)
    listing.write_text("- flavor: alpine-minirootfs\n")
    with serve(tmp_path) as server:
        monkeypatch.setattr(demo, "OFFICIAL_MIRROR", server.url.rstrip("/"))
        yield server


def test_a_mirror_that_cannot_be_made_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def source() -> None:
        raise HostError("bash-static: apt cannot fetch it", hint="a host whose archive can be reached")

    monkeypatch.setattr(demo, "source", source)
    monkeypatch.setattr(sys, "argv", ["demo"])
    assert demo.main() == HostError.exit_status
    expected = "error: bash-static: apt cannot fetch it\nhint: a host whose archive can be reached\n"
    assert capsys.readouterr() == ("", expected)


def test_the_official_mirror_is_taken_where_it_answers(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    with demo.source() as (recipe, options):
        assert (recipe, options) == (demo.RECIPE, [])
    assert site.requests[f"/{LISTING}"] == 1
    assert capsys.readouterr() == ("", f"recipes/alpine.py, from {site.url.rstrip('/')}\n")


@pytest.mark.parametrize("fault", [NOT_FOUND, HTML, Fault(status=403), Fault(status=503), Fault(keep=3)])
def test_a_mirror_that_answers_badly_is_not_replaced(fault: Fault, site: Site) -> None:
    """The build reports what is wrong with the mirror."""
    site.faults[f"/{LISTING}"] = fault
    with demo.source() as (recipe, options):
        assert (recipe, options) == (demo.RECIPE, [])


def test_a_mirror_that_was_asked_for_is_not_replaced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "OFFICIAL_MIRROR", NOWHERE)
    monkeypatch.setenv("ALPINE_MIRROR", NOWHERE)
    with demo.source() as (recipe, options):
        assert (recipe, options) == (demo.RECIPE, [])
    assert capsys.readouterr() == ("", "recipes/alpine.py, from ALPINE_MIRROR\n")


@pytest.mark.slow
def test_a_mirror_that_was_asked_for_and_is_out_of_reach_is_an_error(here: Place) -> None:
    environment = {**here.environment, "ALPINE_MIRROR": NOWHERE}
    argv = [sys.executable, "-m", "script.demo", "amd64"]
    done = subprocess.run(argv, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (4, "")
    assert f"error: {NOWHERE}/v3.23/releases/x86_64/latest-releases.yaml: 127.0.0.1 refuses" in done.stderr
    assert "offline mirror" not in done.stderr


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (NOWHERE, "127.0.0.1 refuses the connection"),
        ("https://mirror.invalid", "the name mirror.invalid is unknown"),
        ("site", "stalled: no answer within 0.5 s"),
    ],
)
def test_what_is_out_of_reach_and_why(url: str, reason: str, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "PATIENCE", 0.5)
    site.faults[f"/{LISTING}"] = Fault(stall=0)
    if url != "site":
        monkeypatch.setattr(demo, "OFFICIAL_MIRROR", url)
    assert demo.unreachable().endswith(reason)


@pytest.mark.mirror
def test_the_offline_mirror_is_taken_where_nothing_comes(
    site: Site, mirror: Mirror, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "PATIENCE", 0.5)
    site.faults[f"/{LISTING}"] = Fault(stall=0)
    falls_back(mirror, "stalled", capsys)


@pytest.mark.mirror
@pytest.mark.parametrize(
    ("url", "reason"),
    [(NOWHERE, "refuses the connection"), ("https://mirror.invalid", "the name mirror.invalid is unknown")],
)
def test_the_offline_mirror_is_taken_where_nobody_answers(
    url: str, reason: str, mirror: Mirror, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "OFFICIAL_MIRROR", url)
    falls_back(mirror, reason, capsys)


@pytest.mark.mirror
def test_the_offline_mirror_is_taken_where_a_proxy_refuses(
    mirror: Mirror, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """As on networks that let only package registries through: the proxy does not open the tunnel."""
    with serve(tmp_path) as proxy:
        for name, value in {"https_proxy": proxy.url, "no_proxy": "127.0.0.1"}.items():
            monkeypatch.setenv(name, value)
            monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.setattr(demo, "OFFICIAL_MIRROR", "https://mirror.invalid")
        falls_back(mirror, "the proxy does not let it through", capsys)


def falls_back(mirror: Mirror, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    with demo.source() as (recipe, (name, url, key_name, key)):
        assert recipe == demo.OFFLINE_RECIPE
        assert (name, key_name) == ("--mirror", "--release-key")
        assert url.startswith("http://127.0.0.1:")
        assert Path(key).read_bytes() == mirror.release_key.read_bytes()
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert out == ""
    start = "recipes/core.py (fewer tools), from the offline mirror of fixtures/, because Alpine's is out of reach: "
    assert line.startswith(start)
    assert LISTING in line
    assert reason in line
