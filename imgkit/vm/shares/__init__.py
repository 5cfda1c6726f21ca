"""Folders that a guest writes to, treated as hostile: reading them, measuring them, handing them back."""
