"""Make the initramfs from the image's own mkinitfs configuration and kernel modules."""
