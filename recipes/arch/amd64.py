"""64-bit PCs: one disk that boots from BIOS and from UEFI."""

alpine = "x86_64"
elf_machine = "EM_X86_64"

packages = ["grub-bios", "grub-efi"]
grub_platforms = ["i386-pc", "x86_64-efi"]

partitions = [
    {"number": 14, "kind": "bios-boot", "size": "1M"},
    {"number": 1, "kind": "esp", "size": "16M"},
    {"number": 2, "kind": "root"},
]

consoles = ["tty0", "ttyS0,115200"]
