"""What git knows about the sources of an image."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from imgkit.host.gitfacts import GitFacts, browser_address, git_facts

IDENTITY = {
    "GIT_AUTHOR_NAME": "A",
    "GIT_AUTHOR_EMAIL": "a@example.com",
    "GIT_COMMITTER_NAME": "A",
    "GIT_COMMITTER_EMAIL": "a@example.com",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
}


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a repository with one commit on the branch ``main``."""
    for name, value in IDENTITY.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "repository"
    git("init", "-q", "-b", "main", str(folder))
    (folder / "recipe.py").write_text("name = 'x'\n")
    git("-C", str(folder), "add", ".")
    git("-C", str(folder), "commit", "-qm", "first")
    return folder


def git(*words: str) -> str:
    return subprocess.run(["git", *words], check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.slow
def test_a_clean_work_tree(repository: Path) -> None:
    head = git("-C", str(repository), "rev-parse", "HEAD")
    (repository / "recipes").mkdir()
    facts = git_facts(repository / "recipes")
    assert facts == GitFacts(head, "main", changed=False, version="", source="")
    assert facts.revision == head


@pytest.mark.slow
def test_a_tag_and_a_remote_and_changes(repository: Path) -> None:
    git("-C", str(repository), "tag", "v1.2")
    git("-C", str(repository), "remote", "add", "origin", "https://user:secret@git.example.com/team/project.git")
    facts = git_facts(repository)
    assert facts is not None
    assert (facts.version, facts.source) == ("v1.2", "https://git.example.com/team/project")
    (repository / "new").write_text("")
    facts = git_facts(repository)
    assert facts is not None
    assert facts.changed
    assert facts.revision == f"{facts.commit}-dirty"


@pytest.mark.slow
def test_a_head_on_no_branch_with_a_changed_file(repository: Path) -> None:
    git("-C", str(repository), "checkout", "-q", "--detach")
    (repository / "recipe.py").write_text("name = 'y'\n")
    facts = git_facts(repository)
    assert facts is not None
    assert (facts.branch, facts.changed) == ("", True)


@pytest.mark.slow
def test_no_repository_no_commit_no_git(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plain").mkdir()
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert git_facts(tmp_path / "plain") is None
    git("init", "-q", str(tmp_path / "empty"))
    assert git_facts(tmp_path / "empty") is None
    monkeypatch.setenv("PATH", "")
    assert git_facts(repository) is None


@pytest.mark.parametrize(
    ("remote", "address"),
    [
        ("https://git.example.com/team/project", "https://git.example.com/team/project"),
        ("https://token@git.example.com:8443/team/project.git/", "https://git.example.com:8443/team/project"),
        ("http://git.example.com/project.git", "http://git.example.com/project"),
        ("git@git.example.com:team/project.git", "https://git.example.com/team/project"),
        ("ssh://git@git.example.com/team/project.git", "https://git.example.com/team/project"),
        ("ssh://git@git.example.com:2222/team/project.git", "https://git.example.com/team/project"),
        ("/srv/git/project.git", ""),
        ("../project", ""),
        ("file:///srv/git/project.git", ""),
        ("C:project", ""),
        ("", ""),
    ],
)
def test_the_address_of_a_remote_for_a_browser(remote: str, address: str) -> None:
    assert browser_address(remote) == address
