"""A mirror that shows old files, or files that belong elsewhere: they are refused although they are signed."""

from __future__ import annotations

import logging
import threading
import time
from datetime import date, timedelta
from pathlib import Path

import pytest

from fixtures.pins import BRANCH, RELEASE
from fixtures.server import Site, serve
from imgkit.apk import branches
from imgkit.apk.branches import branch_of, end_of
from imgkit.cli.main import main
from imgkit.errors import HostError, InputError
from imgkit.fetch.cache import Cache
from imgkit.planning import lockfile
from imgkit.planning.base import fetch_base
from imgkit.planning.freshness import AlpineRelease, Freshness, warn_expired
from imgkit.recipe import load
from tests.commandline import Place, Ran, check_failure
from tests.mirrors import LISTING, RECIPE, REPOSITORY, TIME, Small, minimal, package

DAY = 86400


class Attack:
    """``imgkit lock`` again and again (in this process), with one cache and a mirror that changes meanwhile."""

    def __init__(
        self, here: Place, small: Small, site: Site, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch
    ) -> None:
        self.here, self.small, self.site = here, small, site
        self._capsys, self._patch = capsys, patch
        here.recipe.write_text(RECIPE)

    def show(self, version: str, *, age: int, description: str = f"v{RELEASE}-17-g54a39ace82a") -> None:
        """Let the mirror have this version of hello, with an index of this age in days."""
        apk = package("hello", version, key=self.small.keys.signing)
        self.small.file(f"{REPOSITORY}/{apk.filename}").write_bytes(apk.blob)
        self.small.index([apk.record], time=TIME - age * DAY, description=description)

    def release(self, alpine_release: str, *, age: int = 0) -> None:
        """Let the mirror have a minirootfs with this release file."""
        tree = minimal(self.small.keys)
        tree.write("etc/alpine-release", f"{alpine_release}\n", mtime=TIME - age * DAY)
        for path in self.small.file(LISTING).parent.iterdir():
            path.unlink()
        self.small.file(LISTING).parent.rmdir()
        self.small.release(tree)

    def lock(self, *words: str, mirror: str | None = None, **environment: str) -> Ran:
        site = mirror or self.site.url
        command = ["lock", self.here.recipe, "--mirror", site, "--release-key", self.small.release_key, *words]
        with self._patch.context() as patch:
            for name, value in {**self.here.environment, **environment}.items():
                patch.setenv(name, value)
            patch.setattr("tempfile.tempdir", str(self.here.tmp))
            status = main([str(word) for word in command])
        return Ran(status, *self._capsys.readouterr())

    @property
    def locked(self) -> str:
        return (self.here.base / "recipe.lock").read_text()

    def fails(self, error: str, *words: str, **how: str) -> None:
        check_failure(self.lock(*words, **how), self.here, 4, error, "--allow-stale-mirror accepts it anyway")


@pytest.fixture
def attack(
    here: Place, small: Small, site: Site, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Attack:
    return Attack(here, small, site, capsys, monkeypatch)


# ---- indexes --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_older_index_is_refused(attack: Attack) -> None:
    """The mirror shows 2.0 and then, for the same cache, the properly signed 1.0."""
    attack.show("2.0-r0", age=1)
    assert attack.lock().status == 0
    attack.show("1.0-r0", age=2)
    attack.fails("APKINDEX.tar.gz: is of 2023-11-12 22:13, but one of 2023-11-13 22:13 was seen before")
    attack.fails("was seen before", "--offline")
    ran = attack.lock("--allow-stale-mirror")
    assert ran.status == 0
    assert "was seen before; accepted because of --allow-stale-mirror" in ran.err
    assert "hello-1.0-r0" in attack.locked
    attack.fails("was seen before")  # what was allowed once is not the newest now
    attack.show("2.0-r0", age=1)
    assert attack.lock().status == 0
    attack.show("3.0-r0", age=0)
    assert attack.lock().status == 0
    assert "hello-3.0-r0" in attack.locked


@pytest.mark.slow
def test_an_index_in_the_wrong_place_bars_nobody(attack: Attack) -> None:
    """Properly signed, later, and of another repository, as it turns out: what was asked for is not in it."""
    attack.show("1.0-r0", age=2)
    assert attack.lock().status == 0
    attack.small.index([package("other", key=attack.small.keys.signing).record], time=TIME - DAY)
    assert attack.lock().status == 3
    attack.show("1.0-r0", age=2)
    assert attack.lock().status == 0


def test_another_mirror_of_the_same_repository_is_no_excuse(attack: Attack) -> None:
    attack.show("2.0-r0", age=1)
    assert attack.lock().status == 0
    attack.show("1.0-r0", age=2)
    with serve(attack.small.root) as other:
        attack.fails("was seen before", mirror=other.url)


@pytest.mark.slow
def test_without_its_cache_the_first_index_is_believed(attack: Attack) -> None:
    attack.show("2.0-r0", age=1)
    assert attack.lock().status == 0
    attack.show("1.0-r0", age=2)
    assert attack.lock(IMGKIT_CACHE=str(attack.here.base / "another")).status == 0


def test_an_index_without_a_date_has_that_of_its_youngest_package(attack: Attack) -> None:
    for version, built in (("2.0-r0", TIME + 5), ("1.0-r0", TIME)):
        apk = package("hello", version, key=attack.small.keys.signing, builddate=built)
        attack.small.file(f"{REPOSITORY}/{apk.filename}").write_bytes(apk.blob)
        attack.small.index([apk.record], time=0)
        if version == "2.0-r0":
            assert attack.lock().status == 0
    attack.fails("was seen before")


@pytest.mark.parametrize("description", ["v3.17.3-216-g54a39ace82a", "v20240606-2212-gc4ad8ee7a35", "v3.24.0_alpha2"])
def test_the_index_of_another_branch_is_refused(description: str, attack: Attack) -> None:
    attack.show("1.0-r0", age=0, description=description)
    attack.fails(f"APKINDEX.tar.gz: is of branch {branch_of(description)}, not of {BRANCH} ('{description}')")
    assert attack.lock("--allow-stale-mirror").status == 0


@pytest.mark.parametrize("description", ["", "my packages", "20240606", "version 3.17", f"v{RELEASE}"])
def test_descriptions_that_name_no_other_branch(description: str, attack: Attack) -> None:
    attack.show("1.0-r0", age=0, description=description)
    assert attack.lock().status == 0


# ---- the minirootfs -------------------------------------------------------------------------------------------------


def test_a_minirootfs_that_says_what_it_is(attack: Attack) -> None:
    attack.release(RELEASE)
    ran = attack.lock()
    assert (ran.status, ran.err) == (0, "")


@pytest.mark.slow
def test_an_old_minirootfs_under_a_new_name_is_refused(attack: Attack) -> None:
    """The list is not signed, so anybody can call an old one by the newest name."""
    attack.release(f"{RELEASE}0")
    attack.fails(f"{RELEASE}-x86_64.tar.gz: is called {RELEASE}, but says that it is '{RELEASE}0'")
    attack.release("3.22.1")
    attack.fails("is called")
    assert attack.lock("--allow-stale-mirror").status == 0


def test_a_minirootfs_of_another_branch_is_refused(attack: Attack) -> None:
    attack.release(RELEASE)
    attack.show("1.0-r0", age=0, description="v3.20.3-17-g54a39ace82a")
    (attack.small.root / BRANCH).rename(attack.small.root / "v3.20")
    attack.fails(f"minirootfs-{RELEASE}-x86_64.tar.gz: is of branch {BRANCH}, not of v3.20", ALPINE_BRANCH="v3.20")


def test_an_older_minirootfs_is_refused_unless_it_is_asked_for(attack: Attack) -> None:
    attack.release(RELEASE)
    assert attack.lock().status == 0
    attack.release(RELEASE, age=100)
    attack.fails("alpine-minirootfs-3.23.6-x86_64.tar.gz: is of 2023-08-06 22:13, but one of 2023-11-14 22:13")
    assert attack.lock(ALPINE_VERSION=RELEASE).status == 0


@pytest.mark.slow
def test_the_branch_of_the_link_is_that_of_the_minirootfs(attack: Attack) -> None:
    attack.release(RELEASE)
    (attack.small.root / BRANCH).rename(attack.small.root / "latest-stable")
    attack.small.root.joinpath(BRANCH).symlink_to("latest-stable")
    attack.show("1.0-r0", age=0, description="v3.22.1-17-g54a39ace82a")
    attack.fails(f"is of branch v3.22, not of {BRANCH}", ALPINE_BRANCH="latest-stable")
    attack.show("1.0-r0", age=0)
    assert attack.lock(ALPINE_BRANCH="latest-stable").status == 0


# ---- the memory -----------------------------------------------------------------------------------------------------


def fresh(folder: Path, *, branch: str = BRANCH, says: str = "3.23.6", trust: str = "me", arch: str = "x") -> Freshness:
    return Freshness(folder, trust, branch, arch, AlpineRelease(says, TIME))


def test_dates_are_kept_apart_by_what_they_are_of(tmp_path: Path) -> None:
    fresh(tmp_path).check_date("u", "main", 100)
    fresh(tmp_path).check_date("u", "main", 100)
    others = [
        (fresh(tmp_path), "community"),
        (fresh(tmp_path, branch="v3.22"), "main"),
        (fresh(tmp_path, trust="you"), "main"),
        (fresh(tmp_path, arch="y"), "main"),
    ]
    for other, name in others:
        other.check_date("u", name, 50)
    with pytest.raises(InputError, match="u: is of 1970-01-01 00:01, but one of 1970-01-01 00:01 was seen before"):
        fresh(tmp_path).check_date("u", "main", 99)
    with pytest.raises(InputError, match="is of an unknown date"):
        fresh(tmp_path).check_date("u", "main", 0)


def test_a_date_in_the_future_bars_nobody(tmp_path: Path) -> None:
    """A clock that was wrong once, where an index was made, must not refuse all later ones."""
    now = int(time.time())
    fresh(tmp_path).check_date("u", "main", now + 10 * DAY)
    fresh(tmp_path).check_date("u", "main", now)


@pytest.mark.parametrize(("ahead", "remembered"), [(DAY - 1, True), (DAY, False)])
def test_a_date_may_be_a_day_in_the_future(
    ahead: int, remembered: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = int(time.time())
    monkeypatch.setattr(time, "time", lambda: float(now))
    fresh(tmp_path).check_date("u", "main", now + ahead)
    fresh(tmp_path).remember_index("community", now + ahead)
    for name in ("main", "community"):
        if remembered:
            with pytest.raises(InputError, match="was seen before"):
                fresh(tmp_path).check_index("u", name, "", now)
        else:
            fresh(tmp_path).check_index("u", name, "", now)


def test_an_index_is_remembered_only_when_it_is_asked_to_be(tmp_path: Path) -> None:
    fresh(tmp_path).check_index("u", "main", "", 200)
    fresh(tmp_path).check_index("u", "main", "", 100)
    fresh(tmp_path).remember_index("main", 200)
    fresh(tmp_path).remember_index("main", 150)
    fresh(tmp_path).check_index("u", "main", "", 200)
    with pytest.raises(InputError, match="was seen before"):
        fresh(tmp_path).check_index("u", "main", "", 199)


def test_the_link_goes_forward_only(tmp_path: Path) -> None:
    def check(says: str) -> None:
        fresh(tmp_path, branch="latest-stable", says=says).check_minirootfs("u", says, chosen=False)

    check("3.99.0")
    check("3.100.1")
    with pytest.raises(InputError, match=r"latest-stable is v3\.99, but was v3\.100 before"):
        check("3.99.9")
    with pytest.raises(InputError, match="is of branch edge, not of latest-stable"):
        check("3.101.0_alpha20990101")


@pytest.mark.parametrize("says", ["20260127", "corp"])
def test_a_link_to_what_names_no_branch_is_not_compared(says: str, tmp_path: Path) -> None:
    """A release that says nothing of a branch cannot be older than another."""
    freshness = fresh(tmp_path, branch="latest-stable", says=says)
    assert freshness.branch == "latest-stable"
    if says == "corp":
        freshness.check_minirootfs("u", says, chosen=False)
    else:
        with pytest.raises(InputError, match="is of branch edge, not of latest-stable"):
            freshness.check_minirootfs("u", says, chosen=False)


def test_edge_has_dates_for_versions(tmp_path: Path) -> None:
    check = fresh(tmp_path, branch="edge", says="3.24.0_alpha20260127").check_minirootfs
    check("u", "20260127", chosen=False)
    check("u", "3.24.0_alpha20260127", chosen=False)
    with pytest.raises(InputError, match="is called 20260128"):
        check("u", "20260128", chosen=False)


def test_builds_at_the_same_time_keep_the_newest(tmp_path: Path) -> None:
    numbers = [number * 7919 % 200 + 1 for number in range(200)]

    def see(mine: list[int]) -> None:
        for number in mine:
            Freshness(tmp_path, "me", BRANCH, "x", None, allow=True).check_date("u", "main", number)

    threads = [threading.Thread(target=see, args=(numbers[start::4],)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with pytest.raises(InputError):
        fresh(tmp_path).check_date("u", "main", 199)
    fresh(tmp_path).check_date("u", "main", 200)
    kept = [int(path.name) for path in tmp_path.rglob("*") if path.is_file()]
    assert max(kept) == 200
    assert len(kept) < 10, "older ones are removed, but for those of builds that were just at it"


def test_a_date_that_another_build_removes_at_the_same_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda folder: iter([*listed(folder), folder / "7"]))
    fresh(tmp_path).check_date("u", "main", 100)
    with pytest.raises(InputError, match="was seen before"):
        fresh(tmp_path).check_date("u", "main", 99)


def test_where_dates_are_kept(tmp_path: Path) -> None:
    """Other files in a folder of dates are no dates; without one everything is the newest."""
    fresh(tmp_path).check_date("u", "main", 0)
    fresh(tmp_path).check_date("u", "main", 100)
    (kept,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    first, second = kept.parent.parent, kept.parent
    assert (kept.name, first.parent) == ("100", tmp_path / "newest")
    assert (len(first.name), len(second.name), second.name[:2]) == (2, 64, first.name)
    kept.rename(second / "other")
    fresh(tmp_path).check_date("u", "main", 0)
    fresh(tmp_path).check_date("u", "main", 50)
    assert sorted(path.name for path in second.iterdir()) == ["50", "other"]


def test_only_the_newest_date_is_kept(tmp_path: Path) -> None:
    for date_of_the_index in (100, 300, 200):
        fresh(tmp_path).remember_index("main", date_of_the_index)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["300"]


def test_the_same_branch_again(tmp_path: Path) -> None:
    for says in ("3.99.0", "3.99.0", "3.99.1"):
        fresh(tmp_path, branch="latest-stable", says=says).check_minirootfs("u", says, chosen=False)


def test_a_memory_that_cannot_be_written_is_no_memory(tmp_path: Path) -> None:
    (tmp_path / "newest").write_text("")
    with pytest.raises(HostError, match="newest"):
        fresh(tmp_path).check_date("u", "main", 100)


# ---- facts of Alpine ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "branch"),
    [
        ("3.20.3", "v3.20"),
        ("3.23.0_rc1", "v3.23"),
        ("3.24.0_alpha20260127", "edge"),
        ("20260127", "edge"),
        ("v3.17.3-216-g54a39ace82a", "v3.17"),
        ("v20240606-2212-gc4ad8ee7a35", "edge"),
        ("v3.100.1", "v3.100"),
        ("", None),
        ("corp", None),
        ("v", None),
        ("3", None),
        ("9" * 5000 + ".1", None),
        ("3." + "9" * 5000, None),
    ],
)
def test_which_branch_a_version_is_of(text: str, branch: str | None) -> None:
    assert branch_of(text) == branch


@pytest.mark.parametrize(
    ("branch", "today", "warned"),
    [
        ("v3.21", date(2026, 11, 1), False),
        ("v3.21", date(2026, 11, 2), True),
        ("v3.9", date(2026, 1, 1), True),
        ("v2.7", date(2026, 1, 1), True),
        ("v3.99", date(2099, 1, 1), False),
        ("v4.0", date(2099, 1, 1), False),
        ("edge", date(2099, 1, 1), False),
        ("latest-stable", date(2099, 1, 1), False),
    ],
)
def test_a_branch_that_has_come_to_its_end_is_named(
    branch: str, today: date, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "imgkit"):
        warn_expired(branch, today)
    expected = f"Alpine {branch} has had no security fixes since {end_of(branch)}: choose a newer branch"
    assert caplog.messages == ([expected] if warned else [])


@pytest.mark.parametrize(
    ("branch", "last_day"),
    [
        ("v3.16", "2024-05-23"),
        ("v3.17", "2024-11-22"),
        ("v3.18", "2025-05-09"),
        ("v3.19", "2025-11-01"),
        ("v3.20", "2026-04-01"),
        ("v3.21", "2026-11-01"),
        ("v3.22", "2027-05-01"),
        ("v3.23", "2027-11-01"),
    ],
)
def test_support_ends_after_the_day_that_alpine_s_page_of_releases_names(
    branch: str, last_day: str, caplog: pytest.LogCaptureFixture
) -> None:
    day = date.fromisoformat(last_day)
    with caplog.at_level(logging.WARNING, "imgkit"):
        warn_expired(branch, day)
        assert caplog.messages == []
        warn_expired(branch, day + timedelta(days=1))
    message = f"Alpine {branch} has had no security fixes since {last_day}: choose a newer branch"
    assert caplog.messages == [message]


def test_branches_that_are_not_known() -> None:
    assert end_of("v3.15") == end_of("v2.99") == date(2024, 5, 23), "no later than the oldest that is known"
    assert end_of("v3.24") is None
    assert end_of("edge") is None
    assert end_of("v3.15.1") is None


def test_the_number_of_a_branch_stays_the_same_as_it_is_kept_in_the_cache() -> None:
    assert [branches.order(branch) for branch in ("v2.7", "v3.9", "v3.23", "v4.0")] == [20_007, 30_009, 30_023, 40_000]


def test_the_branches_of_the_recipes_are_known() -> None:
    assert end_of(BRANCH) is not None
    assert list(branches._END) == sorted(branches._END, key=branches.order)


def test_a_lock_cannot_rename_a_minirootfs(attack: Attack) -> None:
    """Its version is the image's; the file that it names by hash says another."""
    attack.release(RELEASE)
    assert attack.lock().status == 0
    path = attack.here.base / "recipe.lock"
    path.write_text(attack.locked.replace(f'"version": "{RELEASE}"', '"version": "3.23.99"'))
    loaded = load(attack.here.recipe, {"mirror": attack.site.url, "release_key": attack.small.release_key})
    plan = lockfile.read(path, loaded, "amd64")
    with pytest.raises(InputError, match=f"is called 3.23.99, but says that it is '{RELEASE}'"):
        fetch_base(loaded, "amd64", Cache(attack.here.cache), attack.here.base / "spool", locked=plan)


def test_a_lock_keeps_its_minirootfs_when_a_newer_one_was_seen(attack: Attack) -> None:
    attack.release(RELEASE, age=100)
    assert attack.lock().status == 0
    loaded = load(attack.here.recipe, {"mirror": attack.site.url, "release_key": attack.small.release_key})
    plan = lockfile.read(attack.here.base / "recipe.lock", loaded, "amd64")
    cache = Cache(attack.here.cache)
    attack.release(RELEASE)
    fetch_base(loaded, "amd64", cache, attack.here.base / "newer")
    attack.release(RELEASE, age=100)
    with pytest.raises(InputError, match="was seen before"):
        fetch_base(loaded, "amd64", cache, attack.here.base / "older")
    base = fetch_base(loaded, "amd64", cache, attack.here.base / "locked", locked=plan)
    assert base.artefact == plan.base
