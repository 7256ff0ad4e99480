"""The `sensorium` command: what its subcommands raise becomes a message and an exit code.

Nothing heavy is imported before it is needed, so that a run with nothing to do is quick.
"""

from __future__ import annotations

from rich.markup import escape

from workflows.commands import cluster, inspection, registry, scoring, serving, stages, store
from workflows.commands.app import (
    BAD_CONFIGURATION,
    FAILED,
    INTERRUPTED,
    OVER_BUDGET,
    app,
)
from workflows.console import make_console

__all__ = [
    "app",
    "cluster",
    "inspection",
    "main",
    "registry",
    "scoring",
    "serving",
    "stages",
    "store",
]


def main() -> None:
    """Run the command line, and turn the errors that are meant for its user into exit codes."""
    from workflows.embed import BudgetExceeded
    from workflows.pipeline import ConfigurationError, StageError
    from workflows.quarantine import quarantine_table

    errors = make_console(stderr=True)
    try:
        app()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            errors.print("[bold red]interrupted[/bold red] run the same command again to go on")
        raise
    except ConfigurationError as error:
        for line in str(error).splitlines():
            errors.print(f"[bold red]configuration[/bold red] {escape(line)}", soft_wrap=True)
        raise SystemExit(BAD_CONFIGURATION) from None
    except BudgetExceeded as error:
        errors.print(f"[bold red]over budget[/bold red] {escape(str(error))}", soft_wrap=True)
        errors.print(quarantine_table(error.counts, rows=error.rows))
        errors.print(
            "Nothing was committed; the embeddings of the good rows are kept. Mend the payloads "
            "or raise dataset.max_bad_fraction, and run again."
        )
        raise SystemExit(OVER_BUDGET) from None
    except (StageError, OSError) as error:  # of a disk or a server: it says which file and why
        errors.print(f"[bold red]failed[/bold red] {escape(str(error))}", soft_wrap=True)
        raise SystemExit(FAILED) from None
