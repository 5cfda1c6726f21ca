"""Kill imgkit at random moments, and check what it leaves behind.

    python -m tests.crashes lock --times 100
    python -m tests.crashes build --times 100 --minutes 4 --seed 7
    python -m tests.crashes disk --times 16

``tests/test_crashes.py`` makes a few kills of each kind; this command makes many. It builds recipes/core.py from the
offline mirror, and prints its seed and how many kills hit a running process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs

from fixtures.mirror import make
from fixtures.server import serve
from imgkit.fetch.cache import hash_file
from tests.commandline import ROOT, Place, place

MOST = 1.1  # the latest moment of a kill, as a part of the time that an undisturbed run takes


@dataclass
class Tally:
    """The result of kills: how many there were, how many hit a running process, and every fault that was found."""

    kills: int = 0
    hits: int = 0
    runs: int = 0
    faults: list[str] = field(default_factory=list)

    def check(self, right: bool, fault: str) -> None:
        """Note ``fault`` unless ``right`` is true."""
        if not right:
            self.faults.append(f"kill {self.kills}: {fault}")

    def __str__(self) -> str:
        end = "all well" if not self.faults else "\n".join(self.faults)
        return f"{self.kills} kills; {self.hits} hit a process at work or found no room; {self.runs} other runs: {end}"


@dataclass
class Case:
    """A command to be killed.

    Attributes:
        words: its arguments.
        outputs: returns what is wrong with the output of the command, which must be complete or absent; empty if
        nothing. reset: called before each run and each kill. every: number of kills after which an undisturbed run
        follows. beside: a second command that runs at the same time and is not killed. shared: folders in which the
        command and other processes make their own folders.
    """

    here: Place
    words: Sequence[str | Path]
    outputs: Callable[[], str]
    reset: Callable[[], object] = lambda: None
    every: int = 1
    beside: Sequence[str | Path] = ()
    shared: Sequence[Path] = ()

    def seconds(self) -> float:
        """Return how long an undisturbed run takes."""
        start = time.monotonic()
        self.run(Tally())
        return time.monotonic() - start

    def run(self, tally: Tally) -> None:
        """Run the command to its end. It must succeed and leave nothing but its outputs."""
        self.reset()
        before = ownerless(self.shared)
        done = self.here.run(*self.words, timeout=600)
        tally.runs += 1
        tally.check(done.status == 0, f"the next run ended with {done.status}: {done.err[-300:]}")
        tally.check(not self.outputs(), f"after the next run: {self.outputs()}")
        left = [path for path in [*self.here.tmp.iterdir(), *self.here.cache.glob("tmp/*")] if path.exists()]
        left += [*self.here.base.glob(".imgkit-*"), *self.here.base.glob("out/.imgkit-*")]
        left += soon(lambda: sorted(ownerless(self.shared) - before))
        tally.check(not left, f"left after the next run: {left}")
        tally.check(not damaged(self.here.cache), f"damaged in the cache: {damaged(self.here.cache)}")

    def kill(self, delay: float, tally: Tally) -> None:
        """Start the command, kill it after ``delay`` seconds, and check what it left."""
        tally.kills += 1
        self.reset()
        before = ownerless(self.shared)
        with ExitStack() as stack:
            child = stack.enter_context(started(self.here, self.words, "log"))
            other = stack.enter_context(started(self.here, self.beside, "log-beside")) if self.beside else None
            try:
                child.wait(timeout=delay)
            except subprocess.TimeoutExpired:
                tally.hits += 1
                child.send_signal(signal.SIGKILL)
                child.wait(timeout=30)
            if other is not None:
                status = other.wait(timeout=600)
                output = (self.here.base / "log-beside").read_text(errors="replace")[-300:]
                tally.check(status == 0, f"the other run ended with {status}: {output}")
            alive = still_there(self.here)
            tally.check(not alive, f"still there: {alive}")
        left = soon(lambda: sorted(ownerless(self.shared) - before))
        tally.check(not left, f"left: {left}")
        fault = self.outputs()
        tally.check(not fault, fault)
        tally.check(not damaged(self.here.cache), f"damaged in the cache: {damaged(self.here.cache)}")


@contextmanager
def started(here: Place, words: Sequence[str | Path], log: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``imgkit WORD…`` in its own process group, which is killed at the end of the block."""
    with (here.base / log).open("wb") as sink:
        child = subprocess.Popen(
            here.command(*words),
            env=here.environment,
            cwd=here.base,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
        )
        try:
            yield child
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def still_there(here: Place, seconds: float = 15) -> list[str]:
    """Return the processes of this place that still run after that time."""
    return soon(here.processes, seconds)


def soon(look: Callable[[], list[Any]], seconds: float = 15) -> list[Any]:
    """Call ``look`` until it finds nothing or the time is over, and return its last result."""
    deadline = time.monotonic() + seconds
    while (remaining := look()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return remaining


def ownerless(places: Sequence[Path]) -> set[Path]:
    """Return the folders of imgkit in ``places`` whose process has ended or that belong to no process."""
    return {path for folder in places for path in folder.glob("imgkit-*") if _is_ownerless(path.name)}


def _is_ownerless(name: str) -> bool:
    number = re.match(r"imgkit-(?:vm-)?([0-9]+)-", name)
    return name.startswith("imgkit-vm-") if number is None else not Path("/proc", number[1]).exists()


def damaged(cache: Path) -> list[str]:
    """Return the files of the cache whose SHA-256 is not the one in their name."""
    return [path.name for path in cache.glob("sha256/*/*") if hash_file(path) != path.name]


def play(case: Case, times: int, seed: int, minutes: float = 60, tally: Tally | None = None) -> Tally:
    """Kill a command at random moments, ``times`` times or until ``minutes`` are over."""
    tally = tally or Tally()
    chance = random.Random(seed)
    longest = case.seconds() * MOST
    deadline = time.monotonic() + minutes * 60
    while tally.kills < times and time.monotonic() < deadline:
        case.kill(chance.uniform(0, longest), tally)
        if tally.kills % case.every == 0:
            case.run(tally)
    case.run(tally)
    return tally


# ---- the commands ----------------------------------------------------------------------------------------------------


def lock_case(here: Place, words: Sequence[str | Path], lock: Path) -> Case:
    """Return the case of ``imgkit lock`` with an empty cache. Its file must be the new one, the old one, or absent."""
    good: list[bytes] = []
    old = json.dumps({"lock": 1, "architectures": {}}).encode()
    chance = random.Random(0)

    def outputs() -> str:
        text = lock.read_bytes() if lock.exists() else None
        if not good and text is not None and text != old:
            good.append(text)
        if text is not None and text not in (old, *good):
            return f"{lock.name} is not whole: {text[:80]!r}"
        return ""

    def reset() -> None:
        empty(here.cache)
        if chance.random() < 0.5:
            lock.write_bytes(old)
        else:
            lock.unlink(missing_ok=True)

    return Case(here, words, outputs, reset)


def empty(cache: Path) -> None:
    """Remove the files of the cache, so that the next run downloads them again."""
    for kind in ("sha256", "keyed", "urls"):
        for path in cache.glob(f"{kind}/*/*"):
            path.unlink()


def both_case(here: Place, words: Sequence[str | Path], beside: Sequence[str | Path], lock: Path) -> Case:
    """Return the case of two ``imgkit lock`` that share a cache. If one is killed, the other must succeed."""
    case = lock_case(here, words, lock)
    case.beside = beside
    return case


def build_case(here: Place, words: Sequence[str | Path], every: int = 10) -> Case:
    """Return the case of ``imgkit build``. If there is an image, all files beside it must belong to it."""

    def outputs() -> str:
        image, manifest = here.out / "linux-amd64.qcow2", here.out / "linux-amd64.manifest.json"
        if not image.exists():
            return ""
        facts = json.loads(manifest.read_bytes())
        if facts["image"]["sha256"] != hash_file(image):
            return "the image is not the manifest's"
        boot = [facts["boot"]["kernel"], facts["boot"]["initramfs"]]
        wrong = [file["name"] for file in boot if hash_file(here.out / file["name"]) != file["sha256"]]
        return f"not the manifest's: {wrong}" if wrong else ""

    return Case(here, words, outputs, every=every)


def run_case(here: Place, image: Path, every: int = 10) -> Case:
    """Return the case of ``imgkit run``. It must not change the image: changes go to QEMU's temporary files."""
    before = hash_file(image)
    del here.environment["TMPDIR"]

    def outputs() -> str:
        return "" if hash_file(image) == before else "the image was changed"

    shared = (Path("/tmp"), Path("/var/tmp"))
    words: list[str | Path] = ["run", image, "--cpus", "1", "--", "true"]
    return Case(here, words, outputs, every=every, shared=shared)


def real(here: Place) -> None:
    """Use the real bindings of libguestfs and the appliance that the tests share."""
    (here.modules / "guestfs.py").unlink(missing_ok=True)
    appliance = Path(platformdirs.user_cache_dir("imgkit")) / "test-appliance"
    appliance.mkdir(parents=True, exist_ok=True)
    (here.cache / "appliance").symlink_to(appliance)
    here.environment |= {"IMGKIT_APPLIANCE": "", "OUT_DIR": str(here.out)}


def fill(here: Place, words: Sequence[str | Path], times: int, tally: Tally) -> Tally:
    """Build on a small filesystem (tmpfs, which takes root), from 1 MiB to more than enough; the cache is elsewhere.

    If there is no space, the status must be 5, with a single line that says so, no output and no scratch files.
    """
    folder = here.base / "full"
    folder.mkdir()
    for number in range(times):
        size = 1 + number * 700 // max(1, times - 1)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}m", "none", str(folder)]
        subprocess.run(mount, check=True)
        try:
            done = here.run(*words, env={"OUT_DIR": str(folder / "out"), "TMPDIR": str(folder)}, timeout=600)
            tally.runs += 1
            tally.check(done.status in (0, 5), f"{size} MiB: status {done.status}: {done.err[-300:]}")
            tally.check(len(done.errors) == (done.status != 0), f"{size} MiB: {done.err[-300:]}")
            if done.status:
                tally.hits += 1
                tally.check(bool(re.search("(?i)no space|free, and|no room", done.err)), f"{size} MiB: {done.errors}")
                tally.check(not list(folder.rglob("*")), f"{size} MiB: left {list(folder.rglob('*'))[:9]}")
            tally.check(not still_there(here), f"{size} MiB: processes are left")
        finally:
            subprocess.run(["umount", str(folder)], check=True)
    return tally


def _case(kind: str, here: Place, url: str, key: Path) -> Case:
    recipes = here.base / "recipes"
    recipes.symlink_to(ROOT / "recipes")
    for name in ("one", "two"):
        (here.base / f"{name}.py").write_text("from .recipes.core import *\n")
    options: list[str | Path] = ["--mirror", url, "--release-key", str(key), "--arch", "amd64", "--set", "size=1G"]
    options += ["--set", f"overlay={ROOT / 'overlay'}"]
    one, two = (["lock", here.base / f"{name}.py", *options] for name in ("one", "two"))
    if kind == "lock":
        return lock_case(here, one, here.base / "one.lock")
    if kind == "cache":
        return both_case(here, one, two, here.base / "one.lock")
    real(here)
    build = ["build", str(ROOT / "recipes/core.py"), *options]
    if kind in ("build", "disk"):
        return build_case(here, build)
    done = here.run(*build, timeout=600)
    assert done.status == 0, done.err
    return run_case(here, here.out / "linux-amd64.qcow2")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["lock", "cache", "build", "run", "disk"])
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=60, help="stop after this time")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was found so far is said in the end
    tally = Tally()
    mirror = make()
    with serve(mirror.root) as site, place() as here:
        case = _case(options.kind, here, site.url, mirror.release_key)
        sys.stdout.write(f"{options.kind}: seed {options.seed}\n")
        sys.stdout.flush()
        try:
            if options.kind == "disk":
                fill(here, case.words, options.times, tally)
            else:
                play(case, options.times, options.seed, options.minutes, tally)
        finally:
            sys.stdout.write(f"{tally}\n")
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
