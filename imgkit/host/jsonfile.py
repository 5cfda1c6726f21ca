"""Read JSON files that are not trusted, within limits::

    lock = checked(Lock, read_json(path, 1 << 20), path, description="a lock file of imgkit")

Python's parser accepts things that no valid file of imgkit has, or raises exceptions of various kinds for them: files
that fill the memory, nesting that ends in RecursionError, numbers with more digits than Python converts, NaN, names
that occur twice in an object (Python takes the last one, other programs the first), and halves of UTF-16 surrogate
pairs, which cannot be written as UTF-8. All of these are an InputError here.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from imgkit.errors import InputError

Model = TypeVar("Model", bound=BaseModel)

DEEPEST = 64
"""How many levels deep objects and lists may be nested."""
_MOST_CONTAINERS = 500_000  # objects and lists; one of three bytes takes more than a hundred in memory
_MOST_DIGITS = 19  # of a number: those of 2^63
_MOST_FAULTS = 3  # named in a message
_MOST_SHOWN = 60  # characters of a name that are shown in a message


class StrictModel(BaseModel):
    """A model of a part of a file: types are not converted, further keys are ignored."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


def read_json(path: Path, limit: int, *, hint: str | None = None, raw_names: bool = False) -> Any:
    """Read the value in a JSON file.

    Args:
        limit: bytes that the file may have.
        hint: what to do about a file that is missing or wrong.
        raw_names: whether texts may contain bytes that are not UTF-8, as surrogates of :func:`os.fsdecode`.

    Raises:
        InputError: the file is missing, is not a regular file, is too large, or is not JSON within the limits.
    """
    return parse_json(read_bytes(path, limit, hint=hint), path, hint=hint, raw_names=raw_names)


def read_bytes(path: Path, limit: int, *, hint: str | None = None, name: object = None) -> bytes:
    """Read a regular file.

    Args:
        limit: bytes that the file may have.
        hint: what to do about a file that is missing or wrong.
        name: what messages call the file; by default its path.

    Raises:
        InputError: the file is missing, is not a regular file, or is larger than ``limit``.
    """
    name = path if name is None else name
    try:
        return _read(path, limit)
    except OSError as cause:
        raise InputError(f"{name}: {cause.strerror}", hint=hint) from cause
    except ValueError as cause:
        raise InputError(f"{name}: {cause}", hint=hint) from cause


def parse_json(data: bytes, name: object, *, hint: str | None = None, raw_names: bool = False) -> Any:
    """Parse the text of a JSON file; see :func:`read_json`.

    Args:
        name: what messages call the file.

    Raises:
        InputError: the text is not JSON within the limits.
    """
    try:
        if data.count(b"[") + data.count(b"{") > _MOST_CONTAINERS:
            raise ValueError(f"more than {_MOST_CONTAINERS} objects and lists")
        value = json.loads(
            data.decode("utf-8-sig"),
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_float,
            parse_constant=_constant,
        )
        _check(value, "surrogateescape" if raw_names else "strict")
    except RecursionError as cause:
        raise InputError(f"{name}: not JSON that can be read: nested too deeply", hint=hint) from cause
    except ValueError as cause:
        raise InputError(f"{name}: not JSON: {cause}", hint=hint) from cause
    return value


def checked(model: type[Model], value: object, name: object, *, description: str, hint: str | None = None) -> Model:
    """Validate ``value`` as an instance of ``model``.

    Args:
        name: what messages call the file.
        description: what the file should be, such as ``a lock file of imgkit``.

    Raises:
        InputError: the value does not fit the model. The message names the first three faults.
    """
    try:
        return model.model_validate(value)
    except ValidationError as cause:
        errors = cause.errors(include_url=False, include_input=False, include_context=False)
        faults = [_sentence(error["loc"], error["msg"]) for error in errors[:_MOST_FAULTS]]
        more = f"; and {len(errors) - _MOST_FAULTS} more" if len(errors) > _MOST_FAULTS else ""
        raise InputError(f"{name}: is not {description}: {'; '.join(faults)}{more}", hint=hint) from cause


def _read(path: Path, limit: int) -> bytes:
    """Return the bytes of a regular file. It is opened without waiting: opening a FIFO would wait for a writer.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is not a regular file, or is larger than ``limit``.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("is not a regular file")
    with os.fdopen(descriptor, "rb") as source:
        data = source.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"is larger than the {limit} bytes that are read of such a file")
    return data


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object, in which each name must occur once."""
    value = dict(pairs)
    if len(value) < len(pairs):
        times = Counter(name for name, _ in pairs)
        twice = next(name for name in value if times[name] > 1)
        raise ValueError(f"the name {_shown(twice)} occurs twice in an object")
    return value


def _integer(digits: str) -> int:
    """Return an integer, which must not have more digits than 64 bits need."""
    if len(digits.lstrip("-")) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _float(text: str) -> float:
    """Return a number, which must be finite."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number that is too large")
    return value


def _constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _check(value: object, errors: str) -> None:
    """Check every part of ``value``, without recursion.

    Args:
        errors: how texts are encoded, as for :meth:`str.encode`.

    Raises:
        ValueError: the value is nested too deeply, or has a text that cannot be written as UTF-8.
    """
    containers: list[dict[str, object] | list[object]] = [[value]]
    for _ in range(DEEPEST + 1):
        parts = [part for container in containers for part in _parts(container)]
        for part in parts:
            if isinstance(part, str) and not part.isascii():
                _check_text(part, errors)
        containers = [part for part in parts if isinstance(part, (dict, list))]
        if not containers:
            return
    raise ValueError(f"nested deeper than {DEEPEST} levels")


def _parts(container: dict[str, object] | list[object]) -> Iterator[object]:
    """Yield the names and values of an object, or the items of a list."""
    yield from container
    if isinstance(container, dict):
        yield from container.values()


def _check_text(text: str, errors: str) -> None:
    try:
        text.encode(errors=errors)
    except UnicodeEncodeError as cause:
        raise ValueError(f"half of a surrogate pair in {_shown(text)}") from cause


def _sentence(place: tuple[int | str, ...], message: str) -> str:
    """Return the place of a fault in the file, such as ``architectures.amd64.size``, and what is wrong there."""
    location = _shown(".".join(map(str, place)))[1:-1] or "the whole"
    return f"{location}: {message.removeprefix('Value error, ')}"


def _shown(text: str) -> str:
    """Return the beginning of an untrusted text, in quotes and in ASCII."""
    return ascii(text[:_MOST_SHOWN])
