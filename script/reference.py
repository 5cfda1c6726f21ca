"""Make the reference pages: commands from their parser, recipes from their model, Python from its docstrings.

    python -m script.reference          commands.md, recipe.md, python.md and environment.md of docs/reference
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
from script import environmentreference, pythonreference, recipereference
from script.variables import PRECEDENCE, VARIABLES

REFERENCE = Path(__file__).parents[1] / "docs/reference"
PAGE = REFERENCE / "commands.md"
MAN_PAGE = REFERENCE / "imgkit.1"
HEAD = "# Commands\n\nMade by `python -m script.reference` from what `imgkit --help` is made from."
COMMON = ("help", "verbose", "quiet", "debug")
STATUSES = (
    ("0", "The command is done."),
    ("1", "imgkit diff found a difference."),
    ("2", "The command line or an environment variable is wrong."),
    ("3", "The recipe is wrong."),
    ("4", "An input is missing or cannot be trusted, or an image differs from its manifest."),
    ("5", "This host lacks something."),
    ("6", "The guest failed."),
    ("70", "A bug in imgkit; a traceback is printed."),
    ("124", "The command of `imgkit run` was ended because of `--limit`."),
    ("130", "Interrupted by a signal."),
)
"""Exit statuses, as in the docstring of imgkit.errors."""
RUN_STATUS = "The exit status of imgkit run is that of the command in the guest."


def page() -> str:
    """Return the Markdown page of commands, options and variables."""
    _, commands = parsers()
    sections = [HEAD, "## Every command", "\n".join(_table(_common(commands)))]
    for name, command in commands.items():
        title = f"## imgkit {name} {' '.join(_arguments(command))}".rstrip()
        sections += [title, str(command.description).strip(), "\n".join(_table(_own(command)))]
    rows = "\n".join(f"| {status} | {meaning} |" for status, meaning in STATUSES)
    sections += ["## Exit status", f"| status | meaning |\n|---|---|\n{rows}", RUN_STATUS]
    sections += [f"## Variables\n\n[environment.md](environment.md) lists them. {PRECEDENCE}"]
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
    lines += [".PP", roff(RUN_STATUS)]
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
    parser = argparse.ArgumentParser(description="Make the pages of docs/reference that are made from code.")
    parser.add_argument("--man", action="store_true", help="make docs/reference/imgkit.1 instead")
    if parser.parse_args().man:
        MAN_PAGE.write_text(man_page())
    else:
        PAGE.write_text(page())
        recipereference.PAGE.write_text(recipereference.page())
        pythonreference.PAGE.write_text(pythonreference.page())
        environmentreference.PAGE.write_text(environmentreference.page())


if __name__ == "__main__":
    main()
