"""Steps and bars."""

from __future__ import annotations

import pytest

from imgkit.host.progress import Steps, bar


def test_steps_are_timed_and_listed_in_order_of_their_start() -> None:
    steps = Steps()
    with steps.step("outer"), steps.step("inner"):
        pass
    steps.record("elsewhere", 0.0, 2.25, "detail")
    table = steps.table().splitlines()
    assert [line.split()[0] for line in table] == ["elsewhere", "outer", "inner", "total"]
    assert "2.2 s   detail" in table[0]


def test_a_step_that_fails_is_in_the_table_too() -> None:
    steps = Steps()
    with pytest.raises(ZeroDivisionError), steps.step("broken"):
        1 / 0  # noqa: B018
    assert "broken" in steps.table()


def test_no_bar_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with bar(10, "work") as progress:
        progress.update(10)
    assert capsys.readouterr() == ("", "")
