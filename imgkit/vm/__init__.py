"""Running an image: accelerator, QEMU command line, console, agent."""

from imgkit.vm.running import VM

__all__ = ["VM"]
