"""Compare an image with its manifest: the files of the build, every byte of the disk, every path."""
