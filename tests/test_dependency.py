"""Dependencies and provides: syntax, spelling, what matches."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkit.apk.dependency import Dependency, Provide, is_package_name, is_package_version


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nodejs", Dependency("nodejs")),
        ("/bin/sh", Dependency("/bin/sh")),
        ("so:libc.musl-x86_64.so.1", Dependency("so:libc.musl-x86_64.so.1")),
        ("!uclibc-utils", Dependency("uclibc-utils", conflict=True)),
        ("n=1.2-r3", Dependency("n", "=", "1.2-r3")),
        ("!n<1", Dependency("n", "<", "1", conflict=True)),
        ("n@edge>=2", Dependency("n", ">=", "2", tag="edge")),
        ("n@edge", Dependency("n", tag="edge")),
        ("n=~1", Dependency("n", "~", "1")),
        ("n~=1", Dependency("n", "~", "1")),
        ("n=>1", Dependency("n", ">=", "1")),
        ("n>~1", Dependency("n", ">~", "1")),
        ("n==1", Dependency("n", "=", "1")),
        ("pc:gtk+-3.0>=3.22", Dependency("pc:gtk+-3.0", ">=", "3.22")),
        ("n><Q1abc+/=", Dependency("n", "><", "Q1abc+/=")),
    ],
)
def test_syntax(text: str, expected: Dependency) -> None:
    assert Dependency.parse(text) == expected
    assert Dependency.parse(str(expected)) == expected


@pytest.mark.parametrize(
    "text", ["", "!", "=1", "n=", "n>", "n=v2", "n@", "n@@edge", "a b", "n=1 ", "n\x00", "!!n", "n=1=2"]
)
def test_wrong_syntax(text: str) -> None:
    with pytest.raises(ValueError, match="valid"):
        Dependency.parse(text)


@pytest.mark.parametrize(
    ("text", "matching", "other"),
    [
        ("n", ["1", "2-r1", None, "v2"], []),
        ("n=1.2", ["1.2"], ["1.2-r0", "1.20", None, "v2"]),
        ("n<2", ["1", "2_rc1", None, "v2"], ["2", "2-r0"]),
        ("n<=2", ["1", "2", None], ["2-r1"]),
        ("n>2", ["2-r1", "3"], ["2", "2_pre1", None, "v3"]),
        ("n>5.3", ["5.3.0_", "5.3.0_foo1"], ["5.3_", "v6"]),
        ("n~5.3.0", ["5.3.0_", "5.3.0-r1"], ["5.3_", "v5"]),
        ("n>=2", ["2", "2.0"], ["1.9"]),
        ("n~1.2", ["1.2", "1.2.9-r1", "1.2_pre1"], ["1.20", "1.3", None]),
        ("n>~1.2", ["1.2_pre1", "1.2.1", "2"], ["1.1"]),
        ("n<~1.2", ["1.2.9", "1.1", None], ["1.3"]),
        ("n<=>1", ["0", "1", "2", None], []),
    ],
)
def test_matches(text: str, matching: list[str | None], other: list[str | None]) -> None:
    dependency = Dependency.parse(text)
    assert [version for version in [*matching, *other] if dependency.matches(version)] == matching


def test_identity_matches_the_identity_alone() -> None:
    dependency = Dependency.parse("n><Q1abc=")
    assert dependency.matches("1", "Q1abc=")
    assert not dependency.matches("1", "Q1abd=")
    assert not dependency.matches("1")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cmd:node=18.1-r0", Provide("cmd:node", "18.1-r0")),
        ("/bin/sh", Provide("/bin/sh")),
        ("pc:librtmp=v2.4", Provide("pc:librtmp", "v2.4")),
    ],
)
def test_provides(text: str, expected: Provide) -> None:
    assert Provide.parse(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize("text", ["", "n>1", "!n", "n=", "n@edge", "a b"])
def test_wrong_provides(text: str) -> None:
    with pytest.raises(ValueError, match="not a valid provide"):
        Provide.parse(text)


def test_names_and_versions_that_are_safe_in_file_names() -> None:
    assert all(map(is_package_name, ["gtk+3.0", "py3-yaml", ".virtual", "_x"]))
    assert not any(map(is_package_name, ["", "../x", "a/b", "a b", "-x", "a\n"]))
    assert is_package_version("0.99f7-r1")
    assert not any(map(is_package_version, ["", "1/../2", "1 2", "1\n"]))


names = st.from_regex(r"[a-z0-9/][a-z0-9:+._/-]{0,8}", fullmatch=True)


@pytest.mark.slow
@given(
    names,
    st.sampled_from(["=", "<", "<=", ">", ">=", "~", "<~", ">~"]) | st.none(),
    st.booleans(),
    st.none() | st.sampled_from(["edge", "testing"]),
)
def test_round_trip(name: str, operator: str | None, conflict: bool, tag: str | None) -> None:
    dependency = Dependency(name, operator, "1.2-r3" if operator else None, conflict, tag)
    assert Dependency.parse(str(dependency)) == dependency


@given(st.text(max_size=12))
def test_any_text_is_a_dependency_or_refused(text: str) -> None:
    try:
        dependency = Dependency.parse(text)
    except ValueError:
        return
    assert Dependency.parse(str(dependency)) == dependency


def test_a_lenient_dependency_keeps_a_version_that_breaks_the_grammar() -> None:
    """``v2`` compares as apk compares it: it is less than every valid version."""
    assert Dependency.lenient("n=v2") == Dependency("n", "=", "v2")
    assert [Dependency.lenient(text).matches("1-r0") for text in ("n=v2", "n<v2", "n>v2")] == [False, False, True]
    assert Dependency.lenient("n=v2").matches("v2")
    assert Dependency.lenient("n>=2") == Dependency.parse("n>=2")
    with pytest.raises(ValueError, match="not a valid dependency"):
        Dependency.lenient("n=")
