"""Candidates that differ in nothing but their seed: the fits of one setting.

How well a setting does is what it does on average over its seeds. The best of n fits is better than
that by chance alone, the more so the more it was drawn (Bouthillier et al. 2021, "Accounting for
variance in machine learning benchmarks", section 3).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from training.candidate import CandidateRecord

NO_SETTING = {"name", "seed"}
"""Fields of a candidate's spec that are not of its setting."""


def settings_of(records: Sequence[CandidateRecord]) -> list[tuple[CandidateRecord, ...]]:
    """Records by setting, in the order in which each setting is met first.

    Of one setting are those whose specs are equal but for `name` and `seed`, trained in one way
    over the same samples and modalities. Ensembles are settings of their own: what they join is
    fixed.
    """
    found: dict[str, list[CandidateRecord]] = {}
    for record in records:
        spec = {key: value for key, value in record.spec.items() if key not in NO_SETTING}
        key = json.dumps([spec, record.training, record.part], sort_keys=True, default=str)
        found.setdefault(record.fingerprint if record.members else key, []).append(record)
    return [tuple(group) for group in found.values()]


@dataclass(frozen=True, kw_only=True)
class Settled:
    """What a setting comes to over its seeds."""

    mean: float
    sound: bool
    """Whether half of its fits or more came to their end: of one that mostly fails, a good fit is
    good luck."""


def settle(reached: Sequence[float | None]) -> Settled | None:
    """What the fits of a setting come to, each with what it reached; None for one that failed, and
    of a setting of which all did.
    """
    known = [value for value in reached if value is not None]
    if not known:
        return None
    return Settled(mean=fmean(known), sound=2 * len(known) >= len(reached))


def over_seeds(
    records: Sequence[CandidateRecord], *, reached: Mapping[str, float]
) -> dict[str, Settled]:
    """By fingerprint, what a record's setting comes to: the mean of `reached` over its fits.

    `reached` is by fingerprint; records that are not in it (they failed, or a metric is not defined
    of them) have no share in the mean, and are not in what is returned.
    """
    found = {}
    for group in settings_of(records):
        settled = settle([reached.get(record.fingerprint) for record in group])
        if settled is not None:
            found.update({r.fingerprint: settled for r in group if r.fingerprint in reached})
    return found
