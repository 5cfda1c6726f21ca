"""64-bit ARM: UEFI, or a host that boots the kernel directly with root=/dev/vda2."""

alpine = "aarch64"

packages = ["grub-efi"]
grub_platforms = ["arm64-efi"]

partitions = [
    {"kind": "esp", "size": "16M"},
    {"kind": "root"},
]

consoles = ["ttyAMA0,115200"]
