"""The options of the agent's environment, and the config drive that takes it into the guest."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from imgkit.cli import machinechecks
from imgkit.cli.options import envfile, repeatedoptions
from imgkit.errors import UsageError
from imgkit.vm import configdrive


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the environment."""
    repeatedoptions.add(
        parser,
        "--env",
        metavar="K=V",
        help="environment of the agent; every user of the host sees it in the list of processes: keys go with --secret",
    )
    repeatedoptions.add(
        parser,
        "--env-file",
        type=Path,
        metavar="FILE",
        help="the same from lines K=V, or K for its value here, as docker reads them; --env beats it",
    )
    repeatedoptions.add(parser, "--secret", metavar="K=FILE", help="the same, its value read from a file; beats both")


def config_drive(options: argparse.Namespace, machine_run: str | None = None) -> bytes | None:
    """Return the config drive of a machine with agentd; None if there is nothing to write.

    Args:
        machine_run: text of the file ``machine/run``, for container images.

    Raises:
        UsageError: a variable is wrong, the agent's user is root, or there is a prompt but no agent.
    """
    variables, values = environment(options), secrets(options.secret)
    machinechecks.check_agent_user(variables, values)
    if machine_run is None and getattr(options, "prompt", None):  # a container image has no manifest beside it
        machinechecks.check_agent(options.image, {*variables, *values})
    return configdrive.make(variables, values, machine=machine_run) or None


def environment(options: argparse.Namespace) -> dict[str, str]:
    """Return the variables of ``--env-file`` and of ``--env``, which takes precedence."""
    variables: dict[str, str] = {}
    for path in options.env_file:
        variables |= envfile.read(path, os.environ)
    return variables | repeatedoptions.pairs(options.env, "--env", "K=V")


def secrets(words: list[str]) -> dict[str, bytes]:
    """Return the values of ``--secret``, read from their files."""
    values = {}
    for name, path in repeatedoptions.pairs(words, "--secret", "K=FILE").items():
        try:
            with Path(path).open("rb") as source:
                values[name] = source.read(configdrive.MAX_VALUE + 1)
        except OSError as cause:
            raise UsageError(f"--secret {name}: {path}: {cause.strerror}") from cause
    return values
