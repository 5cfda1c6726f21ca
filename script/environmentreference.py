"""Make the reference page of environment variables, docs/reference/environment.md.

The variables that imgkit reads are those of :mod:`script.variables`, which a test compares with the code. Those that
libraries and other programs read are listed here.
"""

from __future__ import annotations

from pathlib import Path

from script.variables import PRECEDENCE, VARIABLES

PAGE = Path(__file__).parents[1] / "docs/reference/environment.md"
HEAD = """\
# Environment variables

Made by `python -m script.reference`. """
RULES = """\
An empty variable is as one that is not set. Paths are relative to the current folder.

A guest sees none of them: what it gets is said with `--env`, `--env-file` and `--secret`. The npm packages of a payload
are installed with an environment of their own ([payload.md](../howto/payload.md))."""
OTHERS = (
    ("`HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`", "the proxy for mirrors and registries, and hosts without"),
    ("`NETRC`", "file with names and passwords for mirrors (default: `~/.netrc`)"),
    ("`XDG_CACHE_HOME`", "folder of the user's caches on Linux, where imgkit has a folder (default: `~/.cache`)"),
    ("`XDG_CONFIG_HOME`", "where Podman keeps credentials of registries, in `containers/auth.json`"),
    ("`PATH`", "where QEMU, supermin, npm and other programs are looked for"),
)
"""Variables that libraries read, or that other programs define."""


def page() -> str:
    """Return the page."""
    parts = [f"{HEAD}{PRECEDENCE}", RULES, "## Of imgkit", _table(VARIABLES), "## Of libraries and other programs"]
    return "\n\n".join([*parts, _table(OTHERS)]) + "\n"


def _table(rows: tuple[tuple[str, str], ...]) -> str:
    return "| variable | meaning |\n|---|---|\n" + "\n".join(f"| {names} | {meaning} |" for names, meaning in rows)
