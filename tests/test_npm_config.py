"""What npm is told, and where packages may come from: rules about text, without npm."""

from __future__ import annotations

import json
import posixpath
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkit.errors import HostError, InputError
from imgkit.rootfs.npm.npmconfig import Setting, parse, settings
from imgkit.rootfs.npm.npmrunner import NpmRunner
from imgkit.rootfs.npm.npmsources import check_lock, check_manifest, is_git, is_outside, read_json
from imgkit.rootfs.npm.prepare import _warn_of_unlocked, prepare
from tests.conftest import need_program

MANIFEST = Path("package.json")


def taken(tmp_path: Path, text: str, hosts: str = "", **environment: str) -> tuple[list[Setting], tuple[str, ...]]:
    """Return what is taken over of a payload's ``.npmrc`` and of one of the host's, and what was ignored."""
    for name, content in (("payload", text), ("host", hosts)):
        (tmp_path / name).write_text(content)
    found = settings(tmp_path / "payload", [tmp_path / "host", tmp_path / "missing"], environment)
    return list(parse(found.text)), found.ignored


HARMLESS = """
; a comment
registry = https://registry.example/
@scope:registry="https://other.example/npm"
//other.example/npm/:_authToken='token'
legacy-peer-deps
audit=false
"""


def test_what_a_payload_may_say(tmp_path: Path) -> None:
    assert taken(tmp_path, HARMLESS) == (
        [
            Setting("registry", "https://registry.example/"),
            Setting("@scope:registry", "https://other.example/npm"),
            Setting("//other.example/npm/:_authToken", "token"),
            Setting("legacy-peer-deps", "true"),
        ],
        (),
    )


@pytest.mark.parametrize(
    "key",
    [
        "git",
        "script-shell",
        "shell",
        "editor",
        "viewer",
        "node-options",
        "init-module",
        "prefix",
        "globalconfig",
        "userconfig",
        "cache",
        "tmp",
        "unsafe-perm",
        "allow-git",
        "https-proxy",
        "strict-ssl",
        "cafile",
        "GIT",
        "//registry.example/:keyfile",
        "//registry.example/:tokenHelper",
        "include",
        "logs-dir",
        "node-gyp",
        "Git ",
    ],
)
def test_what_a_payload_may_not_say(tmp_path: Path, key: str) -> None:
    for line in (f"{key}=x", f'"{key}" = "x"', f" {key} = x ; registry=y"):
        found, ignored = taken(tmp_path, line + "\nregistry=r\n")
        assert found == [Setting("registry", "r")]
        assert [name.strip() for name in ignored] == [key.strip()]


def test_a_payload_does_not_get_at_variables(tmp_path: Path) -> None:
    text = "//evil.example/:_authToken=${API_KEY}\nregistry=https://evil.example/${API_KEY}/\n"
    found, ignored = taken(tmp_path, text, API_KEY="secret")
    assert found == []
    assert ignored == ("//evil.example/:_authToken (with a variable)", "registry (with a variable)")


def test_whoever_builds_says_more(tmp_path: Path) -> None:
    hosts = "//own.example/:_authToken=${TOKEN}\ncafile=/etc/ca.pem\nca[]=one\nca[]=two\ngit=/bin/git\nregistry=own\n"
    variables = {"TOKEN": "secret", "npm_config_https_proxy": "p", "NPM_CONFIG_REGISTRY": "v", "npm_config_git": "x"}
    found, ignored = taken(tmp_path, "", hosts, **variables)
    assert [(each.key, each.value) for each in found] == [
        ("//own.example/:_authToken", "secret"),
        ("cafile", "/etc/ca.pem"),
        ("ca[]", "one"),
        ("ca[]", "two"),
        ("registry", "own"),
        ("registry", "v"),
        ("https-proxy", "p"),
    ]
    assert ignored == ()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("proxy", Setting("proxy", "true")),
        ("proxy=", Setting("proxy", "")),
        (" proxy = a b ; c", Setting("proxy", "a b")),
        ("proxy=a#b", Setting("proxy", "a")),
        (r"proxy=a\;b", Setting("proxy", r"a\;b")),
        ('proxy="a;\\u0062"', Setting("proxy", "a;b")),
        (r'proxy="a\d"', Setting("proxy", r"a\d")),
        ("proxy='a;b'", Setting("proxy", "a;b")),
        ("proxy=''", Setting("proxy", "")),
        ('proxy=""', Setting("proxy", "")),
        ('proxy="', Setting("proxy", '"')),
        ("proxy='", Setting("proxy", "'")),
        ("proxy=\"a'", Setting("proxy", "\"a'")),
        ("'proxy'=a", Setting("proxy", "a")),
        ("a=b=c", Setting("a", "b=c")),
    ],
)
def test_values_as_npm_reads_them(line: str, expected: Setting) -> None:
    assert list(parse(f"; comment\n# another\n\n{line}\nlast=1\n[section]\nproxy=hidden\n")) == [
        expected,
        Setting("last", "1"),
    ]


def test_variables_of_whoever_builds(tmp_path: Path) -> None:
    """Empty ones are none, keys of registries and scopes keep their letters, and a variable may be missing."""
    variables = {
        "npm_config_proxy": "",
        "npm_config_HTTPS_PROXY": "p",
        "npm_config_//Own.example/:_authToken": "t_T",
        "npm_config_@my_scope:registry": "r",
        "other_config_cafile": "/x",
        "npm_config_cafile": "/y",
    }
    found, _ = taken(tmp_path, "", "noproxy=a${NONE}b${NONE?}c\n", **variables)
    assert found == [
        Setting("noproxy", "abc"),
        Setting("//Own.example/:_authToken", "t_T"),
        Setting("@my_scope:registry", "r"),
        Setting("https-proxy", "p"),
        Setting("cafile", "/y"),
    ]


def test_a_home_that_nobody_knows_stays_as_it_is_written(tmp_path: Path) -> None:
    for environment in ({}, {"HOME": ""}):
        (tmp_path / "host").write_text("cafile=~/ca.pem\nproxy=~/x\ncert=~x\n")
        found = settings(tmp_path / "none", [tmp_path / "host"], environment)
        assert found.text == 'cafile="~/ca.pem"\nproxy="~/x"\ncert="~x"\n'
    found = settings(tmp_path / "none", [tmp_path / "host"], {"HOME": "/home/me"})
    assert found.text == 'cafile="/home/me/ca.pem"\nproxy="~/x"\ncert="~x"\n', "only files are in the home"
    assert found.files == (Path("/home/me/ca.pem"),)


def test_a_value_in_which_npm_would_replace_a_variable_is_left_out(tmp_path: Path) -> None:
    found, ignored = taken(tmp_path, "registry=a${\nregistry=b\n", "proxy=${A}\n", A="${B}")
    assert (found, ignored) == ([Setting("registry", "b")], ())


@pytest.mark.parametrize("more", [0, 1])
def test_the_largest_npmrc(tmp_path: Path, more: int) -> None:
    """One of the host that is larger is left out."""
    text = "registry=r\n" + "#" * ((256 << 10) - len("registry=r\n") + more)
    (tmp_path / "payload").write_text(text)
    expected = "" if more else 'registry="r"\n'
    assert settings(tmp_path / "none", [tmp_path / "payload"], {}).text == expected
    if more:
        with pytest.raises(InputError, match=rf"payload: has more than {256 << 10} bytes$"):
            settings(tmp_path / "payload", [], {})
    else:
        assert settings(tmp_path / "payload", [], {}).text == expected


def test_names_in_a_warning_are_plain(tmp_path: Path) -> None:
    _, ignored = taken(tmp_path, "\x1b[31mgit=x\n" + "k" * 500 + "=x\n")
    assert ignored == ("?[31mgit", "k" * 80)


@pytest.mark.slow
@given(st.text(alphabet="git=registry\"'\\;#[]\n\r\v\x85\u2028 ${}:/@.", max_size=60))
def test_no_text_gets_another_key_through(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.mktemp("npmrc")
    (folder / ".npmrc").write_bytes(text.encode())
    written = settings(folder / ".npmrc", [], {}).text
    for line in written.splitlines():
        key, _, value = line.partition("=")
        assert key == "registry" or key.endswith(":registry"), text
        json.loads(value)
    assert "${" not in written


@pytest.mark.slow
def test_npm_reads_the_file_as_it_is_meant(tmp_path: Path) -> None:
    """The real npm: values with everything that means something in an INI file."""
    value = "a;b#c=\\d\"e'[f]"
    (tmp_path / "host").write_text(f"proxy={json.dumps(value)}\nregistry=https://registry.example/x\n")
    (tmp_path / "made").write_text(settings(tmp_path / "none", [tmp_path / "host"], {}).text)
    argv = [need_program("npm"), f"--userconfig={tmp_path / 'made'}", "config", "get", "@x:registry", "registry"]
    (tmp_path / "made").write_text((tmp_path / "made").read_text() + f"@x:registry={json.dumps(value)}\n")
    said = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert f"@x:registry={value}" in said
    assert "registry=https://registry.example/x" in said


@pytest.mark.parametrize("make", ["large", "pipe"])
def test_an_npmrc_that_cannot_be_read(tmp_path: Path, make: str) -> None:
    path = tmp_path / ".npmrc"
    if make == "large":
        path.write_bytes(b"#" * (300 << 10))
    else:
        path.mkdir()
    with pytest.raises(InputError, match=r"npmrc: (has more than|neither a file)"):
        settings(path, [], {})


# ---- where packages come from ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    [
        "git+https://h/x.git",
        "git+ssh://git@h/x",
        "git://h/x",
        "ssh://git@h/x",
        "git@h:a/b.git",
        "user/name",
        "user/name#semver:^1",
        "github:a/b",
        "gitlab:a/b",
        "bitbucket:a/b",
        "gist:0123",
        "git+file:///x",
        "GIT+SSH://h/x",
        "https://github.com/a/b",
        "https://github.com/a/b.git#main",
        "https://user@gitlab.com/a/b/",
    ],
)
def test_git(spec: str) -> None:
    assert is_git(spec)
    with pytest.raises(InputError, match="comes from a git repository") as caught:
        check_manifest(MANIFEST, {"dependencies": {"x": spec}}, allow_git=False, development=False)
    assert "npm_git = True" in str(caught.value.hint)
    check_manifest(MANIFEST, {"dependencies": {"x": spec}}, allow_git=True, development=False)


@pytest.mark.parametrize(
    "spec",
    [
        "1.0.0",
        "^1",
        "*",
        "",
        "latest",
        ">=1 <2 || 3.x",
        "npm:other@1",
        "npm:@scope/other@^1",
        "file:packages/x.tgz",
        "./packages/x",
        "file:./x",
        "link:x",
        "https://h.example/x.tgz",
        "https://github.com/a/b/archive/x.tar.gz",
        "https://registry.example/@a/b/-/b-1.0.0.tgz",
    ],
)
def test_sources_that_may_be(spec: str) -> None:
    check_manifest(MANIFEST, {"dependencies": {"x": spec}}, allow_git=False, development=False)
    check_lock(MANIFEST, {"packages": {"node_modules/x": {"resolved": spec}}}, allow_git=False)


@pytest.mark.parametrize(
    "spec",
    [
        "file:/etc",
        "file:///etc",
        "file:../x",
        "../x",
        "/etc",
        "~/x",
        "file:~/x",
        "link:../x",
        "file:a/../../x",
        "file:%2e%2e/x",
        "C:\\x",
        "file:..\\x",
        "file://host/share",
    ],
)
def test_sources_elsewhere(spec: str) -> None:
    for allow_git in (False, True):
        with pytest.raises(InputError, match="outside of the payload's folder"):
            check_manifest(MANIFEST, {"dependencies": {"x": spec}}, allow_git=allow_git, development=False)


def test_packages_for_development_matter_without_a_lock_file() -> None:
    manifest = {"devDependencies": {"x": "a/b"}}
    check_manifest(MANIFEST, manifest, allow_git=False, development=False)
    with pytest.raises(InputError, match="git repository"):
        check_manifest(MANIFEST, manifest, allow_git=False, development=True)
    check_lock(MANIFEST, {"packages": {"node_modules/x": {"resolved": "git+ssh://h/x", "dev": True}}}, allow_git=False)


def test_lock_files_of_version_1() -> None:
    lock = {"dependencies": {"a": {"version": "1.0.0", "dependencies": {"b": {"version": "github:a/b#c"}}}}}
    with pytest.raises(InputError, match="'b': 'github:a/b#c' comes from a git repository"):
        check_lock(MANIFEST, lock, allow_git=False)


def test_packages_for_development_stand_in_nobodys_way() -> None:
    entries = {"node_modules/d": {"resolved": "git+ssh://h/x", "dev": True}, "node_modules/x": {"resolved": "a/b"}}
    with pytest.raises(InputError, match=r"^package\.json: 'node_modules/x': 'a/b' comes from a git repository$"):
        check_lock(MANIFEST, {"packages": entries}, allow_git=False)
    check_lock(MANIFEST, {"packages": entries}, allow_git=True)


def test_workspaces_in_a_lock_file_are_folders() -> None:
    """Their paths look like names for github."""
    check_lock(MANIFEST, {"packages": {"node_modules/x": {"resolved": "packages/x", "link": True}}}, allow_git=False)
    with pytest.raises(InputError, match=r"^package\.json: 'node_modules/x': leads out of the payload's folder$"):
        check_lock(MANIFEST, {"packages": {"node_modules/x": {"resolved": "../x", "link": True}}}, allow_git=True)


def test_places_of_packages_are_in_the_payload() -> None:
    check_lock(MANIFEST, {"packages": {"": {"resolved": "a/b"}, "x": "no entry", "packages/x": {}}}, allow_git=False)
    for place in ("../x", "node_modules/../../x", "/x", "C:/x"):
        with pytest.raises(InputError) as caught:
            check_lock(MANIFEST, {"packages": {place: {}}}, allow_git=True)
        assert caught.value.message == f"package.json: {place!r} is outside of the payload's folder"


@pytest.mark.parametrize("pattern", ["../x", "!../x", "/x", "packages/../../x"])
@pytest.mark.parametrize("nested", [True, False])
def test_workspaces_are_in_the_payload(pattern: str, nested: bool) -> None:
    for patterns, fits in ((["packages/*", "!packages/old"], True), (["packages/*", pattern], False)):
        manifest = {"workspaces": {"packages": patterns} if nested else patterns}
        if fits:
            check_manifest(MANIFEST, manifest, allow_git=False, development=False)
        else:
            with pytest.raises(InputError) as caught:
                check_manifest(MANIFEST, manifest, allow_git=True, development=False)
            assert caught.value.message == f"package.json: the workspace {pattern!r} leads out of the payload's folder"


@pytest.mark.parametrize("kind", ["dependencies", "optionalDependencies", "peerDependencies", "overrides"])
def test_every_kind_of_dependency_is_checked(kind: str) -> None:
    wanted = {"a": "1.0.0", "x": "a/b"}
    with pytest.raises(InputError, match=r"^package\.json: x: 'a/b' comes from a git repository$"):
        check_manifest(MANIFEST, {kind: wanted}, allow_git=False, development=False)
    with pytest.raises(InputError, match="git repository"):
        check_manifest(MANIFEST, {"overrides": {"b": {"c": wanted}, "d": "1"}}, allow_git=False, development=False)


def test_a_message_has_the_beginning_of_a_specification() -> None:
    with pytest.raises(InputError) as caught:
        check_manifest(MANIFEST, {"dependencies": {"x": "a/" + "b" * 300}}, allow_git=False, development=False)
    assert caught.value.message == f"package.json: x: 'a/{'b' * 198}' comes from a git repository"


@given(st.lists(st.sampled_from(["..", ".", "", "a", "b"]), min_size=1, max_size=7))
def test_paths_leave_as_path_arithmetic_says(parts: list[str]) -> None:
    path = "/".join(parts)
    real = posixpath.normpath(posixpath.join("/top/folder", path))
    assert is_outside(path) == (not (real + "/").startswith("/top/folder/"))


@pytest.mark.parametrize("field", ["dependencies", "overrides", "workspaces", "packages"])
def test_fields_of_another_shape_are_npms_to_refuse(field: str) -> None:
    for value in (None, 3, "x", [3], {"x": 3}, {"x": [3]}):
        check_manifest(MANIFEST, {field: value}, allow_git=False, development=True)
        check_lock(MANIFEST, {field: value}, allow_git=False)
    with pytest.raises(InputError, match="not an object"):
        check_lock(MANIFEST, [], allow_git=False)


@pytest.mark.slow
def test_json_that_is_absurd(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("[" * 200_000)
    with pytest.raises(InputError, match="nested too deeply"):
        read_json(path)
    with path.open("wb") as sink:
        sink.truncate(65 << 20)
    with pytest.raises(InputError, match=f"is larger than the {64 << 20} bytes"):
        read_json(path)
    with pytest.raises(InputError, match="not a regular file"):
        read_json(Path("/dev/zero"))


def test_odd_names_in_a_payload_are_no_bug(tmp_path: Path) -> None:
    """Names that no file can have, and names that would be a pattern."""
    text = {"main": "x" * 300, "scripts": {"build": "true"}}
    (tmp_path / "package.json").write_text(json.dumps(text))
    assert prepare(tmp_path, tmp_path.parent / "made", build="auto", architecture="x86_64", offline=True) == tmp_path
    (tmp_path / "package.json").write_text(json.dumps({**text, "main": "a\0b"}))
    assert prepare(tmp_path, tmp_path.parent / "made", build="auto", architecture="x86_64", offline=True) == tmp_path


def test_installed_packages_are_found_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "node_modules/a/node_modules/@s/b").mkdir(parents=True)
    (tmp_path / "node_modules/@s/c/lib").mkdir(parents=True)
    for name, there in (("a", True), ("@s/b", True), ("@s/c", True), ("b", False), ("@s", False), ("lib", False)):
        caplog.clear()
        _warn_of_unlocked(tmp_path, tmp_path / "package-lock.json", [name])
        assert ("did not install it" not in caplog.text) == there, name
    opened = len(list(Path("/proc/self/fd").iterdir()))
    for name in ("**linux-x64-musl", "x" * 300, "../..", "*"):
        _warn_of_unlocked(tmp_path, tmp_path / "package-lock.json", [name])
        assert f"lacks {name}, and this npm did not install it" in caplog.text
    assert len(list(Path("/proc/self/fd").iterdir())) == opened


def test_a_stand_in_that_needs_its_home_is_named(tmp_path: Path) -> None:
    """Version managers put such programs on PATH."""
    program = tmp_path / "npm"
    program.write_text('#!/bin/sh\ntest -d "$HOME/.volta" || { echo "no tools" >&2; exit 1; }\n')
    program.chmod(0o755)
    (tmp_path / "home").mkdir()
    started = NpmRunner(
        tmp_path, str(program), tmp_path, tmp_path, tmp_path, {"HOME": str(tmp_path / "home")}, (), "git"
    )
    with pytest.raises(HostError, match="npm failed with status 1: no tools") as caught:
        started.version()
    assert "version manager" in str(caught.value.hint)


@pytest.mark.parametrize("key", ["cafile", "//registry.example/:certfile", "//registry.example/:keyfile"])
def test_files_in_the_home_of_whoever_builds(key: str, tmp_path: Path) -> None:
    """npm has another home."""
    (tmp_path / ".npmrc").write_text(f"{key}=~/corp.pem\n")
    found = settings(tmp_path / "none", [tmp_path / ".npmrc"], {"HOME": "/home/me"})
    assert found.text == f'{key}="/home/me/corp.pem"\n'
    assert found.files == (Path("/home/me/corp.pem"),)
    (tmp_path / ".npmrc").write_text("")
    found = settings(tmp_path / "none", [tmp_path / ".npmrc"], {"HOME": "/home/me", f"npm_config_{key}": "~/corp.pem"})
    assert found.files == (Path("/home/me/corp.pem"),)
