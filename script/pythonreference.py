"""Make the reference page of the Python interface, docs/reference/python.md, from its docstrings.

A test compares the page with what this module makes, and runs the first example.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import imgkit

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "python.md"
HEAD = """\
# Python

Made by `python -m script.reference` from the docstrings.

Everything is imported from `imgkit` itself. These names stay; the modules below `imgkit` may change in any version,
except `imgkit.vm`, which has more about machines (requests, quotas, failures), and `imgkit.testing`, the pytest plugin.
`import imgkit` takes a few milliseconds, since every name is imported when it is first used. mypy knows all types
(`py.typed`). The commands call the same functions. Results are values that do not change.
"""
EXAMPLE = """\
import imgkit

recipe = imgkit.load_recipe("recipes/core.py", size="8G")
print(recipe.name, recipe.size, sorted(recipe.architectures))
try:
    imgkit.inspect("no-such-image.qcow2")
except imgkit.ImgkitError as error:
    print(f"{error} (exit status {error.exit_status})")
"""
OUTPUT = """\
linux 8G ['amd64', 'arm64']
no-such-image.qcow2: no such image (exit status 4)
"""
BUILD_EXAMPLE = """\
import imgkit

recipe = imgkit.load_recipe("recipes/core.py")
disk = imgkit.build(recipe, "amd64", out="out")
assert imgkit.verify(disk.image).ok
with imgkit.VM.boot(disk.image, shares={"work": "."}, network="none") as vm:
    print(vm.run(["node", "--version"]).text)
"""
_ATTRIBUTES = "\nAttributes:\n"
_SECTION = re.compile(r"^(Args|Returns|Raises|Attributes):$")
_ENTRY = re.compile(r"^    ([*\w][\w, *]*): (.*)$")


def page() -> str:
    """Return the page."""
    functions = [name for name in imgkit.__all__ if inspect.isfunction(getattr(imgkit, name))]
    classes = [name for name in imgkit.__all__ if inspect.isclass(getattr(imgkit, name))]
    parts = [HEAD, _code(EXAMPLE), "prints", _code(OUTPUT), "Building and booting need what `imgkit doctor` checks:"]
    parts += [_code(BUILD_EXAMPLE), "## Functions"]
    parts += [_described(name) for name in sorted(functions)]
    parts += ["## Classes", *[_described(name) for name in sorted(classes)]]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _code(text: str) -> str:
    return "\n".join(f"    {line}".rstrip() for line in text.splitlines())


def _described(name: str) -> str:
    value = getattr(imgkit, name)
    lines = [f"### imgkit.{name}"]
    if inspect.isfunction(value):
        lines.append(_code(_signature(name, value)))
    text = _documentation(value)
    lines.append("\n".join(_markdown(text)))
    if dataclasses.is_dataclass(value) and "Attributes:" not in text:
        lines.append("Fields: " + ", ".join(f"`{field.name}`" for field in dataclasses.fields(value)) + ".")
    return "\n\n".join(lines)


def _documentation(value: type | Callable[..., object]) -> str:
    """Return a docstring. That of a class includes the attributes that it has from classes that are not on the page."""
    text = inspect.cleandoc(value.__doc__ or "")
    for base in value.__mro__[1:] if isinstance(value, type) else ():
        if base.__module__.startswith("imgkit.") and base.__name__ not in imgkit.__all__:
            inherited = inspect.cleandoc(base.__doc__ or "").partition(_ATTRIBUTES)[2]
            summary, _, own = text.partition(_ATTRIBUTES)
            text = "\n".join([summary.rstrip(), _ATTRIBUTES + inherited, own]) if inherited else text
    return text.rstrip()


def _signature(name: str, function: Callable[..., object]) -> str:
    """Return the signature with one parameter on a line."""
    signature = inspect.signature(function)
    lines = []
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in lines:
            lines.append("*")
        stars = "**" if parameter.kind is parameter.VAR_KEYWORD else ""
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        lines.append(f"{stars}{parameter.name}: {parameter.annotation}{default}")
    return f"{name}(\n    " + ",\n    ".join(lines) + f",\n) -> {signature.return_annotation}"


def _markdown(text: str) -> Iterator[str]:
    """Yield the lines of a docstring as Markdown: sections become lists, and double backquotes single ones."""
    for line in re.sub(r":\w+:`~?([^`]*)`", r"`\1`", text.replace("``", "`")).splitlines():
        if _SECTION.match(line):
            yield from (f"**{line[:-1]}**", "")
        elif entry := _ENTRY.match(line):
            yield f"* `{entry[1].replace(', ', '`, `')}`: {entry[2]}"
        elif line.startswith("        "):
            yield f"  {line.strip()}"
        else:
            yield line.strip() if line.startswith("    ") else line
