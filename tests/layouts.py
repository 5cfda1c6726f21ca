"""The disk layouts of the recipes, for tests of everything that deals with disks."""

from __future__ import annotations

from pathlib import Path

from imgkit.disk.layout import sized_partitions
from imgkit.recipe import load

ARCHITECTURES = load(Path(__file__).parents[1] / "recipes" / "core.py").architectures
SPECS = {name: sized_partitions(facts) for name, facts in ARCHITECTURES.items()}
PLATFORMS = {name: facts.grub_platforms for name, facts in ARCHITECTURES.items()}
