"""Paths that lead out of a folder, judged by their text, and the order of paths."""

from __future__ import annotations

import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkit.tree import by_parts, leads_out


@pytest.mark.parametrize(
    ("path", "depth", "out"),
    [
        ("", 0, False),
        (".", 0, False),
        ("a/..", 0, False),
        ("..", 0, True),
        ("..", 1, False),
        ("../..", 1, True),
        ("../..", 2, False),
        ("./..", 0, True),
        ("//..", 0, True),
        ("a/../..", 0, True),
        ("a/../../a", 0, True),
        ("a/../../b", 1, False),
        ("a//./..", 0, False),
        (".//..", 0, True),
        ("...", 0, False),
    ],
)
def test_paths_that_lead_out(path: str, depth: int, out: bool) -> None:
    assert leads_out(path, depth) is out


@given(st.lists(st.sampled_from(["..", ".", "", "a", "b"]), max_size=8))
def test_as_path_arithmetic_says(parts: list[str]) -> None:
    path = "/".join(["x", *parts])
    assert leads_out(path) == posixpath.normpath(path).startswith("..")


@given(st.lists(st.lists(st.text("!-.0aé\udcff", min_size=1, max_size=3), min_size=1, max_size=4).map("/".join)))
def test_paths_are_sorted_by_their_parts(paths: list[str]) -> None:
    assert sorted(paths, key=by_parts) == sorted(paths, key=lambda path: path.split("/"))
