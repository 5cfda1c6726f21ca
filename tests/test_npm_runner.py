"""How npm is started: its command line, environment, configuration and sandbox, with programs of the test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from imgkit.errors import HostError, InputError
from imgkit.rootfs.npm import npmconfig, npmrunner
from imgkit.rootfs.npm.npmrunner import NpmRunner, npm_runner, sandbox_problem
from tests.conftest import need_program

BWRAP = """#!/bin/sh
for word; do printf '%s\\n' "$word"; done >>'{log}'
echo END >>'{log}'
while [ "$1" != -- ]; do shift; done
shift
exec "$@"
"""


class Programs:
    """A folder that is PATH, with programs called npm and bwrap."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "programs"
        self.folder.mkdir()
        self.log = folder / "bwrap.log"

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def npm(self, script: str = ":") -> Path:
        """Put a program here that has a version and otherwise runs ``script``."""
        return self.write("npm", f'#!/bin/sh\n[ "$1" = --version ] && {{ echo 11.0.0; exit; }}\n{script}\n')

    def bwrap(self) -> list[list[str]]:
        """Return the arguments of each start of bwrap."""
        return [start.splitlines() for start in self.log.read_text().split("END\n")[:-1]]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """PATH with nothing but the programs of the test; sh and its kin are found by their whole names."""
    made = Programs(tmp_path)
    for name in ("sh", "cat", "sleep", "true", "wc"):
        (made.folder / name).symlink_to(need_program(name))
    monkeypatch.setenv("PATH", str(made.folder))
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    for name in list(os.environ):
        if name.lower().startswith("npm_config_") or name in npmrunner._VARIABLES:
            monkeypatch.delenv(name)
    made.npm()
    return made


@contextmanager
def started(
    tmp_path: Path, *, cache: Path | None = None, git: bool = False, offline: bool = False
) -> Iterator[NpmRunner]:
    for name in ("payload", "copy"):
        (tmp_path / name).mkdir(exist_ok=True)
    with npm_runner(tmp_path / "payload", tmp_path / "copy", cache, allow_git=git, offline=offline) as runner:
        yield runner


def configuration(runner: NpmRunner) -> str:
    """Return npm's configuration without what this host's own file adds to it."""
    of_the_host = npmconfig.settings(runner.folder / "none", [Path("/etc/npmrc")], {}).text
    return (runner.folder / "npmrc").read_text().removeprefix(of_the_host)


def test_npm_without_bubblewrap(programs: Programs, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "imgkit")
    with started(tmp_path) as runner:
        assert (runner.wrapper, runner.rights) == ((), "with your rights on this host")
        assert runner.version() == "11.0.0"
        assert runner.npm == str(programs.folder / "npm")
        assert Path(runner.git).name == "git-is-not-allowed"
        assert runner.cache == runner.folder / "home/cache"
        assert (runner.folder / "npmrc").stat().st_mode & 0o777 == 0o600
        folder = runner.folder
    assert not folder.exists()
    assert caplog.messages == ["npm runs without a sandbox: bubblewrap is not installed"]


@pytest.mark.parametrize("there", [True, False])
def test_the_cache_of_npm_is_made_if_it_is_missing(programs: Programs, tmp_path: Path, there: bool) -> None:
    cache = tmp_path / "deep/cache"
    if there:
        cache.mkdir(parents=True)
    with started(tmp_path, cache=cache) as runner:
        assert runner.cache == cache
        assert cache.is_dir()
    assert cache.is_dir()


def test_which_git_npm_may_run(programs: Programs, tmp_path: Path) -> None:
    with started(tmp_path, git=True) as runner:
        assert Path(runner.git).name == "git-is-not-installed"
    git = programs.write("git", "#!/bin/sh\n")
    with started(tmp_path, git=True) as runner:
        assert runner.git == str(git)
    with started(tmp_path) as runner:
        assert Path(runner.git).name == "git-is-not-allowed"


@pytest.mark.parametrize("git", [True, False])
@pytest.mark.parametrize("scripts", [True, False])
def test_the_command_line_of_npm(programs: Programs, tmp_path: Path, git: bool, scripts: bool) -> None:
    log = tmp_path / "log"
    variables = "$npm_config_ignore_scripts $npm_config_script_shell $PWD"
    programs.npm(f"for word; do echo \"$word\"; done >'{log}'; echo {variables} >>'{log}'")
    with started(tmp_path, git=git) as runner:
        runner.install(["ci", "--x"], scripts=scripts)
        folder = runner.folder
        options = [
            f"--prefix={tmp_path}/copy",
            f"--globalconfig={folder}/none",
            f"--git={runner.git}",
            f"--allow-git={'all' if git else 'none'}",
            *("--no-update-notifier", "--loglevel=error", "--logs-max=0", "--no-progress"),
        ]
        ignored = [] if scripts else ["--ignore-scripts"]
        assert log.read_text().splitlines() == [
            *("ci", "--x", f"--userconfig={folder}/npmrc", f"--cache={folder}/home/cache"),
            *ignored,
            *options,
            f"{folder}/home" if scripts else f"true {programs.folder}/true {folder}/home",
        ]
        for _ in range(2):
            runner.build(scripts=scripts)
            assert not (folder / "npmrc").exists(), "it has credentials"
        assert log.read_text().splitlines() == [
            *("run", "build", f"--userconfig={folder}/npmrc", f"--cache={folder}/home/cache"),
            *ignored,
            *options,
            f"{folder}/home",
        ]


def test_a_build_has_a_cache_of_its_own(programs: Programs, tmp_path: Path) -> None:
    log = tmp_path / "log"
    programs.npm(f"echo \"$4\" >'{log}'")
    with started(tmp_path, cache=tmp_path / "cache") as runner:
        runner.build(scripts=False)
        assert log.read_text() == f"--cache={runner.folder}/home/cache\n"
        runner.install(["ci"], scripts=False)
        assert log.read_text() == "--ignore-scripts\n"


def test_where_npm_is_asked_for_its_version(programs: Programs, tmp_path: Path) -> None:
    with started(tmp_path) as runner:
        programs.write("npm", '#!/bin/sh\necho " $HOME $PWD "\n')
        assert runner.version() == f"{runner.folder}/home {runner.folder}/home"


def test_an_npm_that_does_not_say_its_version(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside of bubblewrap it may be the wrapper of a version manager."""
    with started(tmp_path) as runner:
        wrapper = programs.write("wrapper", "#!/bin/sh\nexit 3\n")
        with pytest.raises(HostError) as caught:
            replace(runner, wrapper=(str(wrapper),)).version()
        assert caught.value.message == "wrapper failed with status 3"
        npm = programs.write("npm", "#!/bin/sh\nsleep 60\n")
        monkeypatch.setattr(npmrunner, "_VERSION_TIMEOUT", 0.05)
        with pytest.raises(HostError) as caught:
            runner.version()
        assert caught.value.message == f"{npm}: {npm}: no result within 0.05 s"
        assert "version manager" in str(caught.value.hint)


def test_a_bubblewrap_that_never_ends(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npmrunner, "_PROBE_TIMEOUT", 0.05)
    programs.write("bwrap", "#!/bin/sh\nsleep 60\n")
    assert "0.05 s" in str(sandbox_problem())


FAILURES = {
    "the first error": ("echo npm error code E404; echo 'npm error  x'; echo npm ERR! y; echo npm error z; exit 1",
                        "{payload}: npm ci failed with status 1: npm ERR! y"),
    "the last line": ("echo one; echo two >&2; echo; exit 3", "{payload}: npm ci failed with status 3: two"),
    "nothing": ("exit 1", "{payload}: npm ci failed with status 1"),
    "a signal": ("kill -9 $$", "{payload}: npm ci was killed by SIGKILL"),
    "git": ("echo npm error code EALLOWGIT; echo npm error no git; exit 1",
            "{payload}: wants a package from a git repository: npm ci failed with status 1: npm error no git"),
    "an old npm and git": ("echo npm error spawn /x/git-is-not-allowed ENOENT; exit 1",
                           "{payload}: wants a package from a git repository: npm ci failed with status 1: "
                           "npm error spawn /x/git-is-not-allowed ENOENT"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILURES)
def test_how_npm_fails(name: str, programs: Programs, tmp_path: Path) -> None:
    script, message = FAILURES[name]
    programs.npm(script)
    with started(tmp_path) as runner, pytest.raises(InputError) as caught:
        runner.install(["ci"], scripts=False)
    assert caught.value.message == message.format(payload=tmp_path / "payload")
    assert ("npm_git = True" in str(caught.value.hint)) is ("git" in name)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("ENOSPC", "{copy}: npm ci: no space left"),
        ("EDQUOT", "{copy}: npm ci: no space left"),
        ("git-is-not-installed", "git: program not found"),
    ],
)
def test_failures_that_are_the_hosts(word: str, message: str, programs: Programs, tmp_path: Path) -> None:
    programs.npm(f"echo npm error {word}; exit 1")
    with started(tmp_path) as runner, pytest.raises(HostError) as caught:
        runner.install(["ci"], scripts=False)
    assert caught.value.message == message.format(copy=tmp_path / "copy")


def test_an_npm_that_never_ends(programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npmrunner, "_TIMEOUT", 0.05)
    programs.npm("sleep 60")
    with started(tmp_path) as runner, pytest.raises(InputError) as caught:
        runner.install(["ci"], scripts=False)
    assert caught.value.message == f"{tmp_path}/payload: npm ci did not end within 0.05 s"


def test_the_npmrc_of_the_payload_is_not_there_while_npm_runs(programs: Programs, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    own = tmp_path / "copy/.npmrc"
    own.write_text("script-shell=/bin/false\n")
    with started(tmp_path) as runner:
        assert not own.exists()
        assert configuration(runner) == ""
        own.write_text("left by a script")
    assert own.read_text() == "script-shell=/bin/false\n"
    with started(tmp_path):
        own.mkdir()
    assert own.is_dir(), "a folder that a script made stays"


def test_settings_that_npm_is_not_told_of_are_named(
    programs: Programs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy/.npmrc").write_text("shell=x\ngit=y\naudit=false\nregistry=https://r.example/\n")
    with started(tmp_path) as runner:
        assert configuration(runner) == 'registry="https://r.example/"\n'
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        f"{tmp_path}/payload/.npmrc: npm is not told of git, shell; "
        "what your host or network needs belongs in your own ~/.npmrc"
    ]


def test_where_npms_configuration_of_the_host_is(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """npm's own is beside its folder lib; a variable names another one than that of the home."""
    real = tmp_path / "node/lib/node_modules/npm/bin/npm"
    real.parent.mkdir(parents=True)
    programs.npm().rename(real)
    (programs.folder / "npm").symlink_to(real)
    (tmp_path / "me").mkdir()
    (tmp_path / "me/.npmrc").write_text("proxy=mine\n")
    (tmp_path / "other").write_text("proxy=other\n")
    (tmp_path / "node/etc").mkdir()
    (tmp_path / "node/etc/npmrc").write_text("noproxy=npms\n")
    with started(tmp_path) as runner:
        assert configuration(runner) == 'noproxy="npms"\nproxy="mine"\n'
    monkeypatch.setenv("NPM_CONFIG_USERCONFIG", str(tmp_path / "other"))
    with started(tmp_path) as runner:
        assert configuration(runner) == 'noproxy="npms"\nproxy="other"\n'
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NPM_CONFIG_USERCONFIG", "other")
    with started(tmp_path) as runner:
        assert configuration(runner) == 'noproxy="npms"\n', "a relative path may be the payload's"


def test_bubblewrap_shows_npm_what_it_needs(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs.write("bwrap", BWRAP.format(log=programs.log))
    monkeypatch.setenv("SSL_CERT_FILE", f"/certificates/one:relative:{tmp_path}/two")
    with started(tmp_path, cache=tmp_path / "cache") as runner:
        assert runner.rights == "inside bubblewrap"
        runner.install(["ci"], scripts=False)
        folder = runner.folder
    first, second = programs.bwrap()
    cut = first.index("--")
    assert first[cut:] == ["--", str(programs.folder / "npm"), "--version"]
    assert second[: cut + 3] == [*first[: cut + 2], "ci"]
    options = first[:cut]
    assert options[:9] == [
        *("--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-uts", "--unshare-cgroup-try"),
        *("--new-session", "--die-with-parent", "--cap-drop", "ALL"),
    ]
    assert options[9:11] == ["--tmpfs", "/tmp"]
    end = options.index("--proc")
    shown = options[11:end]
    assert shown[::3] == ["--ro-bind-try"] * (len(shown) // 3)
    assert shown[1::3] == shown[2::3]
    places = shown[1::3]
    assert len(set(places)) == len(places)
    assert places[:8] == ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store"]
    assert {"/etc/hosts", "/etc/ssl/certs", "/certificates/one", f"{tmp_path}/two", str(programs.folder)} <= set(places)
    assert not {"/etc", "/etc/shadow", "/", "relative", str(tmp_path)} & set(places)
    assert not [place for place in places if place.startswith("/usr/")], "they are in /usr"
    assert options[end:] == [
        *("--proc", "/proc", "--dev", "/dev", "--ro-bind-try", f"{folder}/npmrc", f"{folder}/npmrc"),
        *("--bind", f"{folder}/home", f"{folder}/home", "--bind", f"{tmp_path}/cache", f"{tmp_path}/cache"),
        *("--bind", f"{tmp_path}/copy", f"{tmp_path}/copy", "--chdir", f"{folder}/home"),
    ]


def test_a_build_without_network_has_none_in_bubblewrap(programs: Programs, tmp_path: Path) -> None:
    programs.write("bwrap", BWRAP.format(log=programs.log))
    for offline in (True, False):
        with started(tmp_path, offline=offline) as runner:
            assert ("--unshare-net" in runner.wrapper) is offline


def test_a_bubblewrap_that_may_do_nothing_is_left_out(
    programs: Programs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "imgkit")
    programs.write("bwrap", "#!/bin/sh\necho 'bwrap: not here' >&2\nexit 1\n")
    with started(tmp_path) as runner:
        assert runner.wrapper == ()
    assert caplog.messages == ["npm runs without a sandbox: bwrap failed with status 1: bwrap: not here"]


def test_what_of_an_installation_bubblewrap_shows(programs: Programs, tmp_path: Path) -> None:
    """Of each link on the way to a program: the folder of packages, a folder bin with its libraries, or the folder."""
    top = tmp_path / "node-22"
    real = top / "lib/node_modules/npm/bin/npm-cli.js"
    real.parent.mkdir(parents=True)
    (top / "bin").mkdir()
    programs.npm().rename(real)
    (top / "bin/npm").symlink_to("../lib/node_modules/npm/bin/npm-cli.js")
    (tmp_path / "shims").mkdir()
    (tmp_path / "shims/npm").symlink_to(top / "bin/npm")
    (programs.folder / "npm").symlink_to("../shims/npm")
    programs.write("bwrap", BWRAP.format(log=programs.log))
    with started(tmp_path) as runner:
        assert runner.wrapper
    (options,) = programs.bwrap()
    assert {place for place in options if place.startswith(str(tmp_path))} >= {
        str(programs.folder),
        str(tmp_path / "programs/../shims"),
        *(str(top / name) for name in ("bin", "lib", "pyvenv.cfg", "lib/node_modules")),
    }
    assert str(top) not in options


def test_programs_of_the_payload_are_neither_started_nor_shown(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "payload/bin"
    own.mkdir(parents=True)
    for name in ("npm", "node", "git", "bwrap"):
        (own / name).write_text(f"#!/bin/sh\ntouch '{tmp_path}/started'\n")
        (own / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{own}:{programs.folder}")
    with started(tmp_path, git=True) as runner:
        assert (runner.wrapper, runner.npm) == ((), str(programs.folder / "npm"))
        assert Path(runner.git).name == "git-is-not-installed"
    programs.write("bwrap", BWRAP.format(log=programs.log))
    with started(tmp_path) as runner:
        assert runner.wrapper[0] == str(programs.folder / "bwrap")
        assert not [word for word in runner.wrapper if word.startswith(f"{tmp_path}/payload")]
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize(("failures", "problem"), [(0, False), (2, False), (3, True)])
def test_bubblewrap_gets_three_tries(programs: Programs, tmp_path: Path, failures: int, problem: bool) -> None:
    """It fails if something is mounted at the same moment."""
    tries = tmp_path / "tries"
    tries.touch()
    programs.write("bwrap", f"#!/bin/sh\necho >>'{tries}'\n[ \"$(cat '{tries}' | wc -l)\" -gt {failures} ]\n")
    assert sandbox_problem() == ("bwrap failed with status 1" if problem else None)
    assert len(tries.read_text()) == min(failures + 1, 3)


def test_a_host_without_bubblewrap(programs: Programs) -> None:
    assert sandbox_problem() == "not on PATH"


def test_a_host_without_npm(programs: Programs, tmp_path: Path) -> None:
    """One on a relative path, or in the payload, is none."""
    (programs.folder / "npm").unlink()
    (tmp_path / "payload/bin").mkdir(parents=True)
    (tmp_path / "payload/bin/npm").symlink_to("/bin/sh")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path}/payload/bin:payload/bin::{programs.folder}")
        patch.chdir(tmp_path)
        with pytest.raises(HostError, match="npm: program not found"), started(tmp_path):
            pass


def test_what_of_the_environment_npm_gets(programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("API_KEY", "NODE_OPTIONS", "LANG", "GIT_CONFIG_GLOBAL"):
        monkeypatch.setenv(name, "mine")
    for name in ("HTTPS_PROXY", "no_proxy", "NODE_EXTRA_CA_CERTS", "SOURCE_DATE_EPOCH"):
        monkeypatch.setenv(name, f"my {name}")
    monkeypatch.setenv("PATH", f"relative:{programs.folder}:{tmp_path}/payload/bin")
    with started(tmp_path) as runner:
        environment, folder = runner.environment, runner.folder
    assert environment == {
        "HTTPS_PROXY": "my HTTPS_PROXY",
        "no_proxy": "my no_proxy",
        "NODE_EXTRA_CA_CERTS": "my NODE_EXTRA_CA_CERTS",
        "SOURCE_DATE_EPOCH": "my SOURCE_DATE_EPOCH",
        "LANG": "C.UTF-8",
        "COREPACK_ENABLE_PROJECT_SPEC": "0",
        "COREPACK_ENV_FILE": "0",
        "COREPACK_ENABLE_DOWNLOAD_PROMPT": "0",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ALLOW_PROTOCOL": "https:http:ssh:git",
        "PATH": str(programs.folder),
        "HOME": f"{folder}/home",
        "TMPDIR": f"{folder}/home/tmp",
    }
