"""What the commands about images print, options that several commands have, and the end of a command."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from imgkit.api import applianceoptions, inspecting, verifying
from imgkit.api.inspecting import DiskContents, ListedPackage
from imgkit.api.verifying import VerifiedImage
from imgkit.cli import main
from imgkit.cli.command import Invocation
from imgkit.cli.commandlist import COMMANDS, command
from imgkit.cli.commands import inspect, verify
from imgkit.cli.hostchecks import HostCheck
from imgkit.cli.options import environmentoptions, machineoptions, readoptions, repeatedoptions
from imgkit.cli.parser import parse, parsers
from imgkit.engines.engineerrors import LimitError
from imgkit.engines.reading import FilesystemUsage
from imgkit.errors import InputError, UsageError
from tests.commandvariables import no_variables  # noqa: F401 - an autouse fixture

MIB = 1 << 20


# ---- verify ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def raw_image(tmp_path: Path) -> Path:
    """Return a raw image, and the manifest beside it."""
    image = tmp_path / "linux-amd64.raw"
    image.write_bytes(bytes(510) + b"\x55\xaa")
    digest = hashlib.sha256(image.read_bytes()).hexdigest()
    body = {"arch": "amd64", "image": {"sha256": digest, "size": 512}, "files": {}}
    (tmp_path / "linux-amd64.manifest.json").write_text(json.dumps(body))
    return image


def test_an_image_that_is_as_built(
    raw_image: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verifying, "image_info", lambda image: "info")
    assert main.main(["verify", str(raw_image)]) == 0
    assert capsys.readouterr().out == f"{raw_image}: the very file that was built\n"
    other = raw_image.with_name("other.json")
    raw_image.with_name("linux-amd64.manifest.json").rename(other)
    assert main.main(["verify", str(raw_image), "--manifest", str(other)]) == 0
    assert main.main(["verify", str(raw_image)]) == 4
    assert sorted(path.name for path in raw_image.parent.iterdir()) == ["linux-amd64.raw", "other.json"]


@pytest.mark.parametrize(
    ("count", "last", "words"),
    [(1, "line 0", "1 difference"), (50, "line 49", "50 differences"), (51, "… and 1 more", "51 differences")],
)
def test_fifty_differences_are_listed(count: int, last: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    faults = tuple(f"line {number}" for number in range(count))
    error = verify._failure(VerifiedImage(Path("i"), Path("m"), ("not printed",), faults), listed=True)
    assert error.message == f"i: is not as m says: {words}"
    lines = capsys.readouterr().out.splitlines()
    assert (lines[-1], len(lines)) == (last, min(count, 51))


@pytest.mark.parametrize(("size", "status"), [(512, 0), (513, 4)])
def test_the_result_of_verify_as_json(
    size: int, status: int, raw_image: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All differences are in it, and nothing else is printed to standard output."""
    (raw_image.parent / "kernel").write_bytes(b"k" * (size - 511))
    manifest = raw_image.with_name("linux-amd64.manifest.json")
    boot = {"kernel": {"name": "kernel", "sha256": hashlib.sha256(b"k").hexdigest(), "size": 1}}
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "boot": boot}))
    monkeypatch.setattr(verifying, "image_info", lambda image: "info")
    assert main.main(["verify", str(raw_image), "--json"]) == status
    same = f"{raw_image}: the very file that was built"
    faults = ["kernel: is not the kernel that was built"] if status else []
    proved = [same] if status else [same, "kernel: the very file that was built"]
    report = {"image": str(raw_image), "manifest": str(manifest), "proved": proved, "faults": faults}
    printed = json.loads(capsys.readouterr().out)
    assert (printed["done"] if status else [printed]) == [report]
    assert ("error" in printed) is bool(status)


@pytest.mark.parametrize("writable", [True, False])
def test_how_the_disk_of_an_image_is_opened(
    writable: bool, raw_image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With scratch files beside it if possible, as a raw disk, whatever it begins with."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setenv("TMPDIR", str(elsewhere))
    opened = []

    @contextmanager
    def open_image(*arguments: Any, info: object) -> Iterator[str]:
        opened.append((*arguments, info))
        yield "reader"

    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: writable if path == tmp_path else access(path, mode))
    monkeypatch.setattr(verifying, "open_image", open_image)
    monkeypatch.setattr(verifying, "appliance_options", lambda: "options")
    with verifying.open_disk(raw_image, cast(Any, "limits")) as reader:
        assert cast(object, reader) == "reader"
    ((disk, folder, options, limits, info),) = opened
    assert (disk, options, limits) == (raw_image, "options", "limits")
    assert folder.parent == (tmp_path if writable else elsewhere)
    assert folder.name.startswith(".imgkit-")
    assert (info.format, info.virtual_size, info.file_size) == ("raw", 512, raw_image.stat().st_blocks * 512)


# ---- inspect ---------------------------------------------------------------------------------------------------------


def test_an_image_of_which_little_is_known() -> None:
    usage = FilesystemUsage(size=1, used=0, free=1, inodes=1, inodes_used=0)
    listed = tuple(ListedPackage(name, "1", size) for name, size in (("b", 150_000), ("a", 150_000), ("c", 10**7)))
    image = DiskContents("raw", MIB, MIB + 1, "G", 0, (), usage, {}, (), listed)
    assert inspect.text(Path("x"), image).splitlines() == [
        "x: raw, 1 MiB, 1 MB on disk",
        "system     unknown",
        "kernel     none",
        "root       0 MiB of 1 MiB used, 0 inodes",
        "",
        " nr  name         filesystem     start       size  uuid",
        "",
        "3 packages, the largest first",
        "     10.0 MB  c-1",
        "      0.1 MB  a-1",
        "      0.1 MB  b-1",
    ]
    two = replace(image, kernels=("6.1", "6.2"))
    assert "kernel     6.1, 6.2" in inspect.text(Path("x"), two)


def test_lists_of_files_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspecting, "_MOST_LINES", 3)
    database = "P:a\nF:bin\nM:0:0:755\nR:sh\na:0:0:755\nZ:Q1\nV:1\n\nP:b"
    assert inspecting._without_files(Path("x"), database) == "P:a\nV:1\n\nP:b"
    with pytest.raises(LimitError, match="more than 3 lines besides lists of files"):
        inspecting._without_files(Path("x"), database + "\n")


# ---- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "timeout", "expected"), [(None, None, (None, None)), ("2M", 7.5, (2 * MIB, 7.5)), ("5", None, (5, None))]
)
def test_limits_that_are_given(limit: str | None, timeout: float | None, expected: tuple[object, object]) -> None:
    assert readoptions.given_limits(argparse.Namespace(limit=limit, timeout=timeout)) == expected


@pytest.mark.parametrize(
    ("limit", "timeout", "message"),
    [
        (None, 0.0, "--timeout 0: not a number of seconds to wait"),
        (None, -1.5, "--timeout -1.5: not a number of seconds to wait"),
        (None, float("inf"), "--timeout inf: not a number of seconds to wait"),
        (None, float("nan"), "--timeout nan: not a number of seconds to wait"),
        ("", None, "--limit: "),
    ],
)
def test_limits_that_are_none(limit: str | None, timeout: float | None, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        readoptions.given_limits(argparse.Namespace(limit=limit, timeout=timeout))
    assert caught.value.message.startswith(message)


@pytest.mark.parametrize(("found", "accelerator"), [("kvm", "kvm"), ("hvf", "tcg"), ("tcg", "tcg")])
def test_how_an_appliance_runs_on_this_host(found: str, accelerator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(applianceoptions, "probe", lambda arch: SimpleNamespace(name=found))
    monkeypatch.setenv("IMGKIT_CACHE", "/cache")
    options = applianceoptions.appliance_options()
    assert (options.accelerator, options.cache) == (accelerator, Path("/cache/appliance"))
    assert (options.launch_timeout, options.memory, options.cpus) == (120.0, 1024, 1)
    monkeypatch.setenv("IMGKIT_LAUNCH_TIMEOUT", "7.5")
    assert applianceoptions.appliance_options().launch_timeout == 7.5


@pytest.mark.parametrize("given", ["0", "-1", "inf", "nan", "soon"])
def test_launch_timeouts_that_are_none(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMGKIT_LAUNCH_TIMEOUT", given)
    with pytest.raises(UsageError, match=rf"^IMGKIT_LAUNCH_TIMEOUT={given}: not a number of seconds$"):
        applianceoptions._launch_timeout()
    monkeypatch.setenv("IMGKIT_LAUNCH_TIMEOUT", "")
    assert applianceoptions._launch_timeout() == 120.0


def test_pairs_may_have_further_signs_of_equality() -> None:
    assert repeatedoptions.pairs(["A=b=c", "B="], "--env", "K=V") == {"A": "b=c", "B": ""}
    for word in ("A", "=b", ""):
        with pytest.raises(UsageError) as caught:
            repeatedoptions.pairs([word], "--env", "K=V")
        assert caught.value.message == f"--env {word}: not of the form K=V"


def test_a_share_is_named_once_and_exists(tmp_path: Path) -> None:
    folder = str(tmp_path)
    assert machineoptions._folders([f"a={folder}:ro", f"b={folder}:rw", f"c={folder}"], {"w": tmp_path}) == (
        {"w": tmp_path, "a": tmp_path, "b": tmp_path, "c": tmp_path},
        {"a"},
    )
    (tmp_path / "x:ro").mkdir()
    assert machineoptions._folders([f"a={folder}/x:ro:rw"], {}) == ({"a": tmp_path / "x:ro"}, set())
    for words, message in (
        ([f"a={folder}", f"a={folder}"], f"--share a={folder}: there is a share a already"),
        ([f"w={folder}"], f"--share w={folder}: there is a share w already"),
        ([f"a={folder}/none"], f"{folder}/none: no such folder"),
        (["a="], "--share a=: no folder given"),
        (["a"], "--share a: not of the form TAG=DIR[:ro]"),
    ):
        with pytest.raises(UsageError) as caught:
            machineoptions._folders(words, {"w": tmp_path})
        assert caught.value.message == message


def test_secrets_are_read_from_their_files(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"value\n")
    assert environmentoptions.secrets([f"A={path}"]) == {"A": b"value\n"}
    with pytest.raises(UsageError) as caught:
        environmentoptions.secrets([f"A={path}x"])
    assert caught.value.message == f"--secret A: {path}x: No such file or directory"


def test_words_of_a_guest_command_come_after_the_dashes() -> None:
    options = parse(["run", "x", "a", "--", "ls", "-l", "--", "b"])
    assert options.guest_command == ["a", "ls", "-l", "--", "b"]
    assert parse(["run", "x", "a"]).guest_command == ["a"]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_keeps_the_lines_of_a_description(name: str) -> None:
    description = (command(name).__doc__ or "").strip()
    assert description
    assert f"\n\n{description}\n\n" in parsers()[1][name].format_help()


def test_the_options_that_all_commands_have(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("imgkit")
    before = logger.level, logger.handlers
    try:
        for words, level in (([], logging.INFO), (["-v"], logging.DEBUG), (["-q"], logging.ERROR)):
            main._configure_logging(parse(["doctor", *words]))
            assert logger.level == level
            assert len(logger.handlers) == 1
    finally:
        logger.level, logger.handlers = before


def test_an_invocation_has_no_results_at_first() -> None:
    first, second = Invocation(), Invocation()
    first.done.append({})
    assert (second.done, second.words) == ([], ())


# ---- the end of a command --------------------------------------------------------------------------------------------


class _FullOutput(io.StringIO):
    """Standard output on a disk that is full, which shows when it is written out."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self._error = error

    def flush(self) -> None:
        raise self._error


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (OSError(28, "No space left on device"), 5, "error: output: no space left\n"),
        (OSError(122, "Disk quota exceeded", "x"), 5, "error: x: no space left\n"),
        (BrokenPipeError(), 0, ""),
    ],
)
def test_output_that_cannot_be_written_in_the_end(
    error: OSError, status: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("imgkit.cli.commands.doctor.examine", lambda out: [HostCheck("x", True, "y", "z")])
    monkeypatch.setattr(sys, "stdout", _FullOutput(error))
    assert main.main(["doctor"]) == status
    assert capsys.readouterr().err == said


def test_the_folder_of_a_console_must_exist(
    raw_image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machineoptions, "image_info", lambda image: None)
    console = tmp_path / "none" / "log"
    assert main.main(["boot", str(raw_image), "--console", str(console)]) == 2
    assert capsys.readouterr().err == f"error: --console {console}: {console.parent} is not a folder\n"
    for timeout in ("0", "-1", "inf", "nan"):
        assert main.main(["boot", str(raw_image), "--timeout", timeout]) == 2
        assert capsys.readouterr().err == f"error: --timeout {timeout}: not a number of seconds to wait\n"


@pytest.mark.parametrize("missing", ["kernel", "initramfs", "both"])
def test_a_direct_boot_needs_both_files(missing: str, tmp_path: Path) -> None:
    image = tmp_path / "linux-amd64.qcow2"
    names = {"kernel": "vmlinuz", "initramfs": "initramfs"}
    for role, name in names.items():
        if missing not in (role, "both"):
            (tmp_path / f"{name}-virt-amd64").touch()
    with pytest.raises(InputError) as caught:
        machineoptions._beside(image, "amd64")
    first = names["initramfs" if missing == "initramfs" else "kernel"]
    assert caught.value.message == f"{tmp_path}/{first}-*-amd64: not there"
    assert caught.value.hint == "a build puts it beside the image"
