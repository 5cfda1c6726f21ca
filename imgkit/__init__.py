"""imgkit builds bootable Alpine Linux disk images for agent sandboxes, and proves that they boot."""

__version__ = "0.1.0"
