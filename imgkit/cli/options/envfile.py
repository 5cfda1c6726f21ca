"""Files of environment variables, as ``docker run --env-file`` reads them.

A line is ``NAME=VALUE``. ``NAME`` alone takes the value of the variable in this process; if it has none there, the
line sets nothing. White space at the beginning of a line is dropped; empty lines and lines that begin with ``#`` are
skipped. A ``#`` further on is part of the value, and so are quotes and spaces. If a name occurs more than once, the
last line wins. The text is UTF-8; a byte order mark is removed.

Source: docker/cli, ``opts/envfile.go`` and ``pkg/kvfile``. :mod:`imgkit.vm.configdrive` says which names are valid.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from imgkit.errors import UsageError
from imgkit.vm import configdrive

MAX_FILE = 4 << 20
"""Bytes that a file may have."""


def read(path: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """Read the variables that the file ``path`` sets.

    Args:
        path: a regular file, or a pipe.
        environ: the source of the values of names without one.

    Raises:
        UsageError: the file cannot be read, or a line is wrong. The message quotes no value, which may be a secret.
    """
    try:
        with path.open("rb") as source:
            data = source.read(MAX_FILE + 1)
    except OSError as cause:
        raise UsageError(f"--env-file {path}: {cause.strerror}") from cause
    if len(data) > MAX_FILE:
        raise UsageError(f"--env-file {path}: larger than {MAX_FILE >> 20} MiB")
    variables: dict[str, str] = {}
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        name, value = _variable(line, f"--env-file {path}: line {number}")
        value = environ.get(name) if value is None else value
        if name and value is not None:
            variables[name] = value
    return variables


def _variable(line: bytes, where: str) -> tuple[str, str | None]:
    """Return the name and value of a line: an empty name if the line sets nothing, None as the value without ``=``."""
    try:
        text = line.removesuffix(b"\r").decode().lstrip()
    except UnicodeDecodeError:
        raise UsageError(f"{where}: not UTF-8") from None
    if not text or text.startswith("#"):
        return "", None
    name, equals, value = text.partition("=")
    if not configdrive.is_name(name):
        hint = "a line is NAME=VALUE or NAME; letters, digits and _ make a name"
        raise UsageError(f"{where}: not the name of an environment variable", hint=hint)
    if "\0" in value:
        raise UsageError(f"{where}: the value of {name} has a zero byte")
    return name, value if equals else None
