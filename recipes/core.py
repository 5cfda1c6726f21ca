"""The least that an agent sandbox has: Alpine Linux with Node.js, and agentd answering requests.

Its packages are those of the offline mirror (fixtures/), so it can be built where no mirror of Alpine is in reach.
"""

from .arch import amd64, arm64

name = "linux"
branch = "v3.23"
size = "4G"
hostname = "sandbox"
network = "dhcp"

packages = [
    "linux-virt",
    "mkinitfs",
    "openrc",
    "busybox-openrc",
    "mdev-conf",
    "kmod",
    "ifupdown-ng",
    "e2fsprogs",
    "e2fsprogs-extra",
    "sfdisk",
    "partx",
    "ca-certificates",
    "nodejs",
    "npm",
    "bash",
]

# What the initramfs can do: the root disk of a virtual machine and nothing else. Each feature more costs boot time.
initramfs_features = ["base", "ext4", "virtio", "virtio-scsi"]

# Without these settings an agent could turn root's work against root. Every boot gets them, and all others, from the
# overlay's first script; here they are in force from the kernel's start, where the command line is ours.
kernel_arguments = [
    "quiet",
    "sysctl.fs.protected_hardlinks=1",
    "sysctl.fs.protected_symlinks=1",
    "sysctl.kernel.sysrq=0",
]

# No bootmisc: it cleans /tmp as root while agents are at work there. docs/services.md says what each of these touches.
services = {
    "sysinit": ["devfs", "imgkit-config", "imgkit-growroot", "agentd"],
    "boot": ["osclock", "modules", "hostname", "sysctl", "networking", "syslog"],
    "shutdown": ["mount-ro", "killprocs"],
}

users = [{"name": "agent", "uid": 1000, "home": "/workspace", "owns": ["/workspace"]}]

overlay = "../overlay"

architectures = {"amd64": amd64, "arm64": arm64}
