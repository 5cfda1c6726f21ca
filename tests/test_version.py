"""Versions: the grammar, single rules of the order, and that the order is one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkit.apk.version import Version, is_valid

number = st.sampled_from(["0", "1", "2", "9", "10", "00", "01", "09", "010", "20230101"])
suffix = st.tuples(
    st.sampled_from(["alpha", "beta", "pre", "rc", "cvs", "svn", "git", "hg", "p"]), st.just("") | number
).map(lambda pair: f"_{pair[0]}{pair[1]}")


@st.composite
def version_texts(draw: st.DrawFn) -> str:
    text = ".".join(draw(st.lists(number, min_size=1, max_size=4)))
    text += draw(st.sampled_from(["", "", "a", "b", "z"]))
    text += "".join(draw(st.lists(suffix, max_size=2)))
    text += draw(st.sampled_from(["", "", "~0", "~ab12"]))
    return text + draw(st.sampled_from(["", "", "-r0", "-r1", "-r10"]))


@pytest.mark.parametrize(
    "text",
    ["0", "1.2.3", "1.2b", "1_p", "1_alpha_beta2", "1.0a_rc1-r2", "3~0af-r1", "1.2.3a_git20230101~ff-r12", "007"],
)
def test_valid(text: str) -> None:
    assert is_valid(text)
    assert str(Version.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        ".1",
        "1.",
        "1..2",
        "v2",
        "0.1a1",
        "0.1a.1",
        "0.1ab",
        "1.0A",
        "0.1_foobar",
        "0.1_",
        "0.1-r2.1",
        "0.1-r",
        "0.1-r1-r2",
        "0.1-1",
        "0.1_pre2~",
        "0.1~xyz",
        "0.1-r1_p1",
        "5.3.0_",
        "1.0 ",
        "1\n",
        "١",
    ],
)
def test_invalid(text: str) -> None:
    assert not is_valid(text)
    with pytest.raises(ValueError, match="not a valid version"):
        Version.parse(text)


# Each rule of the order as a rising row.
ROWS = [
    ["1", "2", "10", "100"],
    ["1.0", "1.0-r1", "1.0~0a", "1.0_p1", "1.0a", "1.0.1"],
    ["1.0_alpha", "1.0_beta", "1.0_pre", "1.0_rc", "1.0", "1.0_cvs", "1.0_svn", "1.0_git", "1.0_hg", "1.0_p"],
    ["1.0_rc", "1.0_rc1", "1.0_rc2", "1.0_rc10"],
    ["1.0_p_alpha", "1.0_p", "1.0_p1", "1.0_p_p"],
    ["8.001", "8.1", "8.2.0", "8.10"],
    ["8.2.001", "8.2.0015", "8.2.002", "8.2.1"],
    ["8.2.0", "8.2.001"],
    ["1.9z", "1.10a", "1.10b"],
    ["1.0-r0", "1.0-r2", "1.0-r10"],
    ["1.0~a", "1.0~ab", "1.0~b"],
    ["1.0_alpha-r9", "1.0"],
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_order(row: list[str]) -> None:
    for position, lower in enumerate(row):
        for higher in row[position + 1 :]:
            assert Version.parse(lower) < Version.parse(higher), f"{lower} < {higher}"
            assert not Version.parse(higher) <= Version.parse(lower)


def test_equal_means_equal_in_value() -> None:
    assert Version.parse("01.0-r01") == Version.parse("1.0-r1")
    assert len({Version.parse("01.0-r01"), Version.parse("1.0-r1")}) == 1
    assert Version.parse("1.0") != Version.parse("1.00")
    assert Version.parse("1.0") != "1.0"


def test_a_version_shows_its_text() -> None:
    assert repr(Version.parse("1.0-r1")) == "Version(text='1.0-r1')"


def test_numbers_of_any_length() -> None:
    assert Version.parse("1" * 10_000) < Version.parse("1" * 9_999 + "2")


@pytest.mark.parametrize(
    ("version", "prefix", "expected"),
    [
        ("3.6_pre1", "3.6", True),
        ("3.8", "3.8.1", False),
        ("1.20", "1.2", False),
        ("1.2", "1.2", True),
        ("1.2.0-r3", "1.2", True),
        ("1.0_pre3-r1", "1.0_pre", True),
        ("1.0-r10", "1.0-r1", False),
        ("1.05", "1.0", False),
        ("2.0", "1.0", False),
    ],
)
def test_prefix(version: str, prefix: str, expected: bool) -> None:
    assert Version.parse(version).starts_with(Version.parse(prefix)) is expected


def test_what_breaks_the_grammar_is_just_below_its_valid_part() -> None:
    rising = [None, "1.0", "5.3.0_alpha", "5.3.0_", "5.3.0", "5.3.0-r1"]
    assert sorted(map(Version.lenient, rising)) == [*map(Version.lenient, rising)]
    assert Version.lenient("v2") == Version.lenient(None)


@given(version_texts())
def test_lenient_is_parse_for_what_is_valid(text: str) -> None:
    assert Version.lenient(text) == Version.parse(text)


@pytest.mark.slow
@given(version_texts(), version_texts())
def test_the_order_is_antisymmetric_and_total(a: str, b: str) -> None:
    left, right = Version.parse(a), Version.parse(b)
    assert [left < right, left == right, left > right].count(True) == 1
    assert (left < right, left == right) == (right > left, right == left)
    assert a != b or left == right


@pytest.mark.slow
@given(version_texts(), version_texts(), version_texts())
def test_the_order_is_transitive(a: str, b: str, c: str) -> None:
    low, middle, high = sorted(map(Version.parse, (a, b, c)))
    assert low <= middle <= high
    assert low <= high


@given(version_texts(), st.sampled_from([".1", "_p1", "_alpha", "-r1", "~a"]))
def test_more_tokens_keep_the_prefix(text: str, more: str) -> None:
    if is_valid(text + more):
        assert Version.parse(text + more).starts_with(Version.parse(text))
        longer, shorter = Version.parse(text + more), Version.parse(text)
        assert longer < shorter if more == "_alpha" else longer > shorter


@given(st.text(alphabet="019.az_~-rp", max_size=8))
def test_any_text_is_a_version_or_refused(text: str) -> None:
    if is_valid(text):
        assert Version.parse(text) == Version.parse(text)
    else:
        with pytest.raises(ValueError, match="not a valid version"):
            Version.parse(text)
