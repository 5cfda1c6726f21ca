"""The keys of JSON objects: one style for all that imgkit prints and writes."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from imgkit.cli.hostchecks import HostCheck
from imgkit.cli.reports.buildreport import BuildReport, StepReport
from imgkit.host.jsonkeys import jsonable, key_of
from imgkit.recipe import Recipe
from tests.commandline import ROOT


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


def literal_keys(path: Path) -> set[str]:
    """Return the keys of the dictionaries that a module spells out."""
    displays = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Dict)]
    return {
        key.value
        for node in displays
        for key in node.keys
        if isinstance(key, ast.Constant) and isinstance(key.value, str)
    }


FIELDS_OF_RECIPES = {name for name in Recipe.model_fields if "_" in name}


def test_what_is_printed_and_published_has_keys_of_one_style() -> None:
    """In manifests, lock files, records, publications and what commands print; fields of recipes keep their names."""
    folders = ("cli", "api", "comparison", "image", "publish", "verification", "planning")
    firecracker = {
        "kernel_image_path", "initrd_path", "boot_args", "drive_id", "path_on_host", "is_root_device", "is_read_only",
        "vcpu_count", "mem_size_mib",
    }  # fmt: skip
    odd = {
        f"{path.relative_to(ROOT)}: {key}"
        for folder in folders
        for path in sorted((ROOT / "imgkit" / folder).rglob("*.py"))
        for key in literal_keys(path)
        if re.fullmatch("[a-z]+(_[a-z0-9]+)+", str(key)) and key not in {*FIELDS_OF_RECIPES, *firecracker, "x86_64"}
    }
    assert odd == set()
    reports = (BuildReport, StepReport, HostCheck)
    assert [field.name for report in reports for field in fields(report) if "_" in field.name] == []
