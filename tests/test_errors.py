"""The errors of imgkit: their exit statuses, and what they carry."""

from __future__ import annotations

import pytest

from imgkit.errors import GuestError, HostError, ImgkitError, InputError, RecipeError, UsageError


@pytest.mark.parametrize(
    ("kind", "status"),
    [(UsageError, 2), (RecipeError, 3), (InputError, 4), (HostError, 5), (GuestError, 6), (ImgkitError, 70)],
)
def test_every_error_has_a_message_a_hint_and_a_status(kind: type[ImgkitError], status: int) -> None:
    error = kind("x\x1b: is wrong\nsee", hint="do this")
    assert (error.message, error.hint, error.exit_status) == ("x\x1b: is wrong\nsee", "do this", status)
    assert str(error) == "x\\x1b: is wrong\nsee"
    assert error.args == ("x\x1b: is wrong\nsee",)
    assert kind("y").hint is None


def test_a_recipe_has_several_problems() -> None:
    assert RecipeError("x", problems=["a", "b"]).problems == ("a", "b")
    assert RecipeError("x", hint="h").problems == ()
    assert RecipeError("x", hint="h").hint == "h"
