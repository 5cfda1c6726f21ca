"""``imgkit publish``: the folder, what it refuses, and the application's way of downloading from it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fixtures.server import Fault, Site, serve
from imgkit.cli.main import main
from imgkit.host import interrupts
from tests import hostdownload
from tests.conftest import need_program
from tests.files import digest
from tests.hostdownload import App, ChecksumError, read_env
from tests.publications import booted, build, facts, prove, proved

VARIABLES = ("INPUT_DIR", "OUT_DIR", "OUTPUT_BASE", "SOURCE_DATE_EPOCH")
BASE = "https://images.example/sandbox"
DATA = {
    f"{name}"
    for arch in ("amd64", "arm64")
    for name in (
        f"image-linux-{arch}.qcow2",
        f"image-linux-{arch}.manifest.json",
        f"image-linux-{arch}.boot.json",
        f"vmlinuz-virt-{arch}",
        f"initramfs-virt-{arch}",
    )
} | {"image-linux-x64.qcow2"}
LISTS = {"SHA256SUMS", "index.json", "publish.env", "upload-manifest.json"}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder to work in, without variables."""
    for name in [*VARIABLES, *(name for name in os.environ if name.startswith("COWORK_"))]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def publish(*words: str) -> int:
    return main(["publish", *words])


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Status, error and hint of a publication that is refused."""
    capsys.readouterr()
    status = publish(*words)
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    (error,) = [line[7:] for line in err.splitlines() if line.startswith("error: ")]
    hints = [line[6:] for line in err.splitlines() if line.startswith("hint: ")]
    return status, error, "".join(hints)


def load(path: str) -> Any:
    return json.loads(Path(path).read_text())


def state(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Everything that is there: inode, time and bytes."""
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


# ---- the folder ------------------------------------------------------------------------------------------------------


def test_a_whole_version(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    out = proved(place / "out")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert publish("v0.1.5", "--base-url", f"{BASE}/") == 0
    assert capsys.readouterr().out == "publish/v0.1.5\n"
    folder = place / "publish/v0.1.5"
    assert {path.name for path in folder.iterdir()} == DATA | LISTS | {f"{name}.sha256" for name in DATA}
    assert [path.name for path in (place / "publish").iterdir()] == ["v0.1.5"], "no scratch folder is left"
    for arch in ("amd64", "arm64"):
        assert (folder / f"image-linux-{arch}.qcow2").read_bytes() == (out / f"linux-{arch}.qcow2").read_bytes()
        for kind in ("manifest", "boot"):
            original = (out / f"linux-{arch}.{kind}.json").read_text()
            assert json.loads((folder / f"image-linux-{arch}.{kind}.json").read_text()) == json.loads(original)
    assert load("publish/v0.1.5/upload-manifest.json") == {
        "version": "v0.1.5",
        "generatedAt": "2023-11-14T22:13:20.000Z",
        "images": {
            arch: {
                "url": f"{BASE}/v0.1.5/image-linux-{arch}.qcow2",
                "sha256": digest(out / f"linux-{arch}.qcow2"),
                "fileName": f"image-linux-{arch}.qcow2",
            }
            for arch in ("amd64", "arm64")
        },
    }


def test_sha256sum_accepts_the_sums(place: Path) -> None:
    need_program("sha256sum")
    proved(place / "out")
    assert publish("v1") == 0
    folder = place / "publish/v1"

    def check(name: str) -> int:
        done = subprocess.run(["sha256sum", "-c", "--strict", name], cwd=folder, capture_output=True, check=False)
        return done.returncode

    names = ["SHA256SUMS", *(f"{name}.sha256" for name in DATA)]
    assert [check(name) for name in names] == [0] * len(names)
    listed = re.findall(r"^[0-9a-f]{64}  (.*)$", (folder / "SHA256SUMS").read_text(), re.M)
    assert listed == sorted(DATA)
    damage(folder / "vmlinuz-virt-arm64")
    assert (check("SHA256SUMS"), check("vmlinuz-virt-arm64.sha256"), check("vmlinuz-virt-amd64.sha256")) == (1, 1, 0)


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_the_second_name_of_amd64_is_a_link_and_the_rest_are_copies(place: Path) -> None:
    out = proved(place / "out")
    assert publish("v1") == 0
    folder = place / "publish/v1"
    image, second = folder / "image-linux-amd64.qcow2", folder / "image-linux-x64.qcow2"
    assert image.samefile(second)
    assert not second.is_symlink()
    before = image.read_bytes()
    damage(out / "linux-amd64.qcow2")  # as a machine does that is started from it
    assert image.read_bytes() == before


def test_a_target_without_links_gets_a_copy(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refused)
    proved(place / "out", "amd64")
    assert publish("v1") == 0
    image, second = (place / "publish/v1" / f"image-linux-{name}.qcow2" for name in ("amd64", "x64"))
    assert not image.samefile(second)
    assert image.read_bytes() == second.read_bytes()


def test_the_index_for_programs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = proved(place / "out")
    prove(out / "linux-arm64.qcow2", "uefi", "direct", **booted(out, "arm64"))
    assert publish("v1", "--base-url", BASE, "--json") == 0
    index = load("publish/v1/index.json")
    assert json.loads(capsys.readouterr().out) == {"folder": "publish/v1", "changed": True, **index}
    assert (index["index"], index["version"], index["baseUrl"]) == (1, "v1", BASE)
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", index["generatedAt"])
    amd64, arm64 = index["architectures"]["amd64"], index["architectures"]["arm64"]
    assert amd64["imageNames"] == ["image-linux-amd64.qcow2", "image-linux-x64.qcow2"]
    assert (amd64["provedWith"], arm64["provedWith"]) == (["bios"], ["direct", "uefi"])
    assert arm64["buildId"] == "build-arm64"
    for each in (amd64, arm64):
        for role in ("image", "kernel", "initramfs", "manifest", "record"):
            entry = each[role]
            path = place / "publish/v1" / entry["name"]
            assert entry == {**facts(path), "url": f"{BASE}/v1/{path.name}"}


def test_the_variables_of_the_application(place: Path) -> None:
    out = proved(place / "out")
    assert publish("v1", "--base-url", BASE) == 0
    text = (place / "publish/v1/publish.env").read_text()
    wanted = {"COWORK_SANDBOX_BASE_URL": BASE, "COWORK_SANDBOX_IMAGE_VERSION": "v1"}
    for arch in ("amd64", "arm64"):
        wanted |= {
            f"COWORK_SANDBOX_IMAGE_URL_{arch.upper()}": f"{BASE}/v1/image-linux-{arch}.qcow2",
            f"COWORK_SANDBOX_IMAGE_SHA256_{arch.upper()}": digest(out / f"linux-{arch}.qcow2"),
            f"COWORK_SANDBOX_KERNEL_URL_{arch.upper()}": f"{BASE}/v1/vmlinuz-virt-{arch}",
            f"COWORK_SANDBOX_INITRD_URL_{arch.upper()}": f"{BASE}/v1/initramfs-virt-{arch}",
        }
    assert read_env(text) == wanted
    shell = ["sh", "-c", "set -a; . publish/v1/publish.env; env"]
    said = subprocess.run(shell, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True).stdout
    assert {k: v for k, v in read_env(said).items() if k.startswith("COWORK_")} == wanted


def test_without_a_base_url_the_addresses_are_relative(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    proved(place / "out")
    assert publish("v1") == 0
    assert "the addresses in publish/v1 are incomplete without --base-url" in capsys.readouterr().err
    assert load("publish/v1/upload-manifest.json")["images"]["arm64"]["url"] == "v1/image-linux-arm64.qcow2"
    text = (place / "publish/v1/publish.env").read_text()
    assert "URL" not in "".join(read_env(text))
    assert "COWORK_SANDBOX_IMAGE_SHA256_ARM64" in read_env(text)


@pytest.mark.parametrize("missing", ["amd64", "arm64"])
def test_one_architecture_alone(missing: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (there,) = {"amd64", "arm64"} - {missing}
    proved(place / "out", there)
    assert publish("v1", "--base-url", BASE) == 0
    assert f"out/linux-{missing}.qcow2: missing, so it is not published" in capsys.readouterr().err
    assert list(load("publish/v1/upload-manifest.json")["images"]) == [there]
    assert not [path for path in (place / "publish/v1").iterdir() if missing in path.name]
    assert missing.upper() not in (place / "publish/v1/publish.env").read_text()


def test_an_image_without_its_kernel(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = proved(place / "out")
    (out / "vmlinuz-virt-arm64").unlink()
    assert publish("v1", "--base-url", BASE) == 0
    said = capsys.readouterr().err
    assert "out/vmlinuz-virt-arm64: missing, so the arm64 image is published without it" in said
    variables = read_env((place / "publish/v1/publish.env").read_text())
    assert "COWORK_SANDBOX_KERNEL_URL_ARM64" not in variables
    assert "COWORK_SANDBOX_INITRD_URL_ARM64" in variables


# ---- options and variables -------------------------------------------------------------------------------------------


def test_the_variables(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proved(place / "built")
    for name, value in {
        "INPUT_DIR": "built",
        "OUTPUT_BASE": "site/images",
        "COWORK_SANDBOX_IMAGE_VERSION": "v7",
        "COWORK_SANDBOX_BASE_URL": BASE,
    }.items():
        monkeypatch.setenv(name, value)
    assert publish() == 0
    assert load("site/images/v7/index.json")["baseUrl"] == BASE


def test_an_option_beats_a_variable(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proved(place / "built")
    for name in ("INPUT_DIR", "OUTPUT_BASE", "COWORK_SANDBOX_IMAGE_VERSION", "COWORK_SANDBOX_BASE_URL"):
        monkeypatch.setenv(name, "/nowhere else")
    assert publish("v8", "--from", "built", "--to", "target", "--base-url", BASE) == 0
    assert load("target/v8/index.json")["baseUrl"] == BASE


def test_the_folder_of_builds_is_the_default(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proved(place / "built")
    monkeypatch.setenv("OUT_DIR", "built")
    assert publish("v8") == 0


def test_another_recipe(place: Path) -> None:
    proved(place / "out")
    for path in list((place / "out").glob("linux-*")):
        path.rename(path.with_name(path.name.replace("linux", "mine")))
    assert publish("v1", "--name", "mine") == 0
    assert (place / "publish/v1/image-linux-x64.qcow2").is_file()


@pytest.mark.parametrize("version", ["v0.1.5", "1", "2026-11-21", "1.0.0-rc.1+build5", "V1_2"])
def test_versions(version: str, place: Path) -> None:
    proved(place / "out", "amd64")
    assert publish(version) == 0
    assert (place / "publish" / version / "index.json").is_file()


@pytest.mark.parametrize(
    "version",
    [
        "../v1",
        "v1/x",
        "/v1",
        ".v1",
        "_1",
        "-1",
        "v1..2",
        "v1.",
        "v 1",
        "v1\n",
        "v1%2f",
        "v1?x",
        "v1\\x",
        "vé1",
        "latest",
        "1" * 65,
    ],
)
def test_versions_that_are_none(version: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    proved(place / "out", "amd64")
    status, error, hint = fails(capsys, "--", version)
    assert (status, error) == (2, f"{version!r} is not a version")
    assert hint.startswith("such as v0.1.5")
    assert not (place / "publish").exists()


@pytest.mark.parametrize("version", ["com1", "COM0", "aux.1", "NUL.1", "Lpt9.v1", "con.1", "prn.1"])
def test_versions_that_are_devices_on_windows(version: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    proved(place / "out", "amd64")
    assert fails(capsys, version) == (2, f"{version!r} is the name of a device on Windows", "such as v0.1.5")
    assert not (place / "publish").exists()


@pytest.mark.parametrize("version", ["com10", "nul-1", "auxiliary1", "v1.con", "lpt1x"])
def test_versions_that_only_resemble_devices(version: str, place: Path) -> None:
    proved(place / "out", "amd64")
    assert publish(version) == 0


def test_no_version(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], [""]):
        assert fails(capsys, *words)[:2] == (2, "no version to publish")


@pytest.mark.parametrize(
    "url",
    [
        "images.example",
        "ftp://a/b",
        "http://",
        "https://user:secret@a/b",
        "http://a/b?c",
        "http://a/b#c",
        "http://a/$(id)",
        "http://a/b c",
        "http://a/b;c",
        "http://a/b\nX=1",
        "http://[a",
        "file:///srv",
    ],
)
def test_base_urls_that_are_none(url: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    proved(place / "out", "amd64")
    status, error, _ = fails(capsys, "v1", "--base-url", url)
    assert (status, error) == (2, f"base URL {url!r} cannot be used")
    assert not (place / "publish").exists()


@pytest.mark.parametrize("target", ["s3://bucket/images", "https://a/b", ""])
def test_targets_that_are_no_folder(target: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    proved(place / "out", "amd64")
    assert fails(capsys, "v1", "--to", target)[:2] == (2, f"--to {target}: not a folder")


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_nothing_to_publish(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = "no image to publish: out/linux-amd64.qcow2 and out/linux-arm64.qcow2 not there"
    assert fails(capsys, "v1") == (
        4,
        missing,
        "imgkit build RECIPE makes them; --from or INPUT_DIR says where they are",
    )
    (place / "out").mkdir()
    assert fails(capsys, "v1") == (4, missing, "imgkit build RECIPE makes them")
    proved(place / "out", "amd64")
    error = "no image to publish: out/linux-arm64.qcow2 not there"
    assert fails(capsys, "v1", "--arch", "arm64", "--arch", "amd64")[:2] == (4, error)
    assert not (place / "publish").exists()


def test_raw_images(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Zeros stay holes."""
    image = build(place / "out", "amd64", image_format="raw")
    prove(image, "bios")
    assert publish("v1") == 0
    for name in ("amd64", "x64"):
        copy = place / f"publish/v1/image-linux-{name}.raw"
        assert copy.read_bytes() == image.read_bytes()
        assert copy.stat().st_blocks * 512 < copy.stat().st_size
    index = json.loads((place / "publish/v1/index.json").read_text())["architectures"]["amd64"]
    assert index["imageNames"] == ["image-linux-amd64.raw", "image-linux-x64.raw"]
    assert (place / "publish/v1/image-linux-amd64.manifest.json").is_file()
    assert publish("v1") == 0, "the index can be read"


def test_which_of_two_formats_is_published(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The manifest says which one is of the last build."""
    prove(build(place / "out", "amd64"), "bios")
    prove(build(place / "out", "amd64", image_format="raw"), "bios")
    assert publish("v1") == 0
    assert (place / "publish/v1/image-linux-amd64.raw").is_file()
    prove(build(place / "out", "amd64"), "bios")
    assert publish("v2") == 0
    assert (place / "publish/v2/image-linux-amd64.qcow2").is_file()


def test_formats_that_are_not_published(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(place / "out", "amd64", image_format="vmdk")
    error = "no image to publish: out/linux-amd64.qcow2 and out/linux-arm64.qcow2 not there"
    hint = "out/linux-amd64.vmdk is there, but only qcow2 and raw images are published"
    assert fails(capsys, "v1") == (4, error, hint)


HINT = "imgkit boot out/linux-amd64.qcow2, and publish again; --unproved publishes it as it is"


DIRECT: dict[str, dict[str, Any]] = {
    "other kernel": {"kernel": {"sha256": "0" * 64}},
    "other initramfs": {"initramfs": {"sha256": "0" * 64}},
    "kernel unknown": {"kernel": None},
    "initramfs unknown": {"initramfs": None},
    "both unknown": {"kernel": None, "initramfs": None},
}
"""What records of direct boots say that prove nothing about the files that are published."""


@pytest.mark.parametrize("kind", ["missing", "other bytes", "empty", "not JSON", "no boots", *DIRECT])
def test_an_image_that_no_boot_has_proved(kind: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = build(place / "out", "amd64")
    record = image.with_suffix(".boot.json")
    why = "out/linux-amd64.boot.json is not a boot record"
    if kind == "missing":
        why = "no boot has proved it"
    elif kind == "other bytes":
        prove(image, "bios", "uefi")
        build(place / "out", "amd64", seed="later")
    elif kind == "empty":
        record.touch()
    elif kind == "not JSON":
        record.write_text("{")
    elif kind == "no boots":
        prove(image)
    else:
        files = booted(place / "out", "amd64")
        prove(image, "direct", **{role: said for role, said in {**files, **DIRECT[kind]}.items() if said})
    if kind.startswith("other") or kind in DIRECT:
        why = "out/linux-amd64.boot.json is about another image, kernel or initramfs: no boot has proved this one"
    error = f"out/linux-amd64.qcow2: {why}"
    assert fails(capsys, "v1") == (4, error, HINT)
    assert not (place / "publish").exists()
    assert publish("v1", "--unproved") == 0
    assert f"{error}; published because of --unproved" in capsys.readouterr().err
    index = load("publish/v1/index.json")["architectures"]["amd64"]
    assert index["provedWith"] == []
    assert not (place / "publish/v1/image-linux-amd64.boot.json").exists()


def test_one_unproved_image_of_two_is_enough_to_refuse(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    proved(place / "out", "amd64")
    build(place / "out", "arm64")
    assert fails(capsys, "v1")[0] == 4
    assert not (place / "publish").exists()
    assert publish("v1", "--arch", "amd64") == 0


def test_a_direct_boot_of_these_files_counts(place: Path) -> None:
    image = build(place / "out", "arm64")
    prove(image, "direct", **booted(place / "out", "arm64"))
    assert publish("v1") == 0
    assert load("publish/v1/index.json")["architectures"]["arm64"]["provedWith"] == ["direct"]


@pytest.mark.parametrize("name", ["linux-amd64.qcow2", "vmlinuz-virt-amd64", "initramfs-virt-amd64"])
def test_a_file_that_is_not_the_manifests(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = proved(place / "out", "amd64")
    damage(out / name)
    prove(out / "linux-amd64.qcow2", "bios")
    status, error, hint = fails(capsys, "v1", "--unproved")
    assert status == 4
    assert error.startswith(f"out/{name}: is not the one of ")
    assert "build it again" in hint
    assert not (place / "publish").exists()


def test_a_manifest_that_is_missing_old_or_of_another_architecture(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = proved(place / "out", "amd64")
    path = out / "linux-amd64.manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "arch": "arm64"}))
    assert fails(capsys, "v1")[:2] == (4, f"out/{path.name}: is of arm64, not of amd64")
    path.write_text(json.dumps({key: value for key, value in manifest.items() if key != "boot"}))
    assert fails(capsys, "v1")[:2] == (4, "out: the manifest of the amd64 image names no kernel")
    oddities: list[Any] = [[], "x", {"kernel": 5}]
    for odd in oddities:
        path.write_text(json.dumps({**manifest, "boot": odd}))
        status, message = fails(capsys, "v1")[:2]
        assert (status, message.partition(": boot")[0]) == (4, f"out/{path.name}: is not a manifest of imgkit")
    stray = {**manifest, "boot": {"kernel": {"name": "../vmlinuz-virt-amd64"}}}
    path.write_text(json.dumps(stray))
    assert fails(capsys, "v1")[:2] == (4, "out: the manifest of the amd64 image names no kernel")
    path.unlink()
    assert fails(capsys, "v1")[:2] == (4, f"out/{path.name}: No such file or directory")


# ---- a version that exists -------------------------------------------------------------------------------------------


def test_the_same_again_changes_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    proved(place / "out")
    assert publish("v1", "--base-url", BASE) == 0
    before = state(place / "publish")
    shutil.copytree(place / "out", place / "again")
    for words in (["--base-url", BASE], [], ["--arch", "arm64"], ["--from", "again"], ["--unproved"]):
        capsys.readouterr()
        assert publish("v1", *words) == 0
        assert "publish/v1: was published already, nothing has changed" in capsys.readouterr().err
        assert state(place / "publish") == before


def test_other_bytes_under_a_published_name(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    proved(place / "out")
    assert publish("v1", "--base-url", BASE) == 0
    before = state(place / "publish")
    proved(place / "out", "arm64", seed="later")
    status, error, hint = fails(capsys, "v1")
    assert (status, error) == (
        2,
        "publish/v1/image-linux-arm64.manifest.json: another file is published under this name",
    )
    assert "publish it as a new version" in hint
    assert state(place / "publish") == before
    assert publish("v2") == 0


@pytest.mark.parametrize("name", sorted(name for name in DATA if not name.endswith("boot.json")))
def test_every_name_is_compared_byte_by_byte(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    proved(place / "out")
    assert publish("v1") == 0
    path = place / "publish/v1" / name
    other = bytearray(path.read_bytes())
    other[-1] ^= 1
    path.unlink()  # not its second name's bytes
    path.write_bytes(other)
    error = f"publish/v1/{name}: another file is published under this name"
    assert fails(capsys, "v1")[:2] == (2, error)


def test_what_is_missing_the_next_time_stays(place: Path) -> None:
    out = proved(place / "out", "arm64")
    assert publish("v1", "--base-url", BASE) == 0
    before = state(place / "publish")
    for name in ("vmlinuz-virt-arm64", "initramfs-virt-arm64", "linux-arm64.boot.json"):
        (out / name).unlink()
    assert publish("v1", "--unproved") == 0
    assert state(place / "publish") == before


def test_what_a_killed_run_left_is_taken(place: Path) -> None:
    """Some files of an architecture are in place, and nothing lists them."""
    proved(place / "out")
    assert publish("v1", "--arch", "amd64") == 0
    left = place / "publish/v1/image-linux-arm64.qcow2"
    shutil.copy(place / "out/linux-arm64.qcow2", left)
    before = left.stat().st_ino
    assert publish("v1") == 0
    assert left.stat().st_ino == before
    assert set(load("publish/v1/index.json")["architectures"]) == {"amd64", "arm64"}


@pytest.mark.slow
def test_two_at_the_same_time(place: Path) -> None:
    proved(place / "out")
    words = [sys.executable, "-m", "imgkit", "publish", "v1", "--arch"]
    running = [subprocess.Popen([*words, arch], stdout=subprocess.DEVNULL) for arch in ("amd64", "arm64")]
    assert [child.wait(60) for child in running] == [0, 0]
    assert set(load("publish/v1/index.json")["architectures"]) == {"amd64", "arm64"}
    done = subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=place / "publish/v1", check=False)
    assert done.returncode == 0


def test_architectures_in_separate_runs(place: Path) -> None:
    proved(place / "out")
    assert publish("whole1", "--base-url", BASE) == 0
    assert publish("v1", "--arch", "arm64", "--base-url", BASE) == 0
    first = state(place / "publish/v1")
    assert publish("v1", "--arch", "amd64") == 0
    folder = place / "publish/v1"
    assert {path.name for path in folder.iterdir()} == {path.name for path in (place / "publish/whole1").iterdir()}
    assert {name: state(folder)[name] for name in first if name not in LISTS} == {
        name: value for name, value in first.items() if name not in LISTS
    }
    for name in ("SHA256SUMS", "publish.env"):
        assert (folder / name).read_text() == (place / "publish/whole1" / name).read_text().replace("whole1", "v1")
    assert load("publish/v1/index.json")["baseUrl"] == BASE, "the address of the first run"


def test_a_further_boot_is_added(place: Path) -> None:
    out = proved(place / "out", "amd64")
    assert publish("v1") == 0
    prove(out / "linux-amd64.qcow2", "uefi")
    assert publish("v1") == 0
    assert load("publish/v1/index.json")["architectures"]["amd64"]["provedWith"] == ["bios", "uefi"]
    assert list(load("publish/v1/image-linux-amd64.boot.json")["boots"]) == ["bios", "uefi"]
    done = subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=place / "publish/v1", check=False)
    assert done.returncode == 0


def test_an_unproved_version_is_proved_later(place: Path) -> None:
    image = build(place / "out", "amd64")
    assert publish("v1", "--unproved") == 0
    prove(image, "bios")
    assert publish("v1") == 0
    assert load("publish/v1/index.json")["architectures"]["amd64"]["provedWith"] == ["bios"]


def test_a_published_record_of_other_bytes_is_replaced(place: Path) -> None:
    proved(place / "out", "amd64")
    assert publish("v1") == 0
    before = (place / "publish/v1/image-linux-amd64.boot.json").read_text()
    stray = proved(place / "stray", "amd64", seed="other")
    shutil.copy(stray / "linux-amd64.boot.json", place / "publish/v1/image-linux-amd64.boot.json")
    assert publish("v1") == 0
    assert json.loads((place / "publish/v1/image-linux-amd64.boot.json").read_text()) == json.loads(before)


def test_another_address_changes_the_lists_only(place: Path) -> None:
    proved(place / "out")
    assert publish("v1") == 0
    before = state(place / "publish/v1")
    assert publish("v1", "--base-url", BASE) == 0
    after = state(place / "publish/v1")
    assert {name for name in after if after[name] != before[name]} == LISTS - {"SHA256SUMS"}


def test_damaged_publications(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    proved(place / "out")
    folder = place / "publish/v1"
    assert publish("v1") == 0
    sums = (folder / "SHA256SUMS").read_text()
    (folder / "SHA256SUMS").write_text("")
    (folder / "initramfs-virt-arm64").unlink()
    assert fails(capsys, "v1", "--arch", "amd64")[:2] == (
        4,
        "publish/v1/initramfs-virt-arm64: publish/v1/index.json lists it, but it does not exist",
    )
    assert publish("v1") == 0, "with the image at hand it is repaired"
    assert (folder / "SHA256SUMS").read_text() == sums
    index = (folder / "index.json").read_text()
    later, stray = index.replace('"index": 1', '"index": 2'), index.replace("image-linux-arm64", "../x")
    for text in ("{", "[]", later, stray):
        (folder / "index.json").write_text(text)
        assert fails(capsys, "v1")[:2] == (4, "publish/v1/index.json: not an index that this imgkit can add to")


def test_folders_that_are_no_publication(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    proved(place / "out")
    folder = place / "publish/v1"
    folder.mkdir(parents=True)
    (folder / "notes").touch()
    assert fails(capsys, "v1")[:2] == (4, "publish/v1: has files, but not the index.json of a publication")
    assert [path.name for path in folder.iterdir()] == ["notes"]
    (folder / "notes").unlink()
    assert publish("v1") == 0, "an empty one is taken"
    (place / "file").touch()
    assert fails(capsys, "v1", "--to", "file")[0] == 5


# ---- half done -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [True, False])
def test_an_interrupt_leaves_what_was_there(
    first: bool, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the files are copied; putting them into place is done altogether."""
    proved(place / "out")
    if not first:
        assert publish("v1", "--arch", "amd64") == 0
    before = state(place / "publish")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("imgkit.publish.folder.texts", interrupted)
    assert publish("v1") == 130
    assert state(place / "publish") == before
    assert (place / "publish").exists() is not first, "no empty folder is left"
    monkeypatch.undo()
    monkeypatch.chdir(place)
    assert publish("v1") == 0


def test_putting_into_place_is_not_interrupted_and_ends_with_the_index(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proved(place / "out")
    assert publish("v1", "--arch", "amd64") == 0
    moved: list[str] = []
    replace = Path.replace

    def slow(self: Path, target: Path) -> Path:
        assert interrupts._handler.held
        moved.append(target.name)
        assert "image-linux-arm64" not in (place / "publish/v1/index.json").read_text()
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", slow)
    assert publish("v1") == 0
    arm64 = {name for name in DATA if "arm64" in name}
    assert set(moved) == arm64 | {f"{name}.sha256" for name in arm64} | LISTS
    assert moved[-1] == "index.json"
    assert set(moved[: len(arm64)]) == arm64, "files come before what lists them"


def test_a_target_that_cannot_be_written(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    proved(place / "out")
    status, error, hint = fails(capsys, "v1", "--to", "/proc/nowhere")
    assert status == 5
    assert error.startswith("/proc/nowhere")
    assert hint == "choose another folder with --to"


# ---- the application -------------------------------------------------------------------------------------------------


@pytest.fixture
def site(place: Path) -> Iterator[Site]:
    """Yield a published version behind a web server."""
    proved(place / "out")
    (place / "publish").mkdir()
    with serve(place / "publish") as server:
        assert publish("v0.1.5", "--base-url", server.url) == 0
        yield server


@pytest.fixture
def env(site: Site, place: Path) -> dict[str, str]:
    return read_env((place / "publish/v0.1.5/publish.env").read_text())


@pytest.mark.parametrize("process_arch", ["x64", "arm64"])
def test_the_application_downloads(process_arch: str, env: dict[str, str], site: Site, place: Path) -> None:
    app = App(env, process_arch, place / "data")
    arch = hostdownload.VARIANTS[process_arch]
    image, kernel, initrd = app.ensure_image(), app.ensure_kernel(), app.ensure_initrd()
    assert image.read_bytes() == (place / f"out/linux-{arch}.qcow2").read_bytes()
    assert kernel is not None
    assert kernel.read_bytes() == (place / f"out/vmlinuz-virt-{arch}").read_bytes()
    assert initrd is not None
    assert initrd.read_bytes() == (place / f"out/initramfs-virt-{arch}").read_bytes()
    assert sorted(path.name for path in app.folder.iterdir()) == sorted(
        [f"linux-{process_arch}.qcow2", f"vmlinuz-virt-{arch}", f"initramfs-virt-{arch}"]
    )
    app.ensure_image()
    assert sum(site.requests.values()) == 3, "what is there is not asked for again"


@pytest.mark.parametrize("process_arch", ["x64", "arm64"])
def test_the_application_downloads_with_the_base_url_alone(
    process_arch: str, env: dict[str, str], site: Site, place: Path
) -> None:
    few = {name: env[name] for name in ("COWORK_SANDBOX_BASE_URL", "COWORK_SANDBOX_IMAGE_VERSION")}
    app = App(few, process_arch, place / "data")
    image = app.ensure_image()
    assert dict(site.requests) == {f"/v0.1.5/image-linux-{process_arch}.qcow2": 1}
    assert digest(image) == digest(place / f"out/linux-{hostdownload.VARIANTS[process_arch]}.qcow2")


@pytest.mark.parametrize("process_arch", ["x64", "arm64"])
def test_the_application_refuses_a_flipped_byte(
    process_arch: str, env: dict[str, str], site: Site, place: Path
) -> None:
    arch = hostdownload.VARIANTS[process_arch]
    damage(place / f"publish/v0.1.5/image-linux-{arch}.qcow2")
    app = App(env, process_arch, place / "data")
    with pytest.raises(ChecksumError):
        app.ensure_image()
    assert [path.name for path in app.folder.iterdir()] == [f"linux-{process_arch}.qcow2.download"]


def test_the_application_follows_a_redirect(env: dict[str, str], site: Site, place: Path) -> None:
    moved = place / "publish/elsewhere"
    shutil.copy(place / "publish/v0.1.5/image-linux-amd64.qcow2", moved)
    site.faults["/v0.1.5/image-linux-amd64.qcow2"] = Fault(status=302, location="/elsewhere")
    assert App(env, "x64", place / "data").ensure_image().read_bytes() == moved.read_bytes()
