"""A host that looks like a Mac to Python programs, on Linux.

What typeshed knows to be on Linux and not on macOS is taken away, and what a Mac answers otherwise is replaced
(:mod:`tests.machost`). It is no Mac: programs that are started, libraries that are not Python, the kernel and the
filesystem (APFS does not tell upper from lower case) are those of the host.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.commandline import ROOT

_PROGRAM = ROOT / "tests/machost.py"


@dataclass(frozen=True)
class Mac:
    """The simulated host.

    Attributes:
        folder: for what the simulation needs; an empty folder for programs is in it.
        machine: its architecture.
    """

    folder: Path
    machine: str = "arm64"

    def argv(self, *words: str | Path) -> list[str]:
        """Return the command line of a Python with the options ``-m MODULE`` or ``-c PROGRAM``, and their words."""
        names = self.folder / "names.json"
        if not names.exists():
            names.write_text(json.dumps(linux_names()))
        return [sys.executable, "-S", str(_PROGRAM), str(names), self.machine, *map(str, words)]

    def variables(self) -> dict[str, str]:
        """Return variables of the environment: a PATH without programs, and temporary files behind a link."""
        programs, temporary = self.folder / "bin", self.folder / "private/tmp"
        if not programs.exists():
            programs.mkdir()
            temporary.mkdir(parents=True)
            (self.folder / "tmp").symlink_to("private/tmp")  # as /tmp and /var are on a Mac
        data = sysconfig._get_sysconfigdata_name()  # type: ignore[attr-defined]  # it is named after the platform
        return {"PATH": str(programs), "TMPDIR": str(self.folder / "tmp"), "_PYTHON_SYSCONFIGDATA_NAME": data}

    def run(
        self, *words: str | Path, env: Mapping[str, str] | None = None, cwd: Path = ROOT
    ) -> subprocess.CompletedProcess[str]:
        """Run a Python program on this host."""
        return subprocess.run(
            self.argv(*words),
            env={**os.environ, **self.variables(), **(env or {})},
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )


def linux_names() -> dict[str, list[str]]:
    """Return what CPython's modules have on Linux and not on macOS: module → names."""
    import mypy

    stubs = Path(mypy.__file__).parent / "typeshed/stdlib"
    found = {}
    for path in sorted(stubs.rglob("*.pyi")):
        body = ast.parse(path.read_text()).body
        names = set(_names(body, "linux")) - set(_names(body, "darwin"))
        if names:
            module = ".".join(path.relative_to(stubs).with_suffix("").parts)
            found[module.removesuffix(".__init__")] = sorted(names)
    return found


def _names(body: list[ast.stmt], platform: str) -> Iterator[str]:
    """Yield the names that a stub defines for a platform, in this version of Python."""
    for statement in body:
        if isinstance(statement, ast.If):
            yield from _names(statement.body if _holds(statement.test, platform) else statement.orelse, platform)
        elif isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield statement.name
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in statement.names)


def _holds(test: ast.expr, platform: str) -> bool:
    """Evaluate a condition of a stub: it compares ``sys.platform`` and ``sys.version_info`` only (typing's rule)."""

    class System:
        """What a condition can ask."""

        version_info = sys.version_info

    System.platform = platform  # type: ignore[attr-defined]
    return bool(eval(compile(ast.Expression(test), "stub", "eval"), {"sys": System}))
