"""script/mutate: the changes that it makes, and what it says of them."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from mutation import __main__ as program
from mutation import copies, nodetests, python
from mutation.change import Change
from mutation.copies import Copy
from mutation.covering import Covering
from mutation.nodetests import Batch, Scripts
from tests.commandline import ROOT
from tests.conftest import need_program

SOURCE = b'''
import logging
log = logging.getLogger("x")
LIMIT = 10

def answer(text: str, limit: int | None = LIMIT) -> bool:
    """A docstring with 1 < 2 stays."""
    log.info("so does %d", 1)
    if len(text) >= 3 and not text.startswith("#"):
        return False
    if text in ("a", "b"):
        raise ValueError(f"no {1 + 1}")
    check(text, at=limit, hint="also stays")
    return text == "c"
'''


def described(source: bytes) -> set[tuple[int, str, str]]:
    return {(change.line, change.kind, change.text.strip()) for change in python.changes("x.py", source)}


def test_what_is_changed_and_what_is_not() -> None:
    assert described(SOURCE) == {
        (4, "constant", "11"),
        (9, "guard", "False"),
        (9, "comparison", ">"),
        (9, "constant", "4"),
        (9, "condition", "(len(text) >= 3 or not text.startswith('#'))"),
        (9, "condition", "(text.startswith('#'))"),
        (10, "constant", "True"),
        (11, "guard", "False"),
        (11, "comparison", "not in"),
        (13, "statement", "pass"),
        (13, "argument at", "check(text, hint='also stays')"),
        (14, "result", "return None"),
        (14, "comparison", "!="),
    }


@pytest.mark.slow
def test_every_change_to_this_package_compiles() -> None:
    for path in sorted((ROOT / "imgkit" / "host").glob("*.py")):
        source = path.read_bytes()
        changes = python.changes(path.name, source)
        assert changes or path.name == "__init__.py"
        for change in changes:
            changed = change.apply(source)
            assert changed != source
            compile(changed, path.name, "exec")


def test_javascript(tmp_path: Path) -> None:
    need_program("node")
    script = tmp_path / "x.js"
    lines = [
        "// 1 < 2 → stays",
        'if (a === "ü") { f(); return !b && 2; }',
        'const c = `${1}` + "x";',
        "if (c) { return undefined; }",
        "return false;",
    ]
    script.write_text("\n".join(lines))
    command = ["node", "--expose-internals", str(ROOT / "mutation" / "javascript.js"), str(script)]
    listed = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    source = script.read_bytes()
    changed = {Change(**each).apply(source).decode().splitlines()[1] for each in listed if each["line"] == 2}
    assert changed == {
        "if (false) { f(); return !b && 2; }",
        'if (a !== "ü") { f(); return !b && 2; }',
        'if (a === "ü") { ; return !b && 2; }',
        'if (a === "ü") { f(); return; }',
        'if (a === "ü") { f(); return b && 2; }',
        'if (a === "ü") { f(); return !b || 2; }',
        'if (a === "ü") { f(); return !b && 3; }',
    }
    assert [each["text"] for each in listed if each["line"] == 4] == ["false"]  # nothing is undefined, too
    assert [each["text"] for each in listed if each["line"] == 5] == ["true"]


def test_a_sample_has_some_of_every_file() -> None:
    every = [
        Change(name, line, 0, 1, "x", "k") for name in ("a.py", "b.py") for line in range(1 if name == "a.py" else 100)
    ]
    chosen = program.sample(every, 10, seed=1)
    assert [change.path for change in chosen] == ["a.py"] + ["b.py"] * 10
    assert chosen == program.sample(every, 10, seed=1) != program.sample(every, 10, seed=2)


def test_accepted_survivors_are_found_without_their_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "testing.md"
    monkeypatch.setattr(program, "PAGE", page)
    assert program.accepted() == set()
    shown = Change("a.py", 12, 2, 7, "a > b", "comparison").shown(b"\n a < b | c\n")
    assert shown == "a.py:12: comparison: a < b  →  a > b  in: a < b | c"
    listed = shown.replace("|", r"\|")
    page.write_text(f"| change | reason |\n|---|---|\n| `{listed}` | there is no third b |\n| no code | x |\n")
    assert program.accepted() == {shown.replace(":12:", ":")}
    long = Change("a.py", 1, 0, 14, "x", "statement").shown(b"remove(folder)\n")
    assert long == "a.py:1: statement: remove(folder)  →  x", "the text is enough to find it"


def test_the_report_counts_per_folder() -> None:
    results = {
        Change("a/x.py", line, 0, 1, "", ""): result
        for line, result in enumerate([program.NOTICED] * 3 + [program.SURVIVED, program.ACCEPTED, program.UNCOVERED])
    }
    lines = program.report(results).splitlines()
    assert lines[2:] == ["| `a` | 6 | 3 | 1 | 1 | 1 | 75% |", "| `all` | 6 | 3 | 1 | 1 | 1 | 75% |"]


def copy_with(tests: str, folder: Path, monkeypatch: pytest.MonkeyPatch, timeout: float = 60) -> Copy:
    """Return a copy of a small repository with one module and these tests."""
    repository = folder / "repository"
    (repository / "imgkit").mkdir(parents=True)
    for name in ("__init__.py", "testing.py"):  # the pytest plugin that is installed
        (repository / "imgkit" / name).touch()
    (repository / "code.py").write_text("LIMIT = 1\n")
    (repository / "test_it.py").write_text(tests)
    shutil.copytree(ROOT / "mutation", repository / "mutation")
    monkeypatch.setattr(copies, "ROOT", repository)
    return Copy(folder, timeout)


CHANGE = Change("code.py", 1, 8, 9, "2", "constant")


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "noticed"), [("== 1", True), ("> 0", False)])
def test_a_change_is_noticed_or_not(limit: str, noticed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = "from pathlib import Path\n\ndef test_it():\n    exec(Path('code.py').read_text(), globals())\n"
    tests = f"{read}    assert LIMIT {limit}\n"
    copy = copy_with(tests, tmp_path, monkeypatch)
    assert copy.noticed(CHANGE, ["test_it.py::test_it"]) is noticed
    assert (copy.root / "code.py").read_text() == "LIMIT = 1\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "noticed"),
    [
        (b"1)", "2)", True),
        (b"n + 0", "n - 0", False),
        (b"LIMIT = 1", "LIMIT = 2", True),
        (b"LIMIT = 1", "LIMIT = 1.0", False),
        (b"return", "while True:\n        pass\n    return", True),
    ],
    ids=["function", "no-difference", "constant", "same-constant", "endless"],
)
def test_forks_notice_the_same(
    old: bytes, new: str, noticed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change to a constant has another process, because the module has been imported already."""
    source = b"LIMIT = 1\n\ndef double(n):\n    return (n + 0) * (LIMIT + 1)\n"
    tests = "import code_of_it as code\n\ndef test_it():\n    assert code.double(2) == 4\n"
    copy = copy_with(tests, tmp_path, monkeypatch, timeout=5)
    for folder in (tmp_path / "repository", copy.root):
        (folder / "code_of_it.py").write_bytes(source)
    copy.serve(["test_it.py"])
    start = source.index(old)
    change = Change("code_of_it.py", 1, start, start + len(old), new, "x")
    try:
        assert copy.noticed(change, ["test_it.py::test_it"], fork=True) is noticed
        assert copy.noticed(change, ["test_it.py::test_it"], fork=True) is noticed, "the same process answers again"
    finally:
        copy.close()
    assert (copy.root / "code_of_it.py").read_bytes() == source


@pytest.mark.slow
def test_the_end_of_the_process_that_forks_is_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = "from pathlib import Path\n\ndef test_it():\n    exec(Path('code.py').read_text(), globals())\n"
    copy = copy_with(f"{read}    assert LIMIT == 1\n", tmp_path, monkeypatch)
    copy.serve(["test_it.py"])
    server = copy._server
    assert server is not None
    server._child.kill()
    server._child.wait()
    assert copy.noticed(CHANGE, ["test_it.py::test_it"], fork=True), "a process of its own has noticed it"
    assert copy._server is None
    copy.close()


def test_which_lines_are_executed_on_import(tmp_path: Path) -> None:
    lines = {"1": [""], "2": ["", "tests/test_x.py::test_a"], "3": ["tests/test_x.py::test_a"]}
    (tmp_path / "gw0.json").write_text(json.dumps({"/copy/imgkit/apk/x.py": lines}))
    covering = Covering(tmp_path)
    assert [covering.on_import("imgkit/apk/x.py", line) for line in (1, 2, 3, 4)] == [True, True, False, False]
    assert not covering.on_import("imgkit/apk/other.py", 1)


@pytest.mark.slow
def test_a_test_that_always_fails_proves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = copy_with("def test_it(): assert False\n", tmp_path, monkeypatch)
    with pytest.raises(SystemExit, match="test_it fails in a copy of the unchanged code"):
        copy.noticed(CHANGE, ["test_it.py::test_it"])


def test_the_data_of_other_tests_or_code_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "imgkit").mkdir()
    module = tmp_path / "imgkit" / "x.py"
    module.write_text("1")
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    subprocess.run(["git", "-C", tmp_path, "add", "."], check=True)
    monkeypatch.setattr(program, "ROOT", tmp_path)
    before = program.state("fast", [])
    assert before == program.state("fast", [])
    names = {before, program.state("slow", []), program.state("fast", ["tests/test_x.py"])}
    module.write_text("2")
    assert len(names | {program.state("fast", [])}) == 4


SCRIPT = """'use strict';
const NAME = 'ü';
const double = (value) => value * 2;
const half = (value) => (value > 0 ? value / 2 : 0);
module.exports = { NAME, double, half };
"""
NODE_TESTS = """'use strict';
const assert = require('node:assert');
const { spawnSync } = require('node:child_process');
const { test } = require('node:test');
const x = require('../../overlay/x.js');
test('double (2/1)', () => assert.equal(x.double(2), 4));
test('half', () => assert.equal(x.half(2), 1));
test('in another process', () => {
  const script = "process.stdout.write(String(require('./overlay/x.js').half(0)))";
  assert.equal(spawnSync(process.execPath, ['-e', script], { encoding: 'utf8' }).stdout, '0');
});
"""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a small repository with one script and its tests."""
    need_program("node")
    root = tmp_path / "repository"
    for name in ("overlay", "mutation", "tests/agentd"):
        (root / name).mkdir(parents=True)
    for name in ("recorder.js", "reporter.js"):
        shutil.copy(ROOT / "mutation" / name, root / "mutation" / name)
    (root / "overlay" / "x.js").write_text(SCRIPT)
    (root / "tests" / "agentd" / "x.test.js").write_text(NODE_TESTS)
    monkeypatch.setattr(copies, "ROOT", root)
    return root


def script_change(before: str, after: str) -> Change:
    start = len(SCRIPT[: SCRIPT.index(before)].encode())
    return Change("overlay/x.js", 1, start, start + len(before.encode()), after, "")


@pytest.mark.slow
def test_only_the_tests_that_execute_a_part_of_a_script_are_run_for_it(repository: Path, tmp_path: Path) -> None:
    nodetests.measure(repository, tmp_path / "scripts.json")
    scripts = Scripts(tmp_path / "scripts.json")

    def tests(before: str, most: int = 9) -> set[str]:
        found = scripts.tests("overlay/x.js", SCRIPT.encode(), script_change(before, "").start, most)
        return {name.removeprefix("tests/agentd/x.test.js::") for name in found}

    assert tests("value * 2") == {"double (2/1)"}
    assert tests("value > 0") == {"half", "in another process"}
    assert tests("value / 2") == {"half"}
    assert tests("0);") == {"in another process"}
    assert tests("'ü'") == {"double (2/1)", "half", "in another process"}
    assert len(tests("'ü'", most=2)) == 2
    assert scripts.tests("overlay/y.js", b"", 0, 9) == []

    copy = Copy(tmp_path, 60, scripts)
    name = "tests/agentd/x.test.js::double (2/1)"
    assert copy.noticed(script_change("value * 2", "value / 2"), [name])
    assert not copy.noticed(script_change("value / 2", "value * 2"), [name])
    assert (copy.root / "overlay" / "x.js").read_text() == SCRIPT


@pytest.mark.slow
def test_a_test_of_a_script_that_always_fails_proves_nothing(repository: Path, tmp_path: Path) -> None:
    (repository / "overlay" / "x.js").write_text(SCRIPT.replace("value * 2", "value"))
    with pytest.raises(SystemExit, match=r"(?s)x.test.js fails on the unchanged code:\nFAILED .*::double \(2/1\)"):
        nodetests.measure(repository, tmp_path / "scripts.json")


def test_slow_tests_of_scripts_are_run_last(tmp_path: Path) -> None:
    seconds = {"a.test.js::x": 0.4, "a.test.js::y": 3, "b.test.js::z": 0.1, "b.test.js::a": 0.2, "c.test.js::x": 1}
    data = {name: {"seconds": value, "executed": {}} for name, value in seconds.items()}
    (tmp_path / "scripts.json").write_text(json.dumps(data))
    batches = Scripts(tmp_path / "scripts.json").batches(seconds)
    assert [(batch.file, batch.names) for batch in batches] == [
        ("b.test.js", ("z", "a")),
        ("a.test.js", ("x",)),
        ("c.test.js", ("x",)),
        ("a.test.js", ("y",)),
    ]
    assert batches[-1].limit == 20


def test_only_the_named_tests_of_a_file_are_run() -> None:
    *_, pattern, file = Batch("a.test.js", ("x (1/2)", "ü"), 0).command()
    assert (pattern, file) == (r"--test-name-pattern=/^(?:x \u{28}1\u{2f}2\u{29}|ü)$/u", "a.test.js")


def test_what_scripts_execute_is_measured_anew_when_they_or_their_tests_differ(repository: Path) -> None:
    names = {nodetests.state(repository)}
    assert names == {nodetests.state(repository)}
    for path in ("overlay/x.js", "tests/agentd/x.test.js"):
        (repository / path).write_text("")
        names.add(nodetests.state(repository))
    assert len(names) == 3
