"""The computer that imgkit runs on: processes, files, locks, signals, terminals. Nothing here depends on images."""
