"""The programs that package scripts may call: where they are found, and their status."""

from __future__ import annotations

import pytest

from imgkit.rootfs.scripts.effects import Hooks, Unsupported, run_script
from tests.test_scripts import EPOCH, base, run, said


def test_programs_are_found_by_their_folders() -> None:
    assert said("/bin/echo a; /usr/sbin/addgroup x; busybox echo b; /bin/busybox echo c; /usr/bin/busybox true") == [
        "a", "b", "c",
    ]  # fmt: skip
    for name in ("/usr/local/bin/echo", "./echo", "/opt/busybox", "busybox"):
        with pytest.raises(Unsupported, match=f"the command {name}"):
            run(f"{name} x" if name != "busybox" else name)


@pytest.mark.parametrize(
    "command",
    [
        *(":", ". /lib.sh", "cd /etc", "command true", "command -v sh", "command -v cd", "command -v f", "export x=1"),
        *("local x=1", "read x <etc/motd", "readonly x=1", "set a b", "set -- a", "set -u", "set a; shift", "umask"),
        *("umask 022", "unset x", "wait", "true & wait 1001", "f", "eval=1", "x=1 true"),
        *("test a", "[ a ]", "true", "sync", "sleep 1", "pwd", "echo a", "printf a", "printf %s a b", "cat etc/motd"),
        *("grep W etc/motd", "grep -q W etc/motd", "grep -c W etc/motd", "fgrep W etc/motd", "egrep W etc/motd"),
        *("cut -d: -f1 etc/passwd", "head etc/motd", "basename /a/b", "dirname /a/b", "readlink bin/sh"),
        *("readlink -f bin/sh", "which sh", "which sh busybox", "sort etc/motd", "sort -o f etc/motd", "ls", "ls etc"),
        *(
            "find etc",
            "find etc -name motd -exec true ';'",
            "find etc -name motd -exec true {} +",
            "find etc -name none",
        ),
        *("ln -s a b", "mkdir d", "mkdir -p a/b", "rm etc/motd", "rm -f none", "rmdir tmp", "mv etc/motd m"),
        *("cp etc/motd m", "touch f", "touch -c f", "install etc/motd m", "install -d d", "chmod 600 etc/motd"),
        *("chown bin etc/motd", "chgrp bin etc/motd", "addgroup g", "addgroup bin wheel", "adduser -D u"),
        *("adduser bin wheel", "passwd -u bin", "echo root:x | chpasswd -e", "getent passwd", "getent passwd root"),
        *("getent group 0", "id", "id -u", "id -G", "id -Gn", "add-shell /bin/x", "rc-update add web default"),
        *("rc-update -q add web default; rc-update del web default", "c_rehash etc", "update-ca-certificates"),
        *("busybox true", "busybox-extras --install -s", "busybox --install -s", "depmod 6.1", "mkinitfs -o /i 6.1"),
    ],
)
def test_what_succeeds_has_status_0(command: str) -> None:
    tree = base()
    tree.write("lib.sh", "true\n")
    tree.write("etc/init.d/web", "", mode=0o755)
    tree.mkdir("etc/runlevels/default")
    tree.mkdir("lib/modules/6.1")
    tree.write("etc/ca-certificates.conf", "")
    tree.write("bin/busybox-extras", "", mode=0o755)
    for name in ("busybox", "busybox-extras"):
        tree.write(f"etc/busybox-paths.d/{name}", "usr/bin/telnet\n")
    text = f"#!/bin/sh\nf() {{ :; }}\n{command}\necho $? >/status\n"
    hooks = Hooks(mkinitfs=lambda *_: None)
    run_script(tree, text, package="demo", kind="post-install", epoch=EPOCH, hooks=hooks)
    assert tree.text("status") == "0\n"


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("false", 1),
        ("test", 1),
        ("test a -lt 1", 2),
        ("command", 0),
        ("command -v none", 127),
        ("shift 1", 1),
        ("cd none", 2),
        ("wait 1001", 127),
        ("exit x", 2),
        ("read x </dev/null", 1),
        ("printf", 2),
        ("printf %d x", 1),
        ("cat none", 1),
        ("grep none etc/motd", 1),
        ("grep -v . etc/motd", 1),
        ("grep a none", 2),
        ("grep W none etc/motd", 0),
        ("grep W etc/motd none", 0),
        ("grep a etc/motd none", 2),
        ("cut -f1 none", 1),
        ("head none", 1),
        ("basename", 1),
        ("readlink etc/motd", 1),
        ("readlink none", 1),
        ("readlink", 1),
        ("which none", 1),
        ("which sh none", 1),
        ("which", 1),
        ("sort none", 2),
        ("ls none", 1),
        ("ls none etc", 1),
        ("find none", 1),
        ("find etc -exec false {} +", 1),
        ("find etc -exec false ';'", 0),
        ("ln -s a etc/motd", 1),
        ("rmdir none", 1),
        ("rmdir etc", 1),
        ("chmod x etc/motd", 1),
        ("chown none etc/motd", 1),
        ("addgroup bin", 1),
        ("addgroup none none", 1),
        ("adduser", 1),
        ("adduser -D bin", 1),
        ("passwd -l bin", 1),
        ("getent passwd none", 2),
        ("getent passwd none root", 2),
        ("id none", 1),
        ("rc-update add none default", 1),
        ("rc-update del none default", 1),
        ("c_rehash none", 1),
        ("depmod 1", 1),
        ("modprobe x", 1),
        ("echo x >none/f", 1),
        ("cat <none", 1),
    ],
)
def test_what_fails_has_a_status_of_its_own(command: str, status: int) -> None:
    tree, _ = run(f"{command}\necho $? >/status")
    assert tree.text("status") == f"{status}\n"
