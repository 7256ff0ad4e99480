"""The reasons of a quarantine, grouped: a thousand missing files are one reason, not a thousand."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
from rich.markup import escape
from rich.table import Table

from features.quarantine import QuarantineCount
from workflows.console import count, share, table
from workflows.runs import without_passwords

MOST_SAMPLES = 3
"""Samples named of each group."""

TRAILING_NAME = re.compile(r":\s*(['\"]).*\1$", re.DOTALL)


def reason_group(reason: str) -> str:
    """What a reason has in common with others: itself without the path or URI that it ends with.

    `no such file: 'photos/1.png'` → `no such file`.
    """
    return without_passwords(TRAILING_NAME.sub("", reason))


@dataclass(frozen=True, kw_only=True)
class ReasonGroup:
    """Quarantined rows of one modality with one kind of reason."""

    modality: str
    stage: str
    reason: str
    rows: int
    samples: tuple[str, ...]
    """Ids of the first few."""


def group_reasons(quarantine: pa.Table) -> list[ReasonGroup]:
    """The rows of `read_quarantine` by modality, stage and kind of reason, largest first."""
    samples: dict[tuple[str, str, str], list[str]] = {}
    for row in quarantine.to_pylist():
        key = (row["modality"], row["stage"], reason_group(row["reason"]))
        samples.setdefault(key, []).append(row["sample_id"])
    return [
        ReasonGroup(
            modality=modality,
            stage=stage,
            reason=reason,
            rows=len(ids),
            samples=tuple(ids[:MOST_SAMPLES]),
        )
        for (modality, stage, reason), ids in sorted(
            samples.items(), key=lambda item: (item[0][0], -len(item[1]), item[0])
        )
    ]


def quarantine_table(counts: Mapping[str, QuarantineCount], *, rows: pa.Table) -> Table:
    """Bad payloads by modality, stage and kind of reason, with the first samples of each."""
    made = table(
        "modality", "stage", "reason", "rows", "share", "samples",
        numbers=("rows", "share"), wraps=("reason", "samples"),
    )  # fmt: skip
    for group in group_reasons(rows):
        more = ", …" if group.rows > len(group.samples) else ""
        made.add_row(
            group.modality,
            group.stage,
            escape(group.reason),
            count(group.rows),
            share(group.rows, counts[group.modality].payloads),
            escape(", ".join(group.samples)) + more,
        )
    return made
