"""The command line: `pyprefopt COMMAND`. One file a command."""

from pyprefopt.cli.main import main as main
