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


@pytest.mark.slow
@given(st.dictionaries(NAMES, TEXTS, max_size=5), st.dictionaries(NAMES, TEXTS, max_size=5))
def test_what_is_put_in_comes_out(env: dict[str, str], secrets: dict[str, str]) -> None:
    made = configdrive.make(env, {name: text.encode() for name, text in secrets.items()})
    if not env and not secrets:
        assert made == b""
        return
    assert content(made) == (env, {name: text.encode() for name, text in secrets.items()})


def test_the_settings_of_a_container_machine() -> None:
    """They are a file of their own; without variables there is no env.json."""
    iso = pycdlib.PyCdlib()
    iso.open_fp(io.BytesIO(configdrive.make(machine="mode=once\nx='\udcff'\n")))
    sink = io.BytesIO()
    iso.get_file_from_iso_fp(sink, rr_path="/machine/run")
    assert sink.getvalue() == b"mode=once\nx='\xff'\n"
    names = {child.rock_ridge.name() for child in iso.list_children(rr_path="/") if child.rock_ridge}
    assert b"machine" in names
    assert b"env.json" not in names
    iso.close()
    assert content(configdrive.make({"A": "b"}, machine="")) == ({"A": "b"}, {})


NOT_A_NAME = "is not the name of an environment variable"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("1A", b"x", f"'1A' {NOT_A_NAME}"),
        ("A=B", b"x", f"'A=B' {NOT_A_NAME}"),
        ("A\n", b"x", f"'A\\n' {NOT_A_NAME}"),
        ("", b"x", f"'' {NOT_A_NAME}"),
        ("A", b"a\0b", "A: its value has a zero byte or, with the name, more than 130816 bytes"),
        ("A", b"x" * configdrive.MAX_VALUE, "A: its value has a zero byte or, with the name, more than 130816 bytes"),
        ("A", b"\xff", "A: its value is not UTF-8"),
    ],
)
def test_what_cannot_be_an_environment_variable_is_refused(name: str, value: bytes, message: str) -> None:
    for arguments in ({"secrets": {name: value}}, {"env": {name: value.decode(errors="surrogateescape")}}):
        with pytest.raises(UsageError) as caught:
            configdrive.make(**arguments)
        assert caught.value.message == message
        assert (caught.value.hint is not None) == ("UTF-8" in message)


def test_the_longest_value() -> None:
    value = "x" * (configdrive.MAX_VALUE - 1)
    assert content(configdrive.make({"A": value}))[0] == {"A": value}


def test_without_secrets_there_is_no_folder_for_them() -> None:
    image = configdrive.make({"A": "1"})
    assert b"secrets" not in image
    assert b"secrets" in configdrive.make(secrets={"A": b"1"})
    assert len(image) % 2048 == 0, "whole sectors"


@pytest.mark.parametrize(("text", "valid"), [("A_1", True), ("_", True), ("a b", False), ("A-B", False)])
def test_names(text: str, valid: bool) -> None:
    assert configdrive.is_name(text) == valid
