"""Container images run as machines: with agentd as every machine, without it as their own program."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fixtures.mirror import Mirror
from tests import containerimages
from tests.conftest import need_program
from tests.images import ROOT, Builder
from tests.ociimages import Entry, tar

pytestmark = pytest.mark.vm

LOOK = """
id; pwd; echo "$A|$B"; echo "process $$"; ls -d /lib/modules/*/kernel | wc -l
hostname; grep -c nameserver /etc/resolv.conf; ls /sys/class/net | tr '\\n' ' '; echo
cat /proc/sys/kernel/kptr_restrict /proc/sys/kernel/sysrq; ls /run; echo again >/dev/stdout; sha256sum </dev/stdin
echo wrong >&2; printf '\\377\\000end'; exit 7
"""
LOOKED = b"""\
uid=1500(web) gid=1600(web) groups=1600(web),1700(extra)
/srv/new
b c|from the image
process 1
1
sandbox
1
eth0 lo\x20
2
0
imgkit.tools
lock
again
%s  -
\xff\0end"""


@pytest.mark.parametrize(
    ("arch", "words"), [("amd64", ("--machine", "microvm")), ("amd64", ()), ("arm64", ("--arch", "arm64"))]
)
def test_an_images_own_program(
    arch: str, words: tuple[str, ...], mirror: Mirror, builder: Builder, tmp_path: Path
) -> None:
    """Its output and its status are ours, byte for byte, with its user, its environment and its folder."""
    need_program("qemu-system-aarch64" if arch == "arm64" else "qemu-system-x86_64")
    config = {
        "Entrypoint": ["/bin/sh", "-c"],
        "Cmd": ["exit 1"],
        "Env": ["A=image", "B=from the image"],
        "User": "web",
        "WorkingDir": "/srv/new",
    }
    layout = containerimages.alpine_alone(tmp_path / "image.oci", mirror, config, arch)
    argv = [sys.executable, "-m", "imgkit", "run", str(layout), *builder.words, *words, "--env", "A=b c", "--", LOOK]
    given = random.Random(arch).randbytes(5 if words else 3_000_000)
    done = subprocess.run(
        argv, env=dict(builder.env), input=given, capture_output=True, timeout=400, cwd=ROOT, check=False
    )
    expected = LOOKED % hashlib.sha256(given).hexdigest().encode()
    assert (done.returncode, done.stdout) == (7, expected), done.stderr.decode()
    assert done.stderr.splitlines()[-1] == b"wrong"


def test_a_static_program_and_nothing_else(mirror: Mirror, builder: Builder, tmp_path: Path) -> None:
    """No shell, no library, no folder: Debian's program is started, by a user without a name."""
    need_program("qemu-system-x86_64")
    layer = tar(Entry("hello", containerimages.static_program(mirror), mode=0o755))
    config = {"Entrypoint": ["/hello", "-c"], "User": "77:88"}
    layout = containerimages.layout_of(tmp_path / "static.oci", layer, config)
    work = tmp_path / "work"
    work.mkdir()
    work.chmod(0o777)
    command = 'echo "$UID ${GROUPS[*]} $PWD $HOME"; echo made >made; exit 9'
    done = builder.run(
        "run", layout, *builder.words, "--machine", "microvm", "--network", "none", "--work", work, "--", command
    )
    assert (done.returncode, done.stdout) == (9, "77 88 /workspace/project /\n"), done.stderr
    assert (work / "made").read_text() == "made\n"


def test_an_image_with_agentd_is_a_machine_like_others(
    mirror: Mirror, mirror_url: str, builder: Builder, tmp_path: Path
) -> None:
    """The same requests, config drive, users and shares. The second run takes the machine from the cache, offline."""
    need_program("qemu-system-x86_64")
    layout = containerimages.with_agent(tmp_path / "agent.oci", mirror, mirror_url, tmp_path)
    work = tmp_path / "work"
    work.mkdir()
    os.chown(work, 1234, 1234) if os.getuid() == 0 else None
    (tmp_path / "key").write_text("secret\n")
    look = 'id -un; id -u; pwd; echo "$A"; printf %s "$KEY"; echo made >made; grep -c "9p" /proc/mounts; exit 7'
    words = ("--machine", "microvm", "--env", "A=b", "--secret", f"KEY={tmp_path}/key", "--work", work)
    done = builder.run("run", layout, *builder.words, *words, "--", "sh", "-c", look)
    assert done.returncode == 7, done.stderr
    assert done.stdout.splitlines() == ["agent", str(work.stat().st_uid), "/workspace/project", "b", "secret", "2"]
    assert (work / "made").stat().st_uid == work.stat().st_uid
    sysctl = "cd /proc/sys/; cat fs/protected_hardlinks fs/protected_symlinks kernel/sysrq kernel/kptr_restrict"
    again = builder.run("run", layout, *builder.words, "--offline", "--", "sh", "-c", f"{sysctl}; hostname")
    assert (again.returncode, again.stdout.split()) == (0, ["1", "1", "0", "2", "sandbox"]), again.stderr
    assert "fetch the kernel" not in again.stderr


def test_an_interrupt_is_the_images_stop_signal(mirror: Mirror, builder: Builder, tmp_path: Path) -> None:
    need_program("qemu-system-x86_64")
    config = {"Cmd": ["/bin/sh", "-c", "trap 'echo bye; exit 5' USR1; echo up; while :; do sleep 0.1; done"]}
    layout = containerimages.alpine_alone(tmp_path / "image.oci", mirror, {**config, "StopSignal": "SIGUSR1"})
    argv = [sys.executable, "-m", "imgkit", "run", str(layout), *builder.words, "--machine", "microvm"]
    with subprocess.Popen(argv, env=dict(builder.env), stdout=subprocess.PIPE, cwd=ROOT) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        time.sleep(0.5)  # the trap is there before it is said; only the loop may not have begun
        child.send_signal(signal.SIGINT)
        assert child.stdout.read() == b"bye\n"
        assert child.wait(60) == 5
