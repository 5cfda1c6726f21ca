"""Engines: they turn a Tree and a Layout into a disk image, and read images back."""
