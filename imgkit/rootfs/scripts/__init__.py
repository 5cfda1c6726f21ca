"""Compute package scripts with a small strict shell whose commands are functions on the Tree."""
