"""The root filesystem as values, and everything that writes into it."""
