"""``imgkit verify``: the files beside the image, what a manifest may say, and archives of hostile filesystems.

None of these starts an appliance: where one would be needed, the test fails at once.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from imgkit.engines.guestfs.lookscripts import BENEATH
from imgkit.errors import InputError
from imgkit.image.manifest import MAX_SIZE, read_manifest
from imgkit.rootfs.digest import NodeRecord, differences, records
from imgkit.tree import Device, Directory, File, HardLink, Inline, Symlink, Tree, TreeError
from imgkit.verification import statement
from imgkit.verification.beside import boot_files, compare_boot_files
from imgkit.verification.contents import Contents, compare_archive, with_one_leader
from tests.commandline import Place, Ran
from tests.conftest import need_program
from tests.verifying import LAYOUT, MIB, SIZE, Build, flip, make_build, make_disk, seeded, tar_of

pytestmark = pytest.mark.hostile

FOREVER = float("inf")


@pytest.fixture
def build(here: Place) -> Build:
    """What a build leaves."""
    here.out.mkdir()
    raw, image = here.base / "disk.raw", here.out / "linux-amd64.qcow2"
    stated = make_disk(raw)
    subprocess.run([need_program("qemu-img"), "convert", "-c", "-O", "qcow2", raw, image], check=True)
    return make_build(here.out, image, raw, stated)


def verify(here: Place, image: Path, *words: str | Path) -> Ran:
    return here.run("verify", image, *words, timeout=60)


def fault(ran: Ran, *lines: str) -> None:
    """Status 4, these lines and no others, one error."""
    assert ran.status == 4, ran.err
    assert ran.out.splitlines() == list(lines)
    assert len(ran.errors) == 1
    count = "1 difference" if len(lines) == 1 else f"{len(lines)} differences"
    assert ran.errors[0].endswith(f"says: {count}")


# ---- the files of a build ------------------------------------------------------------------------------------------


def test_the_very_files_that_were_built(here: Place, build: Build) -> None:
    ran = verify(here, build.image)
    assert ran.status == 0, ran.err
    assert ran.out.splitlines() == [
        f"{build.image}: the very file that was built",
        "vmlinuz-virt-amd64: the very file that was built",
        "initramfs-virt-amd64: the very file that was built",
    ]


@pytest.mark.parametrize("role", ["kernel", "initramfs"])
def test_a_changed_file_beside_the_image(role: str, here: Place, build: Build) -> None:
    path = {"kernel": build.kernel, "initramfs": build.initramfs}[role]
    rng = seeded()
    size = path.stat().st_size
    stated = statement.parse(read_manifest(build.manifest), build.manifest)
    for place in [0, size - 1, *(rng.randrange(size) for _ in range(100))]:
        flip(path, place)
        assert compare_boot_files(build.image, stated)[1] == [f"{path.name}: is not the {role} that was built"], place
        flip(path, place)
    assert compare_boot_files(build.image, stated)[1] == []
    flip(path, size // 2)
    fault(verify(here, build.image), f"{path.name}: is not the {role} that was built")
    path.unlink()
    assert verify(here, build.image).status == 0, "an image may be kept alone"
    os.mkfifo(path)
    fault(verify(here, build.image), f"{path.name}: is not the {role} that was built")
    path.unlink()
    path.symlink_to("nowhere")
    fault(verify(here, build.image), f"{path.name}: is not the {role} that was built")


def test_a_kernel_that_a_direct_boot_would_prefer(here: Place, build: Build) -> None:
    (here.out / "vmlinuz-zzz-amd64").write_bytes(b"evil")
    (here.out / "vmlinuz-aaa-amd64").write_bytes(b"of another recipe")
    (here.out / "vmlinuz-zzz-arm64").write_bytes(b"of another machine")
    line = "vmlinuz-zzz-amd64: not in the manifest, and taken for the kernel by a direct boot"
    fault(verify(here, build.image), line)


@pytest.mark.parametrize("without", [False, True], ids=["with its files", "with them deleted"])
def test_what_a_direct_boot_would_take_in_place_of_what_was_built(without: bool, here: Place, build: Build) -> None:
    """Another name is enough where the files that were built are not there: no matter in which order they come."""
    stated = statement.parse(read_manifest(build.manifest), build.manifest)
    name = "vmlinuz-lts-amd64"
    (here.out / name).write_bytes(b"evil")
    if without:
        build.kernel.unlink()
        fault(verify(here, build.image), f"{name}: not in the manifest, and taken for the kernel by a direct boot")
    else:
        assert compare_boot_files(build.image, stated)[1] == []
    assert boot_files(build.image, "amd64") == {"kernel": build.kernel, "initramfs": build.initramfs}
    build.manifest.rename(here.base / "stated")
    assert boot_files(build.image, "amd64")["kernel"].name == (name if without else build.kernel.name)


def test_another_manifest_beside_the_image_names_another_kernel(here: Place, build: Build) -> None:
    """The one that is believed was given by name."""
    believed = here.base / "believed.json"
    believed.write_text(build.manifest.read_text())
    build.manifest.write_text(believed.read_text().replace(build.kernel.name, "other"))
    (here.out / "other").write_bytes(b"evil")
    line = "other: not in the manifest, and taken for the kernel by a direct boot"
    fault(verify(here, build.image, "--manifest", believed), line)


def test_the_same_disk_in_other_containers(here: Place, build: Build) -> None:
    for name, words in {"plain.qcow2": ["-O", "qcow2"], "raw.raw": ["-O", "raw"]}.items():
        copy = here.base / name
        subprocess.run(["qemu-img", "convert", *words, build.image, copy], check=True)
        ran = verify(here, copy, "--manifest", build.manifest)
        assert (ran.status, ran.out) == (
            0,
            f"{copy}: the same disk in another container: every byte that a guest sees is as it was built\n",
        )
    subprocess.run(["qemu-img", "resize", "-q", copy, "-f", "raw", f"{SIZE // MIB + 8}M"], check=True)
    ran = verify(here, copy, "--manifest", build.manifest)
    assert ran.status == 0
    assert ran.out.splitlines()[1] == f"{copy}: enlarged from 64 MiB to 72 MiB: what was added is empty"


def test_a_changed_boot_loader_is_named_without_an_appliance(here: Place, build: Build) -> None:
    bios = LAYOUT.get("bios-boot")
    assert bios is not None
    flip(build.raw, 100)
    flip(build.raw, bios.start + 3000)
    ran = verify(here, build.raw, "--manifest", build.manifest)
    fault(
        ran,
        "boot sector: differs within 512 bytes of the disk, at 0-511",
        f"BIOS boot partition: differs within {MIB} bytes of the disk, at {bios.start}-{bios.start + MIB - 1}",
    )


def test_an_image_with_a_snapshot_inside(here: Place, build: Build) -> None:
    subprocess.run(["qemu-img", "snapshot", "-c", "old", build.image], check=True)
    fault(verify(here, build.image), "snapshot 'old' inside the file")


def test_the_limits_can_be_chosen(here: Place, build: Build) -> None:
    copy = here.base / "copy.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", build.image, copy], check=True)
    ran = verify(here, copy, "--manifest", build.manifest, "--limit", "1M")
    assert (ran.status, ran.out) == (4, "")
    assert "where 1 MiB are read at most" in ran.errors[0]
    assert ran.hints == ["hint: --limit reads more"]
    for words, error in {
        ("--limit", "x"): "error: --limit: 'x' is not a size",
        ("--timeout", "0"): "error: --timeout 0: not a number",
    }.items():
        for command in ("verify", "inspect"):
            ran = here.run(command, copy, *words)
            assert ran.status == 2
            assert ran.errors[0].startswith(error)


# ---- what a manifest may say ---------------------------------------------------------------------------------------

ODD: list[Any] = [None, 5, "x", [], {}, [{}], {"a": 1}, {"name": "../../etc/passwd", "sha256": "0" * 64, "size": 1}]


HARMLESS: dict[str, list[Any]] = {
    "arch": ODD,
    "image": [None, ODD[-1]],
    "boot": [{}, {"a": 1}, ODD[-1]],
    "esp": [{}],
    "files": [{}],
}


@pytest.mark.parametrize("odd", ODD, ids=repr)
@pytest.mark.parametrize("key", ["files", "image", "boot", "map", "esp", "kernel", "initramfs", "arch"])
def test_odd_manifests_are_bad_input(key: str, odd: Any, here: Place, build: Build) -> None:
    body = json.loads(build.manifest.read_bytes())
    (body["boot"] if key in body["boot"] else body)[key] = odd
    build.manifest.write_text(json.dumps(body))
    if odd in HARMLESS.get(key, []):
        with suppress(InputError):
            statement.parse(read_manifest(build.manifest), build.manifest)
        return
    with pytest.raises(InputError, match="not a manifest of imgkit") as caught:
        statement.parse(read_manifest(build.manifest), build.manifest)
    assert str(build.manifest) in caught.value.message


def test_absurd_manifests_are_bad_input(here: Place, build: Build) -> None:
    for text, error in {
        "[" * 200_000: "not JSON",
        '{"files": {}, "n": ' + "9" * 10_000 + "}": "not JSON",
        "\ud800".encode(errors="surrogatepass").decode(errors="replace"): "not JSON",
    }.items():
        build.manifest.write_text(text)
        ran = verify(here, build.image)
        assert ran.status == 4
        assert error in ran.errors[0]


def test_a_manifest_that_never_ends(tmp_path: Path) -> None:
    fifo, large = tmp_path / "fifo", tmp_path / "large"
    os.mkfifo(fifo)
    with large.open("wb") as file:
        file.truncate(MAX_SIZE + 1)
    for path, error in {
        fifo: "not a regular file",
        Path("/dev/zero"): "not a regular",
        large: "(more|larger) than",
    }.items():
        with pytest.raises(InputError, match=error):
            read_manifest(path)


# ---- archives of filesystems ---------------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "c", "d.d", "e\u00e4", "f" * 120])


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    tree = Tree()
    files: list[str] = []
    for _ in range(draw(st.integers(0, 12))):
        path = "/".join(draw(st.lists(NAMES, min_size=1, max_size=3)))
        node = draw(st.sampled_from(["file", "directory", "symlink", "link", "device", "xattr"]))
        content = Inline(draw(st.binary(max_size=600)))
        owner: Any = {"mode": draw(st.integers(0, 0o7777)), "uid": draw(st.integers(0, 1 << 31)), "mtime": 1}
        try:
            for above in range(1, path.count("/") + 1):
                tree.mkdir("/".join(path.split("/")[:above]))
            if path in tree:
                continue
            if node == "link" and files:
                tree.add(path, HardLink(target=draw(st.sampled_from(files)), mode=0o644))
            elif node == "symlink":
                tree.add(path, Symlink(target=draw(st.sampled_from(["/x", "y" * 130]))))
            elif node == "device":
                tree.add(path, Device(kind=draw(st.sampled_from("cbp")), major=draw(st.integers(0, 4095)), **owner))
            elif node == "directory":
                tree.add(path, Directory(**owner))
            else:
                xattrs = {"user.x": b"1\n2=", "security.y": bytes(range(256))} if node == "xattr" else {}
                tree.add(path, File(content=content, xattrs=xattrs, **owner))
                files.append(path)
        except TreeError:
            continue
    return tree


def cut(data: bytes, size: int = 4096) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def archived(tree: Tree) -> dict[str, Any]:
    """Return the records of a Tree as an archive has them: FIFOs have no numbers there; nothing else is lost."""
    return {
        path: {**record, "device": "p 0:0"} if str(record.get("device")).startswith("p ") else record
        for path, record in records(tree).items()
    }


@given(trees())
def test_what_was_written_is_found(tree: Tree) -> None:
    assert compare_archive(cut(tar_of(tree)), archived(tree), FOREVER) == Contents((), len(tree))


@given(trees(), trees())
def test_what_differs_is_named_as_before(one: Tree, other: Tree) -> None:
    found = compare_archive(cut(tar_of(other)), archived(one), FOREVER)
    assert list(found.lines) == differences(with_one_leader(archived(one)), with_one_leader(archived(other)))


@given(trees(), st.data())
@settings(max_examples=50)
def test_an_archive_that_ends_early_is_no_surprise(tree: Tree, data: st.DataObject) -> None:
    whole = tar_of(tree)
    end = data.draw(st.integers(1, len(whole)))
    found = compare_archive(cut(whole[:end]), records(tree), FOREVER)
    missing = found.paths < len(tree)
    assert not missing or found.lines or found.fault


def test_the_first_name_of_a_file_is_not_the_same_everywhere() -> None:
    """The writer of a manifest and tar may take different names of a file for the first."""
    facts: NodeRecord = {"type": "file", "size": 1}
    one = {"/a": facts, "/b": {**facts, "link": "/a"}, "/c": {**facts, "link": "/a"}}
    other = {"/b": facts, "/a": {**facts, "link": "/b"}, "/c": {**facts, "link": "/b"}}
    assert with_one_leader(one) == with_one_leader(other) == one
    parted = {"/a": facts, "/b": facts, "/c": {**facts, "link": "/a"}}
    assert differences(with_one_leader(parted), with_one_leader(one)) == ["/b: link is /a, should be None"]


def entry(name: str, **more: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in more.items():
        setattr(info, key, value)
    return info


def archive_of(*infos: tarfile.TarInfo) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info in infos:
            archive.addfile(info, io.BytesIO(bytes(info.size)) if info.size else None)
    return sink.getvalue()


def test_names_may_hold_anything() -> None:
    """Line breaks, escapes, bytes that are no UTF-8: earlier versions called that a bug."""
    names = ["./a\nb", "./\x1b[31mred", "./\udcff\udcfe", "./" + "deep/" * 3000 + "x"]
    found = compare_archive(cut(archive_of(*map(entry, names))), {}, FOREVER)
    assert found.paths == len(found.lines) == 4
    assert "/a\nb: not in the manifest" in found.lines


def test_a_million_files_take_no_memory() -> None:
    """Of what is not in the manifest 10,000 paths are kept, the rest is counted."""

    def pieces() -> Iterator[bytes]:
        return (entry(f"./{number:06d}").tobuf(tarfile.USTAR_FORMAT) for number in range(30_000))

    found = compare_archive(pieces(), {"/": {"type": "directory"}}, FOREVER)
    assert (found.paths, len(found.lines), found.more) == (30_000, 10_001, 20_000)
    with pytest.raises(InputError, match="could not be compared in time"):
        compare_archive(pieces(), {}, time.monotonic() - 1)


def test_attributes_and_names_without_end() -> None:
    info = entry("./x", pax_headers={"SCHILY.xattr.user.x": "x" * 300_000})
    assert "an extended header of" in compare_archive(cut(archive_of(info)), {}, FOREVER).fault
    many = (entry("./x", pax_headers={"path": "./" + "y" * 100_000 + str(number)}) for number in range(3000))
    pieces = (info.tobuf(tarfile.PAX_FORMAT) for info in many)
    assert "bytes of long names" in compare_archive(pieces, {}, FOREVER).fault


# ---- paths of the image in the appliance's shell --------------------------------------------------------------------

LINKS = st.sampled_from(
    ["a", "b", "dir", "../b", "/dir/b", "/", "/a/b", "..", ".", "a/../../c", "c\n", "/../../../../etc", "x y", "*"]
)


@settings(max_examples=40, deadline=None)
@example({"dir/a": "/dir/b"}, [])
@example({"dir/a": "../../../etc"}, ["..", ".."])
@example({"dir/a": "b", "dir/b": "a"}, [])
@given(st.dictionaries(st.sampled_from(["a", "b", "dir/a", "dir/b"]), LINKS, max_size=4), st.lists(LINKS, max_size=3))
def test_links_of_the_image_stay_in_the_image(
    tmp_path_factory: pytest.TempPathFactory, links: dict[str, str], parts: list[str]
) -> None:
    """As Tree.resolve, which goes as chroot does."""
    root = tmp_path_factory.mktemp("root")
    (root / "dir").mkdir()
    tree = Tree()
    tree.mkdir("dir")
    for name, target in links.items():
        (root / name).symlink_to(target)
        tree.symlink(name, target)
    path = "/".join(["dir/a", *parts, "c"])
    script = f'{BENEATH}\nroot=$1\nbeneath "$2" || exit 7\nprintf %s "$result"'
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", script, "bash", root, path], capture_output=True)
    try:
        wanted = tree.resolve(path)
    except TreeError:
        assert done.returncode == 7
        return
    assert done.returncode == 0, done.stderr
    assert os.fsdecode(done.stdout) == f"{root}/{wanted}".rstrip("/")
