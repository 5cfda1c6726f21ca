"""docs/reference/environment.md: every variable that the code reads, and none that nothing reads."""

from __future__ import annotations

import re

from script import environmentreference, variables
from tests.commandline import ROOT

PROGRAMS = ("SUPERMIN_KERNEL", "LIBGUESTFS_PATH", "TMPDIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
"""Variables of other programs and of libraries, which imgkit passes on."""


def named(rows: tuple[tuple[str, str], ...]) -> set[str]:
    return {name for names, _ in rows for name in re.findall(r"`([A-Z_]+)`", names)}


def test_the_page_is_current() -> None:
    text = environmentreference.PAGE.read_text()
    assert text == environmentreference.page(), "python -m script.reference makes it anew"
    for name in named((*variables.VARIABLES, *environmentreference.OTHERS)):
        assert text.count(f"`{name}`") >= 1


def test_no_variable_is_named_that_nothing_reads() -> None:
    code = "\n".join(path.read_text() for path in sorted((ROOT / "imgkit").rglob("*.py")))
    unread = [name for name in sorted(named(variables.VARIABLES)) if f'"{name}"' not in code]
    assert sorted(set(unread) - set(PROGRAMS)) == []


def test_no_variable_is_there_twice() -> None:
    names = [name for names, _ in variables.VARIABLES for name in re.findall(r"`([A-Z_]+)`", names)]
    assert len(names) == len(set(names))
    assert not named(variables.VARIABLES) & named(environmentreference.OTHERS)
