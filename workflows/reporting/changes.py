"""The report's section on what changed in the data since the snapshot before."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from features.drift import Change, Drift, ModalityDrift, Pair
from workflows.drift import is_beyond_chance
from workflows.reporting.wording import NO_BREAK, count, few, number, percent, say


@dataclass(frozen=True, kw_only=True)
class ChangeRow:
    """A modality in the table: each cell as text, and a second line below it where there is one."""

    name: str
    new: str
    new_note: str
    removed: str
    parts: tuple[int, int, int] | None
    """Payloads kept, new and removed, for a bar; None if it is not known."""
    shares: tuple[tuple[str, str], ...]
    """Missing, bad, repeated: each as it is now, and as it was, if that reads differently."""
    direction: str
    direction_note: str
    norm: str
    norm_note: str
    alarm: bool
    """Whether the mean direction has turned much further than chance would turn it."""


def change_rows(drift: Drift | None) -> list[ChangeRow]:
    """The modalities of which something has changed, in their order."""
    if drift is None:
        return []
    return [_row(name, part) for name, part in drift.modalities.items() if not part.is_unchanged]


def on_changes(drift: Drift | None) -> list[Markup]:
    """What the comparison says, in a few sentences."""
    if drift is None:
        return []
    before, after = int(drift.samples.before or 0), int(drift.samples.after or 0)
    lines = [
        say(
            "Since snapshot {}: {}.",
            drift.before[:12],
            f"{number(before)} → {count(after, 'sample')}"
            if before != after
            else f"{count(after, 'sample')}, as before",
        )
    ]
    turned = [name for name, part in drift.modalities.items() if is_beyond_chance(part)]
    for name in turned:
        lines.append(
            say(
                "The embeddings of {} point elsewhere than before: their mean direction has "
                "turned much further than chance would turn it.",
                name,
            )
        )
    others = [name for name, part in drift.modalities.items() if not part.same_encoder]
    if others:
        lines.append(say("Embedded by another encoder than before: {}.", few(others)))
    same = [name for name, part in drift.modalities.items() if part.is_unchanged]
    for names, sentence in (
        (same, "Unchanged: {}."),
        (drift.added, "New in the pipeline: {}."),
        (drift.removed, "No longer in the pipeline: {}."),
    ):
        if names:
            lines.append(say(sentence, few(names)))
    return lines


def _row(name: str, part: ModalityDrift) -> ChangeRow:
    change = part.change
    about = f"≈{NO_BREAK}" if change is not None and change.estimated else ""
    return ChangeRow(
        name=name,
        new="?" if change is None else about + number(change.new),
        new_note=f"of {number(change.after)}" if change is not None else "",
        removed="?" if change is None else about + number(change.removed),
        parts=_parts(change),
        shares=tuple(_pair(pair) for pair in (part.missing, part.bad, part.duplicates)),
        direction=_direction(part),
        direction_note="" if part.cosine_by_chance is None else _by_chance(part.cosine_by_chance),
        norm=_norm(part),
        norm_note=""
        if part.norm_shift is None
        else f"{part.norm_shift:+.2f}{NO_BREAK}sd".replace("-", "−"),
        alarm=is_beyond_chance(part),
    )


def _parts(change: Change | None) -> tuple[int, int, int] | None:
    return None if change is None else (change.kept, change.new, change.removed)


def _pair(pair: Pair) -> tuple[str, str]:
    """A share now, and what was before; an en dash for what is not known."""
    before, after = ("–" if v is None else _share(v) for v in (pair.before, pair.after))
    return after, "" if before == after or pair.before is None else f"was {before}"


def _share(value: float) -> str:
    return f"<{NO_BREAK}0.1{NO_BREAK}%" if 0 < value < 0.001 else percent(value)


def _direction(part: ModalityDrift) -> str:
    if not part.same_encoder:
        return "other encoder"
    return "–" if part.cosine is None else f"{part.cosine:.4f}".replace("-", "−")


def _by_chance(value: float) -> str:
    return f"chance {value:.4f}"


def _norm(part: ModalityDrift) -> str:
    if not part.same_encoder or part.norm.before is None or part.norm.after is None:
        return "–"
    before, after = f"{part.norm.before:.3g}", f"{part.norm.after:.3g}"
    return after if before == after else f"{before} → {after}"
