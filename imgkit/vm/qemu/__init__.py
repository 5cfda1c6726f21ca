"""QEMU itself: its arguments, firmware and accelerator, how it is started, and its control protocol."""
