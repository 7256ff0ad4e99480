"""Ensembles against NumPy, and against what each promises."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from features.fingerprint import fingerprint
from training.answering import predict
from training.built_in import parse_candidate
from training.candidate import (
    CandidateRecord,
    load_model,
    load_model_files,
    plan_candidates,
    read_predictions,
    read_record,
)
from training.data.table import load_table
from training.faults import CandidateFault
from training.models.ensemble import Averaged, greedy_soup, mean_weights
from training.models.ensemble_spec import SoupSpec
from training.models.members import is_pending, resolve, with_members
from training.produce import produce_candidate
from training.search.spec import SearchSpec
from training.task import ClassificationSpec, parse_task
from training.training_spec import TrainingSpec

TASK = ClassificationSpec(target="label")
TRAINING = TrainingSpec(batch_size=64, max_epochs=4)
EARLY = {"type": "early", "width": 8, "learning_rate": 5e-3}


def produce(store, snapshot, *values: dict[str, Any], training=TRAINING) -> list[CandidateRecord]:
    options = {"store": store, "snapshot": snapshot, "task": TASK, "training": training}
    table = load_table(store, snapshot, task=TASK, modalities=tuple(snapshot.modalities))
    planned = plan_candidates(candidates=[parse_candidate(v) for v in values], **options)
    return [produce_candidate(candidate, **options, table=table) for candidate in planned]


def probabilities(store, record: CandidateRecord, column: str = "probabilities") -> np.ndarray:
    stored = read_predictions(store, record.fingerprint)
    return np.array(stored[column].to_pylist(), np.float64)


def inputs_of(store, snapshot, modalities, rows):
    table = load_table(store, snapshot, task=TASK, modalities=tuple(modalities))
    batch = table.batch(torch.as_tensor(rows))
    return {
        "embeddings": batch.embeddings,
        "presence": batch.presence,
        "masks": batch.masks,
    }


def test_an_average_answers_with_numpys_mean(make_store) -> None:
    store, snapshot = make_store(missing=0.0)
    early, late, aligned, average = produce(
        store,
        snapshot,
        EARLY,
        {"type": "late", "width": 8},
        {"type": "alignment", "width": 8},
        {"type": "average", "of": ["early", "late", "alignment"]},
    )
    mean = np.mean([probabilities(store, r) for r in (early, late, aligned)], axis=0)
    raised = mean ** (1 / average.temperature)
    expected = raised / raised.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probabilities(store, average), expected, atol=1e-6)
    assert [m["fingerprint"] for m in average.members] == [
        r.fingerprint for r in (early, late, aligned)
    ]
    assert average.parameters == early.parameters + late.parameters + aligned.parameters
    assert set(average.metrics) == {"validation", "test"}
    assert average.epochs == []


def test_a_member_that_sees_nothing_of_a_row_has_no_say_in_it(make_store) -> None:
    store, snapshot = make_store(missing=0.4)
    caption, speech, average = produce(
        store,
        snapshot,
        {"type": "single", "modality": "caption", "width": 8, "learning_rate": 0.03},
        {"type": "single", "modality": "speech", "width": 8, "learning_rate": 0.03},
        {"type": "average", "of": ["single-caption", "single-speech"]},
    )
    assert list(average.modalities) == ["caption", "speech"]
    rows = read_predictions(store, average.fingerprint)["row"].to_pylist()
    table = load_table(store, snapshot, task=TASK, modalities=["caption", "speech"])
    has = {m: (table.index[m][rows] >= 0).numpy() for m in ("caption", "speech")}
    ours, one, two = (probabilities(store, r) for r in (average, caption, speech))
    both, neither = has["caption"] & has["speech"], ~has["caption"] & ~has["speech"]
    only = has["caption"] & ~has["speech"]
    assert both.any()
    assert only.any()
    assert neither.any()

    def at_its_temperature(p: np.ndarray) -> np.ndarray:
        raised = p ** (1 / average.temperature)
        return raised / raised.sum(axis=1, keepdims=True)

    assert len({caption.temperature, speech.temperature, average.temperature, 1.0}) == 4
    np.testing.assert_allclose(ours[only], at_its_temperature(one[only]), atol=1e-6)
    for chosen in (both, neither):
        mean = (one[chosen] + two[chosen]) / 2
        np.testing.assert_allclose(ours[chosen], at_its_temperature(mean), atol=1e-6)
    without = probabilities(store, average, "without.caption")
    np.testing.assert_allclose(without[both], at_its_temperature(two[both]), atol=1e-6)


@pytest.mark.parametrize(
    ("task", "link"),
    [
        ({"target": "label"}, "softmax"),
        ({"type": "multilabel", "target": "tags"}, "sigmoid"),
        ({"type": "regression", "target": "size"}, "identity"),
    ],
)
def test_the_mean_is_of_answers_whatever_the_task(task_table, task, link) -> None:
    table = task_table({"type": "classification", **task})
    specs = [parse_candidate({"type": kind, "width": 8}) for kind in ("early", "late")]
    spec = with_members(
        [*specs, parse_candidate({"type": "average", "of": ["early", "late"]})],
        task=table.task.spec,
    )[-1]
    assert spec.link == link
    inputs, outputs = table.inputs(tuple(table.embeddings)), table.task.outputs
    torch.manual_seed(0)
    model = spec.build(inputs=inputs, outputs=outputs).eval()
    assert isinstance(model, Averaged)
    batch = table.batch(table.labelled("test"))
    with torch.inference_mode():
        ours = table.task.answers(model(*batch.inputs))
        members = [table.task.answers(m(*batch.inputs)).double() for m in model.models]
    np.testing.assert_allclose(ours, np.mean([m.numpy() for m in members], axis=0), rtol=1e-5)


def test_what_is_surely_so_stays_finite() -> None:
    """A probability of 0 and of 1 has no finite logarithm, or odds."""

    class Says(nn.Module):
        def forward(self, embeddings, presence, masks):
            return embeddings["m"]

    sure = torch.tensor([[1e5, -1e5], [0.0, 1e5]])
    present = {"m": torch.ones(2, dtype=torch.bool)}
    for link, answers in (("softmax", torch.softmax), ("sigmoid", lambda x, _: torch.sigmoid(x))):
        model = Averaged([Says(), Says()], modalities=[["m"], ["m"]], link=link)
        outputs = model({"m": sure}, present, {})
        assert outputs.isfinite().all()
        torch.testing.assert_close(answers(outputs, 1), answers(sure, 1))


def test_an_average_of_the_time_before_temperatures_is_read_as_it_was() -> None:
    class Says(nn.Module):
        def forward(self, embeddings, presence, masks):
            return embeddings["m"]

    present, outputs = {"m": torch.ones(2, dtype=torch.bool)}, torch.tensor([[1.0, 2], [3, 0]])
    options = {"modalities": [["m"], ["m"]], "link": "softmax"}
    model = Averaged([Says(), Says()], temperatures=[0.5, 4.0], **options)
    answered = model({"m": outputs}, present, {}).softmax(dim=1)
    expected = ((outputs / 0.5).softmax(dim=1) + (outputs / 4).softmax(dim=1)) / 2
    torch.testing.assert_close(answered, expected)
    again = Averaged([Says(), Says()], **options)
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again({"m": outputs}, present, {}).softmax(dim=1), expected)
    again.load_state_dict({})
    answered = again({"m": outputs}, present, {}).softmax(dim=1)
    torch.testing.assert_close(answered, outputs.softmax(dim=1))


def test_the_mean_of_weights_is_numpys_and_of_one_model_itself() -> None:
    torch.manual_seed(3)
    models = [nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)) for _ in range(3)]
    states = [m.state_dict() for m in models]
    for name, value in mean_weights(states).items():
        if value.is_floating_point():
            expected = np.mean([s[name].numpy().astype(np.float64) for s in states], axis=0)
            assert np.array_equal(value.numpy(), expected.astype(np.float32))
    alone = mean_weights(states[:1])
    assert all(torch.equal(alone[name], states[0][name]) for name in alone)
    third = mean_weights([states[0]] * 3)
    assert all(torch.equal(third[name], states[0][name]) for name in third)


def numbers(*values: float) -> list[nn.Module]:
    """Models of a single weight."""
    models = [nn.Linear(1, 1, bias=False) for _ in values]
    for model, value in zip(models, values, strict=True):
        nn.init.constant_(model.weight, value)
    return models


def weight(model: nn.Module) -> float:
    return model.weight.item()


def test_a_soup_of_one_model_is_that_model() -> None:
    (model,) = numbers(0.3)
    soup, tasted = greedy_soup([model], measure=weight, lower_is_better=True)
    assert torch.equal(soup.weight, model.weight)
    assert [(t.number, t.taken) for t in tasted] == [(0, True)]


def test_a_soup_takes_what_does_not_make_it_worse() -> None:
    """By hand: the loss is the distance from 10, so from 8 on 13 helps (10.5), 4 does not (8.3)."""
    models = numbers(4.0, 13.0, 8.0)
    soup, tasted = greedy_soup(models, measure=lambda m: abs(weight(m) - 10), lower_is_better=True)
    assert [(t.number, t.taken) for t in tasted] == [(2, True), (1, True), (0, False)]
    assert weight(soup) == 10.5
    assert tasted[1].with_it == 0.5
    # The models themselves are left as they were.
    assert [weight(m) for m in models] == [4.0, 13.0, 8.0]
    # Of a score, more is better: the same choice.
    other, again = greedy_soup(
        models, measure=lambda m: -abs(weight(m) - 10), lower_is_better=False
    )
    assert [(t.number, t.taken) for t in again] == [(t.number, t.taken) for t in tasted]
    assert weight(other) == weight(soup)


def test_what_cannot_be_measured_is_not_taken() -> None:
    models = numbers(1.0, 2.0)
    soup, tasted = greedy_soup(
        models,
        measure=lambda m: float("nan") if weight(m) != 2 else 5.0,
        lower_is_better=True,
    )
    assert [(t.number, t.taken) for t in tasted] == [(1, True), (0, False)]
    assert weight(soup) == 2


def test_a_soup_is_never_worse_in_validation_than_its_best_member(make_store) -> None:
    store, snapshot = make_store()
    fits = [{**EARLY, "name": f"e{i}", "learning_rate": 10.0**-i} for i in (2, 3, 4)]
    *members, soup = produce(store, snapshot, *fits, {"type": "soup", "of": ["e2", "e3", "e4"]})
    best = min(m["alone"] for m in soup.members)
    reached = [m["with_it"] for m in soup.members if m["taken"]]
    assert reached == sorted(reached, reverse=True)
    assert reached[-1] <= best
    by_name = {record.name: record for record in members}
    for member in soup.members:
        of_fit = by_name[member["name"]]
        epoch = of_fit.epochs[of_fit.best_epoch - 1]
        assert member["alone"] == pytest.approx(epoch["validation_loss"], rel=1e-5)
    taken = [m["fingerprint"] for m in soup.members if m["taken"]]
    expected = mean_weights([load_model(store, name).state_dict() for name in taken])
    ours = load_model(store, soup.fingerprint).state_dict()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
    assert soup.parameters == members[0].parameters


@pytest.mark.slow
def test_two_workers_choose_and_answer_as_one_does(make_store, run_workers, tmp_path) -> None:
    store, snapshot = make_store("one")
    values = [
        *({**EARLY, "name": f"e{i}", "learning_rate": 10.0**-i} for i in (2, 3, 4)),
        {"type": "soup", "of": ["e2", "e3", "e4"]},
        {"type": "average", "of": ["soup", "e3"]},
    ]
    *_, soup, average = produce(store, snapshot, *values)
    other, _ = make_store("two")
    job = {
        "store_root": other.storage.root,
        "snapshot_id": snapshot.id,
        "task": TASK.model_dump(mode="json"),
        "training": TRAINING.model_dump(mode="json"),
        "candidates": values,
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    run_workers(tmp_path)
    chosen = read_record(other, soup.fingerprint)
    assert [(m["name"], m["taken"]) for m in chosen.members] == [
        (m["name"], m["taken"]) for m in soup.members
    ]
    for record in (soup, average):
        np.testing.assert_allclose(
            probabilities(other, record), probabilities(store, record), atol=1e-4
        )


def test_it_answers_elsewhere_from_its_own_two_files(make_store, tmp_path) -> None:
    """As a registered model does: with its record and weights, and no store."""
    store, snapshot = make_store(sequences=True)
    *_, average = produce(
        store,
        snapshot,
        {**EARLY, "name": "a"},
        {**EARLY, "name": "b", "learning_rate": 1e-3},
        {"type": "attention", "width": 8},
        {"type": "soup", "of": ["a", "b"]},
        {"type": "average", "of": ["soup", "attention"]},
    )
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for file in ("record.json", average.files["model"]):
        body = store.storage.read(f"candidates/{average.fingerprint}/{file}")
        (folder / file).write_bytes(body)
    stored = read_predictions(store, average.fingerprint)
    answered = predict(
        load_model_files(folder),
        record=average,
        **inputs_of(store, snapshot, average.modalities, stored["row"].to_pylist()),
    )
    np.testing.assert_allclose(answered, probabilities(store, average), atol=1e-6)


def test_what_it_is_does_not_depend_on_what_its_members_are_called(make_store) -> None:
    _, snapshot = make_store()

    def planned(*values: dict[str, Any]) -> str:
        store, options = make_store("other")[0], {"snapshot": snapshot, "task": TASK}
        specs = [parse_candidate(value) for value in values]
        return plan_candidates(store, candidates=specs, training=TRAINING, **options)[
            -1
        ].fingerprint

    late = {"type": "late"}
    one = planned(EARLY, late, {"type": "average", "of": ["early", "late"]})
    two = planned(
        {**EARLY, "name": "x"}, {**late, "name": "y"}, {"type": "average", "of": ["x", "y"]}
    )
    assert one == two
    other = planned(
        {**EARLY, "seed": 5}, late, {"type": "average", "of": ["early", "late"], "name": "z"}
    )
    assert other != one


def test_a_members_code_that_changed_changes_the_ensemble(monkeypatch) -> None:
    def identity() -> str:
        values = [EARLY, {"type": "late"}, {"type": "average", "of": ["early", "late"]}]
        return fingerprint(with_members([parse_candidate(v) for v in values], task=TASK)[-1])

    before = identity()
    monkeypatch.setattr(type(parse_candidate(EARLY)), "version", 99)
    assert identity() != before


def test_a_member_that_is_not_there_or_failed_is_told(make_store) -> None:
    store, snapshot = make_store()
    wild = {**EARLY, "name": "wild", "learning_rate": 1e36}
    values = [wild, {"type": "late"}, {"type": "average", "of": ["wild", "late"]}]
    planned = plan_candidates(
        store,
        snapshot=snapshot,
        task=TASK,
        training=TRAINING,
        candidates=[parse_candidate(v) for v in values],
    )
    options = {"store": store, "snapshot": snapshot, "task": TASK, "training": TRAINING}
    table = load_table(store, snapshot, task=TASK, modalities=tuple(snapshot.modalities))
    with pytest.raises(CandidateFault, match="made of 'wild', which is not fitted"):
        produce_candidate(planned[2], table=table, **options)
    *_, average = produce(store, snapshot, *values)
    assert average.status == "failed"
    assert "made of 'wild', which failed: the" in average.failure["reason"]


@pytest.mark.parametrize(
    ("ensemble", "message"),
    [
        ({"type": "average", "of": ["early", "lat"]}, "no candidate 'lat'; did you mean 'late'"),
        ({"type": "average", "of": ["early", "below"]}, "'below' stands below this one"),
        ({"type": "average", "of": ["early", "early"]}, "'early' is there already"),
        ({"type": "soup", "of": ["early", "late"]}, r"'late' differs from 'early' in `type`"),
        ({"type": "soup", "of": ["early", "wide"]}, r"'wide' differs from 'early' in `width`"),
        ({"type": "soup", "of": ["aligned", "early"]}, "'aligned' is 'alignment'"),
        ({"type": "average", "of": ["early", "tuned"]}, "'tuned' tunes its encoders"),
        ({"type": "average", "of": ["early", "late"], "link": "sigmoid"}, "leave it out"),
    ],
)
def test_what_cannot_be_joined_is_refused(ensemble: dict[str, Any], message: str) -> None:
    values = [
        EARLY,
        {"type": "late"},
        {**EARLY, "name": "wide", "width": 16},
        {"type": "alignment", "name": "aligned"},
        {
            "type": "finetune",
            "name": "tuned",
            "head": {"type": "early"},
            "encoders": {"caption": "full"},
        },
        ensemble,
        {"type": "gated", "name": "below"},
    ]
    with pytest.raises(ValueError, match=message):
        with_members([parse_candidate(v) for v in values], task=TASK)


def test_an_option_of_its_members_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`width` is a matter of the candidates"):
        parse_candidate({"type": "average", "of": ["a", "b"], "width": 8})
    with pytest.raises(ValueError, match="at least 1"):
        parse_candidate({"type": "soup", "of": []})
    alone = parse_candidate({"type": "soup", "of": ["early"]})
    with pytest.raises(ValueError, match="made of two candidates or more, or a search"):
        with_members([parse_candidate(EARLY), alone], task=TASK)


def test_a_retrieval_has_no_answers_to_join() -> None:
    values = [
        {"type": "cca"},
        {"type": "alignment"},
        {"type": "average", "of": ["cca", "alignment"]},
    ]
    with pytest.raises(ValueError, match="a retrieval task has no answers"):
        with_members([parse_candidate(v) for v in values], task=parse_task({"type": "retrieval"}))


def test_names_alone_are_no_ensemble() -> None:
    with pytest.raises(ValueError, match="'soup' is made of a, b, which are names alone"):
        SoupSpec(of=("a", "b")).resolved_modalities(("caption", "photo"))


SEARCH = SearchSpec.model_validate({"of": "early", "space": {"learning_rate": [1e-3, 1e-2]}})


def test_a_search_stands_for_all_that_it_finds() -> None:
    values = [
        EARLY,
        {"type": "soup", "of": ["early", "early-search"]},
        {"type": "average", "of": ["soup", "early"]},
    ]
    specs = [parse_candidate(v) for v in values]
    options = {"task": TASK, "searches": [SEARCH]}
    before = with_members(specs, **options)
    # Of what it finds nothing is known yet, nor of what is made of that.
    assert [is_pending(spec) for spec in before] == [False, True, True]
    found = [parse_candidate({**EARLY, "name": f"early-search-{i}", "seed": i}) for i in range(3)]
    after = with_members(specs, **options, found={"early-search": found})
    assert after[1].members == (specs[0], *found)
    assert after[2].members == (after[1], specs[0])
    assert not any(is_pending(spec) for spec in after)


def test_a_search_over_architectures_is_no_soup() -> None:
    search = SEARCH.model_copy(update={"space": {"width": (8, 16)}})
    problems = {}
    for kind in ("soup", "average"):
        ensemble = parse_candidate({"type": kind, "of": ["early", "early-search"]})
        _, problems[kind] = resolve(
            [parse_candidate(EARLY), ensemble], task=TASK, searches=[search]
        )
    assert problems["average"] == []
    ((number, place, text),) = problems["soup"]
    assert (number, place) == (1, ("of", 1))
    assert "what 'early-search' finds differs in `width`" in text


def test_it_survives_json() -> None:
    values = [EARLY, {"type": "late"}, {"type": "average", "of": ["early", "late"]}]
    spec = with_members([parse_candidate(v) for v in values], task=TASK)[-1]
    assert parse_candidate(spec.model_dump(mode="json")) == spec
