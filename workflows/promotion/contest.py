"""A contest for the champion's place: who wants it, on which rows, and what the gate says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from features.fingerprint import fingerprint
from features.snapshot import Snapshot
from features.sources import Source, SourceError
from features.store import Store
from training.candidate import CandidateRecord
from training.evaluation.metrics import metrics_of
from workflows.inputs import Input, column_names, inputs_of, model_key
from workflows.pipeline import Pipeline, StageError
from workflows.promotion.answers import Champion, challenger_alone, stored_predictions
from workflows.promotion.compare import Answered, Further, Predictions
from workflows.promotion.costs import LATENCY_ROWS, Ask, Cost, latency, size
from workflows.promotion.frozen import RawRows, frozen_rows, table_rows
from workflows.promotion.gate import judge
from workflows.promotion.registry import judged_on, number_of, tags_of
from workflows.promotion.spec import COSTS
from workflows.promotion.tested import test_set
from workflows.promotion.verdict import Verdict
from workflows.runs import without_passwords

if TYPE_CHECKING:
    from workflows.scoring import LoadedModel
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

    def judge(self, champion: ModelVersion | None, *, version: ModelVersion | None) -> Verdict:
        """Ask both for their answers to the frozen rows, and compare them.

        `version` is the challenger's, if it is registered; what a model costs is of that.
        """
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
        spec, metric = self.pipeline.spec.promotion, self.pipeline.metric
        with ExitStack() as stack:
            theirs = None if champion is None else self._open(champion, stack=stack)
            asked = None
            if champion is not None and theirs is not None:
                with _told(champion):
                    asked = self._champion(theirs, rows=frozen.rows)

            def both(alone: tuple[str, ...] | None) -> Answered:
                mine = self._answers(alone, rows=frozen.rows)
                if asked is None or champion is None:
                    return Answered(challenger=mine, champion=None)
                with _told(champion):
                    said = asked.answers(alone=alone)
                return Answered(challenger=mine.as_wide_as(said), champion=said)

            whole = both(None)
            wanted = {limit.present for limit in spec.limits if limit.present}
            further = Further(
                metrics=metrics_of(self.pipeline.spec.task),
                alone={alone: both(alone) for alone in sorted(wanted)},
                costs=self._costs(version, champion=theirs, rows=frozen.rows, stack=stack),
                test_set=test_set(
                    self.store,
                    snapshot=self.snapshot,
                    before=None if champion is None else judged_on(champion),
                    rows=len(frozen.rows),
                ),
            )
        return judge(
            frozen=frozen,
            challenger=whole.challenger,
            champion=whole.champion,
            spec=spec,
            metric=metric,
            further=further,
        )

    def _answers(self, alone: tuple[str, ...] | None, *, rows: np.ndarray) -> Predictions:
        """The challenger's answers: those in the store, or from some modalities alone."""
        if alone is None:
            return stored_predictions(self.store, record=self.winner)
        return challenger_alone(
            self.store, record=self.winner, snapshot=self.snapshot, rows=rows, present=alone
        )

    def _open(self, version: ModelVersion, *, stack: ExitStack) -> LoadedModel:
        """A registered version, loaded for as long as the stack is open."""
        from workflows import scoring

        uri = f"models:/{version.name}/{version.version}"
        with _told(version):
            return stack.enter_context(scoring.loaded(uri, base=self._source.folder))

    def _champion(self, model: LoadedModel, *, rows: np.ndarray) -> Champion:
        theirs = model.record.task.get("type", "classification")
        ours = self.pipeline.spec.task.type
        if theirs != ours:
            raise StageError(
                f"the champion of {self.pipeline.model} is of a {theirs} task, and this pipeline "
                f"of a {ours} task; name another `tracking.model` in {self.pipeline.path}"
            )
        features = self.pipeline.spec.features
        return Champion(
            model,
            store=self.store,
            snapshot=self.snapshot,
            columns={m: feature.payload_columns for m, feature in features.items()},
            rows=rows,
            raw_rows=self._raw_rows_for(model),
            names=tuple(self.winner.classes),
        )

    def _costs(
        self,
        version: ModelVersion | None,
        *,
        champion: LoadedModel | None,
        rows: np.ndarray,
        stack: ExitStack,
    ) -> dict[str, Cost | None]:
        """What the gate's limits ask for of what the models cost; None of a trial run's."""
        limits = self.pipeline.spec.promotion.limits
        wanted = {limit.metric for limit in limits if limit.metric in COSTS}
        if not wanted or version is None:
            return {name: None for name in wanted if name is not None}
        models = [self._open(version, stack=stack)]
        models += [] if champion is None else [champion]
        found: dict[str, Cost | None] = {}
        if "model_mb" in wanted:
            found["model_mb"] = size([model.files for model in models])
        if "latency_ms" in wanted:
            places = np.linspace(0, len(rows) - 1, min(LATENCY_ROWS, len(rows))).astype(int)
            frames = [self._raw_rows_for(model)(rows[places]) for model in models]

            def ask(number: int) -> Ask:
                model, frame = models[number], frames[number]
                return lambda row: model.predict(frame.iloc[row : row + 1])

            found["latency_ms"] = latency(
                ask(0),
                ask(1) if champion is not None else None,
                rows=len(places),
                confidence=self.pipeline.spec.promotion.confidence,
            )
        return found

    @cached_property
    def _source(self) -> Source:
        return self.pipeline.open_source()

    def _raw_rows_for(self, model: LoadedModel) -> RawRows:
        """What reads the columns that a model takes."""
        return self.raw_rows or table_rows(
            self._source,
            store=self.store,
            snapshot=self.snapshot,
            id_column=self.pipeline.spec.dataset.id,
            columns=column_names(model.inputs),
        )


@contextmanager
def _told(champion: ModelVersion) -> Iterator[None]:
    """Why a version cannot be asked, as a StageError that names it."""
    from workflows import scoring

    try:
        yield
    except (scoring.EncoderMismatch, scoring.ForeignModel, SourceError, OSError) as error:
        raise StageError(
            f"{champion.name} version {champion.version}, the champion, cannot be "
            f"compared: {without_passwords(str(error))}"
        ) from error
