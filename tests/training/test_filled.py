"""A candidate that is given what is missing, as a translation draws it from what is there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from training.answering import fills, predict
from training.built_in import parse_candidate
from training.candidate import CandidateRecord, load_model, plan_candidates, read_predictions
from training.data.table import load_table
from training.models.members import with_members
from training.models.translation import Translation
from training.produce import produce_candidate
from training.task import ClassificationSpec, parse_task
from training.training_spec import TrainingSpec

TASK = ClassificationSpec(target="label")
TRAINING = TrainingSpec(batch_size=64, max_epochs=20, patience=20)
SPEECH = {"type": "single", "modality": "speech", "width": 16, "learning_rate": 5e-3}
TRANSLATION = {"type": "translation", "adversary": "none", "width": 32, "learning_rate": 1e-2}
FILLED = {"type": "filled", "of": ["single-speech", "translation"]}


def produce(store, snapshot, *values: dict[str, Any]) -> list[CandidateRecord]:
    options = {"store": store, "snapshot": snapshot, "task": TASK, "training": TRAINING}
    table = load_table(store, snapshot, task=TASK, modalities=tuple(snapshot.modalities))
    planned = plan_candidates(candidates=[parse_candidate(v) for v in values], **options)
    return [produce_candidate(candidate, **options, table=table) for candidate in planned]


def test_filling_gains_where_the_modality_is_missing_and_changes_nothing_elsewhere(
    make_store,
) -> None:
    store, snapshot = make_store(rows=800, missing=0.4)
    single, _, filled = produce(store, snapshot, SPEECH, TRANSLATION, FILLED)
    assert set(filled.modalities) == {"caption", "photo", "speech"}
    assert [member["name"] for member in filled.members] == ["single-speech", "translation"]
    answers = {r.name: read_predictions(store, r.fingerprint) for r in (single, filled)}
    rows = answers["filled"]["row"].to_numpy().copy()
    np.testing.assert_array_equal(answers["single-speech"]["row"], rows)
    right = {
        name: np.stack(found["probabilities"].to_numpy()).argmax(axis=1)
        == found["target"].to_numpy()
        for name, found in answers.items()
    }
    table = load_table(store, snapshot, task=TASK, modalities=["caption", "photo", "speech"])
    has = {m: (table.index[m][rows] >= 0).numpy() for m in table.index}
    lacks = ~has["speech"] & has["caption"] & has["photo"]
    assert lacks.sum() > 30
    assert right["filled"][lacks].mean() > 0.7
    assert right["single-speech"][lacks].mean() < 0.5, "the mask leaves it to the prior"
    nothing = ~has["speech"] & ~has["caption"] & ~has["photo"]
    same = has["speech"] | nothing
    assert nothing.any()
    one, two = (np.stack(found["probabilities"].to_numpy()) for found in answers.values())
    np.testing.assert_allclose(two[same], one[same], atol=1e-6)

    # What was drawn is told, by row.
    made = fills(load_model(store, filled.fingerprint), presence=has)
    np.testing.assert_array_equal(made["speech"], ~has["speech"] & ~nothing)
    assert set(made) == {"speech"}, "of what the candidate takes"


def test_what_is_filled_in_is_what_the_translation_draws(make_store) -> None:
    """By hand: the model alone, given the embedding that the translation makes."""
    store, snapshot = make_store(missing=0.3)
    single, translation, filled = produce(store, snapshot, SPEECH, TRANSLATION, FILLED)
    draws = load_model(store, translation.fingerprint)
    assert isinstance(draws, Translation)
    rng = np.random.default_rng(0)
    dims = {name: part["dim"] for name, part in filled.modalities.items()}
    given = {m: rng.normal(size=(6, dim)).astype(np.float32) for m, dim in dims.items()}
    presence = {
        "caption": np.array([1, 1, 0, 0, 1, 0], bool),
        "photo": np.array([0, 1, 1, 0, 0, 1], bool),
        "speech": np.array([0, 0, 0, 0, 1, 1], bool),
    }
    expected = given["speech"].copy()
    for row in range(3):
        parts = []
        for source in ("caption", "photo"):
            if presence[source][row]:
                scale = draws.scales[source]
                x = (torch.tensor(given[source][row]) - scale.mean_D) / scale.std_D
                made = draws.generators[f"{source}->speech"](x.clamp(-10, 10)[None])[0]
                parts.append(made)
        scale = draws.scales["speech"]
        drawn = torch.stack(parts).mean(dim=0) * scale.std_D + scale.mean_D
        expected[row] = drawn.detach().numpy()
    there = np.array([1, 1, 1, 0, 1, 1], bool)
    alone = predict(
        load_model(store, single.fingerprint),
        record=single,
        embeddings={"speech": expected},
        presence={"speech": there},
    )
    model = load_model(store, filled.fingerprint)
    options: dict[str, Any] = {"record": filled, "presence": presence}
    np.testing.assert_allclose(predict(model, embeddings=given, **options), alone, atol=1e-5)
    # What stands in the place of what is missing has no influence.
    other = {m: np.where(presence[m][:, None], x, 1e4) for m, x in given.items()}
    np.testing.assert_array_equal(
        predict(model, embeddings=other, **options), predict(model, embeddings=given, **options)
    )


def test_a_missing_sequence_is_filled_in_as_one_step(make_store) -> None:
    store, snapshot = make_store(sequences=True, missing=0.3)
    fusion = {"type": "attention", "width": 16, "modalities": ["frames", "caption"]}
    early, _, filled = produce(
        store, snapshot, fusion, TRANSLATION, {"type": "filled", "of": ["attention", "translation"]}
    )
    table = load_table(store, snapshot, task=TASK, modalities=tuple(filled.modalities))
    batch = table.batch(torch.arange(100), modalities=tuple(filled.modalities))
    model = load_model(store, filled.fingerprint)
    draws, alone = model.translation, load_model(store, early.fingerprint)
    made = draws.restored(*batch.inputs)
    for row in torch.nonzero(~batch.presence["frames"] & batch.presence["caption"])[:, 0].tolist():
        caption, frame = batch.embeddings["caption"][row][None], made["frames"][row][None, None]
        there = torch.ones(1, dtype=torch.bool)
        expected = alone(
            {"caption": caption, "frames": frame},
            {"caption": there, "frames": there},
            {"frames": torch.ones(1, 1, dtype=torch.bool)},
        )
        torch.testing.assert_close(model(*batch.inputs)[row][None], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("of", "message"),
    [
        (["early"], r"two candidates or more"),
        (["early", "late"], r"of\.1: 'late' is 'late', which draws no modality"),
        (["translation", "early"], r"of\.0: 'translation' is 'translation'; name a candidate"),
        (["early", "late", "translation"], r"of: it is made of two"),
    ],
)
def test_what_it_is_made_of_is_a_candidate_and_a_translation(of: list[str], message: str) -> None:
    values = [{"type": "early"}, {"type": "late"}, {"type": "translation"}]
    with pytest.raises(ValueError, match=message):
        with_members(
            [parse_candidate(v) for v in [*values, {"type": "filled", "of": of}]], task=TASK
        )


def test_a_retrieval_has_no_answers_to_fill_in_for() -> None:
    values = [{"type": "early"}, {"type": "translation"}, FILLED | {"of": ["early", "translation"]}]
    with pytest.raises(ValueError, match="has no answers"):
        with_members([parse_candidate(v) for v in values], task=parse_task({"type": "retrieval"}))
