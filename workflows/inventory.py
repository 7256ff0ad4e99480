"""What a store holds, as tables: by kind, by encoder, by snapshot."""

from __future__ import annotations

from datetime import datetime

from rich.markup import escape
from rich.table import Table

from features.upkeep import Amount, Inventory
from workflows.console import count, share, size, table

SHOWN = 20
"""Rows of a table, after which the rest is counted."""


def kinds_table(found: Inventory) -> Table:
    """Files and bytes of each kind, and of all."""
    made = table("kind", "files", "size", "share", numbers=("files", "size", "share"))
    total = Amount()
    for amount in found.kinds.values():
        total.files += amount.files
        total.bytes += amount.bytes
    for kind, amount in found.kinds.items():
        part = share(amount.bytes, total.bytes)
        made.add_row(kind, count(amount.files), size(amount.bytes), part)
    made.add_row("all", count(total.files), size(total.bytes), "", style="bold")
    return made


def encoders_table(found: Inventory) -> Table:
    """The shards of each encoder, and which snapshots name them."""
    made = table(
        "encoder", "type", "shards", "size", "named by", "by none",
        numbers=("shards", "size", "by none"), wraps=("named by",),
    )  # fmt: skip
    for encoder, use in list(found.encoders.items())[:SHOWN]:
        free = use.unreferenced
        named = [id[:12] for id in use.snapshots]
        made.add_row(
            encoder[:12],
            escape(", ".join(use.kinds)) or "?",
            count(use.amount.files),
            size(use.amount.bytes),
            ", ".join(named[:3]) + (f" and {len(named) - 3} more" if len(named) > 3 else ""),
            f"{count(free.files)} ({size(free.bytes)})" if free.files else "",
        )
    _more(made, len(found.encoders))
    return made


def snapshots_table(found: Inventory) -> Table:
    """The snapshots, what each refers to, and whose latest it is."""
    made = table(
        "snapshot", "name", "written", "samples", "modalities", "shards", "size", "is",
        numbers=("samples", "shards", "size"), wraps=("modalities", "is"),
    )  # fmt: skip
    for use in found.snapshots[:SHOWN]:
        snapshot = use.snapshot
        made.add_row(
            snapshot.id[:12],
            escape(snapshot.name),
            datetime.fromtimestamp(use.written).strftime("%Y-%m-%d %H:%M"),
            count(snapshot.rows),
            escape(", ".join(snapshot.modalities)),
            count(use.amount.files) + (f", {len(use.lacking)} lost" if use.lacking else ""),
            size(use.amount.bytes),
            escape(", ".join(_pointer(path) for path in use.pointers)),
            style="red" if use.lacking else None,
        )
    _more(made, len(found.snapshots))
    return made


def _pointer(path: str) -> str:
    """What a snapshot is to a name, by the path of the pointer."""
    folder, _, name = path.partition("/")
    return f"latest {name.removesuffix('.json')}" if folder == "latest" else f"attempt {name}"


def _more(made: Table, number: int) -> None:
    if number > SHOWN:
        made.add_row(f"… {number - SHOWN} more")
