"""The guest's reader of cloud-configs (cloudconfig.js in the overlay) against PyYAML, which cloud-init uses.

Whatever PyYAML writes for the keys that the guest uses is read as PyYAML reads it, or refused; see decision 0010.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.conftest import need_program

READER = Path(__file__).parents[1] / "overlay/usr/local/lib/imgkit/cloudconfig.js"
FILE = ("path", "content", "encoding", "permissions", "owner")
SHAPE = {"hostname": "text", "ssh_authorized_keys": ["text"], "write_files": [dict.fromkeys(FILE, "text")]}
SERVER = f"""
const {{ ConfigError, readConfig }} = require({json.dumps(str(READER))});
require('node:readline').createInterface({{ input: process.stdin }}).on('line', (line) => {{
  let answer;
  try {{
    answer = readConfig(JSON.parse(line), {json.dumps(SHAPE)}).values;
  }} catch (error) {{
    if (!(error instanceof ConfigError)) throw error;
    answer = error.message;
  }}
  process.stdout.write(`${{JSON.stringify(answer)}}\\n`);
}});
"""

texts = (
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs"], exclude_characters="\x85\u2028\u2029\ufeff"))
    | st.lists(
        st.sampled_from([*"ab \n\t#:'\"\\-|>[{&!%~", ": ", "- ", " #", "\n\n", "  ", "word " * 20, "x" * 90])
    ).map("".join)
    | st.sampled_from(["null", "~", "true", "0644", "12", "1.5", "2026-01-01", "=", "<<", "---", "...", "- x", "a: b"])
)


class Reader:
    """A Node process that reads one text a line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def __call__(self, text: str) -> object:
        """Return the values of ``text``, or the reason for which it is refused."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(text) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


@contextmanager
def started() -> Iterator[Reader]:
    argv = [need_program("node"), "-e", SERVER]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Reader(process)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def read() -> Iterator[Reader]:
    with started() as reader:
        yield reader


configs = st.fixed_dictionaries(
    {"timezone": texts},
    optional={
        "hostname": texts,
        "packages": st.lists(texts) | st.dictionaries(texts, texts, max_size=2),
        "ssh_authorized_keys": st.lists(texts, min_size=1, max_size=3),
        "write_files": st.lists(
            st.dictionaries(st.sampled_from([*FILE, "append"]), texts, min_size=1), min_size=1, max_size=3
        ),
    },
)


def wanted(config: dict[str, object]) -> dict[str, object]:
    """Return the part of a configuration that the shape asks for."""
    values = {key: value for key, value in config.items() if key in SHAPE}
    if isinstance(files := values.get("write_files"), list):
        values["write_files"] = [{key: entry[key] for key in entry if key in FILE} for entry in files]
    return values


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    config=configs,
    style=st.sampled_from([None, None, '"', "'", "|", ">"]),
    width=st.sampled_from([20, 80, 1000]),
    indent=st.sampled_from([2, 4]),
    unicode=st.booleans(),
    marker=st.booleans(),
)
def test_what_pyyaml_writes_is_read_as_pyyaml_reads_it(
    read: Reader,
    config: dict[str, object],
    style: str | None,
    width: int,
    indent: int,
    unicode: bool,
    marker: bool,
) -> None:
    """Only folded blocks (``>``), which may have indented lines, may be refused."""
    text = yaml.safe_dump(
        config,
        default_style=style,
        default_flow_style=False,
        width=width,
        indent=indent,
        allow_unicode=unicode,
        explicit_start=marker,
        sort_keys=False,
    )
    assume(yaml.safe_load(text) == config)  # PyYAML breaks lines of folded text where it must not
    answer = read(text)
    if style == ">" and isinstance(answer, str):
        assert answer.endswith("indented lines in folded text are not understood")
    else:
        assert answer == wanted(config)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(config=configs, indent=st.sampled_from([None, 2]))
def test_json_is_read_as_it_is(read: Reader, config: dict[str, object], indent: int | None) -> None:
    assert read("#cloud-config\n" + json.dumps(config, indent=indent)) == wanted(config)


def test_the_comparison_can_fail(read: Reader) -> None:
    assert read("hostname: a\n") != {"hostname": "b"}
    assert read("hostname: [a]\n") == ("line 1: collections, anchors, aliases and tags are not understood here"), (
        "YAML that the reader leaves out is refused, not guessed"
    )
