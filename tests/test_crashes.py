"""If imgkit is killed at a random moment or runs out of disk space, files are complete and the next run works.

``python -m tests.crashes`` makes a hundred of the kills of which these tests make a few.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fixtures.mirror import Mirror
from fixtures.server import Site
from tests.commandline import ROOT, Place, path_without
from tests.conftest import need_program
from tests.crashes import Case, Tally, both_case, build_case, lock_case, play, real, run_case
from tests.fulldisk import OLD
from tests.images import WITHOUT_NODE, Image
from tests.mirrors import RECIPE, Small
from tests.processes import gone

pytestmark = pytest.mark.hostile


@pytest.fixture
def words(here: Place, small: Small, site: Site) -> list[str | Path]:
    here.recipe.write_text(RECIPE)
    return ["lock", here.recipe, "--mirror", site.url, "--release-key", small.release_key]


def test_a_lock_that_is_killed(here: Place, words: list[str | Path]) -> None:
    tally = play(lock_case(here, words, here.base / "recipe.lock"), times=3, seed=1)
    assert tally.faults == []
    assert tally.hits > 0


def test_one_of_two_that_share_a_cache_is_killed(here: Place, words: list[str | Path]) -> None:
    (here.base / "other.py").write_text(RECIPE)
    beside = [words[0], here.base / "other.py", *words[2:]]
    tally = play(both_case(here, words, beside, here.base / "recipe.lock"), times=3, seed=2)
    assert tally.faults == []
    assert tally.hits > 0


def test_what_kills_leave_is_noticed(here: Place, words: list[str | Path]) -> None:
    """This is the negative test of the two tests above."""
    case = lock_case(here, words, here.base / "recipe.lock")
    tally = Tally()
    case.run(tally)
    assert tally.faults == []
    (blob,) = list(here.cache.glob("sha256/*/*"))[:1]
    blob.write_bytes(b"half of i")
    (here.base / "recipe.lock").write_bytes(b'{"lock":')
    (here.tmp / "imgkit-1-00000000").mkdir()
    broken = Case(here, ["lock", here.base / "none.py"], case.outputs)
    broken.run(tally)
    assert [fault.partition(": ")[2].partition(":")[0] for fault in tally.faults] == [
        "the next run ended with 3",
        "after the next run",
        "left after the next run",
        "damaged in the cache",
    ]


@pytest.mark.parametrize("how", ["full", "once"])
def test_no_room_at_any_write(here: Place, words: list[str | Path], how: str) -> None:
    """One error line, status 5, the lock as it was or as it must be, and no scratch files; then it just works."""
    argv = [sys.executable, "-m", "tests.fulldisk", how, here.base, *words]
    done = subprocess.run(argv, env=here.environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    *failed, last = json.loads(done.stdout)
    assert last["status"] == 0, last
    assert len(failed) > (60 if how == "full" else 20), "writes were to be refused one after the other"
    assert [run for run in failed if fault(run, last["after"])] == []


def fault(run: Mapping[str, Any], good: str) -> str:
    """Return what is wrong with a run that lacked space once; it may have lacked it for something optional."""
    lines = [line for line in run["output"].splitlines() if not line.startswith("hint: ")]
    wrong = {
        "the next run fails": run["undisturbed"] != 0,
        "something is left": run["left"] != [],
        "the lock is not whole": run["after"] not in (OLD, good) or (run["status"] == 0 and run["after"] != good),
        "wrong status": run["status"] not in (0, 5),
        "not one line": run["status"] == 5 and len(lines) != 1,
        "another message": run["status"] == 5 and not re.search("(?i)no space left", lines[0]),
    }
    return ", ".join(name for name, holds in wrong.items() if holds)


def test_what_a_build_script_started_goes_with_a_killed_build(here: Place, words: list[str | Path]) -> None:
    """The test is without bubblewrap, which would end them. Only imgkit itself is killed."""
    for program in ("npm", "qemu-img", "qemu-system-x86_64"):
        need_program(program)
    payload, seconds = here.base / "payload", str(70_000_000 + os.getpid())
    payload.mkdir()
    manifest = {"name": "p", "version": "1.0.0", "scripts": {"build": f"sleep {seconds}"}}
    (payload / "package.json").write_text(json.dumps(manifest))
    argv = ["build", *words[1:], "--arch", "amd64", "--out", here.out, "--agent-runner", payload]
    environment = {**path_without(here, "bwrap"), "AGENT_RUNNER_BUILD": "1"}
    with here.running(*argv, env=environment) as child:
        deadline = time.monotonic() + 120
        while not (started := sleeping(seconds)):
            assert child.poll() is None, here.log()
            assert time.monotonic() < deadline, here.log()
            time.sleep(0.05)
        child.send_signal(signal.SIGKILL)
        child.wait(timeout=30)
        try:
            assert [number for number in started if not gone(number, 15)] == []
            assert sleeping(seconds) == []
        finally:
            for number in sleeping(seconds):
                os.kill(number, signal.SIGKILL)


def sleeping(seconds: str) -> list[int]:
    """Return the processes of any user with this argument: npm's shell, and what it started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"sleep {seconds}" in (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"):
                found.append(int(folder.name))
    return found


# ---- builds and runs -------------------------------------------------------------------------------------------------


@pytest.mark.mirror
@pytest.mark.vm
def test_a_build_that_is_killed(here: Place, mirror: Mirror, mirror_url: str) -> None:
    for program in ("qemu-img", "qemu-system-x86_64"):
        need_program(program)
    real(here)
    words: list[str | Path] = ["build", ROOT / "recipes/core.py", "--mirror", mirror_url, "--set", "size=1G"]
    words += WITHOUT_NODE
    tally = play(build_case(here, [*words, "--arch", "amd64", "--release-key", mirror.release_key]), times=3, seed=3)
    assert tally.faults == []
    assert tally.hits > 0


@pytest.mark.mirror
@pytest.mark.vm
def test_a_run_that_is_killed(here: Place, image: Image) -> None:
    tally = play(run_case(here, image.disk), times=3, seed=4)
    assert tally.faults == []
    assert tally.hits > 0
