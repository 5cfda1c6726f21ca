"""The Python interface: public names, what importing them imports, and the page about them."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import imgkit
from imgkit import api
from imgkit.api import building
from imgkit.cli.main import main
from imgkit.image import assemble, containerimage
from imgkit.recipe import Recipe
from imgkit.vm.qemu.machines import host_arch
from script import pythonreference
from tests.commandline import ROOT
from tests.test_offline import Build, build, small  # noqa: F401 - fixtures

HEAVY = ("pydantic", "requests", "cryptography", "pysequoia", "yaml", "resolvelib", "imgkit.errors", "imgkit.vm")
RESULTS = (
    *("BuildResult", "ContainerResult", "Comparison", "ContainerContents", "DiskContents", "VerifiedImage", "Plan"),
)


def test_every_public_name_is_there_and_is_stated_three_times() -> None:
    """For readers, for type checkers, and for the import when it is used."""
    tree = ast.parse((ROOT / "imgkit" / "__init__.py").read_text())
    (block, *_) = (node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    typed = {str(node.module): tuple(alias.name for alias in node.names) for node in imports}
    assert typed == imgkit._MODULES
    names = sorted(name for names in typed.values() for name in names)
    assert sorted({*imgkit.__all__} - {"__version__"}) == names
    for name in names:
        value = getattr(imgkit, name)
        assert value.__doc__, name
        assert name in dir(imgkit)
    for module, listed in typed.items():
        for name in listed:
            assert getattr(imgkit, name).__module__.startswith(module), f"{name} is defined elsewhere"


def test_other_names_are_refused() -> None:
    with pytest.raises(AttributeError, match=r"^module 'imgkit' has no attribute 'nonsense'$"):
        imgkit.nonsense  # type: ignore[attr-defined]  # noqa: B018
    assert not hasattr(imgkit, "building")


def test_importing_imgkit_imports_nothing_else() -> None:
    words = f"import imgkit, sys; print([name for name in {HEAVY} if name in sys.modules]); print(imgkit.BootSpec)"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines() == ["[]", "<class 'imgkit.vm.bootspec.BootSpec'>"]


def test_results_are_frozen() -> None:
    for name in RESULTS:
        assert getattr(imgkit, name).__dataclass_params__.frozen, name
        for field in dataclasses.fields(getattr(imgkit, name)):
            assert "list[" not in str(field.type), (name, field.name)
            assert "dict[" not in str(field.type), (name, field.name)


def test_commands_use_the_same_functions() -> None:
    """No command starts a build, an inspection, a comparison or a verification in another way."""
    others = ("imgkit.image.assemble", "imgkit.engines.guestfs", "imgkit.verification", "imgkit.comparison")
    for name in ("build", "lock", "inspect", "verify", "diff"):
        tree = ast.parse((ROOT / "imgkit" / "cli" / "commands" / f"{name}.py").read_text())
        imported = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert any(module.startswith("imgkit.api") for module in imported), name
        assert [module for module in imported if module.startswith(others)] == [], name
    assert api.__doc__


def test_the_page_is_current() -> None:
    text = pythonreference.PAGE.read_text()
    assert text == pythonreference.page(), "python -m script.reference makes it anew"
    for name in imgkit.__all__:
        assert name == "__version__" or f"### imgkit.{name}\n" in text
    assert "'" not in pythonreference._signature("build", imgkit.build).replace("'out'", "").replace("'disk'", "")


def test_every_argument_is_described() -> None:
    obvious = ("recipe", "image")
    for name in imgkit.__all__:
        value = getattr(imgkit, name)
        if inspect.isfunction(value):
            words = set(re.findall(r"\w+", str(value.__doc__)))
            assert set(inspect.signature(value).parameters) - set(obvious) <= words, name


@pytest.mark.slow
def test_the_first_example_prints_what_the_page_says(tmp_path: Path) -> None:
    path = tmp_path / "example.py"
    path.write_text(pythonreference.EXAMPLE)
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, str(path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=ROOT, env=environ)
    assert done.stdout == pythonreference.OUTPUT
    compile(pythonreference.BUILD_EXAMPLE, "example", "exec")


def test_recipes_with_other_fields() -> None:
    recipe = imgkit.load_recipe(ROOT / "recipes" / "core.py", size="8G", hostname="other")
    assert isinstance(recipe, Recipe)
    assert (recipe.size, recipe.hostname) == ("8G", "other")
    with pytest.raises(imgkit.UsageError, match=r"^size: "):
        imgkit.load_recipe(ROOT / "recipes" / "core.py", size="8X")
    with pytest.raises(imgkit.RecipeError, match="no such recipe"):
        imgkit.load_recipe("no-such-recipe.py")


@pytest.mark.slow
def test_a_container_image_from_python(build: Build) -> None:  # noqa: F811
    """The same image as from the command line; then what can be asked about it."""
    recipe = imgkit.load_recipe("recipe.py", mirror="./mirror", release_key="release-key.asc")
    planned = imgkit.plan(recipe, "amd64", shape="container")
    assert [package.package.name for package in planned.packages] == ["hello"]
    assert all(package.sha256 for package in planned.packages)
    made = imgkit.build_container(recipe, ["amd64"], out="from-python", outputs=["oci"])
    build("--mirror", "./mirror", "--release-key", "release-key.asc")
    assert made.paths[0] == Path("from-python/linux.oci")
    comparison = imgkit.diff(made.paths[0], build.here.out / "linux.oci")
    assert comparison.equal, comparison
    assert imgkit.verify(made.paths[0]).ok
    (contents,) = imgkit.inspect_container("from-python/linux.oci")
    assert (contents.packages, contents.digest) == (("hello-1.0-r0",), made.digest)
    assert (
        main(["lock", "recipe.py", "--mirror", "./mirror", "--release-key", "release-key.asc", "--output", "oci"]) == 0
    )
    again = imgkit.build_container(recipe, ["amd64"], out="again", lock="recipe.lock", offline=True)
    assert again.digest == made.digest


def test_the_architecture_is_this_hosts_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []
    recipe = imgkit.load_recipe(ROOT / "recipes" / "core.py")

    def plans(recipe: Recipe, arch: str, shapes: list[str], **options: object) -> list[str]:
        asked.append((arch, *shapes))
        return ["plan"]

    monkeypatch.setattr(assemble, "build", lambda request: asked.append((request.arch,)))
    monkeypatch.setattr(containerimage, "build_container", lambda request: asked.append(tuple(request.arches)))
    monkeypatch.setattr(building, "plans", plans)
    monkeypatch.setattr(building, "engine_for", lambda choice: f"engine {choice}")
    imgkit.build(recipe)
    imgkit.build_container(recipe)
    imgkit.plan(recipe)
    assert asked == [(host_arch(),), (host_arch(),), (host_arch(), "disk")]
