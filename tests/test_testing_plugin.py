"""The pytest plugin, run in pytest runs of its own against a machine that is not there."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest_plugins = ["pytester"]

FAKE = """
    import contextlib
    import pytest
    import imgkit.vm

    class FakeVM:
        seen = []

        def __init__(self, image, options):
            self.image, self.options = image, options

        def console(self):
            return "first line\\nKernel says hello\\n"

        @classmethod
        @contextlib.contextmanager
        def boot(cls, image, **options):
            cls.seen.append(("up", str(image)))
            yield cls(image, options)
            cls.seen.append(("down", str(image)))

    @pytest.fixture(autouse=True, scope="session")
    def fake():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(imgkit.vm, "VM", FakeVM)
            yield FakeVM
"""


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest(FAKE)
    return pytester


def test_machines_live_as_long_as_their_test(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        """
        def test_one(boot_image, fake):
            a, b = boot_image("a"), boot_image("b", arch="arm64", memory_mib=256)
            assert a.options == {}
            assert b.options == {"arch": "arm64", "memory_mib": 256}
            assert fake.seen == [("up", "a"), ("up", "b")]

        def test_two(boot_image_session, fake):
            assert fake.seen[2:] == [("down", "b"), ("down", "a")]
            boot_image_session("s")

        def test_three(fake):
            assert fake.seen[4:] == [("up", "s")]
        """
    )
    suite.runpytest_inprocess("-p", "no:randomly").assert_outcomes(passed=3)


def test_options_are_defaults(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        """
        def test_one(imgkit_vm, boot_image):
            assert str(imgkit_vm.image) == "some.qcow2"
            network = {"network": "restricted", "allow": ["a.example", "b.example:80"]}
            assert imgkit_vm.options == {
                "arch": "amd64", "firmware": "uefi", "accelerator": "tcg", "timeout": 9.5, **network
            }
            assert "allow" not in boot_image("third", network="none").options
            assert boot_image("other", timeout=1).options["timeout"] == 1
        """
    )
    words = ["--imgkit-image=some.qcow2", "--imgkit-arch=amd64", "--imgkit-firmware=uefi"]
    words += ["--imgkit-network=restricted", "--imgkit-allow=a.example", "--imgkit-allow=b.example:80"]
    suite.runpytest_inprocess(*words, "--imgkit-accel=tcg", "--imgkit-timeout=9.5").assert_outcomes(passed=1)


def test_a_specification_is_booted_as_it_is(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        """
        from imgkit.vm import BootSpec

        def test_one(boot_image):
            vm = boot_image(BootSpec("a", network="user"), wait=False)
            assert vm.image == BootSpec("a", network="user")
            assert vm.options == {"timeout": 9.5, "wait": False}
        """
    )
    words = ["--imgkit-network=none", "--imgkit-arch=arm64", "--imgkit-accel=tcg", "--imgkit-timeout=9.5"]
    suite.runpytest_inprocess(*words).assert_outcomes(passed=1)


def test_vm_without_an_image_says_so(suite: pytest.Pytester) -> None:
    suite.makepyfile("def test_one(imgkit_vm): pass")
    result = suite.runpytest_inprocess()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*the imgkit_vm fixture needs --imgkit-image PATH*"])


def test_a_failure_shows_the_consoles(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        """
        def test_good(boot_image):
            boot_image("quiet")

        def test_bad(boot_image):
            boot_image("a")
            assert False
        """
    )
    result = suite.runpytest_inprocess()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*console of machine 1*", "first line", "Kernel says hello"])
    assert str(result.stdout).count("Kernel says hello") == 1


def test_a_failed_boot_is_an_ordinary_failure(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        """
        def test_bad(boot_image, fake, monkeypatch):
            from imgkit.vm.failures import KernelPanicError

            def boot(image, **options):
                raise KernelPanicError("kernel panic: no root", console="last words")

            monkeypatch.setattr(fake, "boot", boot)
            boot_image("a")
        """
    )
    result = suite.runpytest_inprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*kernel panic: no root*", "*last words*"])


def test_the_plugin_is_cheap() -> None:
    """It loads wherever imgkit is installed: nothing of imgkit but itself is imported for it."""
    script = (
        "import sys, pytest; before = set(sys.modules); import imgkit.testing;"
        "print(*sorted(name for name in set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert [name for name in done.stdout.split() if name.split(".")[0] not in ("imgkit",)] == []
    assert [name for name in done.stdout.split() if name.startswith("imgkit")] == [
        "imgkit",
        "imgkit.host",
        "imgkit.host.lazynames",
        "imgkit.host.namesake",
        "imgkit.testing",
    ]


def test_no_options_are_no_defaults(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        """
        import pathlib

        def test_one(imgkit_vm, boot_image, boot_image_session):
            assert imgkit_vm.options == {}
            assert isinstance(imgkit_vm.image, pathlib.Path)
            assert boot_image_session("b", network="none", allow=["x"]).options == {"network": "none", "allow": ["x"]}
        """
    )
    suite.runpytest_inprocess("--imgkit-image=a").assert_outcomes(passed=1)


def test_machines_of_the_test_and_of_the_whole_run_are_numbered(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        """
        def test_bad(boot_image, boot_image_session, fake, monkeypatch):
            boot_image_session("whole run").console = lambda: ""
            first = boot_image("first")
            second = boot_image("second")

            def unreadable():
                raise OSError("it is gone")

            second.console = unreadable
            first.console = lambda: "\\n".join(f"line {number}" for number in range(50))
            assert False
        """
    )
    result = suite.runpytest_inprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*console of machine 1*", "line 10", "*line 49",
            "*console of machine 2*", "(the console cannot be read: it is gone)",
            "*console of machine 3*", "(nothing was written to the console)",
        ]
    )  # fmt: skip
    assert "line 9\n" not in str(result.stdout)
