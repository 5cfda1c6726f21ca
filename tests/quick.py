"""What makes emulated guests cheaper."""

QUICK = ("norandmaps", "mitigations=off")
"""Kernel arguments that halve the processor time of an emulated guest. Without randomised addresses, QEMU translates
the code of a program once, and not anew for each address where it is loaded. Images that are tested for what they are
have the arguments of their recipe instead."""
