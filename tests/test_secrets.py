"""Secrets of one boot reach the agent they are meant for, but no disk, log, stream or other process."""

from __future__ import annotations

import base64
import io
import mmap
import re
import secrets
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pycdlib
import pytest

from imgkit.vm import configdrive
from imgkit.vm.agent.protocol import Output
from tests import rootport
from tests.conftest import need_program
from tests.images import Image
from tests.rootport import RootedVM
from tests.vmspecs import writable

pytestmark = pytest.mark.vm

CONTROL = ("SESSION_TOKEN", "CONTROL_PLANE_URL", "SESSION_ID")
FOR_THE_AGENT = ("API_KEY", "FROM_ENV")
TIMEOUT = 300.0


def token() -> str:
    return secrets.token_hex(24)


@dataclass
class Seen:
    """What was found while the agent ran, and where everything is."""

    values: dict[str, str]
    marker: str
    top: Path
    processes: dict[str, bytes] = field(default_factory=dict)
    agents: dict[str, bytes] = field(default_factory=dict)
    places: dict[str, bytes] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    config_modes: list[int] = field(default_factory=list)

    def of(self, *names: str) -> list[bytes]:
        """Return the values of these names as they could show up: plain, in base64, in JSON (the same here)."""
        plain = [self.values[name].encode() for name in names]
        return plain + [base64.b64encode(value) for value in plain]

    def traces(self, where: dict[str, bytes], *names: str) -> list[str]:
        """Where a value shows up."""
        return [place for place, data in where.items() if any(value in data for value in self.of(*names))]


@contextmanager
def temporary_files_in(folder: Path) -> Iterator[None]:
    """Let everything temporary of this process and its programs be made in ``folder``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setattr(tempfile, "tempdir", str(folder))
        yield


@pytest.fixture(scope="module")
def seen(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """One boot of a private raw copy that keeps what is written to it, with an agent that uses its key."""
    top = tmp_path_factory.mktemp("secrets")
    for name in ("tmp", "ipc"):
        (top / name).mkdir()
    disk = top / "disk.raw"
    subprocess.run([need_program("qemu-img"), "convert", "-O", "raw", image.disk, disk], check=True)
    found = Seen({name: token() for name in (*CONTROL, *FOR_THE_AGENT)}, token(), top)
    found.values["CONTROL_PLANE_URL"] = f"https://{token()}.example/"
    files = {name: found.values[name].encode() for name in (*CONTROL, "API_KEY")}
    config = configdrive.make({"FROM_ENV": found.values["FROM_ENV"], "PLAIN": "plain"}, files)
    options: dict[str, Any] = {
        "arch": "amd64",
        "accelerator": "tcg",
        "cpus": 1,  # two hang now and then under multi-threaded emulation, and this one must power off
        "timeout": TIMEOUT,
        "shares": {"ipc": top / "ipc"},
    }
    with (
        temporary_files_in(top / "tmp"),
        rootport.booted(disk, adapt=writable, config=config, console=top / "console.log", **options) as vm,
    ):
        look(vm, found)
        assert vm.power_off()
    return found


SCRIPT = """
echo {marker} >/workspace/marker; env | cut -d = -f 1
test ${{#API_KEY}} -eq 48 && test ${{#FROM_ENV}} -eq 48 && echo usable; sync; sleep 600
"""


def look(vm: RootedVM, found: Seen) -> None:
    """Run an agent, and while it runs look at everything."""
    command = ["/bin/sh", "-c", SCRIPT.format(marker=found.marker)]
    with vm.request(command=command, timeout=500) as request:
        text = ""
        for event in request:
            text += event.data.decode() if isinstance(event, Output) else ""
            if "usable" in text:
                break
        found.names = set(text.split())
        found.config_modes = [path.stat().st_mode & 0o777 for path in found.top.rglob("config.iso")]
        processes(vm, found)
        for path in (found.top / "ipc").rglob("*"):
            if path.is_file() and not path.name.startswith(".heartbeat."):  # it is renamed as soon as it is written
                found.places[f"share: {path}"] = path.read_bytes()
        for name in ("cmdline", "environ"):
            found.places[f"QEMU's {name}"] = Path(f"/proc/{vm.pid}/{name}").read_bytes()
    vm.run("true")  # the request above is over when this one is
    commands = {
        "log files": "find /var/log /workspace /etc /root /tmp -xdev -type f -exec cat {} +",
        "kernel's messages": "dmesg",
        "kernel command line": "cat /proc/cmdline",
        "tmpfs": "find /run -path /run/imgkit -prune -o -type f -exec cat {} +",
    }
    found.places.update({name: vm.root(command, timeout=300).stdout for name, command in commands.items()})
    found.places["listing"] = vm.root("ls -lnR /run/imgkit; ls -ldn /run/imgkit; ls /dev").stdout


PROCESSES = """
const fs = require('node:fs');
for (const pid of fs.readdirSync('/proc').filter((name) => /^[0-9]+$/.test(name) && Number(name) !== process.pid)) {
  try {
    const [data, arguments_] = ['environ', 'cmdline'].map((name) => fs.readFileSync(`/proc/${pid}/${name}`));
    console.log(pid, fs.statSync(`/proc/${pid}`).uid, Buffer.concat([data, arguments_]).toString('base64'));
  } catch {} // it has ended
}
"""


def processes(vm: RootedVM, found: Seen) -> None:
    """Environment and arguments of every process of the guest; the agent's own apart."""
    for line in vm.root(["/usr/bin/node", "-e", PROCESSES], timeout=300).text.splitlines():
        pid, uid, data = line.split(" ")
        (found.agents if uid == "1000" else found.processes)[f"process {pid}"] = base64.b64decode(data)


def test_the_agent_has_what_is_meant_for_it_and_nothing_else(seen: Seen) -> None:
    assert {"API_KEY", "FROM_ENV", "PLAIN", "usable"} <= seen.names
    hidden = {*CONTROL, "AGENT_COMMAND", "AGENT_ARGS", "AGENT_WORKDIR", "AGENT_USER"}
    assert not hidden & seen.names
    assert seen.traces(seen.agents, "API_KEY"), "the search finds what is there"
    assert seen.traces(seen.agents, *CONTROL) == []


def test_no_other_process_has_any(seen: Seen) -> None:
    assert len(seen.processes) > 5, "init, agentd, its supervisor, the log"
    assert "process 1" in seen.processes
    assert any(b"agent-runner" in data for data in seen.processes.values())
    assert seen.traces(seen.processes, *CONTROL, *FOR_THE_AGENT) == []


def test_no_log_stream_or_command_line_has_any(seen: Seen) -> None:
    assert "present" in seen.places["log files"].decode(errors="replace"), "agentd says that they are there"
    assert any(seen.marker.encode() in data for data in seen.places.values())
    assert any(place.startswith("share: ") and place.endswith(".log") for place in seen.places)
    assert all(seen.places.values()), "every place was looked at"
    assert seen.traces(seen.places, *CONTROL, *FOR_THE_AGENT) == []


def test_the_drive_is_let_go_and_its_copy_is_roots(seen: Seen) -> None:
    listing = seen.places["listing"].decode()
    assert "vda" in listing
    assert "vdb" not in listing
    assert "env.json" in listing
    modes = re.findall(r"^([-d][-rwx]{9}) +\d+ (\d+) ", listing, re.MULTILINE)
    assert len(modes) == 7, "the folder, env.json, the folder of secrets, four of them"
    assert {owner for _, owner in modes} == {"0"}
    assert all(mode[4:] == "------" for mode, _ in modes)


def test_the_disk_keeps_none(seen: Seen) -> None:
    with (seen.top / "disk.raw").open("rb") as disk, mmap.mmap(disk.fileno(), 0, access=mmap.ACCESS_READ) as data:
        assert data.find(seen.marker.encode()) > 0, "the search finds what was written"
        for name, value in seen.values.items():
            assert data.find(value.encode()) < 0, name
            assert data.find(base64.b64encode(value.encode())) < 0, name


def test_the_host_keeps_none(seen: Seen) -> None:
    assert seen.config_modes == [0o600]
    console = {"console": (seen.top / "console.log").read_bytes()}
    assert console["console"]
    assert seen.traces(console, *CONTROL, *FOR_THE_AGENT) == []
    assert list((seen.top / "tmp").iterdir()) == [], "nothing temporary is left"
    left = {str(path): path.read_bytes() for path in (seen.top / "ipc").rglob("*") if path.is_file()}
    assert left
    assert seen.traces(left, *CONTROL, *FOR_THE_AGENT) == []


# ---- NoCloud -------------------------------------------------------------------------------------------------------

META = "instance-id: i-4711\nlocal-hostname: from-meta\n"
USER = """#cloud-config
hostname: from-user
ssh_authorized_keys:
  - ssh-ed25519 AAAAC3Nz somebody@example
write_files:
  - path: /etc/motd
    content: |
      hello
      there
  - path: /workspace/secret
    content: c2VjcmV0
    encoding: b64
    permissions: '0600'
    owner: agent:agent
"""


def cidata(**files: str) -> bytes:
    """Return a drive as cloud-localds makes it: Joliet and Rock Ridge."""
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, vol_ident="cidata", rock_ridge="1.09", joliet=3)
    for number, (name, text) in enumerate(files.items()):
        real = name.replace("_", "-")
        data = text.encode()
        iso.add_fp(io.BytesIO(data), len(data), f"/F{number}.;1", rr_name=real, joliet_path=f"/{real}")
    sink = io.BytesIO()
    iso.write_fp(sink)
    iso.close()
    return sink.getvalue()


def test_nocloud(image: Image) -> None:
    """The machine has no network card, which nothing waits for."""
    config = cidata(meta_data=META, user_data=USER)
    options: dict[str, Any] = {"arch": "amd64", "accelerator": "tcg", "cpus": 1, "timeout": TIMEOUT, "network": "none"}
    with rootport.booted(image.disk, config=config, **options) as vm:
        assert vm.root("ls /sys/class/net").text == "lo\n"
        done = vm.run(
            "hostname; cat /etc/hostname /etc/motd secret; ls -ln secret; cat .ssh/authorized_keys; ls -lnd .ssh"
        )
        assert done.stderr == b""
        lines = done.text.splitlines()
        assert lines[:4] == ["from-user", "from-user", "hello", "there"]
        assert lines[4].startswith("secret-rw-------")
        assert lines[4].split()[2:4] == ["1000", "1000"]
        assert lines[5] == "ssh-ed25519 AAAAC3Nz somebody@example"
        assert re.match("drwx--[-S]---", lines[6]), "set-gid as the folder above"
        assert vm.root("cat /run/imgkit/instance-id").text == "i-4711\n"
