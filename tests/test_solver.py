"""The solver: single rules on small repositories, properties against brute force, the real index if it is at hand."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgkit.apk.candidates import claimed, conditions_of, dependencies_of
from imgkit.apk.dependency import Dependency
from imgkit.apk.index import Package, Repository
from imgkit.apk.solver import UnknownPackageError, UnsatisfiableError, solve
from imgkit.errors import RecipeError

EDGE = Repository(1, "edge", "edge")


def package(text: str, repository: Repository | None = None) -> Package:
    """``name version D:a b p:c=1 k:5 i:x`` as a package."""
    head, *fields = re.split(r" (?=[Dpik]:)", text)
    name, version = head.split()
    words = {field[0]: tuple(field[2:].split()) for field in fields}
    return Package(
        name=name,
        version=version,
        identity="Q1" + text.replace(" ", ""),
        depends=words.get("D", ()),
        provides=words.get("p", ()),
        install_if=words.get("i", ()),
        provider_priority=int(words.get("k", ("0",))[0]),
        repository=repository or Repository(),
    )


def solved(world: str, *packages: str, edge: Sequence[str] = ()) -> tuple[Package, ...]:
    everything = [package(text) for text in packages] + [package(text, EDGE) for text in edge]
    return solve(world.split(), everything, arch="x86_64")


def order(world: str, *packages: str, edge: Sequence[str] = ()) -> str:
    """Return the solution in install order as one text."""
    return " ".join(str(one) for one in solved(world, *packages, edge=edge))


@pytest.fixture
def no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows is found in the pass that apk makes, or not at all."""
    monkeypatch.setattr("imgkit.apk.search.MAX_ROUNDS", 0)


def refusal(world: str, *packages: str, edge: Sequence[str] = ()) -> str:
    with pytest.raises(UnsatisfiableError) as caught:
        solved(world, *packages, edge=edge)
    assert "\n" not in caught.value.message
    return caught.value.message


# ---- closure and versions ------------------------------------------------------------------------------------------


def test_dependencies_come_first_in_the_order_of_the_record() -> None:
    assert order("x", "x 1 D:b a", "a 1 D:c", "b 1", "c 1") == "b-1 c-1 a-1 x-1"


def test_world_is_taken_in_sorted_order_without_regard_to_case() -> None:
    assert order("b A c", "A 1", "b 1", "c 1") == "A-1 b-1 c-1"


def test_world_is_sorted_by_name_and_not_by_what_follows_it() -> None:
    assert order("e>=1 e-x", "e 1", "e-x 1") == "e-1 e-x-1"
    assert order("e-x e>=1 !e-y e<3", "e 1", "e 2", "e 3", "e-x 1", "e-y 1") == "e-2 e-x-1"


def test_circles_of_dependencies() -> None:
    assert order("x", "x 1 D:y", "y 1 D:x") == "y-1 x-1"


def test_nothing_but_what_is_needed() -> None:
    assert order("x", "x 1", "y 1", "z 1 D:x") == "x-1"


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("n", "n-3"),
        ("n<3", "n-2.1"),
        ("n=2", "n-2"),
        ("n~2", "n-2.1"),
        ("n>=3", "n-3"),
        ("n<~2", "n-2.1"),
        ("n><Q1n1", "n-1"),
    ],
)
def test_operators_choose_the_highest_version_that_fits(wanted: str, expected: str) -> None:
    packages = [package(text) for text in ("n 1", "n 2", "n 3", "n 2.1")]
    assert [str(one) for one in solve([wanted], packages, arch="x86_64")] == [expected]


def test_several_requirements_on_one_name_are_met_together() -> None:
    assert order("x y", "x 1 D:n>1", "y 1 D:n<3", "n 1", "n 2", "n 3") == "n-2 x-1 y-1"


def test_an_older_version_is_taken_where_the_newest_does_not_fit() -> None:
    assert order("x y", "x 2 D:z=2", "x 1 D:z=1", "y 1 D:z=1", "z 2", "z 1") == "z-1 x-1 y-1"
    assert order("n y", "n 1", "n 2 D:m", "m 1 D:!y", "y 1") == "n-1 y-1"


def test_a_version_that_lacks_something_is_passed_over() -> None:
    assert order("n", "n 1", "n 2 D:m", "m 1 D:nothere") == "n-1"


def test_a_long_chain_of_dependencies_does_not_exhaust_the_stack() -> None:
    packages = [f"p{number} 1 D:p{number + 1}" for number in range(1500)]
    assert len(solved("p0", *packages, "p1500 1")) == 1501


# ---- provides ------------------------------------------------------------------------------------------------------


def test_versioned_provides_are_chosen_by_their_version_then_priority_then_place() -> None:
    assert order("x", "x 1 D:n", "p 9 p:n=1", "q 1 p:n=2") == "q-1 x-1"
    assert order("x", "x 1 D:n", "p 1 p:n=1 k:2", "q 1 p:n=1 k:3", "o 1 p:n=1") == "q-1 x-1"
    assert order("x", "x 1 D:n", "p 1 p:n=1", "q 1 p:n=1", "o 1 p:n=1") == "p-1 x-1"
    assert order("x", "x 1 D:n", "q 1 p:n=1", "n 1") == "q-1 x-1"


def test_a_versioned_provide_beats_a_virtual_one_with_priority() -> None:
    assert order("x", "x 1 D:n", "p 1 p:n=1", "q 1 p:n k:3") == "p-1 x-1"


def test_full_claims_on_one_name_exclude_each_other() -> None:
    assert "p" in refusal("p q", "p 1 p:n=1", "q 1 p:n=1")
    assert "p" in refusal("p q", "p 1 p:n=1", "q 1 p:n")
    assert order("p q", "p 1 p:n", "q 1 p:n") == "p-1 q-1"


def test_a_virtual_claim_keeps_the_real_package_out() -> None:
    assert order("n q", "n 1", "q 1 p:n") == "q-1"


def test_virtual_names_need_a_priority_or_an_other_reason() -> None:
    assert order("x", "x 1 D:n", "p 1 p:n k:1", "q 1 p:n k:2") == "q-1 x-1"
    assert order("x p", "x 1 D:n", "p 1 p:n", "q 1 p:n k:2") == "p-1 x-1"
    assert order("x", "p 1 p:n m=1", "x 1 D:n m") == "p-1 x-1"
    assert order("x y", "x 1 D:n", "y 1 D:p", "q 1 p:n k:10", "p 1 p:n") == "p-1 x-1 y-1"
    assert order("a", "a 1 D:v w", "f 1 p:v k:15", "e 1 p:v k:14", "g 1 p:w k:1", "h 1 p:w k:2 D:e") == "e-1 h-1 a-1"


def test_a_virtual_name_nobody_selects_lists_the_providers() -> None:
    with pytest.raises(UnsatisfiableError) as caught:
        solved("x", "x 1 D:y", "y 1 D:n", "q 1 p:n", "p 1 p:n")
    assert (
        caught.value.message == "x (wanted by the recipe) needs y, which needs n, which no package provides by default"
    )
    assert caught.value.hint == "add one of these to the packages of the recipe: p, q"
    assert refusal("n", "p 1 p:n") == "the recipe wants n, which no package provides by default"


def test_a_virtual_provide_is_less_than_every_version() -> None:
    assert "n>1" in refusal("x p", "x 1 D:n>1", "p 1 p:n")
    assert "n=1" in refusal("x p", "x 1 D:n=1", "p 1 p:n")
    assert order("x p", "x 1 D:n<1", "p 1 p:n") == "p-1 x-1"
    assert order("x p", "x 1 D:!n>1", "p 1 p:n") == "p-1 x-1"


def test_a_choice_does_not_take_back_an_earlier_one() -> None:
    assert order("a v", "a 2", "a 1 p:v=1", "e 1 p:v=1") == "a-2 e-1"
    assert order("a v", "a 2", "a 1 p:v=1 k:1") == "a-1", "unless nothing else is left"


def test_a_revised_choice_leaves_nothing_behind() -> None:
    assert order("a", "a 1 D:b", "b 1 D:b p:a k:1") == "b-1"


def test_provided_versions_that_break_the_grammar() -> None:
    assert order("x", "x 1 D:n", "p 1 p:n=v2") == "p-1 x-1"
    assert "n>1" in refusal("x p", "x 1 D:n>1", "p 1 p:n=v2")
    assert order("x", "x 1 D:n", "p 1 p:n=v2", "q 1 p:n=1") == "q-1 x-1"


@pytest.mark.parametrize("provides", ["n=1 n=2", "n=1 n=1", "p=2", "p", "n n=1"])
def test_a_package_that_claims_a_name_twice_conflicts_with_itself(provides: str) -> None:
    assert "conflicts with itself" in refusal("p", f"p 1 p:{provides}")


def test_virtual_names_may_be_given_twice() -> None:
    assert order("p", "p 1 p:n n") == "p-1"


def test_a_chosen_provider_stays_although_it_brings_others_of_the_name() -> None:
    assert order("any", "all 1 p:any k:1 D:one two", "one 1 p:any", "two 1 p:any") == "one-1 two-1 all-1"


def test_a_package_that_the_world_names_is_not_replaced_by_another_provider() -> None:
    extra = "rng-extra 1 D:lib p:rng cmd:rngd=1 k:4"
    assert order("rng cmd:rngd", extra, "rng 1 p:cmd:rngd=1", "lib 1") == "rng-1"
    assert order("cmd:rngd", extra, "rng 1 p:cmd:rngd=1", "lib 1") == "lib-1 rng-extra-1"


def test_a_chosen_provider_stays_although_another_one_comes_later() -> None:
    providers = ("client14 1 p:client k:14", "client15 1 p:client k:15")
    server = ("server 1 D:lib", "lib 1 D:client14")
    assert order("client server", *server, *providers) == "client15-1 client14-1 lib-1 server-1"


def test_names_of_the_world_are_decided_first() -> None:
    packages = ("a 1 p:d k:1", "b 1 p:d k:10", "b 2 k:10")
    assert order("c d", *packages, "c 1 D:b") == "b-1 c-1"
    assert order("c", *packages, "c 1 D:b d") == "b-2 a-1 c-1"


# World, packages, what apk installs. test_solver_oracle asks the real apk for each of them.
AS_APK = {
    "what the only candidate claims has to come from it: that rules c-2 out": ("w", ["c 1 D:c>=1 p:w", "c 2"], "c-1"),
    "what all candidates need is wanted before the choice, and may be one of them": (
        "h",
        ["c 1 D:c<2 p:h", "h 1 D:c>=2"],
        "c-1",
    ),
    "only the only candidate's constraint is used before the choice, several have just the name in common": (
        "c",
        ["a 1 D:a~1 p:d", "a 2", "c 1 D:d", "d 1 D:a"],
        "a-2 d-1 c-1",
    ),
    "a name becomes selectable, and moves up, when its package is wanted": (
        "b a<2",
        ["a 1 D:c~2 p:c", "b 1", "b 2 p:c=2", "c 1 p:b=2 a"],
        "c-1",
    ),
    "a chosen provider stays although it brings another one": (
        "d",
        ["a 2 p:w k:1", "b 1 D:a p:w k:2", "d 2 D:w"],
        "a-2 b-1 d-2",
    ),
    "a provider that is wanted before the choice is the choice": (
        "d",
        ["a 2 p:w k:1", "b 1 D:a p:w k:2", "d 2 D:w a"],
        "a-2 d-2",
    ),
    "a rule that waits for its own package's absence finds it absent": ("a", ["a 1", "d 2 i:a !d=1"], "a-1"),
    "of two rules that wait for each other's absence one holds": (
        "a",
        ["a 1", "d 2 i:a !e=1", "e 2 i:a !d=1"],
        "a-1 d-2",
    ),
    "a package that a rule has found absent stays so": ("a", ["a 1", "d 2 i:a !e=1", "e 2 i:a d"], "a-1 d-2"),
}


@pytest.mark.parametrize(("world", "packages", "expected"), AS_APK.values(), ids=AS_APK)
def test_entangled_packages_come_out_as_with_apk(
    world: str, packages: list[str], expected: str, no_search: None
) -> None:
    assert order(world, *packages) == expected


# ---- conflicts -----------------------------------------------------------------------------------------------------


def test_conflicts_exclude_matching_versions_only() -> None:
    assert order("x y", "x 1 D:z", "y 1 D:!z>1", "z 2", "z 1") == "z-1 x-1 y-1"
    assert order("x !z", "x 1", "z 1") == "x-1"


def test_a_package_never_conflicts_with_itself(no_search: None) -> None:
    assert order("x", "x 1 p:n D:!n") == "x-1"
    assert order("x", "x 1 D:!x") == "x-1"


def test_a_package_conflicts_with_others_of_its_names() -> None:
    message = refusal("x y", "x 1 p:n D:!n", "y 1 p:n")
    assert message == (
        "these cannot be installed together: x (wanted by the recipe) conflicts with n; "
        "x (wanted by the recipe) provides n; y (wanted by the recipe) provides n"
    )


def test_a_name_that_is_taken_care_of_needs_no_further_package() -> None:
    """f was chosen for w; but b, which the world's conflict is about, comes first and has the name as well."""
    packages = ("b 1 p:w", "f 1 D:b p:w k:10")
    assert order("w", *packages) == "b-1 f-1"
    assert order("w !b<1", *packages) == "b-1"


def test_what_a_conflict_names_in_another_version_is_installed_first() -> None:
    assert order("x y", "x 1 D:!b>1", "y 1 D:b", "b 1") == "b-1 x-1 y-1"
    assert order("!b>1 a y", "a 1", "y 1 D:b", "b 1", "b 2") == "a-1 b-1 y-1", "the world is gone through by name"


def test_conflicts_name_both_sides_and_how_each_got_there() -> None:
    message = refusal("a y", "a 1 D:b", "b 1 D:!y", "y 1")
    assert "b (needed by a, wanted by the recipe) conflicts with y" in message
    assert "the recipe wants y" in message
    message = refusal("x !y", "x 1 D:y", "y 1")
    assert "the recipe excludes y" in message
    assert "x (wanted by the recipe) needs y" in message


# ---- install_if ----------------------------------------------------------------------------------------------------


def test_install_if_waits_for_all_conditions() -> None:
    rule = "x-doc 1 i:docs x=1"
    assert order("x", "x 1", "docs 1", rule) == "x-1"
    assert order("x docs", "x 1", "docs 1", rule) == "docs-1 x-1 x-doc-1"
    assert order("x docs", "x 2", "docs 1", rule) == "docs-1 x-2"


def test_install_if_goes_on_to_a_fix_point_and_brings_dependencies() -> None:
    assert order("x", "x 1", "y 1 i:x D:d", "d 1", "z 1 i:d") == "x-1 d-1 z-1 y-1"


def test_install_if_with_a_conflict_among_its_conditions() -> None:
    assert order("x y", "x 1", "y 1", "z 1 i:x !y", "w 1 i:x !v") == "x-1 w-1 y-1"


def test_install_if_that_asks_for_its_own_absence_brings_nothing() -> None:
    assert order("x", "x 1", "z 1 i:x !z") == "x-1"
    assert order("x", "x 1", "z 1 i:x !v p:v=1") == "x-1"


def test_install_if_may_switch_the_provider_of_something_wanted() -> None:
    rule = "policy 1 i:session D:polkit-elogind"
    packages = ("session 1", "app 1 D:polkit", "polkit 2", "polkit-elogind 1 p:polkit=1")
    assert order("app session", rule, *packages) == "polkit-elogind-1 app-1 session-1 policy-1"
    assert order("app", rule, *packages) == "polkit-2 app-1"


def test_install_if_goes_through_packages_in_the_order_of_the_hash_of_their_names() -> None:
    rules = ("a 1 i:x", "b 1 i:x", "c 1 i:x", "d 1 i:x")
    assert order("x", "x 1", *rules) == order("x", "x 1", *rules[::-1]) == "x-1 c-1 a-1 d-1 b-1"


def test_install_if_that_nothing_can_be_chosen_for_leaves_its_virtual_names_open() -> None:
    assert order("b", "a 1 D:a p:e i:c", "b 1 p:c k:5", "c 1 D:e k:5", "e 1 k:5") == "b-1 a-1"


def test_install_if_gives_way_to_everything_else() -> None:
    assert order("x y", "x 1", "y 1 D:!z", "z 1 i:x") == "x-1 y-1"
    assert order("x", "x 1", "z 1 i:x D:nothere", "w 1 i:x") == "x-1 w-1"


@pytest.mark.parametrize(
    ("installed", "preferred", "expected"),
    [
        ("y 1", "p 2 p:v=2", "p-2"),
        ("y 1", "p 2 p:v=2 y=1", "q-1"),
        ("y 1", "p 2 p:v=2 D:!y", "q-1"),
        ("y 1 p:w", "p 2 p:v=2 w", "p-2"),
        ("y 1 p:w=1", "p 2 p:v=2 w", "q-1"),
        ("y 1 p:w", "p 2 p:v=2 w=1", "q-1"),
    ],
)
def test_what_an_install_if_brings_fits_beside_what_was_searched_for(
    installed: str, preferred: str, expected: str
) -> None:
    searched = ("n 1", "n 2 D:m", "m 1 D:k", "k 1 D:!y")  # apk's own pass ends with n-2
    text = order("n y", *searched, installed, "z 1 i:n D:v", preferred, "q 1 p:v=1")
    assert sorted(text.split()) == sorted(["n-1", "y-1", "z-1", expected])


def test_a_broken_install_if_is_no_rule() -> None:
    assert order("x", "x 1", "n 1 i:x>v") == "x-1"


# ---- repositories --------------------------------------------------------------------------------------------------


def test_earlier_repositories_are_preferred_for_one_version() -> None:
    later = package("n 1", Repository(1, "b"))
    first = package("n 1", Repository(0, "a"))
    assert solve(["n"], [first, later], arch="x86_64")[0].repository.url == "a"


def test_a_repository_without_a_position_is_the_first() -> None:
    later, first = package("n 1", Repository(1, "later")), package("n 1", Repository(url="first"))
    assert solve(["n"], [later, first], arch="x86_64") == (first,)


def test_tagged_repositories_are_for_those_who_ask() -> None:
    assert order("n@edge", "n 2", edge=["n 1"]) == "n-1"
    assert order("n@edge", "n 2", edge=["m 3"]) == "n-2"
    assert order("n", "n 2", edge=["n 3"]) == "n-2"
    with pytest.raises(UnsatisfiableError, match="@edge") as caught:
        solved("n", "x 2", edge=["n 3"])
    assert caught.value.hint is not None
    assert "n@edge" in caught.value.hint


def test_tags_are_inherited_but_untagged_repositories_preferred() -> None:
    assert order("n@edge", "d 1", edge=["n 3 D:d>1", "d 2"]) == "d-2 n-3"
    assert order("n@edge", "d 1", edge=["n 3 D:d", "d 2"]) == "d-1 n-3"
    assert order("n@edge e", "d 1", "e 1 D:d", edge=["n 3 D:d>1", "d 2"]) == "d-2 e-1 n-3"


@pytest.mark.parametrize("entry", ["n@edeg", "nothere@edeg", "n@edeg>1", "!n@edeg"])
def test_a_tag_that_no_repository_has_is_refused(entry: str) -> None:
    with pytest.raises(RecipeError) as caught:
        solved(f"m {entry}", "n 2", "m 1", edge=["n 3"])
    assert caught.value.message == f"package {entry}: no repository has the tag @edeg"
    assert caught.value.hint == f"write {entry.replace('@edeg', '')}"
    assert caught.value.exit_status == 3


def test_install_if_honours_tags() -> None:
    assert order("x@edge y", "y 1", edge=["x 1", "z 1 i:x"]) == "x-1 z-1 y-1"
    assert order("y", "y 1", edge=["x 1", "z 1 i:y"]) == "y-1"


EDGE, OWN, MAIN = Repository(1, "edge", "edge"), Repository(2, "own", "own"), Repository(0, "main")


@pytest.mark.parametrize("order", [(MAIN, EDGE), (EDGE, MAIN), (EDGE, OWN, MAIN)])
def test_a_copy_may_be_used_where_one_of_its_repositories_may(order: Sequence[Repository]) -> None:
    """The same package, byte for byte, in a repository with a tag takes nothing away."""
    (chosen,) = solve(["n"], [package("n 1", one) for one in order], arch="x86_64")
    assert str(chosen) == "n-1"
    assert chosen.repository.url == order[0].url
    with pytest.raises(UnsatisfiableError, match="which only the repository tagged @edge, @own has"):
        solve(["n"], [package("n 1", one) for one in (EDGE, OWN)], arch="x86_64")
    for entry in ("n@edge", "n@own"):
        (chosen,) = solve([entry], [package("n 1", one) for one in (EDGE, OWN)], arch="x86_64")
        assert str(chosen) == "n-1"


def test_another_build_is_no_copy() -> None:
    edge = replace(package("n 1", EDGE), identity="Q1other")
    for packages in ([package("n 1", MAIN), edge], [edge, package("n 1", MAIN)]):
        (chosen,) = solve(["n"], packages, arch="x86_64")
        assert chosen.identity != "Q1other"
        (chosen,) = solve(["n@edge"], packages, arch="x86_64")
        assert chosen.identity == "Q1other"


def test_a_tag_whose_repository_has_installed_packages_only() -> None:
    installed = package("n 1")
    (chosen,) = solve(["n@edge"], [package("n 1", EDGE)], arch="x86_64", installed={"n": installed})
    assert chosen is installed


def test_foreign_and_broken_packages_do_not_exist() -> None:
    foreign = Package(name="n", version="1", arch="riscv64", identity="Q1n")
    with pytest.raises(UnsatisfiableError, match="n-1 is not installable: it is built for riscv64, not x86_64"):
        solve(["n"], [foreign], arch="x86_64")
    broken = Package(name="n", version="1", identity="Q1n", fault="its record is broken: 'm>v'")
    with pytest.raises(UnsatisfiableError, match="its record is broken"):
        solve(["n"], [broken], arch="x86_64")


def test_installed_versions_are_kept_unless_something_needs_another() -> None:
    old, new, user = package("n 1"), package("n 2"), package("u 1 D:n>1")
    assert solve(["n"], [new], arch="x86_64", installed={"n": old}) == (old,)
    assert solve(["n", "u"], [new, user], arch="x86_64", installed={"n": old}) == (new, user)
    copy = package("n 1", Repository(0, "a"))
    assert solve(["n"], [copy], arch="x86_64", installed={"n": old})[0] is old


def test_what_is_added_is_decided_before_what_the_world_has_already() -> None:
    packages = [package(text) for text in ("b 1 p:d=1", "c 1 p:b=1 k:1", "d 1")]
    installed = {"c": packages[1]}

    def names(world: str, standing: str) -> str:
        solution = solve(world.split(), packages, arch="x86_64", installed=installed, standing=standing.split())
        return " ".join(one.name for one in solution)

    assert names("d", "b") == "b", "as apk add d does it where b is in the world"
    assert names("b d", "") == "c d"
    assert names("b d", "b") == "c d"


# ---- messages ------------------------------------------------------------------------------------------------------


def test_unknown_names_are_reported_together_with_near_misses() -> None:
    with pytest.raises(UnknownPackageError) as caught:
        solved("nodjs zzz", "nodejs 1")
    assert caught.value.problems == ("package nodjs is in no repository", "package zzz is in no repository")
    assert caught.value.hint == "did you mean nodejs instead of nodjs?"
    assert caught.value.exit_status == 3


def test_a_missing_dependency_names_the_chain() -> None:
    message = refusal("x", "x 1 D:nodejs", "nodejs 1 D:so:libfoo.so.1")
    assert message == "x (wanted by the recipe) needs nodejs, which needs so:libfoo.so.1, which no package provides"
    assert refusal("n>2", "n 1", "n 2") == "the recipe wants n>2, but there is only 1, 2"


def test_all_missing_dependencies_are_reported() -> None:
    with pytest.raises(UnsatisfiableError) as caught:
        solved("x y z", "x 1 D:a", "y 1 D:b", "z 1")
    assert len(caught.value.problems) == 2


def test_entries_that_are_no_dependencies_are_reported_together() -> None:
    with pytest.raises(RecipeError) as caught:
        solve(["a b", "c=v", "d"], [package("d 1")], arch="x86_64")
    assert len(caught.value.problems) == 2


def test_a_virtual_name_without_a_default_is_named_at_once_wherever_it_is_needed() -> None:
    """Without the rule this is 20 times 20 choices, and 20 more for each name further."""
    libraries = [f"lib{number} 1 p:{name}={number} D:/bin/sh" for number in range(20) for name in "uvw"]
    shells = ["bash 1 p:/bin/sh", "dash 1 p:/bin/sh"]
    with pytest.raises(UnsatisfiableError) as caught:
        solved("u v w", *libraries, *shells)
    assert caught.value.problems[0] == (
        "u (lib0) (wanted by the recipe) needs /bin/sh, which no package provides by default"
    )
    assert caught.value.hint == "add one of these to the packages of the recipe: bash, dash"
    assert order("u dash", *libraries, *shells) == "dash-1 lib19-1"
    assert order("u x", *libraries, *shells, "x 1 D:bash") == "bash-1 lib19-1 x-1"


def test_only_hopeless_packages_want_a_provider_that_is_none_by_default() -> None:
    """b wants sh itself, but lacks something: so nobody does."""
    message = refusal("a", "a 1 D:virtual lib", "sh 1 p:virtual", "lib 1 p:n=1", "b 1 D:sh nothere p:lib=0")
    assert message == "a (wanted by the recipe) needs virtual, which no package provides by default"


def test_what_apk_refuses_is_searched_for() -> None:
    assert order("n y", "n 1", "n 2 D:m", "m 1 D:k", "k 1 D:!y", "y 1") == "n-1 y-1"
    assert order("x y", "x 1 D:n", "p 1 p:n", "q 1 p:n", "y 1 D:m", "w 1 p:m=1 D:p", "v 1 p:m=2") == "p-1 x-1 w-1 y-1"


def test_giving_up_names_where_choosing_without_a_search_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgkit.apk.search.MAX_ROUNDS", 1)
    with pytest.raises(UnsatisfiableError) as caught:
        solved("n y", "n 1", "n 2 D:m", "m 1 D:k", "k 1 D:!y", "y 1")
    assert caught.value.message == (
        "m (needed by n, wanted by the recipe) needs k, and no package of this name fits with the others"
    )
    assert caught.value.hint == "name the versions or providers that you want in the recipe"


def test_giving_up_lists_the_providers_of_a_virtual_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgkit.apk.search.MAX_ROUNDS", 1)
    with pytest.raises(UnsatisfiableError) as caught:
        solved("x y", "x 1 D:n", "p 1 p:n", "q 1 p:n", "y 1 D:m", "w 1 p:m=1 D:p", "v 1 p:m=2")
    assert caught.value.message == "x (wanted by the recipe) needs n, which no package provides by default"
    assert caught.value.hint == "add one of these to the packages of the recipe: p, q"


def test_full_claims_are_named_with_the_name_they_claim() -> None:
    message = refusal("a q", "a 1 D:p", "p 1 p:n=1", "q 1 p:n=1")
    assert "p (needed by a, wanted by the recipe) provides n" in message
    assert "q (wanted by the recipe) provides n" in message


# ---- properties ----------------------------------------------------------------------------------------------------


def faults(world: Iterable[str], packages: Sequence[Package]) -> list[str]:
    """Return what is wrong with a set of packages by the rules, written independently of the solver."""
    found = []
    claims = [(name, version, one) for one in packages for name, version in claimed(one)]
    for name, group in itertools.groupby(sorted(claims, key=lambda claim: claim[0]), key=lambda claim: claim[0]):
        members = list(group)
        if len(members) > 1 and any(version is not None for _, version, _ in members):
            found.append(f"{name} is claimed by {len(members)}")
    demands: list[tuple[Package | None, Dependency]] = [(None, Dependency.parse(text)) for text in world]
    demands += [(one, dependency) for one in packages for dependency in dependencies_of(one)]
    for asker, dependency in demands:
        hits = [
            one
            for name, version, one in claims
            if name == dependency.name and dependency.matches(version, one.identity)
        ]
        if dependency.conflict and any(one is not asker for one in hits):
            found.append(f"{asker} conflicts with {dependency}")
        if not dependency.conflict and not hits:
            found.append(f"{asker} lacks {dependency}")
    return found


def invited(one: Package, packages: Sequence[Package]) -> bool:
    conditions = [str(condition) for condition in conditions_of(one)]
    rest = [Package(name=other.name, version=other.version, provides=other.provides) for other in packages]
    return bool(conditions) and not [fault for fault in faults(conditions, rest) if fault.startswith("None")]


def superfluous(world: Sequence[str], packages: Sequence[Package]) -> list[Package]:
    """Packages that nothing which is needed asks for, by any of their names.

    One that is asked for may still be one too many: a chosen provider stays, as with apk, when another one comes later.
    """
    asked = {Dependency.parse(text) for text in world}
    kept: list[Package] = []
    while True:
        rest = [one for one in packages if one not in kept]
        more = [one for one in rest if any(_answers(one, dependency) for dependency in asked) or invited(one, kept)]
        if not more:
            return rest
        kept += more
        asked.update(dependency for one in more for dependency in dependencies_of(one))


def _answers(one: Package, dependency: Dependency) -> bool:
    """Whether a package satisfies a dependency, or has the name of a conflict without being hit (apk keeps it then)."""
    return any(
        name == dependency.name and dependency.matches(version, one.identity) != dependency.conflict
        for name, version in claimed(one)
    )


NAMES = "abcd"
VIRTUALS = "vw"
versions = st.sampled_from(["1", "2"])


@st.composite
def relation(draw: st.DrawFn) -> str:
    name = draw(st.sampled_from(NAMES + VIRTUALS))
    operator = draw(st.sampled_from(["", "", "", "=", "<", ">"]))
    return draw(st.sampled_from(["", "", "", "!"])) + name + (operator + draw(versions) if operator else "")


conditions = st.lists(relation(), max_size=2).filter(lambda texts: not texts or texts[0][0] != "!")


@st.composite
def repository(draw: st.DrawFn, *, priority: st.SearchStrategy[int], conditional: bool = False) -> list[Package]:
    packages = {}
    for name, version in draw(st.sets(st.tuples(st.sampled_from(NAMES), versions), min_size=1, max_size=8)):
        provided = draw(st.sets(st.sampled_from(VIRTUALS + NAMES.replace(name, "")), max_size=2))
        provides = tuple(one + draw(st.sampled_from(["", "=1", "=2"])) for one in sorted(provided))
        packages[name, version] = Package(
            name=name,
            version=version,
            identity=f"Q1{name}{version}",
            provider_priority=draw(priority),
            depends=tuple(draw(st.lists(relation(), max_size=3))),
            provides=provides,
            install_if=tuple(draw(conditions)) if conditional else (),
        )
    return [packages[key] for key in sorted(packages)]


def satisfiable(world: Sequence[str], packages: Sequence[Package]) -> bool:
    by_name = [[None, *(one for one in packages if one.name == name)] for name in NAMES]
    choices = ([one for one in choice if one] for choice in itertools.product(*by_name))
    return any(not faults(world, choice) for choice in choices)


def attempt(world: Sequence[str], packages: Sequence[Package]) -> tuple[Package, ...] | None:
    """The solver's answer, None if it says that there is none."""
    try:
        return solve(world, packages, arch="x86_64")
    except (UnknownPackageError, UnsatisfiableError) as refused:
        assert refused.message, "a refusal has words"  # noqa: PT017
        return None


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(repository(priority=st.integers(1, 3)), st.lists(relation(), min_size=1, max_size=3))
def test_finds_a_solution_exactly_when_there_is_one(packages: list[Package], world: list[str]) -> None:
    solution = attempt(world, packages)
    assert (solution is not None) == satisfiable(world, packages)
    assert solution is None or (faults(world, solution), superfluous(world, solution)) == ([], [])


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(repository(priority=st.integers(0, 1)), st.lists(relation(), min_size=1, max_size=3))
def test_what_it_finds_is_complete_also_where_virtual_names_need_a_choice(
    packages: list[Package], world: list[str]
) -> None:
    solution = attempt(world, packages)
    assert solution is None or faults(world, solution) == []


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(repository(priority=st.integers(1, 3), conditional=True), st.lists(relation(), min_size=1, max_size=3))
def test_install_if_leaves_out_only_what_does_not_fit(packages: list[Package], world: list[str]) -> None:
    solution = attempt(world, packages)
    assert (solution is not None) == satisfiable(world, packages), "install_if neither helps nor hinders"
    if solution is None:
        return
    assert faults(world, solution) == []
    names = {one.name for one in solution}
    for one in packages:
        if one.name not in names and not absence_matters(one, packages) and invited(one, solution):
            everything = [*world, *(f"{other.name}><{other.identity}" for other in (*solution, one))]
            assert not satisfiable(everything, packages), f"{one} was left out"


def absence_matters(one: Package, packages: Iterable[Package]) -> bool:
    """Return whether an install_if has a conflict with a name of this package.

    The name is decided before that rule, which may be too early for the package's own rule: see AS_APK.
    """
    excluded = {condition.name for other in packages for condition in conditions_of(other) if condition.conflict}
    return any(name in excluded for name, _ in claimed(one))


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(repository(priority=st.integers(1, 3)), st.lists(relation(), min_size=1, max_size=3), st.randoms())
def test_the_answer_does_not_depend_on_the_order_of_the_world(
    packages: list[Package], world: list[str], random: Random
) -> None:
    shuffled = list(world)
    random.shuffle(shuffled)
    assert attempt(world, packages) == attempt(shuffled, packages)


def test_the_checkers_of_this_file_say_no() -> None:
    a, b = package("a 1 D:b"), package("b 1 p:c=1")
    assert faults(["a"], [a]) == ["a-1 lacks b"]
    assert faults(["c", "!b"], [a, b]) == ["None conflicts with !b"]
    assert faults(["a"], [a, b, package("c 1")]) == ["c is claimed by 2"]
    assert superfluous(["b"], [a, b]) == [a]
    assert superfluous(["a"], [a, b]) == []
    assert superfluous(["b"], [b, package("d 1 D:d p:d2")]) != []
    assert not satisfiable(["a"], [a])
    assert absence_matters(b, [package("a 1 i:b !c=2")])
    assert not absence_matters(b, [package("a 1 i:b !a D:!b")])


# ---- the real index ------------------------------------------------------------------------------------------------

WORLD = ["alpine-base", "linux-virt", "openrc", "nodejs", "git", "python3", "bash", "e2fsprogs", "grub-efi"]


@pytest.mark.slow
def test_real_closure_is_complete_and_has_nothing_superfluous(real: tuple[Package, ...]) -> None:
    solution = solve(WORLD, real, arch="aarch64")
    assert len(solution) == 67  # as many as apk 3.0.8 installs
    assert faults(WORLD, solution) == []
    assert superfluous(WORLD, solution) == []


@pytest.mark.slow
def test_real_closure_has_the_order_of_apk(real: tuple[Package, ...]) -> None:
    names = [one.name for one in solve(WORLD, real, arch="aarch64")]
    first = "alpine-baselayout-data musl busybox busybox-binsh alpine-baselayout ifupdown-ng libcap2 openrc mdev-conf"
    assert " ".join(names).startswith(f"{first} busybox-mdev-openrc alpine-conf ")
    assert names[-4:] == ["gdbm", "mpdecimal", "sqlite-libs", "python3"]


@pytest.mark.slow
def test_real_solution_does_not_depend_on_the_order_of_the_world(real: tuple[Package, ...]) -> None:
    assert solve(WORLD[::-1], real, arch="aarch64") == solve(WORLD, real, arch="aarch64")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "count", "present", "absent"),
    [
        ("rng-tools cmd:rngd", 4, "rng-tools", "rng-tools-extra"),
        ("postgresql-client postgresql14", 27, "postgresql15-client postgresql14-client", ""),
        ("so:librelp.so.0 cmd:psql", 23, "busybox-binsh", "dash-binsh"),
    ],
)
def test_real_choices_are_those_of_apk(
    real: tuple[Package, ...], world: str, count: int, present: str, absent: str
) -> None:
    names = {one.name for one in solve(world.split(), real, arch="aarch64")}
    assert (len(names), names & {*present.split(), *absent.split()}) == (count, {*present.split()})


@pytest.mark.slow
def test_real_world_is_sorted_by_name(real: tuple[Package, ...]) -> None:
    names = [one.name for one in solve(["e2fsprogs-extra", "e2fsprogs>=1"], real, arch="aarch64")]
    assert names[-2:] == ["e2fsprogs", "e2fsprogs-extra"]


@pytest.mark.slow
def test_real_index_without_a_default_shell(real: tuple[Package, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """As in 3.16. It is found out without a search: one round would be too many."""
    monkeypatch.setattr("imgkit.apk.search.MAX_ROUNDS", 0)
    shells = [replace(one, provider_priority=0) if "/bin/sh" in one.provides else one for one in real]
    with pytest.raises(UnsatisfiableError) as caught:
        solve(["so:librelp.so.0", "cmd:psql"], shells, arch="aarch64")
    assert caught.value.message == (
        "cmd:psql (postgresql14-client) (wanted by the recipe) needs postgresql-common, which needs /bin/sh, "
        "which no package provides by default"
    )
    assert caught.value.hint == "add one of these to the packages of the recipe: busybox-binsh, dash-binsh, yash-binsh"
    assert len(solve(["cmd:psql", "busybox-binsh"], shells, arch="aarch64")) == 15


def test_real_near_miss(real: tuple[Package, ...]) -> None:
    with pytest.raises(UnknownPackageError) as caught:
        solve(["nodjs"], real, arch="aarch64")
    assert caught.value.hint is not None
    assert "nodejs" in caught.value.hint
