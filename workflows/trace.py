"""Where a sample comes from and what became of its payloads, for a person or as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape

from features.lineage import PayloadTrace, SampleTrace, trace_sample
from workflows.console import count
from workflows.pipeline import Pipeline
from workflows.upkeep import wanted_snapshots

UNTOLD = ("type", "batch_size")
"""What is not said again of an encoder's spec."""


def trace(pipeline: Pipeline, *, sample_id: str, wanted: str | None) -> SampleTrace:
    """The trace of a sample in the latest snapshot of a pipeline, or in another one.

    BadParameter if there is no such snapshot, or no such sample in it.
    """
    store = pipeline.open_store()
    (id,) = wanted_snapshots(store, pipeline, wanted=wanted, every=False)
    latest = store.latest(pipeline.name)
    snapshot = latest if latest is not None and latest.id == id else store.placed(id)
    found = trace_sample(store, snapshot, sample_id=sample_id)
    if found is None:
        raise typer.BadParameter(
            f"no sample of snapshot {id[:12]} ({count(snapshot.rows)} samples) has the id "
            f"{sample_id!r}; ids are those of the column {pipeline.spec.dataset.id!r}, and "
            "--snapshot names another snapshot"
        )
    return found


def print_trace(found: SampleTrace, *, console: Console) -> None:
    """A trace in a few lines a modality."""
    width = max(8, *map(len, found.payloads)) + 1

    def say(head: str, *lines: str) -> None:
        for i, line in enumerate(lines):
            left = escape(f"{head if i == 0 else '':<{width}}")
            console.print(f"[bold]{left}[/bold]{line}", soft_wrap=True)

    say(
        "sample",
        f"{escape(found.sample_id)}, row {found.row} of snapshot {found.snapshot[:12]} "
        "(all rows are counted from 0)",
    )
    if found.source_row is None:
        say("source", "not known: places were kept of later snapshots only")
    else:
        say("source", f"{escape(found.source_file)}, row {found.source_row}")
    values = ", ".join(f"{name} {value}" for name, value in found.values.items())
    say("shard", f"{found.sample_shard}, row {found.shard_row}", escape(values))
    for modality, payload in found.payloads.items():
        say(modality, *_lines(payload))


def trace_json(found: SampleTrace) -> str:
    """A trace as JSON: the same names as in `features.lineage`."""
    return json.dumps(dataclasses.asdict(found), indent=2, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)  # a label of some rarer type


def _lines(found: PayloadTrace) -> list[str]:
    if found.state == "missing":
        return ["missing: the row has no payload"]
    place = found.embedding
    lines = [
        {
            "embedded": "embedded" + (", by a patch" if place and place.patch else ""),
            "quarantined": f"quarantined at {found.stage}: {escape(found.reason)}",
            "lost": "[red]lost[/red]: neither an embedding nor an entry in the quarantine; "
            "`sensorium store verify` says more",
        }[found.state],
        f"payload key {found.key}",
        f"encoder {_encoder(found)}",
    ]
    if place is None:
        return lines
    many = f", {place.vectors} vectors from there" if place.vectors > 1 else ""
    lines.append(f"in {place.path}, row {place.position}{many}")
    computed = place.computed
    if computed is not None:
        lines.append(f"computed {computed.time} on {escape(computed.host)}{_copied(found)}")
        versions = ", ".join(f"{name} {version}" for name, version in computed.versions.items())
        if versions:
            lines.append(f"with {escape(versions)}")
    return lines


def _copied(found: PayloadTrace) -> str:
    computed = found.embedding.computed if found.embedding else None
    if computed is None or not computed.copied:
        return ""
    if computed.copied == computed.rows:
        return ", copied with all rows from earlier shards"
    return f"; {computed.copied} of its {computed.rows} rows were copied from earlier shards"


def _encoder(found: PayloadTrace) -> str:
    options = ", ".join(
        f"{name} {value}"
        for name, value in found.spec.items()
        if name not in UNTOLD and not isinstance(value, dict | list) and value is not None
    )
    said = f"{found.spec.get('type', '?')} ({options})" if options else f"{found.spec.get('type')}"
    return f"{escape(said)}, encoders/{found.encoder}.json"
