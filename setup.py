"""The part of the build that pyproject.toml cannot say: what lies beside the package comes with the wheel.

``recipes/``, ``overlay/`` and the other folders of :data:`SHIPPED` have fixed places in the repository. A wheel has
copies of them in ``imgkit/data``, where :mod:`imgkit.recipe.shipped` finds them. An editable installation uses the
folders themselves.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
SHIPPED = ("recipes", "overlay", "agents")


class BuildWithData(build_py):
    """Copies the folders, with the permission bits of their files: a wheel keeps whether one is executable."""

    def run(self) -> None:
        """Build the package."""
        super().run()
        if self.editable_mode:
            return
        data = Path(self.build_lib, "imgkit/data")
        unneeded = shutil.ignore_patterns("__pycache__", "*.lock", "node_modules")
        shutil.rmtree(data, ignore_errors=True)  # of an earlier build, with files that are gone since
        for name in SHIPPED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, data / name, ignore=unneeded)


setup(cmdclass={"build_py": BuildWithData})
