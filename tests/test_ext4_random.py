"""Random Trees are written as ext4, examined by e2fsck and read back."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from fixtures.ext4 import read_tree
from imgkit.tree import Tree
from tests.conftest import need_program
from tests.ext4trees import complaints, described, trees, write_filesystem


def check(tree: Tree) -> None:
    """Write a Tree, and look at it with e2fsck and with a reader that shares nothing with the writer."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        image = Path(folder, "root.raw")
        write_filesystem(tree, image)
        assert complaints(image) == ""
        assert described(read_tree(image)) == described(tree)


@given(trees())
@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_random_trees_come_back(tree: Tree) -> None:
    need_program("e2fsck")
    check(tree)


@pytest.mark.slow
@given(trees())
@settings(max_examples=1200, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_a_thousand_random_trees_come_back(tree: Tree) -> None:
    need_program("e2fsck")
    check(tree)
