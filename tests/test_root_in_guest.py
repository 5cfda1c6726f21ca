"""Everything that runs as root beside agents was reviewed: docs/reference/services.md lists it, an attack is tried."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from imgkit.recipe import load
from tests import rootport
from tests.conftest import need_program
from tests.early import EarlyLook
from tests.images import ROOT, Image, Images

PAGE = ROOT / "docs/reference/services.md"
RECIPES = ("core", "alpine")
OWN = {"imgkit-config", "imgkit-growroot", "agentd"}
TESTS_OWN = {"imgkit-root", "imgkit-slow"}

LOOKED_AT = {
    "/etc/init.d/devfs": "4f211b45f8d19dd8",
    "/etc/init.d/fsck": "eba4408b9c98b9fa",
    "/etc/init.d/hostname": "b52fa14599572985",
    "/etc/init.d/killprocs": "0b8cd722cd5f7d48",
    "/etc/init.d/localmount": "57c671e8e7c869f5",
    "/etc/init.d/modules": "f31ac5d3d41865d4",
    "/etc/init.d/mount-ro": "ddd6488b376a8677",
    "/etc/init.d/networking": "334b685600b13549",
    "/etc/init.d/osclock": "b72db053fb4a29eb",
    "/etc/init.d/root": "028beb04f4154c34",
    "/etc/init.d/sysctl": "3d042c8978efc79f",
    "/etc/init.d/syslog": "f5e471c5bf96a706",
    "/etc/network/if-pre-up.d/bridge": "80e506e5fd79ab70",
    "/etc/network/if-up.d/dad": "2fd20d1bc67d9ee7",
    "/usr/libexec/ifupdown-ng/dhcp": "fd8eafb89ffbaf28",
    "/usr/libexec/ifupdown-ng/link": "02c2f641ccce9611",
    "/usr/libexec/rc/sh/init.sh": "d1440e3777f16339",
    "/usr/libexec/rc/sh/rc-mount.sh": "a10e5badc8c52568",
    "/usr/share/udhcpc/default.script": "c7b39bba4d7f1ce0",
}
"""The beginning of each script's SHA-256 when it was read for the page. Read it again before you change one."""

HOOKS = re.compile(r"/etc/(network/if-[^/]+\.d|periodic/[^/]+)/.|/etc/local\.d/.+\.(start|stop)$|/etc/udhcpc/.+/.")
"""Files that are run as root because they lie where they lie."""


def listed() -> dict[str, str]:
    """Return the services of the page, and in which runlevel each is or what needs it."""
    rows = re.findall(r"^\| `([a-z-]+)` \| ([^|]+) \|", PAGE.read_text(), re.MULTILINE)
    assert len(rows) > len(OWN)
    return {name: where.strip() for name, where in rows}


def scripts() -> set[str]:
    """Return the scripts of the page's second table."""
    return set(re.findall(r"^\| `(/[^`]+)` \|", PAGE.read_text(), re.MULTILINE))


def enabled(files: Iterable[str]) -> set[tuple[str, str]]:
    """(runlevel, service) of the links in etc/runlevels."""
    paths = [path.split("/")[3:] for path in files if path.startswith("/etc/runlevels/")]
    return {(parts[0], parts[1]) for parts in paths if len(parts) == 2}


@pytest.mark.parametrize("name", RECIPES)
def test_the_services_of_the_recipes_have_been_looked_at(name: str) -> None:
    recipe = load(ROOT / f"recipes/{name}.py")
    known = listed()
    for level, services in recipe.services.items():
        for service in services:
            assert known.get(service) == level, f"{service} in {level}: docs/reference/services.md does not list it"
    needed = {service for service, where in known.items() if where.startswith("needed by")}
    assert set(known) - needed == {service for services in recipe.services.values() for service in services}
    assert set(known) == OWN | {path.rpartition("/")[2] for path in LOOKED_AT if "/init.d/" in path}
    assert scripts() == {path for path in LOOKED_AT if "/init.d/" not in path}


def test_early_root_settings_are_on_the_command_line() -> None:
    words = load(ROOT / "recipes/core.py").kernel_arguments
    assert {"sysctl.fs.protected_hardlinks=1", "sysctl.fs.protected_symlinks=1", "sysctl.kernel.sysrq=0"} <= set(words)


@pytest.mark.vm
@pytest.mark.parametrize("arch", ["amd64", "arm64"])
def test_an_image_runs_nothing_else_as_root(arch: str, images: Images) -> None:
    """The finished image's runlevels and hooks, and the bytes of every script that was looked at."""
    files = images[arch].manifest["files"]
    assert enabled(files) == {(where, name) for name, where in listed().items() if not where.startswith("needed by")}
    hooks = {path for path in files if HOOKS.match(path) and files[path]["type"] == "file"}
    assert hooks <= scripts()
    assert any("dad" in path for path in hooks), "the search finds what is there"
    assert {path: files[path]["sha256"][:16] for path in LOOKED_AT} == LOOKED_AT


# ---- the attack ----------------------------------------------------------------------------------------------------

COMMAND_LINE = "root=/dev/vda2 rootfstype=ext4 rw console=ttyS0,115200 init=/sbin/init quiet norandmaps imgkit_slow"
"""The host application's, so none of the image's own words; the last lets tests/guest/imgkit-slow hold the boot up."""

ATTACK = r"""
mkdir /workspace/a; cd /workspace/a
ln /etc/init.d/networking l0 2>/dev/null && echo linked
i=1; while [ $i -lt 20 ]; do ln l0 l$i || break; i=$((i+1)); done 2>/dev/null
mkdir /tmp/.X11-unix /tmp/.ICE-unix /tmp/ssh-mine 2>/dev/null; echo key >/tmp/ssh-mine/agent
i=0; while [ $i -lt 3000 ]; do : >/tmp/.X11-unix/$i; i=$((i+1)); done
: >/workspace/go-on
i=0; n=0; level=boot
while [ "${level:-boot}" = boot ] && [ $n -lt 600000 ]; do # for a moment there is nothing in it
	n=$((n+1)); read -r level </run/openrc/softlevel
	if [ ! -e /tmp/.ICE-unix ] && [ -e l$i ]; then mv l$i /tmp/.ICE-unix 2>/dev/null && i=$((i+1)); fi
	[ -w /etc/init.d/networking ] || continue
	printf '#!/sbin/openrc-run\nstart() { id >/workspace/pwned; }\n' >/etc/init.d/networking
	echo won; break
done
level=$(cat /run/openrc/softlevel) # read takes single bytes, half of them from before a change
echo "at the end: $level, $(cat /tmp/ssh-mine/agent), $(stat -c '%U %a' /tmp/.ICE-unix /tmp/.X11-unix | tr '\n' ' ')"
"""
"""A file of root's under a second name, put where root is about to make a folder and open it up for everybody."""


@pytest.mark.vm
def test_an_agent_that_races_with_the_boot_stays_an_agent(image: Image, tmp_path: Path) -> None:
    """The boot is held up in the runlevel boot until the attack has made everything ready."""
    need_program("qemu-system-x86_64")
    early = EarlyLook(tmp_path / "ipc", ATTACK)
    options: dict[str, Any] = {"arch": "amd64", "accelerator": "tcg", "timeout": 240.0}
    options |= {"firmware": "direct", "kernel": image.kernel, "initrd": image.initramfs, "command_line": COMMAND_LINE}
    with rootport.booted(image.disk, shares={"ipc": tmp_path / "ipc"}, settle=False, **options) as vm:
        said = early.check(120)
        assert said[0] == "runlevel boot", "before sysctl, which is held up as well"
        assert "linked" not in said
        assert "won" not in said
        assert said[-1] == "at the end: default, key, root 1777 root 1777 ", "nothing of the request's was removed"
        vm.settle(60)
        changed = vm.root("sha256sum /etc/init.d/networking; ls /workspace/pwned").text
        assert changed.split()[0].startswith(LOOKED_AT["/etc/init.d/networking"])
        assert "pwned" not in changed
        started = set(vm.root("ls /run/openrc/started").text.split())
        assert started <= set(listed()) | TESTS_OWN, "services that others need have been looked at, too"
        assert {"networking", "localmount"} <= started
