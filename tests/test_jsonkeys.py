"""The keys of JSON objects: one style for all that imgkit prints and writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from imgkit.host.jsonkeys import jsonable, key_of


@pytest.mark.parametrize(
    ("name", "key"), [("size", "size"), ("build_id", "buildId"), ("a_2_bc", "a2Bc"), ("fs_uuid", "fsUuid")]
)
def test_names_of_fields_become_keys(name: str, key: str) -> None:
    assert key_of(name) == key


@dataclass(frozen=True)
class Part:
    file_name: Path
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Whole:
    all_parts: tuple[Part, ...]
    os_release: Mapping[str, str]
    nothing_here: None = None


def test_dataclasses_become_objects_and_mappings_keep_their_keys() -> None:
    value = Whole((Part(Path("a/b"), (1, 2)),), {"VERSION_ID": "3", "x_y": "z"})
    assert jsonable(value) == {
        "allParts": [{"fileName": "a/b", "sizes": [1, 2]}],
        "osRelease": {"VERSION_ID": "3", "x_y": "z"},
        "nothingHere": None,
    }


def test_a_class_is_no_value() -> None:
    assert jsonable([Part, 1.5, True, "x_y"]) == [Part, 1.5, True, "x_y"]
