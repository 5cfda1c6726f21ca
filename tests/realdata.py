"""Checks on real data of Alpine, which several tests apply to different sources.

There are two sources: Alpine's own files (:data:`tests.files.ALPINE`), which are not available everywhere, and the
system in the wheel from which the offline mirror is made (:class:`System`), which a package registry has. Each check
consists of assertions.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

from imgkit.apk.database import read_database, write_database
from imgkit.apk.dependency import Dependency, Provide
from imgkit.apk.index import Package, Repository, format_record, parse_index
from imgkit.apk.solver import UnknownPackageError, solve
from imgkit.apk.stored_scripts import parse_scripts
from imgkit.apk.version import Version
from imgkit.rootfs.scripts.grammar import parse
from tests.test_solver import faults, superfluous

_KINDS = {"pre-install", "post-install", "pre-deinstall", "post-deinstall", "pre-upgrade", "post-upgrade", "trigger"}


@dataclass(frozen=True)
class System:
    """The files of apk, by path, in a root filesystem in which apk installed packages."""

    arch: str
    files: Mapping[str, bytes]

    @classmethod
    def read(cls, arch: str, archive: Path) -> System:
        """Read the files of apk from a root filesystem's tar archive."""
        files = {}
        with tarfile.open(archive) as opened:
            for member in opened:
                path = member.name.removeprefix("./")
                if member.isfile() and path.startswith(("lib/apk/db/", "etc/apk/", "etc/alpine-release")):
                    source = opened.extractfile(member)
                    assert source is not None
                    files[path] = source.read()
        return cls(arch, files)

    @property
    def database(self) -> Mapping[str, bytes]:
        """The files of the installed database, by name."""
        return {path.rpartition("/")[2]: data for path, data in self.files.items() if path.startswith("lib/apk/db/")}

    @property
    def keys(self) -> Mapping[str, bytes]:
        """The keys that it trusts, by name."""
        return {path.rpartition("/")[2]: data for path, data in self.files.items() if path.startswith("etc/apk/keys/")}

    @property
    def world(self) -> list[str]:
        """The words of ``etc/apk/world``."""
        return self.files["etc/apk/world"].decode().split()

    @cached_property
    def index(self) -> str:
        """The heads of the database's records, which are records of an index."""
        blocks = self.database["installed"].decode().strip("\n").split("\n\n")
        return "".join(re.split(r"\n(?=F:)", block, maxsplit=1)[0] + "\n\n" for block in blocks)

    @cached_property
    def packages(self) -> tuple[Package, ...]:
        """The packages of that index."""
        return parse_index(self.index, Repository(0, "main"))


def check_index(text: str, count: int) -> None:
    """Check that every record is parsed, and written back byte for byte."""
    packages = parse_index(text, Repository())
    assert len(packages) == count
    assert "\n".join(map(format_record, packages)) + "\n" == text
    assert [str(package) for package in packages if package.fault] == []


def check_words(packages: Sequence[Package]) -> None:
    """Check that every version, dependency and name in ``provides`` is valid."""
    for package in packages:
        assert Version.parse(package.version).text == package.version
        assert package.identity.startswith("Q1")
        for word in (*package.depends, *package.install_if):
            assert str(Dependency.parse(word)) == word
        for word in package.provides:
            assert word.startswith(Provide.parse(word).name)


def check_solution(world: Sequence[str], packages: Sequence[Package], arch: str) -> list[str]:
    """Check that the solution is complete, has nothing superfluous, and does not depend on the order of the world.

    Returns:
        The names of the packages in the order of their installation.
    """
    solution = solve(world, packages, arch=arch)
    assert faults(world, solution) == []
    assert superfluous(world, solution) == []
    assert solve(world[::-1], packages, arch=arch) == solution
    return [package.name for package in solution]


def check_near_miss(packages: Sequence[Package], arch: str, wrong: str, right: str) -> None:
    """Check that a misspelt name is refused, with a hint that contains the right one."""
    with pytest.raises(UnknownPackageError, match=f"package {wrong} is in no repository") as caught:
        solve([wrong], packages, arch=arch)
    assert right in str(caught.value.hint)


def lacking(world: Iterable[str], packages: Sequence[Package]) -> set[str]:
    """Return the names in ``world`` that no package has or provides."""
    provided = {Provide.parse(word).name for package in packages for word in package.provides}
    return {name for name in world if name[0] != "!"} - {package.name for package in packages} - provided


def check_database(database: Mapping[str, bytes], count: int) -> None:
    """Check that the database is written back byte for byte (scripts: file for file) for any order of the packages."""
    (archive,) = (name for name in database if name.startswith("scripts.tar"))
    packages = read_database(database["installed"], database["triggers"], database[archive])
    assert len(packages) == count
    written = write_database(reversed(packages))
    assert (written.installed, written.triggers) == (database["installed"], database["triggers"])
    assert parse_scripts(written.scripts) == parse_scripts(database[archive])


def check_scripts(database: Mapping[str, bytes]) -> set[str]:
    """Check that every script is a shell script of a known kind, and that its grammar is understood.

    Returns:
        The scripts as ``PACKAGE.KIND``.
    """
    (archive,) = (name for name in database if name.startswith("scripts.tar"))
    names = set()
    for installed in read_database(database["installed"], database["triggers"], database[archive]):
        for kind, script in installed.scripts.items():
            assert kind in _KINDS
            assert script.startswith((b"#!/bin/sh\n", b"#!/bin/sh -e\n", b"#! /bin/sh\n", b"#!/bin/busybox sh\n"))
            assert parse(script.decode())
            names.add(f"{installed.package.name}.{kind}")
    return names
