"""Put a request into the share before the machine starts, so that it runs at the earliest possible moment."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.images import ROOT

SETTINGS = ROOT / "overlay/etc/sysctl.d/imgkit.conf"
ALPINES = {"kernel.unprivileged_bpf_disabled": "1", "net.ipv4.tcp_syncookies": "1"}
"""Two of the package alpine-baselayout's own, which no file of the overlay repeats."""

_ID = "early"
_LOOK = """
cd /proc/sys
for name in "$@"; do echo "setting $name $(cat "$name")"; done
ln /etc/init.d/networking /workspace/networking 2>/dev/null; echo "link $?"
echo "runlevel $(cat /run/openrc/softlevel)"
"""


def settings() -> dict[str, str]:
    """Return the required values of the kernel's settings, by name: those of the overlay, and some of Alpine's."""
    pairs = re.findall(r"^([a-z0-9_.]+) = (\S+)$", SETTINGS.read_text(), re.MULTILINE)
    assert {"fs.protected_hardlinks", "fs.protected_symlinks", "kernel.sysrq"} <= {name for name, _ in pairs}
    return {**dict(pairs), **ALPINES}


class Early:
    """A request in ``ipc``, the folder that is shared as ``ipc``. It does not wait for the system to come up."""

    def __init__(self, ipc: Path, command: list[str]) -> None:
        self._stream = ipc / "streams" / f"{_ID}.log"
        for name in ("requests", "streams", "responses"):
            (ipc / name).mkdir(parents=True)
        body = {"command": command, "awaitSystem": False, "autoApprove": True}
        (ipc / "requests" / f"{_ID}.json").write_text(json.dumps(body))

    def output(self, seconds: float = 0) -> str:
        """Return the command's standard output when it has ended, for which it has ``seconds``."""
        deadline = time.monotonic() + seconds
        while not (result := [event for event in self._events() if event["type"] == "result"]):
            assert time.monotonic() < deadline, f"the earliest request has no result: {self._events()}"
            time.sleep(0.1)
        chunks = [event for event in self._events() if event["type"] == "output" and event["stream"] == "stdout"]
        text = "".join(_text(event) for event in chunks)
        assert result[0]["exitCode"] == 0, (result, text)
        return text

    def _events(self) -> list[Mapping[str, Any]]:
        lines = self._stream.read_text().splitlines() if self._stream.exists() else []
        return [json.loads(line)["event"] for line in lines if line.endswith("}")]


class EarlyLook(Early):
    """An early request that reads the kernel's settings, and tries the link that an attack would begin with.

    Then it runs ``script``.
    """

    def __init__(self, ipc: Path, script: str = "") -> None:
        names = [name.replace(".", "/") for name in settings()]
        super().__init__(ipc, ["/bin/sh", "-c", _LOOK + script, "look", *names])

    def check(self, seconds: float = 0) -> list[str]:
        """Check that the settings were in force. Return what else was printed, beginning with the runlevel then."""
        lines = self.output(seconds).splitlines()
        values = dict(line.split(" ")[1:] for line in lines if line.startswith("setting "))
        assert {name.replace("/", "."): value for name, value in values.items()} == settings()
        assert "link 1" in lines, "no second name for a file of root's"
        return lines[len(values) + 1 :]


def _text(event: Mapping[str, Any]) -> str:
    if event.get("encoding") == "base64":
        return base64.b64decode(event["data"]).decode()
    return str(event["data"])
