"""News fragments: those of the repository are as changes/README.md says, and collecting them loses nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from script import changes

CHANGELOG = "# Changelog\n\n## Unreleased\n\n* Earlier.\n\n### Fixed\n\n* Old.\n\n## 1.0\n\n* First.\n"
GOOD = {
    "fixed-b.md": "Second fix,\nin two lines.\n",
    "fixed-a-9.md": "First fix.",
    "added-x.md": "New ([page](docs/x.md)).\n",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "changes").mkdir()
    (tmp_path / "changes/README.md").write_text("# not a fragment")
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    return tmp_path


def write(root: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        (root / "changes" / name).write_text(text)


def test_the_fragments_of_the_repository_can_be_collected() -> None:
    text = (changes.ROOT / "CHANGELOG.md").read_text()
    assert changes.collected(text, changes.fragments(changes.ROOT / "changes")).startswith("# Changelog\n")


def test_fragments_become_sections_in_the_order_of_the_kinds(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(root, GOOD)
    assert changes.main([], root) == 0
    sections = "### Added\n\n* New ([page](docs/x.md)).\n\n### Fixed\n\n* First fix.\n* Second fix,\n  in two lines.\n"
    assert capsys.readouterr().out == sections
    assert (root / "CHANGELOG.md").read_text() == CHANGELOG, "printing changes nothing"
    assert len(list((root / "changes").iterdir())) == 4


@pytest.mark.parametrize("released", [True, False])
def test_collecting_writes_them_and_removes_the_files(released: bool, root: Path) -> None:
    write(root, GOOD)
    before, heading, after = CHANGELOG.partition("## 1.0")
    (root / "CHANGELOG.md").write_text(before + heading + after if released else before)
    assert changes.main(["--collect"], root) == 0
    sections = "### Added\n\n* New ([page](docs/x.md)).\n\n### Fixed\n\n* First fix.\n* Second fix,\n  in two lines.\n"
    assert (root / "CHANGELOG.md").read_text() == before + sections + ("\n" + heading + after if released else "")
    assert [path.name for path in (root / "changes").iterdir()] == ["README.md"]


def test_without_fragments_nothing_changes(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert changes.main(["--collect"], root) == 0
    assert (root / "CHANGELOG.md").read_text() == CHANGELOG
    assert changes.main([], root) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["news-x.md", "fixed.md", "fixed-.md", "fixed-X.md", "fixed-a--b.md", "fixed-a.txt"])
def test_a_wrong_name_is_refused(name: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(root, {name: "Good."})
    assert changes.main(["--collect"], root) == 1
    said = "the name must be KIND-WHAT.md, with a kind of security, added, changed, fixed"
    assert capsys.readouterr().err == f"script.changes: {name}: {said}\n"
    assert (root / "changes" / name).exists()
    assert (root / "CHANGELOG.md").read_text() == CHANGELOG


@pytest.mark.parametrize("text", ["", "\n", "* Item.", "- Item.", "# Heading.", "No end", "Two.\n\nParagraphs."])
def test_a_fragment_that_is_no_entry_is_refused(text: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(root, {"fixed-x.md": text})
    assert changes.main([], root) == 1
    assert "fixed-x.md: must be one entry of whole sentences" in capsys.readouterr().err


def test_a_changelog_without_unreleased_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "CHANGELOG.md").write_text("# Changelog\n\n## 1.0\n")
    assert changes.main([], root) == 1
    assert capsys.readouterr().err == 'script.changes: CHANGELOG.md: there is no heading "## Unreleased"\n'
