"""What the report says of alignments and translations: retrieval, and classes in their spaces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from training.candidate import CandidateRecord
from workflows.reporting.findings import Recall, RetrievalFindings, SpaceFindings

NEIGHBOURS, ZERO_SHOT = "neighbour_accuracy", "zero_shot_accuracy."


def find_retrieval(
    records: Sequence[CandidateRecord], *, order: Sequence[str]
) -> list[RetrievalFindings]:
    """Retrieval by each candidate that has been asked for it, the best candidate first.

    Pairs follow the order of the modalities.
    """
    blocks = []
    for record in records:
        found: dict[str, list[Recall]] = {}
        for item in record.retrieval or ():
            found.setdefault(item["split"], []).append(_recall(item))
        for split, pairs in found.items():
            pairs.sort(key=lambda pair: (order.index(pair.query), order.index(pair.target)))
            blocks.append(RetrievalFindings(candidate=record.name, split=split, pairs=tuple(pairs)))
    return sorted(blocks, key=lambda block: -block.first_right)


def _recall(item: Mapping[str, Any]) -> Recall:
    classes = bool(item.get("class_rows", 1))
    return Recall(
        query=item["query"],
        target=item["target"],
        rows=item["rows"],
        gallery=item["gallery"],
        same_sample=_by_k(item.get("recall")),
        same_class=_by_k(item.get("class_recall")) if classes else {},
        chance_sample=_by_k(item.get("chance")),
        chance_class=_by_k(item.get("class_chance")),
        median_rank=item.get("median_rank"),
        precision_sample=item.get("mean_average_precision"),
        precision_class=item.get("class_mean_average_precision") if classes else None,
    )


def find_spaces(
    records: Sequence[CandidateRecord], *, order: Sequence[str]
) -> Iterator[SpaceFindings]:
    """How well each common space tells classes apart, where that was measured."""
    for record in records:
        measured = record.metrics or {}
        if not any(NEIGHBOURS in values for values in measured.values()):
            continue
        zero_shot: dict[str, dict[str, float]] = {}
        for split, values in measured.items():
            for name, share in values.items():
                if name.startswith(ZERO_SHOT):
                    zero_shot.setdefault(name.removeprefix(ZERO_SHOT), {})[split] = share
        yield SpaceFindings(
            candidate=record.name,
            probe=_of("accuracy", measured),
            neighbours=_of(NEIGHBOURS, measured),
            zero_shot={name: zero_shot[name] for name in order if name in zero_shot},
        )


def _of(name: str, measured: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {split: values[name] for split, values in measured.items() if name in values}


def _by_k(values: Mapping[str, float] | None) -> dict[int, float]:
    return {int(k): float(v) for k, v in (values or {}).items() if v is not None}
