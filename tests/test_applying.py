"""Applying the layers of an image: what Docker, containerd and umoci make of them comes out, within limits."""

from __future__ import annotations

import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imgkit.oci import mediatypes
from imgkit.oci.applying import ImageRoot, drop_privileges, tree_of
from imgkit.oci.descriptors import Descriptor, digest_of
from imgkit.tree import Directory, File, HardLink, Symlink, Tree
from tests.ociimages import (
    COMPRESSIONS,
    Entry,
    ImageMaker,
    folder,
    hard,
    maker,
    sha512,
    symlink,
    tar,
)


@pytest.fixture
def images(tmp_path: Path) -> ImageMaker:
    return maker(tmp_path / "layout")


def root(images: ImageMaker, descriptor: Descriptor, **options: Any) -> ImageRoot:
    spool = images.layout.folder.parent / "spool"
    spool.unlink(missing_ok=True)
    return tree_of(images.layout, descriptor, spool, **options)


def apply(images: ImageMaker, *layers: tuple[Entry | str, ...]) -> Tree:
    return root(images, images.image(*(tar(*layer) for layer in layers))).tree


def shape(tree: Tree) -> dict[str, Any]:
    """Return the tree as path → contents of a file, target of a link (with an arrow), or None for a directory."""
    return {path: _facts(tree, path) for path in tree if path}


def _facts(tree: Tree, path: str) -> str | None:
    node = tree[path]
    if isinstance(node, (Symlink, HardLink)):
        return f"{'->' if isinstance(node, Symlink) else '=>'}{node.target}"
    return tree.read(path).decode() if isinstance(node, File) else None


def test_every_kind_of_entry_and_all_attributes(images: ImageMaker) -> None:
    image = images.image(
        tar(
            Entry("./", kind=tarfile.DIRTYPE, mode=0o750, uid=3),
            folder("./etc/", 0o700, 5),
            Entry("./etc/passwd", b"root", mode=0o4711, uid=7, mtime=99, xattrs={"user.x": "y"}),
            symlink("etc/link", "/absolute/../target"),
            hard("./etc/hard", "./etc/passwd", 0o4711, 7),
        )
    )  # fmt: skip
    tree = root(images, image).tree
    assert shape(tree) == {
        "etc": None, "etc/passwd": "root", "etc/link": "->/absolute/../target", "etc/hard": "=>etc/passwd",
    }  # fmt: skip
    assert (tree[""].mode, tree[""].uid, tree["etc"].mode, tree["etc"].uid) == (0o750, 3, 0o700, 5)
    file = tree["etc/passwd"]
    assert (file.mode, file.uid, file.mtime, dict(file.xattrs)) == (0o4711, 7, 0, {"user.x": b"y"})


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_compressions(images: ImageMaker, compression: str) -> None:
    data = bytes(range(256)) * 5000
    image = replace(images, compression=compression).image(tar(Entry("file", data)), tar("upper"))
    found = root(images, image)
    assert found.tree.read("file") == data
    assert "upper" in found.tree
    assert [layer.media_type for layer in found.layers] == [COMPRESSIONS[compression][0]] * 2


def test_the_first_bytes_say_how_a_layer_is_compressed(images: ImageMaker) -> None:
    data = tar("file")
    named_wrongly = replace(images.layer(data), media_type=mediatypes.DOCKER_LAYER_ZSTD)
    assert "file" in root(images, images.manifest_of([named_wrongly], [digest_of(data)])).tree


def test_diff_ids_may_be_of_the_other_algorithm(images: ImageMaker) -> None:
    data = tar("file")
    assert "file" in root(images, images.manifest_of([images.layer(data)], [sha512(data)])).tree


@pytest.mark.parametrize("nothing", [[], None])
def test_an_image_without_layers_is_an_empty_root(images: ImageMaker, nothing: object) -> None:
    """Programs in Go write null for an empty list."""
    config, manifest = {"rootfs": {"type": "layers", "diff_ids": nothing}}, {"layers": nothing}
    image = replace(images, config=config, manifest=manifest).image()
    assert dict(root(images, image).tree.items()) == {"": Directory()}


@pytest.mark.parametrize("names", [("./a", "./a/b"), ("/a", "/a/b"), ("a/", "a//b"), ("././a/", "./a/./b")])
def test_names_start_at_the_root_however_they_are_written(images: ImageMaker, names: tuple[str, str]) -> None:
    """Kaniko writes absolute names, Bazel both kinds, Docker and BuildKit neither."""
    assert shape(apply(images, (folder(names[0]), Entry(names[1], b"x")))) == {"a": None, "a/b": "x"}


def test_directories_that_are_not_listed_are_made(images: ImageMaker) -> None:
    tree = apply(images, (Entry("a/b/c", b"x", uid=5),))
    assert tree["a"] == tree["a/b"] == Directory(mode=0o755)


# ---- later layers ---------------------------------------------------------------------------------------------------


def test_a_later_layer_replaces(images: ImageMaker) -> None:
    lower = (folder("d"), Entry("d/x", b"1"), Entry("f", b"1"), symlink("s", "d"), folder("e", 0o700), "e/kept")
    upper = (Entry("d", b"file"), folder("f"), Entry("f/in", b"2"), Entry("s", b"3"), folder("e", 0o711, 4))
    tree = apply(images, lower, upper)
    assert shape(tree) == {"d": "file", "e": None, "e/kept": "", "f": None, "f/in": "2", "s": "3"}
    assert (tree["e"].mode, tree["e"].uid) == (0o711, 4)


def test_directories_of_lower_layers_keep_their_attributes(images: ImageMaker) -> None:
    tree = apply(images, (folder("d", 0o711, 4),), ("d/x",))
    assert (tree["d"].mode, tree["d"].uid) == (0o711, 4)


@pytest.mark.parametrize("target", ["usr/lib", "/usr/lib", "../../usr/lib", "other"])
def test_links_in_the_directories_of_a_name_are_followed_inside_the_image(images: ImageMaker, target: str) -> None:
    tree = apply(
        images, (symlink("other", "usr/lib"), folder("usr/lib"), symlink("lib", target)), ("lib/x", "lib/new/y")
    )
    assert {"usr/lib/x", "usr/lib/new/y"} <= set(tree)
    assert tree["lib"] == Symlink(target=target)


def test_a_link_in_the_directories_of_a_name_may_lead_to_what_is_missing(images: ImageMaker) -> None:
    assert shape(apply(images, (symlink("run", "/var/run"),), ("run/x",))) == {
        "run": "->/var/run", "var": None, "var/run": None, "var/run/x": "",
    }  # fmt: skip


def test_a_link_in_the_last_place_is_replaced(images: ImageMaker) -> None:
    lower = (folder("d"), "d/x", symlink("a", "d"), symlink("b", "d/x"))
    tree = apply(images, lower, (folder("a"), Entry("b", b"new")))
    assert shape(tree) == {"a": None, "b": "new", "d": None, "d/x": ""}


# ---- whiteouts ------------------------------------------------------------------------------------------------------


def test_whiteouts_remove_files_links_and_directories(images: ImageMaker) -> None:
    lower = (folder("d/e"), "d/e/x", "f", symlink("s", "f"), "kept")
    assert shape(apply(images, lower, (".wh.d", "./.wh.f", ".wh.s"))) == {"kept": ""}


def test_whiteouts_that_hit_nothing_are_ignored(images: ImageMaker) -> None:
    assert shape(apply(images, ("a", ".wh.b", "no/such/.wh.c", "a/.wh.d", "no/.wh..wh..opq", "a/.wh..wh..opq"))) == {
        "a": ""
    }


@pytest.mark.parametrize("order", [1, -1])
def test_a_whiteout_hides_lower_layers_only(images: ImageMaker, order: int) -> None:
    """It does not matter where it stands in its layer."""
    lower = (folder("d", 0o700), "d/old", Entry("f", b"old"))
    upper: list[Entry | str] = [Entry("d/new", b"2"), ".wh.d", Entry("f", b"2"), ".wh.f"]
    tree = apply(images, lower, tuple(upper[::order]))
    assert shape(tree) == {"d": None, "d/new": "2", "f": "2"}
    assert tree["d"] == Directory(), "this is another directory than that of the lower layer"


@pytest.mark.parametrize("order", [1, -1])
def test_opaque_directories(images: ImageMaker, order: int) -> None:
    lower = (folder("d", 0o700), "d/old", folder("d/both", 0o700), "d/both/old", "d/deep/old", "beside")
    upper: list[Entry | str] = ["d/new", folder("d/both", 0o711), "d/both/new", "d/.wh..wh..opq", "d/deep/new"]
    tree = apply(images, lower, tuple(upper[::order]))
    assert sorted(shape(tree)) == ["beside", "d", "d/both", "d/both/new", "d/deep", "d/deep/new", "d/new"]
    assert (tree["d"].mode, tree["d/both"].mode) == (0o700, 0o711)


def test_an_opaque_root(images: ImageMaker) -> None:
    assert shape(apply(images, ("a", "b/c"), ("new", ".wh..wh..opq"))) == {"new": ""}


def test_whiteouts_follow_links_in_directories(images: ImageMaker) -> None:
    lower = (folder("usr/lib"), "usr/lib/x", "usr/lib/y", symlink("lib", "usr/lib"))
    assert "usr/lib/x" not in apply(images, lower, ("lib/.wh.x",))
    assert apply(images, lower, ("lib/.wh..wh..opq",)).children("usr/lib") == []
    replaced = apply(images, lower, (folder("lib"), "lib/.wh.x"))
    assert "usr/lib/x" in replaced, "the directory of this layer is not the link of the lower one"


def test_a_whiteout_applies_to_all_layers_below_but_not_above(images: ImageMaker) -> None:
    assert shape(apply(images, ("a",), ("b",), (".wh.a", ".wh.b"), (Entry("a", b"again"),))) == {"a": "again"}


def test_files_of_aufs_are_ignored(images: ImageMaker) -> None:
    layer = (folder(".wh..wh.plnk"), ".wh..wh.plnk/12.34", ".wh..wh.aufs", "d/.wh..wh.x", "a")
    assert "a" in apply(images, layer)
    assert not [path for path in apply(images, layer) if ".wh." in path]


# ---- hard links -----------------------------------------------------------------------------------------------------


def test_hard_links_across_layers(images: ImageMaker) -> None:
    lower = (Entry("a", b"data"), symlink("dir", "real"), "real/b", symlink("s", "a"))
    tree = apply(images, lower, (hard("h", "a", 0o600, 4), hard("i", "/dir/b"), hard("j", "h"), hard("t", "s")))
    assert (tree["h"], tree["i"], tree["j"]) == (
        HardLink(target="a", mode=0o600), HardLink(target="real/b"), HardLink(target="a"),
    )  # fmt: skip
    assert (tree["a"].mode, tree["a"].uid) == (0o644, 0), "that of the last link"
    assert tree["t"] == Symlink(target="a", mode=0o644), "a link to the link itself"


def test_a_hard_link_outlives_the_file_of_a_lower_layer(images: ImageMaker) -> None:
    tree = apply(images, (Entry("a", b"data"), hard("b", "a"), hard("c", "a")), (".wh.a", Entry("b", b"new")))
    assert shape(tree) == {"b": "new", "c": "data"}
    assert shape(apply(images, (Entry("a", b"data"),), (hard("b", "a"), ".wh.a"))) == {"b": "data"}


def test_a_hard_link_replaces_what_was_there(images: ImageMaker) -> None:
    lower = (Entry("a", b"1"), hard("b", "a"), "d/x")
    assert shape(apply(images, lower, (hard("a", "b"), hard("d", "b")))) == {"a": "=>b", "b": "1", "d": "=>b"}


# ---- what is listed -------------------------------------------------------------------------------------------------

NULL = Entry("dev/null", kind=tarfile.CHRTYPE, device=(1, 3))


def test_device_nodes_are_listed_and_left_out(images: ImageMaker) -> None:
    lower = (NULL, replace(NULL, name="dev/sda", kind=tarfile.BLKTYPE), replace(NULL, name="gone"), "file")
    upper = (replace(NULL, name="file", kind=tarfile.FIFOTYPE), ".wh.gone", hard("dev/zero", "dev/null"))
    found = root(images, images.image(tar(*lower), tar(*upper)))
    assert found.left_out == ("dev/null", "dev/sda", "dev/zero", "file")
    assert shape(found.tree) == {"dev": None}


CAPABILITY = {"security.capability": "\x01\x00\x00\x02", "user.x": "y"}


def test_programs_with_other_rights_are_listed_and_may_lose_them(images: ImageMaker) -> None:
    layer = (
        Entry("su", b"su", mode=0o4755), Entry("mail", mode=0o2755), Entry("ping", xattrs=CAPABILITY, mode=0o755),
        hard("sudo", "su", 0o4755), folder("shared", 0o2775), Entry("sh", mode=0o1755), Entry("gone", mode=0o4755),
    )  # fmt: skip
    found = root(images, images.image(tar(*layer), tar(".wh.gone")))
    assert found.privileged == ("mail", "ping", "su", "sudo")
    assert found.tree["ping"].xattrs["security.capability"] == b"\x01\x00\x00\x02"
    drop_privileges(found.tree)
    assert [found.tree[path].mode for path in ("su", "mail", "ping", "shared", "sh")] == [
        0o755, 0o755, 0o755, 0o2775, 0o1755,
    ]  # fmt: skip
    assert dict(found.tree["ping"].xattrs) == {"user.x": b"y"}
    assert found.tree.read("sudo") == b"su"
