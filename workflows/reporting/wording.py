"""The report's words: numbers as people read them, and what things are called."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime

from markupsafe import Markup

from workflows.reporting.findings import (
    CandidateFindings,
    Estimate,
)

KINDS = {
    "single": "single modality",
    "early": "early fusion",
    "late": "late fusion",
    "gated": "gated fusion",
    "low_rank": "low-rank tensor fusion",
    "attention": "attention fusion",
    "co_attention": "co-attention fusion",
    "cross_modal": "cross-modal transformer",
    "bottleneck": "bottleneck transformer",
    "alignment": "contrastive alignment",
    "cca": "canonical correlation",
    "translation": "translation",
    "finetune": "fine-tuning",
    "soup": "soup of weights",
    "average": "average of answers",
    "filled": "with what is missing filled in",
}
"""Type of a candidate, as in the YAML → what to call it."""

NO_BREAK = "\N{NO-BREAK SPACE}"


def score(value: float, signed: bool = False) -> str:
    """Three decimals, fewer of what is 10 and more, with a true minus; signed: `+0.061`."""
    if not math.isfinite(value):
        return "–"
    decimals = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1
    text = f"{value:+,.{decimals}f}" if signed else f"{value:,.{decimals}f}"
    return "0.000" if value == 0 or text.strip("+-") == "0.000" else text.replace("-", "−")


def fine(value: float) -> str:
    """A decimal more than `score` has, for what a small difference decides."""
    return f"{value:,.4f}".replace("-", "−") if math.isfinite(value) else "–"


def probability(p: float) -> str:
    """`0.021`, `< 0.001`."""
    return f"<{NO_BREAK}0.001" if p < 0.001 else f"{p:.3f}"


def interval(estimate: Estimate, signed: bool = False) -> str:
    """`[0.921, 0.962]`."""
    return f"[{score(estimate.low, signed)}, {score(estimate.high, signed)}]"


def full(estimate: Estimate, signed: bool = False) -> str:
    """`0.943 [0.921, 0.962]`."""
    return f"{score(estimate.value, signed)} {interval(estimate, signed)}"


def number(value: int) -> str:
    """`1,797`."""
    return f"{value:,}"


def value(found: bool | int | float | str) -> str:
    """A hyperparameter: `0.00312`, `256`, `true`."""
    if isinstance(found, bool):
        return str(found).lower()
    return f"{found:.3g}".replace("-", "−") if isinstance(found, float) else str(found)


def percent(share: float) -> str:
    """`15 %`; one decimal where it is little."""
    digits = 0 if share >= 0.1 or share == 0 else 1
    return f"{share * 100:.{digits}f}{NO_BREAK}%"


def duration(seconds: float) -> str:
    """`41 s`, `3 min 20 s`, `2 h 5 min`."""
    if not math.isfinite(seconds):
        return "–"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def moment(when: datetime) -> str:
    """`23 November 2026, 19:40 UTC`."""
    return f"{when.day} {when:%B %Y, %H:%M} {when.tzname() or ''}".strip()


def kind(type_name: str) -> str:
    """What to call a candidate's type; a class of the user's by its own name."""
    return KINDS.get(type_name, type_name.rsplit(".", 1)[-1])


def describe(item: CandidateFindings) -> str:
    """What a candidate is, and of what, where its name does not say it."""
    if item.modalities == (item.name,):
        return kind(item.type)
    return (
        f"{kind(item.type)} of {', '.join(item.modalities)}" if item.modalities else kind(item.type)
    )


def hyperparameters(item: CandidateFindings) -> str:
    """`learning_rate 0.003, width 128`: those that are not as they are by default."""
    return ", ".join(f"{name} {value(found)}" for name, found in item.values.items())


def few(items: Sequence[str], *, limit: int = 4) -> str:
    """The first items, and how many more there are."""
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


def count(amount: int, noun: str, plural: str = "") -> str:
    """`1 row`, `2 rows`."""
    return f"{number(amount)} {noun if amount == 1 else plural or noun + 's'}"


def say(sentence: str, *values: str | None) -> Markup:
    """A sentence with its values put in, made harmless for HTML; those of plain text in bold."""
    bold = Markup("<b>{}</b>")
    marked = (v if isinstance(v, Markup) else bold.format(v) for v in values)
    return Markup(sentence).format(*marked)


def quiet(estimate: Estimate, signed: bool = False) -> Markup:
    """An interval that stands back behind its value."""
    return Markup('<span class="nowrap">{}</span>').format(interval(estimate, signed))


def title(item: CandidateFindings) -> str:
    """A candidate's name with what it is: `attention fusion`, `wide (early fusion)`."""
    what = kind(item.type)
    said_by_it = item.name == what or (item.name == item.type and what != item.type)
    return what if said_by_it else f"{item.name} ({what})"
