"""The fuzzers' kept corpus, and a short search, through every parser of foreign bytes (docs/development/fuzzing.md)."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuzz.__main__ import main
from fuzz.mutate import Mutator
from fuzz.search import TooSlowError, check, keep
from fuzz.target import CORPUS, Target, corpus
from fuzz.targets import TARGETS

KEPT = [(name, file, data) for name in TARGETS for file, data in corpus(name)]
_SHORT = 100


@pytest.mark.parametrize(("name", "file", "data"), KEPT, ids=[f"{name}-{file}" for name, file, _ in KEPT])
def test_what_was_found_stays_mended(name: str, file: str, data: bytes) -> None:
    check(TARGETS[name], data)


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_proper(name: str) -> None:
    """A seed that is refused at once would lead the fuzzer nowhere."""
    for seed in TARGETS[name].seeds():
        TARGETS[name].run(seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_a_short_search(name: str) -> None:
    target = TARGETS[name]
    mutator = Mutator([*target.seeds()], target.words, seed=1)
    for _ in range(_SHORT):
        check(target, mutator.next())


def test_the_corpus_belongs_to_targets() -> None:
    assert {path.name for path in CORPUS.iterdir() if path.is_dir()} <= set(TARGETS) | {"nocloud"}


# ---- the fuzzer itself -----------------------------------------------------------------------------------------------


def _picky(data: bytes) -> None:
    if b"\xff" in data:
        raise KeyError("a fault")
    if b"z" in data:
        raise ValueError("bad input")


PICKY = Target(_picky, (ValueError,), lambda: [b"abc"])


def test_a_fault_is_told_from_bad_input() -> None:
    check(PICKY, b"z")
    with pytest.raises(KeyError):
        check(PICKY, b"a\xff")


def test_a_random_search_finds_a_fault() -> None:
    mutator = Mutator([b"abc"], (), seed=1)
    inputs = [mutator.next() for _ in range(2000)]
    with pytest.raises(KeyError):
        list(map(PICKY.check, inputs))


@pytest.mark.slow
def test_an_input_that_never_ends_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(_: bytes) -> None:
        while True:
            pass

    monkeypatch.setattr("fuzz.search.SECONDS", 0.2)
    with pytest.raises(TooSlowError):
        check(Target(endless, (), lambda: []), b"")


def test_what_is_found_is_kept_where_it_can_be_read(tmp_path: Path) -> None:
    assert keep(tmp_path, b"plain\n").read_bytes() == b"plain\n"
    path = keep(tmp_path, b"\0\xff")
    assert path.suffix == ".b64"
    assert path.read_text() == "AP8=\n"


@pytest.mark.slow
def test_the_command_searches_in_processes_of_their_own(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["relations", "--seconds", "1"]) == 0
    assert "relations: " in capfd.readouterr().out
    assert main(["--list"]) == 0
    assert capfd.readouterr().out.split() == list(TARGETS)
    with pytest.raises(SystemExit):
        main(["nonsense"])
