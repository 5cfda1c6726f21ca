"""Fuzzing of everything that reads foreign bytes: see docs/fuzzing.md."""
