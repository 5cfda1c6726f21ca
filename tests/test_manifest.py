"""What becomes of findings about a payload's binaries: entries of the manifest, and what the build says."""

from __future__ import annotations

import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from imgkit.disk.layout import make_layout, sized_partitions
from imgkit.disk.regions import DiskMap, regions_of
from imgkit.image.manifest import Outputs, describe
from imgkit.recipe import load
from imgkit.rootfs.binaries.examine import BinaryFindings, DoubtfulBinary, ForeignBinary, MissingLibrary
from imgkit.rootfs.compose import Composition
from imgkit.rootfs.install import ScriptReport
from tests.commandline import ROOT
from tests.test_lockfile import plan_of

FINDINGS = BinaryFindings(
    (ForeignBinary("opt/a.exe", 5, "Windows"), ForeignBinary("opt/b", 7, "aarch64")),
    (MissingLibrary("opt/c.node", "libstdc++.so.6"),),
    (DoubtfulBinary("opt/d", "is odd"),),
)


@pytest.mark.parametrize("policy", ["warn", "prune"])
@pytest.mark.parametrize("findings", [FINDINGS, BinaryFindings()], ids=["some", "none"])
def test_all_findings_are_in_the_manifest(findings: BinaryFindings, policy: str, tmp_path: Path) -> None:
    recipe = load(ROOT / "recipes/core.py", {"mirror": "http://mirror.test/", "payload_binaries": policy})
    layout = make_layout(sized_partitions(recipe.architecture("amd64")), 1 << 30, uuid.UUID(int=1))
    kernel: Any = SimpleNamespace(release="6")
    composition = cast(
        "Composition",
        SimpleNamespace(kernel=kernel, scripts=ScriptReport((), (), ()), records={}, build_id="b", binaries=findings),
    )
    file = tmp_path / "file"
    file.touch()
    disk = DiskMap(regions_of(layout), {0: "0" * 64})
    outputs = Outputs(disk, {"EFI/BOOT/BOOTX64.EFI": b"x"}, file, file, file)
    manifest = describe(recipe, plan_of(recipe, "amd64"), composition, layout, outputs)
    empty: dict[str, Any] = {"policy": policy, "otherPlatforms": [], "missingLibraries": [], "doubtful": []}
    listed = {
        "otherPlatforms": [
            {"path": "/opt/a.exe", "size": 5, "platform": "Windows"},
            {"path": "/opt/b", "size": 7, "platform": "aarch64"},
        ],
        "missingLibraries": [{"path": "/opt/c.node", "library": "libstdc++.so.6"}],
        "doubtful": [{"path": "/opt/d", "problem": "is odd"}],
    }
    assert manifest["payload"] == ({**empty, **listed} if findings is FINDINGS else empty)
