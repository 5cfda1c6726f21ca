"""A finished image and the files beside it: how they are made, their manifest, and the record of their boots."""
