"""Write the lock file of a recipe, for build --locked: exactly which files a build takes from the mirror today.

It lies beside the recipe, as RECIPE's .lock file. Its entries for other architectures of the recipe stay.
"""

from __future__ import annotations

import argparse
import os

from imgkit.api import building
from imgkit.cli.command import Invocation
from imgkit.cli.commands.build import architectures, load_recipe, output_argument, outputs, recipe_arguments
from imgkit.cli.options import registryoptions
from imgkit.host import terminal
from imgkit.planning import lockfile
from imgkit.planning.plan import Plan
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
    made: list[Plan] = []
    for arch in arches:
        made += building.plans(
            recipe,
            arch,
            list(shapes),
            offline=options.offline,
            allow_stale=options.allow_stale_mirror,
            access=registryoptions.registry_access(options),
        )
    lockfile.write(path, recipe, made, kept)
    terminal.say_path(path)
    return 0
