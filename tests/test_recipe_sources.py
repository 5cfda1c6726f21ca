"""What a recipe takes from elsewhere: overlays, files, repositories and a time zone, and the faults in these fields."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from imgkit.errors import UsageError
from imgkit.recipe import FileSpec, OverlaySpec, Recipe, RepositorySpec, load, parse_setting
from tests.test_recipe import GOOD, faults, write


def loaded(folder: Path, text: str) -> Recipe:
    return load(write(folder, GOOD + text))


# ---- overlays --------------------------------------------------------------------------------------------------------


def test_an_overlay_is_a_path_or_a_record(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    one = loaded(tmp_path, "overlay = {'path': 'a', 'modes': 'git'}\n")
    assert one.overlay_folders == (OverlaySpec(path=tmp_path / "a", modes="git"),)
    two = loaded(tmp_path, "overlays = ['b', {'path': './a'}]\n")
    assert two.overlay is None
    assert two.overlay_folders == (OverlaySpec(path=tmp_path / "b"), OverlaySpec(path=tmp_path / "a"))
    assert [overlay.modes for overlay in two.overlays] == ["host", "host"]
    assert loaded(tmp_path, "from pathlib import Path\noverlay = Path('a')\n").overlay_folders == (
        OverlaySpec(path=tmp_path / "a"),
    )


def test_an_override_of_one_form_replaces_both(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    path = write(tmp_path, GOOD + "overlays = ['a']\n")
    assert load(path, dict([parse_setting("overlay=b")])).overlay_folders == (OverlaySpec(path=tmp_path / "b"),)
    path = write(tmp_path, GOOD + "overlay = 'a'\n")
    overlays = dict([parse_setting("overlays=[b, {path: a, modes: git}]")])
    assert load(path, overlays).overlay_folders == (
        OverlaySpec(path=tmp_path / "b"),
        OverlaySpec(path=tmp_path / "a", modes="git"),
    )


# ---- files -----------------------------------------------------------------------------------------------------------


def test_a_file_with_everything_and_with_nothing(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("x")
    text = """files = [
        {"path": "/etc/a", "source": "token", "owner": "nginx", "group": 82, "mode": "0640"},
        {"path": "/etc/b", "content": b"\\xff"},
    ]"""
    first, second = loaded(tmp_path, text).files
    assert first == FileSpec(path="/etc/a", source=tmp_path / "token", owner="nginx", group=82, mode=0o640)
    assert (second.content, second.owner, second.group, second.mode) == (b"\xff", "root", None, None)


@pytest.mark.parametrize("mode", ["'0640'", "'640'", "'0o640'", "0o640", "416"])
def test_ways_to_write_a_mode(tmp_path: Path, mode: str) -> None:
    (file,) = loaded(tmp_path, f"files = [{{'path': '/a', 'content': '', 'mode': {mode}}}]").files
    assert file.mode == 0o640


def test_a_mode_on_the_command_line(tmp_path: Path) -> None:
    for text in ("0640", "0o640", "'640'"):
        setting = dict([parse_setting(f"files=[{{path: /a, content: b, mode: {text}}}]")])
        assert load(write(tmp_path), setting).files[0].mode == 0o640


@given(st.integers(0, 0o777))
def test_every_mode_can_be_written_as_text(mode: int) -> None:
    for text in (f"{mode:04o}", f"{mode:03o}", f"0o{mode:o}"):
        assert FileSpec.model_validate({"path": "/a", "content": "", "mode": text}).mode == mode


@given(st.integers(-10, 0o10010))
def test_numbers_are_modes_unless_they_look_like_decimal_ones(number: int) -> None:
    fields = {"path": "/a", "content": "", "mode": number}
    if 0 <= number <= 0o777 and number not in (400, 440, 444, 500):
        assert FileSpec.model_validate(fields).mode == number
    else:
        with pytest.raises(ValidationError):
            FileSpec.model_validate(fields)


SPECIAL = "set-user-id, set-group-id and sticky bits are not given to the files of a recipe"
DECIMAL = "640 is 0o1200 in octal, which is hardly meant: write '0640' or 0o640"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("'mode': 640", f"files.0.mode: {DECIMAL}"),
        ("'mode': 400", "files.0.mode: 400 is 0o620 in octal, which is hardly meant: write '0400' or 0o400"),
        ("'mode': '4755'", f"files.0.mode: {SPECIAL} (it is '4755')"),
        ("'mode': 0o2755", f"files.0.mode: {SPECIAL} (it is 1517)"),
        ("'mode': 0o1777", f"files.0.mode: {SPECIAL} (it is 1023)"),
        ("'mode': '0680'", "files.0.mode: is not a mode such as '0640' or 0o640 (it is '0680')"),
        ("'mode': 'u=rw'", "files.0.mode: is not a mode such as '0640' or 0o640 (it is 'u=rw')"),
        ("'mode': -1", "files.0.mode: is not a mode such as '0640' or 0o640 (it is -1)"),
        ("'mode': 0o10000", "files.0.mode: is not a mode such as '0640' or 0o640 (it is 4096)"),
        ("'mode': True", "files.0.mode: is not a mode such as '0640' or 0o640 (it is True)"),
        ("'owner': ''", "files.0.owner: is neither the name nor the number of an account (it is '')"),
        ("'owner': 'a:b'", "files.0.owner: is neither the name nor the number of an account (it is 'a:b')"),
        ("'owner': -1", "files.0.owner: is neither the name nor the number of an account (it is -1)"),
        ("'group': 4294967295", "files.0.group: is neither the name nor the number of an account (it is 4294967295)"),
        ("'group': True", "files.0.group: is neither the name nor the number of an account (it is True)"),
        ("'source': 'x'", "files.0: it must have either source or content"),
        ("'contents': ''", "files.0.contents: no such field (did you mean content?)"),
        (
            "'zzz': ''",
            "files.0.zzz: no such field (there are path, source, content, owner, group, mode)",
        ),
    ],
)  # fmt: skip
def test_faults_of_a_file(tmp_path: Path, fields: str, message: str) -> None:
    assert faults(tmp_path, GOOD + f"files = [{{'path': '/a', 'content': '', {fields}}}]") == (message,)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("etc/a", "'etc/a' is not the absolute path of a file in the image"),
        ("/", "'/' is not the absolute path of a file in the image"),
        ("/etc/../a", "'etc/../a' is not a path inside the root filesystem (it is '/etc/../a')"),
        ("//etc", "'/etc' is not a path inside the root filesystem (it is '//etc')"),
        ("/etc/", "'etc/' is not a path inside the root filesystem (it is '/etc/')"),
        ("/a\\nb", "'a\\\\nb' has control characters in it (it is '/a\\\\nb')"),
    ],
)
def test_paths_that_are_none(tmp_path: Path, path: str, message: str) -> None:
    expected = f"files.0.path: {message}".replace("\\\\", "\\")
    assert faults(tmp_path, GOOD + f"files = [{{'path': '{path}', 'content': ''}}]") == (expected,)


def test_files_that_contradict_or_are_missing(tmp_path: Path) -> None:
    (tmp_path / "agent").mkdir()
    text = """
overlay = overlays = None
overlay, overlays = "agent", ["nowhere"]
agent_runner = "agent"
files = [
    {"path": "/etc/a", "source": "agent"},
    {"path": "/etc/a", "source": "nothing"},
    {"path": "/opt/agent-runner/x", "content": ""},
    {"path": "/opt/agent-runner-x", "content": ""},
    {"path": "/opt/agent-runner", "content": ""},
]
"""
    payload = "agent_runner replaces /opt/agent-runner: put the file into that folder"
    assert faults(tmp_path, GOOD + text) == (
        f"overlays.0: {tmp_path}/nowhere does not exist",
        f"files.0.source: {tmp_path}/agent is not a file",
        f"files.1.source: {tmp_path}/nothing does not exist",
        "overlays: there is also an overlay: write all folders into overlays",
        "files.1.path: /etc/a is there twice",
        f"files.2.path: {payload}",
        f"files.4.path: {payload}",
    )


# ---- repositories ----------------------------------------------------------------------------------------------------


def test_repositories_by_name_url_and_folder(tmp_path: Path) -> None:
    (tmp_path / "packages").mkdir()
    (tmp_path / "x.rsa.pub").write_text("")
    text = f"""repositories = [
        "main",
        {{"url": "https://apk.example.com/stable/", "key": "x.rsa.pub", "tag": "ex"}},
        {{"url": "packages"}},
        {{"url": "file:{tmp_path}/arch%20x"}},
    ]"""
    (tmp_path / "arch x").mkdir()
    recipe = loaded(tmp_path, text)
    assert recipe.repositories == (
        "main",
        RepositorySpec(url="https://apk.example.com/stable", key=tmp_path / "x.rsa.pub", tag="ex"),
        RepositorySpec(url=str(tmp_path / "packages")),
        RepositorySpec(url=str(tmp_path / "arch x")),
    )
    assert [one.folder for one in recipe.further_repositories] == [None, tmp_path / "packages", tmp_path / "arch x"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("'Main!'", "repositories.0: is not the name of a repository of the branch; a further one is "
         "{\"url\": \"…\"} (it is 'Main!')"),
        ("{'url': 'ftp://x/y'}", "repositories.0.url: is not an http(s) URL; a folder is given by its path"
         " (it is 'ftp://x/y')"),
        ("{'url': 'https://x/y?z'}", "repositories.0.url: is not an http(s) URL; a folder is given by its path"
         " (it is 'https://x/y?z')"),
        ("{'url': 'https://u:p@x/y'}", "repositories.0.url: has a user name in it, which would be in the lock and in "
         "the image: put it into ~/.netrc"),
        ("{'url': ''}", "repositories.0.url: is neither an http(s) URL nor the path of a folder (it is '')"),
        ("{'url': 'https://x/y z'}", "repositories.0.url: is not an http(s) URL; a folder is given by its path"
         " (it is 'https://x/y z')"),
        ("{'url': 'https://x/y', 'tag': 'a b'}",
         "repositories.0.tag: is not a tag: letters, digits and . _ - (it is 'a b')"),
        ("{'url': 'https://x/y', 'keys': 'a'}", "repositories.0.keys: no such field (did you mean key?)"),
        ("{}", "repositories.0.url: must be given"),
        ("4", "repositories.0: input should be a valid dictionary or instance of RepositorySpec (it is 4)"),
    ],
)  # fmt: skip
def test_faults_of_a_repository(tmp_path: Path, entry: str, message: str) -> None:
    assert faults(tmp_path, GOOD + f"repositories = [{entry}]") == (message,)


def test_repositories_that_contradict_or_are_missing(tmp_path: Path) -> None:
    for name, text in (("a", "1"), ("b", "2"), ("c", "1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "k.rsa.pub").write_text(text)
    text = """repositories = ["main", "main",
        {"url": "https://x/1", "key": "a/k.rsa.pub"},
        {"url": "https://x/2", "key": "b/k.rsa.pub"},
        {"url": "https://x/3", "key": "c/k.rsa.pub"},
        {"url": "https://x/1", "key": "a/k.rsa.pub"},
        {"url": "none", "key": "none"},
    ]"""
    assert faults(tmp_path, GOOD + text) == (
        f"repositories.6.url: {tmp_path}/none does not exist",
        f"repositories.6.key: {tmp_path}/none does not exist",
        "repositories.1: main is there twice",
        f"repositories.3.key: {tmp_path}/b/k.rsa.pub and {tmp_path}/a/k.rsa.pub are different keys of one name",
        "repositories.5: https://x/1 is there twice",
    )


# ---- time zone -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zone", ["../x", "/etc/passwd", "Europe/../x", "", "Europe//Berlin", "Europe Berlin", ".x"])
def test_names_that_no_time_zone_has(tmp_path: Path, zone: str) -> None:
    (problem,) = faults(tmp_path, GOOD + f"timezone = {zone!r}")
    assert problem.startswith("timezone: is not the name of a time zone such as Europe/Berlin")


def test_a_time_zone_adds_its_package(tmp_path: Path) -> None:
    text = "timezone = 'Europe/Berlin'\ncontainer = {'packages': ['c']}\n"
    made = loaded(tmp_path, text)
    assert made.wanted("amd64", "disk") == ("busybox", "tzdata")
    assert made.wanted("amd64", "container") == ("busybox", "c", "tzdata")
    assert loaded(tmp_path, text + "packages += ['tzdata']").wanted("amd64", "disk") == ("busybox", "tzdata")
    base = "base = 'oci:alpine:3.23'\n"
    assert loaded(tmp_path, text + base).wanted("amd64", "disk") == ("busybox", "tzdata")
    without = loaded(tmp_path, text + base + "packages = []\n")
    assert without.wanted("amd64", "disk") == ()
    assert without.wanted("amd64", "container") == ("c", "tzdata")


def test_a_setting_of_a_wrong_zone_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--set timezone: is not the name of a time zone"):
        load(write(tmp_path), {"timezone": "../x"}, {"timezone": "--set timezone"})
