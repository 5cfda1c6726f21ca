"""A guest's network that ends in imgkit: named hosts are reached, nothing else is (docs/network.md)."""
