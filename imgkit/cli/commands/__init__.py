"""The commands, one module each. :mod:`imgkit.cli.commandlist` lists them and imports one when it is used."""
