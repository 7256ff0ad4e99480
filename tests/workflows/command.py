"""The `sensorium` command, run in this process as a shell would run it."""

import sys

from workflows.cli import main


def sensorium(capsys, *arguments):
    """Exit code, standard output and standard error of a command."""
    before, sys.argv = sys.argv, ["sensorium", *map(str, arguments)]
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.argv = before
    captured = capsys.readouterr()
    return code, captured.out, captured.err
