"""Run :mod:`imgkit.engines.guestfs.appliance`, as a file: ``python PATH/startappliance.py``.

The Python that runs this may be another one than imgkit was installed for. So the folder that has imgkit is not put on
the module path, since the other packages in it are for that one; only the package ``imgkit`` is taken from there.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_PACKAGE = _HERE.parents[1]


def find_package(folder: Path) -> None:
    """Import the package ``imgkit`` from its folder, without a search."""
    spec = importlib.util.spec_from_file_location(
        "imgkit", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["imgkit"] = module
    spec.loader.exec_module(module)


def main() -> None:
    """Serve requests; see :func:`imgkit.engines.guestfs.appliance.main`."""
    sys.path[:] = [folder for folder in sys.path if Path(folder or ".").resolve() != _HERE]
    find_package(_PACKAGE)
    from imgkit.engines.guestfs import appliance

    appliance.main()


if __name__ == "__main__":
    main()
