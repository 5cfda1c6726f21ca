"""Build the images of a recipe: disks for machines, and container images.

Options take precedence over environment variables (ALPINE_MIRROR, ALPINE_RELEASE_KEY, ALPINE_BRANCH, ALPINE_VERSION,
IMAGE_SIZE, ARCHS, AGENT_RUNNER_BUILD, OUT_DIR, WORK_DIR, IMGKIT_ENGINE), and those over the recipe.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import get_args

from imgkit.api import building
from imgkit.api.enginechoice import engine_for
from imgkit.cli import several
from imgkit.cli.command import Invocation
from imgkit.cli.options import engineoptions, mirroroptions, registryoptions
from imgkit.cli.reports.buildreport import BuildReport, container_report, report_of
from imgkit.errors import UsageError
from imgkit.host import statusline, terminal
from imgkit.host.gitfacts import git_facts
from imgkit.planning import lockfile
from imgkit.recipe import SHAPES, DiskOutput, ImageFormat, Output, Recipe, load, parse_setting
from imgkit.vm.qemu.machines import host_arch

NAME = "build"
HELP = "build the images of a recipe"
log = logging.getLogger("imgkit")

# field of the recipe → the option that sets it
OPTIONS = {
    **mirroroptions.OPTIONS,
    "agent_runner": "--agent-runner",
    "compression": "--compression",
    "format": "--format",
}

# environment variable → the field of the recipe that it sets
VARIABLES = {
    **mirroroptions.VARIABLES,
    "ALPINE_BRANCH": "branch",
    "ALPINE_VERSION": "version",
    "IMAGE_SIZE": "size",
    "AGENT_RUNNER_BUILD": "agent_runner_build",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    recipe_arguments(parser, default="this host's")
    parser.add_argument("--agent-runner", type=Path, metavar="DIR", help="payload that replaces /opt/agent-runner")
    parser.add_argument(
        "--format",
        choices=get_args(ImageFormat),
        help="format of the disk image: raw, VMware's vmdk, Hyper-V's vhdx, Azure's vhd (default: the recipe's, qcow2)",
    )
    parser.add_argument(
        "--compression", choices=["zstd", "zlib"], help="compression of a qcow2; zlib is for QEMU before 5.1"
    )
    output_argument(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the results (default: out)")
    engineoptions.argument(parser)
    parser.add_argument("--locked", action="store_true", help="build exactly what the recipe's lock file says")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")


def recipe_arguments(parser: argparse.ArgumentParser, *, default: str) -> None:
    """Add the options of every command that reads a recipe and a mirror.

    Args:
        default: for the help, which architectures are taken if none is given.
    """
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help="a Python module, such as recipes/alpine.py")
    parser.add_argument(
        "--arch",
        action="append",
        metavar="ARCH",
        help=f"architecture of the recipe, or all; may be repeated (default: ARCHS, or {default})",
    )
    parser.add_argument(
        "--mirror", metavar="URL", help="where Alpine is downloaded from: a URL, or a folder that begins with / or ./"
    )
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
    registryoptions.arguments(parser.add_argument_group("the registry of the recipe's base"))


def output_argument(parser: argparse.ArgumentParser) -> None:
    """Add the option that says what a build writes."""
    parser.add_argument(
        "--output",
        action="append",
        metavar="OUTPUT",
        choices=[*get_args(Output), "all"],
        help=f"{', '.join(get_args(Output))}, or all for disk and oci; may be repeated (default: the recipe's)",
    )


def outputs(options: argparse.Namespace, recipe: Recipe) -> list[Output]:
    """Return what is to be written, each once: the values of ``--output``, or else the recipe's."""
    requested = options.output or recipe.outputs
    every: tuple[Output, ...] = ("disk", "oci")
    return list(dict.fromkeys(output for word in requested for output in (every if word == "all" else (word,))))


def run(options: argparse.Namespace, invocation: Invocation) -> int:
    """Build every output of every architecture that was asked for."""
    recipe = load_recipe(options, os.environ)
    arches = architectures(options, recipe, os.environ, default=host_arch())
    wanted = outputs(options, recipe)
    reports: list[Mapping[str, object]] = []
    _check_format(options, wanted)
    for output in [output for output in get_args(DiskOutput) if output in wanted]:
        reports += _disks(options, recipe, arches, output, invocation)
    if containers := [output for output in wanted if SHAPES[output] == "container"]:
        reports.append(_container(options, recipe, arches, containers, invocation))
    if options.json:
        print(terminal.as_json(reports))
    return 0


def _check_format(options: argparse.Namespace, wanted: Sequence[Output]) -> None:
    """Check that a format that was asked for is that of something.

    Raises:
        UsageError: no disk is built.
    """
    if options.format is not None and "disk" not in wanted:
        message = f"--format {options.format}: is the format of a disk, and none is built"
        raise UsageError(message, hint="a root filesystem is always raw; --output disk builds a disk")


def _disks(
    options: argparse.Namespace, recipe: Recipe, arches: Sequence[str], output: DiskOutput, invocation: Invocation
) -> list[Mapping[str, object]]:
    """Build the disks, or their root filesystems alone; return their reports.

    They are built side by side if the host has the processors for it.
    """
    jobs = min(len(arches), several.at_once())
    if jobs > 1:
        reports = several.build_all(invocation.words, arches, jobs, output)
    else:
        reports = _one_by_one(options, recipe, arches, output)
    finished: dict[str, Mapping[str, object]] = {}
    for report in reports:
        finished[report.arch] = report.to_json()
        invocation.done.append(report.to_json())
        if not options.json:
            _say_result(options, report.image, f"{_sizes(report)}, build {report.buildId}")
    return [finished[arch] for arch in arches]


def _sizes(report: BuildReport) -> str:
    """Return the size of an image in words, and that which it takes on the host's disk if it has holes."""
    size = f"{report.size / 1e6:.0f} MB"
    holes = report.allocated < report.size * 9 // 10  # below that it is how the host's filesystem counts
    return f"{size} ({report.allocated / 1e6:.0f} MB of them on the disk)" if holes else size


def _say_result(options: argparse.Namespace, path: Path | str, facts: str) -> None:
    """Print a result: with what is to know about it on a terminal, and elsewhere its path alone, for scripts."""
    with statusline.hidden():
        if sys.stdout.isatty() and not options.quiet:
            print(terminal.line(f"{path}: {facts}"))
            return
        log.info("%s: %s", path, facts)
        terminal.say_path(path)


def _container(
    options: argparse.Namespace,
    recipe: Recipe,
    arches: Sequence[str],
    wanted: Sequence[Output],
    invocation: Invocation,
) -> Mapping[str, object]:
    """Build the container image; return its report."""
    result = building.build_container(
        recipe,
        arches,
        out=_out(options),
        outputs=wanted,
        lock=_lock(options),
        offline=options.offline,
        allow_stale=options.allow_stale_mirror,
        work=_work(),
        sources=git_facts(options.recipe.absolute().parent),
        access=registryoptions.registry_access(options),
    )
    if options.verbose:
        print(terminal.block(result.steps.table()), file=sys.stderr)
    report = container_report(recipe.name, result)
    invocation.done.append(report)
    if not options.json:
        first, *others = result.paths
        _say_result(options, first, result.digest)
        for path in others:
            terminal.say_path(path)
    return report


def _one_by_one(
    options: argparse.Namespace, recipe: Recipe, arches: Sequence[str], output: DiskOutput
) -> Iterator[BuildReport]:
    """Build the architectures in this process, one after the other."""
    for arch in arches:
        result = building.build(
            recipe,
            arch,
            out=_out(options),
            lock=_lock(options),
            offline=options.offline,
            allow_stale=options.allow_stale_mirror,
            work=_work(),
            engine=engine_for(options.engine),
            output=output,
            access=registryoptions.registry_access(options),
        )
        if options.verbose:
            print(terminal.block(result.steps.table()), file=sys.stderr)
        yield report_of(arch, result)


def _lock(options: argparse.Namespace) -> Path | None:
    """Return the lock file to build from, if there is to be one."""
    return lockfile.path_of(options.recipe) if options.locked else None


def _out(options: argparse.Namespace) -> Path:
    """Return the folder for the results."""
    return options.out or Path(os.environ.get("OUT_DIR") or "out")


def _work() -> Path | None:
    """Return the folder for scratch files; None makes one among the results."""
    return Path(os.environ["WORK_DIR"]) if os.environ.get("WORK_DIR") else None


def load_recipe(options: argparse.Namespace, environ: Mapping[str, str]) -> Recipe:
    """Load the recipe that the options name, with the fields that they and the environment set.

    Raises:
        RecipeError: the recipe is wrong.
        UsageError: an option or a variable has a wrong value.
    """
    return load(options.recipe, *overrides(options, environ))


def overrides(options: argparse.Namespace, environ: Mapping[str, str]) -> tuple[dict[str, object], dict[str, str]]:
    """Return the fields of the recipe that options or the environment set.

    Returns:
        The values by field, and by field the option or variable that set it, for messages.

    Raises:
        UsageError: a word of ``--set`` is not of the form NAME=VALUE.
    """
    overridden: dict[str, tuple[object, str]] = {
        field: (mirroroptions.absolute(field, environ[variable]), variable)
        for variable, field in VARIABLES.items()
        if environ.get(variable)
    }
    for text in options.set:
        name, value = parse_setting(text)
        overridden[name] = (value, f"--set {name}")
    for field, option in OPTIONS.items():
        given = getattr(options, option[2:].replace("-", "_"), None)  # not every command has all of them
        if given is not None:
            overridden[field] = (mirroroptions.absolute(field, given), option)
    return (
        {field: value for field, (value, _) in overridden.items()},
        {field: origin for field, (_, origin) in overridden.items()},
    )


def architectures(
    options: argparse.Namespace, recipe: Recipe, environ: Mapping[str, str], *, default: str
) -> list[str]:
    """Return the architectures to work on, each once: those of ``--arch``, of ``ARCHS``, or ``default``.

    The word "all" stands for every architecture of the recipe, in the order of their names.

    Raises:
        UsageError: the recipe does not have one of them.
    """
    requested = options.arch or environ.get("ARCHS", "").replace(",", " ").split() or [default]
    if "all" in requested:
        return sorted(recipe.architectures)
    for name in requested:
        recipe.architecture(name)
    return list(dict.fromkeys(requested))
