"""Find a Python of this host that can import libguestfs' bindings, for the process that holds libguestfs.

The bindings are compiled for the Python of the distribution. imgkit itself may be installed for another one, or in a
virtual environment that does not see the distribution's packages; the process then runs in the distribution's Python,
and takes imgkit's modules (which need nothing but the standard library there) from where imgkit is installed::

    interpreter = choose(os.environ)
    subprocess.run(interpreter.argv(["module.py"]))
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from imgkit.engines.engineerrors import EngineStartError
from imgkit.errors import HostError
from imgkit.host import lookup, process

VARIABLE = "IMGKIT_GUESTFS_PYTHON"
"""The variable that names the Python to use. No other one is tried."""
BINDINGS_FIX = (
    "libguestfs exists on Linux only; disks can be built without: --engine native"
    if sys.platform == "darwin"
    else "apt-get install python3-guestfs (Fedora, openSUSE: python3-libguestfs)"
)
"""What to do about missing bindings."""

_DISTRIBUTION = "/usr/bin/python3"
_NAME = re.compile(r"python3(\.\d+)?")
_TRIAL_SECONDS = 20.0
# Prints the version; 3.10 is the oldest Python that imgkit's modules run in.
_TRIAL = """\
import sys
sys.version_info >= (3, 10) or sys.exit("it is older than Python 3.10")
import guestfs
print("%d.%d" % sys.version_info[:2])
"""


@dataclass(frozen=True)
class Interpreter:
    """A Python that can import the bindings.

    Attributes:
        path: the program.
        version: such as "3.11".
        isolated: whether it is started with ``-I``, so that variables and folders that are meant for the Python that
            runs imgkit do not reach it.
    """

    path: str
    version: str
    isolated: bool = False

    @property
    def is_own(self) -> bool:
        """Whether this is the Python that runs imgkit."""
        return self.path == sys.executable

    def argv(self, arguments: Sequence[str]) -> list[str]:
        """Return the program with its options, and ``arguments`` after it."""
        return [*_command(self.path, isolated=self.isolated), *arguments]


def choose(environment: Mapping[str, str]) -> Interpreter:
    """Return the first Python that can import the bindings.

    They are tried in this order: the one that runs imgkit, the distribution's, ``python3`` and ``python3.N`` on PATH.
    An answer is kept for as long as this process runs.

    Args:
        environment: its PATH and :data:`VARIABLE` are read. It is also what the first Python is started with.

    Raises:
        EngineStartError: none of them can; the message names each with the reason.
    """
    return _choose(environment.get(VARIABLE, ""), environment.get("PATH", ""), environment.get("PYTHONPATH", ""))


@cache
def _choose(named: str, path: str, _python_path: str) -> Interpreter:
    """Do what :func:`choose` says. The last argument is there for the cache."""
    refusals = []
    for program, isolated in _candidates(named, path):
        try:
            version = process.run([*_command(program, isolated=isolated), "-c", _TRIAL], timeout=_TRIAL_SECONDS)
            return Interpreter(program, version.decode().strip(), isolated)
        except HostError as cause:
            refusals.append(f"{program} ({_reason(cause)})")
    raise EngineStartError(
        f"libguestfs' Python bindings cannot be imported by {', '.join(refusals)}",
        hint=f"correct {VARIABLE}, or unset it" if named else BINDINGS_FIX,
    )


def _candidates(named: str, path: str) -> Iterator[tuple[str, bool]]:
    """Yield the programs to try, and whether each is to be isolated."""
    if named:
        yield named, False
        return
    yield sys.executable, False
    tried = set()
    for program in (_DISTRIBUTION, *_on_path(path)):
        target = Path(program).resolve()
        if target not in tried and os.access(target, os.X_OK):
            tried.add(target)
            yield program, True


def _on_path(path: str) -> Iterator[str]:
    """Yield the Pythons in the folders of PATH; in each folder ``python3`` comes before ``python3.N``."""
    for folder in map(Path, path.split(os.pathsep)):
        if folder.is_absolute() and lookup.sees_folder(folder):
            yield from sorted(str(entry) for entry in folder.glob("python3*") if _NAME.fullmatch(entry.name))


def _command(program: str, *, isolated: bool) -> list[str]:
    return [program, "-I", "-B"] if isolated else [program]


def _reason(cause: HostError) -> str:
    """Return why a Python cannot be used, without its path."""
    if isinstance(cause, process.ProgramError):
        return cause.last_line or process.ending(cause.status)
    return cause.message.partition(": ")[2]
