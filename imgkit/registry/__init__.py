"""Container registries: what an image is called there, who may push it, and how it is sent and fetched."""
