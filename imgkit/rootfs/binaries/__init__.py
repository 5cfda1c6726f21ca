"""Programs and libraries: their format, the libraries that they need, and whether the image can run them."""
