"""The first seed's own packages: built in for both architectures by ``auto``, and used in booted images.

The package brings programs for six platforms and a native module that needs C++'s library, which the offline mirror
has not: what a module of this kind says without it, and that it works with it, is seen as well.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from imgkit.vm import VM
from tests.conftest import need_program
from tests.images import ROOT, Builder, Images, quick_kernel
from tests.test_boots import QEMU, TIMEOUT
from tests.test_npm import SEED, need_npm

pytestmark = pytest.mark.vm

MODULES = "/opt/agent-runner/node_modules"
SDK = f"{MODULES}/@anthropic-ai/claude-agent-sdk"
VERSION = "2.1.12 (Claude Code)"
CPUS = {"amd64": ("x64", "aarch64"), "arm64": ("arm64", "x86_64")}
# The libraries that the offline mirror's Node brings have names of their own.
WITH_LIBRARIES = """
mkdir /tmp/lib
ln -s /usr/lib/libstdc++-*.so.6.* /tmp/lib/libstdc++.so.6
ln -s /usr/lib/libgcc_s-*.so.1 /tmp/lib/libgcc_s.so.1
exec env LD_LIBRARY_PATH=/tmp/lib node -e "$1"
"""


IMPORTS = f"""
import {{ createRequire }} from 'node:module';
const require = createRequire('{SDK}/');
console.log(typeof (await import('{SDK}/sdk.mjs')).query);
try {{ %(sharp)s }} catch (error) {{ console.log(error.message.split('\\n')[0]) }}
"""


@pytest.fixture(scope="module")
def payload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the repository's agentd, asking for the packages that the first seed's asks for."""
    need_npm()
    folder = tmp_path_factory.mktemp("seed") / "payload"
    shutil.copytree(ROOT / "overlay/opt/agent-runner", folder)
    for name in ("package.json", "package-lock.json"):
        shutil.copyfile(SEED / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def seed_images(builder: Builder, payload: Path, tmp_path_factory: pytest.TempPathFactory) -> Images:
    """Images of both architectures with that payload."""
    words = ("--arch", "all", "--agent-runner", payload, *quick_kernel())
    return builder.build(tmp_path_factory.mktemp("seed-images"), *words)


@pytest.mark.parametrize("arch", ["amd64", "arm64"])
def test_other_platforms_are_one_warning_and_all_in_the_manifest(seed_images: Images, arch: str) -> None:
    cpu, other = CPUS[arch]
    lines = [line for line in seed_images.errors.splitlines() if line.startswith(f"{arch}: ")]
    (warning,) = [line for line in lines if "other platforms" in line]
    counts = rf"4 for macOS, 2 for Windows, 2 for {other}, 1 for glibc"
    assert re.search(rf"has 9 binaries for other platforms \((49|50)\.\d MB: {counts}\)", warning), warning
    manifest = seed_images[arch].manifest
    listed = manifest["payload"]["otherPlatforms"]
    assert len(listed) == 9
    assert all(manifest["files"][each["path"]]["size"] == each["size"] for each in listed)
    assert {"path": f"{SDK}/vendor/ripgrep/{cpu}-linux/ripgrep.node", "platform": "glibc"}.items() <= next(
        each for each in listed if each["platform"] == "glibc"
    ).items()
    module = f"{MODULES}/@img/sharp-linuxmusl-{cpu}/lib/sharp-linuxmusl-{cpu}.node"
    assert {"path": module, "library": "libstdc++.so.6"} in manifest["payload"]["missingLibraries"]
    (missing,) = [line for line in lines if "libstdc++.so.6, which" in line]
    advice = "no package of the image's repositories provides so:libstdc++.so.6"
    assert missing == f"{arch}: {module} needs the library libstdc++.so.6, which the image lacks: {advice}"


@pytest.mark.parametrize("arch", ["amd64", "arm64"])
def test_it_is_used_in_a_booted_image_as_the_agents_user(seed_images: Images, arch: str) -> None:
    need_program(QEMU[arch])
    cpu, _ = CPUS[arch]
    sharp = f"require('{MODULES}/@img/sharp-linuxmusl-{cpu}/lib/sharp-linuxmusl-{cpu}.node')"
    with VM.boot(seed_images[arch].disk, arch=arch, accelerator="tcg", cpus=1, timeout=TIMEOUT) as vm:
        assert vm.run(["id", "-un"]).text == "agent\n"
        asked = vm.run(["node", f"{SDK}/cli.js", "--version"], timeout=TIMEOUT)
        assert (asked.status, asked.text.strip()) == (0, VERSION)
        imported = vm.run(["node", "--input-type=module", "-e", IMPORTS % {"sharp": sharp}], timeout=TIMEOUT)
        assert imported.status == 0, imported
        kind, refusal = imported.text.splitlines()
        assert kind == "function"
        assert "Error loading shared library libstdc++.so.6" in refusal
        searched = vm.run([f"{SDK}/vendor/ripgrep/{cpu}-linux/rg", "--version"], timeout=TIMEOUT)
        assert searched.text.startswith("ripgrep "), "the program for Linux is linked statically and runs with musl"
        words = ["sh", "-c", WITH_LIBRARIES, "sh", f"console.log(JSON.stringify({sharp}.libvipsVersion()))"]
        loaded = vm.run(words, timeout=TIMEOUT)
        assert json.loads(loaded.text)["semver"].startswith("8."), loaded


def test_pruned(builder: Builder, payload: Path, seed_images: Images, tmp_path: Path) -> None:
    fields = ("--agent-runner", payload, "--set", "payload_binaries=prune", *quick_kernel())
    images = builder.build(tmp_path / "out", "--arch", "amd64", *fields)
    image, before = images["amd64"], seed_images["amd64"]
    assert "left out of the payload: 9 binaries for other platforms (49.2 MB: " in images.errors
    listed = image.manifest["payload"]["otherPlatforms"]
    assert listed == before.manifest["payload"]["otherPlatforms"]
    gone = before.manifest["files"].keys() - image.manifest["files"].keys()
    folders = {f"{SDK}/vendor/ripgrep/{name}" for name in ("arm64-darwin", "arm64-linux", "x64-darwin", "x64-win32")}
    assert gone == {each["path"] for each in listed} | folders
    assert image.disk.stat().st_size < before.disk.stat().st_size - 15_000_000
