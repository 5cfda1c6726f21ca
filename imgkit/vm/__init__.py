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
"""

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
