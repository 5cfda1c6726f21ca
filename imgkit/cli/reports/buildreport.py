"""The report of a build, which ``imgkit build --json`` prints and a build process sends to its parent."""

from __future__ import annotations

import json
import resource
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from imgkit.host.progress import Steps
from imgkit.image.assemble import BuildResult

if TYPE_CHECKING:
    from imgkit.image.containerimage import ContainerResult


@dataclass(frozen=True)
class StepReport:
    """One step of a build; times in seconds since the beginning of the build."""

    name: str
    start: float
    seconds: float


@dataclass(frozen=True)
class BuildReport:
    """One image that was built. The fields have the names of the JSON object.

    Attributes:
        image, kernel, initramfs, manifest: paths of the files.
        firecracker: path of Firecracker's configuration, beside a root filesystem; None beside a disk.
        size: bytes of the image file.
        allocated: bytes that it takes on the host's disk, which are fewer where it has holes.
        seconds: how long the build took.
        peakMemory: the most memory that the process had, in bytes.
    """

    arch: str
    image: str
    kernel: str
    initramfs: str
    manifest: str
    buildId: str  # noqa: N815 - as it is in the JSON
    size: int
    allocated: int
    seconds: float
    peakMemory: int  # noqa: N815 - as it is in the JSON
    steps: tuple[StepReport, ...] = ()
    firecracker: str | None = None

    def to_json(self) -> dict[str, object]:
        """Return the report as a value for :func:`json.dumps`."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def report_of(arch: str, result: BuildResult) -> BuildReport:
    """Return the report of a build that this process has just finished."""
    return BuildReport(
        arch=arch,
        image=str(result.image),
        kernel=str(result.kernel),
        initramfs=str(result.initramfs),
        manifest=str(result.manifest),
        buildId=result.build_id,
        size=result.size,
        allocated=result.allocated,
        seconds=round(result.steps.elapsed, 2),
        peakMemory=peak_memory(),
        steps=_steps(result.steps),
        firecracker=None if result.firecracker is None else str(result.firecracker),
    )


def container_report(name: str, result: ContainerResult) -> dict[str, object]:
    """Return the report of a container image, as a value for :func:`json.dumps`."""
    return {
        "name": name,
        "digest": result.digest,
        "paths": [str(path) for path in result.paths],
        "images": [
            {
                "arch": image.arch,
                "digest": image.manifest.digest,
                "buildId": image.build_id,
                "layers": [
                    {
                        "digest": layer.blob.descriptor.digest,
                        "size": layer.blob.descriptor.size,
                        "reason": layer.history.created_by,
                    }
                    for layer in image.layers
                    if layer.blob is not None
                ],
            }
            for image in result.images
        ],
        "seconds": round(result.steps.elapsed, 2),
        "peakMemory": peak_memory(),
        "steps": [asdict(step) for step in _steps(result.steps)],
    }


def _steps(steps: Steps) -> tuple[StepReport, ...]:
    return tuple(StepReport(step.name, round(step.start, 3), round(step.seconds, 3)) for step in steps.finished)


def parse_report(text: bytes) -> BuildReport:
    """Parse the output of ``imgkit build --json`` for one image.

    Raises:
        ValueError: ``text`` is not JSON, or not a list with one report.
    """
    try:
        (body,) = json.loads(text)
        steps = tuple(StepReport(**step) for step in body.pop("steps"))
        return BuildReport(**body, steps=steps)
    except (TypeError, LookupError, AttributeError) as cause:
        raise ValueError(f"not the report of a build: {cause}") from cause


def peak_memory() -> int:
    """Return the most memory that this process has had so far, in bytes.

    Linux's ``ru_maxrss`` is at least what the parent had when it started this process; ``VmHWM`` begins with exec.
    """
    try:
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
    return int(line.split()[1]) * 1024
