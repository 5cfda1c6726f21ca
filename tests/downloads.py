"""Small downloads for tests."""

from __future__ import annotations

import tempfile
from pathlib import Path

from imgkit.fetch.checks import Expected
from imgkit.fetch.http import Http


def get(client: Http, url: str, expected: Expected) -> bytes:
    """Return the content at ``url``, downloaded by ``client`` into a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "file")
        client.download(url, target, expected)
        assert [path.name for path in Path(folder).iterdir()] == ["file"]
        return target.read_bytes()
