"""Compare an image with its manifest: every file beside it, every byte of the disk, every path."""
