"""Fuzzing of every parser that reads untrusted bytes; see docs/development/fuzzing.md."""
