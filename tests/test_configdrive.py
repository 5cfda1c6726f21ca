"""The config drive: an ISO 9660 image that holds what it was given, and what it refuses."""

from __future__ import annotations

import io
import json

import pycdlib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkit.errors import UsageError
from imgkit.vm import configdrive

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,40}", fullmatch=True)
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=200)


def content(data: bytes) -> tuple[dict[str, str], dict[str, bytes]]:
    """env.json and the secrets, as another program finds them through Rock Ridge."""
    iso = pycdlib.PyCdlib()
    iso.open_fp(io.BytesIO(data))
    assert iso.pvd.volume_identifier.rstrip() == b"IMGKIT"

    def read(path: str) -> bytes:
        sink = io.BytesIO()
        iso.get_file_from_iso_fp(sink, rr_path=path)
        return sink.getvalue()

    names = {child.rock_ridge.name().decode() for child in iso.list_children(rr_path="/") if child.rock_ridge}
    secrets = {}
    if "secrets" in names:
        for child in iso.list_children(rr_path="/secrets"):
            name = child.rock_ridge.name().decode() if child.rock_ridge else ""
            if name not in ("", ".", ".."):
                secrets[name] = read(f"/secrets/{name}")
    env = json.loads(read("/env.json"))
    iso.close()
    return env, secrets


@given(st.dictionaries(NAMES, TEXTS, max_size=5), st.dictionaries(NAMES, TEXTS, max_size=5))
def test_what_is_put_in_comes_out(env: dict[str, str], secrets: dict[str, str]) -> None:
    made = configdrive.make(env, {name: text.encode() for name, text in secrets.items()})
    if not env and not secrets:
        assert made == b""
        return
    assert content(made) == (env, {name: text.encode() for name, text in secrets.items()})


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("1A", b"x", "not the name of an environment variable"),
        ("A=B", b"x", "not the name of an environment variable"),
        ("A\n", b"x", "not the name of an environment variable"),
        ("A", b"a\0b", "zero byte"),
        ("A", b"x" * configdrive.MAX_VALUE, "more than"),
        ("A", b"\xff", "not UTF-8"),
    ],
)
def test_what_cannot_be_an_environment_variable_is_refused(name: str, value: bytes, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        configdrive.make(secrets={name: value})
    with pytest.raises(UsageError, match=said):
        configdrive.make({name: value.decode(errors="surrogateescape")})
