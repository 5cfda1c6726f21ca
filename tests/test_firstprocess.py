"""What is run of a container image: the rules of container engines."""

from __future__ import annotations

import shlex
import subprocess
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkit.errors import InputError, UsageError
from imgkit.image.firstprocess import DEFAULT_PATH, FirstProcess, first_process, parse_signal
from imgkit.image.machinesettings import once, service
from imgkit.oci.documents import RuntimeConfig
from imgkit.tree import Tree

PASSWD = "root:x:0:0:root:/root:/bin/sh\nweb:x:1500:1600:web:/home/web:/bin/sh\n77:x:1501:1601::/seven:/bin/sh\n"
GROUP = "root:x:0:root\nweb:x:1600:\nextra:x:1700:web\n"


def accounts() -> Tree:
    tree = Tree()
    tree.write("etc/passwd", PASSWD)
    tree.write("etc/group", GROUP)
    return tree


def first(*, tree: Tree | None = None, given: dict[str, Any] | None = None, **config: Any) -> FirstProcess:
    runtime = RuntimeConfig.model_validate({"Cmd": ["sh"], **config})
    return first_process(runtime, accounts() if tree is None else tree, **(given or {}))


@pytest.mark.parametrize(
    ("config", "given", "argv"),
    [
        ({"Cmd": ["a", "b"]}, {}, ("a", "b")),
        ({"Entrypoint": ["e", "f"], "Cmd": ["a"]}, {}, ("e", "f", "a")),
        ({"Entrypoint": ["e"], "Cmd": None}, {}, ("e",)),
        ({"Entrypoint": ["e"], "Cmd": ["a"]}, {"command": ["x", "y"]}, ("e", "x", "y")),
        ({"Entrypoint": ["e"], "Cmd": ["a"]}, {"entrypoint": ["p"]}, ("p",)),
        ({"Entrypoint": ["e"], "Cmd": ["a"]}, {"entrypoint": ["p"], "command": ["x"]}, ("p", "x")),
        ({"Entrypoint": ["e"], "Cmd": ["a"]}, {"entrypoint": [], "command": ["x"]}, ("x",)),
    ],
)
def test_what_is_run(config: dict[str, Any], given: dict[str, Any], argv: tuple[str, ...]) -> None:
    assert first(given=given, **config).argv == argv


@pytest.mark.parametrize("config", [{"Cmd": None}, {"Cmd": []}, {"Cmd": [""]}, {"Entrypoint": ["", "x"]}])
def test_nothing_to_run(config: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        first(**config)
    assert caught.value.message == "the image does not say what to run"
    assert caught.value.hint == "imgkit run LAYOUT -- COMMAND…"


@pytest.mark.parametrize(
    ("user", "found"),
    [
        ("", (0, 0, "root", "/root")),
        ("root", (0, 0, "root", "/root")),
        ("0", (0, 0, "root", "/root")),
        ("web", (1500, 1600, "named", "/home/web")),
        ("1500", (1500, 1600, "named", "/home/web")),
        ("web:extra", (1500, 1700, "number", "/home/web")),
        ("web:5", (1500, 5, "number", "/home/web")),
        ("web:", (1500, 1600, "named", "/home/web")),
        ("0:0", (0, 0, "root", "/root")),
        ("root:web", (0, 1600, "number", "/root")),
        ("1234", (1234, 0, "number", "/")),
        ("1234:1600", (1234, 1600, "number", "/")),
        ("77", (1501, 1601, "named", "/seven")),  # a name may look like a number
        ("4294967294", (4294967294, 0, "number", "/")),
    ],
)
def test_users(user: str, found: tuple[int, int, str, str]) -> None:
    process = first(User=user)
    assert (process.uid, process.gid, process.account, process.environment["HOME"]) == found
    assert process.login == ({1500: "web", 1501: "77"}[process.uid] if process.account == "named" else "")
    shown = process.login or "''"
    assert f"\nlogin={shown}\n" in process.to_shell()


def test_an_account_that_another_one_of_its_name_hides() -> None:
    """The groups of an account are found by its name, and that of uid 6 would lead to uid 5."""
    tree = Tree()
    tree.write("etc/passwd", "web:x:5:5::/a:/bin/sh\nweb:x:6:6::/b:/bin/sh\n")
    process = first(tree=tree, User="6")
    assert (process.uid, process.gid, process.account, process.login) == (6, 6, "number", "")


def test_root_needs_no_account() -> None:
    process = first(tree=Tree())
    assert (process.uid, process.gid, process.account, process.environment["HOME"]) == (0, 0, "root", "/")


@pytest.mark.parametrize(
    ("user", "message"),
    [
        ("nobody", "the image is run as user 'nobody', who is not in its /etc/passwd"),
        ("4294967295", "the image is run as user '4294967295', who is not in its /etc/passwd"),
        ("web:staff", "the image is run as group 'staff', which is not in its /etc/group"),
        ("web:99999999999", "the image is run as group '99999999999', which is not in its /etc/group"),
    ],
)
def test_users_that_are_missing(user: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        first(User=user)
    assert caught.value.message == message


def test_the_environment() -> None:
    process = first(Env=["A=1", "B=x=y", "PATH=/bin", "odd", "=none"], given={"environment": {"A": "2"}})
    assert process.environment == {"PATH": "/bin", "HOME": "/root", "A": "2", "B": "x=y"}
    assert first().environment == {"PATH": DEFAULT_PATH, "HOME": "/root"}
    assert first(Env=["HOME=/h"]).environment["HOME"] == "/h"


@pytest.mark.parametrize(
    ("config", "given", "cwd"),
    [({}, None, "/"), ({"WorkingDir": "/srv/"}, None, "/srv"), ({"WorkingDir": "srv"}, None, "/srv"), ({}, "/w", "/w")],
)
def test_the_folder(config: dict[str, Any], given: str | None, cwd: str) -> None:
    assert first(given={"cwd": given}, **config).cwd == cwd


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(("SIGTERM", 15), ("TERM", 15), ("sigquit", 3), ("9", 9), ("SIGUSR1", 10), ("SIGSYS", 31), ("64", 64)),
        *(("SIGRTMIN", 34), ("SIGRTMIN+3", 37), ("RTMAX-2", 62), ("RTMAX", 64)),
    ],
)
def test_signals(text: str, number: int) -> None:
    assert parse_signal(text) == number
    assert first(StopSignal=text).stop_signal == number


@pytest.mark.parametrize("text", ["0", "65", "SIGNONE", "RTMAX+1", "-1", "SIGRTMIN+", "¹"])
def test_signals_that_do_not_exist(text: str) -> None:
    with pytest.raises(InputError, match="which is no signal"):
        parse_signal(text)


def test_the_usual_stop_signal() -> None:
    assert first().stop_signal == 15


WORDS = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1)


@pytest.mark.slow
@given(st.lists(WORDS, min_size=1), st.dictionaries(st.from_regex(r"[A-Z_]+", fullmatch=True), WORDS), WORDS)
def test_no_word_is_taken_for_code(argv: list[str], environment: dict[str, str], cwd: str) -> None:
    """What a shell makes of the settings is exactly what they were made from."""
    process = FirstProcess(tuple(argv), environment, "/" + cwd, 5, 6, "number")
    script = process.to_shell() + 'printf "%s\\0" "$uid" "$gid" "$account" "$cwd" "$@"'
    done = subprocess.run(["/bin/sh", "-c", script], stdout=subprocess.PIPE, check=True, env={})
    variables = [f"{name}={value}" for name, value in environment.items()]
    assert done.stdout.decode().split("\0")[:-1] == ["5", "6", "number", "/" + cwd, "env", "-i", *variables, *argv]


def test_settings() -> None:
    assert service() == "mode=agentd\nhostname=sandbox\n"
    process = FirstProcess(("sh",), {"A": "b c"}, "/")
    expected = "mode=once\nhostname=x\nshares='a b'\nwork=workspace/project\n" + process.to_shell()
    assert once(process, ["a", "b"], work=True, hostname="x") == expected
    assert "\nshares=''\nwork=\nuid=0\n" in once(process, [], work=False)
    assert (
        process.to_shell() == f"uid=0\ngid=0\naccount=root\nlogin=''\ncwd=/\nset -- env -i {shlex.quote('A=b c')} sh\n"
    )
