"""imgkit builds bootable Alpine Linux disk images for agent sandboxes, and proves that they boot."""

__version__ = "0.1.0"

from imgkit.host import namesake as _namesake

_namesake.refuse()
