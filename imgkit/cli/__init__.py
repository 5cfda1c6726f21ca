"""The command line: parsing, commands, messages and exit statuses."""
