"""imgkit builds bootable Alpine Linux disk images for agent sandboxes, and proves that they boot.

    import imgkit

    recipe = imgkit.load_recipe("recipes/core.py")
    disk = imgkit.build(recipe, "amd64")
    with imgkit.VM.boot(disk.image) as vm:
        print(vm.run(["node", "--version"]).text)

The names of :data:`__all__` are for programs, and stay; all modules below this one may change in any version. Each name
is imported when it is used, since some take half a second (PEP 562).
"""

from typing import TYPE_CHECKING

from imgkit.host.lazynames import importing

__version__ = "0.1.0"

from imgkit.host import namesake as _namesake

_namesake.refuse()

if TYPE_CHECKING:
    from imgkit.api.building import build, build_container, load_recipe, plan
    from imgkit.api.comparing import Comparison, diff
    from imgkit.api.inspecting import ContainerContents, DiskContents, inspect, inspect_container
    from imgkit.api.verifying import VerifiedImage, verify
    from imgkit.errors import GuestError, HostError, ImgkitError, InputError, RecipeError, UsageError
    from imgkit.image.assemble import BuildResult
    from imgkit.image.containerimage import ContainerResult
    from imgkit.planning.plan import Plan
    from imgkit.recipe import Recipe
    from imgkit.vm import VM, BootSpec, FolderQuota, Quotas

__all__ = [
    "VM",
    "BootSpec",
    "BuildResult",
    "Comparison",
    "ContainerContents",
    "ContainerResult",
    "DiskContents",
    "FolderQuota",
    "GuestError",
    "HostError",
    "ImgkitError",
    "InputError",
    "Plan",
    "Quotas",
    "Recipe",
    "RecipeError",
    "UsageError",
    "VerifiedImage",
    "__version__",
    "build",
    "build_container",
    "diff",
    "inspect",
    "inspect_container",
    "load_recipe",
    "plan",
    "verify",
]

_MODULES = {
    "imgkit.api.building": ("build", "build_container", "load_recipe", "plan"),
    "imgkit.api.comparing": ("Comparison", "diff"),
    "imgkit.api.inspecting": ("ContainerContents", "DiskContents", "inspect", "inspect_container"),
    "imgkit.api.verifying": ("VerifiedImage", "verify"),
    "imgkit.errors": ("GuestError", "HostError", "ImgkitError", "InputError", "RecipeError", "UsageError"),
    "imgkit.image.assemble": ("BuildResult",),
    "imgkit.image.containerimage": ("ContainerResult",),
    "imgkit.planning.plan": ("Plan",),
    "imgkit.recipe": ("Recipe",),
    "imgkit.vm": ("VM", "BootSpec", "FolderQuota", "Quotas"),
}
"""Module → the public names that are defined in it."""


if not TYPE_CHECKING:  # a type checker knows the names from above, and complains about all others
    __getattr__ = importing(__name__, _MODULES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
