"""Compose the root filesystem of an image: packages, scripts, accounts, services, payload and initramfs."""
