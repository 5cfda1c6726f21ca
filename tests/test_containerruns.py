"""``imgkit run`` for container images, without starting anything."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pycdlib
import pytest

from imgkit.cli import containerruns
from imgkit.cli.main import main
from imgkit.disk.grub import BootFiles
from imgkit.disk.layout import Layout
from imgkit.engines.interface import ImageTarget
from imgkit.errors import HostError, InputError
from imgkit.fetch.cache import Cache
from imgkit.host.progress import Steps
from imgkit.image import containermachine
from imgkit.image.containermachine import ContainerMachine, MachineRequest, container_machine
from imgkit.image.firstprocess import DEFAULT_PATH
from imgkit.image.guestkernel import DEFAULT_RECIPE, GuestKernel, kernel_recipe
from imgkit.image.imagepaths import is_container_image, split_reference
from imgkit.oci.documents import parse_config
from imgkit.oci.ocilayout import OciLayout
from imgkit.recipe import Recipe
from imgkit.tree import Tree
from imgkit.vm.agent.protocol import parse_event
from tests.ociimages import ARM64, Entry, maker, tar
from tests.test_machinetree import EPOCH, KERNEL, agent_image, modules


@dataclass
class Engine:
    """Writes a disk that says what was asked for.

    Attributes:
        trees: the paths of each Tree that was written.
    """

    trees: list[set[str]] = field(default_factory=list)
    layouts: list[Layout] = field(default_factory=list)
    fails: bool = False

    @contextmanager
    def launch(self, scratch: Path, _size: int) -> Iterator[Any]:
        def write(tree: Tree, layout: Layout, boot: BootFiles, _steps: Steps) -> Any:
            if self.fails:
                raise HostError("no appliance")
            assert boot == BootFiles()
            self.trees.append(set(tree))
            self.layouts.append(layout)
            text = f"disk {len(self.trees)}"

            def save(target: ImageTarget, _steps: Steps) -> None:
                assert target.format == "raw"
                target.path.write_text(text)

            return SimpleNamespace(save=save)

        yield SimpleNamespace(prepare=self.layouts.append, write=write)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """Return the recipes by which kernels were fetched; none is really fetched."""
    fetched: list[Recipe] = []

    def fetch(recipe: Recipe, arch: str, *_: object, **__: object) -> GuestKernel:
        fetched.append(recipe)
        return GuestKernel(modules(), KERNEL, b"kernel " + arch.encode(), b"initramfs", EPOCH)

    monkeypatch.setattr(containermachine, "fetch_kernel", fetch)
    return fetched


def image(place: Path, *entries: Entry, config: dict[str, Any] | None = None, **options: Any) -> Path:
    made = maker(place, config={"config": {"Cmd": ["x"], **(config or {})}}, **options)
    made.layout.write_index([made.image(tar(*entries))])
    return place


def request(layout: Path, folder: Path, engine: Engine, **changes: Any) -> MachineRequest:
    given = {"recipe": DEFAULT_RECIPE, "cache": Cache(folder), **changes}
    return MachineRequest(layout=OciLayout.open(layout), arch="amd64", engine=engine.launch, **given)


# ---- the cache -------------------------------------------------------------------------------------------------------


def test_a_machine_is_made_once(tmp_path: Path, kernels: list[Recipe]) -> None:
    layout = image(tmp_path / "a.oci", Entry("etc/passwd", b"web:x:5:6::/:/x\n"), Entry("usr/x"))
    engine = Engine()
    for _ in range(2):
        with container_machine(request(layout, tmp_path / "cache", engine)) as machine:
            assert machine.disk.read_text() == "disk 1"
            assert (machine.kernel.read_bytes(), machine.initramfs.read_bytes()) == (b"kernel amd64", b"initramfs")
            assert machine.arguments == "imgkit_modules=lib/modules"
            assert machine.config.runtime.Cmd == ["x"]
            assert machine.accounts.text("etc/passwd") == "web:x:5:6::/:/x\n"
            assert "etc/group" not in machine.accounts
            assert not machine.agent
    assert len(engine.trees) == len(kernels) == 1
    assert {"usr/x", "proc", "lib/modules/6.1-virt/kernel/ext4.ko.gz"} <= engine.trees[0]
    assert engine.layouts[0] == engine.layouts[1]
    assert engine.layouts[0].size_bytes == 16 << 30
    assert [part.kind for part in engine.layouts[0].partitions] == ["root"]


def test_what_makes_another_machine(tmp_path: Path, kernels: list[Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = image(tmp_path / "a.oci", Entry("a")), image(tmp_path / "b.oci", Entry("b"))
    other = DEFAULT_RECIPE.model_copy(update={"branch": "v3.22"})
    engine = Engine()
    for layout, recipe in ((first, DEFAULT_RECIPE), (second, DEFAULT_RECIPE), (second, other)):
        with container_machine(request(layout, tmp_path / "cache", engine, recipe=recipe)):
            pass
    assert len(kernels) == 3
    monkeypatch.setattr(containermachine, "init_version", lambda: "new")
    with container_machine(request(first, tmp_path / "cache", engine)):
        assert len(kernels) == 4


@pytest.mark.parametrize(("age", "offline", "made"), [(-60, False, 1), (60, False, 2), (60, True, 1)])
def test_a_newer_kernel_is_looked_for_after_a_week(
    age: float, offline: bool, made: int, tmp_path: Path, kernels: list[Recipe]
) -> None:
    layout, engine = image(tmp_path / "a.oci", Entry("a")), Engine()
    with container_machine(request(layout, tmp_path / "cache", engine)) as machine:
        then = time.time() - containermachine.KERNEL_AGE - age
        os.utime(machine.disk.parent / "machine.json", (then, then))
    with container_machine(
        request(layout, tmp_path / "cache", engine, cache=Cache(tmp_path / "cache", offline=offline))
    ):
        assert len(kernels) == len(engine.trees) == made


def test_a_kernel_that_cannot_be_fetched_anew(
    tmp_path: Path, kernels: list[Recipe], caplog: pytest.LogCaptureFixture
) -> None:
    """The machine that is there is used, and for an hour nothing is tried again."""
    layout = image(tmp_path / "a.oci", Entry("a"))
    with container_machine(request(layout, tmp_path / "cache", Engine())) as machine:
        os.utime(machine.disk.parent / "machine.json", (0, 0))
    for _ in range(2):
        with container_machine(request(layout, tmp_path / "cache", Engine(fails=True))) as machine:
            assert machine.disk.read_text() == "disk 1"
    assert len(kernels) == 2
    (message,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert message == "no newer kernel was found, so that of an earlier run is used: no appliance"


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    layout = image(tmp_path / "a.oci", Entry("a"))
    with (
        pytest.raises(HostError, match="machines: Not a directory") as caught,
        container_machine(request(layout, tmp_path / "file", Engine())),
    ):
        pass
    assert caught.value.hint == "set IMGKIT_CACHE to a folder that can be written"


def test_a_failure_leaves_nothing(tmp_path: Path, kernels: list[Recipe]) -> None:
    layout = image(tmp_path / "a.oci", Entry("a"))
    with (
        pytest.raises(HostError, match="no appliance"),
        container_machine(request(layout, tmp_path / "cache", Engine(fails=True))),
    ):
        pass
    assert [path.suffix for path in (tmp_path / "cache/machines").iterdir()] == [".lock"]
    assert len(kernels) == 1


def test_the_machines_that_were_used_last_are_kept(
    tmp_path: Path, kernels: list[Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containermachine, "MOST_MACHINES", 2)
    engine, disks = Engine(), []
    with container_machine(request(image(tmp_path / "0.oci", Entry("0")), tmp_path / "cache", engine)) as used:
        os.utime(used.disk.parent, (1, 1))
        for number in range(1, 4):
            layout = image(tmp_path / f"{number}.oci", Entry(str(number)))
            with container_machine(request(layout, tmp_path / "cache", engine)) as machine:
                disks.append(machine.disk)
            os.utime(machine.disk.parent, (number * 10, number * 10))
        assert [disk.exists() for disk in disks] == [False, True, True]
        assert used.disk.exists()
    assert len(kernels) == 4


def test_damaged_records(tmp_path: Path, kernels: list[Recipe]) -> None:
    layout, engine = image(tmp_path / "a.oci", Entry("a")), Engine()
    with container_machine(request(layout, tmp_path / "cache", engine)) as machine:
        record = machine.disk.parent / "machine.json"
    record.write_text('{"version": 1}')
    with (
        pytest.raises(InputError) as caught,
        container_machine(request(layout, tmp_path / "cache", engine)),
    ):
        pass
    assert caught.value.hint == "remove its folder: the machine is then made anew"
    assert len(kernels) == 1


def test_the_recipe_of_a_kernel_has_nothing_else() -> None:
    recipe = kernel_recipe(DEFAULT_RECIPE, "arm64", "linux-virt")
    assert recipe.wanted("arm64", "disk") == ("linux-virt",)
    assert list(recipe.architectures) == ["arm64"]
    assert recipe.branch == DEFAULT_RECIPE.branch


# ---- the command -----------------------------------------------------------------------------------------------------


@dataclass
class Asked:
    """What the command asked for.

    Attributes:
        requests: the machines that were to be made.
        specs: the machines that were to be booted, and how.
    """

    requests: list[MachineRequest] = field(default_factory=list)
    specs: list[tuple[Any, dict[str, Any]]] = field(default_factory=list)


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Asked]:
    """Return a function that says which image the machine has, and returns what is asked for from then on."""

    def prepare(*, agent: bool = False, **config: Any) -> Asked:
        seen = Asked()
        accounts = Tree()
        accounts.write("etc/passwd", "web:x:5:6::/w:/bin/sh\n")
        layout = image(tmp_path / "made.oci", config=config)
        with container_machine_of(layout, tmp_path, accounts, agent=agent) as made:

            @contextmanager
            def machine(request: MachineRequest) -> Iterator[ContainerMachine]:
                seen.requests.append(request)
                yield made

            @contextmanager
            def boot(spec: Any, **options: Any) -> Iterator[Any]:
                seen.specs.append((spec, options))
                body = {"type": "sdk_event", "event": {"type": "result", "subtype": "error", "exitCode": 3}}
                result = parse_event(json.dumps(body).encode())
                yield SimpleNamespace(
                    follow=lambda write, **_: (write("stdout", b"out\n"), write("stderr", b"err\n"), 7)[2],
                    request=lambda **_: nullcontext([result]),
                    kill=lambda: None,
                )

            monkeypatch.setattr(containerruns, "container_machine", machine)
            monkeypatch.setattr(containerruns, "engine_for", lambda choice: f"engine {choice}")
            monkeypatch.setattr(containerruns, "EntryMachine", SimpleNamespace(boot=boot))
            monkeypatch.setattr(containerruns, "VM", SimpleNamespace(boot=boot))
            return seen

    return prepare


def container_machine_of(layout: Path, folder: Path, accounts: Tree, *, agent: bool) -> Any:
    """Return a machine whose files are empty."""
    for name in ("disk", "kernel", "initramfs"):
        (folder / name).touch()
    opened = OciLayout.open(layout)
    manifest = json.loads(opened.read(opened.index().manifests[0].value))
    config = parse_config(opened.path(manifest["config"]["digest"]).read_bytes(), "config")
    parts = (folder / "disk", folder / "kernel", folder / "initramfs", "imgkit_modules=m")
    return nullcontext(ContainerMachine(*parts, config, accounts, agent))


def drive(spec: Any) -> dict[str, str]:
    """Return the files of a config drive."""
    iso = pycdlib.PyCdlib()
    iso.open_fp(BytesIO(spec.config))
    found = {}
    for folder, _, files in iso.walk(rr_path="/"):
        for name in files:
            sink = BytesIO()
            iso.get_file_from_iso_fp(sink, rr_path=f"{folder.rstrip('/')}/{name}")
            found[f"{folder.rstrip('/')}/{name}"] = sink.getvalue().decode()
    iso.close()
    return found


def run(layout: Path, *words: str, command: Sequence[str] = ()) -> int:
    return main(["run", str(layout), *words, *(["--", *command] if command else [])])


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    return image(tmp_path / "a.oci")


def test_an_image_without_agentd_runs_its_program(
    layout: Path, asked: Callable[..., Asked], tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    seen = asked(Entrypoint=["e"], Cmd=["c"], Env=["A=1", "B=2"], User="web", WorkingDir="/srv", StopSignal="SIGINT")
    (tmp_path / "key").write_text("s e")
    words = ("--env", "B=3", "--secret", f"K={tmp_path}/key", "--cpus", "3", "--timeout", "9", "--arch", "amd64")
    assert run(layout, *words, "--share", f"data={tmp_path}:ro", command=["x", "y z"]) == 7
    assert capfdbinary.readouterr() == (b"out\n", b"err\n")
    ((spec, options),) = seen.specs
    assert options == {"timeout": 9.0, "stop_signal": 2, "takes_input": False}
    assert (spec.image, spec.kernel, spec.initrd) == (tmp_path / "disk", tmp_path / "kernel", tmp_path / "initramfs")
    assert (spec.arch, spec.firmware, spec.format, spec.cpus) == ("amd64", "direct", "raw", 3)
    assert spec.command_line == "console=ttyS0,115200 quiet no_timer_check tsc=unstable imgkit_modules=m"
    assert (dict(spec.shares), set(spec.read_only)) == ({"data": tmp_path}, {"data"})
    assert drive(spec) == {
        "/machine/run": "mode=once\nhostname=sandbox\nshares=data\nwork=\nuid=5\ngid=6\naccount=named\nlogin=web\n"
        f"cwd=/srv\nset -- env -i PATH={DEFAULT_PATH} HOME=/w A=1 B=3 'K=s e' e x 'y z'\n"
    }
    assert seen.requests[0].recipe == DEFAULT_RECIPE
    assert not seen.requests[0].cache.offline


def test_a_folder_to_work_in(layout: Path, asked: Callable[..., Asked], tmp_path: Path) -> None:
    for words in (("--work", str(tmp_path)), ("--share", f"work={tmp_path}")):
        seen = asked(WorkingDir="/srv")
        assert run(layout, *words) == 7
        settings = drive(seen.specs[0][0])["/machine/run"]
        assert "\nshares=''\nwork=workspace/project\n" in settings
        assert "\ncwd=/workspace/project\n" in settings
        assert dict(seen.specs[0][0].shares) == {"work": tmp_path}


@pytest.mark.parametrize(
    ("words", "command", "argv"),
    [
        ((), (), "e c"),
        (("--entrypoint", "p"), (), "p"),
        (("--entrypoint", "p"), ("x",), "p x"),
        (("--entrypoint", ""), ("x",), "x"),
    ],
)
def test_entry_points(
    words: tuple[str, ...], command: tuple[str, ...], argv: str, layout: Path, asked: Callable[..., Asked]
) -> None:
    seen = asked(Entrypoint=["e"], Cmd=["c"])
    assert run(layout, *words, command=command) == 7
    assert drive(seen.specs[0][0])["/machine/run"].endswith(f" HOME=/ {argv}\n")


def test_an_image_with_agentd_gets_requests(layout: Path, asked: Callable[..., Asked], tmp_path: Path) -> None:
    seen = asked(agent=True)
    assert run(layout, "--env", "A=b", "--work", str(tmp_path), command=["x"]) == 3
    ((spec, options),) = seen.specs
    assert options == {"timeout": 180.0, "settle": True}
    assert drive(spec) == {"/env.json": '{"A": "b"}', "/machine/run": "mode=agentd\nhostname=sandbox\n"}
    assert dict(spec.shares) == {"work": tmp_path}
    assert run(layout, "--entrypoint", "p", command=["x"]) == 7  # the program in place of agentd
    assert "mode=once" in drive(seen.specs[1][0])["/machine/run"]


def test_the_kernel_is_a_recipes(layout: Path, asked: Callable[..., Asked], tmp_path: Path) -> None:
    seen = asked()
    key = tmp_path / "key.asc"
    key.touch()
    words = ("--mirror", "http://mirror.example", "--release-key", str(key), "--offline")
    assert run(layout, *words) == 7
    assert (seen.requests[0].recipe.mirror, seen.requests[0].recipe.release_key) == ("http://mirror.example", key)
    assert seen.requests[0].cache.offline
    recipe = Path(__file__).parents[1] / "recipes/core.py"
    assert run(layout, "--recipe", str(recipe), *words) == 7
    assert (seen.requests[1].recipe.name, seen.requests[1].recipe.mirror) == ("linux", "http://mirror.example")


@pytest.mark.parametrize(
    ("agent", "words", "command", "message"),
    [
        (False, ("--prompt", "do"), (), "there is no agentd in this image that could take a prompt"),
        (True, (), (), "give a command or a prompt"),
        (True, ("--prompt", "do"), ("x",), "give a command or a prompt, not both"),
        (False, ("--firmware", "uefi"), (), "a container image has no boot loader that uefi could start"),
        (False, ("--machine", "microvm", "--arch", "arm64"), (), "QEMU has no machine microvm for arm64"),
        (False, ("--work", ""), (), "--work: no folder given"),
    ],
)
def test_what_is_refused(
    agent: bool,
    words: tuple[str, ...],
    command: tuple[str, ...],
    message: str,
    layout: Path,
    asked: Callable[..., Asked],
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen = asked(agent=agent)
    assert run(layout, *words, command=command) == 2
    assert f"error: {message}" in capsys.readouterr().err
    assert not seen.specs


def test_an_image_for_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IMGKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(containerruns, "engine_for", lambda choice: f"engine {choice}")
    place = image(tmp_path / "arm.oci", platform=ARM64)
    assert run(place, "--arch", "amd64") == 4
    assert "has no image for linux/amd64, but linux/arm64" in capsys.readouterr().err


def test_one_of_several_images(tmp_path: Path, asked: Callable[..., Asked]) -> None:
    place = image(tmp_path / "a.oci")
    seen = asked()
    assert run(Path(f"{place}:1.2")) == run(place) == 7
    assert [(made.layout.folder, made.reference) for made in seen.requests] == [(place, "1.2"), (place, "")]
    odd = image(tmp_path / "b:c")
    assert split_reference(odd) == (odd, "")
    assert split_reference(Path("x:/y")) == (Path("x:/y"), "")
    assert not is_container_image(Path("linux.qcow2"))


def test_a_tag_that_is_not_there(tmp_path: Path, kernels: list[Recipe]) -> None:
    layout = image(tmp_path / "a.oci", Entry("a"))
    with (
        pytest.raises(InputError, match=r"has no image 1\.2"),
        container_machine(request(layout, tmp_path / "cache", Engine(), reference="1.2")),
    ):
        pass
    assert not kernels


def test_what_is_no_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path) == 4
    assert "not an OCI image layout" in capsys.readouterr().err
    (tmp_path / "x.tar").write_bytes(b"no tar")
    assert run(tmp_path / "x.tar") == 4


def test_agentd_is_found_in_the_layers(tmp_path: Path, kernels: list[Recipe]) -> None:
    tree = agent_image()
    entries = [Entry(path) for path, node in tree.items() if hasattr(node, "content")]
    layout = image(tmp_path / "a.oci", *entries, Entry("bin/setpriv"), Entry("bin/sh"))
    with container_machine(request(layout, tmp_path / "cache", Engine())) as machine:
        assert machine.agent
    assert len(kernels) == 1
