"""Compare two images, manifests or lock files: packages, files, sizes, and what the recipes said."""
