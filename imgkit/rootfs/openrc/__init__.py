"""OpenRC: services, what their scripts declare, and the dependency tree made ahead of the first boot."""
