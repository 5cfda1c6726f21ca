"""Boot records: what ``imgkit boot`` writes beside an image, and what does not get a record."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkit.cli.main import main
from imgkit.cli.options import machineoptions
from imgkit.errors import InputError
from imgkit.image.bootrecord import BootRecord, ChangedError, Evidence, guest_facts, keep, parse, path_of, read
from imgkit.vm.agent.protocol import Heartbeat
from tests.publications import facts, proved

BEAT = Heartbeat(1.0, 1, 2.0, "file", True, {"buildId": "abc", "protocolVersion": 1, "status": [1], "image": "x"})


@pytest.fixture
def image(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    path = folder / "linux-amd64.qcow2"
    path.write_bytes(b"QFI\xfb" + b"image" * 1000)
    os.utime(path, (1, 1))  # some clocks of filesystems are slower than these tests
    return path


@pytest.fixture
def during(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Replaces the machine by one whose agent answers; the given function is called while it runs."""

    def install(action: Callable[[], object], firmware: str = "bios", files: Sequence[Path] = ()) -> None:
        @contextmanager
        def boot(
            options: argparse.Namespace, before: Callable[[Sequence[Path]], object], terminals: bool
        ) -> Iterator[Any]:
            assert not terminals
            before([options.image, *files])
            yield SimpleNamespace(
                arch="amd64",
                firmware=firmware,
                accelerator=SimpleNamespace(name="tcg"),
                memory_mib=4096,
                seconds_to_ready=9.5,
                seconds_to_settled=13.5,
                heartbeat=lambda: BEAT,
                power_off=lambda: bool(action()) or True,
                stages=dict,
            )

        monkeypatch.setattr(machineoptions, "boot", boot)

    return install


def nothing() -> None:
    """Leave the image unchanged."""


def test_a_boot_leaves_a_record(image: Path, during: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    during(nothing)
    assert main(["boot", str(image)]) == 0
    assert capsys.readouterr() == (f"{image}: agentd ready after 9.5 s (tcg)\n", "")
    record = json.loads((image.parent / "linux-amd64.boot.json").read_text())
    time = record["boots"]["bios"].pop("time")
    assert time.endswith("Z")
    assert record == {
        "bootRecord": 1,
        "image": facts(image),
        "arch": "amd64",
        "boots": {
            "bios": {
                "secondsToReady": 9.5,
                "secondsToSettled": 13.5,
                "accelerator": "tcg",
                "memoryMiB": 4096,
                "poweredOffCleanly": True,
                "imgkit": "0.1.0",
                "buildId": "abc",
                "agent": {"buildId": "abc", "protocolVersion": 1, "image": "x"},
            }
        },
    }
    assert len(list(image.parent.iterdir())) == 2, "no scratch file stays"


def test_boots_with_several_firmwares_gather(image: Path, during: Callable[..., None]) -> None:
    kernel, initramfs = image.with_name("vmlinuz-virt-amd64"), image.with_name("initramfs-virt-amd64")
    kernel.write_bytes(b"k")
    initramfs.write_bytes(b"i")
    for firmware, files in (("bios", ()), ("direct", (kernel, initramfs))):
        during(nothing, firmware, files)
        assert main(["boot", str(image)]) == 0
    boots = json.loads(path_of(image).read_text())["boots"]
    assert set(boots) == {"bios", "direct"}
    assert (boots["direct"]["kernel"], boots["direct"]["initramfs"]) == (facts(kernel), facts(initramfs))
    image.write_bytes(b"QFI\xfb rebuilt")
    during(nothing, "uefi")
    assert main(["boot", str(image)]) == 0
    record = json.loads(path_of(image).read_text())
    assert set(record["boots"]) == {"uefi"}, "boots of other bytes are forgotten"
    assert record["image"] == facts(image)


def rewritten(image: Path) -> None:
    """Write other bytes of the same length to the same file, as a machine without snapshot does."""
    with image.open("r+b") as file:
        file.seek(100)
        file.write(b"X")


def replaced(image: Path) -> None:
    """A build renames its result into place; the new file has the length and the time of the old one."""
    new, status = image.with_name("new"), image.stat()
    new.write_bytes(image.read_bytes())
    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
    new.replace(image)


@pytest.mark.parametrize("change", [rewritten, replaced, Path.unlink])
def test_an_image_that_changed_meanwhile_is_not_proved(
    change: Callable[[Path], None], image: Path, during: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    during(lambda: change(image))
    assert main(["boot", str(image)]) == 0
    assert not path_of(image).exists()
    message = f"{image}: was replaced or changed while it was booted, so there is no boot record of it\n"
    assert capsys.readouterr().err == message


def test_a_kernel_that_changed_meanwhile_is_not_proved(image: Path, tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(b"k")
    with Evidence() as evidence:
        evidence.hold([image, kernel])
        replaced(kernel)
        with pytest.raises(ChangedError, match="vmlinuz: was replaced"):
            evidence.record("amd64", "direct", {})


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that nobody can write to")
def test_a_folder_that_cannot_be_written_is_no_failed_boot(
    image: Path, during: Callable[..., None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even root cannot make a file in /proc; the image itself is reached through a link there."""
    during(nothing)
    descriptor = os.open(image, os.O_RDONLY)
    try:
        path = f"/proc/self/fd/{descriptor}"
        assert main(["boot", path]) == 0
    finally:
        os.close(descriptor)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{path}.boot.json: no boot record could be written: ")


def test_a_raw_image_has_no_record(
    image: Path, during: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """A raw image may be tens of gigabytes of holes, and it is not published."""
    image.write_bytes(bytes(512))
    during(nothing)
    assert main(["boot", str(image)]) == 0
    assert capsys.readouterr().err == ""
    assert not path_of(image).exists()


def test_a_record_lies_beside_the_name_that_was_given(image: Path, tmp_path: Path, during: Callable[..., None]) -> None:
    link = tmp_path / "linux-amd64.qcow2"
    link.symlink_to(image)
    during(nothing)
    assert main(["boot", str(link)]) == 0
    assert read(tmp_path / "linux-amd64.boot.json") is not None
    assert not path_of(image).exists()


def test_a_published_folder_stays_as_it_is(
    tmp_path: Path, during: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    out, target = proved(tmp_path / "out", "amd64"), tmp_path / "publish"
    assert main(["publish", "v1", "--from", str(out), "--to", str(target)]) == 0
    before = {path.name: path.read_bytes() for path in (target / "v1").iterdir()}
    during(nothing, "uefi")
    capsys.readouterr()
    image = target / "v1/image-linux-amd64.qcow2"
    assert main(["boot", str(image)]) == 0
    assert "is part of a publication" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (target / "v1").iterdir()} == before


def test_a_missing_image_is_an_error_of_its_own(tmp_path: Path) -> None:
    with Evidence() as evidence, pytest.raises(InputError, match="nowhere: No such file or directory"):
        evidence.hold([tmp_path / "nowhere"])


# ---- reading ---------------------------------------------------------------------------------------------------------

GOOD = BootRecord("linux-amd64.qcow2", "a" * 64, 5, "amd64", {"bios": {"accelerator": "tcg"}})


def changed(**values: Any) -> bytes:
    return json.dumps({**json.loads(GOOD.text()), **values}).encode()


def test_what_is_written_is_read(image: Path) -> None:
    assert keep(image, GOOD) == path_of(image)
    assert read(path_of(image)) == GOOD


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"1",
        b"\xff",
        b"[" * 100_000,
        changed(bootRecord=2),
        changed(boots={}),
        changed(boots=[]),
        changed(boots={"bios": "yes"}),
        changed(image=None),
        changed(image={"name": "x", "sha256": "a" * 63, "size": 1}),
        changed(image={"name": "x", "sha256": 5, "size": 1}),
        changed(image={"name": "x", "sha256": "a" * 64, "size": "many"}),
    ],
)
def test_what_is_no_record(data: bytes) -> None:
    assert parse(GOOD.text().encode()) == GOOD
    assert parse(data) is None


@pytest.mark.slow
@given(
    st.dictionaries(
        st.text(), st.text() | st.integers() | st.floats() | st.booleans() | st.none() | st.lists(st.text())
    )
)
def test_whatever_a_guest_says_can_be_written(values: dict[str, Any]) -> None:
    plain = guest_facts(values)
    record = BootRecord("x", "b" * 64, 1, "amd64", {"bios": {"agent": plain}})
    assert parse(record.text().encode("utf-8")) == record
    assert "NaN" not in {repr(value) for value in plain.values()}
    assert len(plain) <= 40


def test_a_guest_that_says_much_is_cut_short() -> None:
    values: dict[str, Any] = {f"key{number}": number for number in range(1000)}
    assert len(guest_facts(values)) == 40
    assert guest_facts({"a": "x" * 1000, "b" * 1000: 1}) == {"a": "x" * 200}
    assert guest_facts({"a": float("nan"), "b": float("inf"), "c": 1 << 60, "d": "\ud800"}) == {"d": "\ud800"}


# ---- to the letter ---------------------------------------------------------------------------------------------------


def test_the_text_of_a_record() -> None:
    assert GOOD.text() == (
        '{\n "arch": "amd64",\n "bootRecord": 1,\n "boots": {\n  "bios": {\n   "accelerator": "tcg"\n  }\n },\n'
        ' "image": {\n  "name": "linux-amd64.qcow2",\n  "sha256": "' + "a" * 64 + '",\n  "size": 5\n }\n}\n'
    )
    assert BootRecord("x", "a" * 64, 5, "amd64").boots == {}


def test_boots_of_the_same_bytes_gather_and_the_later_one_wins() -> None:
    later = replace(GOOD, image="other", boots={"bios": {"accelerator": "kvm"}, "direct": {}})
    older = replace(GOOD, size=9, boots={"bios": {"accelerator": "tcg"}, "uefi": {}})
    assert later.with_boots(older) == replace(later, boots={"bios": {"accelerator": "kvm"}, "direct": {}, "uefi": {}})
    assert later.with_boots(None) is later
    assert later.with_boots(replace(older, sha256="b" * 64)) is later


def test_the_evidence_of_a_boot(image: Path, tmp_path: Path) -> None:
    kernel, initramfs = tmp_path / "vmlinuz", tmp_path / "initramfs"
    kernel.write_bytes(b"k")
    initramfs.write_bytes(b"ii")
    with Evidence() as evidence:
        evidence.hold([image, kernel, initramfs])
        assert evidence.publishable
        record = evidence.record("arm64", "direct", {"time": "now", "kernel": "of the guest"})
    assert record == BootRecord(
        arch="arm64",
        boots={"direct": {"time": "now", "kernel": facts(kernel), "initramfs": facts(initramfs)}},
        **{"image": image.name, "sha256": facts(image)["sha256"], "size": facts(image)["size"]},
    )


@pytest.mark.parametrize(("start", "publishable"), [(b"QFI\xfb", True), (b"QFI", False), (b"\0QFI\xfb", False)])
def test_qcow2_files_alone_are_published(start: bytes, publishable: bool, image: Path) -> None:
    image.write_bytes(start)
    with Evidence() as evidence:
        evidence.hold([image])
        assert evidence.publishable is publishable


@pytest.mark.parametrize(
    ("name", "manifest", "publishable"),
    [
        ("disk.raw", {"image": {"name": "disk.raw"}}, True),
        ("disk.raw", {"image": {"name": "disk.qcow2"}}, False),
        ("disk.raw", {"image": {}}, False),
        ("disk.raw", {}, False),
        ("disk.raw", None, False),
        ("disk.img", {"image": {"name": "disk.img"}}, False),
    ],
)
def test_raw_files_are_published_if_a_build_has_made_them(
    name: str, manifest: dict[str, Any] | None, publishable: bool, tmp_path: Path
) -> None:
    raw = tmp_path / name
    raw.write_bytes(bytes(512))
    if manifest is not None:
        raw.with_suffix(".manifest.json").write_text(json.dumps({"files": {}, **manifest}))
    with Evidence() as evidence:
        evidence.hold([raw])
        assert evidence.publishable is publishable


def test_files_that_are_held_are_closed(image: Path, tmp_path: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - only their numbers matter
    with Evidence() as evidence:
        with pytest.raises(InputError):
            evidence.hold([image, tmp_path / "missing"])
        assert len(os.listdir("/proc/self/fd")) == len(before) + 1  # noqa: PTH208
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


@pytest.mark.parametrize(
    ("values", "plain"),
    [
        ({"a": (1 << 53) - 1, "b": 1 << 53, "c": -(1 << 53) + 1, "d": -(1 << 53)},
         {"a": (1 << 53) - 1, "c": -(1 << 53) + 1}),
        ({"a": True, "b": 0.5, "c": None, "d": [], "e": b"x", "f": float("-inf")}, {"a": True, "b": 0.5}),
        ({"a": "x" * 201, "b" * 200: 1, "c" * 201: 1}, {"a": "x" * 200, "b" * 200: 1}),
        ({f"k{number:03}": "v" for number in range(41, 0, -1)}, {f"k{number:03}": "v" for number in range(1, 41)}),
    ],
)  # fmt: skip
def test_what_is_kept_of_what_a_guest_says(values: dict[str, Any], plain: dict[str, Any]) -> None:
    assert guest_facts(values) == plain
    assert list(guest_facts(values)) == sorted(plain)


def test_a_folder_with_one_of_the_lists_is_no_publication(image: Path) -> None:
    for name in ("SHA256SUMS", "upload-manifest.json"):
        (image.parent / name).touch()
        kept = keep(image, GOOD)
        assert kept == (path_of(image) if name == "SHA256SUMS" else None)
    (image.parent / name).unlink()
    (image.parent / name).mkdir()
    assert keep(image, GOOD) == path_of(image)


def test_a_record_that_is_kept_takes_over_older_boots(image: Path) -> None:
    keep(image, GOOD)
    keep(image, replace(GOOD, boots={"uefi": {}}))
    assert read(path_of(image)) == replace(GOOD, boots={"bios": {"accelerator": "tcg"}, "uefi": {}})
    keep(image, replace(GOOD, sha256="b" * 64, boots={"uefi": {}}))
    assert read(path_of(image)) == replace(GOOD, sha256="b" * 64, boots={"uefi": {}})
    assert sorted(path.name for path in image.parent.iterdir()) == [path_of(image).name, image.name]


def test_a_record_has_at_most_a_mib(image: Path) -> None:
    text = GOOD.text()
    path_of(image).write_text(text + " " * ((1 << 20) - len(text)))
    assert read(path_of(image)) == GOOD
    path_of(image).write_text(text + " " * ((1 << 20) + 1 - len(text)))
    assert read(path_of(image)) is None
    assert read(image.parent / "missing") is None


@pytest.mark.parametrize(
    "values",
    [
        {"image": {"name": "x", "sha256": "A" * 64, "size": 1}},
        {"image": {"sha256": "a" * 64, "size": 1}},
        {"image": {"name": "x", "sha256": "a" * 64}},
        {"boots": {"bios": {}, "uefi": None}},
        {"boots": None},
        {"bootRecord": "1"},
    ],
)
def test_records_that_lack_something(values: dict[str, Any]) -> None:
    assert parse(changed(**values)) is None


def test_a_record_of_other_types_is_made_plain() -> None:
    image = {"name": 5, "sha256": "a" * 64, "size": 1.5}
    assert parse(changed(image=image, arch=7)) == replace(GOOD, image="5", size=1, arch="7")


def test_what_boot_prints_as_json(image: Path, during: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    """What the agent reports cannot replace what imgkit itself has measured."""
    during(nothing)
    assert main(["boot", str(image), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {
        **BEAT.extra,
        "image": str(image),
        "stages": {},
        "secondsToReady": 9.5,
        "secondsToSettled": 13.5,
        "accelerator": "tcg",
        "memoryMiB": 4096,
        "poweredOffCleanly": True,
    }
    assert err == ""
