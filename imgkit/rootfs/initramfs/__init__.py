"""The initramfs, which is made from the image's own mkinitfs configuration and kernel modules."""
