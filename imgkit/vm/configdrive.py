"""The config drive: what one boot is told in confidence, as a small ISO 9660 image made in memory.

Format: docs/agentd.md, "The config drive". Names need Rock Ridge, because ISO 9660 knows capitals and eight letters.
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
"""Bytes of a name and its value: what Linux takes in one string of an environment (MAX_ARG_STRLEN), less some room."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


def make(env: Mapping[str, str] | None = None, secrets: Mapping[str, bytes] | None = None) -> bytes:
    """The image, or nothing (``b""``) if there is nothing to tell.

    Args:
        env: environment variables of every agent.
        secrets: the same, with values that are kept in files of their own: UTF-8, taken as they are.

    Raises:
        UsageError: a name is not one of an environment variable, a value is too long, no UTF-8 or has a zero byte.
    """
    env, secrets = env or {}, secrets or {}
    if not env and not secrets:
        return b""
    for name, value in [*((name, os.fsencode(value)) for name, value in env.items()), *secrets.items()]:
        _check(name, value)
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, vol_ident=VOLUME, rock_ridge="1.09")
    try:
        _add(iso, "/ENV.;1", "env.json", json.dumps(dict(env)).encode())
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
    """Whether an environment variable can be called so."""
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
