"""Trees that a guest may leave are walked and removed with all their contents, and nothing outside is touched."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgkit.host import walk
from tests.conftest import need, need_program
from tests.files import nest, nested, opened

pytestmark = pytest.mark.hostile

DEEP = 5_000
"""Folders in one another: more than Python's stack, a path, or the descriptors of a process could hold."""


def walked(path: Path) -> set[str]:
    """Paths of everything below ``path``."""
    with opened(path) as top:
        steps = walk.Walk(top)
        return {steps.path(entry.name) for entry in steps}


def as_program(*words: str | Path, before: str) -> None:
    """Remove folders as the reaper of a machine's folder does, after running ``before``."""
    script = f"{before}\nimport runpy, sys\nsys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')"
    argv = [sys.executable, "-I", "-S", "-c", script, walk.__file__, *map(str, words)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stderr) == (0, "")


def descriptors() -> int:
    return len(list(Path("/dev/fd").iterdir()))


@pytest.mark.parametrize("depth", [1_300, DEEP])
def test_a_deep_tree_is_walked_and_removed_with_few_descriptors(tmp_path: Path, depth: int) -> None:
    with nested(tmp_path / "top", depth) as top:
        with opened(top) as descriptor:
            before = most = descriptors()
            for number, _ in enumerate(walk.Walk(descriptor), 1):
                if number % 1_000 == 0:
                    most = max(most, descriptors())
        assert number == depth
        assert before < most <= before + walk.HELD + 2
        as_program(top, before="import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))")
        assert not top.exists()


def test_many_files_names_of_255_bytes_and_a_path_longer_than_any_call_takes(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    nest(top, 40, name="n" * 255)
    for number in range(3 * walk._BATCH // 2):
        (top / f"file {number}").touch()
        if number % 3 == 0:
            (top / f"folder {number}").mkdir()
    assert len(max(walked(top), key=len)) == 40 * 256 - 1
    assert walk.remove(top)
    assert not top.exists()


def test_no_link_is_followed_and_what_lies_outside_stays(tmp_path: Path) -> None:
    outside, top = tmp_path / "outside", tmp_path / "top"
    (outside / "folder").mkdir(parents=True)
    (outside / "folder/file").write_text("stays")
    (outside / "folder").chmod(0o500)
    (top / "a/b").mkdir(parents=True)
    for link in (top / "link", top / "a/link", top / "a/b/link"):
        link.symlink_to(outside)
    (top / "a/file").symlink_to(outside / "folder/file")
    (top / "a/nowhere").symlink_to("nowhere")
    os.mkfifo(top / "a/b/fifo")
    os.link(outside / "folder/file", top / "a/b/hard")
    expected = {"a", "a/b", "link", "a/link", "a/file", "a/nowhere", "a/b/link", "a/b/fifo", "a/b/hard"}
    assert walked(top) == expected
    assert walk.remove(top)
    assert (outside / "folder/file").read_text() == "stays"
    assert (outside / "folder").stat().st_mode & 0o777 == 0o500
    (tmp_path / "top").symlink_to(outside)
    assert not walk.remove(tmp_path / "top"), "the folder itself is a link"
    assert (outside / "folder/file").read_text() == "stays"


def test_folders_without_permissions(tmp_path: Path) -> None:
    """The test runs as an ordinary user, because permissions do not apply to root."""
    top = Path(tempfile.mkdtemp(prefix="imgkit-test-", dir="/tmp"))  # pytest's own folders are closed to other users
    try:
        (top / "a/b/c").mkdir(parents=True)
        (top / "a/b/c/file").touch()
        for number, path in enumerate((top / "a/b/c", top / "a/b", top / "a")):
            path.chmod((0o000, 0o400, 0o100)[number])
        user = 65534 if os.geteuid() == 0 else None
        if user is not None:
            for path in (top, *top.rglob("*")):
                os.lchown(path, user, user)
            module = Path(walk.__file__)
            shutil.copyfile(module, top / "walk.py")
            (top / "walk.py").chmod(0o644)
        script = top / "walk.py" if user is not None else Path(walk.__file__)
        subprocess.run([_python(), "-I", "-S", script, top / "a"], user=user, cwd="/", check=True, timeout=60)
        assert not (top / "a").exists()
    finally:
        shutil.rmtree(top)


def _python() -> str:
    """Return a Python that every user may run: the environment of the tests may be closed to others."""
    return shutil.which("python3", path="/usr/bin:/usr/local/bin") or sys.executable


def test_what_is_mounted_in_the_tree_stays(tmp_path: Path) -> None:
    outside, top = tmp_path / "outside", tmp_path / "top"
    (top / "a/mount").mkdir(parents=True)
    (top / "a/file").touch()
    outside.mkdir()
    (outside / "file").write_text("stays")
    script = 'mount --bind "$1" "$2" && exec "$3" -I -S "$4" "$5"'
    words: list[str | Path] = ["sh", "-c", script, "sh", outside, top / "a/mount", sys.executable, walk.__file__, top]
    prefix = [need_program("unshare"), "--map-root-user", "--mount"]
    probe = subprocess.run([*prefix, "mount", "--bind", outside, top / "a/mount"], capture_output=True)
    need("mounts in a namespace", probe.returncode == 0)
    subprocess.run([*prefix, *words], check=True, timeout=60)
    assert (outside / "file").read_text() == "stays"
    assert {path.name for path in top.rglob("*")} == {"a", "mount"}, "all the rest is removed"


def test_a_folder_that_is_moved_away_is_noticed(tmp_path: Path) -> None:
    """Far below the top the way up is ``..``, which the mover decides."""
    top = tmp_path / "top"
    top.mkdir()
    nest(top, walk.HELD * 3)
    middle = top.joinpath(*["d"] * 20)
    with opened(top) as descriptor:

        def move_while_it_is_walked() -> None:
            for number, _ in enumerate(walk.Walk(descriptor), 1):
                if number == walk.HELD * 3:
                    middle.rename(tmp_path / "elsewhere")

        with pytest.raises(walk.MovedError):
            move_while_it_is_walked()
    assert walk.remove(top)
    assert walk.remove(tmp_path / "elsewhere")


def test_a_file_a_missing_folder_and_one_in_a_missing_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert not walk.remove(tmp_path / "file")
    assert walk.remove(tmp_path / "missing")
    assert walk.remove(tmp_path / "missing/too")


NAMES = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..")
)
TREES = st.recursive(
    st.sampled_from(["file", "link", "fifo"]), lambda inner: st.dictionaries(NAMES, inner, max_size=5), max_leaves=25
)


def _make(path: Path, what: object) -> None:
    if isinstance(what, dict):
        path.mkdir()
        for name, inner in what.items():
            if not (path / name).exists():  # some file systems take two names for the same
                _make(path / name, inner)
    elif what == "link":
        path.symlink_to("..")
    elif what == "fifo":
        os.mkfifo(path)
    else:
        path.touch()


@given(st.dictionaries(NAMES, TREES, max_size=5))
@settings(max_examples=40, deadline=None)
def test_any_tree_is_seen_as_a_whole_and_removed_as_a_whole(tree: dict[str, object]) -> None:
    with tempfile.TemporaryDirectory() as place:
        top = Path(place, "top")
        _make(top, tree)
        expected = {
            os.path.relpath(os.path.join(here, name), top)  # noqa: PTH118
            for here, folders, files in os.walk(top)
            for name in folders + files
        }
        assert walked(top) == expected
        assert walk.remove(top)
        assert os.listdir(place) == []  # noqa: PTH208
