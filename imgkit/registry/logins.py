"""Credentials for registries, from the files and helpers of Docker and Podman.

Looked up in this order, where the first file that has an entry for the image decides:

1. ``$REGISTRY_AUTH_FILE``; if it is set, no other file is read.
2. ``$DOCKER_CONFIG/config.json``, or ``~/.docker/config.json`` if that variable is not set.
3. ``$XDG_RUNTIME_DIR/containers/auth.json``
4. ``$XDG_CONFIG_HOME/containers/auth.json``, or ``~/.config/containers/auth.json`` if that variable is not set.

Within a file, the helper that ``credHelpers`` names for the registry comes first, then ``auths``, where a longer key
comes before a shorter one (``registry.example/team`` before ``registry.example``), and at last ``credsStore``. A helper
of ``credHelpers`` that is missing or fails is an error; one of ``credsStore``, which is asked about every registry, is
a warning.

Sources: containers-auth.json(5); docker/cli, ``cli/config/configfile``; docker/docker-credential-helpers.
"""

from __future__ import annotations

import base64
import binascii
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imgkit.errors import HostError, InputError
from imgkit.host import lookup, process
from imgkit.host.jsonfile import parse_json, read_json
from imgkit.oci.imagename import DOCKER_HUB, ImageName
from imgkit.registry.access import RegistryAccess

log = logging.getLogger("imgkit.registry")

_HUB_KEY = "https://index.docker.io/v1/"  # what Docker calls its own registry in its files and to helpers
_HUB_HOSTS = frozenset({DOCKER_HUB, "index.docker.io", "registry-1.docker.io"})
_MAX_FILE = 4 << 20
_MAX_ANSWER = 1 << 20
_HELPER_TIMEOUT = 60.0  # seconds; a keychain may ask the user
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_IDENTITY = "<token>"  # the user name of an identity token
_NOT_FOUND = "credentials not found"


@dataclass(frozen=True)
class Login:
    """Credentials. None of them appears in its ``repr``.

    Attributes:
        source: the file or program that they are from, for messages.
        user, password: for basic authentication; empty if there is an identity token or a bearer token.
        identity_token: what a token service gives bearer tokens for (OAuth 2, ``refresh_token``).
        bearer_token: what the registry itself takes.
    """

    source: str
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    bearer_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The value of ``Authorization`` for basic authentication; empty if there is no user name."""
        if not self.user:
            return ""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def find_login(name: ImageName, access: RegistryAccess) -> Login | None:
    """Return the credentials for an image; None if there are none.

    Raises:
        InputError: a file is damaged, ``$REGISTRY_AUTH_FILE`` is missing, or a helper's answer is not valid.
        HostError: the helper for the registry is missing, fails, or takes too long.
    """
    for path in _files(access.environ):
        login = _login_in(path, name)
        if login is not None:
            log.debug("%s: credentials from %s", name.registry, login.source)
            return login
    return None


def _files(environ: Mapping[str, str]) -> Iterator[Path]:
    """Yield the files that are there, in order."""
    if explicit := environ.get("REGISTRY_AUTH_FILE"):
        yield Path(explicit)
        return
    home = Path(environ["HOME"]) if environ.get("HOME") else None
    docker, runtime, config = (environ.get(key) for key in ("DOCKER_CONFIG", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"))
    candidates = [
        Path(docker) / "config.json" if docker else home and home / ".docker/config.json",
        Path(runtime) / "containers/auth.json" if runtime else None,
        Path(config) / "containers/auth.json" if config else home and home / ".config/containers/auth.json",
    ]
    for path in candidates:
        if path is not None and _is_there(path):
            yield path


def _is_there(path: Path) -> bool:
    """Return whether there is a file. One in the home of another user, as after su, is left out with a warning."""
    try:
        return lookup.is_file(path, InputError)
    except InputError as refused:
        log.warning("%s; no credentials are taken from there", refused.message)
        return False


def _login_in(path: Path, name: ImageName) -> Login | None:
    config = read_json(path, _MAX_FILE, hint="docker login or podman login writes such a file")
    if not isinstance(config, dict):
        raise InputError(f"{path}: is not a file of credentials")
    helpers = _mapping(config.get("credHelpers"))
    for key in _hosts(name.registry):
        if isinstance(helper := helpers.get(key), str) and helper:
            return _ask(helper, key, path)
    login = _login_among(_mapping(config.get("auths")), name, path)
    store = config.get("credsStore")
    if login is None and isinstance(store, str) and store:
        return _ask_store(store, name.registry, path)
    return login


def _login_among(auths: Mapping[str, Any], name: ImageName, path: Path) -> Login | None:
    """Return the first entry with credentials, by the keys from the longest to the shortest."""
    normal = {_normal(key): key for key in reversed(list(auths))}
    for host in _hosts(name.registry):
        for key in (*_namespaces(host, name.repository), host):
            entry = _mapping(auths.get(normal.get(key, key)))
            if (login := _entry(entry, f"{path} ({key})")) is not None:
                return login
    return None


def _hosts(registry: str) -> tuple[str, ...]:
    """Return the names under which a registry may be in a file."""
    return (_HUB_KEY, *sorted(_HUB_HOSTS)) if registry in _HUB_HOSTS else (registry,)


def _namespaces(host: str, repository: str) -> Iterator[str]:
    parts = repository.split("/")
    for count in range(len(parts), 0, -1):
        yield "/".join((host, *parts[:count]))


def _normal(key: str) -> str:
    """Return a key without what Docker's older versions wrote around a host: ``https://host/v2/``."""
    if key == _HUB_KEY:
        return key
    bare = re.sub(r"^https?://", "", key)
    return bare.partition("/")[0] if bare != key or re.search(r"/v[12]/?$", bare) else bare.rstrip("/")


def _entry(entry: Mapping[str, Any], source: str) -> Login | None:
    texts = {key: value for key, value in entry.items() if isinstance(value, str) and value}
    if token := texts.get("registrytoken"):
        return Login(source, bearer_token=token)
    if token := texts.get("identitytoken"):
        return Login(source, identity_token=token)
    if "auth" in texts:
        return _decoded(texts["auth"], source)
    if "username" in texts and "password" in texts:
        return Login(source, texts["username"], texts["password"])
    return None


def _decoded(text: str, source: str) -> Login:
    try:
        user, colon, password = base64.b64decode(text, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        user = colon = password = ""
    if not colon or not user:
        raise InputError(f"{source}: the credentials cannot be read", hint="log in again, which writes them anew")
    return Login(source, user, password.rstrip("\0"))


def _ask_store(store: str, registry: str, path: Path) -> Login | None:
    """Ask the helper for all registries. Without it, what needs no credentials still works."""
    try:
        return _ask(store, _hosts(registry)[0], path)
    except (HostError, InputError) as error:
        log.warning("%s: goes on without the helper of credsStore: %s", path, error.message)
        return None


def _ask(helper: str, server: str, path: Path) -> Login | None:
    """Ask a helper about a server; None if it has no credentials for it.

    Raises:
        HostError: the helper is missing, fails, or takes too long.
        InputError: its name or its answer is not valid.
    """
    if not _HELPER.fullmatch(helper):
        raise InputError(f"{path}: {helper[:60]!r} is not the name of a credential helper")
    program = f"docker-credential-{helper}"
    try:
        output = process.run([program, "get"], stdin=server.encode(), timeout=_HELPER_TIMEOUT, good=(0, 1))
    except HostError as error:
        raise HostError(f"{error.message} (for {server}, named in {path})", hint=error.hint) from error
    return _helper_answer(output, program, server)


def _helper_answer(output: bytes, program: str, server: str) -> Login | None:
    """Read what a helper printed. A failure of it is a line of text in the same place."""
    text = output[:_MAX_ANSWER].decode(errors="replace").strip()
    if text.lower().startswith(_NOT_FOUND):
        return None
    if not text.startswith("{"):
        raise HostError(f"{program}: fails for {server}: {text.partition(chr(10))[0][:200] or 'it says nothing'}")
    try:
        answer = _mapping(parse_json(output[:_MAX_ANSWER], program))
    except InputError as cause:
        raise InputError(f"{program}: its answer for {server} is not JSON") from cause  # which may hold a password
    user, secret = answer.get("Username"), answer.get("Secret")
    if not (isinstance(user, str) and isinstance(secret, str)):
        raise InputError(f"{program}: its answer for {server} has no Username and Secret")
    if user == _IDENTITY:
        return Login(program, identity_token=secret)
    return Login(program, user, secret) if user else None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
