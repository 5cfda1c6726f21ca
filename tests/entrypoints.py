"""The entrypoint's table of cases, and containers in which it starts as it does in an image.

``tests/entrypoint.json`` is a list of cases, which docs/reference/entrypoint.md explains. Four programs play them: the
script under this host's shells ("script"), the script in containers ("container"), the modules of agentd ("agentd",
tests/agentd/entrypoint.test.js), and agentd in a booted machine ("machine").
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import seccomp
from tests.commandline import ROOT
from tests.conftest import need, need_program

SCRIPT = ROOT / "overlay/usr/local/bin/entrypoint"
TABLE = ROOT / "tests/entrypoint.json"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PREFIX = "entrypoint: "
REMOVED = ("SESSION_TOKEN", "CONTROL_PLANE_URL", "SESSION_ID")

# What docker gives to root in a container, without --cap-drop.
DOCKERS = (
    *("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "NET_BIND_SERVICE"),
    *("NET_RAW", "SYS_CHROOT", "MKNOD", "AUDIT_WRITE", "SETFCAP"),
)


@dataclass(frozen=True)
class Case:
    """A line of the table: what is given, and what must come of it.

    Attributes:
        env: the environment. ``command``: the container's own command.
        where: the programs that play the case.
        output: what the agent writes to stdout.
        status: the exit status; without it 0, or the runtime's own for an error of its own (``message``).
        message: the error; one for all, or for "container" and "machine".
        variables, absent: what must and must not be in the agent's environment, which the command prints.
        ids: uid and gid of an agent without any privilege, whose command prints ``/proc/self/status``.
    """

    name: str
    env: Mapping[str, str]
    command: Sequence[str] = ()
    where: Sequence[str] = ("script", "container", "agentd", "machine")
    output: str | None = None
    status: int | None = None
    message: str | Mapping[str, str] | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    absent: Sequence[str] = ()
    ids: Sequence[int] = ()

    def error(self, runtime: str) -> str | None:
        """Return the message of a runtime, "container" or "machine"."""
        return self.message if isinstance(self.message, str) or self.message is None else self.message[runtime]

    def check_output(self, output: bytes) -> None:
        """Check what the agent wrote."""
        if self.output is not None:
            assert output.decode() == self.output
        if self.variables or self.absent:
            env = environment(output)
            assert {name: env.get(name) for name in self.variables} == self.variables
            assert sorted(env.keys() & set(self.absent)) == []
        if self.ids:
            check_rights(output.decode(), *self.ids)


def table(where: str) -> list[Case]:
    """Return the cases that ``where`` plays."""
    cases = [Case(**fields) for fields in json.loads(TABLE.read_text())]
    return [case for case in cases if where in case.where]


def environment(block: bytes) -> dict[str, str]:
    """Parse the contents of ``/proc/PID/environ``."""
    pairs = (item.decode().partition("=") for item in block.split(b"\0") if item)
    return {name: value for name, _, value in pairs}


def rights(status: str) -> dict[str, str]:
    """Return the fields of ``/proc/PID/status``, with one space between values."""
    lines = (line.partition(":") for line in status.splitlines())
    return {name: " ".join(value.split()) for name, _, value in lines}


def check_rights(status: str, uid: int, gid: int) -> None:
    """Check that a process has these ids only, no supplementary groups, no capabilities, and no way to get any."""
    fields = rights(status)
    assert (fields["Uid"], fields["Gid"]) == (" ".join([str(uid)] * 4), " ".join([str(gid)] * 4))
    assert fields["Groups"] == ""
    assert {fields[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    assert fields["NoNewPrivs"] == "1"


# ---- containers ----------------------------------------------------------------------------------------------------

_PROC = {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}
ACCOUNTS = """\
root:x:0:0:root:/root:/bin/sh
sync:x:5:0:sync:/sbin:/bin/sync
nobody:x:65534:65534:nobody:/:/sbin/nologin
agent:x:1000:1000::/workspace:/bin/sh
"""


_numbers = itertools.count()


@dataclass(frozen=True)
class Box:
    """The root filesystem of an image, and what is mounted into it."""

    root: Path
    mounts: Sequence[Mapping[str, Any]] = ()

    def config(
        self,
        words: Sequence[str],
        env: Mapping[str, str] | Sequence[str] = (),
        *,
        entrypoint: Sequence[str] = ("/usr/local/bin/entrypoint",),
        user: Mapping[str, Any] | None = None,
        capabilities: Mapping[str, Sequence[str]] | Sequence[str] = DOCKERS,
        mounts: Sequence[Mapping[str, Any]] = (),
        readonly: bool = True,
        nnp: bool = False,
    ) -> dict[str, Any]:
        """Return a container of the OCI runtime specification as docker makes it. It has no network and no devices."""
        sets = ("bounding", "effective", "permitted")
        lists = capabilities if isinstance(capabilities, Mapping) else dict.fromkeys(sets, capabilities)
        pairs = [f"{name}={value}" for name, value in env.items()] if isinstance(env, Mapping) else list(env)
        return {
            "ociVersion": "1.0.2",
            "root": {"path": str(self.root), "readonly": readonly},
            "process": {
                "terminal": False,
                "user": {"uid": 0, "gid": 0, **(user or {})},
                "args": [*entrypoint, *words],
                "env": pairs if any(pair.startswith("PATH=") for pair in pairs) else [f"PATH={PATH}", *pairs],
                "cwd": "/",
                "noNewPrivileges": nnp,
                "capabilities": {name: [f"CAP_{item}" for item in items] for name, items in lists.items()},
            },
            "mounts": [
                _PROC,
                _tmpfs("/dev", "mode=755"),
                _tmpfs("/tmp", "nodev", "mode=1777"),
                *self.mounts,
                *mounts,
            ],
            "linux": {
                "namespaces": [{"type": name} for name in ("pid", "ipc", "uts", "mount", "network")],
                "resources": {"devices": [{"allow": False, "access": "rwm"}]},
                "seccomp": seccomp.profile(),
            },
        }

    def run(self, words: Sequence[str], env: Mapping[str, str] | Sequence[str] = (), **how: Any) -> Ended:
        """Run a container to its end; ``how`` as for :meth:`config`."""
        with self.started(words, env, **how) as container:
            return container.end()

    @contextmanager
    def started(
        self, words: Sequence[str], env: Mapping[str, str] | Sequence[str] = (), **how: Any
    ) -> Iterator[Running]:
        """Start a container, which is removed at the end of the block."""
        name = f"imgkit-entry-{os.getpid()}-{next(_numbers)}"
        with tempfile.TemporaryDirectory(prefix="imgkit-bundle-") as bundle:
            (Path(bundle) / "config.json").write_text(json.dumps(self.config(words, env, **how)))
            argv = ["runc", "run", "--bundle", bundle, name]
            pipes: dict[str, Any] = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
            with subprocess.Popen(argv, stdin=subprocess.DEVNULL, **pipes) as process:
                try:
                    yield Running(name, process)
                finally:
                    subprocess.run(["runc", "delete", "--force", name], capture_output=True)
                    process.kill()


@dataclass(frozen=True)
class Ended:
    """What became of a container. ``log`` has the lines of the entrypoint, ``errors`` all other lines of stderr."""

    status: int
    output: bytes
    log: Sequence[str]
    errors: str


@dataclass(frozen=True)
class Running:
    """A container that runs."""

    name: str
    process: subprocess.Popen[bytes]

    def read_line(self) -> bytes:
        """Return the next line of its stdout."""
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def kill(self, signal: str) -> None:
        """Send a signal to its first process, as ``docker kill`` does."""
        subprocess.run(["runc", "kill", self.name, signal], check=True, capture_output=True)

    def end(self) -> Ended:
        """Wait for its end."""
        output, errors = self.process.communicate(timeout=60)
        lines = errors.decode().splitlines()
        log = [line.removeprefix(PREFIX) for line in lines if line.startswith(PREFIX)]
        others = "\n".join(line for line in lines if not line.startswith(PREFIX))
        return Ended(self.process.returncode, output, log, others)


def _tmpfs(path: str, *options: str) -> dict[str, Any]:
    return {"destination": path, "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", *options]}


def bind(source: Path | str, target: str) -> dict[str, Any]:
    """Return a mount that shows a file or folder of the host, for reading only."""
    return {"destination": target, "type": "bind", "source": str(source), "options": ["rbind", "rprivate", "ro"]}


def need_containers() -> None:
    """Skip or fail where runc cannot be used."""
    need("root, for runc", os.geteuid() == 0)
    need_program("runc")


def alpine_box(archive: Path, root: Path) -> Box:
    """Unpack a minirootfs of Alpine, and add what a recipe adds."""
    root.mkdir()
    subprocess.run(["tar", "-xpf", archive, "-C", root, "--numeric-owner"], check=True)
    return _furnish(root)


def debian_box(root: Path, shell: str) -> Box:
    """Make an image of this host's programs, with ``shell`` as ``/bin/sh``."""
    for name in ("bin", "sbin", "lib", "lib64"):
        need(f"a merged /usr: /{name} is a link", Path("/", name).is_symlink())
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).symlink_to(f"usr/{name}")
    for name in ("usr", "proc", "dev", "tmp"):
        (root / name).mkdir()
    (root / "usr/local/bin").mkdir(parents=True)
    box = _furnish(root, tini=False)
    system = [bind(path, str(path)) for path in sorted(Path("/usr").iterdir()) if path.name != "local"]
    for mount in system:
        (root / mount["destination"].lstrip("/")).mkdir()
    given = bind(Path(need_program(shell)).resolve(), str(Path("/bin/sh").resolve()))
    return Box(box.root, [*system, given])


def _furnish(root: Path, *, tini: bool = True) -> Box:
    (root / "etc").mkdir(exist_ok=True)
    (root / "etc/passwd").write_text(ACCOUNTS)
    (root / "workspace").mkdir()
    os.chown(root / "workspace", 1000, 1000)
    (root / "tmp").chmod(0o1777)  # runc gives a tmpfs the mode of the folder below
    (root / "root").mkdir(exist_ok=True)
    (root / "root").chmod(0o700)
    shutil.copy(SCRIPT, root / "usr/local/bin/entrypoint")
    (root / "usr/local/bin/entrypoint").chmod(0o755)
    if tini:
        shutil.copy(need_program("tini-static"), root / "sbin/tini")
    return Box(root)
