"""A verdict of the gate: what was compared, which conditions hold, and on which test rows."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Challenger and champion on some of the frozen rows; the champion may be none."""

    name: str
    rows: int
    challenger: float | None
    """None if it is not known: of a slice that has no rows, or a cost that was not measured."""
    champion: float | None = None
    difference: float | None = None
    """By how much the challenger is better: challenger − champion, or, of an error, the other way
    round; paired by row."""
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Condition(Comparison):
    """A comparison that decides: its threshold, whether it holds, and by how much."""

    threshold: float | None
    passed: bool
    detail: str
    rule: str = ""
    """What is asked, in a few words."""
    p: float | None = None
    """McNemar's p, two-sided and exact, where each row is right or wrong: how likely chance alone
    makes two equal models differ as much. Shown beside the interval, which decides."""


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """The test rows of a verdict beside those on which the champion was judged before."""

    __test__ = False  # no test of pytest's

    snapshot: str
    rows: int
    before: str | None
    """The snapshot on which the champion was judged last; None if there is no champion."""
    added: int | None = None
    """Rows that were not there then, or not in the test split; None if that snapshot is gone."""
    removed: int | None = None
    relabelled: int | None = None
    """Rows that were there, with another label."""

    @property
    def sentence(self) -> str:
        """What became of the test set, in one sentence; empty if it is the same or the first."""
        if self.before is None or self.before == self.snapshot:
            return ""
        then = f"the champion was judged on (snapshot {self.before[:12]})"
        if self.added is None:
            return f"the {self.rows:,} test rows cannot be compared with those {then}: it is gone"
        if not (self.added or self.removed or self.relabelled):
            return f"the {self.rows:,} test rows are those {then}"
        return (
            f"the test set is not that {then}: {self.added:,} rows came, {self.removed:,} went, "
            f"{self.relabelled:,} have another label; both models answer the {self.rows:,} of today"
        )


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the gate decided, and on what grounds."""

    passed: bool
    confidence: float
    rows: int
    score: float
    """The challenger's metric on the frozen rows, with its interval below."""
    low: float
    high: float
    conditions: tuple[Condition, ...]
    """The conditions of the gate; it passes if all of them do."""
    breakdown: tuple[Comparison, ...]
    """Every slice and every missing modality, whether they decide or not; one whose rows do not
    define the metric (of one class alone, say) is left out."""
    metric: str = "accuracy"
    """What the numbers are."""
    detectable: float | None = None
    """The true gain that this gate finds on these rows with a probability of `POWER`; None without
    a champion."""
    test_set: TestSet | None = None

    @property
    def sentence(self) -> str:
        """The verdict in one sentence: the first condition that failed, or why it passed."""
        failed = [condition for condition in self.conditions if not condition.passed]
        if not failed:
            return f"passed: {self.conditions[0].detail}"
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        return f"refused: {failed[0].name}: {failed[0].detail}{more}"

    def to_json(self) -> str:
        """The verdict as JSON."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The verdict that `to_json` wrote."""
        value: dict[str, Any] = json.loads(text)
        for name, before in (
            ("score", "accuracy"),
            ("low", "accuracy_low"),
            ("high", "accuracy_high"),
        ):
            if before in value:  # as it was written while accuracy was the only metric
                value[name] = value.pop(before)
        conditions = tuple(Condition(**item) for item in value.pop("conditions"))
        breakdown = tuple(Comparison(**item) for item in value.pop("breakdown"))
        tested = value.pop("test_set", None)
        return cls(
            conditions=conditions,
            breakdown=breakdown,
            test_set=None if tested is None else TestSet(**tested),
            **value,
        )

    def table(self) -> list[dict[str, str]]:
        """Conditions, then slices that decide nothing, as rows of text for a terminal or a page."""
        rows = [
            {**_texts(item), "verdict": "pass" if item.passed else "FAIL", "detail": item.detail}
            | {"rule": item.rule}
            for item in self.conditions
        ]
        judged = {item.name for item in self.conditions}
        rows += [
            {**_texts(item), "verdict": "", "detail": "", "rule": ""}
            for item in self.breakdown
            if item.name not in judged
        ]
        return rows


def interval_text(item: Comparison) -> str:
    """+0.031 [+0.012, +0.050]"""
    if item.difference is None:
        return "–"
    if item.low is None or item.high is None:
        return f"{item.difference:+.3f}"
    return f"{item.difference:+.3f} [{item.low:+.3f}, {item.high:+.3f}]"


def _texts(item: Comparison) -> dict[str, str]:
    return {
        "name": item.name,
        "rows": str(item.rows),
        "challenger": "–" if item.challenger is None else f"{item.challenger:.3f}",
        "champion": "–" if item.champion is None else f"{item.champion:.3f}",
        "difference": interval_text(item),
    }
