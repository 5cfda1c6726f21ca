"""The entrypoint under this host's shells, started by an ordinary user: everything that needs no privilege."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import need, need_program
from tests.entrypoints import PREFIX, REMOVED, SCRIPT, Case, table
from tests.files import ALPINE_FILES, NEEDS_ALPINE, REAL_MINIROOTFS

NOBODY = 65534
SECRET = "a-value-that-nobody-prints"
ABSENT = "SESSION_TOKEN absent, CONTROL_PLANE_URL absent, SESSION_ID absent"


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Yield a folder that every user of the host can read."""
    need("Linux, for /proc", Path("/proc/self/status").exists())
    path = Path(tempfile.mkdtemp(prefix="imgkit-entrypoint-"))
    path.chmod(0o755)
    shutil.copy(SCRIPT, path / "entrypoint")
    (path / "entrypoint").chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module", params=["sh", "dash", "bash", "ash"])
def shell(request: pytest.FixtureRequest, folder: Path) -> list[str]:
    """Return how a shell is started. Alpine's is started by its own dynamic linker."""
    if request.param != "ash":
        return [need_program(request.param)]
    archive = REAL_MINIROOTFS.get(os.uname().machine)
    if archive is None or not archive.is_file():
        pytest.skip(f"{NEEDS_ALPINE}: {ALPINE_FILES[2]}")
    subprocess.run(["tar", "-xf", archive, "-C", folder, "./lib", "./bin/busybox"], check=True)
    (linker,) = folder.glob("lib/ld-musl-*.so.1")
    return [str(linker), str(folder / "bin/busybox"), "ash"]


def start(
    shell: Sequence[str], folder: Path, words: Sequence[str], env: Mapping[str, str]
) -> subprocess.CompletedProcess[bytes]:
    """Run the entrypoint as a user who is not root."""
    user: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
    env = {"PATH": "/usr/bin:/bin", "AGENT_WORKDIR": "/tmp", **env}
    argv = [*shell, str(folder / "entrypoint"), *words]
    return subprocess.run(argv, env=env, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, timeout=60, **user)


def log(done: subprocess.CompletedProcess[bytes]) -> list[str]:
    """Return the lines of the entrypoint, which are all that is on stderr."""
    lines = done.stderr.decode().splitlines()
    assert [line for line in lines if not line.startswith(PREFIX)] == []
    return [line.removeprefix(PREFIX) for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("case", table("script"), ids=lambda case: case.name)
def test_a_line_of_the_table(shell: list[str], folder: Path, case: Case) -> None:
    done = start(shell, folder, case.command, case.env)
    message = case.error("container")
    if message is None:
        assert (done.returncode, log(done)[0]) == (case.status or 0, ABSENT)
        case.check_output(done.stdout)
    else:
        assert log(done)[-1] == message
        assert (done.returncode, done.stdout) == (case.status or 125, b"")


def test_the_log_has_presence_only(shell: list[str], folder: Path) -> None:
    env = {**dict.fromkeys(REMOVED, SECRET), "SESSION_ID": "", "AGENT_COMMAND": "printf %s", "AGENT_ARGS": SECRET}
    done = start(shell, folder, ["lost"], env)
    assert log(done) == [
        "SESSION_TOKEN present, CONTROL_PLANE_URL present, SESSION_ID absent",
        "AGENT_COMMAND is set: the container's own command is not used",
    ]
    assert done.stdout == SECRET.encode()


@pytest.mark.slow
def test_no_control_character_stands_in_an_array(shell: list[str], folder: Path) -> None:
    for number in range(1, 32):
        done = start(shell, folder, ["true"], {"AGENT_ARGS": f'["a{chr(number)}b"]'})
        assert (done.returncode, number) == (125, number)


@pytest.mark.parametrize("path", ["/usr/bin:/bin:", ":/usr/bin", "/usr/bin::/bin", "", "."])
def test_an_empty_part_of_the_path_is_the_folder(shell: list[str], folder: Path, path: str) -> None:
    tool = folder / "imgkit-tool"
    tool.write_text("#!/bin/sh\necho found\n")
    tool.chmod(0o755)
    done = start(shell, folder, ["imgkit-tool"], {"PATH": path, "AGENT_WORKDIR": str(folder)})
    assert (done.returncode, done.stdout) == (0, b"found\n")


@pytest.mark.slow
def test_long_arguments(shell: list[str], folder: Path) -> None:
    words = [f"word{number}" for number in range(500)]
    text = f"'{'x' * 20_000}' {' '.join(words)}"
    done = start(shell, folder, [], {"AGENT_COMMAND": "printf %s,", "AGENT_ARGS": text})
    assert done.stdout.decode() == ",".join(["x" * 20_000, *words, ""])


def test_the_user_is_the_one_that_the_engine_has_chosen(shell: list[str], folder: Path) -> None:
    done = start(shell, folder, ["id"], {"AGENT_USER": "root"})
    uid = NOBODY if os.geteuid() == 0 else os.geteuid()
    assert log(done)[-1] == f"the container was started as uid {uid}, which cannot become AGENT_USER root"
    assert (done.returncode, done.stdout) == (125, b"")


def test_an_ordinary_user_keeps_its_groups_and_gets_no_privilege(shell: list[str], folder: Path) -> None:
    done = start(shell, folder, ["cat", "/proc/self/status"], {})
    fields = dict(line.split(":\t", 1) for line in done.stdout.decode().splitlines() if ":\t" in line)
    assert (fields["CapEff"], fields["CapPrm"], fields["NoNewPrivs"]) == ("0" * 16, "0" * 16, "1")
    assert fields["Uid"].split() == [str(NOBODY if os.geteuid() == 0 else os.geteuid())] * 4


def test_root_that_cannot_be_given_up_runs_nothing(shell: list[str], folder: Path) -> None:
    """The root of a user namespace has every capability, but there is no other user."""
    namespace = ["unshare", "--user", "--map-root-user"]
    allowed = start(namespace, folder, [], {"AGENT_COMMAND": ""}).stderr.decode().startswith(PREFIX)
    need("user namespaces for ordinary users", allowed)
    done = start([*namespace, *shell], folder, ["id"], {"AGENT_USER": "nobody"})
    assert (done.returncode, done.stdout) == (125, b"")
    assert done.stderr.decode().splitlines()[-1] == f"{PREFIX}root cannot be given up here"


def test_the_second_half_trusts_nobody(shell: list[str], folder: Path) -> None:
    """It compares what it was told with what the kernel says, and runs nothing if that differs."""
    mark = "--imgkit-as-agent"
    ids = " ".join([str(NOBODY if os.geteuid() == 0 else os.geteuid())] * 4)
    done = start(shell, folder, [mark, "root", "1 1 1 1", "1 1 1 1", "", "/tmp", "id"], {})
    assert (done.returncode, done.stdout) == (125, b"")
    assert log(done)[0].startswith(f"root has not been given up completely: there are still ids {ids}, ")


def test_no_value_becomes_a_variable_of_the_script(shell: list[str], folder: Path) -> None:
    """Hostile text for a shell: nothing of it is run, and the agent gets it as it is."""
    texts = ["$(touch /tmp/imgkit-x)", "`id`", "'; id; '", '"; id; "', "\n id\n", "*", "\\", "${IFS}", "a=b", "--help"]
    done = start(shell, folder, ["printf", "%s,", *texts], {"A": texts[0], "IFS": "printf"})
    assert done.stdout.decode() == ",".join([*texts, ""])
    assert not Path("/tmp/imgkit-x").exists()


@pytest.mark.slow
def test_the_script_is_a_shell_script_without_faults() -> None:
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([shellcheck, "--shell=sh", SCRIPT], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
