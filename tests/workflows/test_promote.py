"""Promotion: the alias moves if the gate passes, and only then; nothing is done twice."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from features.sources import SourceError
from features.storage import LocalStorage
from features.store import Store
from training.candidate import CandidateRecord, read_predictions, write_candidate
from training.evaluation.metrics import metrics_of
from training.task import ClassificationSpec
from workflows import scoring, tracking
from workflows.pipeline import Pipeline, StageError
from workflows.promotion import contest, history, operate, registry
from workflows.promotion.answers import stored_predictions
from workflows.promotion.contest import Contest
from workflows.promotion.frozen import TableChanged, frozen_rows
from workflows.promotion.outcome import Promotion
from workflows.promotion.promote import choose_winner, promote
from workflows.promotion.spec import PromotionSpec
from workflows.promotion.tested import test_set

ROOT = Path(__file__).resolve().parents[2]
Shapes = Any
"""What the fixture `fitted_shapes` gives; see conftest.py."""


def run(shapes: Shapes, *names: str, **options: Any) -> Promotion:
    """Stage 3 with some of the candidates, or all."""
    records = [record for record in shapes.records if not names or record.name in names]
    options.setdefault("pipeline", shapes.pipeline)
    return promote(store=shapes.store, snapshot=shapes.snapshot, records=records, **options)


def gate(pipeline: Pipeline, **promotion: Any) -> Pipeline:
    """The pipeline with another gate."""
    spec = pipeline.spec.model_copy(update={"promotion": PromotionSpec(**promotion)})
    return dataclasses.replace(pipeline, spec=spec)


@pytest.fixture(scope="module")
def recorded_database(
    fitted_shapes: Shapes, empty_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A database in which all trainings of these tests are recorded, and nothing is registered."""
    path = tmp_path_factory.mktemp("recorded") / "mlflow.db"
    shutil.copyfile(empty_database, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
        patch.setattr("workflows.promotion.promote._register", killed(lambda: None, before=True))
        for names in ((), ("early",), ("single-caption",), ("single-photo",)):
            with pytest.raises(KeyboardInterrupt):
                run(fitted_shapes, *names)
    return path


@pytest.fixture
def recorded_uri(recorded_database: Path, mlflow_uri: str, tmp_path: Path) -> str:
    """The URI of a database of the test's own in which the trainings are recorded already."""
    shutil.copyfile(recorded_database, mlflow_uri.removeprefix("sqlite:///"))
    return mlflow_uri


def versions(uri: str, *, model: str = "shapes") -> dict[str, dict[str, str]]:
    """Our tags of all versions, by number."""
    with tracking.connected(uri) as client:
        found = client.search_model_versions(f"name = '{model}'")
        return {registry.number_of(v) or "": registry.tags_of(v) for v in found}


def champion(uri: str) -> str | None:
    with tracking.connected(uri) as client:
        return registry.number_of(registry.champion_of(client, model="shapes"))


def accuracy(shapes: Shapes, name: str) -> float:
    record = next(record for record in shapes.records if record.name == name)
    return float(record.metrics["test"]["accuracy"])


def contents(uri: str) -> dict[str, object]:
    """All that MLflow holds: every row of every table, and every artifact with its time."""
    path = Path(uri.removeprefix("sqlite:///"))
    with contextlib.closing(sqlite3.connect(path)) as connection:
        lines = list(connection.iterdump())
    files = sorted(path.parent.joinpath("mlartifacts").rglob("*"))
    return {"rows": lines} | {str(file): file.stat().st_mtime_ns for file in files}


def test_the_best_on_validation_becomes_the_first_champion(
    fitted_shapes: Shapes, mlflow_uri: str
) -> None:
    promotion = run(fitted_shapes)
    assert promotion.winner == "early"
    assert (promotion.champion_before, promotion.champion_after) == (None, "1")
    assert promotion.promoted and promotion.changed and not promotion.refused
    assert promotion.verdict is not None
    assert promotion.verdict.score == pytest.approx(accuracy(fitted_shapes, "early"))
    assert champion(mlflow_uri) == "1"

    tags = versions(mlflow_uri)["1"]
    snapshot = fitted_shapes.snapshot
    assert tags["snapshot"] == snapshot.id
    assert tags["candidate"] == promotion.candidate
    assert tags["pipeline"] == fitted_shapes.pipeline.digest
    assert json.loads(tags["encoders"]) == {
        name: part.encoder_fingerprint for name, part in snapshot.modalities.items()
    }
    assert tags["gate"] == "passed"
    assert tags["promoted_from"] == "none"
    assert tags["promoted_by"] and tags["promoted_at"].startswith("20")
    assert tags["git_commit"]


def test_a_second_run_changes_nothing_at_all(fitted_shapes: Shapes, recorded_uri: str) -> None:
    first = run(fitted_shapes)
    before = contents(recorded_uri)
    events: list[str] = []
    second = run(fitted_shapes, on_event=events.append)
    assert contents(recorded_uri) == before
    assert not second.changed
    assert events == []
    assert second.verdict == first.verdict
    assert second.runs == first.runs
    assert second.promoted
    assert "is the champion already" in second.detail


def test_a_worse_challenger_is_refused_by_how_much(
    fitted_shapes: Shapes, recorded_uri: str
) -> None:
    run(fitted_shapes)
    promotion = run(fitted_shapes, "single-caption")
    assert promotion.refused and promotion.changed
    assert (promotion.version, promotion.champion_after) == ("2", "1")
    assert champion(recorded_uri) == "1"
    assert promotion.verdict is not None
    condition = promotion.verdict.conditions[0]
    assert condition.challenger == pytest.approx(accuracy(fitted_shapes, "single-caption"))
    assert condition.champion == pytest.approx(accuracy(fitted_shapes, "early"))
    assert condition.low is not None
    assert f"falls short by {-condition.low:.3f}" in promotion.detail
    tags = versions(recorded_uri)["2"]
    assert tags["gate"] == "refused"
    assert "promoted" not in tags
    assert "falls short" in json.loads(tags["gate_summary"])[0]["detail"]


def test_what_was_refused_is_not_judged_again(
    fitted_shapes: Shapes, recorded_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(fitted_shapes)
    refused = run(fitted_shapes, "single-caption")
    before = contents(recorded_uri)

    def must_not(self: Contest, other: object, **options: object) -> None:
        raise AssertionError("judged again")

    monkeypatch.setattr(Contest, "judge", must_not)
    again = run(fitted_shapes, "single-caption")
    assert again.verdict == refused.verdict
    assert again.refused and not again.changed
    assert contents(recorded_uri) == before


def test_a_better_challenger_takes_the_place(fitted_shapes: Shapes, recorded_uri: str) -> None:
    run(fitted_shapes, "single-caption")
    promotion = run(fitted_shapes)
    assert (promotion.champion_before, promotion.champion_after) == ("1", "2")
    assert champion(recorded_uri) == "2"
    assert versions(recorded_uri)["2"]["promoted_from"] == "1"
    assert promotion.verdict is not None
    assert promotion.verdict.conditions[0].low is not None
    assert promotion.verdict.conditions[0].low > 0
    groups = {item.name: item for item in promotion.verdict.breakdown}
    assert set(groups) == {"language: en", "language: fr", "caption missing", "photo missing"}
    assert groups["language: en"].rows + groups["language: fr"].rows == promotion.verdict.rows


def test_another_gate_asks_again(fitted_shapes: Shapes, recorded_uri: str) -> None:
    run(fitted_shapes)
    assert run(fitted_shapes, "single-photo").refused
    lenient = gate(fitted_shapes.pipeline, min_gain=-0.5)
    promotion = run(fitted_shapes, "single-photo", pipeline=lenient)
    assert promotion.promoted
    assert champion(recorded_uri) == promotion.version == "2"


def test_the_floor_keeps_the_first_one_out(fitted_shapes: Shapes, recorded_uri: str) -> None:
    strict = gate(fitted_shapes.pipeline, floor=0.999)
    promotion = run(fitted_shapes, pipeline=strict)
    assert promotion.refused
    assert promotion.champion_after is None
    assert champion(recorded_uri) is None
    assert "floor" in promotion.detail


STEPS: list[tuple[Any, str, bool]] = [
    (scoring, "log_model", True),
    (scoring, "log_model", False),
    (registry, "register", True),
    (registry, "register", False),
    (registry, "record_verdict", True),
    (registry, "record_verdict", False),
    (history, "move_champion", False),
    (history, "record_promotion", True),
]
"""Functions on the way, each to be killed before its work (True) or after it (False)."""


@pytest.mark.parametrize(
    ("module", "name", "before"),
    STEPS,
    ids=[f"{name}-{'before' if before else 'after'}" for _, name, before in STEPS],
)
def test_an_interrupted_promotion_is_completed(
    module: Any,
    name: str,
    before: bool,
    fitted_shapes: Shapes,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Trainings that are recorded already are as good, but where the recording is cut short.
    fresh = module is scoring
    uri: str = request.getfixturevalue("mlflow_uri" if fresh else "recorded_uri")
    run(fitted_shapes, "single-caption")
    earlier = len(recorded_runs(uri))
    with monkeypatch.context() as patch:
        patch.setattr(module, name, killed(getattr(module, name), before=before))
        with pytest.raises(KeyboardInterrupt):
            run(fitted_shapes, "early")
    promotion = run(fitted_shapes, "early")
    assert promotion.promoted and promotion.changed
    assert champion(uri) == "2"
    found = versions(uri)
    assert set(found) == {"1", "2"}
    assert found["2"]["promoted_from"] == "1"
    assert found["2"]["promoted"] == found["2"]["judgement"]
    recorded = recorded_runs(uri)
    assert len(recorded) - earlier == 2 * fresh, "a training is a parent with one candidate"
    assert {entry.info.status for entry in recorded} == {"FINISHED"}
    assert not run(fitted_shapes, "early").changed


def recorded_runs(uri: str) -> list[Any]:
    with tracking.connected(uri) as client:
        experiment = client.get_experiment_by_name("shapes")
        assert experiment is not None
        return list(client.search_runs([experiment.experiment_id]))


def killed(function: Callable[..., Any], *, before: bool) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if not before:
            function(*args, **kwargs)
        raise KeyboardInterrupt

    return wrapper


def test_a_version_that_was_taken_back_is_left_so(fitted_shapes: Shapes, recorded_uri: str) -> None:
    run(fitted_shapes, "single-caption")
    run(fitted_shapes)
    with tracking.connected(recorded_uri) as client:
        client.set_registered_model_alias("shapes", "champion", "1")
    promotion = run(fitted_shapes)
    assert champion(recorded_uri) == "1"
    assert not promotion.changed and not promotion.refused
    assert "taken back" in promotion.detail


def test_what_was_taken_back_stays_so_and_a_new_one_meets_the_restored_champion(
    fitted_shapes: Shapes, recorded_uri: str
) -> None:
    lenient = gate(fitted_shapes.pipeline, min_gain=-0.5)
    for name in ("single-caption", "single-photo"):
        assert run(fitted_shapes, name, pipeline=lenient).promoted
    with tracking.connected(recorded_uri) as client:
        client.delete_model_version_tag("shapes", "2", "sensorium.promoted")
        operate.roll_back(client, model="shapes", reason="wrong photos")
    # Though the question is another one now, the version is that which was taken back.
    promotion = run(
        fitted_shapes, "single-photo", pipeline=gate(fitted_shapes.pipeline, min_gain=-0.4)
    )
    assert "has been taken back since (wrong photos)" in promotion.detail
    assert "sensorium approve shapes.yaml --version 2" in promotion.detail
    assert champion(recorded_uri) == "1" and not promotion.refused
    newer = run(fitted_shapes, "early", pipeline=lenient)
    assert (newer.champion_before, newer.champion_after) == ("1", "3")
    assert newer.verdict is not None
    assert newer.verdict.conditions[0].champion == pytest.approx(
        accuracy(fitted_shapes, "single-caption")
    )


def test_a_person_is_asked_where_the_pipeline_says_so(
    fitted_shapes: Shapes, recorded_uri: str
) -> None:
    human = gate(fitted_shapes.pipeline, require="human")
    promotion = run(fitted_shapes, "early", pipeline=human)
    assert promotion.waiting and promotion.changed
    assert not promotion.promoted and not promotion.refused
    assert "waits for approval as `challenger`" in promotion.detail
    assert "sensorium approve shapes.yaml" in promotion.detail
    before = contents(recorded_uri)
    again = run(fitted_shapes, "early", pipeline=human)
    assert again.waiting and not again.changed
    assert contents(recorded_uri) == before
    with tracking.connected(recorded_uri) as client:
        assert operate.approve(client, model="shapes").after == "1"
        assert [m.kind for m in history.history(client, model="shapes")] == ["approved"]
    after = run(fitted_shapes, "early", pipeline=human)
    assert after.promoted and not after.waiting and not after.changed
    # One that waits and then, against another champion, is refused, waits no longer.
    lenient = gate(fitted_shapes.pipeline, require="human", min_gain=-0.5)
    assert run(fitted_shapes, "single-photo", pipeline=lenient).waiting
    assert run(fitted_shapes, "single-photo", pipeline=human).refused
    with tracking.connected(recorded_uri) as client:
        assert registry.named_by(client, model="shapes", alias="challenger") is None


def test_limits_are_judged_on_what_both_models_answer_and_cost(
    fitted_shapes: Shapes, other_encoder: Shapes, recorded_uri: str
) -> None:
    limits = [
        {"present": ["photo"], "max_drop": 1.0},
        {"present": ["caption"], "max_drop": 1.0},
        {"missing": ["photo"], "metric": "f1", "max_drop": 1.0},
        {"metric": "latency_ms", "ceiling": 60_000, "max_drop": 60_000},
        {"metric": "model_mb", "ceiling": 50},
    ]
    options = {"min_gain": -0.9, "min_slice_rows": 2, "limits": limits}
    run(fitted_shapes, "early")
    promotion = run(
        other_encoder, "single-caption", pipeline=gate(other_encoder.pipeline, **options)
    )
    verdict = promotion.verdict
    assert verdict is not None and promotion.promoted
    found = {condition.name: condition for condition in verdict.conditions}

    def alone(modality: str) -> float:
        """What the champion answers where another modality is taken away, as it was written when
        it was fitted.
        """
        record = next(r for r in fitted_shapes.records if r.name == "early")
        table = read_predictions(fitted_shapes.store, record.fingerprint)
        other = {"photo": "caption", "caption": "photo"}[modality]
        tested = table.filter(pc.equal(table["split"], "test"))
        picked = np.array(tested[f"without.{other}"].to_pylist()).argmax(axis=1)
        right = picked == tested["target"].to_numpy()
        samples = fitted_shapes.table().iloc[tested["row"].to_numpy()]
        there = samples["text" if modality == "caption" else "picture"].notna().to_numpy()
        if modality == "photo":
            there = there & (tested["row"].to_numpy() != 200)  # that one is broken
        return float(right[there].mean())

    photo, caption = found["accuracy, photo alone"], found["accuracy, caption alone"]
    assert photo.champion == pytest.approx(alone("photo"))
    assert caption.champion == pytest.approx(alone("caption"))
    assert caption.challenger > 0.6 > photo.challenger, "it knows captions alone"
    latency, size = found["latency_ms"], found["model_mb"]
    assert latency.rows == len(frozen_test_rows(fitted_shapes))
    assert 0 < latency.challenger < 60_000 and 0 < latency.champion < 60_000
    assert 0.01 < size.challenger < 50 and size.champion > size.challenger
    assert "f1, photo missing" in found
    dry = run(
        other_encoder, "early", pipeline=gate(other_encoder.pipeline, **options), dry_run=True
    )
    assert dry.verdict is not None
    assert "not measured" in next(c.detail for c in dry.verdict.conditions if c.name == "model_mb")


def frozen_test_rows(shapes: Shapes) -> np.ndarray:
    return frozen_rows(
        shapes.store,
        snapshot=shapes.snapshot,
        task=shapes.pipeline.spec.task,
        names=(10, 11, 12),
        modalities=("photo",),
    ).rows


def test_a_test_set_that_changed_is_shown(fitted_shapes: Shapes, tmp_path: Path) -> None:
    (tmp_path / "pictures").symlink_to(fitted_shapes.folder / "pictures")
    table = fitted_shapes.table()
    # Three test rows go, one more is labelled, one is labelled anew, and two come.
    changed = table.drop(index=[170, 171, 172])
    changed.loc[201, "shape"] = 10
    changed.loc[180, "shape"] = 10 if table.loc[180, "shape"] != 10 else 11
    more = table.iloc[[175, 176]].assign(sample_id=["new1", "new2"])
    pd.concat([changed, more]).to_parquet(tmp_path / "table.parquet")
    (tmp_path / "store").mkdir()
    made = fitted_shapes.elsewhere(tmp_path)
    assert made.snapshot.id != fitted_shapes.snapshot.id
    found = test_set(made.store, snapshot=made.snapshot, before=fitted_shapes.snapshot.id, rows=79)
    assert found.added is None and "it is gone" in found.sentence
    # Both snapshots in one store, as of a pipeline that ran on both days.
    for folder in ("snapshots", "samples"):
        for file in (fitted_shapes.folder / "store" / folder).iterdir():
            shutil.copyfile(file, tmp_path / "store" / folder / file.name)
    found = test_set(made.store, snapshot=made.snapshot, before=fitted_shapes.snapshot.id, rows=79)
    assert (found.added, found.removed, found.relabelled) == (3, 3, 1)
    same = test_set(made.store, snapshot=made.snapshot, before=made.snapshot.id, rows=79)
    assert same.sentence == ""


def test_of_two_promotions_at_once_one_wins_and_the_other_compares_again(
    fitted_shapes: Shapes, recorded_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(fitted_shapes, "single-caption")
    lenient = gate(fitted_shapes.pipeline, min_gain=-0.5)
    judge = Contest.judge
    asked: list[str | None] = []

    def while_another_job_promotes(self: Contest, other: Any, **options: Any) -> Any:
        asked.append(registry.number_of(other))
        verdict = judge(self, other, **options)
        if len(asked) == 1:
            lenient = gate(fitted_shapes.pipeline, min_gain=-0.5)
            with monkeypatch.context() as patch:
                patch.setattr(Contest, "judge", judge)
                assert run(fitted_shapes, "single-photo", pipeline=lenient).promoted
        return verdict

    events: list[str] = []
    monkeypatch.setattr(Contest, "judge", while_another_job_promotes)
    promotion = run(fitted_shapes, "early", pipeline=lenient, on_event=events.append)
    assert asked == ["1", "3"]
    assert (promotion.champion_before, promotion.champion_after) == ("3", "2")
    assert "was version 1 when version 2 was compared with it, and is version 3 now" in events[-1]
    assert versions(recorded_uri)["2"]["promoted_from"] == "3"
    with tracking.connected(recorded_uri) as client:
        moves = [(m.before, m.after) for m in history.history(client, model="shapes")]
    assert moves == [(None, "1"), ("1", "3"), ("3", "2")]


def test_a_champion_that_moves_again_and_again_stops_the_promotion(
    fitted_shapes: Shapes, recorded_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(fitted_shapes, "single-caption")
    run(fitted_shapes, "single-photo", pipeline=gate(fitted_shapes.pipeline, floor=1.0))
    judge = Contest.judge
    asked: list[str | None] = []

    def while_others_move_it(self: Contest, other: Any, **options: Any) -> Any:
        verdict = judge(self, other, **options)
        asked.append(registry.number_of(other))
        with tracking.connected(recorded_uri) as client:
            next_one = {"1": "2", "2": "1"}[asked[-1] or ""]
            client.set_registered_model_alias("shapes", "champion", next_one)
        return verdict

    monkeypatch.setattr(Contest, "judge", while_others_move_it)
    monkeypatch.setattr("workflows.promotion.promote.ATTEMPTS", 2)
    with pytest.raises(history.ChampionMoved, match=r"another job moved it meanwhile. Run again"):
        run(fitted_shapes, pipeline=gate(fitted_shapes.pipeline, min_gain=-0.5))
    assert asked == ["1", "2"]
    assert champion(recorded_uri) == "1"


def test_a_dry_run_writes_nothing(
    fitted_shapes: Shapes, mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(fitted_shapes, "single-caption")
    before = contents(mlflow_uri)
    promotion = run(fitted_shapes, dry_run=True)
    assert promotion.verdict is not None and promotion.verdict.passed
    assert (promotion.version, promotion.champion_after) == (None, "1")
    assert not promotion.changed
    assert contents(mlflow_uri) == before

    nowhere = tmp_path / "none" / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{nowhere}")
    first = run(fitted_shapes, dry_run=True)
    assert first.verdict is not None and first.verdict.passed
    assert not nowhere.parent.exists()


def test_a_dry_run_tells_the_verdict_by_which_the_winner_is_champion(
    fitted_shapes: Shapes, recorded_uri: str
) -> None:
    promoted = run(fitted_shapes)
    dry = run(fitted_shapes, dry_run=True)
    assert dry.verdict == promoted.verdict
    assert dry.promoted
    assert dry.dry_run and dry.earlier


def test_a_dry_run_tells_that_the_gate_was_asked_for_it_alone(
    fitted_shapes: Shapes, recorded_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(registry, "record_verdict", killed(registry.record_verdict, before=True))
        with pytest.raises(KeyboardInterrupt):
            run(fitted_shapes)
    dry = run(fitted_shapes, dry_run=True)
    assert dry.version == "1", "it is registered"
    assert dry.dry_run and not dry.earlier
    judged, again = run(fitted_shapes), run(fitted_shapes)
    assert (judged.dry_run, judged.earlier) == (False, False)
    assert (again.dry_run, again.earlier) == (False, True)


def test_a_champion_of_other_encoders_is_asked_through_its_own(
    fitted_shapes: Shapes,
    other_encoder: Shapes,
    recorded_uri: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(fitted_shapes, "early")
    asked: list[int] = []
    predict = scoring.LoadedModel.predict

    def watched(self: scoring.LoadedModel, rows: pd.DataFrame) -> pd.DataFrame:
        asked.append(len(rows))
        assert "shape" not in rows.columns, "the label is not for the model to see"
        return predict(self, rows)

    monkeypatch.setattr(scoring.LoadedModel, "predict", watched)
    promotion = run(other_encoder, "single-caption")
    assert promotion.verdict is not None
    assert asked == [promotion.verdict.rows]
    assert promotion.verdict.conditions[0].champion == pytest.approx(
        accuracy(fitted_shapes, "early")
    )


def test_a_champion_of_other_encoders_answers_from_what_the_store_has_of_them(
    fitted_shapes: Shapes,
    other_encoder: Shapes,
    recorded_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(fitted_shapes, "early")
    for place in (other_encoder.folder / "store", fitted_shapes.folder / "store" / "embeddings"):
        kept = tmp_path / "store" / ("embeddings" if place.name == "embeddings" else "")
        shutil.copytree(place, kept, dirs_exist_ok=True)
    store = Store(LocalStorage(str(tmp_path / "store")))
    encoder = fitted_shapes.snapshot.modalities["photo"].encoder_fingerprint
    asked: list[int] = []
    predict = scoring.LoadedModel.predict

    def watched(self: scoring.LoadedModel, rows: pd.DataFrame) -> pd.DataFrame:
        asked.append(len(rows))
        return predict(self, rows)

    monkeypatch.setattr(scoring.LoadedModel, "predict", watched)

    def champions_answer() -> float:
        judged = dataclasses.replace(other_encoder, store=store)
        verdict = run(judged, "single-caption", dry_run=True).verdict
        assert verdict is not None and verdict.conditions[0].champion is not None
        return float(verdict.conditions[0].champion)

    expected = pytest.approx(accuracy(fitted_shapes, "early"))
    assert champions_answer() == expected
    assert asked == [1], "the broken photo alone, which has no embedding"
    last = sorted(store.shards_of(encoder))[-1]
    (tmp_path / "store" / "embeddings" / encoder / f"{last}.parquet").unlink()
    assert champions_answer() == expected
    assert len(asked) == 2


def test_a_champion_reads_its_own_column_whatever_the_modality_is_now(
    fitted_shapes: Shapes, recorded_uri: str, tmp_path: Path
) -> None:
    run(fitted_shapes, "single-caption")
    (tmp_path / "pictures").symlink_to(fitted_shapes.folder / "pictures")
    fitted_shapes.table().assign(words="no words").to_parquet(tmp_path / "table.parquet")
    repointed = fitted_shapes.elsewhere(tmp_path, text="words")
    part = repointed.snapshot.modalities["caption"]
    before = fitted_shapes.snapshot.modalities["caption"]
    assert part.encoder_fingerprint == before.encoder_fingerprint
    promotion = run(repointed, "single-photo")
    assert promotion.verdict is not None
    assert promotion.verdict.conditions[0].champion == pytest.approx(
        accuracy(fitted_shapes, "single-caption")
    )


def test_a_user_without_a_name_promotes_by_number(
    fitted_shapes: Shapes, recorded_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr("getpass.getuser", nameless)
    assert run(fitted_shapes).promoted
    assert versions(recorded_uri)["1"]["promoted_by"] == str(os.getuid())


@pytest.mark.parametrize("change", ["other samples", "fewer rows"])
def test_a_table_that_changed_since_the_snapshot_is_not_compared_on(
    change: str, fitted_shapes: Shapes, other_encoder: Shapes, recorded_uri: str
) -> None:
    run(fitted_shapes, "early")
    path = other_encoder.folder / "table.parquet"
    table = pq.read_table(path)
    changed = {"other samples": table.take(list(range(239, -1, -1))), "fewer rows": table[:150]}
    pq.write_table(changed[change], path)
    try:
        with pytest.raises(TableChanged, match=r"no longer that of snapshot .*embed first.*rows"):
            run(other_encoder, "single-caption")
    finally:
        pq.write_table(table, path)
    assert champion(recorded_uri) == "1"


def test_a_champion_whose_encoder_has_changed_cannot_be_compared(
    fitted_shapes: Shapes,
    other_encoder: Shapes,
    recorded_uri: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from features.encoders.text import HashingSpec

    run(fitted_shapes, "early")
    monkeypatch.setattr(HashingSpec, "version", 99)
    with pytest.raises(StageError, match=r"shapes version 1.*'caption'.*embed and train again"):
        run(other_encoder, "single-photo")
    assert champion(recorded_uri) == "1"


@pytest.mark.parametrize("gone", ["the encoder", "the table", "our model"])
def test_a_champion_that_cannot_be_asked_is_named_with_the_reason(
    gone: str,
    fitted_shapes: Shapes,
    other_encoder: Shapes,
    recorded_uri: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from features.encoders.text import HashingSpec

    run(fitted_shapes, "early")

    def lost(*args: Any, **kwargs: Any) -> Any:
        error = {"the encoder": ValueError, "the table": SourceError, "our model": OSError}[gone]
        raise error(f"{gone} is gone from s3://me:s3cret@bucket")

    if gone == "the encoder":
        monkeypatch.setattr(HashingSpec, "fingerprint", lost)
    elif gone == "the table":
        monkeypatch.setattr(contest, "table_rows", lambda *args, **options: lost)
    else:
        monkeypatch.setattr(scoring, "loaded", lost)
    expected = rf"shapes version 1, the champion, cannot be compared: .*{gone} is gone from s3://…@"
    with pytest.raises(StageError, match=expected):
        run(other_encoder, "single-photo")
    assert champion(recorded_uri) == "1"


def test_an_empty_test_split_has_no_answers(fitted_shapes: Shapes, tmp_path: Path) -> None:
    record = fitted_shapes.records[0]
    predictions = read_predictions(fitted_shapes.store, record.fingerprint)
    validation = predictions.filter(pc.equal(predictions["split"], "validation"))
    for table in (validation, predictions.slice(0, 0)):
        store = Store(LocalStorage(str(tmp_path / str(len(table)))))
        written = write_candidate(store, record, predictions=table)
        found = stored_predictions(store, record=written)
        assert len(found.rows) == len(found.answers) == 0


@pytest.fixture(scope="module")
def other_encoder(fitted_shapes: Shapes, tmp_path_factory: pytest.TempPathFactory) -> Shapes:
    """The same table in another folder, with a photo encoder of another size."""
    folder = tmp_path_factory.mktemp("other")
    for name in ("table.parquet", "pictures"):
        place = fitted_shapes.folder / name
        (shutil.copytree if place.is_dir() else shutil.copyfile)(place, folder / name)
    return fitted_shapes.elsewhere(folder, size=24)


ACCURACY = metrics_of(ClassificationSpec(target="y"))["accuracy"]


def test_the_winner_is_best_on_validation_then_small_then_first_by_name() -> None:
    def record(name: str, accuracy: float, parameters: int, **other: Any) -> CandidateRecord:
        fields = {field.name: None for field in dataclasses.fields(CandidateRecord)}
        metrics = {"validation": {"accuracy": accuracy}, "test": {"accuracy": 1 - accuracy}}
        values = {"status": "fitted", "metrics": metrics, "parameters": parameters}
        values |= {"spec": {"type": name}, "members": []}
        return CandidateRecord(**{**fields, **values, "name": name, "fingerprint": name, **other})

    small, large = record("small", 0.9, 10), record("large", 0.9, 20)
    twin, worse = record("twin", 0.9, 10), record("worse", 0.8, 1)
    broken = record("broken", 1.0, 1, status="failed", metrics=None, failure={"reason": "inf"})
    assert choose_winner([broken, worse, large, twin, small], metric=ACCURACY).name == "small"
    assert choose_winner([worse, large], metric=ACCURACY).name == "large"
    with pytest.raises(StageError, match=r"no candidate was fitted.*broken: inf"):
        choose_winner([broken], metric=ACCURACY)
    # Rows of one class alone, say, or more classes than it is taken of.
    auroc = metrics_of(ClassificationSpec(target="y"))["auroc"]
    unranked = record("a", 0.9, 1, task={"type": "classification", "target": "y"})
    with pytest.raises(
        StageError, match=r"promotion\.metric: .* 'auroc' .*100 classes.* take another: accuracy"
    ):
        choose_winner([broken, unranked], metric=auroc)


def test_test_rows_without_labels_cannot_decide(
    fitted_shapes: Shapes, recorded_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def must_not(*args: object, **options: object) -> None:
        raise AssertionError("to know which rows are there, no embedding need be read")

    monkeypatch.setattr("features.stored_embeddings.read_embedding_shard", must_not)
    frozen = frozen_rows(
        fitted_shapes.store,
        snapshot=fitted_shapes.snapshot,
        task=fitted_shapes.pipeline.spec.task,
        names=(10, 11, 12),
        modalities=("photo",),
    )
    table = fitted_shapes.table()
    labelled = table.index[(table.split == "test") & table["shape"].notna()]
    assert frozen.rows.tolist() == labelled.tolist()
    assert 201 not in frozen.rows, "the row without a label"
    assert [(10, 11, 12)[i] for i in frozen.targets] == table["shape"][labelled].tolist()
    lacking = table.picture[labelled].isna() | (labelled == 200)
    assert np.array_equal(frozen.missing["photo"], lacking)


def test_a_run_with_nothing_to_do_loads_neither_torch_nor_ray(
    fitted_shapes: Shapes, mlflow_uri: str
) -> None:
    run(fitted_shapes)
    code = f"""
import sys
from pathlib import Path
from features.storage import LocalStorage
from features.store import Store
from training.candidate import plan_candidates
from workflows.pipeline import load_pipeline
from workflows.promotion.promote import promote
pipeline = load_pipeline(Path({str(fitted_shapes.pipeline.path)!r}))
store = Store(LocalStorage(pipeline.store_root))
snapshot = store.latest("shapes")
planned = plan_candidates(
    store, snapshot=snapshot, task=pipeline.spec.task,
    candidates=pipeline.spec.candidates, training=pipeline.spec.training,
)
records = [item.record for item in planned]
promotion = promote(pipeline=pipeline, store=store, snapshot=snapshot, records=records)
assert promotion.promoted and not promotion.changed
print([name for name in ("torch", "ray", "transformers") if name in sys.modules])
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
