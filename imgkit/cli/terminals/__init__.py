"""Terminals in machines, and machines that stay."""
