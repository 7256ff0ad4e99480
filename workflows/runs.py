"""A candidate's record as a run takes it: flat parameters, and metrics as points in time."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from training.candidate import CandidateRecord

Json = TypeVar("Json")

CREDENTIALS = re.compile(r"(?<=://)(?!/)\S*@")
SECRETS = re.compile(
    r"(?P<key>[?&;][^\s?&;=]*(?:pass|pwd|token|secret|key|signature|credential)[^\s?&;=]*)="
    r"(?P<value>[^\s&]*)",
    re.IGNORECASE,
)
"""Query keys whose values are secret, such as `?password=` and `&X-Amz-Signature=`."""
RANKED = ("median_rank", "mean_average_precision", "class_mean_average_precision")
"""What a retrieval is told of but its recall."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One finite value of a metric."""

    key: str
    value: float
    time: int
    """Milliseconds since 1970."""
    step: int


def epoch_metrics(record: CandidateRecord, *, start: int) -> Iterator[Point]:
    """The learning curves: a point per epoch and metric, without values that are not finite.

    `start` is the run's start in milliseconds. A point's time follows from it, so that a point
    logged again after an interruption is the same point and not a second one.
    """
    seconds = 0.0
    for epoch in record.epochs:
        seconds += float(epoch.get("seconds") or 0.0)
        for key, value in epoch.items():
            if key != "epoch" and is_finite(value):
                time = start + int(1000 * seconds)
                yield Point(key=key, value=float(value), time=time, step=int(epoch["epoch"]))


def final_metrics(record: CandidateRecord, *, start: int) -> Iterator[Point]:
    """What the fitted candidate reached: `test.accuracy`, with `test.accuracy.low` and `.high`, the
    ends of its interval; `retrieval.test.a_to_b.recall_at_1`.
    """
    found: dict[str, Any] = {}
    for split, values in (record.metrics or {}).items():
        found |= {f"{split}.{key}": value for key, value in values.items()}
    for split, intervals in record.intervals.items():
        for key, (low, high) in intervals.items():
            found |= {f"{split}.{key}.low": low, f"{split}.{key}.high": high}
    for item in record.retrieval or ():
        place = f"retrieval.{item['split']}.{item['query']}_to_{item['target']}"
        for measure in ("recall", "class_recall"):
            values = item.get(measure) or {}
            found |= {f"{place}.{measure}_at_{k}": value for k, value in values.items()}
        for measure in RANKED:
            found[f"{place}.{measure}"] = item.get(measure)
    found |= {key: getattr(record, key) for key in ("seconds", "best_epoch", "parameters")}
    for key, value in found.items():
        if is_finite(value):
            yield Point(key=key, value=float(value), time=start, step=0)


def member_tags(record: CandidateRecord) -> dict[str, str]:
    """The names of an ensemble's members, as JSON: those in it, and those that were left out."""
    names: dict[bool, list[str]] = {True: [], False: []}
    for member in record.members:
        names[bool(member["taken"])].append(member["name"])
    return {"members": json.dumps(names[True]), "members_left_out": json.dumps(names[False])}


def flat(value: Mapping[str, Any], *, prefix: str = "") -> dict[str, str]:
    """A nested mapping as dotted names and text."""
    texts: dict[str, str] = {}
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping):
            texts |= flat(item, prefix=f"{name}.")
        else:
            texts[name] = item if isinstance(item, str) else json.dumps(item, default=str)
    return texts


def without_passwords(value: Json) -> Json:
    """The same text, or the same JSON, with `…` for every credential in a URI.

    That is all before the last `@` of a URI with an authority, since a password may hold `/`
    and `@` and a user may be a token, and the values of query keys that name a secret. More may
    go than is secret; a URI without an authority, such as `sqlite:///…`, keeps its path.
    """
    if isinstance(value, str):
        return CREDENTIALS.sub("…@", SECRETS.sub(_without_secret, value))  # type: ignore[return-value]
    if isinstance(value, Mapping):
        return {key: without_passwords(item) for key, item in value.items()}  # type: ignore[return-value]
    if isinstance(value, list | tuple):
        return [without_passwords(item) for item in value]  # type: ignore[return-value]
    return value


def _without_secret(match: re.Match[str]) -> str:
    # The mark of an `@` stays: what stands before it may be a password with `?key=` in it.
    return f"{match['key']}={'…@…' if '@' in match['value'] else '…'}"


def is_finite(value: object) -> bool:
    """Whether a value is a number that a chart can show."""
    return isinstance(value, int | float) and math.isfinite(value)


def cut(text: str, *, length: int) -> str:
    """The text, or its beginning with a mark that there was more."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def clean(key: str) -> str:
    """The key with `_` for what MLflow does not allow in a name."""
    return re.sub(r"[^\w\-. /]", "_", key, flags=re.ASCII)[:250]
