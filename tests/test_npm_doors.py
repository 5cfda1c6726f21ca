"""Payloads that try to run a program on the host through npm, with the real npm: none of them succeeds.

They are tried without bubblewrap, because it must not be the only protection. The tests at the end show what bubblewrap
hides from scripts that may run.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from imgkit.errors import HostError, InputError
from imgkit.rootfs.npm.npmrunner import sandbox_problem
from imgkit.rootfs.npm.prepare import prepare
from tests.conftest import need, need_program
from tests.test_npm import no_bubblewrap, npm, tarball

pytestmark = pytest.mark.hostile

__all__ = ["npm"]

DEP = {"dependencies": {"dep": "file:dep.tgz"}}
HASH = "0123456789" * 4


def deep(version: str) -> Mapping[str, object]:
    """Return a package that itself asks for a package."""
    return {"name": "dep", "version": "1.0.0", "dependencies": {"x": version}}


def locked(entry: Mapping[str, object]) -> str:
    """Return a lock file with a package ``x``."""
    own = {"name": "p", "version": "1.0.0", "dependencies": {"x": "1.0.0"}}
    packages = {"": own, "node_modules/x": {"version": "1.0.0", **entry}}
    return json.dumps({"name": "p", "version": "1.0.0", "lockfileVersion": 3, "packages": packages})


@dataclass(frozen=True)
class Door:
    """A way in which a payload could run a program on the host.
    Attributes:
        manifest: fields of the package.json.
        files: files of the payload. EVIL is the path of a program that leaves a mark, MARK that of the mark, PAYLOAD
            that of the payload, PROGRAMS the folder of EVIL, which is called git.
        above: files in the folder above the copy in which npm works.
        home: files in the home of the user who builds.
        variables: environment variables of the user who builds.
        dep: the package.json of the package in ``dep.tgz``.
        refused: a part of the message, if the payload is refused.
    """

    manifest: Mapping[str, object] = field(default_factory=lambda: DEP)
    files: Mapping[str, str] = field(default_factory=dict)
    above: Mapping[str, str] = field(default_factory=dict)
    home: Mapping[str, str] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    dep: Mapping[str, object] = field(default_factory=lambda: {"name": "dep", "version": "1.0.0"})
    refused: str = ""


GIT = {".npmrc": "git=EVIL\n"}
REPOSITORY = "comes from a git repository"
DEEP = "wants a package from a git repository"
NODE = {"x.js": "require('fs').writeFileSync('MARK', '')"}

DOORS = {
    "git of the payload": Door({"dependencies": {"x": "git+https://127.0.0.1:9/x.git"}}, GIT, refused=REPOSITORY),
    "a name for github": Door({"dependencies": {"x": "user/repository"}}, GIT, refused=REPOSITORY),
    "github by https": Door({"dependencies": {"x": "https://github.com/a/b"}}, GIT, refused=REPOSITORY),
    "optional": Door({"optionalDependencies": {"x": "git@127.0.0.1:a/b"}}, GIT, refused=REPOSITORY),
    "for development": Door({**DEP, "devDependencies": {"x": "git+ssh://git@127.0.0.1:9/a"}}, GIT, refused=REPOSITORY),
    "an override": Door({**DEP, "overrides": {"y": {"x": "github:a/b"}}}, GIT, refused=REPOSITORY),
    "a lock file": Door(
        {"dependencies": {"x": "1.0.0"}},
        {**GIT, "package-lock.json": locked({"resolved": f"git+ssh://git@127.0.0.1:9/a/b.git#{HASH}"})},
        refused=REPOSITORY,
    ),
    "a package of a package": Door(files=GIT, dep=deep("git+https://127.0.0.1:9/x.git"), refused=DEEP),
    "a package of a package from github": Door(files=GIT, dep=deep(f"github:a/b#{HASH}"), refused=DEEP),
    "a yarn lock file": Door(
        {"dependencies": {"x": "1.0.0"}},
        {**GIT, "yarn.lock": f'x@1.0.0:\n  version "1.0.0"\n  resolved "git+https://127.0.0.1:9/x.git#{HASH}"\n'},
        refused="npm install failed",
    ),
    "git on PATH": Door(dep=deep("git+https://127.0.0.1:9/x.git"), variables={"PATH": "PROGRAMS"}, refused=DEEP),
    "git of a variable": Door(
        dep=deep("git+https://127.0.0.1:9/x.git"), variables={"npm_config_git": "EVIL"}, refused=DEEP
    ),
    "git of the home": Door(dep=deep("git+https://127.0.0.1:9/x.git"), home={".npmrc": "git=EVIL\n"}, refused=DEEP),
    "git of a folder above": Door(
        dep=deep("git+https://127.0.0.1:9/x.git"),
        above={**GIT, "package.json": '{"workspaces": ["made"]}'},
        refused=DEEP,
    ),
    "git of the prefix": Door(
        files={"etc/npmrc": "git=EVIL\n"}, dep=deep("git+https://127.0.0.1:9/x.git"), refused=DEEP
    ),
    "options of node": Door(files={".npmrc": "node-options=--require PAYLOAD/x.js\n", **NODE}),
    "options of node in a variable": Door(files=NODE, variables={"NODE_OPTIONS": "--require PAYLOAD/x.js"}),
    "a shell": Door({**DEP, "scripts": {"install": "true"}}, {".npmrc": "script-shell=EVIL\nignore-scripts=false\n"}),
    "a script": Door({**DEP, "scripts": {"install": "EVIL"}}, dep={**DEP, "scripts": {"install": "EVIL"}}),
    "a gyp file": Door(files={"binding.gyp": '{"variables": {"x": "<!(EVIL)"}, "targets": [{"target_name": "x"}]}'}),
    "a prefix": Door(files={".npmrc": "prefix=MARK\nglobal=true\n"}),
    "a cache": Door(files={".npmrc": "cache=MARK\n"}),
    "logs": Door(files={".npmrc": "logs-dir=MARK\nlogs-max=9\n"}),
    "npm on a relative PATH": Door(files={"bin/npm": "#!/bin/sh\ntouch MARK\n"}, variables={"PATH": "bin"}),
    "npm of the payload on PATH": Door(
        files={"node_modules/.bin/npm": "#!/bin/sh\ntouch MARK\n"}, variables={"PATH": "PAYLOAD/node_modules/.bin"}
    ),
    "a workspace elsewhere": Door({"workspaces": ["../elsewhere"]}, refused="leads out of the payload's folder"),
    "a place elsewhere": Door(
        {"dependencies": {"x": "1.0.0"}},
        {"package-lock.json": locked({}).replace("node_modules/x", "node_modules/../../x")},
        refused="is outside of the payload's folder",
    ),
    "a link elsewhere": Door(
        {"dependencies": {"x": "1.0.0"}},
        {"package-lock.json": locked({"resolved": "../elsewhere", "link": True})},
        refused="leads out of the payload's folder",
    ),
    "a file elsewhere": Door({"dependencies": {"x": "file:../elsewhere.tgz"}}, refused="is outside of the payload's"),
    "a hidden file elsewhere": Door(
        {"dependencies": {"x": "file:%2e%2e/elsewhere.tgz"}}, refused="is outside of the payload's"
    ),
}


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_doors_are_closed(door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_bubblewrap(tmp_path / "bin", monkeypatch)
    payload, home, above = tmp_path / "payload", tmp_path / "home", tmp_path / "above"
    mark, evil = tmp_path / "mark", tmp_path / "evil/git"
    names = {"EVIL": evil, "PROGRAMS": evil.parent, "MARK": mark, "PAYLOAD": payload}

    def filled(text: str) -> str:
        for name, path in names.items():
            text = text.replace(name, str(path))
        return text

    evil.parent.mkdir()
    evil.write_text(f"#!/bin/sh\ntouch {mark}\nexit 1\n")
    evil.chmod(0o755)
    manifest = json.dumps({"name": "p", "version": "1.0.0", **door.manifest})
    for folder, files in ((payload, {"package.json": manifest, **door.files}), (home, door.home), (above, door.above)):
        folder.mkdir()
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(filled(text))
            (folder / name).chmod(0o755)
    (payload / "dep.tgz").write_bytes(tarball(json.loads(filled(json.dumps(door.dep)))))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name, value in door.variables.items():
        rest = f"{os.pathsep}{os.environ['PATH']}" if name == "PATH" else ""
        monkeypatch.setenv(name, filled(value) + rest)
    monkeypatch.chdir(payload)
    if door.refused:
        with pytest.raises(InputError, match=door.refused):
            prepare(payload, above / "made", build="auto", architecture="x86_64")
    else:
        made = prepare(payload, above / "made", build="auto", architecture="x86_64")
        assert (made / "node_modules/dep/package.json").is_file()
    assert not mark.exists()
    assert list((tmp_path / "elsewhere").iterdir()) == []


# ---- what bubblewrap keeps from scripts that may run -----------------------------------------------------------------

SPY = """
const fs = require("fs"), os = require("os")
const seen = {env: process.env, home: fs.readdirSync(os.homedir()), pids: [], read: [], wrote: []}
for (const path of READ) try { fs.readFileSync(path); seen.read.push(path) } catch {}
for (const path of WRITE) try { fs.writeFileSync(path, ""); seen.wrote.push(path) } catch {}
seen.pids = fs.readdirSync("/proc").filter(name => /^[0-9]+$/.test(name))
fs.writeFileSync("seen.json", JSON.stringify(seen))
"""


@pytest.fixture
def spy(tmp_path: Path) -> Path:
    """Return a payload whose build script reads what it can; the user's credentials are in the home."""
    home, payload = tmp_path / "home", tmp_path / "payload"
    for folder in (home, payload):
        folder.mkdir()
    (home / ".npmrc").write_text("//registry.example/:_authToken=secret-token\n")
    (payload / "package.json").write_text(
        json.dumps({"name": "p", "version": "1.0.0", "scripts": {"build": "node spy"}})
    )
    read = [str(path) for path in (home / ".npmrc", Path("/etc/shadow"), Path(f"/proc/{os.getpid()}/environ"))]
    write = [str(path) for path in (tmp_path / "mark", payload / "mark")]
    spy = SPY.replace("READ", json.dumps(read)).replace("WRITE", json.dumps(write))
    (payload / "spy.js").write_text(spy)
    return payload


def test_a_build_script_sees_its_own_folder_only(spy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("bubblewrap that may make user namespaces", sandbox_problem() is None)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("API_KEY", "secret")
    made = prepare(spy, tmp_path / "made", build="1", architecture="x86_64", cache=tmp_path / "cache")
    seen = json.loads((made / "seen.json").read_bytes())
    assert seen["read"] == []
    for mark in (tmp_path / "mark", spy / "mark"):
        assert not mark.exists(), "what it wrote beside its folder was not gone with the sandbox"
    assert len(seen["pids"]) < 10, "processes of the host are in sight"
    assert "secret" not in json.dumps(seen["env"])
    assert ".npmrc" not in seen["home"]
    assert not [path for path in tmp_path.glob("made*") if path != made], "npm's home and configuration are still there"


def test_without_bubblewrap_a_build_script_has_the_rights_of_whoever_builds(
    spy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """This is the negative test of the one above: the script sees the files. The environment is clean nevertheless."""
    caplog.set_level("INFO", "imgkit")
    no_bubblewrap(tmp_path / "bin", monkeypatch)
    monkeypatch.setenv("API_KEY", "secret")
    made = prepare(spy, tmp_path / "made", build="1", architecture="x86_64")
    seen = json.loads((made / "seen.json").read_bytes())
    assert str(tmp_path / "home/.npmrc") in seen["read"]
    assert str(tmp_path / "mark") in seen["wrote"]
    assert "secret" not in json.dumps(seen["env"])
    assert [record.getMessage() for record in caplog.records] == [
        "npm runs without a sandbox: bwrap failed with status 1: bwrap: No permissions to create new namespace",
        f"{spy}: its build script runs with your rights on this host",
    ]


def test_nothing_outlives_a_build_script(spy: Path, tmp_path: Path) -> None:
    """A process in another session does not survive either, as it would without bubblewrap."""
    need("bubblewrap that may make user namespaces", sandbox_problem() is None)
    need_program("setsid")
    mark = f"imgkit-{tmp_path.name}"
    script = f"IMGKIT_MARK={mark} setsid sleep 300 >/dev/null 2>&1 </dev/null & sleep 0.2"
    (spy / "package.json").write_text(json.dumps({"name": "p", "version": "1.0.0", "scripts": {"build": script}}))
    prepare(spy, tmp_path / "made", build="1", architecture="x86_64")
    deadline = time.monotonic() + 10
    while (left := _with_variable(f"IMGKIT_MARK={mark}")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


def _with_variable(variable: str) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if variable.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(folder.name)
    return found


def test_what_is_in_the_image_is_the_payloads_own_configuration(tmp_path: Path) -> None:
    """npm is not shown the ``.npmrc``, which is there again in the end."""
    payload = tmp_path / "payload"
    payload.mkdir()
    (payload / "package.json").write_text(json.dumps({"name": "p", "version": "1.0.0", **DEP}))
    (payload / "dep.tgz").write_bytes(tarball({"name": "dep", "version": "1.0.0"}))
    (payload / ".npmrc").write_text("script-shell=/bin/false\n")
    made = prepare(payload, tmp_path / "made", build="auto", architecture="x86_64")
    assert (made / ".npmrc").read_text() == "script-shell=/bin/false\n"


def test_a_host_without_git_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe allows git already: the hint must not be to allow it."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("npm", "node"):
        (programs / name).symlink_to(need_program(name))
    monkeypatch.setenv("PATH", str(programs))
    payload = tmp_path / "payload"
    payload.mkdir()
    wanted = {"dependencies": {"x": "git+https://host.invalid/x.git"}}
    (payload / "package.json").write_text(json.dumps({"name": "p", "version": "1.0.0", **wanted}))
    with pytest.raises(HostError, match=r"^git: program not found") as caught:
        prepare(payload, tmp_path / "made", build="auto", architecture="x86_64", allow_git=True)
    assert "npm_git" not in str(caught.value.hint)
