"""The tags of ``--tags auto``: the table of docs/howto/registries.md, asked of git itself."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from imgkit.errors import UsageError
from imgkit.host.gitfacts import GitFacts
from imgkit.oci.imagename import is_tag
from imgkit.registry import gittags
from imgkit.registry.gittags import automatic_tags, tag_of_branch, tags_of
from tests.commandline import ROOT
from tests.conftest import need_program


def git(folder: Path, *words: str) -> str:
    options = ["-c", "user.name=test", "-c", "user.email=test@example.com", "-c", "init.defaultBranch=main"]
    argv = [need_program("git"), "-C", str(folder), *options, *words]
    return subprocess.run(argv, capture_output=True, check=True, text=True, stdin=subprocess.DEVNULL).stdout.strip()


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "recipe.py").write_text("x = 1\n")
    (tmp_path / ".gitignore").write_text("out/\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path


@pytest.mark.slow
def test_the_table(sources: Path) -> None:
    commit = git(sources, "rev-parse", "HEAD")
    assert re.fullmatch("[0-9a-f]{40}", commit)
    assert automatic_tags(sources) == ("main", f"sha-{commit}")
    git(sources, "checkout", "-qb", "team/fix")
    assert automatic_tags(sources) == ("team-fix", f"sha-{commit}")
    git(sources, "checkout", "-q", "--detach")
    assert automatic_tags(sources) == (f"sha-{commit}",)
    (sources / "out").mkdir()
    (sources / "out/image").write_text("x")
    assert automatic_tags(sources) == (f"sha-{commit}",)
    (sources / "new").write_text("x")
    assert automatic_tags(sources) == ("local", f"sha-{commit}-dirty")
    (sources / "new").unlink()
    git(sources, "checkout", "-q", "main")
    (sources / "recipe.py").write_text("x = 2\n")
    assert automatic_tags(sources) == ("local", f"sha-{commit}-dirty")
    git(sources, "add", ".")
    (sources / "below").mkdir()
    assert automatic_tags(sources / "below") == ("local", f"sha-{commit}-dirty")


def test_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))  # which may itself be in a work tree
    message = f"{tmp_path}: --tags auto needs git, and a work tree with a commit"
    with pytest.raises(UsageError) as caught:
        automatic_tags(tmp_path)
    assert caught.value.message == message
    assert caught.value.hint == "name the tags: --tags 1.0,latest, or name the folder of the sources: --source"
    git(tmp_path, "init", "-q")
    with pytest.raises(UsageError, match="needs git"):
        automatic_tags(tmp_path)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(UsageError, match="needs git"):
        automatic_tags(tmp_path)


@pytest.mark.parametrize(
    ("branch", "tag"),
    [
        ("main", "main"),
        ("team/fix", "team-fix"),
        ("feature/ä#1", "feature---1"),
        ("v1.0_x-y", "v1.0_x-y"),
        (".hidden", "branch-hidden"),
        ("-x", "branch-x"),
        ("ä", "branch-"),
        ("local", "branch-local"),
        ("local2", "local2"),
        ("sha-" + "a" * 40, "branch-sha-" + "a" * 40),
        ("sha-" + "a" * 39, "sha-" + "a" * 39),
        ("b" * 128, "b" * 128),
        ("b" * 129, "b" * 128),
    ],
)
def test_tags_of_branches(branch: str, tag: str) -> None:
    assert tag_of_branch(branch) == tag
    assert is_tag(tag)


def test_a_branch_is_not_taken_for_something_else() -> None:
    facts = GitFacts(commit="c" * 40, branch="local", changed=False, version="", source="")
    assert tags_of(facts) == ("branch-local", "sha-" + "c" * 40)


def test_the_page_has_the_table() -> None:
    page = (ROOT / "docs/howto/registries.md").read_text()
    for line in (gittags.__doc__ or "").splitlines():
        if line.startswith(("on ", "with ")):
            state, tags = re.split(r"\s{2,}", line, maxsplit=1)
            assert f"| {state.replace('``', '`')} | {tags.replace('``', '`')} |" in page
