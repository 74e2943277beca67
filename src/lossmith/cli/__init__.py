"""The command line: one file a command. Imports that take seconds stand inside the commands."""

from lossmith.cli.app import cli, main

__all__ = ["cli", "main"]
