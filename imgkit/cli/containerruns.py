"""Run a container image with ``imgkit run``: as a machine of the kind that was asked for.

If agentd is in the image, requests go to it as in every machine. Otherwise the image's own program runs once.
docs/explanation/microvm.md describes both.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

from imgkit.api.enginechoice import engine_for
from imgkit.cli.options import commandinput, engineoptions, environmentoptions, machineoptions
from imgkit.cli.options.machineoptions import BootTarget
from imgkit.cli.options.mirroroptions import mirror_fields
from imgkit.errors import UsageError
from imgkit.fetch.cache import Cache, default_folder
from imgkit.host import lookup, statusline
from imgkit.image.containermachine import ContainerMachine, MachineRequest, container_machine
from imgkit.image.firstprocess import FirstProcess, first_process
from imgkit.image.guestkernel import DEFAULT_RECIPE
from imgkit.image.imagepaths import split_reference
from imgkit.image.machinesettings import once, service
from imgkit.oci.unpacking import opened_layout
from imgkit.recipe import OFFICIAL_MIRROR, Recipe, load
from imgkit.recipe.mirroraddress import mirror_fault
from imgkit.vm import configdrive
from imgkit.vm.entrymachine import EntryMachine
from imgkit.vm.qemu.machines import check_machine, host_arch, machine
from imgkit.vm.running import VM

_WORK = "/workspace/project"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that only container images have."""
    group = parser.add_argument_group("container images (a layout, or a .tar archive of one)")
    group.add_argument("--entrypoint", metavar="WORD", help="program in place of the image's entry point and command")
    group.add_argument("--recipe", type=Path, metavar="FILE", help="recipe that says where the kernel comes from")
    group.add_argument("--mirror", metavar="URL", help="where the kernel is downloaded from; /folder or ./folder, too")
    group.add_argument(
        "--release-key", type=Path, metavar="FILE", help="OpenPGP certificate that signs the mirror's minirootfs"
    )
    engineoptions.argument(group)
    group.add_argument("--offline", action="store_true", help="download nothing")


@contextmanager
def opened(options: argparse.Namespace) -> Iterator[ContainerMachine]:
    """Make a machine of the container image that ``options`` name, or take it from the cache.

    Raises:
        UsageError: an option is wrong, or two options contradict one another.
        InputError: the image is damaged or for another platform, or the kernel cannot be downloaded or trusted.
        HostError: the machine cannot be made on this host.
    """
    machineoptions.check(options)
    arch = machine(options.arch or host_arch()).arch
    check_machine(options.machine, arch, options.firmware)
    if options.firmware not in (None, "direct"):
        message = f"a container image has no boot loader that {options.firmware} could start"
        raise UsageError(message, hint="leave out --firmware: its kernel is started directly")
    path, reference = split_reference(options.image)
    with opened_layout(path) as layout:
        request = MachineRequest(
            layout=layout,
            arch=arch,
            reference=reference,
            recipe=_recipe(options),
            cache=Cache(default_folder(), offline=options.offline),
            engine=engine_for(options.engine),
        )
        with container_machine(request) as made:
            yield made


def boot_agent(
    options: argparse.Namespace, made: ContainerMachine, shares: dict[str, Path], *, terminals: bool = False
) -> AbstractContextManager[VM]:
    """Boot a machine with agentd in it. It is ready when the ``with`` block begins.

    Args:
        terminals: whether terminals can be opened on it.
    """
    config = environmentoptions.config_drive(options, service())
    spec = machineoptions.specification(options, _target(options, made), shares, config)
    spec = replace(spec, terminals=terminals)
    return VM.boot(spec, timeout=options.timeout, settle=not options.no_wait)


def run_once(options: argparse.Namespace, made: ContainerMachine, shares: dict[str, Path]) -> int:
    """Run the program of an image that has no agentd, pass its output on, and return its exit status."""
    if options.prompt:
        raise UsageError("there is no agentd in this image that could take a prompt", hint="imgkit run LAYOUT -- …")
    first = _first(options, made)
    tags = [word.partition("=")[0] for word in options.share]
    config = configdrive.make(
        machine=once(first, [tag for tag in tags if tag != "work"], work="work" in [*shares, *tags])
    )
    spec = machineoptions.specification(options, _target(options, made), shares, config)
    stdin = commandinput.standard_input(options)
    booted = EntryMachine.boot(
        spec, timeout=options.timeout, stop_signal=first.stop_signal, takes_input=stdin is not None
    )
    with booted as running, statusline.doing("the program runs"):
        if options.interactive:
            statusline.stop()  # what is typed belongs there
        return running.follow(_write, seconds=spec.quotas.seconds, limit=options.limit, stdin=stdin)


def _first(options: argparse.Namespace, made: ContainerMachine) -> FirstProcess:
    secrets = {name: value.decode() for name, value in environmentoptions.secrets(options.secret).items()}
    works = options.work is not None or any(word.startswith("work=") for word in options.share)
    return first_process(
        made.config.runtime,
        made.accounts,
        command=options.guest_command,
        entrypoint=None if options.entrypoint is None else _entrypoint(options.entrypoint),
        environment={**environmentoptions.environment(options), **secrets},
        cwd=_WORK if works else None,
    )


def _entrypoint(word: str) -> Sequence[str]:
    """Return the entry point that was asked for; an empty word is none, as Docker has it."""
    return [word] if word else []


def _recipe(options: argparse.Namespace) -> Recipe:
    """Return the recipe that says where the kernel comes from, with the mirror of the options or the environment.

    Raises:
        UsageError: the mirror is not one, or its key cannot be read.
        RecipeError: the recipe is wrong.
    """
    fields, origins = mirror_fields(options, os.environ)
    if options.recipe is not None:
        return load(options.recipe, fields, origins)
    if fault := mirror_fault(str(fields.get("mirror", OFFICIAL_MIRROR))):
        raise UsageError(f"{origins['mirror']}: {fault}")
    if "release_key" in fields and (fault := lookup.file_fault(Path(str(fields["release_key"])))):
        raise UsageError(f"{origins['release_key']}: {fault}")
    return DEFAULT_RECIPE.model_copy(update=fields)


def _target(options: argparse.Namespace, made: ContainerMachine) -> BootTarget:
    record = machine(options.arch or host_arch())
    words = (f"console={record.console},115200", "quiet", *record.kernel_arguments, made.arguments)
    return BootTarget(
        made.disk, record.arch, kernel=made.kernel, initrd=made.initramfs, command_line=" ".join(words), format="raw"
    )


def _write(stream: str, data: bytes) -> None:
    """Pass output on, byte for byte, to the stream of the same name."""
    statusline.stop()
    sink = sys.stdout if stream == "stdout" else sys.stderr
    sink.buffer.write(data)
    sink.flush()
