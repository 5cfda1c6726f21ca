"""64-bit ARM: UEFI, or a host that boots the kernel directly with root=/dev/vda2."""

alpine = "aarch64"
elf_machine = "EM_AARCH64"

packages = ["grub-efi"]
grub_platforms = ["arm64-efi"]

partitions = [
    {"number": 1, "kind": "esp", "size": "16M"},
    {"number": 2, "kind": "root"},
]

consoles = ["ttyAMA0,115200"]
