"""A third-party payload with a dependency from the registry: the build installs it, and it answers in a boot."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests import hostapp
from tests.conftest import need_program
from tests.images import ROOT, Builder, quick_kernel
from tests.test_npm import need_npm

PAYLOAD = ROOT / "fixtures/payloads/echo-agent"


def test_the_lock_pins_and_names_no_registry() -> None:
    text = (PAYLOAD / "package-lock.json").read_text()
    packages = {path: facts for path, facts in json.loads(text)["packages"].items() if path}
    assert packages
    assert all(facts["integrity"].startswith("sha512-") for facts in packages.values())
    assert "resolved" not in text
    assert "://" not in re.sub(r'"funding": \{[^}]*\}', "", text)


@pytest.mark.vm
def test_it_is_built_in_and_answers(builder: Builder, tmp_path: Path) -> None:
    need_program("qemu-system-x86_64")
    need_npm()
    image = builder.build(tmp_path / "out", "--arch", "amd64", "--agent-runner", PAYLOAD, *quick_kernel())["amd64"]
    files = image.manifest["files"]
    assert "/opt/agent-runner/node_modules/ms/index.js" in files
    assert "/opt/agent-runner/lib/supervisor.js" not in files, "the payload replaces what was there"
    assert not (PAYLOAD / "node_modules").exists(), "packages are installed in a copy"
    with hostapp.file_mode("amd64", image.disk, tmp_path, {}, timeout=300) as app:
        beat = app.heartbeat()
        assert beat is not None
        assert beat["payload"] == "echo-agent"
        result, _ = app.run({"prompt": "hello", "autoApprove": True}, pause=1)
        assert result["subtype"] == "success"
        assert re.fullmatch(r"hello \(after \d+ \w+\)", result["result"]), "its dependency said how long"
        identity = app.send({"prompt": "again"})
        asked = app.question(identity, "permission_request")
        assert asked["toolInput"] == {"prompt": "again"}
        app.answer(asked, {"behavior": "deny"})
        assert app.finish(identity)["result"] == "not allowed to echo"
