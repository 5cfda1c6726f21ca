"""Make the reference page of recipes from their model: every field with its type, default, meaning and an example.

Types, defaults and examples are those of the pydantic models, meanings are the docstrings of the fields::

    page()      # → the text of docs/reference/recipe.md
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from imgkit.recipe import (
    AgentSpec,
    Architecture,
    ContainerSpec,
    FileSpec,
    OverlaySpec,
    PartitionSpec,
    Recipe,
    RepositorySpec,
    UserSpec,
)

PAGE = Path(__file__).parents[1] / "docs/reference/recipe.md"
RECORDS: Mapping[type[BaseModel], str] = {
    UserSpec: "Entries of users",
    OverlaySpec: "Overlays as records",
    FileSpec: "Entries of files",
    RepositorySpec: "Further repositories",
    ContainerSpec: "The record container",
    AgentSpec: "The record agent",
    Architecture: "Entries of architectures",
    PartitionSpec: "Entries of partitions",
}
"""The records in a recipe → the heading of their section."""
HEAD = """\
# Fields of a recipe

Made by `python -m script.reference` from the model that recipes are checked against.

A recipe is a Python module. Its public names are the fields below; a name that is none of them is refused. Names that
begin with an underscore, modules, functions and classes are the recipe's own business. Paths are relative to the
recipe's file. A field can be replaced for one build by `--set NAME=VALUE`, where lists and mappings are written in
YAML."""
EXTENDS = """\
## extends

Type: text or path; none by default

The recipe to build on: `imgkit:NAME` for one that comes with imgkit, or the path of a file. Its fields are combined
with those of this one: [packages are added, services merged, others replaced](../howto/extend-a-recipe.md). `--set`
does not apply to it.

```python
extends = "imgkit:alpine"
extends = "../common/image.py"
```"""
"""The one field that the model does not have, since it is gone once a recipe is loaded."""
_WIDTH = 120  # of a line of code in this repository
_WORDS = {str: "text", int: "number", bool: "`True` or `False`", Path: "path", bytes: "bytes"}


def page() -> str:
    """Return the Markdown page of all fields."""
    sections = [HEAD, EXTENDS, *(_section(name, field) for name, field in Recipe.model_fields.items())]
    sections += [_record(record, title) for record, title in RECORDS.items()]
    return "\n\n".join(sections) + "\n"


def meanings(record: type[BaseModel]) -> dict[str, str]:
    """Return the docstrings of the fields of a record, in Markdown and on one line each."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(record))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field, text in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            found[field.target.id] = _markdown(ast.literal_eval(text.value))
    return found


def type_of(annotation: Any) -> str:
    """Return a type in words: ``list of text``, ``"disk"`` or ``"oci"``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in RECORDS:
        return f"[record](#{_anchor(RECORDS[annotation])})"
    if origin is Annotated:
        overlay = arguments[0] is OverlaySpec
        return ("path or " if overlay else "") + type_of(arguments[0])
    if origin is Literal:
        return _alternatives([f'`"{value}"`' for value in arguments])
    if origin in (Union, UnionType):
        return _alternatives([type_of(part) for part in arguments if part is not type(None)])
    if origin is tuple:
        return f"list of {type_of(arguments[0])}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"mapping of {type_of(arguments[0])} to {type_of(arguments[1])}"
    return _WORDS[annotation]


def literal(value: object) -> str:
    """Return a value as a recipe has it."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{literal(name)}: {literal(part)}" for name, part in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(literal, value)) + "]"
    return repr(value)


def _fitting(start: str, value: object, end: str) -> str:
    """Return a line with a value, or several lines as ruff divides those that are too long: it formats this page."""
    line = f"{start}{literal(value)}{end}"
    if len(line) <= _WIDTH or not isinstance(value, (Mapping, list, tuple)):
        return line
    inner = " " * (len(start) - len(start.lstrip()) + 4)
    if isinstance(value, Mapping):
        lines = [_fitting(f"{inner}{literal(name)}: ", part, ",") for name, part in value.items()]
        return "\n".join([f"{start}{{", *lines, f"{inner[4:]}}}{end}"])
    lines = [_fitting(inner, part, ",") for part in value]
    return "\n".join([f"{start}[", *lines, f"{inner[4:]}]{end}"])


def _section(name: str, field: FieldInfo) -> str:
    """Return the section of a field of recipes."""
    examples = "\n".join(_fitting(f"{name} = ", example, "") for example in field.examples or ())
    return "\n\n".join([f"## {name}", f"Type: {_facts(field)}", meanings(Recipe)[name], f"```python\n{examples}\n```"])


def _record(record: type[BaseModel], title: str) -> str:
    """Return the section of a record, with a table of its fields."""
    texts = meanings(record)
    rows = [
        f"| `{name}` | {_cell(_facts(field))} | {_cell(texts[name])} | {_examples(field)} |"
        for name, field in record.model_fields.items()
    ]
    head = "| field | type and default | meaning | example |\n|---|---|---|---|"
    return "\n\n".join([f"## {title}", _markdown(inspect.getdoc(record) or ""), "\n".join([head, *rows])])


def _facts(field: FieldInfo) -> str:
    """Return type and default of a field."""
    words = type_of(field.annotation)
    if field.is_required():
        return f"{words}; must be given"
    default = field.get_default(call_default_factory=True)
    if default is None or isinstance(default, BaseModel):
        return f"{words}; none by default"
    return f"{words}; default: `{literal(default)}`"


def _examples(field: FieldInfo) -> str:
    return ", ".join(f"`{_cell(literal(example))}`" for example in field.examples or ())


def _alternatives(words: list[str]) -> str:
    unique = list(dict.fromkeys(words))
    return unique[0] if len(unique) == 1 else f"{', '.join(unique[:-1])} or {unique[-1]}"


def _markdown(text: str) -> str:
    """Return a docstring in Markdown, each paragraph on one line."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(re.sub(r"\s+", " ", paragraph).replace("``", "`") for paragraph in paragraphs)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "\\n")


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")
