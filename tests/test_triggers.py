"""Which directories a trigger sees, and the commands that imgkit computes itself."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgkit.rootfs import busybox
from imgkit.rootfs.scripts.budget import Exhausted
from imgkit.rootfs.scripts.effects import Hooks, Outcome, Unsupported, run_script
from imgkit.rootfs.scripts.triggers import matching_directories, unlisted_modules
from imgkit.tree import Directory, Symlink, Tree, TreeError

RELEASE = "6.18.56-0-virt"
DIRECTORIES = [
    "",
    "bin",
    "usr",
    "usr/bin",
    "lib/modules",
    f"lib/modules/{RELEASE}",
    f"lib/modules/{RELEASE}/kernel",
    "etc/.x",
]


@pytest.mark.parametrize(
    ("globs", "found"),
    [
        (["/bin", "/usr/bin", "/sbin"], ["/bin", "/usr/bin"]),
        (["/lib/modules/*"], [f"/lib/modules/{RELEASE}"]),
        (["/*"], ["/", "/bin", "/usr"]),
        (["/etc/*"], ["/etc/.x"]),
        (["/us?"], ["/usr"]),
        (["/[ub]*"], ["/bin", "/usr"]),
        (["/usr/"], []),
        (["usr"], []),
        ([], []),
    ],
)
def test_matching_directories(globs: list[str], found: list[str]) -> None:
    assert matching_directories(DIRECTORIES, globs) == tuple(found)


def test_plus_means_modified_only() -> None:
    assert matching_directories(DIRECTORIES, ["+/usr/*", "/bin"], modified={"bin"}) == ("/bin",)
    assert matching_directories(DIRECTORIES, ["+/usr/*"], modified={"usr/bin"}) == ("/usr/bin",)
    assert matching_directories(DIRECTORIES, ["+/usr/*"]) == ("/usr/bin",)
    assert matching_directories(DIRECTORIES, ["/usr/*"], modified=()) == ("/usr/bin",)


@pytest.mark.slow
@pytest.mark.parametrize(
    "globs",
    [
        ["/" + "".join(f"[a-{chr(0x4E00 + 2 * i + j)}]" for i in range(800)) for j in range(20)],
        ["/" + "*a" * 2000 + str(number) for number in range(200)],
    ],
)
def test_patterns_of_a_trigger_have_a_budget(globs: list[str]) -> None:
    """Compiling these took a minute, and the time grew with the number of directories."""
    started = time.process_time()
    with pytest.raises(Exhausted):
        matching_directories([f"{'a' * 200}{number}" for number in range(10_000)], globs)
    assert time.process_time() - started < 20


@settings(deadline=None)
@given(st.text("/a*?[]!-\\+", max_size=12))
def test_any_glob_matches_or_not(glob: str) -> None:
    assert set(matching_directories(DIRECTORIES, [glob])) <= {"/" + path for path in DIRECTORIES}


def linked() -> Tree:
    tree = Tree()
    tree.write("bin/busybox", "\x7fELF", mode=0o755)
    tree.write("etc/busybox-paths.d/busybox", "bin/ls\nbin/sh\nsbin/depmod\nusr/bin/awk\nopt/none\n")
    tree.mkdir("sbin")
    tree.mkdir("usr/bin")
    return tree


def test_busybox_links_where_nothing_is() -> None:
    tree = linked()
    tree.symlink("bin/sh", "dash")
    tree.write("sbin/depmod", "real")
    assert busybox.install_links(tree, epoch=4) == 2
    assert tree["bin/ls"] == Symlink(target="/bin/busybox", mtime=4)
    assert tree["usr/bin/awk"] == Symlink(target="/bin/busybox", mtime=4)
    assert tree["bin/sh"] == Symlink(target="dash")
    assert tree.read("sbin/depmod") == b"real"
    assert "opt" not in tree
    assert busybox.install_links(tree) == 0


def test_busybox_links_on_a_merged_usr() -> None:
    tree = Tree()
    tree.write("usr/bin/busybox", "\x7fELF", mode=0o755)
    tree.symlink("bin", "usr/bin")
    tree.write("etc/busybox-paths.d/busybox", "bin/ls\nusr/bin/ls\n")
    assert busybox.install_links(tree) == 1
    assert tree["usr/bin/ls"] == Symlink(target="/bin/busybox")


def test_busybox_lists_are_checked() -> None:
    with pytest.raises(TreeError, match="no list of the applets of bin/busybox"):
        busybox.install_links(Tree())
    tree = linked()
    tree.write("etc/busybox-paths.d/busybox", "../../etc/passwd\n")
    with pytest.raises(TreeError, match="not a path inside"):
        busybox.install_links(tree)


def test_script_that_installs_links_and_makes_the_user() -> None:
    tree = linked()
    tree.write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")
    tree.write("etc/group", "root:x:0:root\n")
    text = """#!/bin/busybox sh
    /bin/busybox mkdir -p /bin /sbin /usr/sbin
    /bin/busybox --install -s || exit 1
    addgroup -S klogd 2>/dev/null
    adduser -S -D -H -h /dev/null -s /sbin/nologin -G klogd -g klogd klogd 2>/dev/null
    exit 0
    """
    assert run_script(tree, text, package="busybox", kind="post-install") == Outcome(0)
    assert isinstance(tree["usr/sbin"], Directory)
    assert tree["bin/ls"] == Symlink(target="/bin/busybox")
    assert tree.text("etc/passwd").endswith("klogd:x:100:100:klogd:/dev/null:/sbin/nologin\n")


def kernel() -> Tree:
    tree = Tree()
    top = f"lib/modules/{RELEASE}"
    tree.write(f"{top}/kernel/fs/ext4.ko.gz", "m")
    tree.write(f"{top}/kernel/lib/crc16.ko", "m")
    tree.write(f"{top}/modules.dep", "kernel/fs/ext4.ko.gz: kernel/lib/crc16.ko\nkernel/lib/crc16.ko:\n")
    tree.write(f"{top}/modules.order", "")
    tree.write(f"{top}/kernel-suffix", "-virt\n")
    return tree


DEPMOD = """#!/bin/sh
for i in "$@"; do
	if [ -e "$i"/modules.order ]; then
		/sbin/depmod "${i#*/lib/modules/}"
	fi
done
"""


def depmod(tree: Tree) -> Outcome:
    return run_script(tree, DEPMOD, package="kmod", kind="trigger", args=[f"/lib/modules/{RELEASE}"])


def test_depmod_has_nothing_to_do_for_a_packaged_kernel() -> None:
    tree = kernel()
    before = dict(tree.items())
    assert depmod(tree) == Outcome(0)
    assert dict(tree.items()) == before


def test_depmod_for_modules_that_the_kernel_does_not_list_is_refused() -> None:
    tree = kernel()
    tree.write(f"lib/modules/{RELEASE}/extra/zfs.ko.zst", "m")
    assert unlisted_modules(tree, RELEASE) == ["extra/zfs.ko.zst"]
    with pytest.raises(Unsupported, match=rf"kmod.trigger, line 4: depmod {RELEASE}: extra/zfs.ko.zst is not in"):
        depmod(tree)


def test_depmod_notices_a_module_that_went() -> None:
    tree = kernel()
    tree.remove(f"lib/modules/{RELEASE}/kernel/lib/crc16.ko")
    assert unlisted_modules(tree, RELEASE) == ["kernel/lib/crc16.ko"]


def test_depmod_of_a_kernel_that_is_not_there_fails() -> None:
    text = "#!/bin/sh\ndepmod 1.2.3\n"
    assert run_script(kernel(), text, package="p", kind="trigger").status == 1


MKINITFS = """#!/bin/sh
case "$(. /etc/mkinitfs/mkinitfs.conf >/dev/null; printf %s "$disable_trigger")" in
	yes|1) exit 0;;
esac
for i in "$@"; do
	suffix="$(cat "$i"/kernel-suffix 2>/dev/null)" || {
		rm -f "$i"/initramfs-suffix
		continue
	}
	echo "$suffix" > "$i"/initramfs-suffix
	mkinitfs -o "/boot/initramfs$suffix" "${i##*/}" || exit 1
done
"""


def mkinitfs(tree: Tree, conf: str = "features=base\n") -> list[tuple[str, str]]:
    calls: list[tuple[str, str]] = []
    hooks = Hooks(mkinitfs=lambda _, release, path: calls.append((release, path)))
    tree.write("etc/mkinitfs/mkinitfs.conf", conf)
    args = [f"/lib/modules/{RELEASE}", "/lib/modules/gone"]
    assert run_script(tree, MKINITFS, package="mkinitfs", kind="trigger", args=args, hooks=hooks) == Outcome(0)
    return calls


def test_mkinitfs_is_called_for_every_kernel_there_is() -> None:
    tree = kernel()
    assert mkinitfs(tree) == [(RELEASE, "boot/initramfs-virt")]
    assert tree.text(f"lib/modules/{RELEASE}/initramfs-suffix") == "-virt\n"


def test_mkinitfs_can_be_switched_off_in_its_configuration() -> None:
    assert mkinitfs(kernel(), "disable_trigger=yes\n") == []


def certificates() -> Tree:
    tree = Tree()
    tree.write("etc/ca-certificates.conf", "")
    tree.write(
        "etc/ca-certificates/update.d/certhash", "#!/bin/sh\nexec /usr/bin/c_rehash /etc/ssl/certs\n", mode=0o755
    )
    return tree


def test_update_ca_certificates_runs_its_hooks_in_the_interpreter() -> None:
    tree = certificates()
    tree.symlink("etc/ssl/certs/01234567.0", "gone.pem")
    tree.write("etc/ca-certificates/update.d/switched-off", "#!/bin/sh\nfrob\n", mode=0o644)
    tree.write("etc/ca-certificates/update.d/name.ignored", "#!/bin/sh\nfrob\n", mode=0o755)
    text = "#!/bin/sh\n/usr/sbin/update-ca-certificates > /dev/null 2>&1\nexit 0\n"
    assert run_script(tree, text, package="ca-certificates", kind="trigger") == Outcome(0)
    assert tree.read("etc/ssl/certs/ca-certificates.crt") == b""
    assert "etc/ssl/certs/01234567.0" not in tree


def test_an_unknown_hook_of_ca_certificates_is_refused() -> None:
    tree = certificates()
    tree.write("etc/ca-certificates/update.d/java", "#!/bin/sh\ntrust extract\n", mode=0o755)
    with pytest.raises(Unsupported, match="the command trust"):
        run_script(tree, "#!/bin/sh\nupdate-ca-certificates\n", package="ca-certificates", kind="trigger")


def test_what_update_ca_certificates_writes_has_the_time_of_the_build() -> None:
    tree = certificates()
    tree.write("etc/ca-certificates/update.d/only-others", "#!/bin/sh\ntouch /ran\n", mode=0o601)
    text = "#!/bin/sh\nupdate-ca-certificates -v\nc_rehash /etc/ssl/certs\n"
    assert run_script(tree, text, package="p", kind="trigger", epoch=7) == Outcome(0)
    assert tree["etc/ssl/certs/ca-certificates.crt"].mtime == 7
    assert tree["ran"].mtime == 7


@pytest.mark.parametrize(
    "text",
    [
        "update-ca-certificates --fresh",
        "c_rehash",
        "c_rehash -v",
        "c_rehash a b",
        "depmod",
        "depmod -a",
        "depmod 1 2",
        "mkinitfs 6.1",
        "mkinitfs -o /i",
        "mkinitfs -o /i 1 2",
        "rc-update",
        "rc-update add a",
        "rc-update show a b",
        "rc-update add a b c",
        "busybox-extras --install",
        "busybox --install",
    ],
)
def test_other_ways_to_call_them_are_refused(text: str) -> None:
    hooks = Hooks(mkinitfs=lambda *_: None)
    with pytest.raises(Unsupported, match=r"^p\.k, line 2: (option|c_rehash|depmod|mkinitfs|rc-update|bin/busybox)"):
        run_script(certificates(), f"#!/bin/sh\n{text}\n", package="p", kind="k", hooks=hooks)
