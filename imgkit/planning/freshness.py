"""Whether what a mirror has is what it should have by now.

A signature says who made a file, not when, nor for which place on a mirror. A mirror can go on showing an old index,
whose packages have holes that were mended since, or put the index of one branch where another's belongs. So the date of
every signed index and minirootfs is remembered, for each repository whatever mirror it came from, and an older one is
refused; so is one that says itself that it is of another branch.

The memory is a folder of the cache. Each date is a file of its own, so builds that run at the same time cannot replace
a newer date with an older one::

    newest/ab/abcd…/1700000000

Deleting the cache deletes the memory: the next build believes what it sees first.
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
OPTION = "--allow-stale-mirror"
_MISPLACED = "the mirror has the wrong file in this place: try another mirror"
_LAGGING = "the mirror lags behind, or hides updates: try again later, or another mirror, or without --offline"
_TOLERANCE = 86400  # seconds that a date may be in the future; a later one is not remembered


@dataclass(frozen=True)
class Stated:
    """What a minirootfs says of itself in ``/etc/alpine-release``: the text of that file, and its time since 1970."""

    version: str
    date: int


def release_of(tree: Tree) -> Stated | None:
    """What a minirootfs says of itself; None if it has no such file."""
    node = tree.stat(_ALPINE_RELEASE)
    return Stated(tree.text(_ALPINE_RELEASE).strip(), node.mtime) if isinstance(node, File) else None


@dataclass(frozen=True)
class Freshness:
    """What is asked of the files of one branch.

    Args:
        folder: the cache.
        trust: who vouches for the branch: the certificate that signed the minirootfs.
        asked: the recipe's branch.
        arch: Alpine's name of the architecture.
        stated: what the minirootfs says of itself.
        allow: warn instead of refusing.
    """

    folder: Path
    trust: str
    asked: str
    arch: str
    stated: Stated | None
    allow: bool = False

    @property
    def branch(self) -> str:
        """The branch that all files must be of; ``latest-stable`` if the minirootfs does not say which that is."""
        own = branch_of(self.stated.version) if self.stated else None
        return own if own not in (None, EDGE) and self.asked == LATEST else self.asked

    def check_minirootfs(self, url: str, called: str, *, chosen: bool) -> None:
        """Check that the minirootfs is the one that it is said to be, and warn if its branch has come to its end.

        Args:
            called: its version, by the list of releases or a lock file.
            chosen: somebody asked for this very version, which need not be the newest.

        Raises:
            InputError: it says itself that it is of another version or branch, or a newer one was seen before.
            HostError: the cache cannot be written.
        """
        warn_expired(self.branch)
        if self.stated is None:
            return
        version = self.stated.version
        if version not in (called, f"{version.partition('_alpha')[0]}_alpha{called}"):
            self._refuse(f"{shown(url)}: is called {called}, but says itself that it is {version[:40]!r}")
        self._check_branch(url, branch_of(version), version)
        if not chosen:
            if self.asked == LATEST:
                self._check_latest(url)
            self.check_date(url, MINIROOTFS, self.stated.date)

    def check_index(self, url: str, repository: str, description: str, date: int) -> None:
        """Check a signed index. Its date is not remembered: see :meth:`remember_index`.

        Args:
            description: what it says of the sources that it was made from (:func:`branch_of`).
            date: when it was made, in seconds since 1970.

        Raises:
            InputError: it is of another branch, or a newer one was seen before.
        """
        if description.startswith("v"):
            self._check_branch(url, branch_of(description), description)
        self._is_newest(url, repository, date)

    def remember_index(self, repository: str, date: int) -> None:
        """Remember the date of an index, of which something was taken.

        An index does not say of which repository it is. One in the wrong place has nothing that the plan takes from
        there; if its date were remembered, that of the right one might be refused for ever.

        Raises:
            HostError: the cache cannot be written.
        """
        memory = self._memory(self.branch, repository)
        if _newest(memory) < date < time.time() + _TOLERANCE:
            _remember(memory, date)

    def check_date(self, url: str, what: str, date: int) -> None:
        """Compare the date of a signed file with the newest that was seen, and remember it.

        Args:
            what: the name of the repository, or another name for what the file is.
            date: seconds since 1970; 0 where it is not known, which is older than any other.

        Raises:
            InputError: one that is newer was seen before.
            HostError: the cache cannot be written.
        """
        if self._is_newest(url, what, date) and date < time.time() + _TOLERANCE:
            _remember(self._memory(self.branch, what), date)

    def _is_newest(self, url: str, what: str, date: int) -> bool:
        """Whether the date is later than the newest that was seen. An earlier one is refused."""
        newest = _newest(self._memory(self.branch, what))
        if date < newest:
            self._refuse(f"{shown(url)}: is of {_day(date)}, but one of {_day(newest)} was seen before", _LAGGING)
        return date > newest

    def _check_latest(self, url: str) -> None:
        """Compare the branch, for which ``latest-stable`` stands, with the latest that it stood for."""
        if self.branch == LATEST:
            return
        memory, number = self._memory(LATEST, "branch"), order(self.branch)
        newest = _newest(memory)
        if number < newest:
            later = f"v{newest // 10_000}.{newest % 10_000}"
            self._refuse(f"{shown(url)}: {LATEST} is {self.branch}, but was {later} before", _LAGGING)
        elif number > newest:
            _remember(memory, number)

    def _memory(self, branch: str, what: str) -> Path:
        key = hashlib.sha256("\n".join((self.trust, branch, what, self.arch)).encode()).hexdigest()
        return self.folder / "newest" / key[:2] / key

    def _check_branch(self, url: str, branch: str | None, text: str) -> None:
        still_open = self.branch == LATEST and branch != EDGE
        if branch not in (None, self.branch) and not still_open:
            self._refuse(f"{shown(url)}: is of branch {branch}, not of {self.branch} ({text[:40]!r})")

    def _refuse(self, message: str, hint: str = _MISPLACED) -> None:
        if not self.allow:
            raise InputError(message, hint=f"{hint}; {OPTION} takes it nevertheless")
        log.warning("%s; taken because of %s", message, OPTION)


def warn_expired(branch: str, today: datetime.date | None = None) -> None:
    """Say when a branch gets no security fixes any more. ``today`` is a date in place of the clock's."""
    end = end_of(branch)
    if end is not None and (today or datetime.datetime.now(datetime.timezone.utc).date()) > end:
        log.warning("Alpine %s has had no security fixes since %s: choose a newer branch", branch, end)


def _newest(memory: Path) -> int:
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
