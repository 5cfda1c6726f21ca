"""What turns a Tree and a Layout into a disk image."""
