"""What a run came to, for those who watch over it: a line of JSON, and Ray's metrics.

It is filled as the run goes on, so that a run that fails or is told to end says how far it came.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from features.embedding import ShardResult
from features.snapshot import Snapshot
from workflows.cluster import Meters
from workflows.pipeline import StageError

if TYPE_CHECKING:
    from workflows.promotion.outcome import Promotion

Status = Literal[
    "done",
    "unchanged",
    "waiting",
    "left",
    "refused",
    "over budget",
    "out of time",
    "terminated",
    "interrupted",
    "bad configuration",
    "failed",
]
"""`done` and `unchanged`; `waiting` for a person who approves the new challenger; `left` to another
run that is at work; `refused` by the gate now; the others say why a run ended before its end."""


class DeadlinePassed(StageError):
    """A run has not ended within the time that it was given."""


@dataclass(kw_only=True)
class Outcome:
    """How far a run came, and how it ended."""

    pipeline: str = ""
    status: Status = "failed"
    error: str | None = None
    rows: int | None = None
    """Samples of the table; None before it has been read."""
    snapshot: str | None = None
    embedded: int = 0
    """Payloads, over all modalities, that an encoder was given in this run. Of a run that ended
    before its end, those of finished blocks of shards: the store may hold more."""
    copied: int = 0
    reused: int | None = None
    """Embeddings of the snapshot that were not computed in this run, copied ones included."""
    quarantined: int | None = None
    shards: int = 0
    """Shards written in this run."""
    fitted: int = 0
    """Candidates fitted in this run."""
    unfitted: list[str] = field(default_factory=list)
    """Names of candidates whose fit failed in this run."""
    promotion: Promotion | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time by stage."""
    meters: Meters = field(default_factory=Meters)

    def __post_init__(self) -> None:
        self._begun = time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage, which may be begun again."""
        begun = time.perf_counter()
        try:
            yield
        except BaseException:
            self.meters.add("failures", 1, pipeline=self.pipeline, stage=name)
            raise
        finally:
            seconds = time.perf_counter() - begun
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
            self.meters.add("seconds", seconds, pipeline=self.pipeline, stage=name)

    def on_shard(self, result: ShardResult) -> None:
        """A shard is in the store."""
        self.embedded += result.embedded
        self.copied += result.copied
        self.shards += result.written
        where = {"pipeline": self.pipeline, "modality": result.modality}
        self.meters.add("rows", result.embedded, kind="embedded", **where)
        self.meters.add("rows", result.copied, kind="copied", **where)
        self.meters.add("rows", result.bad, kind="bad", **where)
        self.meters.add("shards", int(result.written), **where)

    def on_snapshot(self, snapshot: Snapshot, *, quarantined: int) -> None:
        """Stage 1 is over."""
        self.rows, self.snapshot, self.quarantined = snapshot.rows, snapshot.id, quarantined
        present = sum(part.present for part in snapshot.modalities.values())
        self.reused = max(0, present - self.embedded)

    def on_fitted(self, candidate: str, failure: str | None) -> None:
        """A candidate is in the store, or could not be fitted."""
        self.fitted += failure is None
        if failure is not None:
            self.unfitted.append(candidate)
        kind = "fitted" if failure is None else "failed"
        self.meters.add("candidates", 1, pipeline=self.pipeline, kind=kind)

    def line(self, *, exit_code: int) -> str:
        """The outcome as one line of JSON. Fields may be added; those that are there stay."""
        promotion = self.promotion
        values: dict[str, Any] = {
            "pipeline": self.pipeline,
            "status": self.status,
            "exit_code": exit_code,
            "error": self.error,
            "rows": self.rows,
            "reused": self.reused,
            "embedded": self.embedded,
            "copied": self.copied,
            "shards": self.shards,
            "quarantined": self.quarantined,
            "fitted": self.fitted,
            "unfitted": self.unfitted,
            "snapshot": self.snapshot,
            "model": promotion.model if promotion else None,
            "winner": promotion.winner if promotion else None,
            "version": promotion.version if promotion else None,
            "champion_before": promotion.champion_before if promotion else None,
            "champion_after": promotion.champion_after if promotion else None,
            "verdict": promotion.detail if promotion else None,
            "seconds": {
                **{name: round(seconds, 3) for name, seconds in self.seconds.items()},
                "total": round(time.perf_counter() - self._begun, 3),
            },
        }
        return json.dumps(values, ensure_ascii=False)
