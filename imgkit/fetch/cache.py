"""The cache of downloads: content-addressed, verified whenever a file is taken from it, shared by all builds.

Layout below the cache folder::

    sha256/ab/abcd…     files by their SHA-256
    keyed/ab/abcd…      files by the SHA-256 of another name for their content (the identity of a package)
    urls/ab/abcd….json  the last download of a URL whose file changes (an index): validators and the file's SHA-256
    locks/  tmp/        one download at a time for each file; downloads in progress
    locks/in-use        locked (flock) by every process that uses the cache; ``imgkit cache prune`` looks at it

Entries appear by rename only, so two builds can never see half a file. The locks only save the second build the
download: a build that waits too long for a lock goes on without it::

    cache = Cache(default_folder())
    path = cache.fetch(Wanted(url=url, max_bytes=1 << 20, sha256=digest))
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import filelock
import platformdirs

from imgkit.errors import HostError, InputError
from imgkit.fetch.checks import Expected, shown
from imgkit.fetch.http import Download, Http, Validators
from imgkit.fetch.localfiles import copy_file, is_local
from imgkit.fetch.pool import Meter, in_parallel
from imgkit.host import locks, scratch, wholefile
from imgkit.host.jsonfile import read_json
from imgkit.host.room import no_room

log = logging.getLogger("imgkit.fetch")

IN_USE = "locks/in-use"
"""The file below the cache's folder that processes lock while they use the cache."""
_PRUNE_TIMEOUT = 60.0  # seconds to wait while somebody removes entries
_LOCK_TIMEOUT = 300.0  # seconds to wait for another build's download of the same file
_CHUNK = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_RECORD = 1 << 18  # bytes of the record of a URL; headers can be long


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A file that is needed, and how it is verified.

    There are three kinds. A file with a ``key``, another name for its content, must pass ``check``, and have ``sha256``
    if that is given. A file with a ``sha256`` alone must have that. A file with neither is known by its URL alone: the
    server is asked each time whether there is a newer one.

    Attributes:
        url: the address of the file.
        max_bytes: the most bytes that it may have.
        size: the bytes that it must have; None if that is not known.
        sha256: in hex.
        check: raises InputError for a file that must not be used. It runs on every use of a keyed file.
        gzip: it is gzip data; anything else is refused at its first bytes.
    """

    url: str
    max_bytes: int
    size: int | None = None
    sha256: str | None = None
    key: str | None = None
    check: Callable[[Path], object] | None = None
    gzip: bool = False

    @property
    def expected(self) -> Expected:
        """What a download of the file is checked against."""
        return Expected(max_bytes=self.max_bytes, size=self.size, sha256=self.sha256, gzip=self.gzip)


def default_folder() -> Path:
    """Return the folder that ``IMGKIT_CACHE`` names, or else one in the user's cache folder."""
    given = os.environ.get("IMGKIT_CACHE")
    return Path(given) if given else Path(platformdirs.user_cache_dir("imgkit"))


class Cache:
    """A folder of files by their content. Files that are missing are downloaded.

    Args:
        folder: made when it is missing.
        http: the client; None makes one with the usual timeouts.
        offline: take everything from the cache, and indexes as they were last seen.
        workers: downloads at a time.
    """

    def __init__(self, folder: Path, http: Http | None = None, *, offline: bool = False, workers: int = 4) -> None:
        self.folder = folder
        self.offline = offline
        self._http = http or Http()
        self._workers = workers
        self._held: weakref.finalize[..., Cache] | None = None

    def fetch(self, wanted: Wanted, *, description: str = "downloading") -> Path:
        """Return the path of one file; see :meth:`fetch_all`."""
        return self.fetch_all([wanted], description=description)[0]

    def fetch_all(self, wanted: Sequence[Wanted], *, description: str = "downloading") -> list[Path]:
        """Return the paths of all files, in the order of ``wanted``. Several are downloaded at a time.

        Files of the cache must not be changed. When one download fails, the others are cancelled.

        Args:
            description: the label of the progress bar.

        Raises:
            InputError: a file cannot be downloaded or fails its checks; offline, the message names all missing files.
            HostError: the cache folder cannot be written, or its disk is full.
        """
        self._hold()
        if self.offline:
            return self._all_cached(wanted)
        with self._scratch() as scratch, Meter(description) as meter:
            jobs = [partial(self._get, file, scratch, meter) for file in wanted]
            return in_parallel(jobs, workers=self._workers)

    def _hold(self) -> None:
        """Lock the cache for as long as this object lives, so that nothing is removed that it has returned.

        Several processes share the lock. On a filesystem without locks there is none.
        """
        if self._held is None:
            with suppress(OSError):
                place = self.folder / IN_USE
                place.parent.mkdir(parents=True, exist_ok=True)
                descriptor = locks.lock_file(place, shared=True, timeout=_PRUNE_TIMEOUT)
                self._held = weakref.finalize(self, os.close, descriptor)

    # ---- looking up --------------------------------------------------------------------------------------------------

    def _all_cached(self, wanted: Sequence[Wanted]) -> list[Path]:
        cached = [(file, self._cached(file)) for file in wanted]
        missing = [shown(file.url) for file, path in cached if path is None]
        if missing:
            files = "1 file is" if len(missing) == 1 else f"{len(missing)} files are"
            raise InputError(
                f"offline, and {files} not in the cache: {', '.join(missing)}",
                hint=f"build once without --offline (the cache is {self.folder})",
            )
        return [path for _, path in cached if path is not None]

    def _cached(self, wanted: Wanted) -> Path | None:
        """Return the file, or None if the cache does not have it. A damaged file is deleted."""
        path = self._path_of(wanted)
        if path is None:
            last = self._last_seen(wanted)
            return None if last is None else self._cached_blob(last.sha256, wanted)
        return path if self._usable(path, wanted) else None

    def _path_of(self, wanted: Wanted) -> Path | None:
        """Return where the cache has a file of known content; None for a file that is known by its URL alone."""
        if wanted.key is not None:
            return _fan_out(self.folder / "keyed", _name(wanted.key))
        if wanted.sha256 is not None:
            return self._blob(wanted.sha256.lower())
        return None

    def _blob(self, sha256: str) -> Path:
        return _fan_out(self.folder / "sha256", sha256)

    def _cached_blob(self, sha256: str, wanted: Wanted) -> Path | None:
        path = self._blob(sha256)
        return path if self._usable(path, replace(wanted, sha256=sha256)) else None

    def _usable(self, path: Path, wanted: Wanted) -> bool:
        """Return whether a file of the cache is there and is what it must be. A damaged file is deleted."""
        if not path.is_file():
            return False
        try:
            if wanted.sha256 is not None and (actual := hash_file(path)) != wanted.sha256.lower():
                raise InputError(f"its SHA-256 is {actual}")
            if wanted.check is not None:
                wanted.check(path)
            _touch(path)
        except InputError as fault:
            log.warning("%s: damaged in the cache, and deleted: %s", shown(wanted.url), fault)
            path.unlink(missing_ok=True)
            return False
        return True

    # ---- downloading ------------------------------------------------------------------------------------------------

    def _get(self, wanted: Wanted, scratch: Path, meter: Meter, stop: threading.Event) -> Path:
        """Return the file, downloaded if the cache does not have it."""
        place = self._path_of(wanted)
        if place is None:
            return self._revalidate(wanted, scratch, meter, stop)
        if self._usable(place, wanted):
            return place
        with self._locked(place.name):
            if not self._usable(place, wanted):  # another build may have downloaded it meanwhile
                temporary = scratch / place.name
                self._download(wanted, temporary, meter, stop)
                if wanted.check is not None:
                    wanted.check(temporary)
                _move(temporary, place)
        return place

    def _revalidate(self, wanted: Wanted, scratch: Path, meter: Meter, stop: threading.Event) -> Path:
        """Return the newest version of a file that is known by its URL alone. The server is asked for it."""
        last = self._last_seen(wanted)
        path = None if last is None else self._cached_blob(last.sha256, wanted)
        validators = last.validators if last is not None and path is not None else None
        temporary = scratch / _name(wanted.url)
        download = self._download(wanted, temporary, meter, stop, validators)
        if download is None:
            if path is None:
                raise InputError(f"{shown(wanted.url)}: the server says 'not modified' to a first request")
            return path
        if wanted.check is not None:
            wanted.check(temporary)
        place = self._blob(download.sha256)
        _move(temporary, place)
        self._remember(wanted, download, scratch)
        return place

    def _download(
        self,
        wanted: Wanted,
        target: Path,
        meter: Meter,
        stop: threading.Event,
        validators: Validators | None = None,
    ) -> Download | None:
        meter.expect(wanted.size or 0)
        if is_local(wanted.url):
            return copy_file(wanted.url, target, wanted.expected, on_bytes=meter.advance, cancelled=stop)
        return self._http.download(
            wanted.url, target, wanted.expected, validators=validators, on_bytes=meter.advance, cancelled=stop
        )

    # ---- records of URLs --------------------------------------------------------------------------------------------

    def _record(self, wanted: Wanted) -> Path:
        return _fan_out(self.folder / "urls", _name(wanted.url) + ".json")

    def _last_seen(self, wanted: Wanted) -> Download | None:
        """Return the last download of a URL; None if it has no record, or if the record is not valid."""
        try:
            record = read_json(self._record(wanted), _MAX_RECORD)
            if not _SHA256.fullmatch(record["sha256"]):  # it becomes a path
                return None
            validators = Validators(str(record["etag"]), str(record["last_modified"]))
            _touch(self._record(wanted))
            return Download(int(record["size"]), record["sha256"], validators)
        except (InputError, ValueError, KeyError, TypeError):
            return None

    def _remember(self, wanted: Wanted, download: Download, scratch: Path) -> None:
        record = {
            "url": shown(wanted.url),
            "etag": download.validators.etag,
            "last_modified": download.validators.last_modified,
            "sha256": download.sha256,
            "size": download.size,
        }
        temporary = scratch / (_name(wanted.url) + ".json")
        temporary.write_text(json.dumps(record, indent=1), "utf-8")
        _move(temporary, self._record(wanted))

    # ---- folders ----------------------------------------------------------------------------------------------------

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        """Yield a folder for downloads in progress, on the filesystem of the cache. It is removed after the block."""
        try:
            parent = self.folder / "tmp"
            parent.mkdir(parents=True, exist_ok=True)
            with scratch.folder(parent, "") as folder:
                yield folder
        except OSError as cause:
            reason = "no space left" if no_room(cause) else f"the cache cannot be written ({cause.strerror})"
            raise HostError(
                f"{self.folder}: {reason}", hint="set IMGKIT_CACHE to a folder that can be written"
            ) from cause

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Keep other builds from downloading the same file during the block, if that is possible."""
        folder = self.folder / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / name[:4])
        with suppress(filelock.Timeout, NotImplementedError):  # no locks on this filesystem: renames are safe anyway
            lock.acquire(timeout=_LOCK_TIMEOUT)
        try:
            yield
        finally:
            lock.release()


def _touch(path: Path) -> None:
    """Give a file the time of its use, by which its age is counted."""
    with suppress(OSError):
        os.utime(path)


def hash_file(path: Path, algorithm: str = "sha256") -> str:
    """Return a hash of a file, in hex. ``algorithm`` is a name that :func:`hashlib.new` knows."""
    digest = hashlib.new(algorithm)
    with path.open("rb") as source:
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _name(text: str) -> str:
    """Return a file name for any text."""
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def _fan_out(folder: Path, name: str) -> Path:
    return folder / name[:2] / name


def _move(temporary: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    wholefile.place({temporary: place})
