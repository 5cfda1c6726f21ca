"""The engine that writes and reads disks through libguestfs."""
