"""Scripts of the overlay, run on this host with programs that only note how they were called."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "overlay"
NOTE = '#!/bin/sh\necho "${0##*/} $*" >>"$NOTES"\n'


@pytest.mark.parametrize("status", [0, 1])
def test_what_agentd_needs_is_fetched_and_nobody_waits(status: int, tmp_path: Path) -> None:
    """The program is read also where there are no drivers; init goes on at once."""
    notes = tmp_path / "notes"
    endings = {**dict.fromkeys(("hostname", "ip", "modprobe"), f"exit {status}"), "cat": "exec sleep 60"}
    for name, ending in endings.items():
        program = tmp_path / name
        program.write_text(NOTE + ending)
        program.chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "NOTES": str(notes)}
    script = ROOT / "usr/local/lib/imgkit/ahead"
    child = subprocess.Popen(
        [script], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        assert child.communicate(timeout=30)[0] == b"", "nothing is said, and no pipe is kept open"
        assert child.returncode == 0
        deadline = time.monotonic() + 30
        while not notes.exists() or len(notes.read_text().splitlines()) < len(endings):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        *system, drivers_line, program_line = notes.read_text().splitlines()
    finally:
        os.killpg(child.pid, 9)
    assert system == ["hostname -F /etc/hostname", "ip link set lo up"]
    assert program_line == "cat /usr/bin/node"
    drivers = drivers_line.removeprefix("modprobe -a -q ").split()
    listed = (ROOT / "etc/modules-load.d/imgkit.conf").read_text().splitlines()
    assert drivers
    assert set(drivers) <= set(listed), "what may fail here is loaded for certain there"
