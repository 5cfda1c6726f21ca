"""script/coverage.py: what was executed is counted."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from script import coverage as program
from tests.conftest import need_program


def test_the_innermost_range_counts_and_processes_add_up() -> None:
    executed = bytearray(10)
    outer = {
        "ranges": [{"startOffset": 0, "endOffset": 10, "count": 1}, {"startOffset": 4, "endOffset": 6, "count": 0}]
    }
    program._add(executed, [outer, {"ranges": [{"startOffset": 8, "endOffset": 99, "count": 0}]}])
    assert list(executed) == [1, 1, 1, 1, 0, 0, 1, 1, 0, 0]
    program._add(executed, [{"ranges": [{"startOffset": 5, "endOffset": 6, "count": 3}]}])
    assert list(executed) == [1, 1, 1, 1, 0, 1, 1, 1, 0, 0]


@pytest.mark.slow
def test_scripts_are_counted_on_the_host_and_in_guests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_program("node")
    (tmp_path / "overlay/opt").mkdir(parents=True)
    text = "const a = 1;\nif (a) f();\nelse g();\n"
    (tmp_path / "overlay/opt/x.js").write_text(text)
    (tmp_path / "script").mkdir()
    (tmp_path / "script/positions.js").write_text((program.ROOT / "script/positions.js").read_text())
    monkeypatch.setattr(program, "ROOT", tmp_path)
    out = tmp_path / "out"
    assert program.script_counts(out) == {"overlay/opt/x.js": (0, 4, 0, 2)}
    (out / "node").mkdir(parents=True)
    unexecuted = {"startOffset": text.index("else"), "endOffset": len(text), "count": 0}
    ranges = [{"startOffset": 0, "endOffset": len(text), "count": 1}, unexecuted]
    record: dict[str, Any] = {"result": [{"url": "file:///other.js", "functions": []}]}
    (out / "node/1.json").write_text(json.dumps(record))
    assert program.script_counts(out) == {"overlay/opt/x.js": (0, 4, 0, 2)}
    (out / "guests").mkdir()
    record = {"result": [{"url": "file:///opt/x.js", "functions": [{"ranges": ranges}]}]}
    data = json.dumps(record).encode()
    with tarfile.open(out / "guests/guest-1.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("./coverage-1.json")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    assert program.script_counts(out) == {"overlay/opt/x.js": (3, 4, 1, 2)}


def test_the_table_has_shares_and_a_sum() -> None:
    rows = {"b": (1, 2, 0, 0), "a": (3, 6, 1, 4)}
    lines = program.table("package", ("lines", "branches"), rows).splitlines()
    assert lines[2:] == ["| `a` | 50% of 6 | 25% of 4 |", "| `b` | 50% of 2 |  |", "| `all` | 50% of 8 | 25% of 4 |"]
