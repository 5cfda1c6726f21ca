"""Programs and libraries of a payload: their format, their needs, and whether the image can run them."""
