"""Payloads with npm packages: they are checked, then npm installs them in a sandbox."""
