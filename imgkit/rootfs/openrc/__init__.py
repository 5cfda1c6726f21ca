"""Manage OpenRC's runlevels, and compute its dependency cache before the first boot."""
