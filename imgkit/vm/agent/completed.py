"""Run a command in the guest to its end, and return its output and its exit status.

completed = collect(vm.request(command=["uname", "-r"])).check()
print(completed.text)
"""

from __future__ import annotations

from dataclasses import dataclass

from imgkit.errors import GuestError
from imgkit.vm.agent.protocol import AgentResult, Output
from imgkit.vm.agent.requests import AgentRequest
from imgkit.vm.failures import RequestError

MAX_OUTPUT = 64 << 20
"""Maximum size in bytes of the standard output, and of the standard error, that :func:`collect` keeps."""


@dataclass(frozen=True)
class Completed:
    """The output and the result of a command that ran in the guest.

    Attributes:
        status: exit status as a shell reports it; see :func:`exit_status`.
        stdout, stderr: everything that the command wrote.
        result: the result of the request.
    """

    status: int
    stdout: bytes
    stderr: bytes
    result: AgentResult

    @property
    def text(self) -> str:
        """Standard output, decoded as UTF-8; bytes that are not UTF-8 are replaced."""
        return self.stdout.decode(errors="replace")

    def check(self) -> Completed:
        """Return this object if the command succeeded.

        Raises:
            GuestError: the command failed. The message has the last line that it wrote to standard error.
        """
        if self.status == 0 and self.result.ok:
            return self
        reason = self.stderr.decode(errors="replace").strip().rpartition("\n")[2] or self.result.text
        raise GuestError(f"command in the guest failed with status {self.status}" + (f": {reason}" if reason else ""))


# The numbers are those of Linux (signal(7)), as the guest is Linux whatever the host is.
_SIGNAL_NAMES = """
    HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP TSTP TTIN TTOU URG XCPU
    XFSZ VTALRM PROF WINCH IO PWR SYS
"""
_SIGNALS = {f"SIG{name}": number for number, name in enumerate(_SIGNAL_NAMES.split(), 1)}


def exit_status(result: AgentResult) -> int:
    """Return the exit status that stands for ``result``, as a shell would report it.

    It is the command's own status, 128 + n if signal n ended the command, and otherwise 0 for success and 1 for an
    error. A status that no process can have is 1: the host takes an exit status modulo 256, so that 256 would be
    success. The number of an unknown signal counts as 0.
    """
    if result.exit_code is not None:
        return result.exit_code if 0 <= result.exit_code <= 255 else 1
    if result.signal is not None:
        return 128 + _SIGNALS.get(result.signal, 0)
    return 0 if result.ok else 1


def collect(request: AgentRequest) -> Completed:
    """Read a request to its end, and return its command's output and result.

    Raises:
        RequestError: the command wrote more than :data:`MAX_OUTPUT` to standard output or standard error, or the
            request has already ended. :meth:`AgentRequest.__next__` lists further errors.
    """
    output = {"stdout": bytearray(), "stderr": bytearray()}
    with request:
        for event in request:
            if isinstance(event, Output):
                output[event.stream] += event.data
                if len(output[event.stream]) > MAX_OUTPUT:
                    raise RequestError(f"the command wrote more than {MAX_OUTPUT >> 20} MiB to {event.stream}")
            elif isinstance(event, AgentResult):
                return Completed(exit_status(event), bytes(output["stdout"]), bytes(output["stderr"]), event)
    raise RequestError("the request is over already")
