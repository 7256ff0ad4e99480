"""A search over records: what is proposed, what goes on, and what is left when it is over.

Fits are made up, so that what they come to is known; one search is fitted for real.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from features.snapshot import Snapshot
from features.store import Store
from training.built_in import parse_candidate
from training.candidate import CandidateRecord, plan_candidates, write_candidate
from training.data.table import EmbeddingTable, load_table
from training.produce import produce_candidate
from training.search.proposals import NothingToPropose, Proposals
from training.search.spec import SearchSpec
from training.search.walk import Round, Search, follow
from training.spec import CandidateSpec
from training.task import ClassificationSpec
from training.training_spec import TrainingSpec

TASK = ClassificationSpec(target="label")
TRAINING = TrainingSpec(batch_size=64, max_epochs=18)
BASE = parse_candidate({"type": "early", "width": 8})
SPACE = {"learning_rate": {"low": 1e-4, "high": 1e-1, "log": True}, "width": [4, 8, 16]}
SEARCH = SearchSpec.model_validate({"of": "early", "trials": 12, "generation": 5, "space": SPACE})
ROOT = Path(__file__).resolve().parents[2]
Outcome = Callable[[CandidateSpec, TrainingSpec], float | None]


def distance(spec: CandidateSpec, training: TrainingSpec) -> float:
    """A loss that is least at a rate of 0.01 and a width of 16, and falls with the epochs."""
    return abs(math.log10(spec.learning_rate) + 2) + 4 / spec.width + 1 / training.max_epochs


def step(
    store: Store, snapshot: Snapshot, *, search: SearchSpec = SEARCH, training=TRAINING, base=BASE
) -> Search:
    return follow(
        search, base=base, store=store, snapshot=snapshot, task=TASK, training=training, keep=True
    )


def pretend(
    store: Store, snapshot: Snapshot, todo: Round, *, outcome: Outcome, at_most: int = 99
) -> None:
    """Write the records of a round's fits, with what they come to; None for one that failed."""
    planned = plan_candidates(
        store, snapshot=snapshot, task=TASK, candidates=todo.candidates, training=todo.training
    )
    for candidate in [c for c in planned if c.record is None][:at_most]:
        value = outcome(candidate.spec, todo.training)
        metrics = {"loss": value, "accuracy": None if value is None else 1 - value / 10}
        epochs = [{"epoch": 1, "validation_loss": value, "validation_metrics": metrics}]
        record = CandidateRecord(
            fingerprint=candidate.fingerprint,
            name=candidate.spec.name,
            spec=candidate.spec.model_dump(mode="json"),
            training=todo.training.model_dump(mode="json"),
            task=TASK.model_dump(mode="json"),
            snapshot=snapshot.id,
            part=snapshot.part(modalities=candidate.modalities),
            classes=["cat"],
            modalities={m: {} for m in candidate.modalities},
            parameters=1,
            status="failed" if value is None else "fitted",
            failure={"reason": "the loss is not finite"} if value is None else None,
            best_epoch=None if value is None else 1,
            epochs=[] if value is None else epochs,
            seconds=0.0,
            workers=1,
            metrics=None,
            retrieval=None,
        )
        write_candidate(store, record)


def run(
    store: Store, snapshot: Snapshot, *, outcome: Outcome = distance, **options: Any
) -> tuple[Search, list[Round]]:
    """A whole search, and its rounds."""
    rounds = []
    while (found := step(store, snapshot, **options)).round is not None:
        rounds.append(found.round)
        pretend(store, snapshot, found.round, outcome=outcome)
    return found, rounds


def test_rounds_are_generations_then_rungs_then_seeds(make_store) -> None:
    found, rounds = run(*make_store())
    assert [(len(r.candidates), r.training.max_epochs) for r in rounds] == [
        (5, 2), (5, 2), (2, 2),  # 12 trials, on a ninth of the epochs
        (4, 6),
        (2, 18),
        (6, 18),  # two finalists, three seeds each
    ]  # fmt: skip
    assert rounds[-1].training == rounds[-2].training == TRAINING
    names = [spec.name for round_ in rounds[:3] for spec in round_.candidates]
    assert names == [f"early-search-{i:02}" for i in range(12)]
    assert found.candidates == rounds[-1].candidates
    best = found.best.spec.name
    assert [spec.name for spec in found.candidates[:3]] == [
        best,
        f"{best}-seed-1",
        f"{best}-seed-2",
    ]
    assert [spec.seed for spec in found.candidates] == [0, 1, 2] * 2
    # What is compared with the other candidates is, but for its values, the candidate itself.
    first = found.candidates[0]
    assert first.model_copy(update={"name": "early", **found.best.values}) == BASE.model_copy(
        update=dict(found.best.values)
    )


def test_halving_keeps_the_best_of_each_rung(make_store) -> None:
    """Against sorting by hand, with what each trial came to on that rung."""
    found, rounds = run(*make_store())
    for rung, below in ((1, rounds[:3]), (2, rounds[3:4])):
        before = [spec for round_ in below for spec in round_.candidates]
        ranked = sorted(before, key=lambda spec: distance(spec, below[0].training))
        went_on = rounds[2 + rung].candidates
        assert list(went_on) == ranked[: len(went_on)]
    for trial in found.trials:
        epochs = [2, 6, 18][: len(trial.reached)]
        expected = [distance(trial.spec, TrainingSpec(max_epochs=n)) for n in epochs]
        assert trial.reached == expected


def test_a_trial_that_is_slow_to_start_may_overtake(make_store) -> None:
    """Each rung is judged by itself: the best of the last rung is that of its own fits."""

    def turning(spec: CandidateSpec, training: TrainingSpec) -> float:
        value = distance(spec, training)
        return -value if training.max_epochs == 18 else value

    found, rounds = run(*make_store(), outcome=turning)
    last = rounds[4].candidates
    assert found.best.spec == max(last, key=lambda spec: distance(spec, TRAINING))


def test_the_best_trial_is_that_of_the_best_mean_over_its_seeds(make_store) -> None:
    """The better of two finalists by its own seed is worse with the others."""
    lucky: list[dict[str, Any]] = []

    def outcome(spec: CandidateSpec, training: TrainingSpec) -> float:
        value = distance(spec, training)
        values = {"learning_rate": spec.learning_rate, "width": spec.width}
        if training == TRAINING and spec.seed == 0 and not lucky:
            lucky.append(values)
            value = 0.0
        return value + (3.0 if values in lucky and spec.seed > 0 else 0.0)

    store, snapshot = make_store()
    found, _ = run(store, snapshot, outcome=outcome)
    first, second = found.candidates[0], found.candidates[3]
    assert [first.seed, second.seed] == [0, 0]
    best = found.best
    assert best.spec == first and dict(best.values) not in lucky
    other = next(trial for trial in found.trials if trial.spec == second)
    assert dict(other.values) in lucky and other.by_seed[0] == 0.0 and other.reached[-1] == 0.0
    assert other.settled > best.settled == pytest.approx(sum(best.by_seed) / 3)
    # So it was written down, too; what an earlier version wrote is looked at again.
    (path,) = (Path(store.storage.root) / "searches").iterdir()
    kept = json.loads(path.read_text())
    for item in kept["trials"]:
        del item["by_seed"]
    old, _ = json.dumps(kept), path.unlink()
    path.write_text(old)
    assert step(store, snapshot).candidates == found.candidates
    again = step(store, snapshot)
    assert again.candidates == found.candidates and again.best.settled == best.settled


def test_a_finalist_that_fails_with_most_seeds_is_not_the_best(make_store) -> None:
    best = min(run(*make_store("first"))[0].candidates, key=lambda s: distance(s, TRAINING))

    def outcome(spec: CandidateSpec, training: TrainingSpec) -> float | None:
        mine = (spec.learning_rate, spec.width) == (best.learning_rate, best.width)
        return None if mine and spec.seed > 0 else distance(spec, training)

    found, _ = run(*make_store("second"), outcome=outcome)
    assert found.best.spec != best and found.candidates[3] == best
    assert len(found.candidates) == 6


def test_it_is_written_down_where_each_trial_was_stopped(make_store) -> None:
    store, snapshot = make_store()
    found, _ = run(store, snapshot)
    (path,) = (Path(store.storage.root) / "searches").iterdir()
    kept = json.loads(path.read_text())
    assert kept["monitor"] == "loss"
    rungs = [len(trial["rungs"]) for trial in kept["trials"]]
    assert sorted(rungs) == [1] * 8 + [2] * 2 + [3] * 2
    assert [trial["stopped"] for trial in kept["trials"]] == [n < 3 for n in rungs]
    assert {r["max_epochs"] for t in kept["trials"] for r in t["rungs"]} == {2, 6, 18}
    assert step(store, snapshot) == found


def test_looking_writes_nothing(make_store) -> None:
    store, snapshot = make_store()
    run(store, snapshot)
    folder = Path(store.storage.root) / "searches"
    (path,) = folder.iterdir()
    path.unlink()
    options = {"store": store, "snapshot": snapshot, "task": TASK, "training": TRAINING}
    assert follow(SEARCH, base=BASE, **options).round is None
    assert list(folder.iterdir()) == []


def test_what_is_written_down_needs_neither_optuna_nor_the_trials(
    make_store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, snapshot = make_store()
    found, _ = run(store, snapshot)
    for path in (Path(store.storage.root) / "candidates").glob("*/record.json"):
        path.unlink()
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert step(store, snapshot) == found


def test_a_search_without_optuna_says_what_to_install(
    make_store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"pip install 'sensorium\[search\]'"):
        step(*make_store())


PROPOSE = """
import json
from training.built_in import parse_candidate
from training.search.proposals import Proposals
from training.search.spec import SearchSpec

space = {"learning_rate": {"low": 1e-4, "high": 1e-1, "log": True}, "width": [4, 8, 16]}
search = SearchSpec.model_validate({"of": "early", "trials": 12, "generation": 5, "space": space})
base = parse_candidate({"type": "early", "width": 8})
proposals = Proposals(search, base=base, lower_is_better=True)
found = []
for count in (5, 5, 2):
    asked = proposals.ask(count)
    proposals.tell([abs(spec.learning_rate - 0.01) + 1 / spec.width for _, spec in asked])
    found += [values for values, _ in asked]
print(json.dumps(found))
"""


def test_two_processes_propose_the_same() -> None:
    command = [sys.executable, "-c", PROPOSE]
    processes = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    outputs = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    assert outputs[0] == outputs[1]
    assert len({json.dumps(values) for values in outputs[0]}) > 6


def test_another_seed_proposes_others() -> None:
    def first(**options: Any) -> list[Any]:
        search = SEARCH.model_copy(update=options)
        return [v for v, _ in Proposals(search, base=BASE, lower_is_better=True).ask(5)]

    assert first() == first()
    assert first(seed=1) != first()


def test_later_generations_learn_from_those_before() -> None:
    """Where a rate of 0.1 is told to be best, it is near there that more is tried."""

    def rates(best: float) -> list[float]:
        search = SEARCH.model_copy(update={"trials": 60, "generation": 10})
        proposals = Proposals(search, base=BASE, lower_is_better=True)
        for _ in range(5):
            asked = [spec.learning_rate for _, spec in proposals.ask(10)]
            proposals.tell([abs(math.log10(rate / best)) for rate in asked])
        return [spec.learning_rate for _, spec in proposals.ask(10)]

    high, low = sorted(rates(1e-1)), sorted(rates(1e-4))
    assert high[5] > 10 * low[5]


def test_a_search_killed_in_the_middle_of_each_round_ends_the_same(make_store) -> None:
    store, snapshot = make_store("whole")
    found, rounds = run(store, snapshot)
    other, _ = make_store("killed")
    again = []
    while (now := step(other, snapshot)).round is not None:
        again.append(now.round)
        pretend(other, snapshot, now.round, outcome=distance, at_most=2)
    assert now == found
    # A round that is begun is the same round until it is done.
    assert list(dict.fromkeys(r.title for r in again)) == [r.title for r in rounds]
    assert {r.title: r for r in again} == {r.title: r for r in rounds}
    files = [
        {
            p.relative_to(s.storage.root): p.read_bytes()
            for p in Path(s.storage.root).rglob("*.json")
        }
        for s in (store, other)
    ]
    assert files[0] == files[1]


def test_a_monitor_of_which_more_is_better_turns_it_round(make_store) -> None:
    training = TRAINING.model_copy(update={"monitor": "accuracy"})
    by_loss, _ = run(*make_store("loss"))
    by_accuracy, _ = run(*make_store("accuracy"), training=training)
    # The made-up accuracy falls as the loss rises.
    assert [t.spec for t in by_accuracy.trials[:5]] == [t.spec for t in by_loss.trials[:5]]
    assert by_accuracy.best.reached[-1] == max(
        t.reached[-1] for t in by_accuracy.trials if len(t.reached) == 3
    )


def test_a_trial_that_failed_goes_no_further(make_store) -> None:
    def wild(spec: CandidateSpec, training: TrainingSpec) -> float | None:
        return None if spec.learning_rate > 3e-3 else distance(spec, training)

    found, rounds = run(*make_store(), outcome=wild)
    failed = {t.number for t in found.trials if t.reached == [None]}
    assert failed
    assert all(s.learning_rate <= 3e-3 for r in rounds[3:] for s in r.candidates)


def test_if_all_fail_one_is_left_to_say_so(make_store) -> None:
    found, _ = run(*make_store(), outcome=lambda *_: None)
    assert {spec.model_copy(update={"name": "", "seed": 0}) for spec in found.candidates} == {
        found.trials[0].spec.model_copy(update={"name": ""})
    }


def test_the_same_values_are_one_trial_and_fitted_once(make_store) -> None:
    search = SEARCH.model_copy(update={"space": {"width": (4, 8)}})
    found, rounds = run(*make_store(), search=search)
    # Further generations hold nothing new, and are done as they are proposed.
    assert [len(r.candidates) for r in rounds] == [5, 2, 2, 6]
    assert {spec.width for spec in rounds[1].candidates} == {4, 8}
    assert found.best.values == {"width": 8}


def test_values_that_do_not_go_together_are_drawn_again(make_store) -> None:
    base = parse_candidate({"type": "attention", "width": 12})
    space = {"width": [12, 20, 30], "heads": [3, 4, 5]}
    search = SearchSpec.model_validate({"of": "attention", "space": space, "trials": 20})
    proposals = Proposals(search, base=base, lower_is_better=True)
    specs = [spec for _, spec in proposals.ask(20)]
    assert len({(s.width, s.heads) for s in specs}) > 2
    assert all(s.width % s.heads == 0 for s in specs)
    assert [s.name for s in specs] == [f"attention-search-{i:02}" for i in range(20)]
    never = SearchSpec.model_validate({"of": "attention", "space": {"width": [13, 17]}})
    with pytest.raises(NothingToPropose, match=r"'attention': 100 draws .* multiple of `heads` 4"):
        Proposals(never, base=base, lower_is_better=True).ask(1)


def test_whole_numbers_stay_whole_and_others_do_not() -> None:
    space = {"width": {"low": 4, "high": 64, "log": True}, "dropout": {"low": 0, "high": 0.5}}
    search = SearchSpec.model_validate({"of": "early", "space": space})
    specs = [s for _, s in Proposals(search, base=BASE, lower_is_better=True).ask(8)]
    assert all(type(s.width) is int and 4 <= s.width <= 64 for s in specs)
    assert all(type(s.dropout) is float and 0 <= s.dropout <= 0.5 for s in specs)
    assert len({s.dropout for s in specs}) == 8


def test_what_a_search_is_does_not_depend_on_the_name_of_its_candidate(make_store) -> None:
    store, snapshot = make_store()
    run(store, snapshot)
    base = BASE.model_copy(update={"name": "mine"})
    found = step(store, snapshot, search=SEARCH.model_copy(update={"of": "mine"}), base=base)
    assert found.round is None
    assert all(spec.name.startswith("mine-search-") for spec in found.candidates)
    assert step(store, snapshot, search=SEARCH.model_copy(update={"seed": 1})).round is not None
    assert step(store, snapshot, base=BASE.model_copy(update={"dropout": 0.3})).round is not None


def fitted(store: Store, snapshot: Snapshot, *, table: EmbeddingTable, **search: Any) -> Search:
    """A whole search, fitted for real."""
    options: dict[str, Any] = {"store": store, "snapshot": snapshot, "task": TASK}
    while (now := step(store, snapshot, **search)).round is not None:
        todo = now.round
        for candidate in plan_candidates(
            candidates=todo.candidates, training=todo.training, **options
        ):
            if candidate.record is None:
                produce_candidate(candidate, table=table, training=todo.training, **options)
    return now


def test_a_search_of_real_fits_does_not_look_at_the_test_rows(make_store) -> None:
    """With the test labels turned round, the same is proposed, kept and found."""
    search = SearchSpec.model_validate(
        {"of": "early", "trials": 2, "generation": 1, "rungs": 2, "finalists": 1, "seeds": 1,
         "space": {"learning_rate": [1e-2, 3e-3, 1e-3, 1e-5]}}
    )  # fmt: skip
    training = TrainingSpec(batch_size=64, max_epochs=3)
    found = []
    for turned in (False, True):
        store, snapshot = make_store("turned" if turned else "plain", rows=96)
        table = load_table(store, snapshot, task=TASK, modalities=tuple(snapshot.modalities))
        if turned:
            test = table.split["test"]
            table.targets[test] = table.targets[test].flip(0)
        now = fitted(store, snapshot, table=table, search=search, training=training)
        found.append(now)
    assert found[0] == found[1]
    assert all(value is not None for trial in found[0].trials for value in trial.reached)
    assert len(found[0].candidates) == 1


def test_what_has_a_loss_of_its_own_is_compared_by_what_it_is_for(make_store) -> None:
    """One variate leaves the least distance between modalities, and tells no class."""
    store, snapshot = make_store()
    table = load_table(store, snapshot, task=TASK, modalities=tuple(snapshot.modalities))
    base = parse_candidate({"type": "cca"})
    search = SearchSpec.model_validate(
        {"of": "cca", "trials": 4, "generation": 4, "rungs": 1, "seed": 0,
         "space": {"dim": [1, 3, 4, 5]}}
    )  # fmt: skip
    found = fitted(store, snapshot, table=table, search=search, base=base)
    planned = plan_candidates(
        store,
        snapshot=snapshot,
        task=TASK,
        candidates=[trial.spec for trial in found.trials],
        training=TRAINING,
    )
    records = [candidate.record for candidate in planned if candidate.record is not None]
    losses = [record.epochs[0]["validation_loss"] for record in records]
    right = [(record.metrics or {})["validation"]["accuracy"] for record in records]
    assert [trial.reached for trial in found.trials] == [[share] for share in right]
    assert found.best.reached[0] == max(right)
    assert losses[right.index(max(right))] > min(losses), "the loss would have chosen another"
    # Nothing is drawn in a closed form, so there is no other seed to try.
    assert len(found.candidates) == len({record.fingerprint for record in records})
    ranked = TrainingSpec(monitor="log_loss").ranking("own", task=TASK)
    assert (ranked.name, ranked.lower_is_better) == ("log_loss", True)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"space": {"width": {"low": 8, "high": 4}}}, "`low` 8 is not below `high` 4"),
        ({"space": {"dropout": {"low": 0, "high": 1, "log": True}}}, "`low` 0 has no logarithm"),
        ({"space": {"width": {"low": 8, "hihg": 16}}}, "did you mean 'high'"),
        ({"space": {"width": [8]}}, "two values or more"),
        ({"space": {"width": [8, 8]}}, "stands in the list twice"),
        ({"space": {"width": 8}}, r"a range, \{low: 0.1, high: 0.5\}, or a list"),
        ({"space": {}}, "at least 1"),
        ({"trials": 2, "finalists": 3}, "`finalists` 3 are more than `trials` 2"),
        ({"reduction": 1}, "greater than or equal to 2"),
        ({"trails": 3}, "did you mean 'trials'"),
    ],
)
def test_a_bad_search_is_refused_with_the_reason(value: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchSpec.model_validate({"of": "early", "space": SPACE, **value})


@pytest.mark.parametrize(
    ("base", "search", "place", "message"),
    [
        ({}, {"space": {"widht": [8, 16]}}, ("space", "widht"), "did you mean 'width'"),
        ({}, {"space": {"seed": [0, 1]}}, ("space", "seed"), "allowed: dropout, learning_rate"),
        ({}, {"space": {"width": [8, 0]}}, ("space", "width", 1), r"or equal to 1 \(value: 0\)"),
        ({}, {"space": {"dropout": {"low": 0, "high": 1}}}, ("space", "dropout", "high"), "less"),
        ({}, {"space": {"width": {"low": 8, "high": 9.5}}}, ("space", "width"), "whole numbers"),
        (
            {"type": "late"},
            {"space": {"combine": {"low": 0, "high": 1}}},
            ("space", "combine"),
            "'learned', which is no number; give a list",
        ),
        (
            {"type": "late"},
            {"space": {"combine": ["mean", "mode"]}},
            ("space", "combine", 1),
            "mode",
        ),
        ({}, {"rungs": 4, "space": SPACE}, ("rungs",), "first of 4 rungs .* 27 epochs or more"),
        (
            {"type": "cca"},
            {"space": {"dropout": [0.1, 0.2]}},
            ("space", "dropout"),
            "'cca' has no field 'dropout' that can be searched; allowed: class_names, dim, regul",
        ),
        ({"type": "average", "of": ["a", "b"]}, {"space": SPACE}, ("of",), "no fields to search"),
    ],
)
def test_what_does_not_suit_the_candidate_is_told_in_its_place(
    base: dict[str, Any], search: dict[str, Any], place: tuple[Any, ...], message: str
) -> None:
    spec = parse_candidate({"type": "early", **base})
    wrong = SearchSpec.model_validate({"of": spec.name, **search})
    ((where, text),) = wrong.problems(spec, training=TRAINING)
    assert where == place
    with pytest.raises(ValueError, match=message):
        raise ValueError(text)


def test_a_search_in_its_place_has_no_problem() -> None:
    assert list(SEARCH.problems(BASE, training=TRAINING)) == []
    text = SearchSpec.model_validate({"of": "early", "space": {"learning_rate": ["1e-3", "1e-2"]}})
    assert list(text.problems(BASE, training=TRAINING)) == []
