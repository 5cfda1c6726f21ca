"""Folders that are shared with a guest: safe access to them, disk quotas, and ownership of the files."""
