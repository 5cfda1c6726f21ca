"""Small worlds that the solver must not get wrong: each tells it from a solver with one small fault.

They were found among many thousands of random ones, and made as small as they can be.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence

import pytest

from imgkit.apk.candidates import Catalog
from imgkit.apk.deduction import DeadEnd
from imgkit.apk.explain import near_misses
from imgkit.apk.index import Package, Repository
from imgkit.apk.solver import UnknownPackageError, UnknownTagError, UnsatisfiableError, solve
from tests.test_solver import package

REPOSITORIES = {
    "": Repository(0, "main"), "@edge": Repository(1, "edge", "edge"), "@late": Repository(2, "late"),
    "@test": Repository(3, "test", "test"), "*": Repository(),
}  # fmt: skip


def solved(world: str, packages: Sequence[str]) -> str:
    """Return the solution in install order as one text, or the words of the refusal.

    Args:
        world: its entries; those behind a ``|`` are in the world of the system already.
        packages: in front of each may be the tag of its repository, or a ``*`` if the system has it. In the solution
            the same is behind each.
    """
    available, installed = [], {}
    for text in packages:
        where, rest = text.split(" ", 1) if text[0] in "@*" else ("", text)
        one = package(rest, REPOSITORIES[where])
        if where == "*":
            installed[one.name] = one
        else:
            available.append(one)
    wanted, _, standing = world.partition("|")
    try:
        found = solve(wanted.split(), available, arch="x86_64", installed=installed, standing=standing.split())
    except (UnknownPackageError, UnknownTagError, UnsatisfiableError) as refusal:
        return f"refused: {refusal.message}"
    return " ".join(f"{one}{_place(one)}" for one in found)


def _place(one: Package) -> str:
    return next(name for name, repository in REPOSITORIES.items() if repository == one.repository)


@pytest.fixture
def no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows is found in the pass that apk makes, or not at all."""
    monkeypatch.setattr("imgkit.apk.search.MAX_ROUNDS", 0)


@pytest.fixture
def only_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows is searched for, as if the pass that apk makes had ended without a solution."""

    def fail(*_: object) -> None:
        raise DeadEnd("anything", None)

    monkeypatch.setattr("imgkit.apk.solver.deduce", fail)


@pytest.mark.parametrize(
    ("world", "packages", "expected"),
    [
        ("!a~2 | a", ["a 1", "b 1 p:u i:a"], "a-1 b-1"),
        ("a@edge>=2", ["a 2", "@edge b 1", "* e 1 p:a", "* a 1"], "a-2"),
        ("e", ["a 1 D:b p:e=2", "b 1 D:e"], "b-1 a-1"),
        ("c", ["c 1 D:!d u>=1", "e 1 p:u=2", "b 2 p:u"], "e-1 c-1"),
        ("d", ["a 2 p:d c k:10", "* c 1 p:b k:1 i:c"], "a-2"),
        ("f", ["e 1", "f 1 D:e !e p:e"], "f-1"),
        (
            "e g",
            ["a 1 D:i", "b 1", "c 1 p:a i:b", "d 2 D:b p:u i:!h<1", "e 1 D:u p:h=1", "g 1", "g 2 D:a v", "i 1 D:u p:d"],
            "b-1 c-1 d-2 e-1 g-1",
        ),
        (
            "h",
            [
                "a 1 D:h>1 p:d",
                "b 1 D:a b p:i",
                "b 2",
                "c 1 D:f i:h",
                "e 1 D:i p:a=1",
                "f 1 D:!b i:d",
                "h 1 D:i",
                "i 1 D:f=2 p:b",
            ],
            "e-1 b-1 h-1",
        ),
        ("h e", ["c 2 p:e k:1", "e 1 p:g", "h 1 D:!g i:g"], "c-2 h-1"),
        ("b@edge", ["h 1 p:b g k:5", "@edge c 1 D:!g i:g"], "h-1"),
        ("e b", ["e 1", "g 1 D:g p:b f=1", "h 1 i:d", "i 1 p:d i:e !a", "d 1 p:f"], "g-1 e-1 i-1 h-1"),
        ("b c@test", ["b 2 p:c", "@test c 1 p:b"], "c-1@test"),
        ("b", ["b 1", "* c 1 p:b k:5"], "c-1*"),
        ("w", ["d 1 p:w k:10", "* i 1 p:w k:5"], "d-1"),
        ("d c", ["d 1 p:c", "c 1 p:v", "e 1 D:v>2 p:d c i:e", "c 2 D:c"], "d-1"),
        (
            "a",
            ["a 1 D:c", "a 2 D:c", "b 1 D:a a<2", "c 1 D:b"],
            "refused: a (wanted by the recipe) needs c, and no package of this name fits with the others",
        ),
    ],
)
def test_what_is_found_in_one_pass(world: str, packages: list[str], expected: str, no_search: None) -> None:
    assert solved(world, packages) == expected


@pytest.mark.parametrize(
    ("world", "packages", "expected"),
    [
        ("c", ["b 1 D:a p:u", "c 1 D:u", "d 1 p:u=2", "d 2 p:u k:1"], "d-2 c-1"),
        ("c", ["b 1 D:a p:u k:10", "c 1 D:u", "d 1 p:u=2", "d 2 p:u k:1"], "d-2 c-1"),
        (
            "f",
            ["b 1 D:c p:f=2", "g 1 p:c"],
            "refused: f (b) (wanted by the recipe) needs c, which no package provides by default",
        ),
        ("c", ["a 1 D:d>2", "b 1 D:a p:u", "c 1 D:u", "d 1 p:u=2", "d 2 p:u k:1"], "d-2 c-1"),
        (
            "c d",
            ["d 1 p:a", "* c 1 p:a=1", "* a 2 p:d=2"],
            "refused: these cannot be installed together: c (wanted by the recipe) provides a; "
            "d (wanted by the recipe) provides a; d must come from a (wanted by the recipe)",
        ),
        ("b a", ["e 2 p:v=1 b", "* d 2 D:v p:a=1", "* b 1 p:v"], "b-1* d-2*"),
        ("e | a", ["e 1 p:a"], "e-1"),
        ("!u", [], ""),
        ("a", ["a 2 D:d e p:d", "e 1", "f 1 p:e=2", "c 1 D:e=1 p:d k:5"], "f-1 a-2"),
        ("a", ["a 1", "@test c 1 p:a"], "a-1"),
        (
            "c d",
            ["d 1 D:a p:c=2", "* c 1 p:a", "* a 2 p:d"],
            "refused: d (wanted by the recipe) needs a, which no package provides by default",
        ),
        ("b", ["e 2 p:b=1", "* b 1"], "b-1*"),
        ("b", ["b 2", "e 1 p:b=2 k:5"], "e-1"),
        ("a", ["a 1 D:!b"], "a-1"),
        ("v@test~2", [], "refused: package v@test~2: no repository has the tag @test"),
        ("b", ["* d 1 p:e", "* e 1 i:a", "* b 1 D:d p:a"], "d-1* b-1*"),
        # install_if, of which only those that hold may keep others out
        ("a", ["a 1", "z 1 i:a b p:v=1", "y 1 i:a p:v=1", "b 1"], "a-1 y-1"),
        ("x y", ["x 1", "y 1", "x-doc 1 i:docs x=1", "y-doc 1 i:y x>=1", "docs 1"], "x-1 y-1 y-doc-1"),
        ("x@edge y", ["y 1", "@edge x 1", "@edge z 1 i:x"], "x-1@edge z-1@edge y-1"),
        ("y", ["y 1", "@edge x 1", "@edge z 1 i:y"], "y-1"),
        # which claim is the best: the tag that was asked for, installed, versions, priority, place
        ("n@edge", ["n 2", "@edge n 1"], "n-1@edge"),
        ("n@edge", ["n 2", "@edge m 1"], "n-2"),
        ("n", ["n 1", "@edge n 2"], "n-1"),
        ("n", ["n 2", "* n 1"], "n-1*"),
        ("n>1", ["n 2", "* n 1"], "n-2"),
        ("n", ["n 1", "n 3", "n 2"], "n-3"),
        ("n", ["n 3", "n 1", "n 2"], "n-3"),
        ("n", ["p 9 p:n=1", "q 1 p:n=2 k:1", "r 1 p:n=1 k:9"], "q-1"),
        ("n", ["a 1 p:n=2 k:3", "a 2 p:n=2"], "a-2"),
        ("n", ["a 2 p:n=2", "a 1 p:n=2 k:3"], "a-2"),
        ("n", ["a 2 p:n=2", "b 1 p:n=2 k:3"], "b-1"),
        ("n", ["b 1 p:n=2 k:3", "a 2 p:n=2 k:4", "c 3 p:n=2 k:2"], "a-2"),
        ("n", ["p 1 p:n=1", "q 2 p:n=1", "o 3 p:n=1"], "p-1"),
        ("n", ["o 3 p:n=1", "q 2 p:n=1", "p 1 p:n=1"], "o-3"),
        ("n", ["@late n 1", "n 1", "@late n 1"], "n-1@late"),
    ],
)
def test_what_is_found_by_a_search(world: str, packages: list[str], expected: str, only_search: None) -> None:
    assert solved(world, packages) == expected


@pytest.mark.parametrize(
    ("world", "packages", "expected"),
    [
    ("e", ["e 2", "* d 1 p:e=1"], "d-1*"),
    ("c", ["a 1 p:c=2", "a 2 p:c=2"], "a-2"),
    ("a u@edge", ["a 1 p:u", "a 2 p:d", "b 1 D:d=1 p:a=2 u", "@edge d 1"], "d-1@edge b-1"),
    ("b@edge~1", ["@edge b 1", "* b 1 k:10"], "b-1@edge"),
    ("b@edge~1", ["@edge b 1 D:d=1 k:10", "@edge c 1", "* d 1", "* b 1 D:d=1 k:10"], "d-1* b-1*"),
    ("f u | c a", ["a 1 p:u", "c 1 p:f", "c 2 D:u>=1 c", "f 1 p:b"], "a-1 c-1"),
    ("g", ["f 1 p:g"], "refused: the recipe wants g, which no package provides by default"),
    ("c !b", ["b 1 p:c", "c 2 D:f", "f 1 p:b"], "refused: these cannot be installed together: the recipe excludes b; "
            "f (needed by c, wanted by the recipe) provides b"),
    ("w", [], "refused: package w is in no repository"),
    ("f", ["b 1 D:b>=2 i:f", "f 1"], "f-1"),
        # packages that need each other
        (
            "x y", ["x 1 D:z", "z 1 D:x !y", "y 1"],
            "refused: these cannot be installed together: the recipe wants y; "
            "z (needed by x, wanted by the recipe) conflicts with y",
        ),
        # what lacks something in a circle
        ("a", ["a 1 D:b c", "b 1 D:a"], "refused: a (wanted by the recipe) needs c, which no package provides"),
        ("a", ["a 1 D:b", "b 1 D:a c"], "refused: a (wanted by the recipe) needs b, which needs c, which no package "
         "provides"),
    ],
)  # fmt: skip
def test_what_is_found_in_the_end(world: str, packages: list[str], expected: str) -> None:
    assert solved(world, packages) == expected


# ---- around the solver ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_rests_meanwhile_and_is_as_before_afterwards(enabled: bool) -> None:
    seen = []

    def packages() -> Iterator[Package]:
        seen.append(gc.isenabled())
        yield package("n 1")

    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        solve(["n"], packages(), arch="x86_64")
        with pytest.raises(UnknownPackageError):
            solve(["other"], packages(), arch="x86_64")
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()
    assert seen == [False, False]


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("nodjs", ["nodejs"]),
        ("python9", ["python", "python7", "python5"]),
        ("pithon", ["python", "python7", "python5"]),
        ("nod", []),
        ("so:libfoo.so.2", []),
        ("zzz", []),
    ],
)
def test_up_to_three_names_that_are_near(name: str, close: list[str]) -> None:
    names = ("nodejs", "python3", "python5", "python", "python7", "git")
    catalog = Catalog([*(package(f"{text} 1") for text in names), package("lib 1 p:so:libfoo.so.1=1")], "x86_64")
    assert near_misses(name, catalog) == close
