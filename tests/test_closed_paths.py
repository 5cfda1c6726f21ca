"""Every path that the command line takes may be one that this user may not look at, or one that is too long.

The commands run as an ordinary user (``tests/closedpaths.py``), because root may enter every folder.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from imgkit.cli.parser import parsers
from imgkit.oci.ocilayout import OciLayout
from tests.images import ROOT
from tests.mirrors import RECIPE
from tests.publications import proved

NOBODY = 65534
CLOSED, LONG = "closed/x", "x" * 300
REASONS = {CLOSED: "Permission denied", LONG: "File name too long"}
MIRROR = ("--mirror", "http://127.0.0.1:9")  # where nothing answers

BUILD = ("build", "recipe.py", *MIRROR)
LOCK = ("lock", "recipe.py", *MIRROR)
CONTAINER = ("run", "layout")
PUSH = ("push", "layout", "registry.example/a")
PULL = ("pull", "registry.example/a")

WAYS: dict[str, tuple[int, tuple[str, ...]]] = {
    "init folder": (5, ("init", "PATH")),
    "build recipe": (3, ("build", "PATH")),
    "build --release-key": (2, (*BUILD, "--release-key", "PATH")),
    "build --ca": (2, (*BUILD, "--ca", "PATH")),
    "build --agent-runner": (2, (*BUILD, "--agent-runner", "PATH")),
    "build --out": (5, (*BUILD, "--out", "PATH")),
    "lock recipe": (3, ("lock", "PATH")),
    "lock --release-key": (2, (*LOCK, "--release-key", "PATH")),
    "lock --ca": (2, (*LOCK, "--ca", "PATH")),
    "run --recipe": (3, (*CONTAINER, "--recipe", "PATH", "--", "true")),
    "run --release-key": (2, (*CONTAINER, "--release-key", "PATH", "--", "true")),
    "inspect image": (4, ("inspect", "PATH")),
    "verify image": (4, ("verify", "PATH")),
    "verify --manifest": (4, ("verify", "disk.raw", "--manifest", "PATH")),
    "diff before": (4, ("diff", "PATH", "disk.raw")),
    "diff after": (4, ("diff", "disk.raw", "PATH")),
    "push layout": (4, ("push", "PATH", "registry.example/a")),
    "push --source": (2, (*PUSH, "--tags", "auto", "--source", "PATH")),
    "push --ca": (2, (*PUSH, "--ca", "PATH")),
    "pull --out": (5, (*PULL, "--out", "PATH")),
    "pull --ca": (2, (*PULL, "--ca", "PATH")),
    "publish --from": (4, ("publish", "v1", "--from", "PATH")),
    "publish --to": (5, ("publish", "v1", "--from", "built", "--to", "PATH")),
    "doctor --out": (5, ("doctor", "--out", "PATH")),
}
"""Option or argument of a command → exit status, and a command line in which PATH is its path."""
for machine, rest in {"boot": (), "run": ("--", "true"), "shell": ("--", "true")}.items():
    WAYS[f"{machine} image"] = (4, (machine, "PATH", *rest))
    for option, status in {"--env-file": 2, "--console": 2, "--work": 2}.items():
        WAYS[f"{machine} {option}"] = (status, (machine, "disk.raw", option, "PATH", *rest))
    WAYS[f"{machine} --share"] = (2, (machine, "disk.raw", "--share", "docs=PATH", *rest))
    WAYS[f"{machine} --secret"] = (2, (machine, "disk.raw", "--secret", "K=PATH", *rest))
del WAYS["boot --work"]

PLACES = {
    "mirror": (2, ("build", "recipe.py", "--mirror", "PATH")),
    "setting": (2, (*BUILD, "--set", "overlay=PATH")),
    "extends": (3, ("build", "extends-PATH.py")),
    "base": (4, ("build", "base-PATH.py", *MIRROR)),
    "IMGKIT_CACHE": (5, ("cache", "list")),
    "REQUESTS_CA_BUNDLE": (2, PULL),
}
"""Other places in which a path can be named."""

FIELDS = {
    "overlay": "overlay = 'PATH'",
    "files.0.source": "files = [{'path': '/x', 'source': 'PATH'}]",
    "repositories.0.url": "repositories = [{'url': 'PATH', 'key': 'PATH'}]",
    "repositories.0.key": "",
    "agent.payload": "agent = {'command': ['x'], 'payload': 'PATH'}",
    "agent_runner": "agent_runner = 'PATH'",
    "release_key": "release_key = 'PATH'",
    "mirror": "mirror = 'PATH'",
}
"""Field of a recipe → a line that sets it."""

SKIPPED = {
    "TMPDIR": ("inspect", "empty.tar", "empty.tar: is not an OCI image layout"),
    "XDG_RUNTIME_DIR": ("shell", "disk.raw", "--share", "docs=nowhere", "nowhere: no such folder"),
}
"""Variable that may be another user's, as after su → a command that does not need its folder, and how it ends."""

Case: TypeAlias = tuple[str, str]
Outcome: TypeAlias = tuple[int, str]


def with_paths() -> set[str]:
    """Return the options and arguments of all commands that are the name of a file or folder."""
    return {
        f"{name} {next(iter(action.option_strings), action.dest)}"
        for name, parser in parsers()[1].items()
        for action in parser._actions
        if action.type is Path or any(word in str(action.metavar) for word in ("DIR", "FILE", "TARGET"))
    }


def test_every_path_of_the_command_line_is_tried() -> None:
    assert with_paths() == WAYS.keys()


def make(home: Path) -> None:
    """Make what the commands need besides the path."""
    (home / "closed").mkdir()
    (home / "closed/x").write_text("")
    (home / "recipe.py").write_text(RECIPE)
    sector = bytes(510) + b"\x55\xaa"
    (home / "disk.raw").write_bytes(sector + bytes(1 << 20))
    (home / "empty.tar").write_bytes(bytes(1024))
    OciLayout.create(home / "layout")
    proved(home / "built", "amd64")
    for number, path in enumerate(REASONS):
        place = str(home / path)
        lines = "\n".join(FIELDS.values()).replace("PATH", place)
        (home / f"fields-{number}.py").write_text(f"{RECIPE}\n{lines}\n")
        (home / f"extends-{number}.py").write_text(f"extends = {place!r}\n")
        (home / f"base-{number}.py").write_text(f"{RECIPE}\nbase = {'oci:' + place!r}\n")


def usual(home: Path) -> dict[str, str]:
    """Return the variables of a command: nothing of this process."""
    names = ("REQUESTS_CA_BUNDLE", "TMPDIR", "DOCKER_CONFIG", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
    return {**dict.fromkeys(names, ""), "HOME": str(home), "IMGKIT_CACHE": str(home / "cache")}


def given(home: Path, place: str, path: str) -> tuple[dict[str, str], list[str]]:
    """Return the variables and words of a command that is given ``path``."""
    words = (WAYS | PLACES)[place][1]
    target, number = str(home / path), str(list(REASONS).index(path))
    if place.endswith("--console"):
        target += "/console"
    variables = usual(home)
    variables |= {place: target} if place in variables else {}
    texts = [word.replace("-PATH", f"-{number}").replace("PATH", target) for word in words]
    return variables, texts


def as_ordinary_user(home: Path, commands: list[Any]) -> list[Outcome]:
    """Run commands in ``home``, which belongs to that user."""
    if os.geteuid() == 0:
        for path in (home, *home.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
    (home / "closed").chmod(0)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.closedpaths", str(NOBODY)],
        input=json.dumps(commands), cwd=home, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [(status, output) for status, output in json.loads(done.stdout)]


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """Yield a folder that an ordinary user reaches, in which one folder may not be entered."""
    folder = Path(tempfile.mkdtemp(prefix="imgkit-closed-"))
    make(folder)
    yield folder
    (folder / "closed").chmod(0o700)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def outcomes(home: Path) -> dict[Case, Outcome]:
    """Return how each command ends, by the place of the path and the path."""
    cases = [(place, path) for place in WAYS | PLACES for path in REASONS]
    commands: list[Any] = [given(home, *case) for case in cases]
    for number, path in enumerate(REASONS):
        cases.append(("fields", path))
        commands.append((usual(home), ["build", f"fields-{number}.py"]))
        for name, words in SKIPPED.items():
            cases.append((f"skipped {name}", path))
            commands.append(({**usual(home), name: str(home / path)}, words[:-1]))
    return dict(zip(cases, as_ordinary_user(home, commands), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("path", REASONS, ids=["closed", "long"])
@pytest.mark.parametrize("place", WAYS | PLACES)
def test_a_sentence_names_the_path(place: str, path: str, outcomes: dict[Case, Outcome], home: Path) -> None:
    status, output = outcomes[place, path]
    lines = [line for line in output.splitlines() if line.startswith("error: ") or place == "doctor --out"]
    line = next((line for line in lines if str(home / path) in line), "")
    assert REASONS[path] in line, output
    assert status == (WAYS | PLACES)[place][0], output
    assert "Traceback" not in output


@pytest.mark.slow
@pytest.mark.parametrize("path", REASONS, ids=["closed", "long"])
def test_a_recipe_has_all_its_faults_named(path: str, outcomes: dict[Case, Outcome], home: Path) -> None:
    status, output = outcomes["fields", path]
    assert status == 3
    assert set(output.splitlines()[1:]) == {
        f"  {field}: {home / path}: cannot be looked up: {REASONS[path]}" for field in FIELDS
    }


@pytest.mark.slow
@pytest.mark.parametrize("path", REASONS, ids=["closed", "long"])
@pytest.mark.parametrize("name", SKIPPED)
def test_folders_that_a_command_can_do_without(name: str, path: str, outcomes: dict[Case, Outcome]) -> None:
    _, output = outcomes[f"skipped {name}", path]
    assert SKIPPED[name][-1] in output
    assert "Traceback" not in output
