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

kernel_arguments = [
    # The check counts ticks during a busy wait. Emulated on a busy host there are too few of them, and it panics.
    "no_timer_check",
    # Else the kernel comes to trust the processor's clock a second after its start and patches the code that reads it.
    # QEMU 7.2, emulating two processors, still ran the breakpoint of that patching in 9 of 80 boots: the kernel panics.
    # Distrusted from the start: 0 of 40 boots. KVM gives its guests a clock of their own (kvm-clock).
    "tsc=unstable",
]
