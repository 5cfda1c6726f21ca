"""The computer that imgkit runs on: processes, files, signals, terminals. Nothing here knows of images."""
