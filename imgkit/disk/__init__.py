"""The layout of a disk as values: partitions, filesystems, boot loader."""
