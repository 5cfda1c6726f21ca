"""The tags of ``--tags auto``: what git says about the sources of an image.

==============================  ===================================
state of the work tree          tags
==============================  ===================================
on ``main``, unchanged          ``main``, ``sha-<40>``
on ``team/fix``, unchanged      ``team-fix``, ``sha-<40>``
on no branch, unchanged         ``sha-<40>``
with changes, wherever it is    ``local``, ``sha-<40>-dirty``
==============================  ===================================

Files that are new and not ignored are changes as well. ``<40>`` is the whole hash of the commit. A branch named
``local``, or like the tag of a commit, would be mistaken for these, and gets ``branch-`` before its name.
"""

from __future__ import annotations

import re
from pathlib import Path

from imgkit.errors import UsageError
from imgkit.host import lookup
from imgkit.host.gitfacts import GitFacts, git_facts

AUTO = "auto"
"""The word that asks for these tags."""
_ILLEGAL = re.compile(r"[^A-Za-z0-9_.-]")
_RESERVED = re.compile(r"local|sha-[0-9a-f]{40,}.*")
_MAX_TAG = 128


def automatic_tags(folder: Path) -> tuple[str, ...]:
    """Return the tags for sources in ``folder``.

    Raises:
        UsageError: the folder does not exist, may not be read, or is in no work tree; there is no git, or nothing was
            committed yet.
    """
    if fault := lookup.folder_fault(folder):
        raise UsageError(f"--source: {fault}")
    facts = git_facts(folder)
    if facts is None:
        message = f"{folder}: --tags auto needs git, and a work tree with a commit"
        raise UsageError(message, hint="name the tags: --tags 1.0,latest, or name the folder of the sources: --source")
    return tags_of(facts)


def tags_of(facts: GitFacts) -> tuple[str, ...]:
    """Return the tags for a state of a work tree; see the table above."""
    commit = f"sha-{facts.commit}"
    if facts.changed:
        return "local", f"{commit}-dirty"
    return (tag_of_branch(facts.branch), commit) if facts.branch else (commit,)


def tag_of_branch(branch: str) -> str:
    """Return the tag for a branch: each character that a tag cannot have becomes ``-``."""
    tag = _ILLEGAL.sub("-", branch)
    if tag[0] in ".-" or _RESERVED.fullmatch(tag):
        tag = f"branch-{tag.lstrip('.-')}"
    return tag[:_MAX_TAG]
