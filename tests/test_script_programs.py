"""The programs that package scripts may call: where they are found, and their status."""

from __future__ import annotations

import pytest

from imgkit.rootfs.scripts.effects import Unsupported
from tests.test_scripts import run, said


def test_programs_are_found_by_their_folders() -> None:
    assert said("/bin/echo a; /usr/sbin/addgroup x; busybox echo b; /bin/busybox echo c; /usr/bin/busybox true") == [
        "a", "b", "c",
    ]  # fmt: skip
    for name in ("/usr/local/bin/echo", "./echo", "/opt/busybox", "busybox"):
        with pytest.raises(Unsupported, match=f"the command {name}"):
            run(f"{name} x" if name != "busybox" else name)
