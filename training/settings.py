"""Candidates that differ in nothing but their seed: the fits of one setting.

How well a setting does is what it does on average over its seeds. The best of n fits is better than
that by chance alone, the more so the more it was drawn (Bouthillier et al. 2021, "Accounting for
variance in machine learning benchmarks", section 3).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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


def over_seeds(
    records: Sequence[CandidateRecord], *, reached: Mapping[str, float]
) -> dict[str, float]:
    """By fingerprint, what a record's setting comes to: the mean of `reached` over its fits.

    `reached` is by fingerprint; records that are not in it (they failed, or a metric is not defined
    of them) are left out.
    """
    found = {}
    for group in settings_of([record for record in records if record.fingerprint in reached]):
        values = [reached[record.fingerprint] for record in group]
        mean = fmean(values)
        found.update({record.fingerprint: mean for record in group})
    return found
