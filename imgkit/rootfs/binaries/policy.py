"""What is said, or refused, because of the binaries of a payload: see ``payload_binaries`` of a recipe."""

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
"""Names such as ``so:libz.so.1`` → the packages that provide each; None where that cannot be known."""

_INSTALL = "let imgkit install the payload's packages for the image: AGENT_RUNNER_BUILD=auto"


def apply_policy(findings: BinaryFindings, policy: Policy, machine: str, providers: Providers, *, copied: bool) -> None:
    """Say what ``findings`` amount to, as warnings.

    Args:
        machine: Alpine's name of the image's architecture.
        providers: asked only when a library is missing.
        copied: the payload was taken as it is, so that its packages may have been installed for another machine.

    Raises:
        InputError: the policy is ``strict`` and there is something to warn about; what npm packages keep in folders
            for prebuilt binaries of several platforms is accepted all the same.
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
        needers = [each.path for each in findings.missing_libraries if each.library == library]
        log.warning("/%s needs the library %s, which the image lacks: %s", _first(needers), library, hint)
    if findings.doubtful:
        log.warning("/%s", _first([f"{each.path} {each.problem}" for each in findings.doubtful]))


def _amount(foreign: Collection[ForeignBinary]) -> str:
    files = "1 binary" if len(foreign) == 1 else f"{len(foreign)} binaries"
    size = sum(each.size for each in foreign) / 1e6
    return f"{files} for other platforms ({size:.1f} MB: {platforms(foreign)})"


def _first(texts: Sequence[str]) -> str:
    more = f" (and {len(texts) - 1} more)" if len(texts) > 1 else ""
    return f"{texts[0]}{more}"


def _library_hints(lacking: Collection[MissingLibrary], providers: Providers) -> dict[str, str]:
    """What to do about each missing library, in the order in which they are first needed."""
    libraries = list(dict.fromkeys(each.library for each in lacking))
    known = providers([_provide(library) for library in libraries]) if libraries else None
    return {library: _library_hint(_provide(library), known) for library in libraries}


def _provide(library: str) -> str:
    """The name under which a package provides a library; one with a path is looked for as a file."""
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
        message, hint = problems[0]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise InputError(f"{message}{more}", hint=hint)


def _problems(findings: BinaryFindings, machine: str, hints: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(message, hint) of each finding."""
    other: tuple[ForeignBinary | MissingLibrary | DoubtfulBinary, ...] = (
        *findings.foreign,
        *findings.missing_libraries,
        *findings.doubtful,
    )
    for each in other:
        if PREBUILT.search(each.path):
            continue
        if isinstance(each, ForeignBinary):
            image = "has musl" if each.platform == "glibc" else f"for {machine}"
            yield f"/{each.path}: is for {each.platform}, the image {image}", _INSTALL
        elif isinstance(each, MissingLibrary):
            yield f"/{each.path}: needs the library {each.library}, which the image lacks", hints[each.library]
        else:
            yield f"/{each.path}: {each.problem}", _INSTALL
