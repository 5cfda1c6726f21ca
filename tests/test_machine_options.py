"""The options of ``imgkit boot``: the machine that they describe, without starting it."""

from __future__ import annotations

import io
import json
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pycdlib
import pytest

from imgkit.cli.main import main
from imgkit.cli.options import machineoptions
from imgkit.vm.bootspec import BootSpec
from imgkit.vm.shares import quotas
from tests.conftest import need_program
from tests.publications import facts


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Return an image with a kernel and an initramfs beside it."""
    path = tmp_path / "linux-amd64.qcow2"
    subprocess.run([need_program("qemu-img"), "create", "-q", "-f", "qcow2", path, "1M"], check=True)
    for name in ("vmlinuz-virt-amd64", "initramfs-virt-amd64"):
        (tmp_path / name).write_text(name)
    return path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Return what each machine was asked for; they all come up at once and stay off."""
    calls: list[dict[str, Any]] = []

    @contextmanager
    def boot(spec: BootSpec, **options: Any) -> Iterator[SimpleNamespace]:
        calls.append({**vars(spec), **options})
        yield SimpleNamespace(
            arch=spec.arch,
            firmware=spec.firmware,
            accelerator=SimpleNamespace(name="tcg"),
            memory_mib=4096,
            seconds_to_ready=9.5,
            seconds_to_settled=None,
            heartbeat=lambda: None,
            power_off=lambda: True,
            stages=dict,
        )

    monkeypatch.setattr(machineoptions, "VM", SimpleNamespace(boot=boot))
    return calls


@pytest.mark.parametrize(("words", "settle"), [([], True), (["--no-wait"], False)])
def test_whether_the_guest_is_waited_for(
    words: list[str], settle: bool, image: Path, asked: list[dict[str, Any]]
) -> None:
    assert main(["boot", str(image), *words]) == 0
    assert [call["settle"] for call in asked] == [settle]


@pytest.mark.parametrize(("words", "firmware"), [([], "direct"), (["--firmware", "direct"], "direct")])
def test_a_root_filesystem_is_booted_directly(
    words: list[str], firmware: str, tmp_path: Path, asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "linux-amd64.ext4"
    superblock = struct.pack("<2I", 16, 16).ljust(0x38, b"\0") + b"\x53\xef"
    image.write_bytes((bytes(1024) + superblock).ljust(16 * 1024, b"\0"))
    for name in ("vmlinux-virt-amd64", "vmlinuz-virt-amd64", "initramfs-virt-amd64"):
        (tmp_path / name).touch()
    assert main(["boot", str(image), *words]) == 0
    (call,) = asked
    assert (call["firmware"], call["kernel"].name) == (firmware, "vmlinux-virt-amd64")
    assert call["command_line"].startswith("root=/dev/vda rootfstype=ext4 ")
    assert main(["boot", str(image), "--firmware", "bios"]) == 2
    assert "a root filesystem without a boot loader, which no bios can start" in capsys.readouterr().err


def test_a_direct_boot_is_a_record_of_all_three_files(image: Path, asked: list[dict[str, Any]]) -> None:
    kernel, initramfs = (image.with_name(f"{what}-virt-amd64") for what in ("vmlinuz", "initramfs"))
    assert main(["boot", str(image), "--firmware", "direct"]) == 0
    assert [(call["kernel"], call["initrd"]) for call in asked] == [(kernel, initramfs)]
    record = json.loads(image.with_suffix(".boot.json").read_text())
    assert record["image"] == facts(image)
    assert record["boots"]["direct"]["kernel"] == facts(kernel)
    assert record["boots"]["direct"]["initramfs"] == facts(initramfs)


@pytest.mark.slow
def test_a_direct_boot_takes_what_the_manifest_names(
    image: Path, asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("vmlinuz-zzz-amd64", "initramfs-zzz-amd64"):
        image.with_name(name).write_bytes(b"foreign")
    kernel, initramfs = (image.with_name(f"{what}-virt-amd64") for what in ("vmlinuz", "initramfs"))
    boot = {"kernel": facts(kernel), "initramfs": facts(initramfs)}
    manifest = image.with_suffix(".manifest.json")
    manifest.write_text(json.dumps({"manifest": 1, "files": {}, "boot": boot}))
    assert main(["boot", str(image), "--firmware", "direct"]) == 0
    assert [(call["kernel"], call["initrd"]) for call in asked] == [(kernel, initramfs)]
    kernel.unlink()
    assert main(["boot", str(image), "--firmware", "direct"]) == 4
    assert "vmlinuz-virt-amd64: not there" in capsys.readouterr().err
    manifest.write_text("{}")
    assert main(["boot", str(image), "--firmware", "direct"]) == 4
    assert len(asked) == 1


def test_other_boots_take_nothing_from_beside_the_image(image: Path, asked: list[dict[str, Any]]) -> None:
    assert main(["boot", str(image), "--firmware", "uefi"]) == 0
    assert [(call["kernel"], call["initrd"]) for call in asked] == [(None, None)]
    assert {"kernel", "initramfs"}.isdisjoint(json.loads(image.with_suffix(".boot.json").read_text())["boots"]["uefi"])


@pytest.mark.slow
def test_a_microvm_boots_directly(image: Path, asked: list[dict[str, Any]]) -> None:
    kernel, initramfs = (image.with_name(f"{what}-virt-amd64") for what in ("vmlinuz", "initramfs"))
    for words in ([], ["--firmware", "direct"]):
        assert main(["boot", str(image), "--machine", "microvm", *words]) == 0
    assert main(["boot", str(image)]) == 0
    boots = json.loads(image.with_suffix(".boot.json").read_text())["boots"]
    assert (boots["direct"]["machine"], "machine" in boots["bios"]) == ("microvm", False)
    booted = [(call["machine"], call["firmware"], call["kernel"], call["initrd"]) for call in asked]
    assert booted == [("microvm", "direct", kernel, initramfs)] * 2 + [("standard", "bios", None, None)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--firmware", "uefi"], "the machine microvm has no uefi: QEMU starts the kernel itself"),
        (["--arch", "arm64"], "QEMU has no machine microvm for arm64"),
    ],
)
def test_what_a_microvm_cannot_be(
    words: list[str], message: str, image: Path, asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["boot", str(image), "--machine", "microvm", *words]) == 2
    assert message in capsys.readouterr().err
    assert not asked


# ---- the network -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "network", "allow"),
    [
        ([], "user", []),
        (["--network", "none"], "none", []),
        (["--network", "user"], "user", []),
        (["--network", "restricted"], "restricted", []),
        (["--network", "restricted", "--allow", "a.example", "--allow", "b:80"], "restricted", ["a.example", "b:80"]),
    ],
)
def test_networks(words: list[str], network: str, allow: list[str], image: Path, asked: list[dict[str, Any]]) -> None:
    assert main(["boot", str(image), *words]) == 0
    assert [(call["network"], call["allow"]) for call in asked] == [(network, allow)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--allow", "a.example"], "--allow is for a restricted network"),
        (["--network", "none", "--allow", "a.example"], "--allow is for a restricted network"),
        (["--network", "restricted", "--allow", "a.example:x"], "--allow a.example:x: not of the form HOST:PORT"),
        (["--network", "wifi"], "invalid choice"),
    ],
)
def test_networks_that_make_no_sense(
    words: list[str], message: str, image: Path, asked: list[dict[str, Any]], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["boot", str(image), *words]) == 2
    assert message in capfd.readouterr().err
    assert asked == []


# ---- the environment -------------------------------------------------------------------------------------------------


def variables(asked: list[dict[str, Any]]) -> Any:
    """Return what the config drive tells every agent."""
    iso = pycdlib.PyCdlib()
    iso.open_fp(io.BytesIO(asked[0]["config"]))
    with iso.open_file_from_iso(rr_path="/env.json") as source:
        return json.loads(source.read())


def test_a_file_of_variables(
    image: Path, asked: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = tmp_path / "one.env", tmp_path / "other.env"
    one.write_bytes(
        b"\xef\xbb\xbfA=1\n\n  # a comment\r\nB=x # no comment \r\n \tQUOTED='y \"z\"'\nEMPTY=\nHOST_HAS\nHOST_LACKS\n"
        b"E=a=b\nA=2\nUMLAUT=\xc3\xa4"
    )
    other.write_text("OTHER=3\nB=4\nC=5\n")
    monkeypatch.setenv("HOST_HAS", "here")
    monkeypatch.delenv("HOST_LACKS", raising=False)
    words = ["--env", "C=6", "--env-file", str(one), "--env-file", str(other)]
    assert main(["boot", str(image), *words]) == 0
    assert variables(asked) == {
        "A": "2",
        "B": "4",
        "QUOTED": "'y \"z\"'",
        "EMPTY": "",
        "HOST_HAS": "here",
        "E": "a=b",
        "UMLAUT": "ä",
        "OTHER": "3",
        "C": "6",
    }


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b"=SECRET", "not the name"),
        (b"A B=SECRET", "not the name"),
        (b"A =SECRET", "not the name"),
        (b"export A=SECRET", "not the name"),
        (b"SECRET SECRET", "not the name"),
        (b"1A=SECRET", "not the name"),
        (b"\xc3\xa4=SECRET", "not the name"),
        (b"A=SECRET\xff", "not UTF-8"),
        (b"A=SECRET\0", "zero byte"),
        (b"A\0=SECRET", "not the name"),
    ],
)
def test_a_wrong_line_is_named_and_never_its_value(
    line: bytes,
    what: str,
    image: Path,
    asked: list[dict[str, Any]],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "a.env"
    path.write_bytes(b"OK=1\n" + line + b"\n")
    assert main(["boot", str(image), "--env-file", str(path)]) == 2
    said = capfd.readouterr().err
    assert f"error: --env-file {path}: line 2: " in said
    assert what in said
    assert "SECRET" not in said
    assert asked == []


@pytest.mark.slow
def test_files_that_cannot_be_read(
    image: Path, asked: list[dict[str, Any]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    big = tmp_path / "big"
    big.write_bytes(b"#" * ((4 << 20) + 1))
    for path, why in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory"), (big, "larger than 4 MiB")):
        assert main(["boot", str(image), "--env-file", str(path)]) == 2
        assert f"error: --env-file {path}: {why}" in capfd.readouterr().err
    assert asked == []


def test_shares_for_reading_only(image: Path, asked: list[dict[str, Any]], tmp_path: Path) -> None:
    for name in ("a", "b", "c:ro", "d:x"):
        (tmp_path / name).mkdir()
    words = [f"a={tmp_path}/a:ro", f"b={tmp_path}/b:rw", f"c={tmp_path}/c:ro:rw", f"d={tmp_path}/d:x"]
    assert main(["boot", str(image), *(part for word in words for part in ("--share", word))]) == 0
    (call,) = asked
    assert call["shares"] == {tag: tmp_path / name for tag, name in zip("abcd", ("a", "b", "c:ro", "d:x"), strict=True)}
    assert call["read_only"] == {"a"}


@pytest.mark.parametrize("word", ["a=:ro", "a=/nonexistent:ro", "a:ro"])
def test_no_folder_before_the_mode(word: str, image: Path, asked: list[dict[str, Any]]) -> None:
    assert main(["boot", str(image), "--share", word]) == 2
    assert asked == []


def test_every_option_of_a_machine(image: Path, asked: list[dict[str, Any]], tmp_path: Path) -> None:
    words = ["--arch", "amd64", "--firmware", "uefi", "--timeout", "7.5", "--accel", "tcg", "--cpu", "max"]
    words += ["--cpus", "3", "--memory", "512", "--console", str(tmp_path / "log"), "--quota", "share-files=9"]
    assert main(["boot", str(image), *words]) == 0
    (given,) = asked
    assert {name: given[name] for name in ("image", "arch", "firmware", "timeout", "accelerator", "cpu", "cpus")} == {
        "image": image, "arch": "amd64", "firmware": "uefi", "timeout": 7.5, "accelerator": "tcg", "cpu": "max",
        "cpus": 3,
    }  # fmt: skip
    assert (given["memory_mib"], given["console"]) == (512, tmp_path / "log")
    assert given["quotas"] == quotas.parse(["share-files=9"])


def test_a_machine_without_options(image: Path, asked: list[dict[str, Any]]) -> None:
    assert main(["boot", str(image)]) == 0
    (given,) = asked
    assert (given["arch"], given["firmware"], given["timeout"], given["cpus"]) == ("amd64", "bios", 180.0, 2)
    assert (given["accelerator"], given["cpu"], given["memory_mib"], given["console"]) == ("auto", None, None, None)
    assert (dict(given["shares"]), set(given["read_only"]), given["config"]) == ({}, set(), None)
    assert (given["kernel"], given["initrd"], given["quotas"]) == (None, None, quotas.parse([]))


def test_arm64_has_no_bios(image: Path, asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    disk = image.rename(image.with_name("disk.qcow2"))
    assert main(["boot", str(disk), "--arch", "arm64", "--firmware", "bios"]) == 2
    assert capsys.readouterr().err == ("error: arm64 has no BIOS\nhint: --firmware uefi or --firmware direct\n")
    assert asked == []
