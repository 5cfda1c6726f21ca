"""Random layers, applied by imgkit, by a simple model of the specification, and by umoci."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgkit.oci.applying import tree_of
from imgkit.oci.changesets import Allowance, Changeset
from imgkit.oci.layerchanges import changes
from imgkit.tree import File, HardLink, Symlink, Tree
from imgkit.tree.members import Spool
from imgkit.tree.tarwriter import archive
from tests.conftest import need_program
from tests.ociimages import Entry, folder, hard, maker, symlink, tar

Facts: TypeAlias = tuple[str, int, bytes]
"""The kind of a node, its mode, and its contents or target."""
Model: TypeAlias = dict[str, Facts]

PATHS = [*"abc", *(f"{x}/{y}" for x in "abc" for y in "abc"), *(f"a/{x}/{y}" for x in "abc" for y in "abc")]
NEW_DIRECTORY: Facts = ("directory", 0o755, b"")


@dataclass
class RandomLayer:
    """What a layer has, hides, and makes opaque. ``links`` are hard links: path → path of a file of this layer."""

    nodes: Model = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    hidden: list[str] = field(default_factory=list)
    opaque: list[str] = field(default_factory=list)

    def entries(self, random: Random) -> list[Entry]:
        """Return the entries: directories before what is in them, files before links to them, whiteouts anywhere."""
        ordered = [_entry(path, facts) for path, facts in sorted(self.nodes.items())]
        ordered += [hard(path, target, self.nodes[target][1]) for path, target in sorted(self.links.items())]
        whiteouts = [_beside(path, f".wh.{path.rpartition('/')[2]}") for path in self.hidden]
        for whiteout in (*whiteouts, *(f"{path}/.wh..wh..opq" for path in self.opaque)):
            ordered.insert(random.randint(0, len(ordered)), Entry(whiteout))
        return ordered


def _beside(path: str, name: str) -> str:
    return f"{path.rpartition('/')[0]}/{name}".lstrip("/")


def _entry(path: str, facts: Facts) -> Entry:
    kind, mode, data = facts
    if kind == "directory":
        return folder(path, mode)
    return symlink(path, data.decode()) if kind == "link" else Entry(path, data, mode=mode)


def applied(lower: Model, layer: RandomLayer) -> Model:
    """Apply a layer as the specification says: first what it hides, then what it has."""
    result = dict(lower)
    for path in layer.hidden:
        result.pop(path, None)
    for path in (*layer.hidden, *layer.opaque):
        result = {other: facts for other, facts in result.items() if not other.startswith(f"{path}/")}
    nodes = {**layer.nodes, **{path: layer.nodes[target] for path, target in layer.links.items()}}
    for path, facts in sorted(nodes.items()):
        if facts[0] != "directory" or result.get(path, facts)[0] != "directory":
            result = {other: old for other, old in result.items() if not f"{other}/".startswith(f"{path}/")}
        for depth in range(1, path.count("/") + 1):
            result.setdefault("/".join(path.split("/")[:depth]), NEW_DIRECTORY)
        result[path] = facts
    return result


def random_layer(random: Random, lower: Model, *, listed: bool) -> RandomLayer:
    """Return a layer that can be applied to ``lower``.

    Args:
        listed: whether it lists all directories that its nodes are in.
    """
    layer = RandomLayer()
    for path in random.sample(PATHS, random.randint(0, 8)):
        above = ["/".join(path.split("/")[:depth]) for depth in range(1, path.count("/") + 1)]
        if any(layer.nodes.get(parent, NEW_DIRECTORY)[0] != "directory" or parent in layer.links for parent in above):
            continue
        if path in layer.nodes and layer.nodes[path][0] == "directory":
            continue
        if any(other.startswith(f"{path}/") for other in (*layer.nodes, *layer.links)):
            continue
        for parent in above:
            if listed or lower.get(parent, NEW_DIRECTORY)[0] != "directory":
                layer.nodes.setdefault(parent, ("directory", random.choice([0o755, 0o700]), b""))
        files = [other for other, facts in layer.nodes.items() if facts[0] == "file"]
        kind = random.choice(["file", "file", "directory", "link", "hard link"])
        if kind == "hard link" and files:
            layer.links[path] = random.choice(files)
        elif kind == "directory":
            layer.nodes[path] = (kind, random.choice([0o755, 0o711]), b"")
        elif kind == "link":
            layer.nodes[path] = (kind, 0o777, b"nowhere")
        else:
            layer.nodes[path] = ("file", random.choice([0o644, 0o600]), b"%d" % random.randint(0, 99))
    layer.links = {path: target for path, target in layer.links.items() if layer.nodes.get(target, "?")[0] == "file"}
    layer.hidden = random.sample(PATHS, random.randint(0, 3))
    layer.opaque = random.sample(PATHS, random.randint(0, 2))
    return layer


def random_layers(random: Random, *, listed: bool) -> tuple[list[bytes], Model]:
    """Return some layers, and what the model makes of them."""
    model: Model = {}
    layers = []
    for _ in range(random.randint(1, 5)):
        layer = random_layer(random, model, listed=listed)
        model = applied(model, layer)
        layers.append(tar(*layer.entries(random)))
    return layers, model


def facts_of(tree: Tree) -> Model:
    """Return what a Tree holds, without the root."""
    found: Model = {}
    for path, node in tree.items():
        file = tree[node.target] if isinstance(node, HardLink) else node
        if isinstance(file, File):
            found[path] = ("file", file.mode, file.content.read())
        elif isinstance(file, Symlink):
            found[path] = ("link", 0o777, file.target.encode())
        elif path:
            found[path] = ("directory", file.mode, b"")
    return found


@pytest.mark.slow
@settings(max_examples=400)
@given(st.integers(0, 1 << 32))
def test_layers_are_applied_as_the_model_does_it(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    layers, model = random_layers(Random(seed), listed=False)
    tree = Tree()
    path = tmp_path_factory.getbasetemp() / "spool-of-random-layers"
    path.unlink(missing_ok=True)
    with Spool(path) as spool:
        for layer in layers:
            Changeset(tree, spool, Allowance()).apply(iter([layer]))
    assert facts_of(tree) == model


@pytest.mark.slow
@settings(max_examples=300)
@given(st.integers(0, 1 << 32))
def test_what_is_written_as_a_layer_is_what_comes_out(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    """From one random Tree to another: the layer that imgkit writes for it turns the one into the other."""
    first, second = (tmp_path_factory.getbasetemp() / f"spool-{name}" for name in ("of-two-trees", "of-the-third"))
    for path in (first, second):
        path.unlink(missing_ok=True)
    before, after = Tree(), Tree()
    with Spool(first) as spool:
        for tree, start in ((before, seed), (after, seed + 1)):
            for layer in random_layers(Random(start), listed=False)[0]:
                Changeset(tree, spool, Allowance()).apply(iter([layer]))
    made = before.copy()
    entries = changes(before, after).entries
    with Spool(second) as spool:
        Changeset(made, spool, Allowance()).apply(bytes(piece) for piece in archive(entries))
    assert facts_of(made) == facts_of(after)
    assert names_of(made) == names_of(after)


def names_of(tree: Tree) -> set[frozenset[str]]:
    """Return the groups of names that are one file."""
    groups: dict[str, set[str]] = {}
    for path, node in tree.items():
        groups.setdefault(node.target if isinstance(node, HardLink) else path, set()).add(path)
    return {frozenset(group) for group in groups.values()}


@pytest.mark.parametrize("seed", range(12))
def test_layers_are_applied_as_umoci_does_it(tmp_path: Path, seed: int) -> None:
    """It is told about every directory: it gives one that it makes itself the attributes of a hidden one."""
    umoci = need_program("umoci")
    layers, model = random_layers(Random(seed), listed=True)
    images = maker(tmp_path / "layout")
    image = images.image(*layers)
    images.layout.write_index([replace(image, annotations={"org.opencontainers.image.ref.name": "x"})])
    rootless = [] if os.geteuid() == 0 else ["--rootless"]
    source = f"{images.layout.folder}:x"
    subprocess.run([umoci, "unpack", *rootless, "--image", source, tmp_path / "bundle"], check=True, timeout=60)
    assert facts_of(tree_of(images.layout, image, tmp_path / "spool").tree) == model
    assert on_disk(tmp_path / "bundle" / "rootfs") == model


def on_disk(root: Path) -> Model:
    """Return what a folder holds."""
    found: Model = {}
    for path in root.rglob("*"):
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            facts = ("link", 0o777, bytes(path.readlink()))
        elif stat.S_ISDIR(status.st_mode):
            facts = ("directory", stat.S_IMODE(status.st_mode), b"")
        else:
            facts = ("file", stat.S_IMODE(status.st_mode), path.read_bytes())
        found[str(path.relative_to(root))] = facts
    return found


def test_the_model_hides_first() -> None:
    """The model is simple enough to be checked by hand."""
    lower: Model = {"a": NEW_DIRECTORY, "a/x": ("file", 0o644, b"1"), "b": ("file", 0o644, b"2")}
    nodes: Mapping[str, Facts] = {"a/y": ("file", 0o600, b"3"), "b": ("file", 0o600, b"4")}
    assert applied(lower, RandomLayer(nodes=dict(nodes), hidden=["a", "b"])) == {**nodes, "a": NEW_DIRECTORY}
    assert applied(lower, RandomLayer(opaque=["a"])) == {"a": NEW_DIRECTORY, "b": ("file", 0o644, b"2")}


def test_random_layers_have_everything() -> None:
    """Otherwise the tests above would be about nothing."""
    kinds: Sequence[str] = ("links", "hidden", "opaque", "nodes")
    seen = dict.fromkeys(kinds, 0)
    for seed in range(50):
        layer = random_layer(Random(seed), {}, listed=False)
        for kind in kinds:
            seen[kind] += len(getattr(layer, kind))
    assert min(seen.values()) > 10
