from __future__ import annotations

from typing import Any, ClassVar, Literal

import pytest

from training.built_in import parse_candidate
from training.fitting.grouping import architecture, group
from training.spec import CandidateSpec
from training.training_spec import TrainingSpec

MODALITIES = ("caption", "photo")


class OwnSpec(CandidateSpec):
    """A candidate of a user's own, who says nothing of stacks."""

    type: Literal["own"] = "own"


class StackableSpec(CandidateSpec):
    """One whose author says that it may be stacked."""

    stackable: ClassVar[bool] = True
    type: Literal["stackable"] = "stackable"


def names(specs: list[CandidateSpec], training: TrainingSpec | None = None) -> list[list[str]]:
    groups = group(
        specs,
        specs=specs,
        modalities=[MODALITIES] * len(specs),
        training=training or TrainingSpec(batch_size=64),
    )
    return [[spec.name for spec in together] for together in groups]


def late(name: str, **options: Any) -> CandidateSpec:
    return parse_candidate({"type": "late", "name": name, "width": 64, **options})


def test_candidates_of_one_architecture_are_grouped_where_the_first_stands() -> None:
    specs = [
        late("a"),
        parse_candidate({"type": "early"}),
        late("b", seed=3, learning_rate=0.1, dropout=0.0, weight_decay=1, modality_dropout=0.5),
        late("wide", width=128),
        parse_candidate({"type": "alignment"}),
        late("c", seed=4),
        parse_candidate({"type": "alignment", "seed": 1, "name": "again"}),
    ]
    assert names(specs) == [["a", "b", "c"], ["early"], ["wide"], ["alignment"], ["again"]]


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ({"together": 1}, [["a"], ["b"], ["c"], ["d"], ["e"]]),
        ({"together": 2}, [["a", "b"], ["c", "d"], ["e"]]),
        ({"workers": 2}, [["a", "b", "c"], ["d", "e"]]),
        ({"workers": 2, "together": 2}, [["a", "b"], ["c", "d"], ["e"]]),
        ({"workers": 9}, [["a"], ["b"], ["c"], ["d"], ["e"]]),
        ({"compile": True}, [["a"], ["b"], ["c"], ["d"], ["e"]]),
        # Where a step is large, nothing is gained.
        ({"batch_size": 2**14}, [["a"], ["b"], ["c"], ["d"], ["e"]]),
        ({"batch_size": 2**14, "together": 4}, [["a", "b", "c", "d"], ["e"]]),
    ],
)
def test_as_many_as_pay_or_as_the_pipeline_says(training, expected) -> None:
    specs = [late(name, seed=i) for i, name in enumerate("abcde")]
    assert names(specs, TrainingSpec(**training)) == expected


def test_a_model_of_ones_own_is_stacked_only_if_its_author_says_so() -> None:
    assert architecture(OwnSpec(), modalities=MODALITIES) is None
    assert names([OwnSpec(name="a"), OwnSpec(name="b")]) == [["a"], ["b"]]
    assert names([StackableSpec(name="a"), StackableSpec(name="b", seed=1)]) == [["a", "b"]]


def test_other_modalities_are_another_architecture() -> None:
    spec = late("a")
    assert architecture(spec, modalities=("a", "b")) != architecture(spec, modalities=("a", "c"))
