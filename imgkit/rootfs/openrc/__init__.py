"""OpenRC: runlevels, what service scripts declare, and the dependency cache that is made before the first boot."""
