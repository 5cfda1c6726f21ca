"""A package that is a mixture of imgkit and of another project's package is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

import imgkit
from imgkit.errors import HostError
from imgkit.host import namesake

HINT = "pip uninstall imgkit imgkit-sandbox, and then install imgkit-sandbox without the package imgkit"


def package(monkeypatch: pytest.MonkeyPatch, folder: Path, **names: str) -> None:
    module = ModuleType("imgkit")
    module.__path__ = [str(folder)]
    vars(module).update(names)
    monkeypatch.setitem(sys.modules, "imgkit", module)


def test_the_package_itself_is_accepted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    namesake.refuse()
    package(monkeypatch, tmp_path, __version__=imgkit.__version__)
    namesake.refuse()


@pytest.mark.parametrize(("theirs", "names"), [(True, {"__version__": "1"}), (True, {}), (False, {})])
def test_a_mixture_is_refused(
    theirs: bool,
    names: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if theirs:
        (tmp_path / "imgkit.py").touch()
    package(monkeypatch, tmp_path, **names)
    message = f"files of two projects that are both called imgkit were installed into the folder {tmp_path}"
    monkeypatch.setattr(sys, "argv", ["/usr/bin/pytest"])
    with pytest.raises(ImportError) as caught:
        namesake.refuse()
    assert str(caught.value) == f"{message}; {HINT}"
    monkeypatch.setattr(sys, "argv", ["/venv/bin/imgkit", "build"])
    with pytest.raises(SystemExit) as ended:
        namesake.refuse()
    assert ended.value.code == HostError.exit_status
    assert capsys.readouterr().err == f"error: {message}\nhint: {HINT}\n"
