"""Turn a recipe into a plan: which files of which repositories an image is made of, and the lock file that keeps it."""
