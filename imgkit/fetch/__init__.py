"""Bytes from elsewhere: downloaded with a cap, verified, and kept in a content-addressed cache."""
