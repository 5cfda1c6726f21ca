"""What the disk looks like: partitions, filesystems, boot loader. Values only."""
