"""Build the default recipe from the official mirror, or the offline one where that is out of reach, and boot it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imgkit.errors import ImgkitError
from imgkit.fetch.checks import Expected
from imgkit.fetch.http import Http
from imgkit.recipe import OFFICIAL_MIRROR

RECIPE = Path("recipes/alpine.py")
OUT = Path("out")
PATIENCE = 5.0  # seconds that the official mirror has to answer


def official_mirror_answers() -> str:
    """Why the official mirror cannot be used; empty if it can."""
    try:
        Http(connect_timeout=PATIENCE, stall_timeout=PATIENCE, attempts=1).get(
            f"{OFFICIAL_MIRROR}/latest-stable/releases/x86_64/latest-releases.yaml", Expected(max_bytes=1 << 20)
        )
    except ImgkitError as error:
        return error.message
    return ""


@contextmanager
def mirror() -> Iterator[list[str]]:
    """The options that name a mirror which works."""
    trouble = official_mirror_answers()
    if not trouble:
        print("mirror: the official one", file=sys.stderr)
        yield []
        return
    from fixtures.mirror import make
    from fixtures.server import serve

    print(f"mirror: the offline one of fixtures/, because of the official one: {trouble}", file=sys.stderr)
    made = make()
    with serve(made.root) as site:
        yield ["--mirror", site.url, "--release-key", str(made.release_key)]


def imgkit(*words: str) -> bytes:
    """Run a command of imgkit, with its messages shown; its failure is ours."""
    done = subprocess.run([sys.executable, "-m", "imgkit", *words], stdout=subprocess.PIPE, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def main() -> None:
    arches = sys.argv[1:]
    asked = [word for arch in arches for word in ("--arch", arch)]
    with mirror() as options:
        start = time.monotonic()
        built = json.loads(imgkit("build", str(RECIPE), "--out", str(OUT), "--json", *asked, *options))
    took = time.monotonic() - start
    ready = []
    for result in built:
        boot = json.loads(imgkit("boot", result["image"], "--json"))
        ready.append(f"agentd of {result['image']} ready after {boot['secondsToReady']:.1f} s ({boot['accelerator']})")
    print(f"built in {took:.1f} s; " + "; ".join(ready))


if __name__ == "__main__":
    main()
