"""Credentials are found where Docker and Podman keep them, and are never shown."""

from __future__ import annotations

import base64
import json
import logging
import stat
from pathlib import Path
from typing import Any

import pytest

from imgkit.errors import HostError, ImgkitError, InputError
from imgkit.oci.imagename import ImageName
from imgkit.registry import logins
from imgkit.registry.access import RegistryAccess
from imgkit.registry.logins import Login, find_login

HUB_KEY = "https://index.docker.io/v1/"


def secret(text: str) -> dict[str, str]:
    return {"auth": base64.b64encode(text.encode()).decode()}


def write(path: Path, document: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


def found(name: str, environ: dict[str, str]) -> Login | None:
    return find_login(ImageName.parse(name), RegistryAccess(environ=environ))


def user(name: str, auths: dict[str, Any], folder: Path) -> str:
    """Return the user that a file of ``auths`` has for an image."""
    path = write(folder / "auth.json", {"auths": auths})
    login = found(name, {"REGISTRY_AUTH_FILE": str(path)})
    return login.user if login else ""


def test_the_order_of_the_files(tmp_path: Path) -> None:
    """Each file has an entry; taken away one after the other, the next one is found."""
    environ = {
        "REGISTRY_AUTH_FILE": str(tmp_path / "explicit.json"),
        "DOCKER_CONFIG": str(tmp_path / "docker"),
        "XDG_RUNTIME_DIR": str(tmp_path / "run"),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "HOME": str(tmp_path / "home"),
    }
    places = {
        "explicit": "explicit.json",
        "docker": "docker/config.json",
        "home docker": "home/.docker/config.json",
        "run": "run/containers/auth.json",
        "config": "config/containers/auth.json",
        "home config": "home/.config/containers/auth.json",
    }
    for name, place in places.items():
        write(tmp_path / place, {"auths": {"registry.example": secret(f"{name}:x")}})
    seen = []
    for variable in ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "HOME", None):
        login = found("registry.example/a", environ)
        seen.append(login.user if login else "")
        if variable:
            del environ[variable]
        elif variable == "":
            (tmp_path / places["home docker"]).unlink()
    assert seen == ["explicit", "docker", "home docker", "run", "config", "home config", ""]


def test_with_an_explicit_file_no_other_is_read(tmp_path: Path) -> None:
    write(tmp_path / ".docker/config.json", {"auths": {"registry.example": secret("ann:x")}})
    path = write(tmp_path / "auth.json", {})
    assert found("registry.example/a", {"HOME": str(tmp_path), "REGISTRY_AUTH_FILE": str(path)}) is None
    with pytest.raises(InputError, match="No such file"):
        found("registry.example/a", {"REGISTRY_AUTH_FILE": str(tmp_path / "missing")})


@pytest.mark.parametrize("variable", ["DOCKER_CONFIG", "XDG_RUNTIME_DIR", "HOME"])
def test_a_folder_that_may_not_be_looked_up_is_left_out_with_a_warning(
    variable: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be another user's, as after su. A name that is too long stands for that, since root may look anywhere."""
    write(tmp_path / "containers/auth.json", {"auths": {"r.example": secret("somebody:x")}})
    closed = "/" + "x" * 300
    login = found("r.example/a", {variable: closed, "XDG_CONFIG_HOME": str(tmp_path)})
    assert login is not None
    assert login.user == "somebody"
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith(f"{closed}/")
    assert warning.endswith(": cannot be looked up: File name too long; no credentials are taken from there")


def test_a_file_without_the_registry_lets_the_next_one_answer(tmp_path: Path) -> None:
    write(tmp_path / ".docker/config.json", {"auths": {"other.example": secret("bob:x"), "registry.example": {}}})
    write(tmp_path / ".config/containers/auth.json", {"auths": {"registry.example": secret("ann:x")}})
    login = found("registry.example/a", {"HOME": str(tmp_path)})
    assert login is not None
    assert login.user == "ann"
    assert login.source == f"{tmp_path}/.config/containers/auth.json (registry.example)"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("registry.example/team/app/part", "app"),
        ("registry.example/team/app", "app"),
        ("registry.example/team/application", "team"),
        ("registry.example/team", "team"),
        ("registry.example/teams/x", "host"),
        ("registry.example:5000/team/app", ""),
        ("other.example/team/app", ""),
    ],
)
def test_longer_keys_come_first(name: str, expected: str, tmp_path: Path) -> None:
    auths = {
        "registry.example": secret("host:x"),
        "registry.example/team": secret("team:x"),
        "registry.example/team/app": secret("app:x"),
    }
    assert user(name, auths, tmp_path) == expected


@pytest.mark.parametrize(
    "key", ["registry.example", "https://registry.example", "http://registry.example/v2/", "registry.example/v1/"]
)
def test_keys_of_older_versions_of_docker(key: str, tmp_path: Path) -> None:
    assert user("registry.example/team/app", {key: secret("ann:x")}, tmp_path) == "ann"


@pytest.mark.parametrize("key", [HUB_KEY, "docker.io", "index.docker.io", "registry-1.docker.io"])
def test_the_names_of_docker_hub(key: str, tmp_path: Path) -> None:
    assert user("alpine", {key: secret("ann:x")}, tmp_path) == "ann"
    assert user("registry.example/alpine", {key: secret("ann:x")}, tmp_path) == ""


def test_kinds_of_entries(tmp_path: Path) -> None:
    def login(entry: dict[str, Any]) -> Login | None:
        path = write(tmp_path / "auth.json", {"auths": {"r.example": entry}})
        return found("r.example/a", {"REGISTRY_AUTH_FILE": str(path)})

    source = f"{tmp_path}/auth.json (r.example)"
    assert login(secret("ann:a:b\0\0")) == Login(source, "ann", "a:b")
    assert login({"username": "ann", "password": "b"}) == Login(source, "ann", "b")
    assert login({**secret("ann:b"), "identitytoken": "i"}) == Login(source, identity_token="i")
    assert login({"registrytoken": "r"}) == Login(source, bearer_token="r")
    assert login({"auth": ""}) is None
    assert login({"username": "ann"}) is login({"password": "b"}) is None
    assert login({"auth": 5}) is None
    for wrong in ("!!!", base64.b64encode(b"ann").decode(), base64.b64encode(b":x").decode(), "/w==", "YW5u!OmI="):
        with pytest.raises(InputError, match="the credentials cannot be read") as caught:
            login({"auth": wrong})
        assert wrong not in caught.value.message
        assert caught.value.hint == "log in again, which writes them anew"


def test_a_login_does_not_show_itself() -> None:
    login = Login("file", "ann", "pass-word", "identity", "bearer")
    assert repr(login) == "Login(source='file')"
    assert login.basic == "Basic " + base64.b64encode(b"ann:pass-word").decode()
    assert Login("file", identity_token="i").basic == ""


@pytest.mark.parametrize(
    ("document", "message"),
    [("[]", "is not a file of credentials"), ("{", "not JSON"), ('{"auths": {"a": {}, "a": {}}}', "occurs twice")],
)
def test_damaged_files(document: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "auth.json").write_text(document)
    with pytest.raises(InputError, match=message):
        found("r.example/a", {"REGISTRY_AUTH_FILE": str(tmp_path / "auth.json")})


# ---- helpers ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where the script of ``docker-credential-test`` is to be written; it gets the server in ``$server``."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder / "docker-credential-test"


def program(path: Path, script: str) -> None:
    path.write_text(f'#!/bin/sh\nread -r server\n[ "$1" = get ] || exit 9\n{script}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def ask(config: dict[str, Any], folder: Path, name: str = "r.example:5000/a") -> Login | None:
    path = write(folder / "auth.json", config)
    return found(name, {"REGISTRY_AUTH_FILE": str(path)})


def test_a_helper_is_asked(helper: Path, tmp_path: Path) -> None:
    program(helper, 'echo "{\\"ServerURL\\": \\"$server\\", \\"Username\\": \\"for-$server\\", \\"Secret\\": \\"s\\"}"')
    login = ask({"credHelpers": {"r.example:5000": "test"}, "auths": {"r.example:5000": secret("bob:x")}}, tmp_path)
    assert login == Login("docker-credential-test", "for-r.example:5000", "s")
    assert ask({"credsStore": "test"}, tmp_path) == login
    assert ask({"credHelpers": {"other.example": "test"}}, tmp_path) is None
    hub = ask({"credsStore": "test"}, tmp_path, "alpine")
    assert hub is not None
    assert hub.user == f"for-{HUB_KEY}"
    kept = ask({"credsStore": "test", "auths": {"r.example:5000": secret("bob:x")}}, tmp_path)
    assert kept is not None
    assert kept.user == "bob"


def test_an_identity_token_of_a_helper(helper: Path, tmp_path: Path) -> None:
    program(helper, 'echo \'{"Username": "<token>", "Secret": "i"}\'')
    assert ask({"credsStore": "test"}, tmp_path) == Login("docker-credential-test", identity_token="i")


def test_a_helper_without_credentials(helper: Path, tmp_path: Path) -> None:
    program(helper, "echo credentials not found in native keychain; exit 1")
    assert ask({"credHelpers": {"r.example:5000": "test"}}, tmp_path) is None
    program(helper, 'echo \'{"Username": "", "Secret": ""}\'')
    assert ask({"credHelpers": {"r.example:5000": "test"}}, tmp_path) is None


@pytest.mark.parametrize(
    ("script", "kind", "message"),
    [
        (
            "echo the keychain is locked; exit 1",
            HostError,
            "docker-credential-test: fails for r.example:5000: the keychain",
        ),
        ("exit 1", HostError, "docker-credential-test: fails for r.example:5000: it says nothing"),
        ("echo oh no >&2; exit 3", HostError, "docker-credential-test failed with status 3: oh no (for r.example:5000"),
        ("sleep 30", HostError, "docker-credential-test: no result within 0.5 s (for r.example:5000, named in"),
        (
            'echo \'{"Secret": "hidden"\'',
            InputError,
            "docker-credential-test: its answer for r.example:5000 is not JSON",
        ),
        ('echo \'{"Secret": "hidden"}\'', InputError, "has no Username and Secret"),
        ('echo \'{"Secret": 5, "Username": "a"}\'', InputError, "has no Username and Secret"),
    ],
)
def test_helpers_that_fail(
    script: str,
    kind: type[ImgkitError],
    message: str,
    helper: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What a user names for a registry must work. The helper for all registries is only a warning."""
    monkeypatch.setattr(logins, "_HELPER_TIMEOUT", 0.5)
    program(helper, script)
    with pytest.raises(kind) as caught:
        ask({"credHelpers": {"r.example:5000": "test"}}, tmp_path)
    assert message in caught.value.message
    assert "hidden" not in caught.value.message
    with caplog.at_level(logging.WARNING, "imgkit.registry"):
        assert ask({"credsStore": "test"}, tmp_path) is None
    assert f"{tmp_path}/auth.json: goes on without the helper of credsStore: docker-credential-test" in caplog.text
    assert "hidden" not in caplog.text


def test_a_missing_helper_is_named(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"docker-credential-no-such: program not found \(for r.example:5000, named in"):
        ask({"credHelpers": {"r.example:5000": "no-such"}}, tmp_path)
    assert ask({"credsStore": "no-such"}, tmp_path) is None


@pytest.mark.parametrize("name", ["../../bin/evil", "a b", "-x", "/bin/sh", "a\n"])
def test_names_of_helpers(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not the name of a credential helper"):
        ask({"credHelpers": {"r.example:5000": name}}, tmp_path)
