"""The header WWW-Authenticate is understood as servers write it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkit.registry.challenges import Challenge, parse_challenges


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", []),
        ("Basic", [("basic", {})]),
        ('Basic realm="Registry Realm"', [("basic", {"realm": "Registry Realm"})]),
        (
            'Bearer realm="https://auth.example/token",service="r.example",scope="repository:a/b:pull,push"',
            [
                (
                    "bearer",
                    {
                        "realm": "https://auth.example/token",
                        "service": "r.example",
                        "scope": "repository:a/b:pull,push",
                    },
                )
            ],
        ),
        (
            'Basic realm="a", Bearer realm="b" , scope=x',
            [("basic", {"realm": "a"}), ("bearer", {"realm": "b", "scope": "x"})],
        ),
        ('BEARER REALM = "a\\"b" ,Service=s', [("bearer", {"realm": 'a"b', "service": "s"})]),
        ("Negotiate, Basic realm=x", [("negotiate", {}), ("basic", {"realm": "x"})]),
        ('Bearer realm="first", realm="second"', [("bearer", {"realm": "first"})]),
        ('Bearer realm="open', [("bearer", {})]),
        ("x" * 16385, []),
    ],
)
def test_headers(header: str, expected: list[tuple[str, dict[str, str]]]) -> None:
    assert parse_challenges(header) == tuple(Challenge(*one) for one in expected)


@given(st.text(max_size=60) | st.text('Bearer realm="=,\\ ', max_size=60))
def test_any_header_is_read(header: str) -> None:
    assert len(parse_challenges(header)) <= len(header)
