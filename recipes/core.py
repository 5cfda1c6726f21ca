"""The smallest agent sandbox: Alpine Linux with Node.js, and agentd to answer requests.

Its packages are those of the offline mirror (fixtures/), so it can be built where no mirror of Alpine can be reached.
"""

from .arch import amd64, arm64

name = "linux"
branch = "v3.23"
size = "4G"
hostname = "sandbox"
network = "dhcp"

packages = [
    "bash",
    "ca-certificates",
    "nodejs",
    "npm",
]

# What a machine needs besides. A container has the kernel of its host, and no services.
disk_packages = [
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
]

# The initramfs supports the root disk of a virtual machine and nothing else. Each further feature costs boot time.
initramfs_features = ["base", "ext4", "virtio", "virtio-scsi"]

# Without these settings an agent could misuse what root does. The overlay's first script sets them, and all others, at
# every boot; here they are in force from the kernel's start, where the command line is ours.
kernel_arguments = [
    "quiet",
    "sysctl.fs.protected_hardlinks=1",
    "sysctl.fs.protected_symlinks=1",
    "sysctl.kernel.sysrq=0",
]

# No bootmisc: it cleans /tmp as root while agents are at work there. docs/reference/services.md says what each of these
# touches.
services = {
    "sysinit": ["devfs", "imgkit-config", "imgkit-growroot", "agentd"],
    "boot": ["osclock", "modules", "hostname", "sysctl", "networking", "syslog"],
    "shutdown": ["mount-ro", "killprocs"],
}

users = [{"name": "agent", "uid": 1000, "home": "/workspace", "owns": ["/workspace"]}]

overlay = {"path": "../overlay", "modes": "git"}  # the same image from every clone, whatever its umask

# imgkit build --output oci makes a container image of the same root filesystem.
container: dict[str, object] = {
    "entrypoint": ["/usr/local/bin/entrypoint"],
    "command": ["/bin/bash"],
    "workdir": "/workspace",
}

architectures = {"amd64": amd64, "arm64": arm64}
