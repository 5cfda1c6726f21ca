"""64-bit PCs: one disk that boots from BIOS and from UEFI."""

alpine = "x86_64"

packages = ["grub-bios", "grub-efi"]
grub_platforms = ["i386-pc", "x86_64-efi"]

partitions = [
    {"kind": "bios-boot", "size": "1M"},
    {"kind": "esp", "size": "16M"},
    {"kind": "root"},
]

consoles = ["tty0", "ttyS0,115200"]

# The check counts ticks during a busy wait. Under emulation on a busy host there are too few of them, and it panics.
kernel_arguments = ["no_timer_check"]
