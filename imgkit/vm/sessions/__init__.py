"""Terminals on a running machine: one session each, and how another process of the same user finds the machine."""
