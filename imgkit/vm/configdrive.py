"""Make the config drive: an ISO 9660 image, in memory, with the environment and the secrets of one boot.

    VM.boot(image, config=make({"LANG": "C"}, {"API_KEY": b"..."}))

Format: docs/reference/agentd.md, "The config drive". File names need Rock Ridge, because those of ISO 9660 are eight
capital letters.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Mapping

import pycdlib

from imgkit.errors import UsageError

VOLUME = "IMGKIT"
MAX_VALUE = (128 << 10) - 256
"""Maximum length of a name and its value in bytes: Linux' limit for a string of the environment, less a margin."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


def make(
    env: Mapping[str, str] | None = None, secrets: Mapping[str, bytes] | None = None, machine: str | None = None
) -> bytes:
    """Return the ISO image, or ``b""`` if there is nothing to write.

    Args:
        env: environment variables of every agent.
        secrets: the same, with each value in a file of its own. Values are UTF-8 and are not changed.
        machine: text of the file ``machine/run``, from which the init of a container image learns what it runs
            (docs/explanation/microvm.md).

    Raises:
        UsageError: a name is not valid for an environment variable, or a value is too long, not UTF-8 or has a zero
            byte.
    """
    env, secrets = env or {}, secrets or {}
    if not env and not secrets and machine is None:
        return b""
    for name, value in [*((name, os.fsencode(value)) for name, value in env.items()), *secrets.items()]:
        _check(name, value)
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, vol_ident=VOLUME, rock_ridge="1.09")
    try:
        if env or secrets:
            _add(iso, "/ENV.;1", "env.json", json.dumps(dict(env)).encode())
        if machine is not None:
            iso.add_directory("/MACHINE", rr_name="machine")
            _add(iso, "/MACHINE/RUN.;1", "run", os.fsencode(machine))
        if secrets:
            iso.add_directory("/SECRETS", rr_name="secrets")
        for number, (name, value) in enumerate(sorted(secrets.items())):
            _add(iso, f"/SECRETS/S{number:06d}.;1", name, value)
        sink = io.BytesIO()
        iso.write_fp(sink)
        return sink.getvalue()
    finally:
        iso.close()


def is_name(text: str) -> bool:
    """Return True if an environment variable can have this name."""
    return _NAME.match(text) is not None


def _check(name: str, value: bytes) -> None:
    if not is_name(name):
        raise UsageError(f"{name!r} is not the name of an environment variable")
    if b"\0" in value or len(name) + len(value) > MAX_VALUE:
        raise UsageError(f"{name}: its value has a zero byte or, with the name, more than {MAX_VALUE} bytes")
    try:
        value.decode()
    except UnicodeDecodeError as cause:
        raise UsageError(
            f"{name}: its value is not UTF-8", hint="encode binary values, in base64 for instance"
        ) from cause


def _add(iso: pycdlib.PyCdlib, path: str, name: str, data: bytes) -> None:
    iso.add_fp(io.BytesIO(data), len(data), path, rr_name=name)
