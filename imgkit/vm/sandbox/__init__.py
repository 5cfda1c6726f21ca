"""The sandbox of QEMU on the host: the user it runs as, the system calls it may make, the files it may open."""
