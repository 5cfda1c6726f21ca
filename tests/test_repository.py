"""What the repository says of itself: the reference is current, and what the pages tell to run can be run."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from imgkit import __main__ as program
from imgkit import errors
from imgkit.cli.parser import parsers
from imgkit.vm.failures import CommandTimeoutError
from script import reference, variables

ROOT = Path(__file__).parents[1]


def test_the_reference_is_current() -> None:
    assert reference.PAGE.read_text() == reference.page(), "python -m script.reference makes it anew"


def test_the_manual_page_is_current() -> None:
    assert reference.MAN_PAGE.read_text() == reference.man_page(), "python -m script.reference --man makes it anew"


def test_the_manual_page_has_every_command_option_and_variable() -> None:
    page = reference.man_page()
    _, commands = parsers()
    for name, command in commands.items():
        assert f".SS imgkit {name}\n" in page
        for option in command._option_string_actions:
            assert reference.roff(option) in page
    for names, _ in variables.VARIABLES:
        assert f".B {names.replace('`', '')}\n" in page


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--share TAG=DIR[:ro]", "\\-\\-share TAG=DIR[:ro]"),
        (".hidden", "\\&.hidden"),
        ("'quoted' \\x", "\\(aqquoted\\(aq \\ex"),
        ("COMMAND…", "COMMAND..."),
        ("… é", "\\&... \\[u00E9]"),
    ],
)
def test_text_in_the_manual_page_is_no_request(text: str, expected: str) -> None:
    assert reference.roff(text) == expected


def test_the_manual_page_has_no_warnings() -> None:
    """groff, where there is one, reads the page without a complaint, and shows an option as it is typed."""
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    argv = ["groff", "-man", "-Tascii", "-ww", str(reference.MAN_PAGE)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--allow-stale-mirror" in re.sub(r"\x1b\[[0-9;]*m|.\x08", "", done.stdout)


def test_exit_statuses_are_those_of_the_errors() -> None:
    kinds = (errors.UsageError, errors.RecipeError, errors.InputError, errors.HostError, errors.GuestError)
    expected = [
        0,
        errors.DIFFERENT,
        *(kind.exit_status for kind in kinds),
        errors.BUG,
        CommandTimeoutError.exit_status,
        errors.INTERRUPTED,
    ]
    assert [int(status) for status, _ in reference.STATUSES] == expected
    assert [int(status) for status in re.findall(r"^([0-9]+) ", str(errors.__doc__), re.MULTILINE)] == expected
    assert program.INTERRUPTED == errors.INTERRUPTED


def test_the_reference_knows_every_variable() -> None:
    text = "\n".join(path.read_text() for path in sorted((ROOT / "imgkit").rglob("*.py")))
    read = set(re.findall(r"environ(?:ment)?(?:\.get\(|\[)\"([A-Z_]+)\"", text)) | set(
        re.findall(r"\"((?:IMGKIT|ALPINE|IMAGE|AGENT_RUNNER)_[A-Z_]+)\"", text)
    )
    assert {"OUT_DIR", "IMGKIT_CACHE", "ALPINE_MIRROR", "IMGKIT_FIRMWARE_ROOT"} <= read
    named = set(re.findall(r"[A-Z_]{4,}", " ".join(names for names, _ in variables.VARIABLES)))
    assert (
        read - named
        == {"HOME", "LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "IMGKIT_IMAGE", "IMGKIT_ARCH", "IMGKIT_BUILD_ID"} & read
    )


@pytest.mark.slow
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
    assert missing_paths("`imgkit/errors.py`, `imgkit/none.py`, `tests/` and `tests/none/`") == [
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


def test_the_files_that_take_longest_exist() -> None:
    from tests.conftest import _LONGEST

    assert [name for name in _LONGEST if not (ROOT / "tests" / f"test_{name}.py").is_file()] == []
