"""GRUB's core images, made from its modules as grub-mkimage makes them."""
