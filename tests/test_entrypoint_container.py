"""The entrypoint as the first program of containers: of Alpine with busybox alone, and of Debian with util-linux."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from fixtures.mirror import Mirror
from tests.conftest import need_program
from tests.entrypoints import (
    DOCKERS,
    PATH,
    PREFIX,
    REMOVED,
    Box,
    Case,
    Ended,
    alpine_box,
    bind,
    check_rights,
    debian_box,
    environment,
    need_containers,
    rights,
    table,
)
from tests.files import NEEDS_ALPINE, REAL_MINIROOTFS

pytestmark = pytest.mark.vm

SECRET = "a-value-that-nobody-finds"
CONTROL = dict.fromkeys(REMOVED, SECRET)
ABSENT = "SESSION_TOKEN absent, CONTROL_PLANE_URL absent, SESSION_ID absent"
STATUS = ["cat", "/proc/self/status"]
MINIMAL = ("SETUID", "SETGID")
ROOT_ALLOWED = {"AGENT_USER": "root", "ALLOW_ROOT_AGENT": "1"}
NO_PATH = 'exec env -u PATH /usr/local/bin/entrypoint "$@"'


@pytest.fixture(scope="module", params=["alpine", "alpine-3.20", "debian", "debian-bash"])
def box(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Box:
    """Return an image whose first program is the entrypoint."""
    need_containers()
    need_program("tini-static")
    root = tmp_path_factory.mktemp("box") / "root"
    if request.param == "alpine":
        mirror: Mirror = request.getfixturevalue("mirror")
        (archive,) = mirror.root.glob("*/releases/x86_64/alpine-minirootfs-*-x86_64.tar.gz")
        return alpine_box(archive, root)
    if request.param == "alpine-3.20":
        if not REAL_MINIROOTFS["x86_64"].is_file():
            pytest.skip(f"{NEEDS_ALPINE}: {REAL_MINIROOTFS['x86_64']}")
        return alpine_box(REAL_MINIROOTFS["x86_64"], root)
    root.mkdir()
    return debian_box(root, "bash" if request.param == "debian-bash" else "dash")


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> str:
    """Return the name of the image."""
    return str(request.node.callspec.params["box"])


def shell(script: str) -> list[str]:
    return ["sh", "-c", script]


def refusal(ended: Ended) -> str:
    """Check that the entrypoint ended without starting the agent; return its last line."""
    assert (ended.status, ended.output) == (125, b"")
    return ended.log[-1]


# ---- the table -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", table("container"), ids=lambda case: case.name)
def test_a_line_of_the_table(box: Box, kind: str, case: Case) -> None:
    if kind == "debian" and case.name == "names that no shell has":
        pytest.skip("dash does not pass such variables on")
    ended = box.run(case.command, case.env)
    message = case.error("container")
    if message is None:
        assert (ended.status, ended.errors) == (case.status or 0, "")
        case.check_output(ended.output)
    else:
        assert ended.log[-1] == message
        assert (ended.status, ended.output, ended.errors) == (case.status or 125, b"", "")


# ---- the environment -----------------------------------------------------------------------------------------------


def test_the_environment_is_what_was_given_and_the_account_s(box: Box, kind: str) -> None:
    """Nothing more: in particular none of the variables that shells set by themselves."""
    ended = box.run(["cat", "/proc/self/environ"], {**CONTROL, "KEY": "value", "PATH": "/bin:/usr/bin"})
    account = {"HOME": "/workspace", "USER": "agent", "LOGNAME": "agent", "SHELL": "/bin/sh", "LANG": "C.UTF-8"}
    own = {"SHLVL": "0"} if kind == "debian-bash" else {}
    assert environment(ended.output) == {"PATH": "/bin:/usr/bin", "KEY": "value", **account, **own}


def test_the_first_process_is_the_agent(box: Box) -> None:
    ended = box.run(shell("echo $$; tr '\\0' ' ' </proc/1/cmdline; ls /proc | grep -c '^[0-9]'"))
    number, line = ended.output.decode().splitlines()
    assert number == "1"
    assert line.split()[1:3] == ["-c", "echo"]
    assert int(line.rpartition(" ")[2]) <= 4  # the agent and its own pipeline


def test_the_agent_inherits_no_file(box: Box) -> None:
    ended = box.run(["ls", "/proc/self/fd"])
    assert ended.output.split() == [b"0", b"1", b"2", b"3"]  # 3 is the folder that ls reads


@pytest.mark.parametrize("init", ["0", "1"])
def test_no_process_shows_what_was_removed(box: Box, init: str) -> None:
    """Neither the agent nor tini has it in any file of ``/proc`` that the agent can read; nor does the log."""
    env = {**CONTROL, "AGENT_COMMAND": "sh -c", "AGENT_INIT": init}
    script = f"grep -rqs {SECRET[:-1]}[s] /proc/[0-9]*/environ /proc/[0-9]*/cmdline; echo $?; cat /proc/1/environ"
    ended = box.run([], {**env, "AGENT_ARGS": f"'{script}'"})
    found, _, block = ended.output.partition(b"\n")
    assert found == b"1"
    assert environment(block).keys() & {*REMOVED, "AGENT_COMMAND", "AGENT_ARGS", "AGENT_INIT"} == set()
    assert environment(block)["HOME"] == "/workspace"
    assert ended.log == ["SESSION_TOKEN present, CONTROL_PLANE_URL present, SESSION_ID present"]


def test_a_variable_that_is_given_twice_is_removed_twice(box: Box) -> None:
    env = [f"SESSION_TOKEN={SECRET}", "A=1", "SESSION_TOKEN=2", "AGENT_USER=agent", "AGENT_USER=agent"]
    ended = box.run(["cat", "/proc/self/environ"], env)
    assert SECRET.encode() not in ended.output
    assert b"SESSION_TOKEN" not in ended.output
    assert b"AGENT_USER" not in ended.output


def test_the_engine_s_own_init_keeps_them_where_the_agent_cannot_read(box: Box, kind: str) -> None:
    init = "/usr/bin/tini-static" if kind.startswith("debian") else "/sbin/tini"
    script = "cat /proc/1/environ"
    ended = box.run(shell(script), CONTROL, entrypoint=[init, "--", "/usr/local/bin/entrypoint"])
    assert (ended.status, ended.output) == (1, b"")
    assert "Permission denied" in ended.errors


def test_the_path(box: Box) -> None:
    given = box.run(["/bin/cat", "/proc/self/environ"], ["PATH="])
    assert environment(given.output)["PATH"] == ""
    missing = box.run(
        ["cat", "/proc/self/environ"], ["PATH=/bin:/usr/bin"], entrypoint=["/bin/sh", "-c", NO_PATH, "sh"]
    )
    assert environment(missing.output)["PATH"] == "/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin"


@pytest.mark.parametrize(
    ("given", "home"),
    [
        ({}, "/workspace"),
        ({"HOME": "/root"}, "/workspace"),  # the engine's, which it takes from the account of root
        ({"HOME": "/"}, "/workspace"),
        ({"HOME": ""}, "/workspace"),
        ({"HOME": "/data"}, "/data"),
    ],
)
def test_the_home_is_not_root_s(box: Box, given: Mapping[str, str], home: str) -> None:
    ended = box.run(["cat", "/proc/self/environ"], given)
    assert environment(ended.output)["HOME"] == home


# ---- the rights ----------------------------------------------------------------------------------------------------

NOTHING: dict[str, Sequence[str]] = dict.fromkeys(("bounding", "effective", "permitted"), ())
FULL = dict.fromkeys(("bounding", "effective", "permitted", "inheritable", "ambient"), (*DOCKERS, "SYS_ADMIN"))


@pytest.mark.parametrize("capabilities", [DOCKERS, MINIMAL, FULL], ids=["docker", "minimal", "inheritable"])
def test_nothing_of_root_is_left(box: Box, capabilities: Any) -> None:
    ended = box.run(STATUS, user={"additionalGids": [0, 10, 27]}, capabilities=capabilities)
    assert (ended.status, ended.errors) == (0, "")
    check_rights(ended.output.decode(), 1000, 1000)


@pytest.mark.parametrize("capabilities", [DOCKERS, MINIMAL], ids=["docker", "minimal"])
def test_the_bounding_set(box: Box, kind: str, capabilities: Sequence[str]) -> None:
    """util-linux empties it where it may. Without that, it cannot be used: there is no_new_privs."""
    bounding = rights(box.run(STATUS, capabilities=capabilities).output.decode())["CapBnd"]
    emptied = kind.startswith("debian") and capabilities == DOCKERS
    assert (int(bounding, 16) == 0) is emptied


def test_no_program_gives_root_back(box: Box, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A set-user-id program of root is run with the agent's own rights."""
    system = (box.root / "bin/busybox") if (box.root / "bin/busybox").exists() else Path("/usr/bin/id")
    program = tmp_path_factory.mktemp("setuid") / system.name
    shutil.copyfile(system, program)
    program.chmod(0o4755)
    place = box.root / "opt" / system.name
    place.parent.mkdir(exist_ok=True)
    place.touch()
    words = [f"/opt/{system.name}", *(["id"] if system.name == "busybox" else [])]
    ended = box.run(words, mounts=[bind(program, words[0])])
    assert ended.status == 0
    assert ended.output.startswith(b"uid=1000(agent) gid=1000")
    assert b"euid" not in ended.output


@pytest.mark.parametrize(
    ("gids", "inherited", "nnp", "rest"),
    [
        ((), (), True, None),
        ((1000,), (), True, None),
        ((27,), (), True, "groups 27 "),
        ((27, 1000), (), True, "groups 27 1000"),
        ((1000, 27), (), True, "groups 27 1000"),
        ((), ("KILL",), True, "inheritable capabilities"),
        ((), (), False, "the right to new privileges"),
    ],
)
def test_the_second_half_trusts_nobody(
    box: Box, gids: Sequence[int], inherited: Sequence[str], nnp: bool, rest: str | None
) -> None:
    """What the first half should have taken away, the second half finds."""
    ids = "1000 1000 1000 1000"
    user = {"uid": 1000, "gid": 1000, "additionalGids": list(gids)}
    capabilities = {"bounding": inherited, "inheritable": inherited}
    words = ["--imgkit-as-agent", "root", ids, ids, "", "/tmp", "id"]
    ended = box.run(words, user=user, capabilities=capabilities, nnp=nnp)
    if rest is None:
        assert (ended.status, ended.log) == (0, [])
    else:
        assert refusal(ended) == f"root has not been given up completely: there are still {rest}"


def test_without_the_right_to_change_users_nothing_runs(box: Box) -> None:
    for capabilities in ((), ("SETUID",), ("SETGID",)):
        message = refusal(box.run(["id"], capabilities=capabilities))
        hint = "give the container CAP_SETUID and CAP_SETGID, or start it as that user"
        assert message == f"root may not become AGENT_USER agent: {hint}"


def test_without_a_program_that_drops_root_nothing_runs(box: Box, kind: str) -> None:
    target = "/usr/bin/setpriv" if kind.startswith("debian") else "/bin/busybox"
    if target == "/bin/busybox":
        pytest.skip("busybox is the shell as well")
    message = refusal(box.run(["id"], mounts=[bind("/dev/null", target)]))
    assert message == (
        "this image has no program that gives up root: util-linux's setpriv, or busybox with nsenter and setpriv"
    )


def test_without_proc_nothing_runs(box: Box, kind: str) -> None:
    if kind.startswith("debian"):
        pytest.skip("runc needs /proc, and these programs are mounted")
    argv = ["chroot", str(box.root), "/usr/local/bin/entrypoint", "id"]
    done = subprocess.run(argv, env={"PATH": PATH}, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    lines = [ABSENT, "there is no /proc, so nobody could check that root has been given up"]
    assert (done.returncode, done.stdout) == (125, b"")
    assert done.stderr.decode() == "".join(f"{PREFIX}{line}\n" for line in lines)


def test_without_accounts_nothing_runs(box: Box) -> None:
    (box.root / "etc/nothing").touch()
    none = bind(box.root / "etc/nothing", "/etc/passwd")
    assert refusal(box.run(["id"], mounts=[none])) == "AGENT_USER agent does not exist in this image"
    (box.root / "etc/nothing").unlink()


@pytest.mark.parametrize(
    ("lines", "outcome"),
    [
        ("agent:x:1000:1000", None),  # no home, no shell, no newline
        ("agent:x:x:1000::/:\nagent:x:4294967295:1000::/:\nagent:x:2147483648:1::/:\nagent:x:1000:1000::/:\n", None),
        ("agent:x:1000:1000::/:\nagent:x:0:0::/:\n", None),  # the first line counts
        ("agents:x:0:0::/:\n agent:x:0:0::/:\n#agent:x:0:0::/:\n", "AGENT_USER agent does not exist in this image"),
        ("agent:x:00:1000::/:\n", "AGENT_USER agent is root or in root's group: that needs ALLOW_ROOT_AGENT=1"),
        ("agent:x:1000:0::/:\n", "AGENT_USER agent is root or in root's group: that needs ALLOW_ROOT_AGENT=1"),
    ],
)
def test_lines_of_passwd(box: Box, lines: str, outcome: str | None) -> None:
    (box.root / "etc/other").write_text(lines)
    ended = box.run(STATUS, mounts=[bind(box.root / "etc/other", "/etc/passwd")])
    if outcome is None:
        check_rights(ended.output.decode(), 1000, 1000)
    else:
        assert refusal(ended) == outcome


@pytest.mark.parametrize(("line", "shell"), [("::/:/bin/x:more", "/bin/x"), ("::/:", "/bin/sh"), ("", "/bin/sh")])
def test_the_shell_of_an_account(box: Box, line: str, shell: str) -> None:
    (box.root / "etc/other").write_text(f"agent:x:1000:1000{line}\n")
    ended = box.run(["cat", "/proc/self/environ"], mounts=[bind(box.root / "etc/other", "/etc/passwd")])
    env = environment(ended.output)
    assert (env["SHELL"], env["HOME"]) == (shell, "/")


def test_root_that_is_allowed_keeps_the_capabilities_of_the_container(box: Box) -> None:
    ended = box.run(STATUS, {**ROOT_ALLOWED, **CONTROL}, capabilities=FULL, user={"additionalGids": [10]})
    fields = rights(ended.output.decode())
    assert (fields["Uid"], fields["Groups"], fields["NoNewPrivs"]) == ("0 0 0 0", "", "1")
    assert fields["CapEff"] == fields["CapPrm"] == fields["CapBnd"] != "0" * 16
    assert (fields["CapInh"], fields["CapAmb"]) == ("0" * 16, "0" * 16)


def test_a_user_in_root_s_group_that_is_allowed_has_no_capability(box: Box) -> None:
    ended = box.run(STATUS, {"AGENT_USER": "sync", "ALLOW_ROOT_AGENT": "1", "AGENT_WORKDIR": "/tmp"})
    check_rights(ended.output.decode(), 5, 0)


def test_started_as_an_ordinary_user(box: Box) -> None:
    """The engine's user and groups stay, privileges go."""
    user = {"uid": 1000, "gid": 1000, "additionalGids": [27]}
    ended = box.run(STATUS, CONTROL, user=user, capabilities=FULL)
    fields = rights(ended.output.decode())
    assert (fields["Uid"], fields["Groups"], fields["NoNewPrivs"]) == ("1000 1000 1000 1000", "27", "1")
    assert {fields[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    ended = box.run(["cat", "/proc/self/environ"], {**CONTROL, "HOME": "/"}, user=user)
    assert (environment(ended.output)["USER"], environment(ended.output)["HOME"]) == ("agent", "/workspace")
    assert SECRET.encode() not in ended.output


def test_started_as_a_user_without_an_account(box: Box) -> None:
    ended = box.run(shell("id -u; id -g"), {"AGENT_WORKDIR": "/tmp"}, user={"uid": 1_000_650_000, "gid": 0})
    assert (ended.status, ended.output) == (0, b"1000650000\n0\n")


@pytest.mark.parametrize(
    ("env", "outcome"),
    [
        ({"AGENT_USER": "agent"}, None),
        ({"AGENT_USER": "nobody"}, "the container was started as uid 1000, which cannot become AGENT_USER nobody"),
        (ROOT_ALLOWED, "the container was started as uid 1000, which cannot become AGENT_USER root"),
        ({"AGENT_USER": "none"}, "AGENT_USER none does not exist in this image"),
    ],
)
def test_an_ordinary_user_cannot_become_another(box: Box, env: Mapping[str, str], outcome: str | None) -> None:
    ended = box.run(["id", "-u"], env, user={"uid": 1000, "gid": 1000})
    if outcome is None:
        assert (ended.status, ended.output) == (0, b"1000\n")
    else:
        assert refusal(ended) == outcome


def test_root_runs_no_program_of_the_agent(box: Box) -> None:
    """The agent's PATH leads to its own folder first; as root, the entrypoint does not look there."""
    trap = box.root / "workspace/bin"
    trap.mkdir(exist_ok=True)
    for name in ("setpriv", "nsenter", "printenv", "printf", "sh", "cat", "tini", "id"):
        (trap / name).write_text("#!/bin/sh\necho trapped as $(/usr/bin/id -u)\n")
        (trap / name).chmod(0o755)
    path = "/workspace/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    ended = box.run(["sleep", "0"], {"PATH": path, "AGENT_INIT": "1"})
    assert (ended.status, ended.output, ended.errors, ended.log) == (0, b"", "", [ABSENT])
    assert box.run(["cat"], {"PATH": path}).output == b"trapped as 1000\n"


def test_the_folder_is_entered_as_the_agent(box: Box) -> None:
    ended = box.run(["pwd"], {"AGENT_WORKDIR": "/root"})
    assert refusal(ended) == "AGENT_WORKDIR /root is not a folder that the agent can enter"


def test_a_root_filesystem_that_nobody_may_write_to(box: Box) -> None:
    script = "touch /workspace/x 2>/dev/null || echo refused; touch /tmp/x && echo written"
    assert box.run(shell(script)).output == b"refused\nwritten\n"
    assert box.run(shell("touch /workspace/x && echo written"), readonly=False).output == b"written\n"


# ---- the end -------------------------------------------------------------------------------------------------------

TRAP = "trap 'echo told; exit 3' TERM; echo ready; while :; do sleep 0.1; done"


@pytest.mark.parametrize("init", ["0", "1"])
def test_a_signal_reaches_the_agent(box: Box, init: str) -> None:
    with box.started(shell(TRAP), {"AGENT_INIT": init}) as container:
        assert container.read_line() == b"ready\n"
        container.kill("TERM")
        ended = container.end()
    assert (ended.status, ended.output) == (3, b"told\n")


def test_tini_ends_what_does_not_listen(box: Box) -> None:
    """The first process of a container ignores signals without a handler; a child of tini does not."""
    with box.started(shell("echo ready; sleep 60; echo late"), {"AGENT_INIT": "1"}) as container:
        assert container.read_line() == b"ready\n"
        container.kill("TERM")
        ended = container.end()
    assert (ended.status, ended.output) == (128 + 15, b"")


def test_tini_reaps_and_runs_as_the_agent(box: Box) -> None:
    first = "tr '\\0' ' ' </proc/1/cmdline; echo"
    orphans = "(sleep 0 & exec sleep 1) & sleep 2; grep -l '^State:.Z' /proc/[0-9]*/status | wc -l"
    ended = box.run(shell(f"{first}; {orphans}; cat /proc/1/status"), {"AGENT_INIT": "1"})
    line, zombies, status = ended.output.decode().split("\n", 2)
    program, group, end, agent = line.split()[:4]
    assert (Path(program).name.removesuffix("-static"), group, end, Path(agent).name) == ("tini", "-g", "--", "sh")
    assert zombies.strip() == "0"
    check_rights(status, 1000, 1000)


def test_an_image_without_tini(box: Box, kind: str) -> None:
    target = "/usr/bin/tini-static" if kind.startswith("debian") else "/sbin/tini"
    hidden = [bind("/dev/null", target)]
    if kind.startswith("debian"):
        hidden.append(bind("/dev/null", "/usr/bin/tini"))
    message = refusal(box.run(["id"], {"AGENT_INIT": "1"}, mounts=hidden))
    assert message == "AGENT_INIT is 1, but this image has no tini"


@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("exit 255", 255), ("false", 1)])
def test_the_status_is_the_agent_s(box: Box, script: str, status: int) -> None:
    assert box.run(shell(script)).status == status
    assert box.run(shell(script), {"AGENT_INIT": "1"}).status == status
