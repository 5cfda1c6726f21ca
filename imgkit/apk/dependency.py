"""Parse and compare dependencies and provides, as written in an index, the installed database and a world file.

Source of the syntax: apk-world(5) and apk-package(5) of apk-tools 3. A dependency is
``[!]name[@tag][operator version]``, a provide is ``name[=version]``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from imgkit.apk.version import Version, is_valid

_PACKAGE_NAME = re.compile(r"[A-Za-z0-9._][A-Za-z0-9._+-]*")
# so:, cmd:, pc: and paths are ordinary names: apk takes any text without an operator in it.
_NAME = r"[^\s\x00-\x1f\x7f<>=~@!][^\s\x00-\x1f\x7f<>=~@]*"
_DEPENDENCY = re.compile(
    rf"(?P<conflict>!?)(?P<name>{_NAME})(?:@(?P<tag>[A-Za-z0-9_.-]+))?(?:(?P<operator>[<>=~]+)(?P<version>\S+))?"
)
_PROVIDE = re.compile(rf"(?P<name>{_NAME})(?:=(?P<version>\S+))?")

_PACKAGE_VERSION = re.compile(r"[A-Za-z0-9._~+-]+")
_IDENTITY = "><"


def is_package_version(text: str) -> bool:
    """Return whether ``text`` can be a version in a file name.

    Real indexes have versions that break the grammar.
    """
    return _PACKAGE_VERSION.fullmatch(text) is not None


def is_package_name(text: str) -> bool:
    """Return whether ``text`` can be the name of a package.

    It must not have a slash, since it is part of file names.
    """
    return _PACKAGE_NAME.fullmatch(text) is not None


@dataclass(frozen=True)
class Dependency:
    """One dependency, or a conflict.

    Attributes:
        name: a name that a package has or provides.
        operator: one spelling for each meaning: ``= < <= > >= ~ <~ >~ ><``; None without a version.
        version: the version to compare with; for ``><`` the identity of a package (``Q1…``).
        conflict: whether nothing may satisfy it (``!name``).
        tag: the tag of the repository that the package may come from; it is allowed in a world only.
    """

    name: str
    operator: str | None = None
    version: str | None = None
    conflict: bool = False
    tag: str | None = None

    @classmethod
    def parse(cls, text: str) -> Dependency:
        """Parse ``[!]name[@tag][operator version]``.

        Raises:
            ValueError: the syntax or the version is wrong.
        """
        return _parse_dependency(text)

    @classmethod
    def lenient(cls, text: str) -> Dependency:
        """Like :meth:`parse`, but a version that breaks the grammar is kept and compared by :meth:`Version.lenient`.

        Raises:
            ValueError: the syntax is wrong.
        """
        return _parse_dependency(text, lenient=True)

    def matches(self, version: str | None, identity: str | None = None) -> bool:
        """Return whether a package or provide of this name satisfies the operator and the version.

        ``conflict`` is not considered.

        Args:
            version: that of the package or of its provide; None for a provide without one, which is less than any
                version.
            identity: that of the package (``Q1…``).
        """
        if self.operator is None or self.version is None:
            return True
        if self.operator == _IDENTITY:
            return identity == self.version
        return self._compare(Version.lenient(version), Version.lenient(self.version), self.operator)

    @staticmethod
    def _compare(have: Version, want: Version, operator: str) -> bool:
        return (
            ("=" in operator and have == want)
            or ("<" in operator and have < want)
            or (">" in operator and have > want)
            or ("~" in operator and have.starts_with(want))
        )

    def __str__(self) -> str:
        tag = f"@{self.tag}" if self.tag else ""
        return f"{'!' if self.conflict else ''}{self.name}{tag}{self.operator or ''}{self.version or ''}"


@dataclass(frozen=True)
class Provide:
    """A name that a package has besides its own: with a version a full claim on the name, without one a virtual one."""

    name: str
    version: str | None = None

    @classmethod
    def parse(cls, text: str) -> Provide:
        """Parse ``name[=version]``.

        A version that breaks the grammar is kept, since real indexes have some: see :meth:`Version.lenient`.

        Raises:
            ValueError: the syntax is wrong.
        """
        match = _PROVIDE.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is not a valid provide")
        return cls(match["name"], match["version"])

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name}={self.version}"


@lru_cache(maxsize=16384)
def _parse_dependency(text: str, *, lenient: bool = False) -> Dependency:
    match = _DEPENDENCY.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a valid dependency")
    operator, version = match["operator"], match["version"]
    if operator is not None:
        operator = _canonical(operator)
        if not lenient and operator != _IDENTITY and not is_valid(version):
            raise ValueError(f"{text!r} has an invalid version")
    return Dependency(match["name"], operator, version, bool(match["conflict"]), match["tag"])


def _canonical(operator: str) -> str:
    """Return the one spelling of an operator, which may be written as any run of its signs."""
    signs = frozenset(operator)
    if signs == {"<", ">"}:
        return _IDENTITY
    if "~" in signs:  # a prefix match includes equality
        signs -= {"="}
    return "".join(sign for sign in "<>=~" if sign in signs)
