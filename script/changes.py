"""Collect the news fragments of ``changes/`` into CHANGELOG.md: ``python -m script.changes [--collect]``."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
SECTIONS = {"security": "Security", "added": "Added", "changed": "Changed", "fixed": "Fixed"}
_NAME = re.compile(rf"({'|'.join(SECTIONS)})-[a-z0-9]+(-[a-z0-9]+)*\.md")
_HEADING = "## Unreleased\n"


class FragmentError(Exception):
    """A fragment or CHANGELOG.md is not as changes/README.md says; the message names the file."""


def fragments(folder: Path) -> Mapping[str, Sequence[Path]]:
    """Return the fragments of each kind, sorted by name.

    Raises:
        FragmentError: a file has a wrong name, is empty, is a list, or is no sentence.
    """
    kinds: dict[str, list[Path]] = {kind: [] for kind in SECTIONS}
    for path in sorted(folder.iterdir()):
        if path.name == "README.md":
            continue
        match = _NAME.fullmatch(path.name)
        if match is None:
            raise FragmentError(f"{path.name}: the name must be KIND-WHAT.md, with a kind of {', '.join(SECTIONS)}")
        text = path.read_text().strip()
        if text.startswith(("*", "-", "#")) or not text.endswith((".", ")")) or "\n\n" in text:
            raise FragmentError(f"{path.name}: must be one entry of whole sentences, without a leading sign")
        kinds[match[1]].append(path)
    return kinds


def entry(text: str) -> str:
    """Return the text of a fragment as an entry of CHANGELOG.md."""
    return "* " + text.strip().replace("\n", "\n  ") + "\n"


def collected(changelog: str, kinds: Mapping[str, Sequence[Path]]) -> str:
    """Return CHANGELOG.md with the fragments as sections of "Unreleased", after the existing entries.

    Raises:
        FragmentError: CHANGELOG.md has no heading "Unreleased".
    """
    if _HEADING not in changelog:
        raise FragmentError('CHANGELOG.md: there is no heading "## Unreleased"')
    before, heading, rest = changelog.partition(_HEADING)
    released = re.search(r"^## ", rest, re.MULTILINE)
    end = released.start() if released else len(rest)
    present = rest[:end].rstrip()
    sections = "\n".join(sections_of(kinds))
    return (
        before + heading + present + ("\n\n" + sections if sections else "\n") + ("\n" if released else "") + rest[end:]
    )


def sections_of(kinds: Mapping[str, Sequence[Path]]) -> Sequence[str]:
    """Return one section of Markdown for each kind that has fragments."""
    return [
        f"### {SECTIONS[kind]}\n\n{''.join(entry(path.read_text()) for path in paths)}"
        for kind, paths in kinds.items()
        if paths
    ]


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Run the program; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m script.changes", description=__doc__)
    parser.add_argument("--collect", action="store_true", help="write the entries into CHANGELOG.md, remove the files")
    options = parser.parse_args(argv)
    changelog = root / "CHANGELOG.md"
    try:
        kinds = fragments(root / "changes")
        text = collected(changelog.read_text(), kinds)
    except FragmentError as error:
        print(f"script.changes: {error}", file=sys.stderr)
        return 1
    if not options.collect:
        print("\n".join(sections_of(kinds)), end="")
        return 0
    changelog.write_text(text)
    for path in (path for paths in kinds.values() for path in paths):
        path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
