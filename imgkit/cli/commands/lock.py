"""Write the lock file of a recipe, for build --locked: exactly which files a build takes from the mirror today.

It lies beside the recipe, as RECIPE's .lock file. Its entries for other architectures of the recipe stay.
"""

from __future__ import annotations

import argparse
import os

from imgkit.cli import registryoptions
from imgkit.cli.command import Invocation
from imgkit.cli.commands.build import architectures, load_recipe, output_argument, outputs, recipe_arguments
from imgkit.fetch.cache import Cache, default_folder
from imgkit.host import scratch, terminal
from imgkit.planning import lockfile
from imgkit.planning.base import fetch_base
from imgkit.planning.download import fetch_packages
from imgkit.planning.plan import Plan
from imgkit.planning.resolve import make_plan
from imgkit.recipe import SHAPES

NAME = "lock"
HELP = "write a recipe's lock file: exact URLs, sizes, hashes"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    recipe_arguments(parser, default="all of the recipe")
    output_argument(parser)


def run(options: argparse.Namespace, _invocation: Invocation) -> int:
    """Lock the outputs of every architecture that was asked for; by default all of the recipe."""
    recipe = load_recipe(options, os.environ)
    arches = architectures(options, recipe, os.environ, default="all")
    shapes = dict.fromkeys(SHAPES[output] for output in outputs(options, recipe))
    path = lockfile.path_of(options.recipe)
    kept = lockfile.others(path, recipe, [lockfile.entry_name(arch, shape) for arch in arches for shape in shapes])
    cache = Cache(default_folder(), offline=options.offline)
    access = registryoptions.registry_access(options)
    plans: list[Plan] = []
    for arch in arches:
        with scratch.folder() as folder:
            stale = options.allow_stale_mirror
            base = fetch_base(recipe, arch, cache, folder / "minirootfs", allow_stale=stale, access=access)
            for shape in shapes:
                plan = make_plan(recipe, arch, base, cache, shape=shape, allow_stale=stale)
                plans.append(fetch_packages(plan, base, cache)[0])
    lockfile.write(path, recipe, plans, kept)
    terminal.say_path(path)
    return 0
