"""Begin a project: a recipe that builds on one of imgkit's, a test that boots its image, and a workflow for GitHub.

Files that exist are never overwritten. A .gitignore that exists stays as it is; let it list /out/.
"""

from __future__ import annotations

import argparse
import logging
import shlex
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from imgkit.cli import newproject
from imgkit.cli.command import Invocation
from imgkit.errors import HostError, UsageError
from imgkit.host import lookup, terminal
from imgkit.vm.qemu.machines import host_arch

NAME = "init"
HELP = "begin a project: a recipe, a test that boots it, a workflow"
log = logging.getLogger("imgkit")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument(
        "folder", type=Path, metavar="DIR", nargs="?", default=Path(), help="folder of the project (default: this one)"
    )
    parser.add_argument(
        "--base",
        choices=sorted(newproject.BASES),
        default="alpine",
        help="what the recipe builds on: alpine has the tools that agents expect, core is the least (default: alpine)",
    )


def run(options: argparse.Namespace, invocation: Invocation) -> int:
    """Write the files of a new project, and say what to do next."""
    folder: Path = options.folder
    name = newproject.name_of(folder)
    files = newproject.project(name, options.base, newproject.installed_from())
    if lookup.is_file(folder / newproject.IGNORED, HostError):
        del files[newproject.IGNORED]
    write_new({folder / path: text for path, text in files.items()})
    for path in files:
        terminal.say_path(folder / path)
        invocation.done.append({"path": str(folder / path)})
    log.info("next:")
    for command in _next(folder, name):
        log.info("    %s", command)
    return 0


def _next(folder: Path, name: str) -> list[str]:
    """Return the commands that come next."""
    enter = [] if folder == Path() else [f"cd {shlex.quote(str(folder))}"]
    image = f"out/{name}-{host_arch()}.qcow2"
    return [*enter, f"imgkit build {newproject.RECIPE}", f"pytest --imgkit-image {image}"]


def write_new(files: Mapping[Path, str]) -> None:
    """Write files that do not exist, all of them or none.

    Raises:
        UsageError: one of them exists.
        HostError: one of them cannot be written.
    """
    for path in files:
        if lookup.exists(path, HostError) or path.is_symlink():
            raise UsageError(f"{path}: exists already", hint="name a new folder: imgkit init DIR")
    with ExitStack() as written:
        for path, text in files.items():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("x", encoding="utf-8") as file:
                    written.callback(path.unlink)
                    file.write(text)
            except OSError as cause:
                raise HostError(f"{path}: {cause.strerror or cause}") from cause
        written.pop_all()
