"""What a person sees on the terminal: tables, one progress bar a stage, numbers for humans."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

LEAST_FOLDED = 12
"""Characters of a line of a column that folds."""


def make_console(*, stderr: bool = False) -> Console:
    """A console as wide as the terminal; 100 columns where there is none, so logs stay whole."""
    console = Console(stderr=stderr, highlight=False, soft_wrap=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(stderr=stderr, highlight=False, width=100)
    return console


def table(
    *columns: str,
    numbers: Sequence[str] = (),
    wraps: Sequence[str] = (),
    folds: Sequence[str] = (),
) -> Table:
    """A table with the named columns; `numbers` stand to the right, `wraps` may take lines, and
    `folds` go on in the next line where there is no room, rather than be cut.
    """
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        justify: Literal["right", "left"] = "right" if column in numbers else "left"
        made.add_column(
            column,
            justify=justify,
            no_wrap=column not in (*wraps, *folds),
            overflow="fold" if column in folds else "ellipsis",
            min_width=LEAST_FOLDED if column in folds else None,
        )
    return made


@contextmanager
def progress(console: Console, *, transient: bool = True) -> Iterator[Progress]:
    """A stage's progress bar; silent when the output is not a terminal."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        console=console,
        transient=transient,
        disable=not console.is_terminal,
    )
    with bar:
        yield bar


def count(value: int) -> str:
    """12,345"""
    return f"{value:,}"


def several(number: int, noun: str) -> str:
    """1 shard, 12 shards, 2 modalities."""
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {noun[:-1] + 'ies' if noun.endswith('ty') else noun + 's'}"


def size(value: float) -> str:
    """Bytes with a unit: 1.2 MB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError


def duration(seconds: float) -> str:
    """0.4 s, 12 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def share(part: int, whole: int) -> str:
    """A percentage, with a decimal near the ends; 100 % is all, and 0 % is nothing."""
    percent = 100 * part / whole if whole else 0.0
    if percent in (0, 100):
        return f"{percent:.0f} %"
    percent = min(max(percent, 0.1), 99.9)
    return f"{percent:.1f} %" if percent < 10 or percent > 99 else f"{percent:.0f} %"
