"""Lock files: what is written is read, what does not fit the recipe is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from imgkit.apk.index import Package, Repository
from imgkit.errors import HostError, InputError, RecipeError
from imgkit.planning import lockfile
from imgkit.planning.plan import Artefact, Plan, PlannedPackage
from imgkit.recipe import Recipe, load

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load(ROOT / "recipes" / "core.py", {"mirror": "http://mirror.test/alpine/"})


def plan_of(recipe: Recipe, arch: str) -> Plan:
    folder = f"http://mirror.test/alpine/v3.23/main/{recipe.architecture(arch).alpine}"
    package = Package(
        name="busybox", version="1.37-r0", arch="x86_64", identity="Q1" + "A" * 27 + "=", depends=("so:libc",), size=5
    )
    return Plan(
        arch=arch,
        branch=recipe.branch,
        version="3.23.6",
        base=Artefact("http://mirror.test/alpine/v3.23/releases/x.tar.gz", 9, "ab" * 32, "OpenPGP 1234"),
        indexes=(Artefact(f"{folder}/APKINDEX.tar.gz", 7, "cd" * 32, "key.rsa.pub"),),
        world=("busybox",),
        packages=(
            PlannedPackage(package, f"{folder}/busybox-1.37-r0.apk", "ef" * 32),
            PlannedPackage(Package(name="musl", version="1-r0"), f"{folder}/musl-1-r0.apk"),
            PlannedPackage(Package(name="only-in-minirootfs", version="1-r0"), "/only-in-minirootfs-1-r0.apk"),
        ),
    )


@pytest.fixture
def lock(recipe: Recipe, tmp_path: Path) -> Path:
    path = tmp_path / "alpine.lock"
    lockfile.write(path, recipe, [plan_of(recipe, arch) for arch in recipe.architectures])
    return path


def test_what_is_written_is_read(recipe: Recipe, lock: Path) -> None:
    expected = plan_of(recipe, "arm64")
    packages = tuple(
        replace(planned, package=replace(planned.package, repository=Repository(url=planned.url.rpartition("/")[0])))
        for planned in expected.packages
    )
    assert lockfile.read(lock, recipe, "arm64") == replace(expected, packages=packages)


def test_no_mirror_is_named_and_another_one_will_do(recipe: Recipe, lock: Path) -> None:
    assert "mirror.test" not in lock.read_text()
    other = recipe.model_copy(update={"mirror": "https://elsewhere.test"})
    assert lockfile.read(lock, other, "amd64").base.url == "https://elsewhere.test/v3.23/releases/x.tar.gz"


def test_the_file_can_be_read_and_compared_by_people(recipe: Recipe, tmp_path: Path) -> None:
    """A line for each value, with as many blanks as it is levels deep, and letters as they are."""
    plan = plan_of(recipe, "amd64")
    package = replace(plan.packages[0], package=replace(plan.packages[0].package, description="café"))
    path = tmp_path / "x.lock"
    lockfile.write(path, recipe, [replace(plan, packages=(package,))])
    lines = path.read_text().splitlines()
    assert lines[:5] == ["{", ' "lock": 1,', ' "architectures": {', '  "amd64": {', f'   "branch": "{recipe.branch}",']
    assert '"T:café",' in [line.strip() for line in lines]


def test_equal_plans_make_equal_files(recipe: Recipe, lock: Path) -> None:
    before = lock.read_bytes()
    lockfile.write(lock, recipe, [plan_of(recipe, arch) for arch in sorted(recipe.architectures, reverse=True)])
    assert lock.read_bytes() == before
    assert [path.name for path in lock.parent.iterdir()] == ["alpine.lock"]


@pytest.mark.parametrize(
    "change", [{"packages": ("bash",)}, {"branch": "v3.22"}, {"repositories": ("main",)}, {"version": "3.23.5"}]
)
def test_a_lock_that_the_recipe_has_outgrown_is_refused(recipe: Recipe, lock: Path, change: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match=f"the recipe has changed since \\({next(iter(change))}\\)") as caught:
        lockfile.read(lock, recipe.model_copy(update=change), "amd64")
    assert "imgkit lock" in str(caught.value.hint)


def test_what_is_not_locked_anew_stays_if_the_recipe_still_has_it(recipe: Recipe, lock: Path) -> None:
    before = lock.read_bytes()
    newer = replace(plan_of(recipe, "amd64"), version="3.23.7")
    lockfile.write(lock, recipe, [newer], lockfile.others(lock, recipe, ["amd64"]))
    assert lockfile.read(lock, recipe, "amd64").version == "3.23.7"
    assert lockfile.read(lock, recipe, "arm64").version == "3.23.6"
    lockfile.write(lock, recipe, [plan_of(recipe, "amd64")], lockfile.others(lock, recipe, ["amd64"]))
    assert lock.read_bytes() == before
    smaller = recipe.model_copy(update={"architectures": {"amd64": recipe.architectures["amd64"]}})
    assert lockfile.others(lock, smaller, ["amd64"]) == {}
    assert lockfile.others(lock, recipe, sorted(recipe.architectures)) == {}


def test_what_may_have_more_to_keep_is_not_overwritten(recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "alpine.lock"
    assert lockfile.others(path, recipe, ["amd64"]) == {}
    path.write_text("<<<<<<< HEAD")
    with pytest.raises(InputError, match="not JSON") as caught:
        lockfile.others(path, recipe, ["amd64"])
    assert caught.value.hint == f"imgkit lock {tmp_path}/alpine.py"
    assert lockfile.others(path, recipe, ["amd64", "arm64"]) == {}, "everything is made anew"


def test_an_architecture_that_was_not_locked(recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "alpine.lock"
    lockfile.write(path, recipe, [plan_of(recipe, "amd64")])
    with pytest.raises(RecipeError, match="has nothing for arm64"):
        lockfile.read(path, recipe, "arm64")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON: "),
        ("{", "not JSON: "),
        ("[]", "is not a lock file of imgkit: the whole: Input should be"),
        ("{}", "is not a lock file of imgkit: lock: Field required; architectures: Field required$"),
        ('{"lock": 2, "architectures": {}}', "is of version 2, not 1$"),
        ('{"lock": 0}', "is of version 0, not 1$"),
        ('{"lock": "1", "architectures": {}}', "is not a lock file of imgkit: lock: Input should be a valid integer"),
        ('{"lock": 1}', "is not a lock file of imgkit: architectures: Field required"),
        ('"x"', "is not a lock file of imgkit: the whole: Input should be"),
    ],
)
def test_what_is_no_lock_is_named(recipe: Recipe, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "alpine.lock"
    path.write_text(text)
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}: {message}") as caught:
        lockfile.read(path, recipe, "amd64")
    assert caught.value.hint == f"imgkit lock {tmp_path}/alpine.py"


def test_a_field_that_is_missing_is_no_bug_of_ours(recipe: Recipe, lock: Path) -> None:
    body = json.loads(lock.read_text())
    del body["architectures"]["amd64"]["minirootfs"]["sha256"]
    lock.write_text(json.dumps(body))
    with pytest.raises(InputError, match=r"is not a lock file of imgkit: minirootfs\.sha256: Field required"):
        lockfile.read(lock, recipe, "amd64")


def test_a_lock_that_cannot_be_written_is_the_host_s_fault(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "alpine.lock"
    with pytest.raises(HostError, match=f"^{path}: Not a directory$"):
        lockfile.write(path, recipe, [plan_of(recipe, "amd64")])


def test_no_lock_at_all(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file") as caught:
        lockfile.read(lockfile.path_of(tmp_path / "alpine.py"), recipe, "amd64")
    assert "imgkit lock" in str(caught.value.hint)


def test_a_record_that_is_not_utf_8_is_bad_input(recipe: Recipe, tmp_path: Path) -> None:
    plan = plan_of(recipe, "amd64")
    odd = replace(plan.packages[0], package=replace(plan.packages[0].package, description="caf\udce9"))
    with pytest.raises(InputError, match="not UTF-8"):
        lockfile.write(tmp_path / "x.lock", recipe, [replace(plan, packages=(odd,))])
    assert list(tmp_path.iterdir()) == []


def test_a_container_image_has_an_entry_of_its_own(recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "alpine.lock"
    both = recipe.model_copy(update={"outputs": ("disk", "oci"), "disk_packages": ("openrc",)})
    disk = plan_of(both, "amd64")
    container = replace(disk, shape="container", packages=disk.packages[:1])
    lockfile.write(path, both, [disk, container])
    assert lockfile.read(path, both, "amd64").shape == "disk"
    read = lockfile.read(path, both, "amd64", "container")
    assert (read.shape, read.digest) == ("container", container.digest)
    assert set(lockfile.others(path, both, ["amd64"])) == {"amd64/container"}
    assert set(lockfile.others(path, recipe, [])) == {"amd64"}, "what the recipe does not make is not kept"
    with pytest.raises(RecipeError, match="has nothing for arm64/container"):
        lockfile.read(path, both, "arm64", "container")
    changed = both.model_copy(update={"disk_packages": ()})
    assert lockfile.read(path, changed, "amd64", "container") == read
    with pytest.raises(RecipeError, match=r"the recipe has changed since \(packages\)"):
        lockfile.read(path, changed, "amd64")
