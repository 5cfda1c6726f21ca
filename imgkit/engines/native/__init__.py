"""The engine that writes disks by itself, without a virtual machine."""
