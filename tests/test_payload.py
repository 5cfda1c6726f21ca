"""Host folders in the Tree, and npm packages of a payload (npm itself is a program of the test)."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkit.errors import HostError, InputError
from imgkit.rootfs.npm.prepare import Build, prepare
from imgkit.rootfs.payload import add_directory, replace_payload
from imgkit.tree import Directory, File, HardLink, Slice, Symlink, Tree, kind
from tests.conftest import need
from tests.files import nested

EPOCH = 1_700_000_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a bit of everything that may be in one."""
    top = tmp_path / "overlay"
    (top / "etc/init.d").mkdir(parents=True)
    (top / "etc/init.d/agentd").write_text("#!/sbin/openrc-run\n")
    (top / "etc/init.d/agentd").chmod(0o4711)
    (top / "etc/motd").write_text("hello")
    (top / "etc/motd").chmod(0o640)
    (top / "etc/empty").touch()
    (top / "etc/alias").symlink_to("motd")
    return top


def base() -> Tree:
    tree = Tree()
    tree.mkdir("etc", mode=0o711, uid=5)
    tree.write("etc/motd", "old", uid=3)
    return tree


def test_attributes_are_normalised(folder: Path) -> None:
    tree = base()
    written = add_directory(tree, folder, "", epoch=EPOCH)
    assert written == ["etc", "etc/alias", "etc/empty", "etc/init.d", "etc/init.d/agentd", "etc/motd"]
    assert {(tree[path].uid, tree[path].gid, tree[path].mtime) for path in written[1:]} == {(0, 0, EPOCH)}
    assert {path: oct(tree[path].mode) for path in written} == {
        "etc": "0o711",  # it was there
        "etc/alias": "0o777",
        "etc/empty": "0o644",
        "etc/init.d": "0o755",
        "etc/init.d/agentd": "0o755",
        "etc/motd": "0o644",
    }
    assert tree["etc"].uid == 5
    assert tree.text("etc/alias") == "hello"
    assert tree.read("etc/empty") == b""
    node = tree["etc/motd"]
    assert isinstance(node, File)
    assert node.content == Slice(folder / "etc/motd", 0, 5)


def test_a_destination_is_made(folder: Path) -> None:
    tree = Tree()
    add_directory(tree, folder, "opt/deep/er", epoch=EPOCH)
    assert tree["opt/deep/er"] == Directory(mtime=EPOCH)
    assert "opt/deep/er/etc/motd" in tree


def test_directories_that_are_links_in_the_tree(folder: Path) -> None:
    tree = Tree()
    tree.mkdir("usr/lib/etc")
    tree.symlink("etc", "/usr/lib/etc")
    tree.symlink("opt", "usr")
    add_directory(tree, folder, "", epoch=EPOCH)
    assert isinstance(tree["etc"], Symlink)
    assert tree.text("usr/lib/etc/init.d/agentd").startswith("#!")
    add_directory(tree, folder, "opt/x", epoch=EPOCH)
    assert "usr/x/etc/motd" in tree


def test_other_names_of_a_replaced_file_keep_its_contents(folder: Path) -> None:
    tree = base()
    tree.add("etc/other", HardLink(target="etc/motd"))
    add_directory(tree, folder, "", epoch=EPOCH)
    assert (tree.text("etc/motd"), tree.text("etc/other")) == ("hello", "old")


def test_a_link_is_replaced_not_followed(folder: Path) -> None:
    tree = Tree()
    tree.write("usr/share/motd", "precious")
    tree.symlink("etc/motd", "/usr/share/motd")
    add_directory(tree, folder, "", epoch=EPOCH)
    assert (tree.text("etc/motd"), tree.text("usr/share/motd")) == ("hello", "precious")


@pytest.mark.parametrize(
    ("blocker", "there"), [("etc", "file"), ("etc/init.d", "file"), ("etc", "symlink"), ("etc/init.d", "symlink")]
)
def test_a_file_where_a_directory_is_wanted(folder: Path, blocker: str, there: str) -> None:
    tree = Tree()
    if there == "symlink":
        tree.symlink(blocker, "nowhere")
    else:
        tree.write(blocker, "file")
    with pytest.raises(InputError) as caught:
        add_directory(tree, folder, "", epoch=EPOCH)
    assert caught.value.message == (
        f"{folder}/{blocker}: /{blocker} is a {kind(tree[blocker])} in the image, not a directory"
    )


def test_a_directory_where_a_file_is_wanted(folder: Path) -> None:
    tree = Tree()
    tree.mkdir("etc/motd")
    with pytest.raises(InputError, match=r"etc/motd: /etc/motd is a directory"):
        add_directory(tree, folder, "", epoch=EPOCH)


def test_a_destination_that_is_a_file_or_a_circle(folder: Path) -> None:
    tree = Tree()
    tree.write("opt", "file")
    tree.symlink("one", "two")
    tree.symlink("two", "one")
    for destination in ("opt", "opt/x", "one/x"):
        with pytest.raises(InputError, match=f"cannot be put into /{destination}"):
            add_directory(tree, folder, destination, epoch=EPOCH)


# ---- what may not be in a folder -------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["../../outside", "..//../x", "/etc/passwd", "a/../../../x"])
def test_links_that_leave_a_payload(folder: Path, target: str) -> None:
    (folder / "etc/link").symlink_to(target)
    tree = Tree()
    with pytest.raises(InputError, match=r"etc/link: the link to .* leads out of the folder"):
        add_directory(tree, folder, "opt/payload", epoch=EPOCH)
    assert list(tree) == [""]


@pytest.mark.parametrize("above", ["init.d/up/../overlay/etc/motd", "init.d/up/../secret", "init.d/up/.."])
def test_links_that_leave_a_payload_by_another_link(folder: Path, tmp_path: Path, above: str) -> None:
    """``etc/init.d/up/..`` reads as ``etc/init.d`` and is the folder above the payload."""
    (tmp_path / "secret").write_text("secret")
    (folder / "etc/init.d/up").symlink_to("../..")
    (folder / "etc/link").symlink_to(above)
    if above.endswith("motd"):
        add_directory(Tree(), folder, "opt/payload", epoch=EPOCH)
    else:
        with pytest.raises(InputError, match=r"etc/link: the link to .* leads out of the folder"):
            add_directory(Tree(), folder, "opt/payload", epoch=EPOCH)


@pytest.mark.parametrize("target", ["..", "../etc/motd", "init.d/../motd", "nowhere"])
def test_links_that_stay(folder: Path, target: str) -> None:
    (folder / "etc/link").symlink_to(target)
    tree = Tree()
    add_directory(tree, folder, "opt/payload", epoch=EPOCH)
    assert tree["opt/payload/etc/link"] == Symlink(target=target, mtime=EPOCH)


def test_absolute_links_of_an_overlay_are_paths_of_the_image(folder: Path) -> None:
    (folder / "etc/link").symlink_to("/usr/share/zoneinfo/UTC")
    tree = Tree()
    add_directory(tree, folder, "", epoch=EPOCH)
    assert tree["etc/link"] == Symlink(target="/usr/share/zoneinfo/UTC", mtime=EPOCH)
    (folder / "etc/host").symlink_to(folder / "etc/motd")
    with pytest.raises(InputError, match="etc/host: the link"):
        add_directory(tree, folder, "", epoch=EPOCH)


@given(st.lists(st.sampled_from(["..", ".", "", "a", "etc"]), max_size=7))
def test_links_are_judged_as_path_arithmetic_does(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    target = "/".join(["a", *parts])
    top = tmp_path_factory.mktemp("links")
    (top / "one").mkdir()
    (top / "one/link").symlink_to(target)
    prefixes = [os.path.normpath("/".join(["one/a", *parts[:end]])) for end in range(len(parts) + 1)]
    leaves = any(prefix.startswith("..") for prefix in prefixes)
    tree = Tree()
    if leaves:
        with pytest.raises(InputError):
            add_directory(tree, top, "x", epoch=EPOCH)
    else:
        assert "x/one/link" in add_directory(tree, top, "x", epoch=EPOCH)


def test_a_folder_as_deep_as_is_allowed(folder: Path) -> None:
    with nested(folder / "deep", 255):
        assert len(add_directory(Tree(), folder, "opt", epoch=EPOCH)) > 256


@pytest.mark.parametrize("depth", [257, 1_300])
def test_a_payload_that_is_deeper_than_any_program(folder: Path, depth: int) -> None:
    with nested(folder / "deep", depth - 1), pytest.raises(InputError, match="more than 256 folders deep"):
        add_directory(Tree(), folder, "opt", epoch=EPOCH)


def test_special_files(folder: Path) -> None:
    os.mkfifo(folder / "etc/pipe")
    with pytest.raises(InputError, match="etc/pipe: neither"):
        add_directory(Tree(), folder, "", epoch=EPOCH)


def test_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("f/socket")
    with pytest.raises(InputError, match="socket: neither"):
        add_directory(Tree(), tmp_path / "f", "", epoch=EPOCH)


def test_control_characters_in_a_name(folder: Path) -> None:
    (folder / "etc/two\nlines").touch()
    with pytest.raises(InputError, match="control characters"):
        add_directory(Tree(), folder, "", epoch=EPOCH)


@pytest.fixture
def nobody() -> Iterator[Path]:
    """Yield a folder of an unprivileged user. The test runs as that user, because root could read everything."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        yield Path(name)
        if root:
            os.seteuid(0)


@pytest.mark.parametrize("name", ["file", "directory"])
def test_unreadable(nobody: Path, name: str) -> None:
    (nobody / "file").write_text("secret")
    (nobody / "directory").mkdir()
    add_directory(Tree(), nobody, "", epoch=EPOCH)
    (nobody / name).chmod(0)
    with pytest.raises(InputError, match=f"{name}: cannot be read: Permission denied"):
        add_directory(Tree(), nobody, "", epoch=EPOCH)
    (nobody / name).chmod(0o700)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none: no such folder"):
        add_directory(Tree(), tmp_path / "none", "", epoch=EPOCH)


# ---- the payload -----------------------------------------------------------------------------------------------------


def test_the_old_payload_goes(folder: Path) -> None:
    tree = Tree()
    tree.write("opt/agent-runner/old/index.js", "old")
    written = replace_payload(tree, folder, epoch=EPOCH)
    assert "opt/agent-runner/old" not in tree
    assert tree.text("opt/agent-runner/etc/motd") == "hello"
    assert "opt/agent-runner/etc/motd" in written


NPM = r"""#!/usr/bin/env python3
import json, os, pathlib, sys
version, fails = VERSION, FAILS
if sys.argv[1:] == ["--version"]:
    print(version)
    sys.exit()
(folder,) = [word.removeprefix("--prefix=") for word in sys.argv if word.startswith("--prefix=")]
here = pathlib.Path(folder)
with (here / ".npm.log").open("a") as log:  # the one folder that npm may write to
    seen = sorted(name for name in os.listdir(here) if name != ".npm.log")
    log.write(json.dumps([os.getcwd(), sys.argv[1:], seen, dict(os.environ)]) + "\n")
if fails == "full":
    print("npm error code ENOSPC\nnpm error syscall write\nnpm error errno -28", file=sys.stderr)
    sys.exit(228)
if fails == sys.argv[1]:
    print("npm error code E404\nnpm error 404 Not Found - left-pad\nnpm error A complete log", file=sys.stderr)
    sys.exit(1)
if sys.argv[1] == "run":
    (here / "built.js").write_text("built")
else:
    (here / "node_modules/dep").mkdir(parents=True)
    (here / "node_modules/dep/index.js").write_text("dep")
    (here / "node_modules/.package-lock.json").write_text("{}")
"""


class Npm:
    """A program called npm, first on PATH, that writes down how it is called."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "copy/.npm.log"
        self.program = folder / "bin/npm"
        self.program.parent.mkdir()
        self.be()

    def be(self, version: str = "10.9.4", fails: str = "") -> None:
        """Have this version, and fail at this command."""
        self.program.write_text(NPM.replace("VERSION", repr(version)).replace("FAILS", repr(fails)))
        self.program.chmod(0o755)

    def _log(self) -> list[Any]:
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def calls(self) -> list[list[str]]:
        """Return the arguments of each call."""
        return [call[1] for call in self._log()]

    def saw(self) -> list[list[str]]:
        """Return what was in the folder at each call."""
        return [call[2] for call in self._log()]

    def folders(self) -> list[str]:
        """In which folder it was started at each call."""
        return [call[0] for call in self._log()]

    def variables(self) -> list[dict[str, str]]:
        """Return the environment of each call."""
        return [call[3] for call in self._log()]


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Npm:
    fake = Npm(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return fake


@pytest.fixture
def payload(tmp_path: Path) -> Path:
    top = tmp_path / "payload"
    top.mkdir()
    (top / "index.js").write_text("code")
    return top


def manifest(payload: Path, **fields: object) -> None:
    (payload / "package.json").write_text(json.dumps({"name": "p", **fields}))


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


DEPENDENCIES = {"left-pad": "1"}
SCRIPTS = {"build": "tsc"}


@pytest.mark.parametrize(
    ("build", "fields", "modules", "commands"),
    [
        ("0", {"dependencies": DEPENDENCIES, "scripts": SCRIPTS}, False, []),
        ("auto", {}, False, []),
        ("auto", {"scripts": {"test": "x"}, "devDependencies": DEPENDENCIES}, False, []),
        ("auto", {"dependencies": DEPENDENCIES}, False, ["install"]),
        ("auto", {"optionalDependencies": DEPENDENCIES, "scripts": SCRIPTS}, False, ["install"]),
        ("auto", {"dependencies": DEPENDENCIES, "scripts": SCRIPTS}, True, ["install"]),
        ("auto", {"scripts": SCRIPTS}, False, []),
        ("auto", {"scripts": SCRIPTS}, True, []),
        ("1", {}, False, ["install"]),
        ("1", {"scripts": SCRIPTS}, True, ["install", "run"]),
    ],
)
def test_what_runs(
    npm: Npm, payload: Path, tmp_path: Path, build: Build, fields: dict[str, object], modules: bool, commands: list[str]
) -> None:
    manifest(payload, **fields)
    if modules:
        (payload / "node_modules/host").mkdir(parents=True)
    before = sorted(str(path) for path in payload.rglob("*"))
    prepared = prepare(payload, tmp_path / "copy", build=build, architecture="x86_64")
    assert [call[0] for call in npm.calls()] == commands
    assert sorted(str(path) for path in payload.rglob("*")) == before, "the user's folder was changed"
    assert (prepared == payload) == (not commands)
    assert (prepared / "built.js").exists() == ("run" in commands)
    assert (prepared / "index.js").read_text() == "code"


def test_install_is_for_the_image(npm: Npm, payload: Path, tmp_path: Path) -> None:
    manifest(payload, dependencies=DEPENDENCIES)
    (payload / "node_modules/host").mkdir(parents=True)
    prepared = prepare(payload, tmp_path / "copy", build="auto", architecture="aarch64")
    ((command, *arguments),) = npm.calls()
    assert command == "install"
    wanted = {"--omit=dev", "--os=linux", "--cpu=arm64", "--libc=musl", "--ignore-scripts", "--no-package-lock"}
    assert wanted <= set(arguments)
    assert npm.saw() == [["index.js", "package.json"]], "packages of the host were there"
    assert sorted(path.name for path in (prepared / "node_modules").iterdir()) == ["dep"]


def test_the_environment_of_npm(npm: Npm, payload: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """npm gets only proxies and certificates of the user's environment, and corepack must not read package.json."""
    for name in ("API_KEY", "NODE_OPTIONS", "npm_config_git", "GIT_SSH_COMMAND", "SSH_AUTH_SOCK"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("https_proxy", "http://proxy.example")
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:.:node_modules/.bin:{payload}/bin:")
    manifest(payload, dependencies=DEPENDENCIES, scripts=SCRIPTS)
    prepare(payload, tmp_path / "copy", build="1", architecture="x86_64")
    for variables in npm.variables():
        assert "secret" not in variables.values()
        assert variables["https_proxy"] == "http://proxy.example"
        assert variables["COREPACK_ENABLE_PROJECT_SPEC"] == "0"
        assert Path(variables["HOME"]) in Path(variables["TMPDIR"]).parents
        assert variables["HOME"] != os.environ.get("HOME")
        path = variables["PATH"].split(":")
        assert all(entry.startswith("/") and not entry.startswith(str(payload)) for entry in path)
        names = [name for name in variables if name.startswith(("npm_", "NODE_", "GIT_SSH", "SSH_"))]
        assert set(names) <= {"npm_config_ignore_scripts", "npm_config_script_shell", "NODE_EXTRA_CA_CERTS"}
    for folder in map(Path, npm.folders()):
        assert not folder.is_relative_to(payload)
        assert not folder.is_relative_to(tmp_path / "copy")


@pytest.mark.parametrize("lock", ["package-lock.json", "npm-shrinkwrap.json"])
def test_a_lock_file_is_kept_to(npm: Npm, payload: Path, tmp_path: Path, lock: str) -> None:
    manifest(payload, dependencies=DEPENDENCIES)
    (payload / lock).write_text("{}")
    prepare(payload, tmp_path / "copy", build="auto", architecture="x86_64", offline=True)
    ((command, *arguments),) = npm.calls()
    assert command == "ci"
    assert {"--offline", "--cpu=x64"} <= set(arguments)
    assert "--no-package-lock" not in arguments


def write_lock(payload: Path, *known: str) -> None:
    """The lock file of a payload with three optional packages, with entries for those that are ``known``."""
    names = ["x-darwin-arm64", "x-linuxmusl-x64", "x-linux-x64", "y-linux-arm64-musl"]
    packages: dict[str, object] = {"": {"optionalDependencies": dict.fromkeys(names, "^1.0.0")}}
    packages |= {f"node_modules/{name}": {"version": "1.0.0"} for name in known}
    (payload / "package-lock.json").write_text(json.dumps({"lockfileVersion": 3, "packages": packages}))


def test_a_lock_file_that_lacks_what_the_image_needs(
    npm: Npm, payload: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The npm of this test is as npm 10: it does not add what the lock file lacks."""
    manifest(payload, dependencies=DEPENDENCIES)
    write_lock(payload, "x-darwin-arm64")
    prepare(payload, tmp_path / "copy", build="auto", architecture="x86_64")
    ((command, *arguments),) = npm.calls()
    assert command == "install"
    assert "--no-save" in arguments
    (message,) = warnings(caplog)
    assert message == (
        f"{payload}/package-lock.json: lacks x-linuxmusl-x64, and this npm did not install it; "
        "remove node_modules and package-lock.json and run npm install to have a complete one"
    )


def test_a_lock_file_that_lacks_what_others_need(
    npm: Npm, payload: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest(payload, dependencies=DEPENDENCIES)
    write_lock(payload, "x-linuxmusl-x64", "x-linux-x64")
    prepare(payload, tmp_path / "copy", build="auto", architecture="x86_64")
    assert [call[0] for call in npm.calls()] == ["install"], "npm ci refuses such a lock file too"
    assert warnings(caplog) == []


@pytest.mark.parametrize(
    ("names", "cpu", "missing"),
    [
        ("linux-x64", "x86_64", "linux-x64"),
        ("linux-x64 linux-x64-gnu linux-x64-glibc", "x86_64", "linux-x64"),
        ("linux-x64 linux-x64-musl", "x86_64", "linux-x64-musl"),
        ("@img/sharp-linuxmusl-arm64 @img/sharp-linux-arm64", "aarch64", "@img/sharp-linuxmusl-arm64"),
        ("a-linux-x64-musl b-linux-x64-musl", "x86_64", "a-linux-x64-musl, b-linux-x64-musl"),
        ("linux-riscv64 linux-x64", "riscv64", "linux-riscv64"),
        ("linux-x64-gnu darwin-x64 linux-arm64", "x86_64", ""),
    ],
)
def test_which_packages_of_a_lock_file_the_image_needs(
    npm: Npm, payload: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, names: str, cpu: str, missing: str
) -> None:
    manifest(payload, dependencies=DEPENDENCIES)
    packages = {"": {"optionalDependencies": dict.fromkeys(names.split(), "1")}, "node_modules/other": {}}
    (payload / "package-lock.json").write_text(json.dumps({"packages": packages}))
    prepare(payload, tmp_path / "copy", build="auto", architecture=cpu)
    assert [message.split("; ")[0] for message in warnings(caplog)] == (
        [f"{payload}/package-lock.json: lacks {missing}, and this npm did not install it"] if missing else []
    )


def test_a_package_that_npm_added_to_those_of_the_lock_file(
    npm: Npm, payload: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest(payload, dependencies=DEPENDENCIES)
    npm.program.write_text(npm.program.read_text().replace("node_modules/dep", "node_modules/dep-linux-x64"))
    packages = {"": {"optionalDependencies": {"dep-linux-x64": "1"}}}
    (payload / "package-lock.json").write_text(json.dumps({"packages": packages}))
    prepare(payload, tmp_path / "copy", build="auto", architecture="x86_64")
    assert warnings(caplog) == [
        f"{payload}/package-lock.json: lacks dep-linux-x64, which is now in the image in a version of npm's choice; "
        "remove node_modules and package-lock.json and run npm install to have a complete one"
    ]


def test_the_shrinkwrap_is_preferred(npm: Npm, payload: Path, tmp_path: Path) -> None:
    manifest(payload, dependencies=DEPENDENCIES)
    (payload / "npm-shrinkwrap.json").write_text("{}")
    (payload / "package-lock.json").write_text("damaged")
    prepare(payload, tmp_path / "copy", build="auto", architecture="x86_64")
    assert npm.calls()[0][0] == "ci"


@pytest.mark.parametrize(("scripts", "name"), [(False, "plain"), (True, "scripts")])
def test_payloads_whose_scripts_run_have_a_cache_of_their_own(
    npm: Npm, payload: Path, tmp_path: Path, scripts: bool, name: str
) -> None:
    manifest(payload, dependencies=DEPENDENCIES)
    prepare(
        payload,
        tmp_path / "copy",
        build="auto",
        architecture="x86_64",
        allow_scripts=scripts,
        cache=tmp_path / "cache",
    )
    ((*_, cache),) = [[word for word in call if word.startswith("--cache=")] for call in npm.calls()]
    assert cache == f"--cache={tmp_path}/cache/{name}"


def test_installing_with_what_is_in_the_cache_or_from_the_network(npm: Npm, payload: Path, tmp_path: Path) -> None:
    manifest(payload, dependencies=DEPENDENCIES)
    prepare(payload, tmp_path / "copy", build="auto", architecture="riscv64")
    (call,) = npm.calls()
    assert {"--prefer-offline", "--no-audit", "--no-fund", "--cpu=riscv64", "--allow-git=none"} <= set(call)
    assert "--offline" not in call


def test_an_architecture_that_npm_has_no_name_for(npm: Npm, payload: Path, tmp_path: Path) -> None:
    manifest(payload, dependencies=DEPENDENCIES)
    with pytest.raises(InputError) as caught:
        prepare(payload, tmp_path / "copy", build="auto", architecture="s390x")
    assert caught.value.message == f"{payload}: Node's name of the architecture s390x is not known"
    assert npm.calls() == []


@pytest.mark.slow
def test_what_npm_installed_is_checked(npm: Npm, payload: Path, tmp_path: Path) -> None:
    """npm's own list of it does not get into the image."""
    manifest(payload, dependencies=DEPENDENCIES)
    prepared = prepare(payload, tmp_path / "copy", build="auto", architecture="x86_64")
    assert (prepared / "node_modules/dep").exists()
    assert not (prepared / "node_modules/.package-lock.json").exists()
    lock = json.dumps({"packages": {"node_modules/x": {"resolved": "git+ssh://h/x.git"}}})
    npm.program.write_text(npm.program.read_text().replace('"{}"', repr(lock)))
    with pytest.raises(InputError) as caught:
        prepare(payload, tmp_path / "again", build="auto", architecture="x86_64")
    assert caught.value.message == (
        f"{payload}/node_modules: 'node_modules/x': 'git+ssh://h/x.git' comes from a git repository"
    )
    prepare(payload, tmp_path / "allowed", build="auto", architecture="x86_64", allow_git=True)


@pytest.mark.slow
def test_a_package_from_git_is_refused_before_npm_starts(npm: Npm, payload: Path, tmp_path: Path) -> None:
    """Packages for development matter if there is no lock file."""
    manifest(payload, dependencies=DEPENDENCIES, devDependencies={"x": "a/b"})
    with pytest.raises(InputError, match=f"^{payload}/package.json: x: 'a/b' comes from a git repository$"):
        prepare(payload, tmp_path / "copy", build="auto", architecture="x86_64")
    assert npm.calls() == []
    (payload / "package-lock.json").write_text('{"packages": {"node_modules/y": {"resolved": "a/c"}}}')
    with pytest.raises(InputError, match=f"^{payload}/package-lock.json: 'node_modules/y': 'a/c' comes from"):
        prepare(payload, tmp_path / "again", build="auto", architecture="x86_64")
    prepare(payload, tmp_path / "allowed", build="auto", architecture="x86_64", allow_git=True)


@pytest.mark.slow
def test_only_the_packages_that_the_host_installed_are_not_copied(npm: Npm, payload: Path, tmp_path: Path) -> None:
    """The folder for the copy may be there, and links may lead nowhere."""
    manifest(payload, dependencies=DEPENDENCIES)
    (payload / "lib/node_modules/own").mkdir(parents=True)
    (payload / "lib/node_modules/own/index.js").write_text("own")
    (payload / "node_modules/host").mkdir(parents=True)
    (payload / "dangling").symlink_to("nowhere")
    (tmp_path / "copy").mkdir()
    prepared = prepare(payload, tmp_path / "copy", build="auto", architecture="x86_64")
    assert (prepared / "lib/node_modules/own/index.js").read_text() == "own"
    assert (prepared / "dangling").readlink() == Path("nowhere")
    assert not (prepared / "node_modules/host").exists()


def test_links_that_leave_the_payload_are_refused_before_it_is_copied(npm: Npm, payload: Path, tmp_path: Path) -> None:
    manifest(payload, dependencies=DEPENDENCIES)
    (payload / "link").symlink_to("/usr/share")
    with pytest.raises(InputError, match="link: the link to /usr/share leads out of the folder"):
        prepare(payload, tmp_path / "copy", build="auto", architecture="x86_64")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [
        (errno.ENOSPC, HostError, "copy: no space left"),
        (errno.EDQUOT, HostError, "copy: no space left"),
        (errno.EIO, InputError, "payload: cannot be copied: .*Input/output error"),
    ],
)
def test_a_copy_that_fails(
    npm: Npm,
    payload: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    kind: type[Exception],
    message: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("shutil.copytree", fail)
    manifest(payload, dependencies=DEPENDENCIES)
    with pytest.raises(kind, match=message):
        prepare(payload, tmp_path / "copy", build="auto", architecture="x86_64")
    assert npm.calls() == []


@pytest.mark.parametrize("main", [None, "", 0])
def test_a_payload_without_a_main_file_has_index_js(
    npm: Npm, payload: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, main: object
) -> None:
    manifest(payload, scripts=SCRIPTS, main=main)
    prepare(payload, tmp_path / "copy", build="auto", architecture="x86_64")
    assert warnings(caplog) == []
    (payload / "index.js").unlink()
    prepare(payload, tmp_path / "copy", build="auto", architecture="x86_64")
    assert [message.split(",")[0] for message in warnings(caplog)] == [f"{payload}: index.js is not there"]


@pytest.mark.parametrize("text", ["{", "[]", '{"packages": 3}', '{"packages": {"": {"optionalDependencies": 3}}}'])
def test_a_lock_file_that_is_none(npm: Npm, payload: Path, tmp_path: Path, text: str) -> None:
    manifest(payload, dependencies=DEPENDENCIES)
    (payload / "package-lock.json").write_text(text)
    with pytest.raises(InputError, match=r"payload/package-lock\.json: cannot be read as (JSON|a lock file of npm)"):
        prepare(payload, tmp_path / "copy", build="auto", architecture="x86_64")
    assert npm.calls() == []


@pytest.mark.parametrize(
    ("fields", "build", "warned"),
    [
        ({"scripts": SCRIPTS, "main": "dist/index.js"}, "auto", True),
        ({"scripts": SCRIPTS, "main": "dist/index.js"}, "1", False),
        ({"scripts": SCRIPTS, "main": "dist/index.js"}, "0", False),
        ({"scripts": SCRIPTS, "main": "./index"}, "auto", False),
        ({"scripts": SCRIPTS}, "auto", False),
        ({"main": "dist/index.js"}, "auto", False),
    ],
)
def test_a_payload_that_wants_to_be_built_first(
    npm: Npm,
    payload: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    fields: dict[str, object],
    build: Build,
    warned: bool,
) -> None:
    manifest(payload, **fields)
    prepare(payload, tmp_path / "copy", build=build, architecture="x86_64")
    assert [message.split(",")[0] for message in warnings(caplog)] == (
        [f"{payload}: dist/index.js is not there"] if warned else []
    )


def test_scripts_run_when_they_may(npm: Npm, payload: Path, tmp_path: Path) -> None:
    manifest(payload, dependencies=DEPENDENCIES, scripts=SCRIPTS)
    prepare(payload, tmp_path / "copy", build="1", architecture="x86_64", allow_scripts=True)
    assert len(npm.calls()) == 2
    assert not [call for call in npm.calls() if "--ignore-scripts" in call]


def test_npm_fails(npm: Npm, payload: Path, tmp_path: Path) -> None:
    npm.be(fails="install")
    manifest(payload, dependencies=DEPENDENCIES)
    with pytest.raises(
        InputError, match="payload: npm install failed with status 1: npm error 404 Not Found - left-pad"
    ):
        prepare(payload, tmp_path / "copy", build="auto", architecture="x86_64")


def test_no_room(npm: Npm, payload: Path, tmp_path: Path) -> None:
    """Which is the host's fault. While copying: a filesystem of 64 KiB, where one may be mounted."""
    npm.be(fails="full")
    manifest(payload, dependencies=DEPENDENCIES)
    with pytest.raises(HostError, match="copy: npm install: no space left"):
        prepare(payload, tmp_path / "copy", build="auto", architecture="x86_64")
    full = tmp_path / "full"
    full.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", full], capture_output=True, check=False)
    need("the right to mount a small filesystem", mount.returncode == 0)
    try:
        (payload / "large").write_bytes(bytes(1 << 20))
        with pytest.raises(HostError, match="full/copy: no space left"):
            prepare(payload, full / "copy", build="auto", architecture="x86_64")
    finally:
        subprocess.run(["umount", full], check=True)


@pytest.mark.slow
def test_old_npm(npm: Npm, payload: Path, tmp_path: Path) -> None:
    manifest(payload, dependencies=DEPENDENCIES)
    for version in ("9.2.0", "10.9.3"):
        npm.be(version)
        with pytest.raises(HostError, match=f"npm {re.escape(version)}: too old"):
            prepare(payload, tmp_path / version, build="auto", architecture="x86_64")


def test_no_npm(payload: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    manifest(payload)
    assert prepare(payload, tmp_path / "copy", build="auto", architecture="x86_64") == payload
    manifest(payload, dependencies=DEPENDENCIES)
    with pytest.raises(HostError, match="npm: program not found") as caught:
        prepare(payload, tmp_path / "copy", build="auto", architecture="x86_64")
    assert caught.value.hint == "apt-get install npm"


def test_bad_manifests(npm: Npm, payload: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"package\.json: missing"):
        prepare(payload, tmp_path / "copy", build="1", architecture="x86_64")
    for text, message in (("{", "cannot be read as JSON"), ("[]", "not an object"), ("\xff", "cannot be read as JSON")):
        (payload / "package.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(InputError, match=f"package.json: {message}"):
            prepare(payload, tmp_path / "copy", build="auto", architecture="x86_64")


def test_a_payload_that_cannot_be_copied_starts_nothing(npm: Npm, payload: Path, tmp_path: Path) -> None:
    manifest(payload, dependencies=DEPENDENCIES)
    os.mkfifo(payload / "pipe")
    with pytest.raises(InputError, match="pipe: neither"):
        prepare(payload, tmp_path / "copy", build="auto", architecture="x86_64")
    assert npm.calls() == []


def test_modes_survive_the_copy(npm: Npm, payload: Path, tmp_path: Path) -> None:
    manifest(payload, dependencies=DEPENDENCIES)
    (payload / "tool").write_text("#!/bin/sh\n")
    (payload / "tool").chmod(0o755)
    (payload / "alias").symlink_to("tool")
    prepared = prepare(payload, tmp_path / "copy", build="auto", architecture="x86_64")
    assert stat.S_IMODE((prepared / "tool").stat().st_mode) == 0o755
    assert (prepared / "alias").readlink() == Path("tool")
