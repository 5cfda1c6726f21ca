"""The reference of recipes: complete, made from the model, and with examples that are valid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from imgkit.recipe import FileSpec, Recipe, faults, load
from imgkit.recipe.record import RecipeRecord, records_in
from script import recipereference
from tests.commandline import ROOT
from tests.test_recipe import GOOD, write

RECORDS: tuple[type[BaseModel], ...] = (Recipe, *recipereference.RECORDS)


def least(record: type[BaseModel]) -> dict[str, Any]:
    """Return the fields that a record must have, with their first examples."""
    given: dict[str, Any] = {"content": ""} if record is FileSpec else {}
    for name, field in record.model_fields.items():
        if field.is_required() and field.examples:
            given[name] = field.examples[0]
    return given


def records_below(record: type[RecipeRecord]) -> Iterator[type[RecipeRecord]]:
    """Yield the records of which a record consists, and those of which these consist."""
    for field in record.model_fields.values():
        for part in records_in(field.annotation):
            yield part
            yield from records_below(part)


@pytest.mark.slow
def test_the_page_is_up_to_date() -> None:
    assert recipereference.PAGE.read_text() == recipereference.page(), "python -m script.reference makes it anew"


def test_the_page_has_every_record() -> None:
    assert set(records_below(Recipe)) == recipereference.RECORDS.keys()


@pytest.mark.parametrize(("record", "name"), [(record, name) for record in RECORDS for name in record.model_fields])
def test_every_field_has_a_meaning_and_a_valid_example(record: type[BaseModel], name: str) -> None:
    assert recipereference.meanings(record).get(name, "").endswith((".", '."')), "a docstring of whole sentences"
    examples = record.model_fields[name].examples
    assert examples
    for example in examples:
        given = {**least(record), name: example}
        if name == "source":
            del given["content"]
        made = record.model_validate(given)
        assert not record.model_fields[name].is_required() or getattr(made, name) is not None
        default = record.model_fields[name].get_default(call_default_factory=True)
        assert record.model_fields[name].is_required() or getattr(made, name) != default, "an example shows something"


def test_an_example_that_is_wrong_would_be_noticed() -> None:
    with pytest.raises(ValidationError):
        Recipe.model_validate({**least(Recipe), "size": "4 gigs"})


@pytest.mark.slow
def test_the_examples_of_the_page_are_python() -> None:
    page = recipereference.page()
    extends, *blocks = page.split("```python\n")[1:]
    assert extends.startswith("extends = ")
    assert len(blocks) == len(Recipe.model_fields)
    for (name, field), block in zip(Recipe.model_fields.items(), blocks, strict=True):
        code = block.partition("\n```")[0]
        assert max(map(len, code.split("\n"))) <= 120
        assignments = [code] if code.count("\n }") or code.endswith("\n}") else code.split("\n")
        for line, example in zip(assignments, field.examples or (), strict=True):
            names: dict[str, Any] = {}
            exec(line, names)
            assert names[name] == example


def test_long_examples_are_divided_as_ruff_does() -> None:
    value = {"a" * 60: ["b" * 60, {"c": 1}], "d": 2}
    assert recipereference._fitting("x = ", value, "").splitlines() == [
        "x = {",
        f'    "{"a" * 60}": [',
        f'        "{"b" * 60}",',
        '        {"c": 1},',
        "    ],",
        '    "d": 2,',
        "}",
    ]
    assert recipereference._fitting("x = ", {"a": 1}, ",") == 'x = {"a": 1},'
    assert recipereference._fitting("x = ", "y" * 200, "") == f'x = "{"y" * 200}"'


@pytest.mark.slow
def test_links_of_the_page_lead_somewhere() -> None:
    page = recipereference.page()
    titles = {recipereference._anchor(line[3:]) for line in page.splitlines() if line.startswith("## ")}
    targets = {part.partition(")")[0] for part in page.split("](#")[1:]}
    assert targets
    assert targets <= titles


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (str | None, "text"),
        (str | int, "text or number"),
        (tuple[int, ...], "list of number"),
        (Mapping[str, tuple[str, ...]], "mapping of text to list of text"),
    ],
)
def test_types_in_words(annotation: Any, words: str) -> None:
    assert recipereference.type_of(annotation) == words


def test_messages_name_the_page(tmp_path: Any) -> None:
    assert ROOT / faults.REFERENCE == recipereference.PAGE
    with pytest.raises(Exception, match=r"zzz: no such field \(docs/reference/recipe\.md has all fields\)"):
        load(write(tmp_path, GOOD + "zzz = 1\n"))
