"""Make the reference pages: of the command line from its parser, of recipes from their model.

    python -m script.reference          docs/reference/commands.md and docs/reference/recipe.md
    python -m script.reference --man    docs/reference/imgkit.1, the manual page

Tests compare these files with what this module makes.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from imgkit import __version__
from imgkit.cli.parser import parsers
from script import recipereference

REFERENCE = Path(__file__).parents[1] / "docs/reference"
PAGE = REFERENCE / "commands.md"
MAN_PAGE = REFERENCE / "imgkit.1"
HEAD = "# Commands\n\nMade by `python -m script.reference` from what `imgkit --help` is made from."
COMMON = ("help", "verbose", "quiet", "debug")
PRECEDENCE = "An option takes precedence over a variable, and a variable over the recipe."
VARIABLES = (
    ("`ALPINE_MIRROR`, `ALPINE_BRANCH`, `ALPINE_VERSION`", "the recipe's `mirror`, `branch`, `version`"),
    ("`IMAGE_SIZE`", "its `size`"),
    (
        "`AGENT_RUNNER_BUILD`",
        "its `agent_runner_build`: `0`, `auto`, or `1`, which [runs its code](../howto/payload.md) on the host",
    ),
    ("`ARCHS`", "architectures, with blanks or commas between them, or `all`"),
    ("`OUT_DIR`, `WORK_DIR`", "folder of the results (`out`); folder for scratch files of a build (in the former)"),
    (
        "`INPUT_DIR`, `OUTPUT_BASE`",
        "`publish`: folder of the images (`OUT_DIR`, or `out`); of the versions (`publish`)",
    ),
    (
        "`COWORK_SANDBOX_IMAGE_VERSION`, `COWORK_SANDBOX_BASE_URL`",
        "`publish`: the version; the address of `OUTPUT_BASE`",
    ),
    (
        "`TMPDIR`",
        "folder for temporary files; without it `/tmp`, and `/var/tmp` for what a guest changes on its disk",
    ),
    (
        "`SOURCE_DATE_EPOCH`",
        "seconds since 1970 for what a build generates (default: when the youngest package was built)",
    ),
    ("`IMGKIT_CACHE`", "folder of downloads and quick appliances (default: the user's cache folder)"),
    (
        "`REQUESTS_CA_BUNDLE`, `CURL_CA_BUNDLE`, `SSL_CERT_FILE`",
        "certificates that registries are verified against; of mirrors, the first two",
    ),
    ("`IMGKIT_LAUNCH_TIMEOUT`", "seconds that libguestfs' appliance may take to start, for slow hosts"),
    (
        "`IMGKIT_GUESTFS_PYTHON`",
        "the Python that has libguestfs' bindings (default: this one, the distribution's, or one on `PATH`)",
    ),
    ("`IMGKIT_APPLIANCE`", "`stock` starts libguestfs' own appliance instead of the quick one"),
    ("`IMGKIT_FIRMWARE_ROOT`", "folder below which UEFI firmware is looked up instead of below `/`"),
    (
        "`REGISTRY_AUTH_FILE`, `DOCKER_CONFIG`",
        "`push`, `pull`, bases: where Podman and Docker keep [credentials of registries](../howto/registries.md)",
    ),
    (
        "`SUPERMIN_KERNEL`, `LIBGUESTFS_PATH`",
        "supermin's and libguestfs' own: the appliance's kernel; a fixed appliance",
    ),
)
"""Names and meanings of the environment variables, in Markdown."""
STATUSES = (
    ("0", "The command is done."),
    ("2", "The command line or an environment variable is wrong."),
    ("3", "The recipe is wrong."),
    ("4", "An input is missing or cannot be trusted, or an image differs from its manifest."),
    ("5", "This host lacks something."),
    ("6", "The guest failed."),
    ("70", "A bug in imgkit; a traceback is printed."),
    ("130", "Interrupted by a signal."),
)
"""Exit statuses, as in the docstring of imgkit.errors."""


def page() -> str:
    """Return the Markdown page of commands, options and variables."""
    _, commands = parsers()
    sections = [HEAD, "## Every command", "\n".join(_table(_common(commands)))]
    for name, command in commands.items():
        title = f"## imgkit {name} {' '.join(_arguments(command))}".rstrip()
        sections += [title, str(command.description).strip(), "\n".join(_table(_own(command)))]
    rows = "\n".join(f"| {names} | {meaning} |" for names, meaning in VARIABLES)
    sections += ["## Variables", PRECEDENCE, f"| variable | meaning |\n|---|---|\n{rows}"]
    return "\n\n".join(sections) + "\n"


def man_page() -> str:
    """Return the manual page imgkit(1), in the macros of man(7)."""
    top, commands = parsers()
    lines = [
        '.\\" Made by python -m script.reference --man from what imgkit --help is made from.',
        f'.TH IMGKIT 1 "" "imgkit {__version__}" "User Commands"',
        ".SH NAME",
        "imgkit \\- bootable Alpine Linux images for agent sandboxes",
        ".SH SYNOPSIS",
    ]
    for name, command in commands.items():
        lines += [f".B imgkit {name}", roff(" ".join(["[OPTION]…", *_arguments(command)])), ".br"]
    lines += [".SH DESCRIPTION", roff(str(top.description)), ".SH OPTIONS", *_options(_common(commands))]
    lines += [".SH COMMANDS"]
    for name, command in commands.items():
        lines += [f".SS imgkit {name}", *_paragraphs(str(command.description)), *_options(_own(command))]
    lines += [".SH EXIT STATUS"]
    for status, meaning in STATUSES:
        lines += [".TP", f".B {status}", roff(meaning)]
    lines += [".PP", roff("The exit status of imgkit run is that of the command in the guest.")]
    lines += [".SH ENVIRONMENT", roff(PRECEDENCE)]
    for names, meaning in VARIABLES:
        lines += [".TP", f".B {roff(_plain(names))}", roff(_plain(meaning))]
    return "\n".join(lines) + "\n"


def roff(text: str) -> str:
    """Return the text as a line of roff in ASCII, without requests or escapes."""
    escaped = text.replace("…", "...").replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    escaped = "".join(sign if sign.isascii() else f"\\[u{ord(sign):04X}]" for sign in escaped)
    return f"\\&{escaped}" if escaped.startswith(".") else escaped


def _plain(markdown: str) -> str:
    """Return a piece of Markdown without its marks: code, links."""
    return re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", markdown).replace("`", "")


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in text.strip().split("\n\n"):
        yield from (".PP", *(roff(line) for line in paragraph.split("\n")))


def _common(commands: Mapping[str, argparse.ArgumentParser]) -> list[argparse.Action]:
    """Return the options that every command has."""
    return [action for action in commands["doctor"]._actions if action.dest in COMMON]


def _own(command: argparse.ArgumentParser) -> list[argparse.Action]:
    """Return the options and arguments that are this command's alone."""
    return [action for action in command._actions if action.dest not in COMMON]


def _arguments(command: argparse.ArgumentParser) -> list[str]:
    """Return the arguments that are no options, as the usage line shows them."""
    actions = [action for action in _own(command) if not action.option_strings]
    return [f"-- {action.metavar}…" if action.nargs == "*" else str(action.metavar) for action in actions]


def _names(action: argparse.Action, separator: str) -> list[str]:
    """Return the names of an option with its value, or of an argument."""
    value = str(action.metavar or separator.join(action.choices or [action.dest.upper()]))
    return [option if action.nargs == 0 else f"{option} {value}" for option in action.option_strings] or [value]


def _table(actions: Sequence[argparse.Action]) -> Iterator[str]:
    """Yield one row for each option or argument."""
    yield "| | |\n|---|---|"
    for action in actions:
        yield f"| {', '.join(f'`{name}`' for name in _names(action, chr(92) + '|'))} | {action.help} |"


def _options(actions: Sequence[argparse.Action]) -> Iterator[str]:
    """Yield one paragraph with a tag for each option or argument."""
    for action in actions:
        yield from (".TP", f".B {roff(', '.join(_names(action, '|')))}", roff(str(action.help)))


def main() -> None:
    """Write one of the pages."""
    parser = argparse.ArgumentParser(description="Make docs/reference/commands.md and recipe.md.")
    parser.add_argument("--man", action="store_true", help="make docs/reference/imgkit.1 instead")
    if parser.parse_args().man:
        MAN_PAGE.write_text(man_page())
    else:
        PAGE.write_text(page())
        recipereference.PAGE.write_text(recipereference.page())


if __name__ == "__main__":
    main()
