"""The target of a fuzzer: a parser, and the errors that it may raise."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fixtures import apkbuild

SECONDS = 20.0
"""Processor time that one input may take, on a slow machine."""
ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / "fuzz" / "corpus"
MAX_INSTALLED = 1 << 20


@dataclass(frozen=True)
class Target:
    """One parser.

    Attributes:
        run: reads an input; its result is ignored.
        allowed: the errors that mean that the input is not valid.
        seeds: valid inputs.
        words: texts that mean something to the parser, which the fuzzer inserts.
    """

    run: Callable[[bytes], object]
    allowed: tuple[type[Exception], ...]
    seeds: Callable[[], Iterable[bytes]]
    words: tuple[bytes, ...] = field(default=())

    def check(self, data: bytes) -> None:
        """Run on one input. Any exception that this raises is a fault."""
        try:
            self.run(data)
        except self.allowed:
            return


@contextmanager
def scratch() -> Iterator[Path]:
    """Yield a folder for a parser that reads files; it is removed after the block."""
    with tempfile.TemporaryDirectory(prefix="imgkit-fuzz-") as name:
        yield Path(name)


def corpus(name: str) -> Iterator[tuple[str, bytes]]:
    """Yield the kept inputs of a target by file name: ``.txt`` is the input itself, ``.b64`` is Base64 of it."""
    for path in sorted((CORPUS / name).glob("*")):
        text = path.read_bytes()
        yield path.name, base64.b64decode(text) if path.suffix == ".b64" else text


JSON_WORDS = (
    b"{",
    b"}",
    b"[",
    b"]",
    b"null",
    b"true",
    b"1e999",
    b"-1",
    b"NaN",
    b'"\\ud800"',
    b"9" * 5000,
    b"[" * 2000,
)

ENTRIES = (
    apkbuild.Entry(name="etc", kind="directory", mode=0o755),
    apkbuild.Entry(name="etc/motd", data=b"hello\n"),
    apkbuild.Entry(name="etc/link", kind="symlink", target="motd"),
    apkbuild.Entry(name="etc/same", kind="hardlink", target="etc/motd"),
    apkbuild.Entry(name="etc/xattr", data=b"x", pax={"SCHILY.xattr.user.a": "b"}),
    apkbuild.Entry(name="usr/" + "long" * 40, kind="directory"),
)


def tar(entries: Iterable[apkbuild.Entry] = ENTRIES) -> bytes:
    """Return a valid tar archive."""
    return apkbuild.tar_stream(entries, end=True)
