"""Faults of what a recipe takes from elsewhere: files and folders that are missing, and entries that contradict."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from imgkit.host import lookup
from imgkit.recipe.spec import Recipe

PAYLOAD = "/opt/agent-runner"
"""What ``agent_runner`` replaces."""


def missing(recipe: Recipe) -> Iterator[str]:
    """Yield a line for each file or folder that is missing or of the wrong kind."""
    overlays = [("overlay", recipe.overlay)] if recipe.overlay else []
    overlays += [(f"overlays.{number}", overlay) for number, overlay in enumerate(recipe.overlays)]
    folders = [(name, overlay.path) for name, overlay in overlays]
    if recipe.agent_runner is not None:
        folders.append(("agent_runner", recipe.agent_runner))
    if recipe.agent is not None and recipe.agent.payload is not None:
        folders.append(("agent.payload", recipe.agent.payload))
    files = [("release_key", recipe.release_key)] if recipe.release_key else []
    files += [(f"files.{number}.source", file.source) for number, file in enumerate(recipe.files) if file.source]
    for number, repository in enumerate(recipe.repositories):
        if not isinstance(repository, str):
            if repository.folder is not None:
                folders.append((f"repositories.{number}.url", repository.folder))
            if repository.key is not None:
                files.append((f"repositories.{number}.key", repository.key))
    yield from (f"{field}: {fault}" for field, path in folders if (fault := lookup.folder_fault(path)))
    yield from (f"{field}: {fault}" for field, path in files if (fault := lookup.file_fault(path)))


def file_faults(recipe: Recipe) -> Iterator[str]:
    """Yield contradictions between what overlays, ``files`` and the payload put into the image."""
    if recipe.overlay is not None and recipe.overlays:
        yield "overlays: there is also an overlay: write all folders into overlays"
    paths: set[str] = set()
    for number, file in enumerate(recipe.files):
        if file.path in paths:
            yield f"files.{number}.path: {file.path} is there twice"
        paths.add(file.path)
        if recipe.agent_runner is not None and f"{file.path}/".startswith(f"{PAYLOAD}/"):
            yield f"files.{number}.path: agent_runner replaces {PAYLOAD}: put the file into that folder"


def repository_faults(recipe: Recipe) -> Iterator[str]:
    """Yield contradictions between repositories."""
    names: set[str] = set()
    keys: dict[str, Path] = {}
    for number, repository in enumerate(recipe.repositories):
        name = repository if isinstance(repository, str) else repository.url
        if name in names:
            yield f"repositories.{number}: {name} is there twice"
        names.add(name)
        key = None if isinstance(repository, str) else repository.key
        if key is not None and keys.setdefault(key.name, key) != key:
            other = keys[key.name]
            is_known = not (lookup.file_fault(key) or lookup.file_fault(other))
            if is_known and other.read_bytes() != key.read_bytes():
                yield f"repositories.{number}.key: {key} and {other} are different keys of one name"
