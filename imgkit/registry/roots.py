"""Which certificates of authorities are trusted for which host.

The usual ones are those of ``REQUESTS_CA_BUNDLE``, ``CURL_CA_BUNDLE`` or ``SSL_CERT_FILE``, whichever is set first,
or else those that come with ``requests`` (certifi). Added to them are the file of ``--ca`` and, for a registry, the
files ``*.crt`` in the folders that Docker and Podman read (dockerd, "Verify repository client with certificates";
containers-certs.d(5))::

    /etc/docker/certs.d/HOST[:PORT]/      /etc/containers/certs.d/HOST[:PORT]/
    ~/.config/containers/certs.d/HOST[:PORT]/
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

from requests.utils import DEFAULT_CA_BUNDLE_PATH

from imgkit.errors import UsageError
from imgkit.host import lookup, scratch
from imgkit.registry.access import RegistryAccess

SYSTEM_FOLDERS = (Path("/etc/docker/certs.d"), Path("/etc/containers/certs.d"))
_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
_BEGIN = b"-----BEGIN CERTIFICATE-----"
_MAX_FILE = 8 << 20


class TrustedRoots:
    """Finds the certificates for a host; several threads may use it."""

    def __init__(self, access: RegistryAccess) -> None:
        self._access = access
        self._bundles: dict[tuple[Path, ...], str] = {}
        self._lock = threading.Lock()
        self._folders = ExitStack()

    def close(self) -> None:
        """Remove the files that were made."""
        self._folders.close()
        self._bundles.clear()

    def verify(self, host: str) -> str:
        """Return the file or folder of certificates for ``host`` (with its port), as ``requests`` takes it.

        Raises:
            UsageError: a file cannot be read or has no certificate.
        """
        usual = self._usual()
        extra = tuple(self._extra(host))
        if not extra:
            return str(usual)
        with self._lock:
            if extra not in self._bundles:
                self._bundles[extra] = self._bundle((*_files(usual), *extra))
            return self._bundles[extra]

    def _bundle(self, files: tuple[Path, ...]) -> str:
        """Write the certificates of several files into one; return its path."""
        data = b"\n".join(_read(path) for path in files)
        path = self._folders.enter_context(scratch.folder()) / "roots.pem"
        path.write_bytes(data)
        return str(path)

    def _usual(self) -> Path:
        chosen = next((value for name in _VARIABLES if (value := self._access.environ.get(name))), None)
        if chosen is None:
            return Path(DEFAULT_CA_BUNDLE_PATH)
        if not lookup.exists(Path(chosen), UsageError):
            raise UsageError(f"{chosen}: no such file of certificates", hint=f"check {', '.join(_VARIABLES)}")
        return Path(chosen)

    def _extra(self, host: str) -> Iterator[Path]:
        if self._access.ca is not None:
            yield self._access.ca
        home = self._access.environ.get("HOME")
        own = (Path(home) / ".config/containers/certs.d",) if home else ()
        for folder in (*SYSTEM_FOLDERS, *own):
            if host not in ("", ".", "..") and "/" not in host:
                with suppress(OSError):  # the home of another user, after su
                    yield from sorted((folder / host).glob("*.crt"))


def _files(path: Path) -> list[Path]:
    if not lookup.is_folder(path, UsageError):
        return [path]
    try:
        return [inner for inner in sorted(path.iterdir()) if lookup.is_file(inner, UsageError)]
    except OSError as cause:
        raise UsageError(f"{path}: cannot be read ({cause.strerror})") from cause


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as source:
            data = source.read(_MAX_FILE)
    except OSError as cause:
        raise UsageError(f"{path}: cannot be read ({cause.strerror})") from cause
    if _BEGIN not in data:
        raise UsageError(f"{path}: has no certificate in PEM")
    return data
