"""The reference of commands, options and variables, made from the parser: ``python -m script.reference``.

It goes to docs/commands.md; a test says when that is no longer current.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from imgkit.cli.main import parser

PAGE = Path(__file__).parents[1] / "docs" / "commands.md"
HEAD = "# Commands\n\nMade by `python -m script.reference` from what `imgkit --help` is made from."
COMMON = ("help", "verbose", "quiet", "debug")
TAIL = """\
## Variables

An option beats a variable, a variable beats the recipe.

| variable | meaning |
|---|---|
| `ALPINE_MIRROR`, `ALPINE_BRANCH`, `ALPINE_VERSION` | the recipe's `mirror`, `branch`, `version` |
| `IMAGE_SIZE` | its `size` |
| `AGENT_RUNNER_BUILD` | its `agent_runner_build`: `0`, `auto`, or `1`, which [runs its code](payload.md) on the host |
| `ARCHS` | architectures, with blanks or commas between them, or `all` |
| `OUT_DIR`, `WORK_DIR` | folder of the results (`out`); folder for scratch files of a build (in the former) |
| `INPUT_DIR`, `OUTPUT_BASE` | `publish`: folder of the images (`OUT_DIR`, or `out`); of the versions (`publish`) |
| `COWORK_SANDBOX_IMAGE_VERSION`, `COWORK_SANDBOX_BASE_URL` | `publish`: the version; the address of `OUTPUT_BASE` |
| `TMPDIR` | folder for temporary files; without it `/tmp`, and `/var/tmp` for what a guest changes on its disk |
| `SOURCE_DATE_EPOCH` | seconds since 1970 for what a build generates (default: when the youngest package was built) |
| `IMGKIT_CACHE` | folder of downloads and quick appliances (default: the user's cache folder) |
| `IMGKIT_LAUNCH_TIMEOUT` | seconds that libguestfs' appliance may take to start, for slow hosts |
| `IMGKIT_APPLIANCE` | `stock` starts libguestfs' own appliance instead of the quick one |
| `IMGKIT_FIRMWARE_ROOT` | folder below which UEFI firmware is looked up instead of below `/` |
| `SUPERMIN_KERNEL`, `LIBGUESTFS_PATH` | supermin's and libguestfs' own: the appliance's kernel; a fixed appliance |
"""


def page() -> str:
    """The whole page."""
    top = parser()
    (commands,) = (action for action in top._actions if isinstance(action, argparse._SubParsersAction))
    every = [action for action in commands.choices["doctor"]._actions if action.dest in COMMON]
    sections = [HEAD, "## Every command", "\n".join(table(every))]
    for name, sub in commands.choices.items():
        own = [action for action in sub._actions if action.dest not in COMMON]
        arguments = [action for action in own if not action.option_strings]
        words = " ".join(f"-- {each.metavar}…" if each.nargs == "*" else str(each.metavar) for each in arguments)
        sections += [f"## imgkit {name} {words}".rstrip(), str(sub.description).strip(), "\n".join(table(own))]
    return "\n\n".join([*sections, TAIL])


def table(actions: list[argparse.Action]) -> Iterator[str]:
    """One row for each option or argument."""
    yield "| | |\n|---|---|"
    for action in actions:
        value = str(action.metavar or "\\|".join(action.choices or [action.dest.upper()]))
        names = [option if action.nargs == 0 else f"{option} {value}" for option in action.option_strings]
        yield f"| {', '.join(f'`{name}`' for name in names or [value])} | {action.help} |"


if __name__ == "__main__":
    PAGE.write_text(page())
