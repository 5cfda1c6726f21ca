"""How registries are reached: what the command line and the environment say about it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class RegistryAccess:
    """How registries are reached.

    Attributes:
        insecure: whether a registry that does not speak TLS may be talked to over plain http. Certificates of those
            that do are verified all the same.
        ca: a file of certificates in PEM that are trusted in addition to the usual ones; None if there is none.
        environ: where the places of credentials and certificates are looked up.
        attempts: how often a request is made if the server is overloaded or the connection breaks off.
        pause: seconds before the second attempt; they double with each further attempt.
        stall_timeout: seconds until an answer must have begun; later, the longest pause.
        commit_timeout: the same for the request that completes an upload, where a registry may hash all of it.
        chunk_size: bytes. Larger blobs are sent in chunks of this size, which can be resumed.
        workers: blobs that are sent or received at a time.
    """

    insecure: bool = False
    ca: Path | None = None
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    attempts: int = 5
    pause: float = 0.5
    stall_timeout: float = 30.0
    commit_timeout: float = 300.0
    chunk_size: int = 64 << 20
    workers: int = 4
