"""What QEMU may do on the host: its user, its system calls, the files that it may open."""
