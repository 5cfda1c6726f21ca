"""What commands print about builds, images and differences."""
