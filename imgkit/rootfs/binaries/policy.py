"""Apply a recipe's policy on the binaries of a payload (``payload_binaries``): log warnings, or refuse the payload."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Literal

from imgkit.errors import InputError
from imgkit.rootfs.binaries.examine import BinaryFindings, DoubtfulBinary, ForeignBinary, MissingLibrary, platforms
from imgkit.rootfs.binaries.libraries import PREBUILT

log = logging.getLogger("imgkit")

Policy = Literal["warn", "strict", "prune"]
Providers = Callable[[Collection[str]], Mapping[str, Sequence[str]] | None]
"""Returns the packages that provide each name, such as ``so:libz.so.1``; None if they cannot be known."""

_INSTALL = "let imgkit install the payload's packages for the image: AGENT_RUNNER_BUILD=auto"


def apply_policy(findings: BinaryFindings, policy: Policy, machine: str, providers: Providers, *, copied: bool) -> None:
    """Warn about ``findings``, or refuse them.

    Args:
        machine: Alpine's name of the image's architecture.
        providers: called only if a library is missing.
        copied: the payload was copied without installing its packages, which may be those of another machine.

    Raises:
        InputError: the policy is ``strict`` and there is a finding. Files in the folders in which npm packages have
            prebuilt binaries for several platforms are accepted nevertheless.
    """
    hints = _library_hints(findings.missing_libraries, providers)
    if policy == "strict":
        _refuse(findings, machine, hints)
        return
    if findings.foreign:
        if policy == "prune":
            log.info("left out of the payload: %s", _amount(findings.foreign))
        else:
            advice = _INSTALL if copied else 'payload_binaries = "prune" leaves them out'
            log.warning("the payload has %s, listed in the manifest; %s", _amount(findings.foreign), advice)
    for library, hint in hints.items():
        paths = [missing.path for missing in findings.missing_libraries if missing.library == library]
        log.warning("/%s needs the library %s, which the image lacks: %s", _first(paths), library, hint)
    if findings.doubtful:
        log.warning("/%s", _first([f"{binary.path} {binary.problem}" for binary in findings.doubtful]))


def _amount(foreign: Collection[ForeignBinary]) -> str:
    """Return number, size and platforms of binaries for other platforms, in words."""
    files = "1 binary" if len(foreign) == 1 else f"{len(foreign)} binaries"
    size = sum(binary.size for binary in foreign) / 1e6
    return f"{files} for other platforms ({size:.1f} MB: {platforms(foreign)})"


def _first(texts: Sequence[str]) -> str:
    """Return the first text and the number of the others."""
    more = f" (and {len(texts) - 1} more)" if len(texts) > 1 else ""
    return f"{texts[0]}{more}"


def _library_hints(missing: Collection[MissingLibrary], providers: Providers) -> dict[str, str]:
    """Return the advice on each missing library, in the order in which they are first needed."""
    libraries = list(dict.fromkeys(need.library for need in missing))
    known = providers([_provide(library) for library in libraries]) if libraries else None
    return {library: _library_hint(_provide(library), known) for library in libraries}


def _provide(library: str) -> str:
    """Return the name under which a package provides a library; a library with a path is provided as a file."""
    return library if "/" in library else f"so:{library}"


def _library_hint(provide: str, known: Mapping[str, Sequence[str]] | None) -> str:
    if known is None:
        return f"add the package that provides {provide}"
    packages = known.get(provide, ())
    if not packages:
        return f"no package of the image's repositories provides {provide}"
    if len(packages) == 1:
        return f"add the package {packages[0]}"
    return f"add one of the packages {', '.join(packages)}"


def _refuse(findings: BinaryFindings, machine: str, hints: Mapping[str, str]) -> None:
    problems = list(_problems(findings, machine, hints))
    if problems:
        raise InputError(_first([message for message, _ in problems]), hint=problems[0][1])


def _problems(findings: BinaryFindings, machine: str, hints: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield (message, hint) for each finding."""
    every: tuple[ForeignBinary | MissingLibrary | DoubtfulBinary, ...] = (
        *findings.foreign,
        *findings.missing_libraries,
        *findings.doubtful,
    )
    for finding in every:
        if PREBUILT.search(finding.path):
            continue
        if isinstance(finding, ForeignBinary):
            image = "has musl" if finding.platform == "glibc" else f"for {machine}"
            yield f"/{finding.path}: is for {finding.platform}, the image {image}", _INSTALL
        elif isinstance(finding, MissingLibrary):
            yield f"/{finding.path}: needs the library {finding.library}, which the image lacks", hints[finding.library]
        else:
            yield f"/{finding.path}: {finding.problem}", _INSTALL
