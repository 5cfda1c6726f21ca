"""Notice that another project's package of the same name is installed in the same folder.

On the Python Package Index the name ``imgkit`` belongs to a project that makes pictures of HTML pages; its package is
called ``imgkit`` as well. Installed beside each other, the files of one replace those of the other, and what is left
works for neither of them, whichever was installed first.
"""

from __future__ import annotations

import os
import sys

_HOST_STATUS = 5  # of imgkit.errors.HostError, which cannot be imported before this
_THEIRS = "imgkit.py"  # a module of their package; this one has none of that name
_MIXED = "files of two projects that are both called imgkit were installed into the folder {folder}"
_HINT = "pip uninstall imgkit imgkit-sandbox, and then install imgkit-sandbox without the package imgkit"


def refuse() -> None:
    """Refuse to work with a package that is a mixture of two.

    Raises:
        ImportError: the package is one.
        SystemExit: the same, and this is the program ``imgkit``; the message has been printed.
    """
    package = sys.modules["imgkit"]
    (folder, *_) = package.__path__
    if "__version__" in vars(package) and not os.path.exists(f"{folder}/{_THEIRS}"):  # noqa: PTH110 - at every start
        return
    message = _MIXED.format(folder=folder)
    if os.path.basename(sys.argv[0]) == "imgkit":  # noqa: PTH119
        sys.stderr.write(f"error: {message}\nhint: {_HINT}\n")  # nothing that is printed here comes from elsewhere
        raise SystemExit(_HOST_STATUS)
    raise ImportError(f"{message}; {_HINT}")
