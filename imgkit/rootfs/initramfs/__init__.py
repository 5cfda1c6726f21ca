"""The initramfs, made from the image's own mkinitfs configuration and modules."""
