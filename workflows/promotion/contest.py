"""A contest for the champion's place: who wants it, on which rows, and what the gate says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from features.fingerprint import fingerprint
from features.snapshot import Snapshot
from features.sources import SourceError
from features.store import Store
from training.candidate import CandidateRecord
from workflows.inputs import Input, column_names, inputs_of, model_key
from workflows.pipeline import Pipeline, StageError
from workflows.promotion.frozen import (
    RawRows,
    champion_predictions,
    frozen_rows,
    stored_predictions,
    table_rows,
)
from workflows.promotion.gate import Predictions, Verdict, judge
from workflows.promotion.registry import number_of, tags_of
from workflows.runs import without_passwords

if TYPE_CHECKING:
    from workflows.tracking import ModelVersion


@dataclass(frozen=True, kw_only=True)
class Contest:
    """Who wants the place, and over which rows it is decided."""

    pipeline: Pipeline
    store: Store
    snapshot: Snapshot
    winner: CandidateRecord
    raw_rows: RawRows | None
    """Reads the rows that a champion of other encoders is asked; by default from the table."""

    def inputs(self, record: CandidateRecord) -> dict[str, Input]:
        """The columns and encoders that a candidate takes, by modality."""
        features = self.pipeline.spec.features
        return inputs_of(record, features=features, snapshot=self.snapshot)

    @property
    def key(self) -> str:
        """Identity of the winner as a registered model."""
        return model_key(self.winner, inputs=self.inputs(self.winner))

    def judgement(self, champion: ModelVersion | None) -> str:
        """Identity of the question that the gate answers; asked once, it has its answer."""
        against = None
        if champion is not None:
            against = [number_of(champion), tags_of(champion).get("key")]
        return fingerprint(
            {
                "challenger": self.winner.fingerprint,
                "champion": against,
                "snapshot": self.snapshot.id,
                "gate": self.pipeline.spec.promotion,
                "metric": self.pipeline.metric.name,
            }
        )

    def judge(self, champion: ModelVersion | None) -> Verdict:
        """Ask both for their answers to the frozen rows, and compare them."""
        frozen = frozen_rows(
            self.store,
            snapshot=self.snapshot,
            task=self.pipeline.spec.task,
            names=tuple(self.winner.classes),
            modalities=tuple(self.snapshot.modalities),
        )
        if len(frozen.rows) == 0:
            raise StageError(
                "no row of the test split has a label, so nothing can be compared; "
                f"see dataset.split and task.target in {self.pipeline.path}"
            )
        rows = frozen.rows
        mine = stored_predictions(self.store, record=self.winner)
        theirs = None if champion is None else self._answers_of(champion, rows=rows)
        if theirs is not None:
            mine = mine.as_wide_as(theirs)
        return judge(
            frozen=frozen,
            challenger=mine,
            champion=theirs,
            spec=self.pipeline.spec.promotion,
            metric=self.pipeline.metric,
        )

    def _answers_of(self, champion: ModelVersion, *, rows: np.ndarray) -> Predictions:
        from workflows import scoring

        source = self.pipeline.open_source()
        uri = f"models:/{champion.name}/{champion.version}"
        features = self.pipeline.spec.features
        try:
            with scoring.loaded(uri, base=source.folder) as model:
                theirs, ours = (
                    model.record.task.get("type", "classification"),
                    self.pipeline.spec.task.type,
                )
                if theirs != ours:
                    raise StageError(
                        f"{champion.name} version {champion.version}, the champion, is of a "
                        f"{theirs} task, and this pipeline of a {ours} task; name another "
                        f"`tracking.model` in {self.pipeline.path}"
                    )
                raw_rows = self.raw_rows or table_rows(
                    source,
                    store=self.store,
                    snapshot=self.snapshot,
                    id_column=self.pipeline.spec.dataset.id,
                    columns=column_names(model.inputs),
                )
                return champion_predictions(
                    model,
                    store=self.store,
                    snapshot=self.snapshot,
                    columns={m: feature.payload_columns for m, feature in features.items()},
                    rows=rows,
                    raw_rows=raw_rows,
                    names=tuple(self.winner.classes),
                )
        except (scoring.EncoderMismatch, scoring.ForeignModel, SourceError, OSError) as error:
            raise StageError(
                f"{champion.name} version {champion.version}, the champion, cannot be "
                f"compared: {without_passwords(str(error))}"
            ) from error
