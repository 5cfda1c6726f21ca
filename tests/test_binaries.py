"""Binaries of a payload: their platforms, missing libraries, the messages about them, and which are left out."""

from __future__ import annotations

import logging
import struct
from collections.abc import Collection, Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkit.errors import InputError
from imgkit.rootfs.binaries import elf
from imgkit.rootfs.binaries.elf import ET_EXEC, ET_REL
from imgkit.rootfs.binaries.examine import (
    BinaryFindings,
    DoubtfulBinary,
    ForeignBinary,
    MissingLibrary,
    examine,
    platforms,
    prune,
)
from imgkit.rootfs.binaries.formats import foreign_system
from imgkit.rootfs.binaries.libraries import check_architecture
from imgkit.rootfs.binaries.policy import Policy, apply_policy
from imgkit.tree import HardLink, Inline, Tree
from tests.elves import make_elf

TOP = "opt/agent-runner"
LOADER = "lib/ld-musl-x86_64.so.1"
GLIBC = "/lib64/ld-linux-x86-64.so.2"
MACH_O = bytes.fromhex("cffaedfe") + bytes(60)
FAT = bytes.fromhex("cafebabe00000002") + bytes(60)
JAVA = bytes.fromhex("cafebabe00000041") + bytes(60)


def make_pe(*, subsystem: int = 3, wide: bool = True, clr: bool = False, dos: bytes = b"MZ") -> bytes:
    """Return the headers of a PE file, as the specification lays them out; it has no sections."""
    size = 112 if wide else 96
    optional = bytearray(size + 16 * 8)
    struct.pack_into("<H", optional, 0, 0x20B if wide else 0x10B)
    struct.pack_into("<H", optional, 68, subsystem)
    if clr:
        struct.pack_into("<II", optional, size + 14 * 8, 0x2000, 72)
    return dos.ljust(60, b"\0") + struct.pack("<I", 128) + bytes(64) + b"PE\0\0" + bytes(20) + bytes(optional)


@pytest.mark.parametrize(
    ("data", "system"),
    [
        (MACH_O, "macOS"),
        (bytes.fromhex("feedface") + bytes(40), "macOS"),
        (FAT, "macOS"),
        (make_pe(), "Windows"),
        (make_pe(wide=False, subsystem=2), "Windows"),
        (JAVA, None),
        (FAT[:8], "macOS"),
        (FAT[:7], None),
        (FAT[:4] + bytes([0, 0, 0, 39]), "macOS"),
        (FAT[:4] + bytes([0, 0, 0, 40]), None),
        (FAT[:4] + bytes(4), None),
        (make_pe(subsystem=1), "Windows"),
        (make_pe(subsystem=4), None),
        (bytes.fromhex("cafebabe"), None),
        (make_pe(clr=True), None),  # an assembly of .NET
        (make_pe(clr=True, wide=False), None),
        (make_pe(subsystem=10), None),  # a program for UEFI, which a Linux kernel is as well
        (make_pe(dos=b"MZqFpD='"), None),
        (make_pe()[:130], None),
        (b"MZ and more text than a header has, but nothing that is one. MZ MZ MZ MZ", None),
        (make_elf(), None),
        (b"", None),
        (b"#!/bin/sh\n", None),
    ],
)
def test_systems_by_their_formats(data: bytes, system: str | None) -> None:
    assert foreign_system(Inline(data), data[: elf.HEADER_SIZE]) == system


@pytest.mark.parametrize(("wide", "size"), [(True, 112), (False, 96)])
def test_an_assembly_has_anything_in_its_own_directory(wide: bool, size: int) -> None:
    """It is the fifteenth of the data directories, of 8 bytes each, which follow the optional header's other fields."""
    data = make_pe(wide=wide)
    optional = 128 + 24
    neutral = []
    for place in range(optional + 70, len(data)):
        changed = data[:place] + b"\x01" + data[place + 1 :]
        if foreign_system(Inline(changed), changed[: elf.HEADER_SIZE]) is None:
            neutral.append(place - optional - size)
    assert neutral == list(range(14 * 8, 15 * 8))


@pytest.mark.parametrize(("length", "system"), [(128 + 24 + 96, "Windows"), (128 + 24 + 95, None)])
def test_the_shortest_program_of_windows(length: int, system: str | None) -> None:
    data = make_pe(wide=False)[:length]
    assert foreign_system(Inline(data), data[: elf.HEADER_SIZE]) == system


def test_the_place_of_the_headers_is_stated_at_60() -> None:
    """The first 64 bytes have it, and the headers may follow at once."""
    start = make_pe()[:60] + struct.pack("<I", 64)
    data = start + make_pe()[128:]
    assert foreign_system(Inline(data), data[:64]) == "Windows"
    assert foreign_system(Inline(data), data[:63]) is None


@given(st.binary(max_size=300), st.sampled_from([b"", b"MZ", FAT[:4], MACH_O[:4], b"\x7fELF", make_pe()[:140]]))
def test_any_bytes_are_judged(data: bytes, start: bytes) -> None:
    tree = small_tree()
    tree.write(f"{TOP}/a.node", start + data)
    findings = look(tree)
    assert len([*findings.foreign, *findings.doubtful]) + len(findings.missing_libraries) <= 20


def small_tree() -> Tree:
    tree = Tree()
    tree.write(LOADER, make_elf(soname="ld"), mode=0o755)
    tree.write("usr/lib/libz.so.1", make_elf())
    tree.mkdir(TOP)
    return tree


def look(tree: Tree, machine: str = "x86_64") -> BinaryFindings:
    return examine(tree, machine, [path for path, _ in tree.walk(TOP) if path != TOP])


def examined(data: bytes, name: str = "tool") -> BinaryFindings:
    tree = small_tree()
    tree.write(f"{TOP}/{name}", data)
    return look(tree)


@pytest.mark.parametrize("name", ["tool", "a.node", "lib/libx.so.1", "prebuilds/any/a.node"])
@pytest.mark.parametrize(
    ("data", "platform"),
    [
        (make_elf("aarch64"), "aarch64"),
        (make_elf("x86", kind=ET_EXEC), "x86"),
        (MACH_O, "macOS"),
        (make_pe(), "Windows"),
        (make_elf(interpreter=GLIBC), "glibc"),
        (make_elf(needed=["libm.so.6", "libc.so.6"]), "glibc"),
        (make_elf(needed=["ld-linux-x86-64.so.2"]), "glibc"),
        (make_elf(interpreter="/system/bin/linker64"), "Android"),
        (make_elf()[:7] + b"\x09" + make_elf()[8:], "FreeBSD"),
    ],
)
def test_other_platforms(name: str, data: bytes, platform: str) -> None:
    assert examined(data, name) == BinaryFindings(foreign=(ForeignBinary(f"{TOP}/{name}", len(data), platform),))


@pytest.mark.parametrize(
    ("number", "system"),
    [(2, "NetBSD"), (6, "Solaris"), (7, "AIX"), (9, "FreeBSD"), (12, "OpenBSD"), (0, None), (3, None), (13, None)],
)
def test_systems_that_the_header_states(number: int, system: str | None) -> None:
    """EI_OSABI of the gABI, chapter 4; 3 is Linux, and most files have 0."""
    data = make_elf(kind=ET_EXEC)
    findings = examined(data[:7] + bytes([number]) + data[8:])
    assert [binary.platform for binary in findings.foreign] == ([system] if system else [])


@pytest.mark.parametrize(
    ("interpreter", "system"),
    [("/system/bin/linker64", "Android"), ("/libexec/ld-elf.so.1", "FreeBSD"), ("/usr/libexec/ld.so", "OpenBSD")],
)
def test_systems_that_the_interpreter_belongs_to(interpreter: str, system: str) -> None:
    assert [binary.platform for binary in examined(make_elf(interpreter=interpreter)).foreign] == [system]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("static", make_elf(kind=ET_EXEC)),
        ("tool", make_elf(interpreter="/" + LOADER, needed=["libz.so.1", "libc.musl-x86_64.so.1"])),
        ("a.node", make_elf(needed=["libz.so.1", "libc.so"])),
        ("libunused.so", make_elf(needed=["libnothing.so.1"])),  # until something needs it
        ("reader.o", make_elf("s390x", kind=ET_REL)),
        ("messages.ko", b"Korean"),
        ("index.js", b"code"),
        ("empty.node", b""),
        ("Main.class", JAVA),
    ],
)
def test_what_is_fine(name: str, data: bytes) -> None:
    assert examined(data, name) == BinaryFindings()


def test_glibc_is_no_other_platform_where_something_stands_in_for_it() -> None:
    tree = small_tree()
    tree.symlink("lib64/ld-linux-x86-64.so.2", "/" + LOADER)
    tree.write(f"{TOP}/tool", make_elf(interpreter=GLIBC, needed=["libc.so.6"]))
    assert look(tree) == BinaryFindings()


def test_libraries_are_missed_through_the_ones_that_a_payload_brings() -> None:
    tree = small_tree()
    tree.write(f"{TOP}/a/lib/a.node", make_elf(needed=["libv.so.42", "libgcc_s.so.1"], rpath="$ORIGIN/../../v"))
    tree.write(f"{TOP}/v/libv.so.42", make_elf(needed=["libstdc++.so.6", "libv.so.42", "libc.so"], runpath="$ORIGIN"))
    tree.write(f"{TOP}/tool", make_elf(interpreter="/" + LOADER, needed=["libstdc++.so.6"]))
    findings = look(tree)
    assert (findings.foreign, findings.doubtful) == ((), ())
    assert set(findings.missing_libraries) == {
        MissingLibrary(f"{TOP}/a/lib/a.node", "libgcc_s.so.1"),
        MissingLibrary(f"{TOP}/a/lib/a.node", "libstdc++.so.6"),
        MissingLibrary(f"{TOP}/tool", "libstdc++.so.6"),
    }


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("a.node", b"code", "is a native module of an unknown format"),
        ("tool", make_elf()[:30], "is a damaged ELF file"),
        ("tool", make_elf(interpreter="/lib/ld")[:70], "cannot be checked: /opt/agent-runner/tool: damaged ELF file"),
        ("tool", make_elf(interpreter="/nix/ld"), "needs the interpreter /nix/ld, which the image lacks"),
    ],
)
def test_doubts(name: str, data: bytes, problem: str) -> None:
    findings = examined(data, name)
    (doubt,) = findings.doubtful
    assert (findings.foreign, findings.missing_libraries) == ((), ())
    assert doubt.problem.startswith(problem)


def test_the_rest_of_the_image_is_as_strict_as_ever() -> None:
    tree = small_tree()
    for folder in (TOP, "usr/lib/node_modules"):
        tree.write(f"{folder}/a.node", MACH_O)
        tree.write(f"{folder}/tool", make_elf("aarch64"))
    paths = {path for path, _ in tree.walk(TOP)}
    assert check_architecture(tree, "x86_64", without=paths) == [
        "/usr/lib/node_modules/a.node: native module, but no ELF file: it was compiled for another system",
        "/usr/lib/node_modules/tool: is for aarch64, the image for x86_64",
    ]
    assert len(look(tree).foreign) == 2


def test_platforms_are_counted() -> None:
    findings = [
        ForeignBinary(str(number), 1, name) for number, name in enumerate(["glibc", "macOS", "aarch64", "macOS"])
    ]
    assert platforms(findings) == "2 for macOS, 1 for aarch64, 1 for glibc"


# ---- leaving out -----------------------------------------------------------------------------------------------------


def test_pruning_leaves_no_trace_of_other_platforms_and_all_of_this_one() -> None:
    tree = small_tree()
    tree.write(f"{TOP}/vendor/x64-linux/rg", make_elf(kind=ET_EXEC))
    tree.write(f"{TOP}/vendor/x64-linux/rg.node", make_elf(needed=["libc.so.6"]))
    tree.write(f"{TOP}/vendor/arm64-darwin/rg", MACH_O)
    tree.write(f"{TOP}/vendor/x64-win32/rg.exe", make_pe())
    tree.write(f"{TOP}/vendor/x64-win32/README", "text")
    tree.symlink(f"{TOP}/bin/rg", "../vendor/x64-linux/rg")
    tree.symlink(f"{TOP}/mac/rg", "../vendor/arm64-darwin/rg")
    tree.symlink(f"{TOP}/folder", "vendor/arm64-darwin")
    tree.symlink(f"{TOP}/dangling", "nowhere")
    tree.symlink(f"{TOP}/circle", "circle")
    tree.mkdir(f"{TOP}/empty")
    tree.write("usr/bin/foreign", MACH_O)
    tree.add("usr/bin/other", HardLink(target="usr/bin/foreign"))
    paths = [path for path, _ in tree.walk(TOP) if path != TOP]
    before = look(tree)
    prune(tree, before.foreign, paths)
    assert [path.removeprefix(f"{TOP}/") for path, _ in tree.walk(TOP)][1:] == [
        *("bin", "bin/rg", "circle", "dangling", "empty", "vendor", "vendor/x64-linux", "vendor/x64-linux/rg"),
        *("vendor/x64-win32", "vendor/x64-win32/README"),
    ]
    assert "usr/bin/foreign" in tree
    assert len(before.foreign) == 3
    assert look(tree) == BinaryFindings()


def test_pruning_everything_leaves_the_payloads_folder() -> None:
    tree = small_tree()
    tree.write(f"{TOP}/a/b/c", MACH_O)
    prune(tree, look(tree).foreign, [path for path, _ in tree.walk(TOP) if path != TOP])
    assert [path for path, _ in tree.walk("opt")] == ["opt", TOP]


# ---- what is logged --------------------------------------------------------------------------------------------------

FOREIGN = BinaryFindings(
    foreign=(ForeignBinary("opt/a", 1_500_000, "macOS"), ForeignBinary("opt/b.node", 2_000_000, "aarch64"))
)
LACKING = BinaryFindings(
    missing_libraries=(MissingLibrary("opt/a.node", "libstdc++.so.6"), MissingLibrary("opt/b.node", "libstdc++.so.6"))
)
PROVIDERS = {"so:libstdc++.so.6": ("libstdc++",), "so:libjpeg.so.8": ("libjpeg-turbo", "mozjpeg"), "so:no.so": ()}


def known(names: Collection[str]) -> Mapping[str, Sequence[str]]:
    return {name: PROVIDERS.get(name, ()) for name in names}


def logged(
    findings: BinaryFindings, caplog: pytest.LogCaptureFixture, policy: Policy = "warn", *, copied: bool = False
) -> list[str]:
    """Return the logged messages; those that are not warnings begin with their level."""
    with caplog.at_level(logging.INFO, "imgkit"):
        apply_policy(findings, policy, "x86_64", known, copied=copied)
    return [
        ("" if record.levelno == logging.WARNING else f"{record.levelname}: ") + record.getMessage()
        for record in caplog.records
    ]


def test_one_warning_for_all_other_platforms(caplog: pytest.LogCaptureFixture) -> None:
    assert logged(FOREIGN, caplog) == [
        "the payload has 2 binaries for other platforms (3.5 MB: 1 for aarch64, 1 for macOS), listed in the manifest; "
        'payload_binaries = "prune" leaves them out'
    ]


def test_one_binary_is_one(caplog: pytest.LogCaptureFixture) -> None:
    one = BinaryFindings(foreign=(ForeignBinary("opt/a", 149_999, "macOS"),))
    assert logged(one, caplog, "prune") == [
        "INFO: left out of the payload: 1 binary for other platforms (0.1 MB: 1 for macOS)"
    ]


def test_each_missing_library_has_its_own_warning_in_the_order_of_the_findings(
    caplog: pytest.LogCaptureFixture,
) -> None:
    missing = [("a", "z.so"), ("b", "y.so"), ("c", "z.so"), ("d", "z.so")]
    findings = BinaryFindings(missing_libraries=tuple(MissingLibrary(*words) for words in missing))
    assert [line.partition(",")[0] for line in logged(findings, caplog)] == [
        "/a (and 2 more) needs the library z.so",
        "/b needs the library y.so",
    ]


def test_a_payload_that_was_not_installed_by_imgkit_may_be_for_another_machine(
    caplog: pytest.LogCaptureFixture,
) -> None:
    (line,) = logged(FOREIGN, caplog, copied=True)
    assert line.endswith("let imgkit install the payload's packages for the image: AGENT_RUNNER_BUILD=auto")


def test_what_was_left_out_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert logged(FOREIGN, caplog, "prune") == [
        "INFO: left out of the payload: 2 binaries for other platforms (3.5 MB: 1 for aarch64, 1 for macOS)"
    ]


@pytest.mark.parametrize("policy", ["warn", "prune"])
def test_a_missing_library_names_the_package(caplog: pytest.LogCaptureFixture, policy: Policy) -> None:
    assert logged(LACKING, caplog, policy) == [
        "/opt/a.node (and 1 more) needs the library libstdc++.so.6, which the image lacks: add the package libstdc++"
    ]


@pytest.mark.parametrize(
    ("library", "advice"),
    [
        ("libjpeg.so.8", "add one of the packages libjpeg-turbo, mozjpeg"),
        ("no.so", "no package of the image's repositories provides so:no.so"),
        ("/opt/lib/x.so", "no package of the image's repositories provides /opt/lib/x.so"),
    ],
)
def test_several_providers_and_none(caplog: pytest.LogCaptureFixture, library: str, advice: str) -> None:
    (line,) = logged(BinaryFindings(missing_libraries=(MissingLibrary("opt/a.node", library),)), caplog)
    assert line.endswith(f"{library}, which the image lacks: {advice}")


def test_without_an_index_the_name_is_given(caplog: pytest.LogCaptureFixture) -> None:
    apply_policy(LACKING, "warn", "x86_64", lambda _names: None, copied=False)
    (record,) = caplog.records
    assert record.getMessage().endswith("lacks: add the package that provides so:libstdc++.so.6")


def test_nothing_is_asked_and_nothing_said_where_all_is_well(caplog: pytest.LogCaptureFixture) -> None:
    def asked(_names: Collection[str]) -> None:
        raise AssertionError("an index was read for nothing")

    for policy in ("warn", "strict", "prune"):
        apply_policy(BinaryFindings(), policy, "x86_64", asked, copied=False)
    apply_policy(FOREIGN, "warn", "x86_64", asked, copied=False)
    assert len(caplog.records) == 1


def test_doubts_are_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    doubts = BinaryFindings(doubtful=(DoubtfulBinary("opt/a.node", "is odd"), DoubtfulBinary("opt/b.node", "is odd")))
    assert logged(doubts, caplog) == ["/opt/a.node is odd (and 1 more)"]


@pytest.mark.parametrize(
    ("findings", "message", "hint"),
    [
        (FOREIGN, "/opt/a: is for macOS, the image for x86_64 (and 1 more)", "AGENT_RUNNER_BUILD=auto"),
        (examined(make_elf(needed=["libc.so.6"])), "/opt/agent-runner/tool: is for glibc, the image has musl", "=auto"),
        (
            LACKING,
            "/opt/a.node: needs the library libstdc++.so.6, which the image lacks (and 1 more)",
            "add the package libstdc++",
        ),
        (BinaryFindings(doubtful=(DoubtfulBinary("opt/a.node", "is odd"),)), "/opt/a.node: is odd", "=auto"),
    ],
)
def test_strict_refuses(findings: BinaryFindings, message: str, hint: str) -> None:
    with pytest.raises(InputError) as caught:
        apply_policy(findings, "strict", "x86_64", known, copied=False)
    assert caught.value.message == message
    assert str(caught.value.hint).endswith(hint)


def test_strict_counts_all_kinds_and_begins_with_what_is_not_prebuilt() -> None:
    prebuilt = (ForeignBinary("opt/prebuilds/a.node", 1, "macOS"), ForeignBinary("opt/b", 1, "macOS"))
    findings = BinaryFindings(prebuilt, LACKING.missing_libraries, (DoubtfulBinary("opt/c", "is odd"),))
    with pytest.raises(InputError) as caught:
        apply_policy(findings, "strict", "x86_64", known, copied=True)
    assert caught.value.message == "/opt/b: is for macOS, the image for x86_64 (and 3 more)"


def test_strict_accepts_prebuilt_binaries_of_several_platforms() -> None:
    findings = examined(make_elf("aarch64"), "node_modules/x/prebuilds/linux-arm64/x.node")
    assert len(findings.foreign) == 1
    apply_policy(findings, "strict", "x86_64", known, copied=False)
