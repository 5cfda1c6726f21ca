"""Build the default recipe and boot its image.

Where Alpine's mirror is out of reach, the smaller recipe is built, whose packages the offline mirror has.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imgkit.errors import ImgkitError, InputError
from imgkit.fetch.checks import Expected, UnreachableError
from imgkit.fetch.http import Http
from imgkit.recipe import OFFICIAL_MIRROR

RECIPE = Path("recipes/alpine.py")
OFFLINE_RECIPE = Path("recipes/core.py")
OUT = Path("out")
PATIENCE = 5.0  # seconds that the official mirror has to answer


def unreachable() -> str:
    """Return why the official mirror is out of reach; empty if it answers, since the build reports faulty answers."""
    client = Http(connect_timeout=PATIENCE, stall_timeout=PATIENCE, attempts=1)
    url = f"{OFFICIAL_MIRROR}/latest-stable/releases/x86_64/latest-releases.yaml"
    try:
        with tempfile.TemporaryDirectory() as folder:
            client.download(url, Path(folder, "releases"), Expected(max_bytes=1 << 20))
    except UnreachableError as error:
        return error.message
    except InputError:
        return ""
    return ""


@contextmanager
def source() -> Iterator[tuple[Path, list[str]]]:
    """Yield the recipe to build, and the options that name the mirror which has its packages.

    If the user names a mirror in ``ALPINE_MIRROR``, no other mirror replaces it.
    """
    named = os.environ.get("ALPINE_MIRROR")
    trouble = "" if named else unreachable()
    if not trouble:
        print(f"{RECIPE}, from {'ALPINE_MIRROR' if named else OFFICIAL_MIRROR}", file=sys.stderr)
        yield RECIPE, []
        return
    from fixtures.mirror import make
    from fixtures.server import serve

    reason = f"because Alpine's is out of reach: {trouble}"
    print(f"{OFFLINE_RECIPE} (fewer tools), from the offline mirror of fixtures/, {reason}", file=sys.stderr)
    mirror = make()
    with serve(mirror.root) as site:
        yield OFFLINE_RECIPE, ["--mirror", site.url, "--release-key", str(mirror.release_key)]


def imgkit(*words: str) -> bytes:
    """Run a command of imgkit with its messages shown, and return its output. If it fails, exit with its status."""
    done = subprocess.run([sys.executable, "-m", "imgkit", *words], stdout=subprocess.PIPE, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def main() -> int:
    """Build the images, boot each of them, and print how long that took; return the exit status."""
    try:
        build_and_boot()
    except ImgkitError as error:  # of the offline mirror: commands report their own
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return error.exit_status
    return 0


def build_and_boot() -> None:
    """Build the images, boot each of them, and print how long that took."""
    arches = sys.argv[1:]
    asked = [word for arch in arches for word in ("--arch", arch)]
    with source() as (recipe, options):
        start = time.monotonic()
        built = json.loads(imgkit("build", str(recipe), "--out", str(OUT), "--json", *asked, *options))
    took = time.monotonic() - start
    ready = []
    for result in built:
        boot = json.loads(imgkit("boot", result["image"], "--json"))
        ready.append(f"agentd of {result['image']} ready after {boot['secondsToReady']:.1f} s ({boot['accelerator']})")
    print(f"built {recipe} in {took:.1f} s; " + "; ".join(ready))


if __name__ == "__main__":
    sys.exit(main())
