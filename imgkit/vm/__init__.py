"""Boot an image, run commands in it, and talk to its agentd.

    from imgkit.vm import VM, BootError, BootSpec, FolderQuota, Quotas

    with VM.boot("out/linux-amd64.qcow2", shares={"data": "."}) as vm:  # mounted at /mnt/data
        assert "README.md" in vm.run("ls /mnt/data").check().text

    spec = BootSpec("out/linux-arm64.qcow2", firmware="uefi", network="none", quotas=Quotas(disk=1 << 30))
    try:
        with VM.boot(spec, timeout=300) as vm, vm.request(prompt="What is in this folder?") as request:
            result = request.result()
    except BootError as error:
        print(error)  # what failed, and the last lines of the console

:class:`BootSpec` describes a machine; :meth:`VM.boot` also takes its fields as keywords. A boot that fails raises a
subclass of :class:`BootError`, a request that fails :class:`RequestError`. The pytest plugin is :mod:`imgkit.testing`.

Each name is imported when it is used (PEP 562): a build needs to know the machine of an architecture, which is in this
package, but boots nothing.
"""

from typing import TYPE_CHECKING

from imgkit.host.lazynames import importing

if TYPE_CHECKING:
    from imgkit.vm.agent.callbacks import HostToolAnswer, Permission
    from imgkit.vm.agent.completed import Completed
    from imgkit.vm.agent.protocol import AgentResult, HostToolRequest, Output, PermissionRequest
    from imgkit.vm.agent.requests import AgentRequest
    from imgkit.vm.bootspec import BootSpec
    from imgkit.vm.failures import (
        AgentError,
        BootError,
        BootLoaderError,
        BootTimeoutError,
        FloodError,
        InitError,
        InitramfsError,
        KernelPanicError,
        NothingToBootError,
        QemuDiedError,
        QuotaError,
        RequestError,
    )
    from imgkit.vm.running import VM
    from imgkit.vm.sessions.guestsession import GuestSession, SessionEnd
    from imgkit.vm.shares.quotas import FolderQuota, Quotas

__all__ = [
    "VM",
    "AgentError",
    "AgentRequest",
    "AgentResult",
    "BootError",
    "BootLoaderError",
    "BootSpec",
    "BootTimeoutError",
    "Completed",
    "FloodError",
    "FolderQuota",
    "GuestSession",
    "HostToolAnswer",
    "HostToolRequest",
    "InitError",
    "InitramfsError",
    "KernelPanicError",
    "NothingToBootError",
    "Output",
    "Permission",
    "PermissionRequest",
    "QemuDiedError",
    "QuotaError",
    "Quotas",
    "RequestError",
    "SessionEnd",
]

_MODULES = {
    "imgkit.vm.agent.callbacks": ("HostToolAnswer", "Permission"),
    "imgkit.vm.agent.completed": ("Completed",),
    "imgkit.vm.agent.protocol": ("AgentResult", "HostToolRequest", "Output", "PermissionRequest"),
    "imgkit.vm.agent.requests": ("AgentRequest",),
    "imgkit.vm.bootspec": ("BootSpec",),
    "imgkit.vm.failures": (
        "AgentError",
        "BootError",
        "BootLoaderError",
        "BootTimeoutError",
        "FloodError",
        "InitError",
        "InitramfsError",
        "KernelPanicError",
        "NothingToBootError",
        "QemuDiedError",
        "QuotaError",
        "RequestError",
    ),
    "imgkit.vm.running": ("VM",),
    "imgkit.vm.sessions.guestsession": ("GuestSession", "SessionEnd"),
    "imgkit.vm.shares.quotas": ("FolderQuota", "Quotas"),
}
"""Module → the names that are defined in it."""


if not TYPE_CHECKING:  # a type checker knows the names from above, and complains about all others
    __getattr__ = importing(__name__, _MODULES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
