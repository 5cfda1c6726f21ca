"""Which Python holds libguestfs, and that nothing of the Python that runs imgkit reaches it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import imgkit
from imgkit.engines.engineerrors import EngineStartError
from imgkit.engines.guestfs import bindings, channel
from imgkit.engines.guestfs.bindings import Interpreter, choose
from imgkit.errors import HostError
from tests.commandline import ROOT

VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
NO_MODULE = "ModuleNotFoundError: No module named 'guestfs'"

# Answers as Python does that has the bindings, or that has none.
GOOD = '#!/bin/sh\n[ "$1 $2 $3" = "-I -B -c" ] && echo 3.12\n'
BAD = f'#!/bin/sh\necho "{NO_MODULE}" >&2\nexit 1\n'
OLD = "#!/bin/sh\necho it is older than Python 3.10 >&2\nexit 1\n"


@pytest.fixture
def without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Take the bindings away from this Python and from the distribution's; return an empty folder for PATH."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/guestfs.py").write_text("raise ModuleNotFoundError(\"No module named 'guestfs'\")")
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    monkeypatch.delenv("IMGKIT_GUESTFS_PYTHON", raising=False)
    monkeypatch.setattr(bindings, "_DISTRIBUTION", str(program(tmp_path, "usr-bin-python3", BAD)))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "bin"


def program(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_the_python_that_runs_imgkit_comes_first(without: Path, tmp_path: Path) -> None:
    (tmp_path / "modules/guestfs.py").write_text("")
    program(without, "python3", GOOD)
    assert choose(os.environ) == Interpreter(sys.executable, VERSION, isolated=False)
    assert choose(os.environ).is_own
    assert choose(os.environ).argv(["a", "b"]) == [sys.executable, "a", "b"]


def test_the_distributions_comes_next(without: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = program(without.parent, "usr-bin-python3", GOOD)
    program(without, "python3", BAD)
    interpreter = choose(os.environ)
    assert interpreter == Interpreter(str(python), "3.12", isolated=True)
    assert not interpreter.is_own
    assert interpreter.argv(["x.py"]) == [str(python), "-I", "-B", "x.py"]


def test_others_on_path_come_last(without: Path) -> None:
    for name, text in {"python3": BAD, "python3.9": OLD, "python3.13": GOOD, "python3-config": GOOD}.items():
        program(without, name, text)
    program(without, "python3.14", GOOD).chmod(0o644)
    assert choose(os.environ).path == str(without / "python3.13")


def test_a_folder_that_this_user_may_not_look_into(without: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PATH of a process that root has started has folders in root's home."""
    program(without, "python3", GOOD)
    real = os.stat

    def stat(path: Any, **options: Any) -> os.stat_result:
        if str(path) == "/root/bin":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real(path, **options)

    monkeypatch.setattr(os, "stat", stat)
    assert choose({**os.environ, "PATH": f"/root/bin:{without}"}).path == str(without / "python3")


def test_a_message_names_each_with_its_reason(without: Path, tmp_path: Path) -> None:
    program(without, "python3.9", OLD)
    (without / "python3").symlink_to(tmp_path / "usr-bin-python3")  # the same as the distribution's
    with pytest.raises(EngineStartError) as caught:
        choose({**os.environ, "PATH": f"relative:/nowhere:{without}"})
    assert caught.value.message == (
        f"libguestfs' Python bindings cannot be imported by {sys.executable} ({NO_MODULE}),"
        f" {tmp_path / 'usr-bin-python3'} ({NO_MODULE}), {without / 'python3.9'} (it is older than Python 3.10)"
    )
    assert caught.value.hint == "apt-get install python3-guestfs (Fedora, openSUSE: python3-libguestfs)"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BAD, f" ({NO_MODULE})"),
        (None, " (program not found)"),
        ("#!/bin/sh\nkill -9 $$\n", " (was killed by SIGKILL)"),
        ("#!/bin/sh\nexit 3\n", " (failed with status 3)"),
        ("#!/bin/sh\nexec sleep 60\n", " (no result within 0.2 s)"),
    ],
)
def test_one_that_is_named_is_the_only_one(
    text: str | None, reason: str, without: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(without, "python3", GOOD)
    named = without.parent / "named"
    if text is not None:
        program(without.parent, "named", text)
    monkeypatch.setattr(bindings, "_TRIAL_SECONDS", 0.2 if "sleep" in reason or "within" in reason else 20)
    monkeypatch.setenv("PATH", f"{without}:/usr/bin:/bin")
    with pytest.raises(EngineStartError) as caught:
        choose({**os.environ, "IMGKIT_GUESTFS_PYTHON": str(named)})
    assert caught.value.message == f"libguestfs' Python bindings cannot be imported by {named}{reason}"
    assert caught.value.hint == "correct IMGKIT_GUESTFS_PYTHON, or unset it"


def test_one_that_is_named_is_started_as_it_is(without: Path, tmp_path: Path) -> None:
    named = program(tmp_path, "named", '#!/bin/sh\n[ "$1" = "-c" ] && echo 3.10\n')
    assert choose({**os.environ, "IMGKIT_GUESTFS_PYTHON": str(named)}) == Interpreter(str(named), "3.10")


def test_an_answer_is_kept(without: Path) -> None:
    python = program(without, "python3", GOOD)
    assert choose(os.environ).path == str(python)
    python.unlink()
    assert choose(os.environ).path == str(python)


# ---- what runs there -------------------------------------------------------------------------------------------------

NOTES = """
import json, sys
def note():
    open(NOTE, "w").write(json.dumps([sorted(sys.modules), sys.path, sys.modules["imgkit"].__file__]))
class GuestFS:
    def __init__(self, python_return_dict):
        note()
        raise RuntimeError("noted")
"""


def noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[set[str], list[str], str]:
    """Start the process with a stand-in for the bindings; return its modules, its module path, and its imgkit."""
    note = tmp_path / "note"
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/guestfs.py").write_text(NOTES.replace("NOTE,", f"{str(note)!r},"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    monkeypatch.setenv("IMGKIT_GUESTFS_PYTHON", sys.executable)
    monkeypatch.setenv("SUPERMIN_KERNEL", "/dev/null")
    with channel.opened(tmp_path, [], channel.Options()) as link, suppress(HostError):
        link.take(time.monotonic() + 30)
    names, path, file = json.loads(note.read_text())
    return set(names), path, file


@pytest.mark.slow
def test_it_imports_the_standard_library_and_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs in a Python that has none of the packages that imgkit needs."""
    names, path, file = noted(tmp_path, monkeypatch)
    own = [sys.executable, "-c", "import json, sys; print(json.dumps(list(sys.modules)))"]
    by_itself = set(json.loads(subprocess.run(own, capture_output=True, check=True).stdout))  # by *.pth files
    others = {name.partition(".")[0] for name in names - by_itself} - set(sys.stdlib_module_names)
    assert others == {"imgkit", "guestfs"}
    assert "imgkit.engines.guestfs.appliance" in names
    assert file == imgkit.__file__
    assert str(Path(imgkit.__file__).parent / "engines/guestfs") not in path


@pytest.mark.parametrize("options", [[], ["-I", "-B"]])
def test_packages_beside_imgkit_are_not_seen(options: list[str], tmp_path: Path) -> None:
    """They are compiled, or written, for the Python that runs imgkit: here one shadows a module of the library."""
    site = tmp_path / "site-packages"
    shutil.copytree(ROOT / "imgkit", site / "imgkit", ignore=shutil.ignore_patterns("__pycache__"))
    for name in (
        "pathlib",
        "tarfile",
        "pydantic",
        "imgkit/engines/guestfs/guestfsengine",
        "imgkit/engines/guestfs/channel",
    ):
        (site / f"{name}.py").write_text("raise ImportError('for another Python')")
    with subprocess.Popen(
        [sys.executable, *options, str(site / "imgkit/engines/guestfs/startappliance.py")],
        cwd=site / "imgkit",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # the end of its input makes it kill its group
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(b'{"op": "dance"}\n')
        child.stdin.flush()
        answer = json.loads(child.stdout.readline())
    assert answer == {"error": "dance: no such operation", "kind": "call", "console": ""}
    assert child.returncode == -signal.SIGKILL
