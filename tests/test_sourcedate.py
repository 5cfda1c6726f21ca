"""The time of SOURCE_DATE_EPOCH."""

from __future__ import annotations

import pytest

from imgkit.errors import UsageError
from imgkit.host.sourcedate import source_date


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("1700000000", 1_700_000_000), ("007", 7), ("9" * 11, 99_999_999_999)]
)
def test_a_number_of_seconds(text: str, seconds: int) -> None:
    assert source_date({"SOURCE_DATE_EPOCH": text, "OTHER": "x"}) == seconds


@pytest.mark.parametrize("environ", [{}, {"SOURCE_DATE_EPOCH": ""}, {"OTHER": "5"}])
def test_it_need_not_be_set(environ: dict[str, str]) -> None:
    assert source_date(environ) is None


@pytest.mark.parametrize("text", ["-1", "1.5", "now", " 5", "5\n", "9" * 12, "\u0665", "\u00b2"])
def test_what_is_no_number_of_seconds(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        source_date({"SOURCE_DATE_EPOCH": text})
    assert caught.value.message == f"SOURCE_DATE_EPOCH: {text!r} is not a number of seconds since 1970"
