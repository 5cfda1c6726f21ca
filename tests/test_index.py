"""Package records: every field, what is refused, and that reading and writing are each other's inverse."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkit.apk.index import FIELDS, Package, Repository, format_record, parse_index, parse_record
from imgkit.errors import InputError
from tests.realdata import check_index

RECORD = """\
C:Q1tduNGDYV/KwvztK0sMium7UfSj0=
P:demo
V:1.2-r3
A:x86_64
S:123
I:456
T:a demo
U:https://example.org
L:MIT
o:demo-src
m:A B <a@example.org>
t:1666619671
c:c57128b0
k:7
D:musl so:libz.so.1 !other
p:cmd:demo=1.2-r3 virtual
i:docs demo=1.2-r3
r:old
q:1000
"""
DEMO = Package(
    name="demo",
    version="1.2-r3",
    arch="x86_64",
    identity="Q1tduNGDYV/KwvztK0sMium7UfSj0=",
    size=123,
    installed_size=456,
    description="a demo",
    url="https://example.org",
    license="MIT",
    origin="demo-src",
    maintainer="A B <a@example.org>",
    build_time=1666619671,
    commit="c57128b0",
    provider_priority=7,
    depends=("musl", "so:libz.so.1", "!other"),
    provides=("cmd:demo=1.2-r3", "virtual"),
    install_if=("docs", "demo=1.2-r3"),
    replaces=("old",),
    replaces_priority=1000,
)


def record(**fields: str) -> list[str]:
    return [f"{letter}:{value}" for letter, value in ({"P": "n", "V": "1"} | fields).items()]


def test_every_field() -> None:
    assert parse_record(RECORD.splitlines()) == DEMO
    assert format_record(DEMO) == RECORD


def test_empty_fields_that_are_written_all_the_same() -> None:
    plain = Package(name="n", version="1", identity="Q1x")
    assert format_record(plain) == "C:Q1x\nP:n\nV:1\nA:noarch\nS:0\nI:0\nT:\nU:\nL:\n"


def test_an_index_is_records_with_blank_lines_between() -> None:
    repository = Repository(2, "https://example.org/main", "edge")
    packages = parse_index(f"{RECORD}\n{RECORD.replace('P:demo', 'P:other')}\n", repository)
    assert [one.name for one in packages] == ["demo", "other"]
    assert packages[0] == replace(DEMO, repository=repository)
    assert parse_index("", repository) == ()


def test_lists_on_several_lines_add_up() -> None:
    assert parse_record([*record(D="a b"), "D:c", "p:x", "p:y"]).depends == ("a", "b", "c")
    assert parse_record([*record(D="a b"), "D:c", "p:x", "p:y"]).provides == ("x", "y")


def test_unknown_letters() -> None:
    assert not parse_record(record(z="whatever", g="tag")).fault
    assert "unknown field X" in parse_record(record(X="whatever")).fault


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"D": "a b>v"}, "'b>v' has an invalid version"),
        ({"D": "a@edge"}, "names a repository"),
        ({"D": "="}, "not a valid dependency"),
        ({"p": "a>1"}, "not a valid provide"),
        ({"P": "../up"}, "not a valid package name"),
        ({"V": "1/../../up"}, "its version"),
    ],
)
def test_packages_that_can_never_be_installed(fields: dict[str, str], part: str) -> None:
    assert part in parse_record(record(**fields)).fault


@pytest.mark.parametrize("fields", [{"i": "a>v"}, {"V": "0.99f7-r1"}, {"p": "pc:librtmp=v2.4"}])
def test_faults_that_do_no_harm(fields: dict[str, str]) -> None:
    assert not parse_record(record(**fields)).fault


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("P:n\nV:1\nnonsense", "'nonsense' is not a field"),
        ("P:n\nV:1\nXY:1", "is not a field"),
        ("P:n\nV:1\nS:many", "field S: 'many' is not a number"),
        ("P:n\nV:1\nS:-1", "is not a number"),
        ("P:n\nV:1\nt:" + "9" * 30, "is not a number"),
        ("P:n\nA:x86_64", "no name or no version"),
        ("<!doctype html>\n<p>404", "is not a field"),
    ],
)
def test_what_is_no_index(text: str, part: str) -> None:
    with pytest.raises(InputError, match=r"package index of https://example\.org") as caught:
        parse_index(text, Repository(url="https://example.org"))
    assert part in caught.value.message


def test_a_line_break_cannot_forge_a_field() -> None:
    with pytest.raises(ValueError, match="line break in field T"):
        format_record(replace(DEMO, description="a\nP:b"))


lines = st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=12)
words = st.lists(st.sampled_from(["a", "b>1", "so:c.so.1", "/bin/sh"]), max_size=3).map(tuple)
numbers = st.integers(0, 2**40)


@given(
    st.builds(
        Package,
        name=st.sampled_from(["n", "gtk+3.0"]),
        version=st.sampled_from(["1", "2_p1-r3"]),
        arch=st.sampled_from(["noarch", "aarch64"]),
        identity=lines,
        size=numbers,
        installed_size=numbers,
        description=lines,
        url=lines,
        license=lines,
        origin=lines,
        maintainer=lines,
        build_time=numbers,
        commit=lines,
        provider_priority=numbers,
        depends=words,
        provides=st.just(("v", "w=1")),
        install_if=words,
        replaces=words,
        replaces_priority=numbers,
    )
)
def test_round_trip(package: Package) -> None:
    assert parse_record(format_record(package).rstrip("\n").split("\n")) == package


@given(st.text(st.sampled_from("PVCDSkpi:1n>=\n x")))
def test_any_text_is_an_index_or_refused(text: str) -> None:
    try:
        packages = parse_index(text, Repository())
    except InputError as refused:
        assert "\n" not in refused.message  # noqa: PT017
    else:
        assert all(one.name and one.version for one in packages)


def test_every_letter_is_a_field_of_a_package() -> None:
    assert set(FIELDS.values()) | {"repository", "fault"} == set(Package.__slots__)


def test_the_real_index_is_reproduced_to_the_byte(real_text: str) -> None:
    check_index(real_text, 5004)


def test_a_record_of_very_many_lines_takes_no_longer_than_its_length() -> None:
    """Lines that add up were joined one by one, which takes the square of their number."""
    start = time.process_time()
    found = parse_record(["P:a", "V:1", *("D:b" for _ in range(300_000))])
    assert len(found.depends) == 300_000
    assert time.process_time() - start < 20


def test_an_index_of_absurdly_many_packages_is_refused() -> None:
    with pytest.raises(InputError, match="has more than 200000 packages"):
        parse_index("P:a\nV:1\n\n" * 200_002, Repository())


def test_an_index_may_have_as_many_packages_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgkit.apk.index._MOST_PACKAGES", 2)
    text = "C:\nP:a\nV:1\n\n"
    assert len(parse_index(text * 2, Repository())) == 2
    with pytest.raises(InputError, match=r"^package index of http://m: has more than 2 packages$"):
        parse_index(text * 3, Repository(url="http://m"))


def test_numbers_that_a_record_lacks_are_zero_in_a_new_one() -> None:
    plain = parse_record(record())
    assert (plain.size, plain.installed_size, plain.build_time) == (0, 0, 0)
    assert (plain.provider_priority, plain.replaces_priority, plain.fault) == (0, 0, "")
