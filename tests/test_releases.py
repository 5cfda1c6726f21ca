"""``latest-releases.yaml``: the newest minirootfs, and what is not such a list."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkit.errors import InputError
from imgkit.fetch.releases import newest_minirootfs, parse_releases

SHA256, SHA512 = "ab" * 32, "cd" * 64


def entry(version: str = "3.23.6", arch: str = "x86_64", flavor: str = "alpine-minirootfs", **more: str) -> str:
    values = {
        "title": '"Mini root filesystem"',
        "desc": "|\n    Minimal root filesystem.\n    For use in containers: and more",
        "branch": "v3.23",
        "arch": arch,
        "version": version,
        "flavor": flavor,
        "file": f"{flavor}-{version}-{arch}.tar.gz",
        "iso": f"{flavor}-{version}-{arch}.tar.gz",
        "date": "2026-09-17",
        "time": "17:32:11",
        "size": "3490290",
        "sha256": SHA256,
        "sha512": SHA512,
        **more,
    }
    lines = [f"{key}: {value}" for key, value in values.items() if value]
    return "-\n" + "".join(f"  {line}\n" for line in lines)


def test_the_newest_is_taken_by_number_not_by_text() -> None:
    text = "---\n" + "".join(entry(version) for version in ("3.23.0_rc2", "3.23.9", "3.23.10", "3.23.0"))
    release = newest_minirootfs(text.encode(), arch="x86_64")
    assert release.version == "3.23.10"
    assert release.file == "alpine-minirootfs-3.23.10-x86_64.tar.gz"
    assert (release.sha256, release.sha512, release.size, release.arch) == (SHA256, SHA512, 3490290, "x86_64")


def test_a_version_stays_text() -> None:
    assert newest_minirootfs(entry("3.20"), arch="x86_64").version == "3.20"
    assert newest_minirootfs(entry("20240315"), arch="x86_64").version == "20240315"


def test_a_release_is_newer_than_its_candidates() -> None:
    text = entry("3.23.0_rc10") + entry("3.23.0") + entry("3.23.0_rc2")
    assert newest_minirootfs(text, arch="x86_64").version == "3.23.0"


def test_one_version_can_be_asked_for() -> None:
    text = entry("3.23.5") + entry("3.23.6")
    assert newest_minirootfs(text, arch="x86_64", version="3.23.5").version == "3.23.5"
    with pytest.raises(InputError, match=r"has no alpine-minirootfs 3\.23\.4 for x86_64") as caught:
        newest_minirootfs(text, arch="x86_64", version="3.23.4")
    assert caught.value.hint == "it has: 3.23.5 x86_64, 3.23.6 x86_64"


def test_entries_of_other_kinds_and_incomplete_ones_are_passed_over() -> None:
    text = (
        entry("3.23.9", flavor="alpine-virt")
        + entry("3.23.8", file="", iso="")
        + entry("3.23.8", sha256="", sha512="")
        + entry("")
        + entry("3.23.8", file="../../evil.tar.gz")
        + entry("3.23.8", sha256="zz", sha512="")
        + entry("3.23.8", arch="aarch64")
        + entry("3.23.6", title="", desc="", branch="", date="", time="", size="odd", sha512="", iso="")
        + "- flavor: [a, b]\n  1: 2\n"
    )
    release = newest_minirootfs(text, arch="x86_64")
    assert (release.version, release.size, release.sha512) == ("3.23.6", 0, "")


def test_old_lists_name_the_file_as_iso() -> None:
    assert newest_minirootfs(entry(file=""), arch="x86_64").file == "alpine-minirootfs-3.23.6-x86_64.tar.gz"


@pytest.mark.parametrize("text", ["[]", entry(flavor="alpine-virt"), entry(arch="armv7")])
def test_a_list_without_the_flavor_says_what_it_has(text: str) -> None:
    with pytest.raises(InputError, match=r"^http://m/latest-releases.yaml: has no alpine-minirootfs for x86_64$"):
        newest_minirootfs(text, arch="x86_64", name="http://m/latest-releases.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is not valid YAML"),
        ("\t- a", "is not valid YAML"),
        ("? [a]\n: b\n", "is not valid YAML|not a list"),
        (b"\xff\xfe\xff", "is not valid YAML"),
        ("\0", "is not valid YAML"),
        ("[" * 1500, "is not valid YAML"),
        ("", "is not a list of releases"),
        ("hello", "is not a list of releases"),
        ("a: b", "is not a list of releases"),
        ("- a\n- b", "is not a list of releases"),
        ("<html><body>x</body></html>", "is not a list of releases"),
    ],
)
def test_what_is_no_list_of_releases(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse_releases(text)
    assert "\n" not in caught.value.message


@given(st.text(max_size=200) | st.binary(max_size=200))
def test_any_text_is_a_list_or_refused(text: str | bytes) -> None:
    try:
        releases = parse_releases(text)
    except InputError:
        return
    assert releases == ()


def test_tags_make_no_objects() -> None:
    releases = parse_releases(entry(title="!!python/object/apply:os.system ['true']") + entry(size="!!int 0x10"))
    assert [release.size for release in releases] == [3490290, 0]


LARGE = (1 << 18) - 100
HOSTILE = {
    "many small entries": ("- {}\n" * (LARGE // 5), "more than 5000 values"),
    "many small values": ("- {" + "a: b, " * (LARGE // 6), "more than 5000 values"),
    "deep lists": ("[" * LARGE, "nested deeper than 8 levels"),
    "deep entries": ("- " * (LARGE // 2), "nested deeper than 8 levels"),
    "aliases": ("- &a [x, x]\n- &b [*a, *a]\n- &c [*b, *b]\n", "has aliases"),
    "too long": ("#" * (1 << 19), "is not a list of releases: it has 524288 bytes"),
    "blank lines": ("\n" * LARGE, "is not a list of releases"),
}


@pytest.mark.slow
@pytest.mark.parametrize("attack", HOSTILE)
def test_hostile_lists_are_refused_before_they_are_read(attack: str) -> None:
    """The first took 12 seconds when the limit was a megabyte of any values."""
    text, message = HOSTILE[attack]
    start = time.process_time()
    with pytest.raises(InputError, match=message):
        newest_minirootfs(text, arch="x86_64")
    assert time.process_time() - start < 6


def test_values_are_counted_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgkit.fetch.releases._MAX_VALUES", 7)
    assert parse_releases("[{a: b}, {c: d}]") == ()
    with pytest.raises(InputError, match=r"^l: is not valid YAML \(more than 7 values\)$"):
        parse_releases("[{a: b}, {c: d}, {}]", name="l")


def test_eight_levels_are_enough_however_many_entries_come_before() -> None:
    siblings = "{a: [b]}, " * 20
    with pytest.raises(InputError, match=r"^l: is not a list of releases$"):
        parse_releases(f"[{siblings}{'[' * 7}{']' * 7}]", name="l")
    with pytest.raises(InputError, match=r"^l: is not valid YAML \(nested deeper than 8 levels\)$"):
        parse_releases(f"[{siblings}{'[' * 8}{']' * 8}]", name="l")


def test_a_list_may_have_256_kib() -> None:
    assert parse_releases("[] #".ljust(1 << 18, "#")) == ()
    with pytest.raises(InputError, match=r"^l: is not a list of releases: it has 262145 bytes$"):
        parse_releases("[] #".ljust((1 << 18) + 1, "#"), name="l")


@pytest.mark.parametrize("text", ["hello", "a: [", "#" * (1 << 19)])
def test_what_is_no_list_is_named_with_a_hint(text: str) -> None:
    with pytest.raises(InputError, match=r"^http://m/l: ") as caught:
        newest_minirootfs(text, arch="x86_64", name="http://m/l")
    assert caught.value.hint == "check the mirror's URL"
    with pytest.raises(InputError, match=r"^latest-releases\.yaml: "):
        newest_minirootfs(text, arch="x86_64")


@pytest.mark.parametrize(
    ("size", "expected"), [("9" * 15, 10**15 - 1), ("9" * 16, 0), ("'-1'", 0), ("'\u0665'", 0), ("", 0), ("'0x1'", 0)]
)
def test_sizes(size: str, expected: int) -> None:
    assert parse_releases(entry(size=size))[0].size == expected


def test_what_an_entry_needs() -> None:
    assert [release.flavor for release in parse_releases(entry() + entry(flavor="", file="f"))] == ["alpine-minirootfs"]
    assert parse_releases(entry(arch="'x/y'", file="f")) == ()
    assert parse_releases(entry(arch="", file="f"))[0].arch == ""
    (upper,) = parse_releases(entry(sha256=SHA256.upper(), sha512=SHA512[:-1]))
    assert (upper.sha256, upper.sha512) == (SHA256, "")


def test_an_entry_without_an_architecture_fits_any() -> None:
    release = newest_minirootfs(entry("3.23.7", arch="", file="any") + entry("3.23.6"), arch="x86_64")
    assert (release.version, release.file) == ("3.23.7", "any")


def test_candidates_without_a_number_come_first() -> None:
    for text in (entry("3.23.0_rc") + entry("3.23.0_rc1"), entry("3.23.0_rc1") + entry("3.23.0_rc")):
        assert newest_minirootfs(text, arch="x86_64").version == "3.23.0_rc1"
    order = ["3.23.0_alpha9", "3.23.0_beta", "3.23.0_pre1", "3.23.0_rc2", "3.23.0_rc10", "3.23.0", "3.23.0.1", "4"]
    for older, newer in itertools.pairwise(order):
        assert newest_minirootfs(entry(older) + entry(newer), arch="x86_64").version == newer


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("[]", "it has: none at all"),
        (entry(flavor="alpine-virt"), "it has: none at all"),
        (entry("3.23.7", arch="armv7") + entry("3.23.6", arch="armhf") + entry("3.23.6", arch="armhf"), "it has: "
         "3.23.6 armhf, 3.23.7 armv7"),
        (
            "".join(entry(f"3.23.{number}", arch="armv7") for number in range(100, 140)),
            f"it has: {', '.join(f'3.23.{number} armv7' for number in range(100, 140))[:300]}",
        ),
    ],
)  # fmt: skip
def test_a_list_that_lacks_the_architecture_says_what_it_has(text: str, hint: str) -> None:
    with pytest.raises(InputError) as caught:
        newest_minirootfs(text, arch="x86_64")
    assert caught.value.hint == hint


@pytest.mark.parametrize(
    "more", [{"version": "'" + "9" * 5000 + "'"}, {"version": "3.23.6_rc" + "9" * 5000}, {"file": "a" * 5000}]
)
def test_entries_with_absurd_values_are_passed_over(more: dict[str, str]) -> None:
    """Python converts no number of 5,000 digits."""
    release = newest_minirootfs(entry("3.23.0") + entry(**more), arch="x86_64")
    assert release.version == "3.23.0"


def test_what_a_list_has_is_told_briefly_and_plainly() -> None:
    text = "".join(entry(f"3.23.{number}", arch="armv7") for number in range(100)) + entry(arch='"\\e[31m"')
    with pytest.raises(InputError) as caught:
        newest_minirootfs(text, arch="x86_64")
    assert len(str(caught.value.hint)) < 400
    assert "\x1b" not in str(caught.value.hint)
