"""A boot specification is resolved to the machine that QEMU is started with; nothing is started here."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import imgkit.vm
from imgkit.errors import HostError, UsageError
from imgkit.vm import VM, BootSpec, bootspec, starting
from imgkit.vm.bootspec import resolve
from imgkit.vm.qemu import firmware, launch, probe
from imgkit.vm.qemu.argv import Disk, Share, VmSpec
from imgkit.vm.qemu.machines import host_arch
from imgkit.vm.qemu.probe import Accelerator
from imgkit.vm.sandbox import confinement, identity
from imgkit.vm.sandbox.identity import Identity
from imgkit.vm.shares import idmap, specialbits
from tests.files import public
from tests.vmspecs import extra

TCG = Accelerator("tcg", "max,erms=off", "as requested")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the private folder of a machine."""
    path = tmp_path / "private"
    path.mkdir()
    return path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "linux-amd64.img"
    path.write_bytes(bytes(512))
    return path


def test_an_image_alone_has_defaults_for_the_rest(image: Path, folder: Path) -> None:
    assert resolve(BootSpec(str(image)), TCG, folder) == VmSpec(
        arch="amd64",
        disk=Disk(image, "raw"),
        console=folder / "console.log",
        accelerator="tcg,thread=multi",
        cpu="max,erms=off",
        shares=(Share("ipc", folder / "ipc"),),
        sandbox=sys.platform == "linux",
    )
    assert (folder / "ipc").is_dir()
    assert [path.name for path in folder.iterdir()] == ["ipc"]


def test_a_microvm_is_booted_directly(image: Path, folder: Path, tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"MZ\0\0other")
    resolved = resolve(BootSpec(image, arch="amd64", machine="microvm", kernel=kernel), TCG, folder)
    assert (resolved.machine, resolved.firmware, resolved.flash) == ("microvm", "direct", None)
    with pytest.raises(UsageError, match="the machine microvm has no bios"):
        resolve(BootSpec(image, arch="amd64", machine="microvm", firmware="bios"), TCG, folder)
    with pytest.raises(UsageError, match="QEMU has no machine microvm for arm64"):
        resolve(BootSpec(image, arch="arm64", machine="microvm"), TCG, folder)


def test_every_field_has_its_place(image: Path, folder: Path, tmp_path: Path) -> None:
    kernel, initrd = tmp_path / "kernel", tmp_path / "initrd"
    kernel.write_bytes(b"MZ\0\0other")
    initrd.touch()
    for name in ("data", "ipc"):
        (tmp_path / name).mkdir()
    spec = BootSpec(
        image,
        arch="arm64",
        firmware="direct",
        kernel=str(kernel),
        initrd=str(initrd),
        command_line="quiet",
        cpus=3,
        cpu="cortex-a57",
        shares={"data": str(tmp_path / "data"), "ipc": tmp_path / "ipc"},
        read_only=["data"],
        config=b"secret",
        network="none",
        format="qcow2",
        console=str(tmp_path / "console"),
    )
    assert resolve(spec, Accelerator("kvm", "host", ""), folder) == VmSpec(
        arch="arm64",
        disk=Disk(image, "qcow2"),
        console=tmp_path / "console",
        firmware="direct",
        kernel=kernel,
        initrd=initrd,
        command_line="quiet",
        cpus=3,
        accelerator="kvm",
        cpu="cortex-a57",
        shares=(Share("data", tmp_path / "data", read_only=True), Share("ipc", tmp_path / "ipc")),
        config=folder / "config.iso",
        network=False,
        sandbox=sys.platform == "linux",
    )
    assert (folder / "config.iso").read_bytes() == b"secret"
    assert (folder / "config.iso").stat().st_mode & 0o777 == 0o600
    assert not (folder / "ipc").exists()


def test_serial_mode_has_no_share_for_requests(folder: Path) -> None:
    assert resolve(BootSpec(None, arch="amd64", ipc="serial"), TCG, folder).shares == ()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(("network", "card"), [("user", True), ("none", False), ("restricted", False)])
def test_only_the_user_network_is_qemus_own(network: Any, card: bool, folder: Path) -> None:
    assert resolve(BootSpec(None, arch="amd64", network=network), TCG, folder).network == card


def test_uefi_has_a_private_variable_store(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in firmware.CANDIDATES["amd64"][0]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    monkeypatch.setenv(firmware.OVERRIDE, str(tmp_path))
    resolved = resolve(BootSpec(None, arch="amd64", firmware="uefi"), TCG, folder)
    assert resolved.firmware == "uefi"
    assert resolved.flash is not None
    assert resolved.flash.code == tmp_path / firmware.CANDIDATES["amd64"][0][0]
    assert resolved.flash.variables == folder / "vars.fd"


def test_arm64_boots_by_uefi_unless_told_otherwise(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(firmware.OVERRIDE, str(tmp_path))
    with pytest.raises(HostError, match="no UEFI firmware for arm64"):
        resolve(BootSpec(None, arch="arm64"), TCG, folder)


def test_the_architecture_is_the_images_or_the_hosts() -> None:
    assert BootSpec("/x/linux-arm64.qcow2").architecture == "arm64"
    assert BootSpec("/x/linux-arm64.qcow2", arch="amd64").architecture == "amd64"
    assert BootSpec(None).architecture == host_arch()


@pytest.mark.parametrize(("name", "message"), [("none", "none, zzz: no share"), ("ipc", "ipc, zzz: no share")])
def test_all_wrong_names_of_read_only_shares_are_named(name: str, message: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    spec = BootSpec(None, arch="amd64", shares={"data": tmp_path / "data"}, read_only={"zzz", name, "data"})
    with pytest.raises(UsageError, match=f"^{message} that can be read-only$"):
        resolve(spec, TCG, folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ipc": "telepathy"}, "telepathy: unknown way to talk to agentd"),
        ({"network": "wifi"}, "wifi: unknown network"),
        ({"allow": ["a.example"]}, "--allow is for a restricted network"),
    ],
)
def test_nonsense_is_refused_as_soon_as_it_is_written(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        BootSpec(None, **fields)
    assert caught.value.message == message
    assert caught.value.hint


def test_a_function_of_the_callers_has_the_last_word(image: Path, folder: Path) -> None:
    spec = BootSpec(image, adapt=lambda resolved: replace(resolved, extra=("-S",), console=Path("/c")))
    resolved = resolve(spec, TCG, folder)
    assert (resolved.extra, resolved.console, resolved.disk) == (("-S",), Path("/c"), Disk(image, "raw"))


# ---- VM.boot ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def fake_qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a QEMU on PATH that ends at once and gives its arguments as the reason."""
    program = tmp_path / "bin" / "qemu-system-x86_64"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$@" >&2\nexit 1\n')
    program.chmod(0o755)
    public(tmp_path)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")


def refusal(*arguments: Any, **keywords: Any) -> str:
    """Return the arguments that the fake QEMU refused."""
    with (
        pytest.raises(HostError, match="QEMU does not start") as caught,
        VM.boot(*arguments, accelerator="tcg", **keywords),
    ):
        pass
    return caught.value.message


@pytest.mark.slow
@pytest.mark.usefixtures("fake_qemu")
def test_an_image_with_keywords_or_a_specification(image: Path) -> None:
    """Keywords are fields of the specification, and replace those of a specification that is given."""
    for call in (refusal(image, cpus=7), refusal(BootSpec(image, cpus=7)), refusal(BootSpec(image, cpus=3), cpus=7)):
        assert " -smp 7 " in call
    assert " -smp 2 " in refusal(str(image))
    assert refusal(image, adapt=extra("-name", "mine")).endswith(" -name mine")
    assert " -cpu mine " in refusal(image, adapt=lambda resolved: replace(resolved, cpu="mine"))


@pytest.mark.slow
@pytest.mark.usefixtures("fake_qemu")
def test_an_accelerator_that_qemus_user_cannot_use_is_replaced(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def allowed(*arguments: Any) -> Accelerator:
        asked.append(arguments)
        return Accelerator("tcg", "slow", "no kvm: closed")

    monkeypatch.setattr(probe, "allowed", allowed)
    assert " -accel tcg,thread=multi,tb-size=64 -cpu slow " in refusal(image)
    assert " -cpu qemu64 " in refusal(image, cpu="qemu64")
    assert [arguments[1:3] for arguments in asked] == [("amd64", "tcg")] * 2


def test_keywords_that_are_no_fields_are_refused(image: Path) -> None:
    with pytest.raises(TypeError, match="memory"), VM.boot(image, memory=512):
        pass
    with pytest.raises(TypeError, match="memory"), VM.boot(BootSpec(image), memory=512):
        pass


@pytest.mark.slow
@pytest.mark.usefixtures("fake_qemu")
def test_memory_is_as_asked_for_or_what_the_host_has(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert " -m 77 " in refusal(image, memory_mib=77)
    monkeypatch.setattr(launch, "MEMORY_STEPS", (55,))
    assert " -m 55 " in refusal(image)


@pytest.mark.slow
@pytest.mark.usefixtures("fake_qemu")
def test_a_restricted_network_is_a_socket(image: Path) -> None:
    assert " -netdev socket,id=net0,fd=" in refusal(image, network="restricted", allow=["a.example:443"])
    assert " -netdev user," in refusal(image)
    assert "-netdev" not in refusal(image, network="none")


def test_without_a_filter_of_system_calls_shares_are_swept(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shares = (Share("ipc", tmp_path / "a"), Share("ro", tmp_path / "b", read_only=True), Share("gone", tmp_path / "c"))

    def drop(folder: Path, *, since: float) -> list[Path]:
        if folder.name == "c":
            raise FileNotFoundError(2, "No such file")
        return [folder / "setuid"]

    monkeypatch.setattr(confinement, "filters_system_calls", lambda: False)
    monkeypatch.setattr(specialbits, "drop_special_bits", drop)
    with ExitStack() as stack:
        resolved = VmSpec("amd64", None, tmp_path / "console", shares=shares)
        assert starting._shown(resolved, None, tmp_path, stack) == shares
        assert caplog.messages == [], "when the machine is over"
    assert caplog.messages == [
        f"{tmp_path}/c: could not be searched for set-user-id programs of the guest: No such file",
        f"{tmp_path}/a/setuid: the guest had made this a set-user-id program or a device, which imgkit has undone",
    ]


# ---- what QEMU is started with ---------------------------------------------------------------------------------------


@dataclass
class Launches:
    """Stands in for QEMU's start: what it was asked for, and what was there by then."""

    spec: VmSpec | None = None
    options: dict[str, Any] = field(default_factory=dict)
    there: set[str] = field(default_factory=set)

    @contextmanager
    def launched(self, spec: VmSpec, folder: Path, **options: Any) -> Iterator[SimpleNamespace]:
        self.spec, self.options = spec, options
        self.there = {
            str(path.relative_to(share.path))
            for share in spec.shares
            if share.tag == "ipc"
            for path in share.path.iterdir()
        }
        yield SimpleNamespace(child=SimpleNamespace(pid=os.getpid(), poll=lambda: None), stderr=folder / "stderr")


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    record = Launches()
    monkeypatch.setattr(launch, "launched", record.launched)
    monkeypatch.setattr(identity, "choose_user", lambda *_, **__: None)
    return record


def test_the_request_share_is_ready_before_the_guest_is(tmp_path: Path, launches: Launches) -> None:
    """A heartbeat of an earlier machine would count as the new one's."""
    shares = {name: tmp_path / name for name in ("data", "ipc", "work")}
    for path in shares.values():
        path.mkdir()
    (tmp_path / "ipc/heartbeat").touch()
    with starting.started(BootSpec(None, arch="amd64", shares=shares), TCG):
        assert launches.there == {"requests", "streams", "responses", "inputs"}
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize(("ipc", "ports"), [("file", []), ("serial", ["ipc.0"])])
def test_the_port_of_requests(ipc: Any, ports: list[str], launches: Launches) -> None:
    with starting.started(BootSpec(None, arch="amd64", ipc=ipc), TCG):
        assert launches.options["ports"] == ports
        assert launches.there == ({"requests", "streams", "responses", "inputs"} if ipc == "file" else set())


@pytest.mark.parametrize(("asked", "tried"), [(None, (4096, 2048, 1024)), (77, (77,))])
def test_sizes_of_memory(asked: int | None, tried: tuple[int, ...], launches: Launches) -> None:
    with starting.started(BootSpec(None, arch="amd64", memory_mib=asked), TCG):
        assert launches.options["memory"] == tried


def test_what_a_started_machine_consists_of(launches: Launches) -> None:
    spec = BootSpec(None, arch="amd64")
    with starting.started(spec, TCG) as machine:
        assert (machine.spec, machine.accelerator) == (spec, TCG)
        assert launches.spec is not None
        assert launches.spec.log == machine.console.writing
        assert launches.options["user"] is None
        (thread,) = (thread for thread in threading.enumerate() if thread.name == "imgkit-quotas")
        assert machine.monitor._thread is thread, "the quotas are watched"
    assert not thread.is_alive()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(launches.spec.log)


@pytest.mark.parametrize("accelerator", [TCG, Accelerator("kvm", "host", "it passed the timed probe")])
@pytest.mark.parametrize("shared", [False, True])
def test_who_runs_qemu(
    accelerator: Accelerator, shared: bool, tmp_path: Path, launches: Launches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner of the folder to work in, who has access to the accelerator, in a namespace of its own."""
    (tmp_path / "work").mkdir()
    somebody, alone = Identity(4711, 4712), Identity(4711, 4712, (), 9, (4711, 4712))
    asked: list[tuple[Path | None, Path | None]] = []
    lent: list[tuple[Path, Identity, bool]] = []
    owned: list[tuple[Path, int, int]] = []

    def choose(work: Path | None, *, device: Path | None = None) -> Identity:
        asked.append((work, device))
        return somebody

    @contextmanager
    def view(folder: Path, user: Identity, *, read_only: bool = False) -> Iterator[int]:
        lent.append((folder, user, read_only))
        yield 9

    monkeypatch.setattr(identity, "choose_user", choose)
    monkeypatch.setattr(probe, "allowed", lambda chosen, *_: chosen)
    monkeypatch.setattr(idmap, "in_user_namespace", lambda user: nullcontext(alone if user == somebody else None))
    monkeypatch.setattr(idmap, "idmapped_view", view)
    monkeypatch.setattr(os, "chown", lambda path, uid, gid: owned.append((path, uid, gid)))
    shares = {"work": tmp_path / "work", "data": tmp_path} if shared else {}
    read_only = ["data"] if shared else []
    with starting.started(BootSpec(None, arch="amd64", shares=shares, read_only=read_only), accelerator):
        assert launches.options["user"] == alone
        assert launches.spec is not None
        ipc, *others = launches.spec.shares
        assert (ipc.tag, ipc.view) == ("ipc", None)
        assert owned == [(ipc.path, 4711, 4712)], "the private share becomes the user's"
        assert [share.view for share in others] == [9] * len(shares)
    assert asked == [(tmp_path / "work" if shared else None, Path("/dev/kvm") if accelerator.name == "kvm" else None)]
    assert lent == ([(tmp_path / "work", alone, False), (tmp_path, alone, True)] if shared else [])


def test_shares_are_swept_for_what_changed_since_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[float] = []

    def drop(_: Path, *, since: float) -> list[Path]:
        times.append(since)
        raise OSError("strange")

    before = time.time()
    shares = (Share("a", tmp_path), Share("b", tmp_path, read_only=True))
    resolved = VmSpec("amd64", None, tmp_path / "console", shares=shares)
    monkeypatch.setattr(specialbits, "drop_special_bits", drop)
    for filters, swept in ((True, 0), (False, 1)):
        monkeypatch.setattr(confinement, "filters_system_calls", lambda filters=filters: filters)
        with ExitStack() as stack:
            starting._shown(resolved, None, tmp_path, stack)
            after = time.time()
        assert len(times) == swept
    assert before <= times[0] <= after


def test_why_a_share_could_not_be_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The reason is what the system says, or else the error itself."""
    reasons = iter([OSError(2, "No such file"), OSError("was moved while it was read")])

    def drop(_: Path, *, since: float) -> list[Path]:
        raise next(reasons)

    monkeypatch.setattr(specialbits, "drop_special_bits", drop)
    for _ in range(2):
        starting._sweep(tmp_path, 0.0)
    text = f"{tmp_path}: could not be searched for set-user-id programs of the guest:"
    assert caplog.messages == [f"{text} No such file", f"{text} was moved while it was read"]


# ---- the public names ------------------------------------------------------------------------------------------------


def test_the_example_of_the_package_uses_public_names_only() -> None:
    text = imgkit.vm.__doc__ or ""
    code = "\n".join(line[4:] for line in text.split("\n") if line.startswith("    "))
    (names,) = [line.removeprefix("from imgkit.vm import ") for line in code.split("\n") if "import" in line]
    assert set(names.split(", ")) <= set(imgkit.vm.__all__)
    compile(code, "example", "exec")


def test_every_public_name_is_there() -> None:
    assert all(hasattr(imgkit.vm, name) for name in imgkit.vm.__all__)
    assert bootspec.BootSpec is imgkit.vm.BootSpec
