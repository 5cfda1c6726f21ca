"""Check before a machine is started what it would only refuse after its boot, from what is known of the image."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from imgkit.errors import InputError, UsageError
from imgkit.image.manifest import read_manifest
from imgkit.verification.beside import manifest_of
from imgkit.vm.qemu.machines import stated_arch


def check_arch(image: Path, arch: str | None) -> None:
    """Check that an architecture that was asked for is that of the image, as far as its manifest or its name states it.

    Raises:
        UsageError: the image is for another one.
    """
    if arch is None:
        return
    manifest = _manifest(image).get("arch")
    stated = manifest or stated_arch(image)
    if stated is not None and stated != arch:
        source = "its manifest" if manifest else "its name"
        raise UsageError(f"--arch {arch}: {image} is for {stated}, {source} says", hint=f"--arch {stated}, or none")


def check_agent_user(variables: Mapping[str, str], secrets: Mapping[str, bytes]) -> None:
    """Check that no setting makes root the user of agents and commands: agentd refuses every request then.

    Raises:
        UsageError: ``AGENT_USER`` is root.
    """
    if "root" in (variables.get("AGENT_USER"), secrets.get("AGENT_USER", b"").decode(errors="replace")):
        raise UsageError(
            "AGENT_USER=root: agents and commands never run as root in a machine",
            hint="leave it out: the user is then agent",
        )


def check_agent(image: Path, names: Collection[str]) -> None:
    """Check that there is an agent for a prompt. Without a manifest, or with an older one, that is not known.

    Args:
        image: the image.
        names: the variables that are given to this boot.

    Raises:
        UsageError: no agent is configured.
    """
    agent = _manifest(image).get("agent")
    if agent and not agent["payload"] and not agent["command"] and "AGENT_COMMAND" not in names:
        raise UsageError(
            f"--prompt: no agent is configured in {image}",
            hint="--env AGENT_COMMAND=… names one; a command comes after --",
        )


def _manifest(image: Path) -> Mapping[str, Any]:
    """Return the manifest beside an image; empty if there is none that can be read (``imgkit verify`` says why)."""
    with suppress(InputError):
        return read_manifest(manifest_of(image))
    return {}
