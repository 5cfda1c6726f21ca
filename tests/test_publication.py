"""The values of a publication: names, addresses, indexes, and the steps of its folder that no command shows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imgkit.errors import InputError, UsageError
from imgkit.image.bootrecord import BootRecord
from imgkit.publish import folder, sources
from imgkit.publish.publication import (
    Publication,
    PublishedArchitecture,
    PublishedFile,
    check_base_url,
    check_version,
    environment,
    index,
    parse_index,
    texts,
    upload_manifest,
)

HASH = "ab" * 32


def file(name: str, size: int = 5) -> PublishedFile:
    return PublishedFile(name, HASH, size)


AMD64 = PublishedArchitecture(
    "amd64", "id", file("image-linux-amd64.qcow2"), file("image-linux-amd64.manifest.json"), file("vmlinuz-a"),
    file("initramfs-a"), file("image-linux-amd64.boot.json"), ("bios", "uefi"),
)  # fmt: skip
ARM64 = PublishedArchitecture("arm64", "id2", file("image-linux-arm64.qcow2", 7), file("m.json"))
WHOLE = Publication("v1", "https://a.example/b", "2026-01-02T03:04:05.678Z", (AMD64, ARM64))


def test_the_texts_of_a_publication_in_the_order_of_their_writing() -> None:
    names = [
        "image-linux-amd64.boot.json", "image-linux-amd64.manifest.json", "image-linux-amd64.qcow2",
        "image-linux-arm64.qcow2", "image-linux-x64.qcow2", "initramfs-a", "m.json", "vmlinuz-a",
    ]  # fmt: skip
    written = texts(WHOLE)
    lists = ["SHA256SUMS", "publish.env", "upload-manifest.json", "index.json"]
    assert list(written) == [*(f"{name}.sha256" for name in names), *lists]
    assert written["m.json.sha256"] == f"{HASH}  m.json\n"
    assert written["SHA256SUMS"] == "".join(f"{HASH}  {name}\n" for name in names)
    assert written["index.json"] == json.dumps(index(WHOLE), indent=2) + "\n"
    assert written["upload-manifest.json"] == json.dumps(upload_manifest(WHOLE), indent=2) + "\n"
    unusual = texts(replace(WHOLE, generated_at="ä"))
    assert '"generatedAt": "ä"' in unusual["index.json"]


def test_the_variables_to_the_letter() -> None:
    assert environment(WHOLE).splitlines() == [
        "# Version v1, for the environment of the host application.",
        "COWORK_SANDBOX_BASE_URL=https://a.example/b",
        "COWORK_SANDBOX_IMAGE_VERSION=v1",
        f"COWORK_SANDBOX_IMAGE_SHA256_AMD64={HASH}",
        "COWORK_SANDBOX_IMAGE_URL_AMD64=https://a.example/b/v1/image-linux-amd64.qcow2",
        "COWORK_SANDBOX_KERNEL_URL_AMD64=https://a.example/b/v1/vmlinuz-a",
        "COWORK_SANDBOX_INITRD_URL_AMD64=https://a.example/b/v1/initramfs-a",
        f"COWORK_SANDBOX_IMAGE_SHA256_ARM64={HASH}",
        "COWORK_SANDBOX_IMAGE_URL_ARM64=https://a.example/b/v1/image-linux-arm64.qcow2",
    ]
    assert environment(replace(WHOLE, base_url=None)).splitlines() == [
        "# Version v1, for the environment of the host application.",
        "# The addresses are missing: publish again with --base-url or COWORK_SANDBOX_BASE_URL.",
        "COWORK_SANDBOX_IMAGE_VERSION=v1",
        f"COWORK_SANDBOX_IMAGE_SHA256_AMD64={HASH}",
        f"COWORK_SANDBOX_IMAGE_SHA256_ARM64={HASH}",
    ]
    assert environment(WHOLE).endswith("\n")


@pytest.mark.parametrize("publication", [WHOLE, replace(WHOLE, base_url=None, architectures=(ARM64,))])
def test_an_index_survives_its_journey(publication: Publication) -> None:
    assert parse_index(json.dumps(index(publication)).encode(), "x") == publication


def changed(*keys: Any, value: Any = ...) -> bytes:
    """Return an index with a value changed, or left out."""
    body: Any = json.loads(json.dumps(index(WHOLE)))
    place = body
    for key in keys[:-1]:
        place = place[key]
    if value is ...:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    return json.dumps(body).encode()


AMD = ("architectures", "amd64")


@pytest.mark.parametrize(
    "data",
    [
        b"", b"[]", b"null", b"{}",
        changed("index", value=2), changed("index"), changed("version", value="../v"), changed("version", value=5),
        changed("baseUrl", value="ftp://x"), changed("baseUrl", value=""), changed("baseUrl"),
        changed("generatedAt"), changed("architectures"), changed("architectures", value={"mips": {}}),
        changed(*AMD, "image"), changed(*AMD, "manifest"), changed(*AMD, "buildId"), changed(*AMD, "provedWith"),
        changed(*AMD, "kernel", value=None), changed(*AMD, "image", "name", value="../x"),
        changed(*AMD, "image", "name", value=""), changed(*AMD, "image", "name", value=".x"),
        changed(*AMD, "image", "sha256", value="A" * 64), changed(*AMD, "image", "sha256", value=HASH + "0"),
        changed(*AMD, "image", "size", value="many"), changed(*AMD, "image", "size"),
    ],
)  # fmt: skip
def test_indexes_that_cannot_be_added_to(data: bytes) -> None:
    with pytest.raises(InputError) as caught:
        parse_index(data, "v1/index.json")
    assert caught.value.message == "v1/index.json: not an index that this imgkit can add to"
    assert caught.value.hint == "choose another version, or remove that folder"


@pytest.mark.parametrize(
    ("keys", "known"), [(("kernel",), "kernel"), (("initramfs",), "initramfs"), (("record",), "record")]
)
def test_some_files_may_be_missing_in_an_index(keys: tuple[str], known: str) -> None:
    found = parse_index(changed(*AMD, *keys), "x").architectures[0]
    without: Any = {known: None}
    assert found == replace(AMD64, **without)


def test_architectures_are_sorted_whatever_their_order() -> None:
    body = index(WHOLE)
    body["architectures"] = dict(reversed(body["architectures"].items()))
    assert [found.arch for found in parse_index(json.dumps(body).encode(), "x").architectures] == ["amd64", "arm64"]


@pytest.mark.parametrize("text", ["1", "a1", "1" * 64, "1+b", "v1_2-3.4"])
def test_what_a_version_is(text: str) -> None:
    assert check_version(text) == text


@pytest.mark.parametrize("text", ["", "a", "1" * 65, "1.", "-1", "1..2", "1/2", "1\n"])
def test_what_a_version_is_not(text: str) -> None:
    rule = "letters, digits, '.', '_', '-' and '+' with at least one digit, the first and last no sign, no '..'"
    with pytest.raises(UsageError) as caught:
        check_version(text)
    assert (caught.value.message, caught.value.hint) == (f"{text!r} is not a version", f"such as v0.1.5: {rule}")


@pytest.mark.parametrize(
    ("text", "url"),
    [("https://a/b//", "https://a/b"), ("http://a", "http://a"), ("http://[::1]:8/%20", "http://[::1]:8/%20")],
)
def test_base_urls(text: str, url: str) -> None:
    assert check_base_url(text) == url


@pytest.mark.parametrize("text", ["", "https://", "a", "https://u@a", "https://a?b", "https://[a"])
def test_base_urls_that_cannot_be_used(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_base_url(text)
    assert caught.value.message == f"base URL {text!r} cannot be used"
    assert caught.value.hint == (
        "such as https://images.example/sandbox: http or https, no user, no question mark, other signs as %XX"
    )


# ---- the folder ------------------------------------------------------------------------------------------------------


def record(*firmwares: str, sha256: str = HASH) -> BootRecord:
    return BootRecord("x", sha256, 5, "amd64", {firmware: {"time": firmware} for firmware in firmwares})


def test_a_published_record_takes_further_firmware_only() -> None:
    assert folder._merged(None, None) is None
    assert folder._merged(None, record("bios")) == record("bios")
    assert folder._merged(record("bios"), None) == record("bios")
    again = replace(record("bios"), boots={"bios": {"time": "later"}})
    assert folder._merged(record("bios"), again) == record("bios")
    assert folder._merged(record("bios"), record("uefi")) == record("uefi", "bios")
    both = replace(again, boots={**again.boots, "uefi": {}})
    assert folder._merged(record("bios"), both) == replace(both, boots={"bios": {"time": "bios"}, "uefi": {}})


def request(tmp_path: Path, **changes: Any) -> folder.PublishRequest:
    made = folder.PublishRequest({}, tmp_path, "v1", None, "later")
    return replace(made, **changes)


def test_a_publication_keeps_its_time_and_its_address(tmp_path: Path) -> None:
    assert folder._combined(request(tmp_path), WHOLE, []) is WHOLE
    assert folder._combined(request(tmp_path), WHOLE, [AMD64]) is WHOLE
    assert folder._combined(request(tmp_path), None, [ARM64, AMD64]) == Publication("v1", None, "later", (AMD64, ARM64))
    other = folder._combined(request(tmp_path, base_url="http://c"), WHOLE, [])
    assert other == replace(WHOLE, base_url="http://c", generated_at="later")
    less = replace(AMD64, kernel=None, initramfs=None)
    assert folder._combined(request(tmp_path), WHOLE, [less]) is WHOLE, "files that are missing now stay"
    rebuilt = replace(AMD64, build_id="other")
    assert folder._combined(request(tmp_path), WHOLE, [rebuilt]).generated_at == "later"


def test_a_folder_of_other_files_is_no_publication(tmp_path: Path) -> None:
    assert folder._published(tmp_path / "missing", []) is None
    assert folder._published(tmp_path, []) is None, "an empty folder can be used"
    (tmp_path / "x").touch()
    with pytest.raises(InputError) as caught:
        folder._published(tmp_path, [])
    assert caught.value.message == f"{tmp_path}: has files, but not the index.json of a publication"
    assert caught.value.hint == "choose another version, or remove that folder"


def test_every_listed_file_is_there_or_about_to_be(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(json.dumps(index(replace(WHOLE, architectures=(ARM64,)))))
    (tmp_path / "m.json").touch()
    found = folder._published(tmp_path, ["image-linux-arm64.qcow2"])
    assert found is not None
    assert found.architectures == (ARM64,)
    with pytest.raises(InputError) as caught:
        folder._published(tmp_path, [])
    image = tmp_path / "image-linux-arm64.qcow2"
    assert caught.value.message == f"{image}: {tmp_path / 'index.json'} lists it, but it does not exist"
    (tmp_path / "index.json").write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(InputError, match="is larger than the 1048576 bytes"):
        folder._published(tmp_path, [])


def test_files_that_are_known_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, staging = tmp_path / "target", tmp_path / "staging"
    for place in (target, staging):
        place.mkdir()
        (place / "same").write_text("same")
    (staging / "new").write_text("new")
    known = folder._identical(target, staging, {})
    status = (target / "same").stat()
    assert known == {"same": (status.st_ino, 4, status.st_mtime_ns)}
    monkeypatch.setattr(folder, "_equal", lambda first, second: pytest.fail(f"{first} was read"))
    assert folder._identical(target, staging, known) == known
    monkeypatch.undo()
    (target / "same").write_text("other")
    with pytest.raises(UsageError) as caught:
        folder._identical(target, staging, known)
    assert caught.value.message == f"{target / 'same'}: another file is published under this name"
    assert caught.value.hint == "programs keep what they downloaded of a version: publish it as a new version"


def test_only_texts_that_differ_are_written(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "staging").mkdir()
    (tmp_path / "target/same").write_text("same")
    (tmp_path / "target/other").write_bytes(b"\xff")
    written = folder._write_texts({"same": "same", "other": "x", "new": "y"}, tmp_path / "target", tmp_path / "staging")
    assert written == ["other", "new"]
    assert {path.name: path.read_text() for path in (tmp_path / "staging").iterdir()} == {"other": "x", "new": "y"}


def test_a_copy_is_of_what_was_read(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * ((1 << 20) + 5))
    copied = sources._copy(source, tmp_path / "target")
    assert (copied.name, copied.size) == ("target", (1 << 20) + 5)
    assert (tmp_path / "target").read_bytes() == source.read_bytes()
    with pytest.raises(FileExistsError):
        sources._copy(source, tmp_path / "target")
    with pytest.raises(InputError) as caught:
        sources._copy(tmp_path / "missing", tmp_path / "x")
    assert caught.value.message == f"{tmp_path / 'missing'}: No such file or directory"


@pytest.mark.parametrize(
    ("firmware", "booted", "published", "proves"),
    [
        ("bios", None, file("k"), True), ("direct", None, file("k"), False), ("direct", None, None, False),
        ("direct", {"sha256": HASH}, file("k"), True), ("direct", {"sha256": "0"}, file("k"), False),
        ("direct", {}, file("k"), False), ("direct", "x", file("k"), False), ("direct", {"sha256": "0"}, None, True),
        ("bios", {"sha256": "0"}, file("k"), False),
    ],
)  # fmt: skip
def test_which_boots_prove_a_file(firmware: str, booted: object, published: PublishedFile | None, proves: bool) -> None:
    assert sources._proves(firmware, booted, published) is proves


@pytest.mark.parametrize(("stated", "expected"), [({"sha256": "00"}, "00"), ({}, None), (None, None), ("x", None)])
def test_a_file_must_be_the_manifests(stated: object, expected: str | None) -> None:
    with pytest.raises(InputError) as caught:
        sources._check(Path("s"), file("k"), stated, Path("m"))
    assert caught.value.message == f"s: is not the one of m: SHA-256 {HASH} instead of {expected}"
    assert caught.value.hint == "it was changed after the build, or comes from another one: build it again"
    sources._check(Path("s"), file("k"), {"sha256": HASH}, Path("m"))
