"""Values as JSON objects, whose keys are written the same way in everything that imgkit prints and writes: ``buildId``.

The names of fields of dataclasses become keys. Keys of mappings stay as they are, since they are data::

    print(terminal.as_json(jsonable(description)))
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

_JOINT = re.compile(r"_+([a-z0-9])")


def key_of(name: str) -> str:
    """Return the key for the name of a field: ``buildId`` for ``build_id``."""
    return _JOINT.sub(lambda match: match[1].upper(), name)


def jsonable(value: object) -> Any:
    """Return a value for :func:`json.dumps`: dataclasses as objects, tuples as lists, paths as texts."""
    if is_dataclass(value) and not isinstance(value, type):
        return {key_of(field.name): jsonable(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): jsonable(part) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return [jsonable(part) for part in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value
