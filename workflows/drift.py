"""What changed in the data: the comparison with the snapshot before, for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape

from features.drift import Change, Drift, ModalityDrift, Pair, compare, missing_share
from features.kept_statistics import (
    SnapshotStatistics,
    gather_statistics,
    read_statistics,
)
from features.label_changes import LabelChanges
from features.plan import Plan
from features.snapshot import Snapshot
from features.store import Store
from workflows.console import count, several, share, table

MOST_PAIRS = 3
"""Changes of a label that are named."""
MANY_LABELS = 0.05
"""The share of samples with another label from which that stands out."""
BEYOND_CHANCE = 5.0
"""How many times what chance does to the directions is worth a remark."""


def find_drift(
    store: Store,
    snapshot: Snapshot,
    *,
    previous: Snapshot | None,
    statistics: SnapshotStatistics | None = None,
) -> Drift | None:
    """How a snapshot differs from the one before; None if there is none, or it is the same.

    Writes nothing. Costs a small read a snapshot where the statistics are beside it, one a shard
    where they are not, and one for each sample shard that has changed.
    """
    if previous is None or previous.id == snapshot.id:
        return None
    new = statistics or read_statistics(store, snapshot) or gather_statistics(store, snapshot)
    old = read_statistics(store, previous)
    if old is None:
        try:
            old = gather_statistics(store, previous, known=new.shards)
        except FileNotFoundError:
            old = None  # its shards have been collected
    return compare(previous, snapshot, statistics=(old, new), store=store)


def planned_changes(plan: Plan) -> dict[str, Change]:
    """Per modality with the same encoder as before: what the plan knows of its payloads.

    Payloads are taken for kept if their embeddings are in the store.
    """
    found = {}
    for modality, part in plan.modalities.items():
        before = plan.previous.modalities.get(modality) if plan.previous else None
        if before is not None and before.encoder_fingerprint == part.encoder_fingerprint:
            there = before.present + before.bad
            kept = min(there, part.reused + part.copied)
            found[modality] = Change(before=there, after=part.payloads, kept=kept)
    return found


def print_planned_changes(plan: Plan, *, console: Console) -> None:
    """How the table differs from the last snapshot, as far as it is known before any work."""
    previous = plan.previous
    if previous is None:
        return
    changes = planned_changes(plan)
    made = table(
        "modality", "payloads", "new", "removed", "missing",
        numbers=("payloads", "new", "removed", "missing"),
    )  # fmt: skip
    for modality, change in changes.items():
        part = plan.modalities[modality]
        missing = part.missing / (part.missing + part.payloads)
        pair = Pair(before=missing_share(previous.modalities[modality]), after=missing)
        if change.new or change.removed or pair.before != pair.after:
            made.add_row(escape(modality), *_change_cells(change), shares(pair))
    if made.row_count or plan.rows != previous.rows:
        samples = Pair(before=previous.rows, after=plan.rows)
        console.print(f"         since snapshot {previous.id[:12]}: {_samples(samples)}")
    if made.row_count:
        console.print(made)


def print_drift(drift: Drift, *, console: Console) -> None:
    """The comparison as a table, of the modalities that have changed."""
    console.print(
        f"         what changed since snapshot {drift.before[:12]}: {_samples(drift.samples)}"
    )
    made = table(
        "modality", "new", "removed", "missing", "bad", "repeats", "cosine", "norm",
        numbers=("new", "removed", "missing", "bad", "repeats", "cosine", "norm"),
        wraps=("new", "missing", "bad", "repeats", "cosine"),
    )  # fmt: skip
    for modality, part in drift.modalities.items():
        if part.is_unchanged:
            continue
        made.add_row(
            escape(modality),
            *_change_cells(part.change)[1:],
            *(shares(pair) for pair in (part.missing, part.bad, part.duplicates)),
            f"[yellow]{cosine(part)}[/yellow]" if is_beyond_chance(part) else cosine(part),
            norm(part),
        )
    if made.row_count:
        console.print(made)
    for line in _remarks(drift):
        console.print(f"         {line}", soft_wrap=True)


def print_label_changes(found: LabelChanges | None, *, samples: int, console: Console) -> None:
    """A line of the samples whose label is another than before; nothing where there are none."""
    if found is None or not found.samples:
        return
    splits = ", ".join(f"{escape(split)} {count(n)}" for split, n in found.by_split.items())
    most = ", ".join(
        f"{escape(was)} → {escape(now)} {count(n)}"
        for (was, now), n in list(found.pairs.items())[:MOST_PAIRS]
    )
    many = found.samples > MANY_LABELS * samples
    mark = "[bold yellow]labels[/bold yellow]   " if many else "         labels: "
    console.print(
        f"{mark}{several(found.samples, 'sample')} ({share(found.samples, samples)}) "
        f"{'has' if found.samples == 1 else 'have'} another than before: {splits}"
        + (f"; most: {most}" if most else ""),
        soft_wrap=True,
    )


def _remarks(drift: Drift) -> Iterator[str]:
    same = [name for name, part in drift.modalities.items() if part.is_unchanged]
    for names, what in (
        (same, "unchanged"),
        (drift.added, "new in the pipeline"),
        (drift.removed, "no longer in the pipeline"),
    ):
        if names:
            yield f"{what}: {escape(', '.join(names))}"


def _samples(pair: Pair) -> str:
    before, after = int(pair.before or 0), int(pair.after or 0)
    return f"{count(before)} → {count(after)} samples" if before != after else (
        f"{count(after)} samples, as before"
    )  # fmt: skip


def _change_cells(change: Change | None) -> tuple[str, str, str]:
    if change is None:
        return "?", "?", "?"
    about = "≈ " if change.estimated else ""
    new = f"{about}{count(change.new)} ({share(change.new, change.after)})" if change.new else "0"
    return count(change.after), new, f"{about}{count(change.removed)}" if change.removed else "0"


def shares(pair: Pair) -> str:
    """`1.2 % → 3.4 %`, or once where both are the same to the eye; `?` for what is not known."""
    texts = ["?" if value is None else _percent(value) for value in (pair.before, pair.after)]
    return texts[1] if texts[0] == texts[1] else " → ".join(texts)


def _percent(value: float) -> str:
    return share(round(value * 1e9), 10**9)


def cosine(part: ModalityDrift) -> str:
    """The cosine of the mean directions, or why there is none."""
    if not part.same_encoder:
        return "other encoder"
    return "?" if part.cosine is None else f"{part.cosine:.4f}"


def norm(part: ModalityDrift) -> str:
    """By how many standard deviations the mean norm moved, or from where to where."""
    if not part.same_encoder:
        return ""
    if part.norm_shift is not None:
        text = f"{part.norm_shift:+.2f} sd".replace("-", "−")
        return "0.00 sd" if float(f"{part.norm_shift:.2f}") == 0 else text
    if part.norm.before is None or part.norm.after is None:
        return "?"
    before, after = f"{part.norm.before:.3g}", f"{part.norm.after:.3g}"
    return after if before == after else f"{before} → {after}"


def is_beyond_chance(part: ModalityDrift) -> bool:
    """Whether the mean direction has turned much further than a random sample would turn it."""
    if part.cosine is None or part.cosine_by_chance is None:
        return False
    return 1 - part.cosine > BEYOND_CHANCE * max(1 - part.cosine_by_chance, 1e-6)
