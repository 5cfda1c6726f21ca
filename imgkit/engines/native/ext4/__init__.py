"""Write an ext4 filesystem from a Tree.

Records and checksums are apart from the writers: :mod:`records` has the structures of the format, :mod:`checksum` the
checksums that protect them, :mod:`geometry` the places of the metadata that follow from the size. The other modules
make one structure each, and :mod:`writer` puts them together.

Format: Documentation/filesystems/ext4 of the Linux kernel ("the kernel's documentation" here), and the sources of the
kernel and of e2fsprogs where it is silent.
"""
