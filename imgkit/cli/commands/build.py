"""Build the images of a recipe.

Options beat environment variables (ALPINE_MIRROR, ALPINE_BRANCH, ALPINE_VERSION, IMAGE_SIZE, ARCHS,
AGENT_RUNNER_BUILD, OUT_DIR, WORK_DIR), and those beat the recipe.
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from imgkit.cli import several
from imgkit.cli.readoptions import appliance_options
from imgkit.errors import UsageError
from imgkit.fetch.cache import Cache, default_folder
from imgkit.host import terminal
from imgkit.host.sourcedate import source_date
from imgkit.image.assemble import BuildRequest, BuildResult, build
from imgkit.planning import lockfile
from imgkit.recipe import Recipe, load, parse_setting
from imgkit.vm.qemu.machines import host_arch

NAME = "build"
HELP = "build the images of a recipe"
log = logging.getLogger("imgkit")

# field of the recipe → option
OPTIONS = {
    "release_key": "--release-key",
    "agent_runner": "--agent-runner",
    "mirror": "--mirror",
    "compression": "--format",
}

# environment variable → field of the recipe
VARIABLES = {
    "ALPINE_MIRROR": "mirror",
    "ALPINE_BRANCH": "branch",
    "ALPINE_VERSION": "version",
    "IMAGE_SIZE": "size",
    "AGENT_RUNNER_BUILD": "agent_runner_build",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    recipe_arguments(parser, default="this host's")
    parser.add_argument("--agent-runner", type=Path, metavar="DIR", help="payload that replaces /opt/agent-runner")
    parser.add_argument(
        "--format", choices=["zstd", "zlib"], help="compression of the qcow2; zlib is for QEMU before 5.1"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the results (default: out)")
    parser.add_argument("--engine", choices=["guestfs"], default="guestfs", help="what makes the disk")
    parser.add_argument("--locked", action="store_true", help="build exactly what the recipe's lock file says")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")


def recipe_arguments(parser: argparse.ArgumentParser, *, default: str) -> None:
    """What every command takes that reads a recipe and a mirror. ``default`` says which architectures it takes."""
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help="a Python module, such as recipes/alpine.py")
    parser.add_argument(
        "--arch",
        action="append",
        metavar="ARCH",
        help=f"architecture of the recipe, or all; may be repeated (default: ARCHS, or {default})",
    )
    parser.add_argument("--mirror", metavar="URL", help="where Alpine is downloaded from")
    parser.add_argument(
        "--release-key", type=Path, metavar="FILE", help="OpenPGP certificate that signs the mirror's minirootfs"
    )
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="set a field of the recipe")
    parser.add_argument(
        "--allow-stale-mirror",
        action="store_true",
        help="take an index or minirootfs that is older than one seen before, or of another branch or version",
    )
    parser.add_argument("--offline", action="store_true", help="use nothing that is not in the cache")


def run(options: argparse.Namespace) -> int:
    recipe = load_recipe(options, os.environ)
    arches = architectures(options, recipe, os.environ, default=host_arch())
    jobs = min(len(arches), several.at_once())
    options.done = []  # told even if a later one fails
    for result in several.build_all(options.words, arches, jobs) if jobs > 1 else _one_by_one(options, recipe, arches):
        options.done.append(result)
        if not options.json:
            terminal.say_path(result["image"])
    if options.json:
        print(terminal.as_json(sorted(options.done, key=lambda result: arches.index(result["arch"]))))
    return 0


def _one_by_one(options: argparse.Namespace, recipe: Recipe, arches: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Build in this process; results as :func:`as_json` has them."""
    epoch = source_date(os.environ)
    out = options.out or Path(os.environ.get("OUT_DIR") or "out")
    work = Path(os.environ["WORK_DIR"]) if os.environ.get("WORK_DIR") else None
    cache = Cache(default_folder(), offline=options.offline)
    for arch in arches:
        locked = lockfile.read(lockfile.path_of(options.recipe), recipe, arch) if options.locked else None
        request = BuildRequest(recipe, arch, out, cache, appliance_options(), work=work, locked=locked, epoch=epoch)
        result = build(replace(request, allow_stale=options.allow_stale_mirror))
        if not options.quiet:
            print(terminal.block(result.steps.table()), file=sys.stderr)
        log.info("%s: %.0f MB, build %s", result.image, result.size / 1e6, result.build_id)
        yield as_json(arch, result)


def load_recipe(options: argparse.Namespace, environ: Mapping[str, str]) -> Recipe:
    """The recipe that the options name, with what they and the environment set. Raises RecipeError, UsageError."""
    return load(options.recipe, *overrides(options, environ))


def overrides(options: argparse.Namespace, environ: Mapping[str, str]) -> tuple[dict[str, object], dict[str, str]]:
    """The fields of the recipe that options or the environment set, and what each was set by.

    Raises:
        UsageError: ``--set`` names no field.
    """
    found: dict[str, tuple[object, str]] = {
        field: (environ[variable], variable) for variable, field in VARIABLES.items() if environ.get(variable)
    }
    for text in options.set:
        name, value = parse_setting(text)
        found[name] = (value, f"--set {name}")
    for field, option in OPTIONS.items():
        given = getattr(options, option[2:].replace("-", "_"), None)  # not every command has all of them
        if given is not None:
            found[field] = (given.absolute() if isinstance(given, Path) else given, option)
    return {name: pair[0] for name, pair in found.items()}, {name: pair[1] for name, pair in found.items()}


def architectures(
    options: argparse.Namespace, recipe: Recipe, environ: Mapping[str, str], *, default: str
) -> list[str]:
    """The architectures that are meant, each once: by option, by ``ARCHS``, or ``default`` ("all": the recipe's).

    Raises:
        UsageError: the recipe does not have one of them.
    """
    asked = options.arch or environ.get("ARCHS", "").replace(",", " ").split() or [default]
    if "all" in asked:
        return sorted(recipe.architectures)
    for name in asked:
        recipe.architecture(name)
    if not asked:
        raise UsageError("no architecture to build")
    return list(dict.fromkeys(asked))


def peak_memory() -> int:
    """The most memory that this process has had so far, in bytes.

    Linux's ``ru_maxrss`` is at least what the parent had when it started this process; ``VmHWM`` begins with exec.
    """
    try:
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
    return int(line.split()[1]) * 1024


def as_json(arch: str, result: BuildResult) -> dict[str, Any]:
    """A result for machines."""
    return {
        "arch": arch,
        "image": str(result.image),
        "kernel": str(result.kernel),
        "initramfs": str(result.initramfs),
        "manifest": str(result.manifest),
        "buildId": result.build_id,
        "size": result.size,
        "seconds": round(result.steps.elapsed, 2),
        "peakMemory": peak_memory(),
        "steps": [
            {"name": step.name, "start": round(step.start, 3), "seconds": round(step.seconds, 3)}
            for step in result.steps.finished
        ],
    }
