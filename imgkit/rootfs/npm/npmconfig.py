"""Make npm's configuration: a new file with the few settings that are safe to copy from other files.

npm's configuration can name programs (``git``, ``script-shell``, ``node-options``) and folders (``prefix``, ``cache``),
and npm reads it from the payload's folder. So imgkit gives npm a file of its own (``--userconfig``), with:

* from the ``.npmrc`` of the payload: the registries, with the credentials that are written there, and how dependencies
  are resolved;
* from the user's configuration (their ``.npmrc``, the system's, ``npm_config_…`` variables): the same, and how the
  network is reached.

``${VARIABLE}`` is replaced in the user's configuration only: a payload could have the value sent to any host.
Format: https://docs.npmjs.com/cli/configuring-npm/npmrc, an INI file as the npm package ``ini`` reads it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from imgkit.errors import InputError

NAME = ".npmrc"
_MAX_BYTES = 256 << 10  # of one .npmrc

_SOURCES = r"(@[a-z0-9~._-]+:)?registry|//[A-Za-z0-9.:\[\]-]+/[\w.~@%/-]*:(_authToken|_auth|username|_password|email)"
_RESOLUTION = (
    "legacy-peer-deps|strict-peer-deps|engine-strict|install-strategy|prefer-dedupe|before|min-release-age|"
    "fetch-retries|fetch-retry-factor|fetch-retry-mintimeout|fetch-retry-maxtimeout|fetch-timeout|maxsockets"
)
_NETWORK = (
    r"strict-ssl|ca(\[\])?|cafile|cert|key|proxy|https-proxy|noproxy(\[\])?|replace-registry-host|"
    r"omit-lockfile-registry-resolved|//[A-Za-z0-9.:\[\]-]+/[\w.~@%/-]*:(certfile|keyfile)"
)
_PAYLOADS = re.compile(f"{_SOURCES}|{_RESOLUTION}")
_HOSTS = re.compile(f"{_SOURCES}|{_RESOLUTION}|{_NETWORK}")

# Settings of a payload that have no effect on what imgkit asks npm to do: they need no warning.
_WITHOUT_EFFECT = frozenset(
    (
        *("audit", "fund", "update-notifier", "progress", "loglevel", "color", "unicode"),
        *("save", "save-exact", "save-prefix", "package-lock", "omit", "ignore-scripts"),
    )
)
_FILES = ("cafile", "certfile", "keyfile")
_VARIABLE = re.compile(r"\$\{([^${}?]+)(\??)\}")


@dataclass(frozen=True)
class Setting:
    """One line of an ``.npmrc``."""

    key: str
    value: str


@dataclass(frozen=True)
class Settings:
    """npm's configuration.

    Attributes:
        text: the text of the configuration file.
        ignored: printable names of the payload's settings that are not in it.
        files: files of the host that the configuration names (certificates).
    """

    text: str
    ignored: tuple[str, ...]
    files: tuple[Path, ...]


def settings(payload: Path, hosts: Sequence[Path], environment: Mapping[str, str]) -> Settings:
    """Make npm's configuration.

    Args:
        payload: the payload's ``.npmrc``, which may be missing.
        hosts: the files of the system and of the user; later files win. Missing or unreadable ones are left out.
        environment: the user's variables.

    Raises:
        InputError: the payload's ``.npmrc`` is not a regular file, or too large.
    """
    trusted = [setting for path in hosts for setting in _trusted(path, environment)]
    trusted += [setting for setting in _from_variables(environment) if _HOSTS.fullmatch(setting.key)]
    stated = list(parse(_read(payload))) if payload.exists() else []
    copied = [setting for setting in stated if _may_be_copied(setting)]
    ignored = {_printable(setting) for setting in stated if setting not in copied}
    files = tuple(Path(setting.value) for setting in trusted if _names_a_file(setting.key))
    return Settings(_format([*trusted, *copied]), tuple(sorted(ignored - _WITHOUT_EFFECT)), files)


def parse(text: str) -> Iterator[Setting]:
    """Yield the settings of an ``.npmrc``. npm ignores what follows the header of a section, and so does this."""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            return
        if not line or line[0] in "#;":
            continue
        key, equals, value = line.partition("=")
        yield Setting(_unquoted(key), _unquoted(value) if equals else "true")


def _unquoted(text: str) -> str:
    """Return a key or value without quotes and comments, as the npm package ``ini`` reads it."""
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] == '"':
        try:
            return str(json.loads(text))
        except (ValueError, RecursionError):
            return text[1:-1]
    if len(text) > 1 and text[0] == text[-1] == "'":
        return text[1:-1]
    return re.split(r"\s*(?<!\\)[;#]", text)[0]


def _read(path: Path) -> str:
    if not path.is_file():
        raise InputError(f"{path}: neither a file nor a link to one")
    with path.open("rb") as source:
        data = source.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise InputError(f"{path}: has more than {_MAX_BYTES} bytes")
    return data.decode(errors="replace")


def _trusted(path: Path, environment: Mapping[str, str]) -> Iterator[Setting]:
    """Yield the settings in a file of the user's that are copied, with variables replaced."""
    try:
        text = _read(path) if path.is_file() else ""
    except (OSError, InputError):
        return
    for setting in parse(text):
        if _HOSTS.fullmatch(setting.key):
            value = _VARIABLE.sub(lambda match: environment.get(match[1], ""), setting.value)
            yield Setting(setting.key, _at_home(value, environment) if _names_a_file(setting.key) else value)


def _names_a_file(key: str) -> bool:
    return key.rpartition(":")[2] in _FILES


def _at_home(value: str, environment: Mapping[str, str]) -> str:
    """Expand ``~/name`` to the user's home: npm, which gets another home, would use that one."""
    return f"{environment['HOME']}/{value[2:]}" if value.startswith("~/") and environment.get("HOME") else value


def _from_variables(environment: Mapping[str, str]) -> Iterator[Setting]:
    """Yield ``https-proxy`` for ``npm_config_https_proxy=…``; keys that begin with ``//`` or ``@`` stay unchanged."""
    for name, value in sorted(environment.items()):
        if name.lower().startswith("npm_config_") and value:
            key = name[len("npm_config_") :]
            key = key if key[:1] in "/@" else key.lower().replace("_", "-")
            yield Setting(key, _at_home(value, environment) if _names_a_file(key) else value)


def _may_be_copied(setting: Setting) -> bool:
    return bool(_PAYLOADS.fullmatch(setting.key)) and not _VARIABLE.search(setting.value)


def _printable(setting: Setting) -> str:
    """Return the key of a payload's setting for a message, without control characters and never with its value."""
    key = "".join(char if char.isprintable() else "?" for char in setting.key)[:80]
    return f"{key} (with a variable)" if _PAYLOADS.fullmatch(setting.key) else key


def _format(settings: Sequence[Setting]) -> str:
    """Return the text of the file. Values are quoted; settings in which npm would replace a variable are left out."""
    lines = [f"{setting.key}={json.dumps(setting.value)}" for setting in settings if "${" not in setting.value]
    return "".join(line + "\n" for line in lines)
