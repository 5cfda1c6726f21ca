"""The process that holds libguestfs, with a stand-in for its bindings: starting, hanging, crashing, going away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import cast

import pytest

from imgkit.engines.engineerrors import EngineStartError
from imgkit.engines.guestfs import appliancestart, channel, hostkernel
from imgkit.engines.guestfs.channel import Channel, Drive, Options
from imgkit.errors import HostError
from tests.processes import gone

BINDINGS = """
import os, subprocess, sys, time
EVENT_APPLIANCE = 1
class GuestFS:
    def __init__(self, python_return_dict):
        assert python_return_dict
        self.drives = []
    def set_event_callback(self, callback, mask):
        self.callback = callback
    def __getattr__(self, name):
        if not name.startswith("set_"):
            raise AttributeError(name)
        return lambda *arguments: None
    def add_drive_opts(self, path, **options):
        self.drives.append((path, options))
    def launch(self):
        print("noise on standard output")
        LAUNCH
    def debug(self, command, arguments):
        if "fail" in arguments[0]:
            raise RuntimeError("debug: no such thing")
        if "binary" in arguments[0]:
            raise UnicodeDecodeError("utf-8", b"x", 0, 1, "invalid start byte")
        return repr((self.drives, command, arguments))
    def shutdown(self): pass
    def close(self): pass
"""


@pytest.fixture
def bindings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Installs the stand-in; write to the path returned to change it."""
    path = tmp_path / "modules" / "guestfs.py"
    path.parent.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(path.parent))
    monkeypatch.setenv("SUPERMIN_KERNEL", "/dev/null")
    return path


def set_launch(path: Path, body: str) -> None:
    path.write_text(BINDINGS.replace("LAUNCH", body))


def attempt(scratch: Path, seconds: float = 30) -> None:
    options = Options(launch_timeout=seconds)
    with channel.opened(scratch, [], options) as link:
        appliancestart.wait(link, time.monotonic() + seconds, options)


def pid_in(path: Path) -> int:
    for _ in range(1200):
        if path.exists() and path.read_text().strip():
            return int(path.read_text())
        time.sleep(0.05)
    raise AssertionError(f"{path} was never written")


@pytest.mark.slow
def test_requests_are_answered_in_order_and_noise_does_no_harm(bindings: Path, tmp_path: Path) -> None:
    set_launch(bindings, "pass")
    options = Options()
    with channel.opened(tmp_path, [Drive(Path("/disk"))], options) as link:
        started = appliancestart.wait(link, time.monotonic() + 30, options)
        assert started.appliance == "stock"
        assert "'/disk'" in link.shell("true")
        assert "'cachemode': 'unsafe'" in link.shell("true")
        with pytest.raises(channel.ApplianceError, match="no such thing") as e:
            link.shell("fail")
        assert e.value.kind == "call"
        with pytest.raises(channel.ApplianceError, match="invalid start byte"):
            link.shell("binary")
        assert "bash -c" in link.shell("true"), "it goes on"
        link.close()
        with pytest.raises(channel.ApplianceError, match="there is no appliance"):
            link.shell("true")
        with pytest.raises(channel.ApplianceError, match="dance: no such operation"):
            link.ask({"op": "dance"})


def test_the_environment_of_the_process(bindings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that chooses another backend is left out; those that name the user's own programs are kept."""
    monkeypatch.setenv("LIBGUESTFS_BACKEND", "libvirt")
    monkeypatch.setenv("LIBGUESTFS_HV", "/opt/qemu")
    set_launch(bindings, "self.drives.append((sorted(os.environ.items()), {}))")
    with channel.opened(tmp_path, [], Options()) as link:
        appliancestart.wait(link, time.monotonic() + 30, Options())
        environment = link.shell("true")
    assert "('LIBGUESTFS_HV', '/opt/qemu')" in environment
    assert "LIBGUESTFS_BACKEND" not in environment
    assert "('LC_ALL', 'C.UTF-8')" in environment
    assert f"('TMPDIR', '{tmp_path}')" in environment
    assert f"('PYTHONPATH', '{bindings.parent}')" in environment


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cache", "variable", "value", "quick"),
    [
        (True, "IMGKIT_APPLIANCE", "", True),
        (True, "IMGKIT_APPLIANCE", "stock", False),
        (True, "LIBGUESTFS_PATH", "/opt/appliance", False),
        (False, "IMGKIT_APPLIANCE", "", False),
    ],
)
def test_whether_the_quick_appliance_is_asked_for(
    cache: bool,
    variable: str,
    value: str,
    quick: bool,
    bindings: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("IMGKIT_APPLIANCE", "LIBGUESTFS_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, value)
    set_launch(bindings, "pass")
    with channel.opened(tmp_path, [], Options(cache=tmp_path / "cache" if cache else None)) as link:
        assert link.quick is quick


def test_bindings_that_cannot_be_imported(bindings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bindings.write_text("raise ImportError('wrong ELF class')")
    monkeypatch.setenv("IMGKIT_GUESTFS_PYTHON", sys.executable)
    with pytest.raises(HostError, match=f"bindings cannot be imported by {sys.executable}.*wrong ELF class") as e:
        attempt(tmp_path)
    assert e.value.hint == "correct IMGKIT_GUESTFS_PYTHON, or unset it"


@pytest.mark.slow
def test_a_launch_that_fails_quotes_the_appliance(bindings: Path, tmp_path: Path) -> None:
    set_launch(
        bindings, 'self.callback(1, 0, "Kernel panic", []); raise RuntimeError("guestfs_launch failed\\nadvice")'
    )
    with pytest.raises(HostError, match="did not start: guestfs_launch failed; its last output: Kernel panic"):
        attempt(tmp_path)


@pytest.mark.slow
def test_a_missing_supermin_is_named(bindings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_launch(bindings, 'raise RuntimeError("guestfs_launch failed")')
    monkeypatch.setattr(channel, "_may_be_quick", lambda options: True)
    monkeypatch.setenv("PATH", str(tmp_path))
    options = Options(cache=tmp_path / "cache")
    with (
        pytest.raises(HostError, match="supermin: program not found") as e,
        channel.opened(tmp_path, [], options) as link,
    ):
        appliancestart.wait(link, time.monotonic() + 30, options)
    assert e.value.hint == "apt-get install supermin"


@pytest.mark.parametrize(
    ("cause", "failure"),
    [
        (TimeoutError(), "nothing within 7 s"),
        (HostError("the process died"), "the process died"),
        (channel.ApplianceError("launch", "no KVM", ""), "no KVM"),
    ],
)
def test_a_quick_appliance_that_fails_is_replaced(cause: Exception, failure: str) -> None:
    link = FakeLink([cause, {"seconds": 2.5}])
    start = appliancestart.wait(cast(Channel, link), time.monotonic(), Options(launch_timeout=7))
    assert start == appliancestart.Start("stock", 2.5, failure)
    assert link.restarted
    assert link.deadlines[1] > link.deadlines[0], "the second start has a time of its own"


@pytest.mark.parametrize("kind", ["bindings", "kernel"])
def test_what_no_appliance_can_do_without_is_an_error_at_once(kind: str) -> None:
    link = FakeLink([channel.ApplianceError(kind, "is not there", "")])
    with pytest.raises(EngineStartError, match="is not there"):
        appliancestart.wait(cast(Channel, link), 0.0, Options())
    assert not link.restarted


def test_a_quick_appliance_that_starts() -> None:
    link = FakeLink([{"seconds": 1.5}])
    assert appliancestart.wait(cast(Channel, link), 0.0, Options()) == appliancestart.Start("quick", 1.5)


@pytest.mark.parametrize(
    ("kind", "quick", "raises"),
    [("kernel", True, True), ("bindings", True, True), ("launch", True, False), ("launch", False, True)],
)
def test_a_look_at_a_start_that_is_under_way(kind: str, quick: bool, raises: bool) -> None:
    link = FakeLink([])
    link.quick, link.failed = quick, channel.ApplianceError(kind, "it is broken", "")
    with pytest.raises(EngineStartError, match="it is broken") if raises else nullcontext():
        appliancestart.check(cast(Channel, link))
    link.failed = None
    appliancestart.check(cast(Channel, link))


class FakeLink:
    """A channel whose answers, and failures, are known from the start."""

    def __init__(self, answers: list[object]) -> None:
        self.quick, self.restarted = True, False
        self.failed: channel.ApplianceError | None = None
        self.deadlines: list[float] = []
        self._answers = answers

    def take(self, deadline: float) -> object:
        self.deadlines.append(deadline)
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def restart_stock(self) -> None:
        self.quick, self.restarted = False, True

    def failure(self) -> channel.ApplianceError | None:
        return self.failed


@pytest.mark.slow
def test_a_launch_that_hangs_is_ended_with_all_its_processes(bindings: Path, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    set_launch(bindings, f'p = subprocess.Popen(["sleep", "99"]); open({str(note)!r}, "w").write(str(p.pid)); p.wait()')
    options = Options(launch_timeout=2)
    with channel.opened(tmp_path, [], options) as link:
        helper = pid_in(note)
        with pytest.raises(HostError, match="did not start within 2 s"):
            appliancestart.wait(link, time.monotonic() + 2, options)
    assert gone(helper, 30)


@pytest.mark.slow
def test_a_crash_in_the_library_is_an_error_not_a_crash(bindings: Path, tmp_path: Path) -> None:
    set_launch(bindings, 'os.write(2, b"free(): invalid pointer\\n"); os.abort()')
    with pytest.raises(HostError, match=r"was killed by SIGABRT: free\(\): invalid pointer"):
        attempt(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_a_killed_build(bindings: Path, tmp_path: Path, number: signal.Signals) -> None:
    note = tmp_path / "pid"
    set_launch(bindings, f'p = subprocess.Popen(["sleep", "99"]); open({str(note)!r}, "w").write(str(p.pid)); p.wait()')
    program = (
        "import sys\nfrom pathlib import Path\nimport tests.test_engine_process as me\nme.attempt(Path(sys.argv[1]))"
    )
    root = Path(__file__).parents[1]
    path = os.pathsep.join([str(bindings.parent), str(root)])
    with subprocess.Popen([sys.executable, "-c", program, tmp_path], env={**os.environ, "PYTHONPATH": path}) as build:
        helper = pid_in(note)
        build.send_signal(number)
        build.wait(60)
    assert gone(helper, 30)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_the_folders_of_its_sockets_go_with_it(bindings: Path, tmp_path: Path) -> None:
    """For root libguestfs makes them in /tmp. The process has time to remove them before it is killed."""
    with tempfile.TemporaryDirectory(prefix="ik-") as short:
        body = f'import socket, tempfile; self.folder = tempfile.mkdtemp(prefix="libguestfs", dir={short!r}); '
        body += 'self.socket = socket.socket(socket.AF_UNIX); self.socket.bind(self.folder + "/guestfsd.sock")'
        set_launch(bindings, body)
        other = Path(short) / "libguestfsother"
        other.mkdir()
        with channel.opened(tmp_path, [], Options()) as link:
            appliancestart.wait(link, time.monotonic() + 30, Options())
            assert len(list(Path(short).iterdir())) == 2
        assert list(Path(short).iterdir()) == [other], "that of somebody else stays"


@pytest.mark.slow
def test_it_outlives_the_thread_that_started_it(bindings: Path, tmp_path: Path) -> None:
    up = tmp_path / "up"
    set_launch(bindings, f"open({str(up)!r}, 'w').write('1'); time.sleep(2)")
    links: list[Channel] = []
    with ExitStack() as stack:

        def start() -> None:
            links.append(stack.enter_context(channel.opened(tmp_path, [], Options())))
            pid_in(up)  # until the kernel's parent-death signal, which watches this thread, is switched off again

        thread = threading.Thread(target=start)
        thread.start()
        thread.join()
        assert appliancestart.wait(links[0], time.monotonic() + 30, Options()).appliance == "stock"


def host_with(tmp_path: Path, kernels: dict[str, int]) -> tuple[Path, Path]:
    """Folders of kernels with these releases and modes, and their modules."""
    boot, modules = tmp_path / "boot", tmp_path / "modules"
    boot.mkdir()
    for release, mode in kernels.items():
        (modules / release).mkdir(parents=True)
        (boot / f"vmlinuz-{release}").touch(mode)
    return boot, modules


@pytest.fixture
def not_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """File modes count for root too."""
    monkeypatch.setattr(os, "access", lambda path, _mode: bool(Path(path).stat().st_mode & 0o004))


def test_the_newest_kernel_that_can_be_read_is_taken(not_root: None, tmp_path: Path) -> None:
    boot, modules = host_with(tmp_path, {"6.1.0-9-amd64": 0o644, "6.1.0-10-amd64": 0o644, "6.1.0-11-amd64": 0o600})
    assert hostkernel.choice({}, boot, modules) == {
        "SUPERMIN_KERNEL": str(boot / "vmlinuz-6.1.0-10-amd64"),
        "SUPERMIN_MODULES": str(modules / "6.1.0-10-amd64"),
    }
    (boot / "vmlinuz-6.1.0-11-amd64").chmod(0o644)
    assert hostkernel.choice({}, boot, modules) == {}, "supermin finds it by itself"
    (boot / "vmlinuz-6.1.0-12-amd64").touch(0o600)
    assert hostkernel.choice({}, boot, modules) == {}, "it has no modules"


def test_a_kernel_that_lies_with_its_modules(not_root: None, tmp_path: Path) -> None:
    """As Fedora has them."""
    boot, modules = host_with(tmp_path, {"6.1.0-9": 0o644, "6.1.0-11": 0o600})
    (modules / "6.1.0-10").mkdir()
    (modules / "6.1.0-10/vmlinuz").touch(0o644)
    assert hostkernel.choice({}, boot, modules) == {
        "SUPERMIN_KERNEL": str(modules / "6.1.0-10/vmlinuz"),
        "SUPERMIN_MODULES": str(modules / "6.1.0-10"),
    }


def test_no_kernel_or_none_that_can_be_read(not_root: None, tmp_path: Path) -> None:
    boot, modules = host_with(tmp_path, {})
    with pytest.raises(hostkernel.NoKernelError, match="no kernel in"):
        hostkernel.choice({}, boot, modules)
    other = tmp_path / "other"
    other.mkdir()
    boot, modules = host_with(other, {"6.1": 0o600})
    with pytest.raises(hostkernel.NoKernelError, match=r"vmlinuz-6\.1 is not readable"):
        hostkernel.choice({}, boot, modules)
    (other / "mine").touch(0o644)
    assert hostkernel.choice({"SUPERMIN_KERNEL": str(other / "mine")}, boot, modules) == {}, "the user knows"
    (other / "mine").chmod(0o600)
    with pytest.raises(hostkernel.NoKernelError, match=r"mine \(SUPERMIN_KERNEL\) is not readable$"):
        hostkernel.choice({"SUPERMIN_KERNEL": str(other / "mine")}, boot, modules)


def test_an_unreadable_kernel_has_its_own_error(tmp_path: Path) -> None:
    cause = channel.ApplianceError("kernel", "/boot/vmlinuz-6 is not readable", "")
    error = appliancestart.launch_error(cause)
    assert error.message == "libguestfs needs a kernel, and /boot/vmlinuz-6 is not readable by this user"
    assert "chmod 0644" in str(error.hint)
    assert "SUPERMIN_KERNEL" in str(error.hint)
    none = appliancestart.launch_error(channel.ApplianceError("kernel", "no kernel in /boot", ""))
    assert "linux-image" in str(none.hint)


@pytest.mark.parametrize(
    ("message", "program"),
    [
        ("guestfs_launch failed: /usr/bin/supermin: No such file or directory", "supermin"),
        ("cannot find qemu-system-x86_64: not found", "qemu-system-x86_64"),
    ],
)
def test_missing_programs_are_named(message: str, program: str) -> None:
    error = appliancestart.launch_error(channel.ApplianceError("launch", message, ""))
    assert error.message == f"{program}: program not found"
    assert "apt-get install" in str(error.hint)


def test_sockets_go_elsewhere_when_the_path_is_too_long(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)
    with channel._socket_folder(long) as folder:
        assert len(os.fsencode(folder)) < 80
        assert folder.is_dir()
    assert not folder.exists()
    with channel._socket_folder(Path("/tmp/short")) as folder:
        assert folder == Path("/tmp/short")
