"""The distribution: what is in its wheel, that it works in an environment of its own, and beside another imgkit."""

from __future__ import annotations

import json
import os
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests import wheels
from tests.commandline import ROOT
from tests.conftest import need
from tests.images import Builder, has_bindings

OTHER = "imgkit==1.2.3"
"""The other project that has the name imgkit, as a requirement of pip."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheels.make_wheel(tmp_path_factory.mktemp("wheel"))


def shipped() -> dict[str, tuple[bytes, bool]]:
    """Return the files that come with the wheel: name → contents, and whether they are executable."""
    return {
        f"imgkit/data/{path.relative_to(ROOT)}": (path.read_bytes(), bool(path.stat().st_mode & 0o100))
        for name in ("recipes", "overlay", "agents")
        for path in (ROOT / name).rglob("*")
        if path.is_file() and not {"__pycache__", "node_modules"} & set(path.parts) and path.suffix != ".lock"
    }


@pytest.mark.slow
def test_recipes_and_overlay_come_with_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = {
            info.filename: (archive.read(info), bool(info.external_attr >> 16 & 0o100))
            for info in archive.infolist()
            if info.filename.startswith("imgkit/data/") and not info.is_dir()
        }
    assert inside == shipped()
    assert {"imgkit/data/recipes/arch/amd64.py", "imgkit/data/overlay/opt/agent-runner/index.js"} < set(inside)
    assert inside["imgkit/data/overlay/etc/init.d/agentd"][1]


def lost(folder: Path) -> list[str]:
    """Return what a wheel cannot have of a folder: symbolic links and empty folders."""
    return [path.name for path in folder.rglob("*") if path.is_symlink() or (path.is_dir() and not any(path.iterdir()))]


def test_nothing_of_it_is_lost_in_a_wheel() -> None:
    found = {name: lost(ROOT / name) for name in ("recipes", "overlay", "agents")}
    assert found == {"recipes": [], "overlay": [], "agents": []}


def test_what_a_wheel_would_lose_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "folder/empty").mkdir(parents=True)
    (tmp_path / "folder/file").touch()
    (tmp_path / "folder/link").symlink_to("file")
    assert sorted(lost(tmp_path)) == ["empty", "link"]


def test_every_module_is_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read("imgkit_sandbox-0.1.0.dist-info/METADATA").decode()
        points = archive.read("imgkit_sandbox-0.1.0.dist-info/entry_points.txt").decode()
    kinds = (".py", ".in", ".asc", ".pub", "py.typed")
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "imgkit").rglob("*") if path.name.endswith(kinds)}
    assert {name for name in files if name not in names} == set()
    assert {name.partition("/")[0] for name in names} == {
        "imgkit",
        "imgkit_sandbox-0.1.0.data",
        "imgkit_sandbox-0.1.0.dist-info",
    }
    assert "\nName: imgkit-sandbox\n" in metadata
    assert "imgkit = imgkit.__main__:program" in points
    assert "imgkit = imgkit.testing" in points


# ---- beside the other project ----------------------------------------------------------------------------------------


@pytest.mark.mirror
@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_beside_the_other_imgkit_it_says_so(first: str, wheel: Path, tmp_path: Path) -> None:
    venv = wheels.environment(tmp_path / "venv")
    ours, theirs = str(wheel), OTHER
    need("a Python package index", wheels.install(venv, "six").returncode == 0)  # which theirs needs
    for requirement in (ours, theirs) if first == "ours" else (theirs, ours):
        done = wheels.install(venv, "--no-deps", requirement)
        need("a Python package index", done.returncode == 0)
    site = venv / f"lib/{next((venv / 'lib').iterdir()).name}/site-packages/imgkit"
    message = f"files of two projects that are both called imgkit were installed into the folder {site}"
    hint = "pip uninstall imgkit imgkit-sandbox, and then install imgkit-sandbox without the package imgkit"
    for module in ("imgkit", "imgkit.vm", "imgkit.recipe"):
        done = run(venv, "-c", f"import {module}")
        assert done.stderr.splitlines()[-1] == f"ImportError: {message}; {hint}"
    program = subprocess.run([venv / "bin/imgkit", "--help"], capture_output=True, text=True, check=False)
    assert (program.returncode, program.stderr) == (5, f"error: {message}\nhint: {hint}\n")
    # What the hint says helps.
    subprocess.run([venv / "bin/pip", "uninstall", "-qy", "imgkit", "imgkit-sandbox"], check=True)
    assert wheels.install(venv, "--no-deps", ours).returncode == 0
    assert run(venv, "-m", "imgkit", "--version").stdout == "imgkit 0.1.0\n"
    # Without the last step, too, nothing begins to work by halves.
    assert wheels.install(venv, "--no-deps", theirs).returncode == 0
    subprocess.run([venv / "bin/pip", "uninstall", "-qy", "imgkit"], check=True)
    program = subprocess.run([venv / "bin/imgkit", "--help"], capture_output=True, text=True, check=False)
    assert (program.returncode, program.stderr) == (5, f"error: {message}\nhint: {hint}\n")


def run(venv: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the Python of a virtual environment, outside the repository."""
    return subprocess.run([venv / "bin/python", *words], cwd=venv, capture_output=True, text=True, check=False)


# ---- other installers ------------------------------------------------------------------------------------------------


@pytest.mark.mirror
@pytest.mark.parametrize("tool", ["pipx", "uv"])
def test_installers_of_programs(tool: str, wheel: Path, tmp_path: Path) -> None:
    """They make an environment of their own for the program; what comes with the wheel arrives unchanged."""
    venv = wheels.environment(tmp_path / "venv", wheels.other_python())
    need("a Python package index", wheels.install(venv, tool).returncode == 0)
    home = tmp_path / "home"
    variables = {
        **{name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")},
        **{"HOME": str(home), "XDG_CACHE_HOME": str(Path.home() / ".cache"), "UV_PYTHON_DOWNLOADS": "never"},
    }
    choice = ["tool", "install", "--python", str(venv / "bin/python")] if tool == "uv" else ["install"]
    done = subprocess.run(
        [venv / "bin" / tool, *choice, wheel], env=variables, capture_output=True, text=True, umask=0o077, check=False
    )
    assert done.returncode == 0, done.stderr
    program = home / ".local/bin/imgkit"
    found = subprocess.run([program, "doctor", "--json"], env=variables, capture_output=True, text=True, check=False)
    checks = {check["name"]: check for check in json.loads(found.stdout)}
    need("libguestfs' Python bindings", has_bindings())
    assert checks["libguestfs bindings"]["ok"]
    (data,) = home.rglob("site-packages/imgkit/data")
    arrived = {
        f"imgkit/data/{path.relative_to(data)}": (path.read_bytes(), bool(path.stat().st_mode & 0o100))
        for path in data.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert arrived == shipped()


# ---- in an environment of its own ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an environment with the wheel, in which libguestfs' bindings cannot be imported."""
    venv = wheels.environment(tmp_path_factory.mktemp("installed") / "venv", wheels.other_python())
    done = wheels.install(venv, f"imgkit-sandbox[test] @ {wheel.as_uri()}")
    need("a Python package index", done.returncode == 0)
    assert run(venv, "-c", "import guestfs").returncode == 1
    return venv


@pytest.mark.vm
def test_a_project_is_begun_built_and_tested_with_the_wheel(installed: Path, builder: Builder, tmp_path: Path) -> None:
    """The first steps of a newcomer; and the image is the one that a checkout of the repository builds."""
    project = tmp_path / "demo"
    path = f"{installed / 'bin'}:/usr/sbin:/usr/bin:/sbin:/bin"
    environment = {**builder.env, "PATH": path}
    environment.pop("PYTHONPATH", None)

    def step(folder: Path, *words: str | Path) -> str:
        argv = [str(installed / "bin" / words[0]), *map(str, words[1:])]
        done = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert json.loads(step(tmp_path, "imgkit", "doctor", "--json"))[1]["ok"]
    step(tmp_path, "imgkit", "init", "demo", "--base", "core")
    step(project, "imgkit", "build", "image.py", "--arch", "amd64", *builder.words)
    disk = project / "out/demo-amd64.qcow2"
    assert "1 passed" in step(project, "pytest", "-p", "no:cacheprovider", "--imgkit-image", disk)

    # A disk is the same in its files; a container image is the same in every byte.
    built = json.loads((project / "out/demo-amd64.manifest.json").read_bytes())
    words = ("build", "image.py", "--arch", "amd64", "--output", "oci", "--json", *builder.words)
    (container,) = json.loads(step(project, "imgkit", *words))
    done = builder.run("build", project / "image.py", *words[2:4], "--output", "all", "--out", tmp_path, *words[6:])
    assert done.returncode == 0, done.stderr
    disk_report, container_report = json.loads(done.stdout)
    again = json.loads(Path(disk_report["manifest"]).read_bytes())
    assert (again["buildId"], again["files"]) == (built["buildId"], built["files"])
    assert container_report["digest"] == container["digest"]
