"""Write the lock file of a recipe, for build --locked: exactly which files a build takes from the mirror today.

It lies beside the recipe, as RECIPE's .lock file. Its entries for other architectures of the recipe stay.
"""

from __future__ import annotations

import argparse
import os

from imgkit.cli.command import Invocation
from imgkit.cli.commands.build import architectures, load_recipe, recipe_arguments
from imgkit.fetch.cache import Cache, default_folder
from imgkit.host import scratch, terminal
from imgkit.planning import lockfile
from imgkit.planning.base import fetch_base
from imgkit.planning.download import fetch_packages
from imgkit.planning.plan import Plan
from imgkit.planning.resolve import make_plan

NAME = "lock"
HELP = "write a recipe's lock file: exact URLs, sizes, hashes"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    recipe_arguments(parser, default="all of the recipe")


def run(options: argparse.Namespace, _invocation: Invocation) -> int:
    """Lock every architecture that was asked for; by default all of the recipe."""
    recipe = load_recipe(options, os.environ)
    requested = architectures(options, recipe, os.environ, default="all")
    path = lockfile.path_of(options.recipe)
    kept = lockfile.others(path, recipe, requested)
    cache = Cache(default_folder(), offline=options.offline)
    plans: dict[str, Plan] = {}
    for arch in requested:
        with scratch.folder() as folder:
            stale = options.allow_stale_mirror
            base = fetch_base(recipe, arch, cache, folder / "minirootfs", allow_stale=stale)
            plan = make_plan(recipe, arch, base, cache, allow_stale=stale)
            plans[arch], _ = fetch_packages(plan, base, cache)
    lockfile.write(path, recipe, plans, kept)
    terminal.say_path(path)
    return 0
