"""Check that the signed files of a mirror are not older than files seen before, and not of another branch.

A signature says who made a file, but not when, nor for which place on a mirror. A mirror can keep serving an old
index, whose packages have security holes that were fixed since, or put the index of one branch where another's belongs.
So the date of every signed index and minirootfs is remembered for each repository, regardless of the mirror. An
older file is refused, and so is a file which says that it is of another branch.

The dates are kept in a folder of the cache. Each date is a file of its own, so that builds which run at the same time
cannot replace a newer date with an older one::

    newest/ab/abcd…/1700000000

Deleting the cache deletes the dates: the next build accepts what it sees first.
"""

from __future__ import annotations

import datetime
import hashlib
import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from imgkit.apk.branches import EDGE, LATEST, branch_of, end_of, order
from imgkit.errors import HostError, InputError
from imgkit.fetch.checks import shown
from imgkit.fetch.releases import MINIROOTFS
from imgkit.tree import File, Tree

log = logging.getLogger("imgkit")

_ALPINE_RELEASE = "etc/alpine-release"
_OPTION = "--allow-stale-mirror"
_MISPLACED_HINT = "the mirror has the wrong file in this place: try another mirror"
_LAGGING_HINT = "the mirror lags behind, or hides updates: try again later, or another mirror, or without --offline"
_TOLERANCE = 86400  # seconds that a date may be in the future; a later one is not remembered


@dataclass(frozen=True)
class AlpineRelease:
    """What a minirootfs says about itself.

    Attributes:
        version: the text of ``/etc/alpine-release``, ``3.23.6``.
        date: the time of that file, in seconds since 1970.
    """

    version: str
    date: int


def release_of(tree: Tree) -> AlpineRelease | None:
    """Return what a minirootfs says about itself, or None if it has no ``/etc/alpine-release``."""
    node = tree.stat(_ALPINE_RELEASE)
    return AlpineRelease(tree.text(_ALPINE_RELEASE).strip(), node.mtime) if isinstance(node, File) else None


@dataclass(frozen=True)
class Freshness:
    """The checks that the signed files of one branch must pass.

    Attributes:
        folder: the cache's.
        signer: the certificate that signed the minirootfs, or the keys of the image that replaces it.
        recipe_branch: the branch that the recipe names.
        arch: Alpine's name of the architecture.
        release: what the minirootfs says about itself.
        allow: whether to warn instead of refusing.
    """

    folder: Path
    signer: str
    recipe_branch: str
    arch: str
    release: AlpineRelease | None
    allow: bool = False

    @property
    def branch(self) -> str:
        """The branch to which all files must belong.

        It is the recipe's. ``latest-stable`` refers to the branch that the minirootfs names, if it names one.
        """
        own = branch_of(self.release.version) if self.release else None
        return own if own not in (None, EDGE) and self.recipe_branch == LATEST else self.recipe_branch

    def check_minirootfs(self, url: str, version: str, *, chosen: bool) -> None:
        """Check that the minirootfs has the version by which it is listed, and warn if its branch is not supported.

        Args:
            version: what the list of releases, or a lock file, calls it.
            chosen: whether the user asked for this version, so that it need not be the newest.

        Raises:
            InputError: the minirootfs says that it is of another version or branch, or a newer one was seen before.
            HostError: the cache cannot be written.
        """
        warn_expired(self.branch)
        if self.release is None:
            return
        own = self.release.version
        if own not in (version, f"{own.partition('_alpha')[0]}_alpha{version}"):  # the list gives edge's date alone
            self._refuse(f"{shown(url)}: is called {version}, but says that it is {own[:40]!r}")
        self._check_branch(url, branch_of(own), own)
        if not chosen:
            if self.recipe_branch == LATEST:
                self._check_latest(url)
            self.check_date(url, MINIROOTFS, self.release.date)

    def check_image(self, name: str) -> None:
        """Check that an image is of the recipe's branch, and warn if that is not supported any more.

        The date of an image is not compared: its digest says exactly which image is meant.

        Raises:
            InputError: the image says that it is of another branch.
        """
        warn_expired(self.branch)
        if self.release is not None:
            own = branch_of(self.release.version)
            hint = f'write branch = "{own}" in the recipe, or start from another image'
            self._check_branch(name, own, self.release.version, hint)

    def check_index(self, url: str, repository: str, description: str, date: int) -> None:
        """Check a signed index. Its date is not remembered: see :meth:`remember_index`.

        Args:
            description: what the index says about the sources that it was made from (:func:`branch_of`).
            date: when it was made, in seconds since 1970.

        Raises:
            InputError: the index is of another branch, or a newer one was seen before.
        """
        if description.startswith("v"):
            self._check_branch(url, branch_of(description), description)
        self._is_newest(url, repository, date)

    def remember_index(self, repository: str, date: int) -> None:
        """Remember the date of an index from which a package was taken.

        An index does not say to which repository it belongs. An index in the wrong place has no package that the plan
        takes from there; if its date were remembered, the right index might be refused forever.

        Raises:
            HostError: the cache cannot be written.
        """
        memory = self._memory(self.branch, repository)
        if _newest(memory) < date < time.time() + _TOLERANCE:
            _remember(memory, date)

    def check_date(self, url: str, name: str, date: int) -> None:
        """Compare the date of a signed file with the newest date that was seen, and remember it.

        Args:
            name: the name of the repository, or the kind of another file.
            date: in seconds since 1970; 0 if it is not known, which counts as older than any other.

        Raises:
            InputError: a newer file was seen before.
            HostError: the cache cannot be written.
        """
        if self._is_newest(url, name, date) and date < time.time() + _TOLERANCE:
            _remember(self._memory(self.branch, name), date)

    def _is_newest(self, url: str, name: str, date: int) -> bool:
        """Return whether the date is later than the newest that was seen. An earlier one is refused."""
        newest = _newest(self._memory(self.branch, name))
        if date < newest:
            self._refuse(f"{shown(url)}: is of {_day(date)}, but one of {_day(newest)} was seen before", _LAGGING_HINT)
        return date > newest

    def _check_latest(self, url: str) -> None:
        """Compare the branch that ``latest-stable`` refers to with the latest branch that it referred to."""
        if self.branch == LATEST:
            return
        memory, number = self._memory(LATEST, "branch"), order(self.branch)
        newest = _newest(memory)
        if number < newest:
            later = f"v{newest // 10_000}.{newest % 10_000}"
            self._refuse(f"{shown(url)}: {LATEST} is {self.branch}, but was {later} before", _LAGGING_HINT)
        elif number > newest:
            _remember(memory, number)

    def _memory(self, branch: str, name: str) -> Path:
        key = hashlib.sha256("\n".join((self.signer, branch, name, self.arch)).encode()).hexdigest()
        return self.folder / "newest" / key[:2] / key

    def _check_branch(self, url: str, branch: str | None, text: str, hint: str = _MISPLACED_HINT) -> None:
        still_open = self.branch == LATEST and branch != EDGE
        if branch not in (None, self.branch) and not still_open:
            self._refuse(f"{shown(url)}: is of branch {branch}, not of {self.branch} ({text[:40]!r})", hint)

    def _refuse(self, message: str, hint: str = _MISPLACED_HINT) -> None:
        if not self.allow:
            raise InputError(message, hint=f"{hint}; {_OPTION} accepts it anyway")
        log.warning("%s; accepted because of %s", message, _OPTION)


def warn_expired(branch: str, today: datetime.date | None = None) -> None:
    """Warn if a branch no longer gets security fixes. ``today`` replaces the clock's date."""
    end = end_of(branch)
    if end is not None and (today or datetime.datetime.now(datetime.timezone.utc).date()) > end:
        log.warning("Alpine %s has had no security fixes since %s: choose a newer branch", branch, end)


def _newest(memory: Path) -> int:
    """Return the newest date in a folder of remembered dates; 0 if there is none."""
    with suppress(OSError):
        return max((int(path.name) for path in memory.iterdir() if path.name.isdecimal()), default=0)
    return 0


def _remember(memory: Path, date: int) -> None:
    try:
        memory.mkdir(parents=True, exist_ok=True)
        (memory / str(date)).touch()
        for path in memory.iterdir():
            if path.name.isdecimal() and int(path.name) < date:
                path.unlink(missing_ok=True)
    except OSError as cause:
        hint = "set IMGKIT_CACHE to a folder that can be written"
        raise HostError(f"{memory}: {cause.strerror}", hint=hint) from cause


def _day(date: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(date)) if date else "an unknown date"
