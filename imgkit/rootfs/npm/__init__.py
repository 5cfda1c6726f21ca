"""npm payloads: checked, then installed by npm inside a sandbox of its own."""
