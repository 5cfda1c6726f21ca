"""Running an image: accelerator, QEMU command line, console, agent."""
