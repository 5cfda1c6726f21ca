"""What the repository says of itself: the reference is current, and what the pages tell to run can be run."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from script import reference

ROOT = Path(__file__).parents[1]


def test_the_reference_is_current() -> None:
    assert reference.PAGE.read_text() == reference.page(), "python -m script.reference makes it anew"


def test_the_reference_knows_every_variable() -> None:
    text = "\n".join(path.read_text() for path in sorted((ROOT / "imgkit").rglob("*.py")))
    read = set(re.findall(r"environ(?:ment)?(?:\.get\(|\[)\"([A-Z_]+)\"", text)) | set(
        re.findall(r"\"((?:IMGKIT|ALPINE|IMAGE|AGENT_RUNNER)_[A-Z_]+)\"", text)
    )
    assert {"OUT_DIR", "IMGKIT_CACHE", "ALPINE_MIRROR", "IMGKIT_FIRMWARE_ROOT"} <= read
    named = set(re.findall(r"[A-Z_]{4,}", reference.TAIL))
    assert read - named == {"HOME", "LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "IMGKIT_IMAGE", "IMGKIT_BUILD_ID"} & read


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py")))
def test_benchmarks_say_how_they_are_run(name: str) -> None:
    argv = [sys.executable, "-m", f"benchmarks.{name}", "--help"]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert f"python -m benchmarks.{name}" in done.stdout


def test_a_missing_argument_of_a_benchmark_is_no_traceback() -> None:
    argv = [sys.executable, "-m", "benchmarks.solver"]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert done.returncode == 2
    assert "required: APKINDEX.tar.gz" in done.stderr


def test_pages_name_no_benchmark_that_is_not_there() -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    text = "\n".join(page.read_text() for page in pages)
    named = set(re.findall(r"\bbenchmarks\.(\w+)", text))
    assert named == {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert "benchmarks/" not in re.sub(r"`benchmarks/`", "", text)


def test_links_of_the_pages_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page}: {target}"


def missing_paths(text: str) -> list[str]:
    """Return the files and folders of the repository that a page names and that do not exist."""
    named = re.findall(r"`((?:imgkit|tests|fuzz|fixtures|script|overlay|benchmarks)/[\w./-]*)`", text)
    return [path for path in named if not (ROOT / path.replace("TARGET/", "")).exists()]


def test_the_pages_name_files_that_exist() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    assert {str(page): missing for page in pages if (missing := missing_paths(page.read_text()))} == {}


def test_a_page_that_names_no_file_is_noticed() -> None:
    assert missing_paths("`imgkit/recipe.py`, `imgkit/none.py`, `tests/` and `tests/none/`") == [
        "imgkit/none.py",
        "tests/none/",
    ]


def test_a_missing_tool_is_a_failure_in_ci(tmp_path: Path) -> None:
    """``.ci/run`` sets what :func:`tests.conftest.need` looks at."""
    for folder in (".ci", "script"):
        (tmp_path / folder).mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci/run")
    (tmp_path / "script/test").write_text('#!/bin/sh\necho "CI=$CI"\n')
    (tmp_path / "script/test").chmod(0o755)
    done = subprocess.run([tmp_path / ".ci/run"], env={"PATH": "/usr/bin:/bin"}, capture_output=True, check=True)
    assert done.stdout == b"CI=1\n"
