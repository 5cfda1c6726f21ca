"""The files that ``imgkit init`` writes: a recipe, a test that boots its image, a workflow, and what git ignores."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from types import MappingProxyType

from imgkit.host import lookup

DISTRIBUTION = "imgkit-sandbox"
"""What pip calls imgkit."""
BASES: Mapping[str, str] = MappingProxyType(
    {
        "alpine": "Alpine Linux with Node.js, Python, git and tools that agents expect. agentd runs their commands.",
        "core": "The least that runs an agent: Alpine Linux with bash and Node.js. agentd runs its commands.",
    }
)
"""The recipes to build on, with what a new recipe says about them."""
RECIPE, TEST, WORKFLOW, IGNORED = "image.py", "test_image.py", ".github/workflows/image.yml", ".gitignore"

# What builds and boots an amd64 image on Ubuntu, besides Python; script/setup has the same list.
PACKAGES = """\
    python3-guestfs supermin qemu-system-x86 qemu-system-arm qemu-utils qemu-efi-aarch64 ovmf zstd"""

_TEMPLATES: Mapping[str, str] = MappingProxyType(
    {RECIPE: "image.py.in", TEST: "test_image.py.in", WORKFLOW: "workflow.yml.in", IGNORED: "gitignore.in"}
)
_STARTER = Path(__file__).with_name("starter")


def name_of(folder: Path) -> str:
    """Return a name for the images of a project: that of its folder, as far as recipes allow it."""
    name = re.sub(r"[^A-Za-z0-9_.+-]+", "-", lookup.real(folder).name).strip("-.+")
    return name or "sandbox"


def project(name: str, base: str, source: str) -> dict[str, str]:
    """Return the files of a project: path → text.

    Args:
        name: what its images are called.
        base: the recipe that it builds on, one of :data:`BASES`.
        source: where a workflow can install imgkit from, a URL; empty if that is not known.
    """
    words = {
        "@NAME@": name,
        "@BASE@": base,
        "@BASE_SAYS@": BASES[base],
        "@PACKAGES@": " ".join(PACKAGES.split()),
        "@DISTRIBUTION@": DISTRIBUTION,
        "@IMGKIT@": source or "${{ vars.IMGKIT }}",
    }
    pattern = re.compile("|".join(words))
    texts = {path: (_STARTER / template).read_text() for path, template in _TEMPLATES.items()}
    return {path: pattern.sub(lambda match: words[match[0]], text) for path, text in texts.items()}


def installed_from() -> str:
    """Return the URL that imgkit was installed from, if others can use it as well; else an empty text.

    pip, pipx and uv write it down (``direct_url.json`` of the packaging specifications, PEP 610).
    """
    try:
        recorded = json.loads(metadata.distribution(DISTRIBUTION).read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, ValueError):
        return ""
    url, vcs = str(recorded.get("url", "")), recorded.get("vcs_info", {})
    if not url.startswith("https://") or "@" in url:
        return ""
    return f"{vcs['vcs']}+{url}@{vcs['commit_id']}" if vcs else url
