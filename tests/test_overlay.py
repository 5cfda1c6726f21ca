"""Scripts of the overlay, run on this host with fake programs that record their command lines."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "overlay"
IMGKIT = ROOT / "usr/local/lib/imgkit"
NOTE = '#!/bin/sh\necho "${0##*/} $*" >>"$NOTES"\n'


def programs(folder: Path, endings: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which these programs write their command lines to ``folder``/notes, and end as given."""
    for name, ending in endings.items():
        program = folder / name
        program.write_text(NOTE + ending)
        program.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}", "NOTES": str(folder / "notes")}


def noted(notes: Path) -> list[str]:
    return notes.read_text().splitlines() if notes.exists() else []


@pytest.mark.parametrize("status", [0, 1])
def test_what_agentd_needs_is_fetched_and_nobody_waits(status: int, tmp_path: Path) -> None:
    """The program is read also where there are no drivers; init goes on at once."""
    notes = tmp_path / "notes"
    endings = {**dict.fromkeys(("hostname", "ip", "modprobe"), f"exit {status}"), "cat": "exec sleep 60"}
    env = programs(tmp_path, {**endings, **dict.fromkeys(("sysctl", "mount"), f"exit {status}")})
    script = IMGKIT / "ahead"
    child = subprocess.Popen(
        [script], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        assert child.communicate(timeout=30)[0] == b"", "nothing is printed, and no pipe is kept open"
        assert child.returncode == 0
        deadline = time.monotonic() + 30
        while len(fetched := [line for line in noted(notes) if not line.startswith(("sysctl ", "mount "))]) < len(
            endings
        ):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        *system, drivers_line, program_line = fetched
    finally:
        os.killpg(child.pid, 9)
    assert system == ["hostname -F /etc/hostname", "ip link set lo up"]
    assert program_line == "cat /usr/bin/node"
    drivers = drivers_line.removeprefix("modprobe -a -q ").split()
    listed = (ROOT / "etc/modules-load.d/imgkit.conf").read_text().splitlines()
    assert drivers
    assert set(drivers) <= set(listed), "what may fail here is loaded for certain there"


# ---- the kernel's settings -----------------------------------------------------------------------------------------

SETTINGS = f". {IMGKIT}/kernel-settings.sh; "


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """The root of a system whose kernel protects links, with a file of settings in every folder that may have one."""
    root = tmp_path / "root"
    kernel = root / "proc/sys/fs"
    kernel.mkdir(parents=True)
    for name in ("protected_hardlinks", "protected_symlinks"):
        (kernel / name).write_text("1")  # a shell gets no more than this of the kernel's files: it reads byte by byte
    for path in ("lib/sysctl.d/a.conf", "usr/lib/sysctl.d/00.conf", "usr/lib/sysctl.d/same.conf", "etc/sysctl.conf"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("")
    for name in ("imgkit.conf", "same.conf", "README"):
        (root / "etc/sysctl.d").mkdir(exist_ok=True)
        (root / "etc/sysctl.d" / name).write_text("")
    return root


def shell(words: str, env: Mapping[str, str]) -> int:
    return subprocess.run(["/bin/sh", "-c", SETTINGS + words], env=dict(env), timeout=30).returncode


@pytest.mark.parametrize("status", [0, 1])
def test_settings_are_applied_in_the_order_of_openrc(status: int, system: Path, tmp_path: Path) -> None:
    """A file of the same name in /etc replaces the package's; one that fails does not keep the others back."""
    env = programs(tmp_path, {"sysctl": f"exit {status}", "mount": "exit 0"})
    assert shell(f'apply_settings "{system}"', env) == 0
    files = ["lib/sysctl.d/a.conf", "usr/lib/sysctl.d/00.conf"]
    files += ["etc/sysctl.d/imgkit.conf", "etc/sysctl.d/same.conf", "etc/sysctl.conf"]
    assert noted(tmp_path / "notes") == [f"sysctl -e -q -p {system}/{file}" for file in files]


def test_settings_bring_proc_where_nobody_has_mounted_it(system: Path, tmp_path: Path) -> None:
    env = programs(tmp_path, {"sysctl": "exit 0", "mount": "exit 0"})
    shutil.rmtree(system / "proc")
    shell(f'apply_settings "{system}"', env)
    assert noted(tmp_path / "notes")[0] == f"mount -n -t proc -o nosuid,nodev,noexec proc {system}/proc"


@pytest.mark.parametrize("name", ["protected_hardlinks", "protected_symlinks"])
@pytest.mark.parametrize("value", ["0", "", "x", "-1", None])
def test_links_are_protected_only_if_the_kernel_says_so(name: str, value: str | None, system: Path) -> None:
    check = f'links_are_protected "{system}"'
    assert shell(check, os.environ) == 0
    setting = system / "proc/sys/fs" / name
    if value is None:
        setting.unlink()
    else:
        setting.write_text(value)
    assert shell(check, os.environ) != 0


def test_init_waits_for_the_settings(tmp_path: Path) -> None:
    """The script that init runs first ends only when the settings have been applied."""
    env = programs(tmp_path, dict.fromkeys(("hostname", "ip", "modprobe", "cat"), "exit 0"))
    shutil.copy(IMGKIT / "ahead", tmp_path / "ahead")
    slow = 'apply_settings() { sleep 0.3; echo "written $*" >>"$NOTES"; }\n'
    (tmp_path / "kernel-settings.sh").write_text(slow)
    assert subprocess.run([tmp_path / "ahead"], env=env, timeout=60).returncode == 0
    assert "written " in noted(tmp_path / "notes")
    (first, *_) = [line for line in (ROOT / "etc/inittab").read_text().splitlines() if "sysinit" in line]
    assert first == "::sysinit:/usr/local/lib/imgkit/ahead", "sysinit's programs run one after the other (busybox init)"


# ---- agentd's service ----------------------------------------------------------------------------------------------

FAKES = """
say() { echo "said $*" >>"$NOTES"; }
einfo() { echo "info $*" >>"$NOTES"; }
writable_root() { :; }
links_are_protected() { echo "asked $*" >>"$NOTES"; [ -e "$NOTES.protected" ]; }
apply_settings() { echo "applied $*" >>"$NOTES"; [ ! -e "$NOTES.works" ] || : >"$NOTES.protected"; }
"""


def service(words: str, folder: Path, endings: Mapping[str, str]) -> list[str]:
    """Run ``words`` with the functions of /etc/init.d/agentd and the workspace ``folder``/work; return the notes."""
    script = (ROOT / "etc/init.d/agentd").read_text().replace("/usr/local/lib/imgkit/", f"{IMGKIT}/")
    (folder / "agentd").write_text(script)
    env = {**programs(folder, endings), "AGENTD_WORKDIR": str(folder / "work")}
    argv = ["/bin/sh", "-c", f". {folder}/agentd; {FAKES} {words}; echo status $? >>$NOTES"]
    subprocess.run(argv, env=env, timeout=30, check=True, capture_output=True)
    return noted(folder / "notes")


@pytest.mark.parametrize("state", ["protected", "works", "neither"])
def test_the_service_does_not_start_unless_links_are_protected(state: str, tmp_path: Path) -> None:
    """This holds for every payload: agentd checks the kernel as well, but later, and another payload need not."""
    (tmp_path / "entry").touch()
    (tmp_path / f"notes.{state}").touch()
    words = f"AGENTD_ENTRY={tmp_path}/entry; mount_ipc() {{ :; }}; start_pre"
    notes = service(words, tmp_path, {"mkdir": "exit 0"})
    if state == "protected":
        assert notes == ["asked ", "mkdir -p /run/agentd", "status 0"]
    elif state == "works":
        assert notes == ["asked ", "applied ", "asked ", "mkdir -p /run/agentd", "status 0"]
    else:
        sentence = "said fs.protected_hardlinks and fs.protected_symlinks are not in force: no agent is run"
        assert notes == ["asked ", "applied ", "asked ", sentence, "status 1"]


MOUNTS = 'echo "in $(readlink /proc/self/cwd)" >>"$NOTES"; '
OPTIONS = "trans=virtio,version=9p2000.L,msize=262144,access=0,nosuid,nodev,noexec"


def mounting(folder: Path, mount: str = "exit 0") -> list[str]:
    """Mount the request share where nothing is mounted, and return the notes; ``mount`` is that program's status."""
    programs_ = {"mountpoint": "exit 1", "mount": MOUNTS + mount, "umount": "exit 0"}
    return [line.replace(str(folder), "") for line in service("mount_ipc", folder, programs_)]


MOUNTED = [f"mount -t 9p -o {OPTIONS} ipc /proc/self/cwd", "in /work/ipc"]


@pytest.mark.parametrize("present", ["nothing", "folder", "link"])
def test_the_request_share_is_mounted_on_the_folder_itself(present: str, tmp_path: Path) -> None:
    """It is never mounted where a link leads that was made at an earlier boot."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "work").mkdir()
    if present == "folder":
        (tmp_path / "work/ipc").mkdir()
    elif present == "link":
        (tmp_path / "work/ipc").symlink_to(tmp_path / "elsewhere")
    assert mounting(tmp_path) == ["mountpoint -q /work/ipc", *MOUNTED, "status 0"]
    assert not (tmp_path / "work/ipc").is_symlink()


def test_the_request_share_is_taken_away_where_its_folder_was_moved(tmp_path: Path) -> None:
    """Processes that agents left running can move it while the service is started again."""
    (tmp_path / "work").mkdir()
    race = f"mv {tmp_path}/work/ipc {tmp_path}/work/mine; ln -s /etc {tmp_path}/work/ipc"
    notes = mounting(tmp_path, race)
    assert notes == ["mountpoint -q /work/ipc", *MOUNTED, "umount -l /work/mine", "status 0"]


def test_the_request_share_is_not_mounted_through_a_link_that_came_in_time(tmp_path: Path) -> None:
    """The link is put there again as soon as it has been removed."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "work").mkdir()
    (tmp_path / "work/ipc").symlink_to(tmp_path / "elsewhere")
    again = f'/bin/rm "$@"; ln -s {tmp_path}/elsewhere {tmp_path}/work/ipc'
    notes = service("mount_ipc", tmp_path, {"mountpoint": "exit 1", "rm": again, "mount": "exit 0"})
    assert not [line for line in notes if line.startswith("mount ")]
    assert notes[-1] == "status 0", "agentd tries again, and reports it"


def test_the_request_share_may_be_missing(tmp_path: Path) -> None:
    assert mounting(tmp_path, "exit 1")[-2:] == ["info No 9p share; agentd will look for the serial port", "status 0"]
    assert (tmp_path / "work/ipc").is_dir()
