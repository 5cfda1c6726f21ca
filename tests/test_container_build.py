"""``script/container-build``: what it asks docker and podman for; both are stand-ins here."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.commandline import ROOT
from tests.containers import read_recipe

SCRIPT = ROOT / "script/container-build"
# Writes down each call, one argument a line; `run` ends with $STATUS, `build` with $BUILD.
TOOL = """\
#!/bin/sh
case "$1" in
  --version) echo "${VERSION:-Docker version 28}" ;;
  info) [ -z "$DEAD" ] && echo "${SECURITY:-[name=seccomp,profile=builtin]}" ;;
  *)
    { echo "= ${0##*/}"; printf '%s\\n' "$@"; echo "MSYS=$MSYS_NO_PATHCONV"; } >>"$RECORD"
    if [ "$1" = build ]; then echo "making it"; exit "${BUILD:-0}"; fi
    exit "${STATUS:-0}"
    ;;
esac
"""


@dataclass
class Called:
    """The script's exit status, and the arguments of the tool's calls."""

    status: int
    out: str
    err: str
    tool: str
    build: list[str]
    run: list[str]

    def values(self, option: str) -> list[str]:
        return [value for name, value in zip(self.run, self.run[1:], strict=False) if name == option]

    @property
    def words(self) -> list[str]:
        """What stands behind the image's name."""
        return self.run[self.run.index("imgkit-build") + 1 :]


@dataclass
class Place:
    """A folder with a recipe, and a PATH with stand-ins."""

    folder: Path
    programs: Path

    def tools(self, *names: str) -> None:
        for name in names:
            (self.programs / name).write_text(TOOL)
            (self.programs / name).chmod(0o755)

    def call(self, *words: str, **env: str) -> Called:
        record = self.folder / "record"
        record.unlink(missing_ok=True)
        plain = {"PATH": str(self.programs), "RECORD": str(record), "HOME": str(self.folder)}
        done = subprocess.run(
            [SCRIPT, *words], cwd=self.folder, env={**plain, **env}, capture_output=True, text=True, timeout=60
        )
        calls = [each.splitlines() for each in record.read_text().split("= ")[1:]] if record.exists() else []
        by_name = {call[1]: call[2:-1] for call in calls}
        assert all(call[-1] == "MSYS=1" for call in calls)
        tool = calls[0][0] if calls else ""
        return Called(done.returncode, done.stdout, done.stderr, tool, by_name.get("build", []), by_name.get("run", []))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """PATH has what any system has, and no docker of this machine's."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "sh", "dirname", "grep", "id", "mkdir", "sed", "env"):
        found = shutil.which(name)
        assert found
        (programs / name).symlink_to(found)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/alpine.py").write_text("name = 'x'\n")
    return Place(tmp_path, programs)


def uid(place: Place, number: int, group: int) -> None:
    """Make this uid the caller's."""
    (place.programs / "id").unlink()
    (place.programs / "id").write_text(f'#!/bin/sh\n[ "$1" = -u ] && echo {number} || echo {group}\n')
    (place.programs / "id").chmod(0o755)


def test_docker_s_command_lines(place: Place) -> None:
    place.tools("docker", "podman")
    uid(place, 501, 20)
    called = place.call("amd64", "arm64")
    assert (called.status, called.tool, called.out) == (0, "docker", "")
    assert called.build == ["--tag", "imgkit-build", "--file", f"{ROOT}/Containerfile", f"{ROOT}"]
    assert called.err == "making it\n", "so that standard output is imgkit's"
    assert called.run == [
        *("--rm", "--user", "501:20", "--read-only", "--tmpfs", "/tmp"),
        *("--cap-drop=ALL", "--security-opt=no-new-privileges", "--security-opt=label=disable"),
        *("--workdir", "/project", "--volume", f"{place.folder}:/project:ro", "--volume", "imgkit-cache-501:/cache"),
        *("--volume", f"{place.folder}/out:/project/out", "--env", "OUT_DIR=out"),
        *("imgkit-build", "build", "recipes/alpine.py", "--arch", "amd64", "--arch", "arm64"),
    ]
    assert (place.folder / "out").is_dir(), "made here, by the caller, and not by the daemon as root"


def test_podman_s_command_lines(place: Place) -> None:
    place.tools("podman")
    uid(place, 1001, 1002)
    called = place.call()
    assert (called.status, called.tool) == (0, "podman")
    assert called.run[:5] == ["--rm", "--userns=keep-id", "--user", "1001:1002", "--read-only"]
    assert called.words == ["build", "recipes/alpine.py"]
    uid(place, 0, 0)
    assert place.call().run[:4] == ["--rm", "--user", "0:0", "--read-only"], "root's podman has no such mapping"


def test_docker_that_is_podman(place: Place) -> None:
    """As the package podman-docker has it."""
    place.tools("docker")
    uid(place, 1000, 1000)
    called = place.call(VERSION="podman version 4.3.1")
    assert (called.tool, called.run[1:4]) == ("docker", ["--userns=keep-id", "--user", "1000:1000"])


def test_docker_without_root(place: Place) -> None:
    """The container's root is the caller; files of any other uid could not be changed by the caller."""
    place.tools("docker")
    uid(place, 1000, 1000)
    called = place.call(SECURITY="[name=seccomp,profile=builtin name=rootless]")
    assert called.values("--user") == ["0:0"]


@pytest.mark.parametrize("words", [("--tool", "podman"), ("--tool=podman",)])
def test_the_tool_can_be_chosen(place: Place, words: tuple[str, ...]) -> None:
    place.tools("docker", "podman")
    assert place.call(*words).tool == "podman"


@pytest.mark.parametrize("tool", ["docker", "podman"])
def test_no_privilege_and_no_device(place: Place, tool: str) -> None:
    place.tools(tool)
    run = place.call("amd64").run
    assert "--cap-drop=ALL" in run
    assert not re.search(r"privileged|--device|--cap-add|seccomp|--network|--pid|docker\.sock", " ".join(run))


def test_variables_are_passed_on(place: Place) -> None:
    place.tools("docker")
    seeds = {
        "ALPINE_MIRROR": "https://mirror.example/a b",
        "ALPINE_BRANCH": "v3.24",
        "ALPINE_VERSION": "3.24.1",
        "IMAGE_SIZE": "8G",
        "ARCHS": "amd64,arm64",
        "AGENT_RUNNER_BUILD": "auto",
        "SOURCE_DATE_EPOCH": "1700000000",
        "https_proxy": "http://user:password@proxy:3128",
    }
    called = place.call(**seeds, IMGKIT_CACHE="/not/this", UNRELATED="x", NO_PROXY="")
    assert called.values("--env") == ["OUT_DIR=out", *seeds], "by name: their values are not for everybody's eyes"
    assert called.build[2:4] == ["--build-arg", "https_proxy"]


def test_folders_of_one_s_own(place: Place, tmp_path: Path) -> None:
    place.tools("docker")
    far = tmp_path / "far"
    called = place.call(OUT_DIR="build/images", WORK_DIR=str(far))
    assert called.values("--volume")[2:] == [
        f"{place.folder}/build/images:/project/build/images",
        f"{far}:{far}",
    ]
    assert called.values("--env") == ["OUT_DIR=build/images", f"WORK_DIR={far}"]
    assert far.is_dir()


def test_a_recipe_and_options_of_one_s_own(place: Place) -> None:
    place.tools("docker")
    (place.folder / "mine.py").write_text("name = 'mine'\n")
    called = place.call("--recipe", "mine.py", "arm64", "--", "--mirror", "https://m.example/x y", "--set", "size=1G")
    assert called.words == [
        "build",
        "mine.py",
        "--arch",
        "arm64",
        "--mirror",
        "https://m.example/x y",
        "--set",
        "size=1G",
    ]


def test_git_for_windows(place: Place) -> None:
    """docker is a program of Windows there; everything else keeps its form."""
    place.tools("docker")
    (place.programs / "cygpath").write_text('#!/bin/sh\nfor last; do :; done; echo "C:$last"\n')
    (place.programs / "cygpath").chmod(0o755)
    called = place.call()
    assert called.build[2:] == ["--file", f"C:{ROOT}/Containerfile", f"C:{ROOT}"]
    assert called.values("--volume")[0] == f"C:{place.folder}:/project:ro"
    assert called.values("--volume")[2] == f"C:{place.folder}/out:/project/out"
    assert called.words[1] == "recipes/alpine.py"


@pytest.mark.parametrize("status", [4, 130])
def test_its_status_is_the_build_s(place: Place, status: int) -> None:
    place.tools("docker")
    assert place.call(STATUS=str(status)).status == status


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("--tool", "lxc"), 2, "--tool lxc: not known"),
        (("--tool",), 2, "--tool needs a value"),
        (("--tool", "podman"), 5, "podman: program not found"),
        (("--mirror", "x"), 2, "unknown option: --mirror"),
        (("--", "--out", "x"), 2, "--out: the container sees"),
        (("--recipe", "nope.py"), 3, "nope.py: no such recipe"),
        (("--recipe", "../recipe.py"), 2, "../recipe.py: not below the current folder"),
        (("--recipe", str(SCRIPT)), 2, "not below the current folder"),
    ],
)
def test_what_is_refused(place: Place, words: tuple[str, ...], status: int, message: str) -> None:
    place.tools("docker")
    (place.folder.parent / "recipe.py").write_text("")
    called = place.call(*words)
    error, hint = called.err.splitlines()
    assert (called.status, called.run) == (status, [])
    assert error.startswith("error: ")
    assert message in error
    assert hint.startswith("hint: ")


def test_no_tool_at_all(place: Place) -> None:
    called = place.call()
    assert called.status == 5
    assert called.err.startswith("error: neither docker nor podman is installed\nhint: ")


def test_a_daemon_that_does_not_answer(place: Place) -> None:
    place.tools("docker")
    called = place.call(DEAD="1")
    assert (called.status, called.run) == (5, [])
    assert called.err.startswith("error: docker does not answer\nhint: ")


def test_an_image_that_cannot_be_made(place: Place) -> None:
    place.tools("podman")
    called = place.call(BUILD="125")
    assert (called.status, called.run) == (5, [])
    assert "error: podman could not make the image imgkit-build" in called.err


def test_help(place: Place) -> None:
    called = place.call("--help")
    assert (called.status, called.err) == (0, "")
    assert "script/container-build [--tool docker|podman]" in called.out


# ---- the Containerfile ---------------------------------------------------------------------------------------------


def test_the_containerfile_has_no_list_of_its_own() -> None:
    recipe = read_recipe((ROOT / "Containerfile").read_text())
    assert [words.split(" && ")[0] for kind, words in recipe.steps if kind == "RUN"][:2] == [
        "/imgkit/script/setup --system build",
        "/imgkit/script/setup build",
    ]
    assert not any("apt-get install" in words for _, words in recipe.steps)
    assert recipe.user not in ("", "root", "0")


def test_what_is_copied_is_not_ignored() -> None:
    """Docker sends only what ``.dockerignore`` lets through, and nothing else is needed."""
    recipe = read_recipe((ROOT / "Containerfile").read_text())
    copied = {
        name for kind, words in [*recipe.steps, *recipe.copied_last] if kind == "COPY" for name in words.split()[:-1]
    }
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert sent == copied - {"imgkit/__init__.py"}
    assert all((ROOT / name).exists() for name in copied)


def test_other_instructions_are_noticed() -> None:
    with pytest.raises(ValueError, match="ADD: not understood"):
        read_recipe("FROM docker.io/library/debian:12\nADD https://example.com/x /x\n")
    with pytest.raises(KeyError):
        read_recipe("FROM docker.io/library/alpine:3\n")


def test_setup_can_stop_after_the_packages(place: Place) -> None:
    """The system's programs are stand-ins: everything is installed but the kernel, perhaps."""
    (place.folder / "script").mkdir()
    shutil.copy(ROOT / "script/setup", place.folder / "script/setup")
    for name, text in {"dpkg-query": "echo -n 'ii '", "apt-get": "", "sudo": "", "uname": "echo x86_64"}.items():
        (place.programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (place.programs / name).chmod(0o755)
    env = {"PATH": f"{place.programs}:/usr/bin:/bin"}
    done = subprocess.run([place.folder / "script/setup", "--system", "build"], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert "virtual" not in done.stderr
    assert not (place.folder / ".venv").exists()
