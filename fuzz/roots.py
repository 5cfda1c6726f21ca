"""Targets: the parsers of a minirootfs and of files in a root filesystem."""

from __future__ import annotations

import io
import lzma
from collections.abc import Iterable, Mapping

from cryptography.x509 import NameOID

from fixtures import apkbuild
from fuzz.target import ENTRIES, Target, scratch, tar
from imgkit.errors import InputError
from imgkit.rootfs import accounts, cacerts, kernel, minirootfs
from imgkit.rootfs.binaries import elf
from imgkit.rootfs.initramfs import kmod, mkinitfs
from imgkit.tree import Inline, Tree
from tests.elves import make_elf
from tests.test_cacerts import named


def _minirootfs(data: bytes) -> None:
    with scratch() as folder:
        (folder / "x.tar.gz").write_bytes(apkbuild.gzip_member(data))
        tree = minirootfs.unpack(folder / "x.tar.gz", folder / "spool")
        tree.write_tar(io.BytesIO())


def tree_with(files: Mapping[str, bytes]) -> Tree:
    """Return a Tree that has the usual directories, and these files."""
    tree = Tree()
    for folder in ("bin", "dev", "tmp", "var/cache", "etc/init.d", "etc/conf.d", "etc/apk", "usr/share", "lib"):
        tree.mkdir(folder)
    for path, data in files.items():
        tree.write(path, data, mode=0o755)
    return tree


ACCOUNTS = {
    "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\nbin:x:1:1:bin:/bin:/sbin/nologin\n",
    "etc/group": b"root:x:0:root\nwheel:x:10:root\nnogroup:x:65533:\n",
    "etc/shadow": b"root:*::0:::::\nbin:!::0:::::\n",
}


def _accounts(data: bytes) -> None:
    passwd, group, shadow = [*data.split(b"\0", 2), b"", b""][:3]
    tree = tree_with({"etc/passwd": passwd, "etc/group": group, "etc/shadow": shadow})
    accounts.lookup(tree)
    accounts.ensure_user(tree, "agent", uid=None, groups=("wheel",))
    tree.write_tar(io.BytesIO())


def _certificates(data: bytes) -> None:
    tree = tree_with({"etc/ca-certificates.conf": b"a.crt\nb c.crt\n!d\n", "usr/share/ca-certificates/a.crt": data})
    cacerts.update(tree)
    cacerts.rehash(tree)


def _certificate_seeds() -> Iterable[bytes]:
    yield named((NameOID.ORGANIZATION_NAME, "An  Organisation"), (NameOID.COMMON_NAME, "Name"))


def _elf(data: bytes) -> None:
    elf.read(Inline(data))
    elf.section(data, ".modinfo")


def _elf_seeds() -> Iterable[bytes]:
    more = {".modinfo": b"license=GPL\0"}
    loader = "/lib/ld-musl-x86_64.so.1"
    yield make_elf(needed=["libc.so"], interpreter=loader, soname="x", runpath="/a:$ORIGIN/b", sections=more)
    yield make_elf("armv7", needed=["a", "b"], sections=more)


def _modules(data: bytes) -> None:
    """Parse the text files of depmod, which two NULs separate in the input."""
    dep, alias, builtin, modinfo = [*data.decode(errors="surrogateescape").split("\0\0", 3), "", "", ""][:4]
    texts = {"dep": dep, "alias": alias, "symbols": alias, "builtin": builtin, "builtin.modinfo": modinfo}
    modules = kmod.parse_dependencies(dep, "lib/modules/6")
    kept = kmod.closure(modules, list(modules)[:2])
    kmod.subset(texts, kept, "lib/modules/6")


_MODULES = b"kernel/a.ko.gz: kernel/b.ko\nkernel/b.ko:\n\0\0alias pci:v*-d[a-b]* a\nalias x b\n\0\0kernel/c.ko\n\0\0"
_MODULES += b"c.alias=pci:x\0c.license=GPL\0"


def _configuration(data: bytes) -> None:
    """Parse mkinitfs.conf and a list of files, which a NUL separates in the input."""
    conf, _, files = data.partition(b"\0")
    tree = tree_with({"etc/mkinitfs/mkinitfs.conf": conf, "etc/mkinitfs/features.d/base.files": files, "bin/sh": b""})
    mkinitfs.read_configuration(tree)
    for _ in mkinitfs.feature_files(tree, ["base"], "files", ""):
        pass


def _kernel(data: bytes) -> None:
    kernel.unpack_zboot(data, "boot/vmlinuz")


def _zboot() -> Iterable[bytes]:
    inside = bytes(56) + b"ARMd" + bytes(100)
    payload = apkbuild.gzip_member(inside)
    for method, packed in ((b"gzip", payload), (b"xzkern", lzma.compress(inside))):
        head = b"MZ\0\0zimg" + (64).to_bytes(4, "little") + len(packed).to_bytes(4, "little") + bytes(8)
        yield (head + method.ljust(32, b"\0")).ljust(64, b"\0") + packed


_MKINITFS = b'features="base"\ninitfscomp=gzip # x\ncomplevel_gzip=-9\n\0bin/*\n/etc/../b?n'

TARGETS: Mapping[str, Target] = {
    "minirootfs": Target(_minirootfs, (InputError,), lambda: [tar(ENTRIES[:-1])]),
    "accounts": Target(_accounts, (accounts.AccountError,), lambda: [b"\0".join(ACCOUNTS.values())]),
    "certificates": Target(_certificates, (InputError,), _certificate_seeds),
    "elf": Target(_elf, (elf.ElfError,), _elf_seeds),
    "modules": Target(_modules, (InputError,), lambda: [_MODULES]),
    "mkinitfs": Target(_configuration, (InputError,), lambda: [_MKINITFS]),
    "kernel": Target(_kernel, (InputError,), _zboot),
}
