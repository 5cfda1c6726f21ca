"""JSON from untrusted sources is either read within limits or refused as bad input."""

from __future__ import annotations

import copy
import json
import os
import random
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from imgkit.apk.index import format_record
from imgkit.cli.main import main
from imgkit.errors import InputError, RecipeError
from imgkit.host import jsonfile
from imgkit.host.jsonfile import DEEPEST, checked, parse_json, read_bytes, read_json
from imgkit.image import bootrecord
from imgkit.image.manifest import MAX_SIZE, read_manifest, write_manifest
from imgkit.planning import lockfile
from imgkit.planning.plan import Plan
from imgkit.publish.publication import parse_index
from imgkit.recipe import Recipe, load
from imgkit.rootfs.digest import records
from imgkit.tree import Tree
from tests.commandline import ROOT
from tests.mirrors import RECIPE as SMALL_RECIPE
from tests.test_lockfile import plan_of

HOSTILE: dict[str, tuple[bytes, str]] = {
    "deep": (b"[" * 100_000, "not JSON"),
    "deep and whole": (b"[" * 900 + b"]" * 900, "nested deeper than 64 levels"),
    "deep objects": (b'{"a":' * 500 + b"1" + b"}" * 500, "nested deeper than 64 levels|nested too deeply"),
    "many digits": (b'{"lock": ' + b"9" * 100_000 + b"}", "a number of 100000 digits"),
    "large number": (b'{"lock": 1e999}', "a number that is too large"),
    "NaN": (b'{"lock": NaN}', "NaN is not a number"),
    "Infinity": (b'{"lock": -Infinity}', "-Infinity is not a number"),
    "twice": (b'{"lock": 1, "lock": 2}', "the name 'lock' occurs twice"),
    "half a pair": (b'{"lock": "\\ud800"}', "half of a surrogate pair"),
    "half a pair as a name": (b'{"\\udfff": 1}', "half of a surrogate pair"),
    "not UTF-8": (b'{"lock": "\xff"}', "not JSON"),
    "cut off": (b'{"lock": 1, "archi', "not JSON"),
    "empty": (b"", "not JSON"),
    "twice over": (b"{}{}", "not JSON"),
    "zeros": (bytes(1000), "not JSON"),
    "an escape as a name": (b'{"\\u001b[31m": 1, "\\u001b[31m": 2}', r"the name '\\x1b\[31m' occurs twice"),
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_hostile_files_are_refused(attack: str, tmp_path: Path) -> None:
    data, message = HOSTILE[attack]
    path = tmp_path / "x.json"
    path.write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        read_json(path, 1 << 20, hint="do this")
    assert caught.value.message.startswith(f"{path}: ")
    assert caught.value.hint == "do this"
    assert "\n" not in caught.value.message
    assert "\x1b" not in caught.value.message
    assert len(caught.value.message) < 400


def test_levels_up_to_the_limit_are_read() -> None:
    nested = b"[" * DEEPEST + b"]" * DEEPEST
    assert parse_json(nested, "x") is not None
    with pytest.raises(InputError, match="nested deeper"):
        parse_json(b"[" + nested + b"]", "x")


def test_size_is_limited_before_anything_is_parsed(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b" " * 98 + b"{}")
    assert read_json(path, 100) == {}
    with pytest.raises(InputError, match="is larger than the 99 bytes"):
        read_json(path, 99)
    with path.open("ab") as sink:
        sink.truncate(1 << 42)
    with pytest.raises(InputError, match="is larger than"):
        read_json(path, 1 << 20)


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    """Opening a FIFO would wait for ever."""
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, Path("/dev/zero")):
        with pytest.raises(InputError, match="is not a regular file"):
            read_json(path, 100)
    with pytest.raises(InputError, match="No such file"):
        read_json(tmp_path / "missing", 100)


@given(st.binary(max_size=60) | st.text(alphabet='{}[]",:0123456789\\uduNa ', max_size=60).map(str.encode))
def test_any_bytes_are_json_or_refused(data: bytes) -> None:
    try:
        value = parse_json(data, "x")
    except InputError:
        return
    json.dumps(value, ensure_ascii=False).encode()


# ---- files of imgkit ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load(ROOT / "recipes" / "core.py", {"mirror": "http://mirror.test/alpine/"})


@pytest.fixture(scope="module")
def lock(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lock") / "core.lock"
    lockfile.write(path, recipe, [plan_of(recipe, "amd64")])
    return path


MANIFEST = {
    "manifest": 1,
    "arch": "amd64",
    "buildId": "b",
    "image": {"sha256": "ab" * 32, "size": 5, "virtualSize": 6},
    "boot": {"kernel": {"name": "vmlinuz-virt-amd64", "sha256": "ab" * 32, "size": 5}},
    "files": {"/": {"type": "directory", "mode": "0755"}},
}
RECORD = bootrecord.BootRecord("x.qcow2", "ab" * 32, 5, "amd64", {"bios": {"seconds": 1}})
PUBLISHED = {"name": "a.qcow2", "url": None, "sha256": "ab" * 32, "size": 5}
INDEX = {
    "index": 1,
    "version": "v1",
    "baseUrl": "https://example.test/v1",
    "generatedAt": "2026-01-01T00:00:00Z",
    "architectures": {"amd64": {"buildId": "b", "provedWith": ["bios"], "image": PUBLISHED, "manifest": PUBLISHED}},
}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("9" * 5000),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in a JSON value."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from places(value[key])


def changed(text: str, value: Any, choose: random.Random) -> bytes:
    """Return the JSON ``text`` with ``value`` somewhere in it, or without what is there."""
    document = [json.loads(text)]
    container, key = choose.choice(list(places(document)))
    if value == [] and isinstance(container, dict):
        del container[key]
    else:
        container[key] = copy.deepcopy(value)
    return json.dumps(document[0]).encode()


@pytest.mark.slow
@settings(max_examples=400)
@given(value=VALUES, choose=st.randoms(use_true_random=False))
def test_any_value_anywhere_in_a_lock_is_read_or_refused(
    value: Any, choose: random.Random, lock: Path, recipe: Recipe
) -> None:
    path = lock.with_name("changed.lock")
    path.write_bytes(changed(lock.read_text(), value, choose))
    with suppress(InputError, RecipeError):
        use(lockfile.read(path, recipe, "amd64"))


def use(plan: Plan) -> None:
    """What every build does with a plan."""
    assert plan.epoch >= 0
    assert plan.digest
    for planned in plan.packages:
        format_record(planned.package).encode()


@pytest.mark.slow
@settings(max_examples=300)
@given(value=VALUES, choose=st.randoms(use_true_random=False))
def test_any_value_anywhere_in_other_files_is_read_or_refused(
    value: Any, choose: random.Random, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(changed(json.dumps(MANIFEST), value, choose))
    with suppress(InputError):
        assert isinstance(read_manifest(path)["files"], dict)
    bootrecord.parse(changed(RECORD.text(), value, choose))
    with suppress(InputError):
        parse_index(changed(json.dumps(INDEX), value, choose), "x")


def test_the_files_that_are_changed_there_are_good_ones(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(MANIFEST))
    assert read_manifest(path) == MANIFEST
    assert bootrecord.parse(RECORD.text().encode()) == RECORD
    assert [published.arch for published in parse_index(json.dumps(INDEX).encode(), "x").architectures] == ["amd64"]


LOCK_FAULTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a hash that is null": (lambda entry: entry["install"][0].update(sha256=None), r"install\.0\.sha256"),
    "a short hash": (lambda entry: entry["install"][0].update(sha256="ab"), r"install\.0\.sha256"),
    "a hash of an index that is empty": (lambda entry: entry["indexes"][0].update(sha256=""), r"indexes\.0\.sha256"),
    "nothing to install": (lambda entry: entry.update(install=[]), "the whole: it has no packages"),
    "a world of no words": (lambda entry: entry.update(world=["a>>b c"]), r"world\.0: 'a>>b c' is not a valid"),
    "a size below zero": (lambda entry: entry["minirootfs"].update(size=-1), r"minirootfs\.size"),
    "a size that is a text": (lambda entry: entry["minirootfs"].update(size="5"), r"minirootfs\.size"),
    "a path out of the mirror": (lambda entry: entry["minirootfs"].update(path="../../x"), r"minirootfs\.path"),
    "a path elsewhere": (lambda entry: entry["minirootfs"].update(path="http://x/y"), r"minirootfs\.path"),
    "another package's path": (lambda entry: entry["install"][1].update(path="a/b-1-r0.apk"), "the path is not that"),
    "a package twice": (lambda entry: entry["install"].append(entry["install"][0]), "busybox is in it twice"),
    "a record of two lines": (lambda entry: entry["install"][1]["record"].append("L:x\nP:y"), r"install\.1\.record"),
    "an unknown field": (lambda entry: entry["install"][1]["record"].append("X:y"), "unknown field X"),
    "a time of another age": (lambda entry: entry["install"][1]["record"].append("t:" + "9" * 18), "a time or a size"),
    "an identity that is none": (lambda entry: entry["install"][0]["record"].append("C:Q1x"), "is not the identity"),
    "an escape as a key": (lambda entry: entry.update(minirootfs={"\x1b[31m": 1}), "Field required"),
}


@pytest.mark.parametrize("fault", LOCK_FAULTS)
def test_each_fault_of_a_lock_is_named(fault: str, lock: Path, recipe: Recipe) -> None:
    change, message = LOCK_FAULTS[fault]
    body = json.loads(lock.read_text())
    change(body["architectures"]["amd64"])
    path = lock.with_name("faulty.lock")
    path.write_text(json.dumps(body))
    with pytest.raises(InputError, match=message) as caught:
        lockfile.read(path, recipe, "amd64")
    assert "imgkit lock" in str(caught.value.hint)
    assert "\x1b" not in caught.value.message


@pytest.mark.parametrize("attack", ["deep", "many digits", "twice", "half a pair", "NaN"])
def test_commands_call_it_bad_input(attack: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 4, not 70: from the file to the message."""
    data = HOSTILE[attack][0]
    recipe = tmp_path / "core.py"
    recipe.write_text(SMALL_RECIPE)
    recipe.with_suffix(".lock").write_bytes(data)
    words = ["build", str(recipe), "--locked", "--arch", "amd64", "--offline", "--out", str(tmp_path / "out")]
    assert main(words) == 4
    image = tmp_path / "linux-amd64.qcow2"
    image.write_bytes(b"QFI\xfb" + bytes(100))
    image.with_suffix(".manifest.json").write_bytes(data)
    assert main(["publish", "v1", "--from", str(tmp_path), "--to", str(tmp_path / "publish")]) == 4
    assert "bug" not in capsys.readouterr().err


def test_names_that_are_not_utf_8_come_back_from_a_manifest(tmp_path: Path) -> None:
    """A payload may have such a file: the build ended in a bug."""
    tree = Tree()
    tree.write(os.fsdecode(b"caf\xe9"), "x")
    tree.write("caf\xe9 \u20ac", "x")
    manifest = {**MANIFEST, "files": records(tree)}
    path = tmp_path / "manifest.json"
    write_manifest(manifest, path)
    path.read_bytes().decode()  # it is UTF-8 itself
    assert read_manifest(path) == manifest
    path.write_bytes(path.read_bytes().replace(b"udce9", b"ud8e9"))
    with pytest.raises(InputError, match="half of a surrogate pair"):
        read_manifest(path)


def test_the_limit_of_a_manifest_is_far_above_a_large_image() -> None:
    assert MAX_SIZE > 250 * 100_000


@pytest.mark.slow
def test_a_name_that_occurs_twice_among_many_is_found_in_linear_time() -> None:
    names = ",".join(f'"{number}":0' for number in range(200_000))
    started = time.process_time()
    with pytest.raises(InputError, match="the name '199999' occurs twice"):
        parse_json(f'{{{names},"199999":1}}'.encode(), "x")
    assert time.process_time() - started < 10


@pytest.mark.parametrize("piece", ["[]", "{}", '{"a":1}'])
def test_objects_and_lists_are_counted_before_they_are_made(piece: str) -> None:
    assert len(parse_json(f"[{','.join([piece] * 1000)}]".encode(), "x")) == 1000
    tracemalloc.start()
    data = f"[{','.join([piece] * 600_000)}]".encode()
    tracemalloc.reset_peak()
    with pytest.raises(InputError, match="not JSON: more than 500000 objects and lists"):
        parse_json(data, "x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * len(data)


# ---- messages and boundaries -----------------------------------------------------------------------------------------


class Three(BaseModel):
    """A model of several values."""

    a: int
    b: int
    c: int
    d: int
    e: list[int] = []


@pytest.mark.parametrize(
    ("value", "faults"),
    [
        ({"a": 1, "b": 2, "c": 3}, "d: Field required"),
        ({"a": 1}, "b: Field required; c: Field required; d: Field required"),
        ({}, "a: Field required; b: Field required; c: Field required; and 1 more"),
        ({"e": 5}, "a: Field required; b: Field required; c: Field required; and 2 more"),
        ({"a": 1, "b": 1, "c": 1, "d": 1, "e": [1, []]}, "e.1: Input should be a valid integer"),
        ([], "the whole: Input should be a valid dictionary or instance of Three"),
    ],
)
def test_three_faults_of_a_file_are_named(value: object, faults: str) -> None:
    with pytest.raises(InputError) as caught:
        checked(Three, value, "x.json", description="a list of three", hint="do")
    assert caught.value.message == f"x.json: is not a list of three: {faults}"
    assert caught.value.hint == "do"


def test_a_value_that_fits_is_returned() -> None:
    assert checked(Three, {"a": 1, "b": 2, "c": 3, "d": 4}, "x", description="y") == Three(a=1, b=2, c=3, d=4)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"[1.5, -2e3, true, null]", [1.5, -2000.0, True, None]),
        (b'\xef\xbb\xbf{"a": "\xc3\xa4"}', {"a": "\u00e4"}),
        (b"9" * 19, 9999999999999999999),
        (b"-" + b"9" * 19, -9999999999999999999),
        (b'{"a": {"b": 1}, "c": {"b": 2}}', {"a": {"b": 1}, "c": {"b": 2}}),
    ],
)
def test_values_that_are_read(text: bytes, value: object) -> None:
    assert parse_json(text, "x") == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"9" * 20, "not JSON: a number of 20 digits"),
        (b"-" + b"9" * 20, "not JSON: a number of 21 digits"),
        (b"[NaN]", "not JSON: NaN is not a number"),
        (b"[1e400]", "not JSON: a number that is too large"),
        (b'{"b": 1, "a": 1, "a": 2, "b": 3}', "not JSON: the name 'b' occurs twice in an object"),
        (b'{"' + b"n" * 61 + b'": 1, "' + b"n" * 61 + b'": 2}', f"not JSON: the name '{'n' * 60}' occurs twice"),
        (b'["\\ud800"]', "not JSON: half of a surrogate pair in '\\ud800'"),
        (b"[" * 5000, "not JSON that can be read: nested too deeply"),
    ],
)
def test_why_a_text_is_refused(text: bytes, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_json(text, "x.json", hint="do")
    assert caught.value.message.startswith(f"x.json: {message}")
    assert caught.value.hint == "do"


def test_objects_and_lists_up_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonfile, "_MOST_CONTAINERS", 3)
    assert parse_json(b"[[], {}]", "x") == [[], {}]
    with pytest.raises(InputError, match=r"^x: not JSON: more than 3 objects and lists$"):
        parse_json(b"[[], {}, []]", "x")


def test_names_that_are_not_utf_8_where_they_are_allowed() -> None:
    assert parse_json(b'["\\udcff"]', "x", raw_names=True) == ["\udcff"]
    with pytest.raises(InputError, match="half of a surrogate pair"):
        parse_json(b'["\\udcff"]', "x")
    with pytest.raises(InputError, match="half of a surrogate pair"):
        parse_json(b'["\\ud800"]', "x", raw_names=True)


def test_a_file_goes_by_its_path_or_by_another_name(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for name, shown in ((None, path), ("the index", "the index")):
        with pytest.raises(InputError) as caught:
            read_bytes(path, 5, name=name, hint="do")
        assert (caught.value.message, caught.value.hint) == (f"{shown}: No such file or directory", "do")
    path.write_bytes(b"12345")
    assert read_bytes(path, 5) == b"12345"
    with pytest.raises(InputError) as caught:
        read_bytes(path, 4, name="the index", hint="do")
    assert caught.value.message == "the index: is larger than the 4 bytes that are read of such a file"
    assert caught.value.hint == "do"
    with pytest.raises(InputError) as caught:
        read_bytes(tmp_path, 4)
    assert caught.value.message == f"{tmp_path}: is not a regular file"
    path.write_bytes(b"{")
    with pytest.raises(InputError) as caught:
        read_json(path, 5, hint="do")
    assert caught.value.message.startswith(f"{path}: not JSON: ")
    assert caught.value.hint == "do"


def test_what_is_no_regular_file_is_closed(tmp_path: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - only their numbers matter
    with suppress(InputError):
        read_bytes(tmp_path, 5)
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
