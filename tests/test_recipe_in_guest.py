"""A machine with a service, files, a time zone and packages of one's own, as the how-to pages describe them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fixtures.apkbuild import Entry, SigningKey
from fixtures.keys import new_rsa, public_pem
from imgkit.recipe import load
from tests.conftest import need_program
from tests.images import RECIPE, ROOT, Builder, Image, quick_kernel
from tests.mirrors import package
from tests.test_howto_recipes import blocks

pytestmark = pytest.mark.vm

_ONE_TYPE = (
    b"TZif2" + bytes(15) + b"".join(number.to_bytes(4, "big") for number in (0, 0, 0, 0, 1, 4))
    + (12600).to_bytes(4, "big") + b"\0\0" + b"XYZ\0"
)  # fmt: skip
# A zone that is three hours and a half from UTC all year, in the format of RFC 8536 (version 2, as tzdata has it).
ZONE = _ONE_TYPE + _ONE_TYPE + b"\nXYZ-3:30\n"


def packages(folder: Path, key: SigningKey) -> None:
    """Make a folder of packages without an index: a program, and time zones."""
    folder.mkdir()
    directories = [
        Entry(name=name, kind="directory", mode=0o755)
        for name in ("usr", "usr/bin", "usr/share", "usr/share/zoneinfo", "usr/share/zoneinfo/Test")
    ]
    program = Entry(name="usr/bin/own-tool", data=b"#!/bin/sh\necho own\n", mode=0o755)
    zone = Entry(name="usr/share/zoneinfo/Test/Zone", data=ZONE)
    for apk in (
        package("own-tool", "1.0-r0", *directories[:2], program, key=key, arch="noarch", size=20),
        package("tzdata", "2026a-r0", directories[0], *directories[2:], zone, key=key, arch="noarch", size=100),
    ):
        (folder / apk.filename).write_bytes(apk.blob)


@pytest.fixture(scope="module")
def image(builder: Builder, tmp_path_factory: pytest.TempPathFactory) -> Image:
    """Return an image with all of it."""
    need_program("qemu-system-x86_64")
    top = tmp_path_factory.mktemp("recipe")
    key = new_rsa("packages@example.com-5f3c1a2b.rsa.pub")
    (top / key.name).write_bytes(public_pem(key))
    packages(top / "packages", key)
    service, program = blocks("service.md", "sh")
    for path, text in (("files/etc/init.d/ticker", service), ("files/usr/local/bin/ticker", program)):
        (top / path).parent.mkdir(parents=True)
        (top / path).write_text(text.replace("sleep 60", "sleep 1"))
        (top / path).chmod(0o755)
    core = load(RECIPE)
    settings = {
        "overlays": [{"path": str(ROOT / "overlay"), "modes": "git"}, {"path": str(top / "files"), "modes": "git"}],
        "users": [
            *(user.model_dump() for user in core.users),
            {"name": "ticker", "uid": 200, "shell": "/sbin/nologin"},
        ],
        "services": {**core.services, "default": ["ticker"]},
        "files": [
            {"path": "/etc/own/token", "content": "secret\n", "owner": "agent", "mode": "0600"},
            {"path": "/etc/own/hidden", "content": "x\n", "owner": "ticker", "group": "root", "mode": "0640"},
        ],
        "timezone": "Test/Zone",
        "repositories": [*core.repositories, {"url": str(top / "packages"), "key": str(top / key.name), "tag": "own"}],
        "packages": [*core.packages, "own-tool@own", "tzdata@own"],
    }
    words = [word for name, value in settings.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    plain = ("--set", "name=own", "--set", "size=1G")
    return builder.build(top / "out", "--arch", "amd64", *words, *plain, *quick_kernel())["amd64"]


def test_what_the_manifest_says(image: Image) -> None:
    files = image.manifest["files"]
    token = files["/etc/own/token"]
    assert (token["mode"], token["uid"], token["gid"]) == ("0600", 1000, 1000)
    assert files["/etc/localtime"]["target"] == "/usr/share/zoneinfo/Test/Zone"
    urls = {entry["name"]: entry["url"] for entry in image.manifest["packages"]}
    assert (urls["own-tool"], urls["tzdata"]) == ("file:own-tool-1.0-r0.apk", "file:tzdata-2026a-r0.apk")
    assert "own-tool" in image.manifest["world"]
    assert str(image.disk.parent.parent) not in json.dumps(image.manifest)


def test_the_guest(image: Image, builder: Builder) -> None:
    script = (
        "own-tool; date +%Z%z; cat /etc/own/token; stat -c '%U:%G %a' /etc/own/hidden; cat /etc/own/hidden 2>&1; "
        "for n in $(seq 150); do test -s /var/lib/ticker/now && break; sleep 1; done; "  # default starts after agentd
        "grep -c XYZ /var/lib/ticker/now; stat -c '%U' /var/lib/ticker/now; "
        "pgrep -u ticker -f /usr/local/bin/ticker | wc -l; rc-status default | grep -c 'ticker.*started'"
    )
    ran = builder.run("run", image.disk, "--timeout", "300", "--", "sh", "-c", script)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == [
        "own",
        "XYZ+0330",
        "secret",
        "ticker:root 640",
        "cat: can't open '/etc/own/hidden': Permission denied",
        "1",
        "ticker",
        "1",
        "1",
    ]


def test_the_image_is_what_its_manifest_says(image: Image, builder: Builder) -> None:
    ran = builder.run("verify", image.disk)
    assert ran.returncode == 0, ran.stderr
