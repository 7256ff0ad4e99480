"""What the report says of the data: samples, splits, modalities and the quarantine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.snapshot import ModalityShards, Snapshot
from features.store import Store
from workflows.quarantine import group_reasons
from workflows.reporting.data_findings import BadPayload, BadReason, ModalityFindings, SplitFindings
from workflows.runs import without_passwords

LISTED_PAYLOADS = 50


LISTED_REASONS = 20


def read_targets(store: Store, *, snapshot: Snapshot, targets: Sequence[str]) -> pa.Table:
    """Of every sample its split, its targets and its slices."""
    slices = [f"slice.{name}" for name in snapshot.slices]
    return store.read_samples(snapshot, columns=["split", *targets, *slices])


def find_splits(samples: pa.Table, *, targets: Sequence[str]) -> Iterator[SplitFindings]:
    """How many samples each split has, and how many of no split there are, if any."""
    split = samples["split"]
    labelled = pa.chunked_array([np.ones(len(split), dtype=bool)])
    for name in targets:
        labelled = pc.and_(labelled, pc.is_valid(samples[name]))
    for name in ("train", "validation", "test"):
        chosen = pc.fill_null(pc.equal(split, name), False)
        yield SplitFindings(
            name=name,
            rows=pc.sum(chosen).as_py() or 0,
            labelled=pc.sum(pc.and_(chosen, labelled)).as_py() or 0,
        )
    if split.null_count:
        unused = pc.sum(pc.and_(pc.is_null(split), labelled)).as_py() or 0
        yield SplitFindings(name="not used", rows=split.null_count, labelled=unused)


def find_untrained(samples: pa.Table, *, targets: Sequence[str]) -> tuple[str, ...]:
    """Classes (or labels of lists) that stand in some row, and in none of the training split."""
    trained = samples.filter(pc.fill_null(pc.equal(samples["split"], "train"), False))
    lacking = set[Any]()
    for target in targets:
        if not pa.types.is_floating(samples[target].type):
            lacking |= _distinct(samples[target]) - _distinct(trained[target])
    return tuple(map(str, sorted(lacking)))


def _distinct(labels: pa.ChunkedArray) -> set[Any]:
    """The labels of a column, or of its lists."""
    flat = pc.list_flatten(labels) if pa.types.is_list(labels.type) else labels
    return set(pc.unique(flat.drop_null()).to_pylist())


def find_modality(
    name: str, part: ModalityShards, *, cells: Mapping[str, Any], stated: Mapping[str, Any]
) -> ModalityFindings:
    """One modality of a snapshot.

    `stated` are the encoder's options as the pipeline gives them, without the defaults.
    """
    options = [f"{key} {value}" for key, value in stated.items() if key not in ("type", "dim")]
    return ModalityFindings(
        name=name,
        cells=cells,
        kind=part.kind,
        encoder=str(part.encoder.get("type", "")),
        options=", ".join(options),
        fingerprint=part.encoder_fingerprint,
        dim=part.dim,
        present=part.present,
        missing=part.missing,
        bad=part.bad,
    )


def find_reasons(quarantine: pa.Table) -> Iterator[BadReason]:
    """The reasons without the names in them, most frequent first; rare ones beyond a few as one."""
    groups = sorted(group_reasons(quarantine), key=lambda group: -group.rows)
    for group in groups[:LISTED_REASONS]:
        yield BadReason(
            modality=group.modality, stage=group.stage, reason=group.reason, count=group.rows
        )
    rest = sum(group.rows for group in groups[LISTED_REASONS:])
    if rest:
        yield BadReason(modality="", stage="", reason="other reasons", count=rest)


def list_quarantined(quarantine: pa.Table) -> Iterator[BadPayload]:
    """The first payloads of the quarantine, with no credentials in their reasons."""
    for row in quarantine.slice(0, LISTED_PAYLOADS).to_pylist():
        yield BadPayload(**{name: without_passwords(str(value)) for name, value in row.items()})
