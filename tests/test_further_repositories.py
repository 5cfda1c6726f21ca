"""Repositories besides the branch's: their keys, tags, indexes and folders, in plans, locks and images."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fixtures.apkbuild import Apk, Entry, SigningKey, build, gzip_member, signature_segment, tar_stream
from fixtures.keys import Keys, new_rsa, public_pem
from fixtures.server import Site, serve
from imgkit.apk.index import parse_record
from imgkit.apk.packagerecord import read_package
from imgkit.apk.signature import Keyring
from imgkit.errors import InputError, RecipeError
from imgkit.fetch.cache import Cache, hash_file
from imgkit.planning import lockfile
from imgkit.planning.base import Base, fetch_base
from imgkit.planning.download import fetch_packages, open_planned
from imgkit.planning.indexes import providers
from imgkit.planning.localfolders import published_url
from imgkit.planning.plan import Plan
from imgkit.planning.resolve import make_plan
from imgkit.planning.vouchers import check_locked
from imgkit.recipe import Recipe, load
from imgkit.rootfs import systemfiles
from imgkit.tree import Tree
from tests.commandline import Place, check_failure
from tests.mirrors import ARCH, INDEX, RECIPE, REPOSITORY, TIME, Small, package

COMPANY = new_rsa("packages@example.com-5f3c1a2b.rsa.pub")


def index_of(packages: list[Apk], key: SigningKey, *, time: int = TIME, description: str = "v2.0 of ours") -> bytes:
    """Return a signed index. Its description is none of Alpine's."""
    text = "".join(apk.record + "\n\n" for apk in packages)
    files = {"DESCRIPTION": description, "APKINDEX": text}
    entries = [Entry(name=name, data=data.encode(), checksum="", mtime=time) for name, data in files.items()]
    member = gzip_member(tar_stream(entries, end=True))
    return signature_segment(member, key) + member


@dataclass
class Company:
    """A mirror of Alpine with the package ``hello``, a company's repository beside it, and a recipe with both."""

    here: Place
    small: Small
    site: Site
    tool: Apk = field(init=False)

    def __post_init__(self) -> None:
        self.tool = package("tool", "2.0-r0", Entry(name="usr", kind="directory", mode=0o755), key=COMPANY)
        self.key = self.here.base / COMPANY.name
        self.key.write_bytes(public_pem(COMPANY))
        self.publish(self.tool)

    @property
    def url(self) -> str:
        return f"{self.site.url}company"

    @property
    def folder(self) -> Path:
        return self.small.root / "company"

    def publish(self, *packages: Apk, key: SigningKey = COMPANY, **options: Any) -> None:
        """Write the company's repository anew: its packages, and their index."""
        folder = self.folder / ARCH
        folder.mkdir(parents=True, exist_ok=True)
        for apk in packages:
            (folder / apk.filename).write_bytes(apk.blob)
        (folder / "APKINDEX.tar.gz").write_bytes(index_of([*packages], key, **options))

    def recipe(self, *packages: str, **entry: Any) -> Recipe:
        """Return a recipe whose second repository is the company's, with other fields than url and key."""
        fields = {"url": self.url, "key": self.key.name, **entry}
        fields = {name: value for name, value in fields.items() if value is not None}
        text = f"repositories = ['main', {fields!r}]\npackages = {['hello', *packages]!r}\n"
        self.here.recipe.write_text(RECIPE + text)
        return load(self.here.recipe, {"mirror": self.site.url, "release_key": self.small.release_key})

    def base(self, recipe: Recipe, cache: Cache | None = None, locked: Plan | None = None) -> Base:
        spool = self.here.base / "spool"
        spool.unlink(missing_ok=True)
        return fetch_base(recipe, "amd64", cache or Cache(self.here.cache), spool, locked=locked)

    def plan(self, recipe: Recipe) -> Plan:
        cache = Cache(self.here.cache)
        return make_plan(recipe, "amd64", self.base(recipe, cache), cache)

    def fetch(self, recipe: Recipe) -> Plan:
        """Plan, download and open the packages."""
        cache = Cache(self.here.cache)
        base = self.base(recipe, cache)
        plan, files = fetch_packages(make_plan(recipe, "amd64", base, cache), base, cache)
        for planned in plan.packages:
            open_planned(files, base, self.here.base / "spool", planned.package)
        return plan

    @property
    def lock(self) -> Path:
        return self.here.base / "recipe.lock"

    def build_locked(self, recipe: Recipe, cache: Cache | None = None) -> Plan:
        """What a build from the lock does until it has its packages."""
        plan = lockfile.read(self.lock, recipe, "amd64")
        kept = cache or Cache(self.here.cache)
        base = self.base(recipe, kept, locked=plan)
        plan, files = fetch_packages(plan, base, kept, locked=True)
        check_locked(plan, base, kept, files)
        return plan


@pytest.fixture
def company(here: Place, keys: Keys) -> Iterator[Company]:
    small = Small(here.base / "mirror", keys, [package("hello", "1.0-r0", key=keys.signing)]).write()
    with serve(small.root) as site:
        yield Company(here, small, site)


def urls(plan: Plan) -> dict[str, str]:
    return {planned.package.name: planned.url for planned in plan.packages}


# ---- plans -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_package_of_a_company(company: Company) -> None:
    plan = company.fetch(company.recipe("tool"))
    assert urls(plan) == {
        "hello": f"{company.site.url}{REPOSITORY.lstrip('/')}/hello-1.0-r0.apk",
        "tool": f"{company.url}/{ARCH}/tool-2.0-r0.apk",
    }
    assert [(index.url, index.vouched_by) for index in plan.indexes] == [
        (f"{company.site.url}{INDEX.lstrip('/')}", company.small.keys.signing.name),
        (f"{company.url}/{ARCH}/APKINDEX.tar.gz", COMPANY.name),
    ]


@pytest.mark.slow
def test_a_tag_is_for_who_asks(company: Company) -> None:
    better = package("hello", "9.0-r0", key=COMPANY)
    company.publish(company.tool, better)
    assert {str(planned.package) for planned in company.plan(company.recipe(tag="ours")).packages} == {"hello-1.0-r0"}
    assert {str(planned.package) for planned in company.plan(company.recipe()).packages} == {"hello-9.0-r0"}
    plan = company.plan(company.recipe("hello@ours", tag="ours"))
    assert {str(planned.package) for planned in plan.packages} == {"hello-9.0-r0"}
    assert plan.world == ("hello", "hello@ours")
    with pytest.raises(RecipeError, match="package tool@theirs: no repository has the tag @theirs"):
        company.plan(company.recipe("tool@theirs", tag="ours"))
    with pytest.raises(RecipeError) as caught:
        company.plan(company.recipe("tool", tag="ours"))
    assert caught.value.hint == "write tool@ours in the recipe to allow it"


def test_a_key_vouches_for_its_own_repository_only(company: Company) -> None:
    """The company's key signs Alpine's index, and Alpine's key the company's; neither is accepted."""
    company.small.index([company.small.packages[0].record], key=COMPANY)
    with pytest.raises(InputError) as caught:
        company.plan(company.recipe("tool"))
    assert "main/x86_64/APKINDEX.tar.gz: signed by an unknown key: packages@example.com" in caught.value.message
    company.small.index([company.small.packages[0].record])
    company.publish(company.tool, key=company.small.keys.signing)
    with pytest.raises(InputError) as caught:
        company.plan(company.recipe("tool"))
    assert f"company/x86_64/APKINDEX.tar.gz: signed by an unknown key: {company.small.keys.signing.name}" in (
        caught.value.message
    )
    assert f"trusted keys: {COMPANY.name}" in str(caught.value.hint)


@pytest.mark.slow
def test_without_a_key_it_must_be_signed_as_alpines_are(company: Company) -> None:
    with pytest.raises(InputError, match="signed by an unknown key: packages@example"):
        company.plan(company.recipe("tool", key=None))
    company.publish(company.tool, key=company.small.keys.signing)
    assert "tool" in urls(company.plan(company.recipe("tool", key=None)))


def test_a_key_that_is_none(company: Company) -> None:
    company.key.write_text("hello")
    with pytest.raises(InputError, match=f"{COMPANY.name}: is not a public key in PEM format"):
        company.plan(company.recipe("tool"))


@pytest.mark.slow
def test_a_packages_own_signature_is_checked_with_the_key_of_its_repository(company: Company) -> None:
    """A signature that claims the company's key and is wrong is never ignored."""
    other = build({"pkgname": "tool", "pkgver": "2.0-r0", "arch": ARCH, "pkgdesc": "x"}, [], key=new_rsa(COMPANY.name))
    company.publish(other)
    with pytest.raises(InputError, match=r"tool-2.0-r0.apk: bad signature: it is not what packages@example.com"):
        company.fetch(company.recipe("tool"))


def test_names_that_no_repository_has(company: Company) -> None:
    with pytest.raises(RecipeError) as caught:
        company.plan(company.recipe("tol", "zzz"))
    listed = f"the repositories are main of v3.23 at {company.site.url}; {company.url}"
    names = "package tol is in no repository; package zzz is in no repository"
    assert caught.value.message == f"2 packages are in no repository ({listed}): {names}"
    assert caught.value.hint == "did you mean tool instead of tol?"
    assert caught.value.problems == ("package tol is in no repository", "package zzz is in no repository")


def test_an_older_index_of_a_company_is_refused_and_another_branch_is_no_matter(company: Company) -> None:
    company.publish(company.tool, time=TIME + 100, description="v1.0-3-gabcdef0123")
    company.plan(company.recipe("tool"))
    company.publish(company.tool, time=TIME + 99)
    with pytest.raises(InputError, match=r"company/x86_64/APKINDEX.tar.gz: is of .*, but one of .* was seen before"):
        company.plan(company.recipe("tool"))


def test_a_repository_without_packages_for_the_architecture(company: Company) -> None:
    (company.folder / ARCH / "APKINDEX.tar.gz").unlink()
    with pytest.raises(InputError, match=r"company/x86_64/APKINDEX.tar.gz: .*404"):
        company.plan(company.recipe("tool"))


# ---- folders on this computer ---------------------------------------------------------------------------------------


def local(company: Company, place: str) -> str:
    """Put the company's packages into a folder of this computer: with an index, or without one; return its path."""
    source, folder = company.folder / ARCH, company.here.base / "packages"
    target = folder if place == "bare" else folder / ARCH
    target.mkdir(parents=True)
    for path in source.iterdir():
        if place == "index" or path.suffix == ".apk":
            (target / path.name).write_bytes(path.read_bytes())
    (company.folder / ARCH / "APKINDEX.tar.gz").unlink()
    return "packages"


PLACES = pytest.mark.parametrize("place", ["index", "arch", "bare"])


@PLACES
def test_a_folder_of_packages(place: str, company: Company) -> None:
    recipe = company.recipe("tool", url=local(company, place))
    plan = company.fetch(recipe)
    folder = company.here.base / ("packages" if place == "bare" else f"packages/{ARCH}")
    assert urls(plan)["tool"] == f"file://{folder}/tool-2.0-r0.apk"
    assert len(plan.indexes) == (2 if place == "index" else 1)
    (tool,) = [planned for planned in plan.packages if planned.package.name == "tool"]
    assert tool.sha256 == hash_file(folder / "tool-2.0-r0.apk")
    assert published_url(tool.url) == "file:tool-2.0-r0.apk"
    assert plan.epoch == TIME


@PLACES
def test_a_folder_needs_its_key(place: str, company: Company) -> None:
    recipe = company.recipe("tool", url=local(company, place), key=None)
    with pytest.raises(InputError, match=r"signed by an unknown key: packages@example.com"):
        company.plan(recipe)


def test_a_package_of_a_folder_that_nobody_signed(company: Company) -> None:
    local(company, "bare")
    folder = company.here.base / "packages"
    for path in folder.iterdir():
        path.unlink()
    unsigned = build({"pkgname": "tool", "pkgver": "2.0-r0", "arch": ARCH}, [], key=None)
    (folder / unsigned.filename).write_bytes(unsigned.blob)
    with pytest.raises(InputError, match=r"packages/tool-2.0-r0.apk: is not signed") as caught:
        company.plan(company.recipe("tool", url="packages"))
    assert "sign it with abuild-sign" in str(caught.value.hint)


def test_files_of_a_folder_that_are_not_what_they_are_called(company: Company) -> None:
    local(company, "bare")
    path = company.here.base / "packages/tool-2.0-r0.apk"
    other = path.rename(path.with_name("tool.apk"))
    with pytest.raises(InputError, match=r"tool.apk: is the package tool-2.0-r0") as caught:
        company.plan(company.recipe("tool", url="packages"))
    assert caught.value.hint == "rename it to tool-2.0-r0.apk"
    other.write_text("hello")
    with pytest.raises(InputError, match=r"tool.apk: is "):
        company.plan(company.recipe("tool", url="packages"))


def test_an_empty_folder(company: Company) -> None:
    (company.here.base / "packages").mkdir()
    with pytest.raises(RecipeError) as caught:
        company.plan(company.recipe("tool", url="packages"))
    assert caught.value.message == f"repositories: {company.here.base}/packages: has no packages for x86_64"
    assert caught.value.hint == "it needs x86_64/APKINDEX.tar.gz, or .apk files in it or in x86_64/"


def test_packages_of_a_folder_that_changed_behind_their_index(company: Company) -> None:
    recipe = company.recipe("tool", url=local(company, "index"))
    path = company.here.base / f"packages/{ARCH}/tool-2.0-r0.apk"
    data = bytearray(path.read_bytes())
    path.write_bytes(data + b"x")
    with pytest.raises(InputError, match=f"has {len(data) + 1} bytes instead of {len(data)}"):
        company.fetch(recipe)
    data[-9] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"tool-2.0-r0.apk: its files are not what it was signed with"):
        company.fetch(recipe)
    path.unlink()
    with pytest.raises(InputError, match=r"tool-2.0-r0.apk: cannot be read: No such file or directory"):
        company.fetch(recipe)


def test_a_folder_may_go_back_and_needs_no_network(company: Company) -> None:
    """Its owner knows what is in it, so no date of it is remembered."""
    recipe = company.recipe("tool", url=local(company, "index"))
    index = company.here.base / f"packages/{ARCH}/APKINDEX.tar.gz"
    index.write_bytes(index_of([company.tool], COMPANY, time=TIME + 100))
    company.fetch(recipe)
    index.write_bytes(index_of([company.tool], COMPANY, time=TIME))
    company.fetch(recipe)
    cache = Cache(company.here.cache, offline=True)
    base = company.base(recipe, cache)
    plan, files = fetch_packages(make_plan(recipe, "amd64", base, cache), base, cache)
    assert files["tool"] == index.parent / "tool-2.0-r0.apk"
    assert providers(plan, base, cache, ["tool"]) is not None


def test_the_record_of_a_package_is_that_of_an_index(company: Company, tmp_path: Path) -> None:
    apk = package(
        "tool", "2.0-r0", key=COMPANY, size=7, origin="o", maintainer="M <m@example.com>", commit="c0ffee",
        provider_priority=5, depend=["a>1", "!b"], provides=["cmd:x=2", "y"], install_if=["a=1", "b"],
    )  # fmt: skip
    path = tmp_path / apk.filename
    path.write_bytes(apk.blob)
    keyring = Keyring.from_files({COMPANY.name: public_pem(COMPANY)})
    assert read_package(path, keyring) == parse_record(apk.record.split("\n"))


# ---- locks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["url", "index", "arch", "bare"])
def test_a_lock_says_which_repository(place: str, company: Company) -> None:
    url = company.url if place == "url" else local(company, place)
    recipe = company.recipe("tool", url=url, tag=None)
    plan = company.fetch(recipe)
    lockfile.write(company.lock, recipe, [plan])
    entry = json.loads(company.lock.read_text())["architectures"]["amd64"]
    assert entry["repositories"] == ["main", {"url": url}]
    (tool,) = [locked for locked in entry["install"] if "P:tool" in locked["record"]]
    name = "tool-2.0-r0.apk" if place == "bare" else f"{ARCH}/tool-2.0-r0.apk"
    assert (tool["path"], tool["repository"]) == (name, 1)
    assert [index.get("repository") for index in entry["indexes"]] == [None, 1][: 2 if place in ("url", "index") else 1]
    assert str(company.here.base) not in company.lock.read_text()
    again = company.build_locked(recipe)
    assert (again.packages, again.world) == (
        tuple(lockfile.read(company.lock, recipe, "amd64").packages),
        plan.world,
    )
    assert urls(again) == urls(plan)


def test_a_lock_of_other_repositories(company: Company) -> None:
    recipe = company.recipe("tool@a", tag="a")
    lockfile.write(company.lock, recipe, [company.fetch(recipe)])
    for other in (company.recipe("tool@a", tag="b"), company.recipe("tool@a", tag="a", url=f"{company.url}/x")):
        with pytest.raises(RecipeError, match=r"the recipe has changed since \(repositories\)"):
            lockfile.read(company.lock, other, "amd64")


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 2, 10**9])
def test_a_lock_that_names_a_repository_that_is_none(number: int, company: Company) -> None:
    recipe = company.recipe("tool")
    lockfile.write(company.lock, recipe, [company.fetch(recipe)])
    body = json.loads(company.lock.read_text())
    body["architectures"]["amd64"]["indexes"][0]["repository"] = number
    company.lock.write_text(json.dumps(body))
    with pytest.raises(InputError, match=f"the lock has it from repository {number}, which the recipe lacks"):
        lockfile.read(company.lock, recipe, "amd64")


def test_what_a_company_vouches_for_cannot_replace_a_package_of_alpine(company: Company) -> None:
    """Who can write the lock and has the company's key puts a package of theirs into the place of Alpine's."""
    recipe = company.recipe("tool@x", tag="x")
    hostile = package("hello", "1.0-r0", key=COMPANY, pkgdesc="hostile")
    company.publish(company.tool, hostile)
    lockfile.write(company.lock, recipe, [company.fetch(recipe)])
    path = company.small.file(f"{REPOSITORY}/hello-1.0-r0.apk")
    path.write_bytes(hostile.blob)
    body = json.loads(company.lock.read_text())
    entry = body["architectures"]["amd64"]
    (hello,) = [locked for locked in entry["install"] if "P:hello" in locked["record"]]
    hello |= {"sha256": hash_file(path), "record": hostile.record.split("\n")}
    company.lock.write_text(json.dumps(body))
    with pytest.raises(InputError, match=r"^hello-1.0-r0.apk: is in none of the indexes that the lock names"):
        company.build_locked(recipe)


def test_a_locked_package_of_a_folder_that_nobody_signed(company: Company) -> None:
    """The lock is not enough: somebody else may have written it."""
    recipe = company.recipe("tool", url=local(company, "bare"))
    lockfile.write(company.lock, recipe, [company.fetch(recipe)])
    path = company.here.base / "packages/tool-2.0-r0.apk"
    unsigned = build({"pkgname": "tool", "pkgver": "2.0-r0", "arch": ARCH}, [], key=None)
    path.write_bytes(unsigned.blob)
    body = json.loads(company.lock.read_text())
    (tool,) = [one for one in body["architectures"]["amd64"]["install"] if "P:tool" in one["record"]]
    tool |= {"sha256": hash_file(path), "record": unsigned.record.split("\n")}
    company.lock.write_text(json.dumps(body))
    with pytest.raises(InputError, match=r"^tool-2.0-r0.apk: no trusted key signed it$"):
        company.build_locked(recipe)


def test_a_locked_index_of_a_company_that_is_gone(company: Company) -> None:
    """Mirrors keep the newest index only: then the packages' own signatures must do."""
    recipe = company.recipe("tool")
    lockfile.write(company.lock, recipe, [company.fetch(recipe)])
    company.publish(company.tool, time=TIME + 50)
    company.build_locked(recipe, Cache(company.here.base / "another-cache"))


# ---- images ----------------------------------------------------------------------------------------------------------


def configured(recipe: Recipe, tree: Tree | None = None) -> Tree:
    tree = tree or Tree()
    tree.mkdir("etc/apk/keys")
    systemfiles.configure(tree, recipe, epoch=TIME)
    return tree


def test_the_images_own_apk_knows_the_repository_and_its_key(company: Company) -> None:
    (company.here.base / "packages").mkdir()
    recipe = company.recipe("tool", tag="ours")
    more = recipe.model_copy(
        update={"repositories": (*recipe.repositories, *company.recipe(url="packages").further_repositories)}
    )
    tree = configured(more)
    official = "https://dl-cdn.alpinelinux.org/alpine/v3.23/main"
    assert tree.text("etc/apk/repositories") == f"{official}\n@ours {company.url}\n"
    assert tree.read(f"etc/apk/keys/{COMPANY.name}") == public_pem(COMPANY)
    plain = configured(company.recipe("tool"))
    assert plain.text("etc/apk/repositories") == f"{official}\n{company.url}\n"


def test_a_folder_leaves_no_trace_in_the_image(company: Company) -> None:
    recipe = company.recipe("tool@ours", "hello", url=local(company, "bare"), tag="ours")
    tree = configured(recipe)
    assert tree.text("etc/apk/repositories") == "https://dl-cdn.alpinelinux.org/alpine/v3.23/main\n"
    assert tree.children("etc/apk/keys") == []
    assert company.plan(recipe).world == ("hello", "tool", "hello"), "apk refuses a world with a tag of no repository"


def test_a_key_does_not_replace_one_of_the_image(company: Company) -> None:
    tree = Tree()
    tree.write(f"etc/apk/keys/{COMPANY.name}", public_pem(COMPANY))
    configured(company.recipe("tool"), tree)
    tree.write(f"etc/apk/keys/{COMPANY.name}", b"another")
    with pytest.raises(RecipeError, match="the image has another key of this name"):
        configured(company.recipe("tool"), tree)


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_imgkit_lock_with_a_folder(company: Company, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        recipe = company.recipe("tool", url=local(company, "bare"))
    ran = company.here.run(
        "lock", company.here.recipe, "--mirror", company.site.url, "--release-key", company.small.release_key
    )
    assert (ran.status, ran.err) == (0, "")
    assert {planned.package.name for planned in lockfile.read(company.lock, recipe, "amd64").packages} == {
        "hello",
        "tool",
    }


@pytest.mark.slow
def test_imgkit_lock_names_the_repositories(company: Company) -> None:
    company.recipe("nothing-like-it")
    ran = company.here.run(
        "lock", company.here.recipe, "--mirror", company.site.url, "--release-key", company.small.release_key
    )
    listed = f"(the repositories are main of v3.23 at {company.site.url}; {company.url})"
    check_failure(ran, company.here, 3, f"package nothing-like-it is in no repository {listed}")
    company.recipe("nothing-like-it", "qqq")
    ran = company.here.run(
        "lock", company.here.recipe, "--mirror", company.site.url, "--release-key", company.small.release_key
    )
    assert ran.err.splitlines() == [
        f"error: 2 packages are in no repository {listed}",
        "  package nothing-like-it is in no repository",
        "  package qqq is in no repository",
    ]
