"""What git knows about the sources of an image: commit, branch, tag, origin, and whether files were changed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from imgkit.host import process

_TIMEOUT = 30.0  # seconds for one command
_SSH = re.compile(r"(?:ssh://)?(?:[^@/]+@)?([A-Za-z0-9.-]+)(?::[0-9]+/|:|/)(?!//)(.+)")
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class GitFacts:
    """The state of a work tree.

    Attributes:
        commit: of HEAD, in hex.
        branch: that HEAD is on; empty if it is on none.
        changed: whether files differ from the commit, or are new and not ignored.
        version: the newest tag that HEAD has or descends from, as ``git describe --tags`` says it; empty without a tag.
        source: the address of the remote ``origin`` for a browser, without a user's name or password; empty if there is
            none, or if it is a folder.
    """

    commit: str
    branch: str
    changed: bool
    version: str
    source: str

    @property
    def revision(self) -> str:
        """The commit, with ``-dirty`` behind it if files differ from it."""
        return f"{self.commit}-dirty" if self.changed else self.commit


def git_facts(folder: Path) -> GitFacts | None:
    """Return the facts about the work tree that ``folder`` is in.

    Returns:
        None if there is no git on this host, the folder is in no work tree, or nothing was committed yet.
    """
    commit = _git(folder, "rev-parse", "--verify", "--quiet", "HEAD")
    if commit is None or not _COMMIT.fullmatch(commit):
        return None
    return GitFacts(
        commit=commit,
        branch=_git(folder, "symbolic-ref", "--quiet", "--short", "HEAD") or "",
        changed=_git(folder, "status", "--porcelain", "--untracked-files=normal") != "",
        version=_git(folder, "describe", "--tags") or "",
        source=browser_address(_git(folder, "remote", "get-url", "origin") or ""),
    )


def tracked_files(folder: Path) -> frozenset[str]:
    """Return the paths of the files in ``folder`` that git tracks, relative to it; none if it is in no work tree."""
    listed = _git(folder, "ls-files", "-z", "--", ".")
    return frozenset(filter(None, (listed or "").split("\0")))


def browser_address(remote: str) -> str:
    """Return the address of a repository for a browser, without user name, password and ``.git``.

    That of ``git@host:team/project.git`` is ``https://host/team/project``.

    Returns:
        An empty text if the remote is a folder, or not an address.
    """
    remote = remote.removesuffix("/").removesuffix(".git")
    if remote.startswith(("https://", "http://")):
        parts = urlsplit(remote)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    match = _SSH.fullmatch(remote)
    if match is None or remote.startswith(("/", ".", "file:")) or "@" not in remote:
        return ""
    return f"https://{match[1]}/{match[2].lstrip('/')}"


def _git(folder: Path, *words: str) -> str | None:
    """Return the output of a git command; None if it failed.

    The owner of the work tree may be another user (``safe.directory``): whoever builds runs the recipe in it anyway.
    """
    argv = ["git", "-C", str(folder), "-c", "safe.directory=*", *words]
    try:
        return process.run(argv, timeout=_TIMEOUT).decode(errors="replace").strip()
    except (process.MissingProgramError, process.ProgramError):
        return None
