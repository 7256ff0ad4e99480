"""What a fitted candidate's model answers: NumPy in, NumPy out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from training.candidate import CandidateRecord
from training.task import parse_task

if TYPE_CHECKING:
    import torch
    from torch import nn

    from training.batch import Tensors
    from training.tasks import Task


def task_of(record: CandidateRecord) -> Task:
    """The task that a candidate answers."""
    from training.tasks import restored_task

    return restored_task(
        parse_task(record.task),
        names=tuple(record.classes),
        scale=record.target_scale,
        temperature=record.temperature,
    )


def predict(
    model: nn.Module,
    *,
    record: CandidateRecord,
    embeddings: Mapping[str, np.ndarray | torch.Tensor],
    presence: Mapping[str, np.ndarray | torch.Tensor],
    masks: Mapping[str, np.ndarray | torch.Tensor] | None = None,
) -> np.ndarray:
    """A candidate's answers for embeddings `{modality: [B, D]}` of any float type: probabilities
    float32 `[B, C]`, numbers float64 `[B, K]`, or, of a retrieval, ranks among these very rows
    float32 `[B, P]`.

    `presence` `{modality: bool [B]}` says which rows have the modality; what stands in the
    embeddings of the others has no influence. Of sequences, `[B, T, D]`, `masks` bool `[B, T]`
    says where a step is.
    """
    import torch

    inputs = _inputs(model, embeddings=embeddings, presence=presence, masks=masks)
    with torch.inference_mode():
        if record.task.get("type") == "retrieval":
            from training.evaluation.ranks import ranks_of

            vectors, present = model.eval().embed_all(*inputs)  # type: ignore[operator]
            return ranks_of(vectors, presence_NM=present).numpy()
        return task_of(record).answers(model.eval()(*inputs)).cpu().numpy()


def shapley(
    model: nn.Module,
    *,
    record: CandidateRecord,
    embeddings: Mapping[str, np.ndarray | torch.Tensor],
    presence: Mapping[str, np.ndarray | torch.Tensor],
    masks: Mapping[str, np.ndarray | torch.Tensor] | None = None,
) -> dict[str, np.ndarray]:
    """By modality what it adds to each of a candidate's answers, float64 `[B, C]`; given as to
    `predict`.

    Exact Shapley values over the modalities that a row has, the others being of value 0: they sum
    to the answer of `predict` minus that to a row which has no modality. A pass for each of the
    2^M subsets. ValueError for a retrieval, which has no answer to one row, and for a model of more
    than `training.evaluation.coalitions.MOST_MODALITIES`.
    """
    import torch

    from training.evaluation.coalitions import (
        MOST_MODALITIES,
        answers_of_subsets,
        every_subset,
        shapley_values,
    )

    modalities = tuple(record.modalities)
    if record.task.get("type") == "retrieval":
        raise ValueError(
            "Shapley values are of what a model answers to a row; a retrieval ranks other rows, "
            "and has none"
        )
    if len(modalities) > MOST_MODALITIES:
        raise ValueError(
            f"exact Shapley values of {len(modalities)} modalities would take "
            f"{2 ** len(modalities):,} passes over the rows; they are given of {MOST_MODALITIES} "
            "at most"
        )
    inputs = _inputs(model, embeddings=embeddings, presence=presence, masks=masks)
    subsets = every_subset(modalities)
    with torch.inference_mode():
        answers_BSO = answers_of_subsets(
            model.eval(), task=task_of(record), subsets=subsets, inputs=inputs
        )
    found = shapley_values(answers_BSO, subsets=subsets, modalities=modalities)
    return {m: values.cpu().numpy() for m, values in found.items()}


def _inputs(
    model: nn.Module,
    *,
    embeddings: Mapping[str, np.ndarray | torch.Tensor],
    presence: Mapping[str, np.ndarray | torch.Tensor],
    masks: Mapping[str, np.ndarray | torch.Tensor] | None,
) -> tuple[Tensors, Tensors, Tensors]:
    """What a model takes, on its device."""
    import torch

    def tensor(values: np.ndarray | torch.Tensor) -> torch.Tensor:
        return values if isinstance(values, torch.Tensor) else torch.tensor(values)

    device = next(model.parameters()).device
    return (
        {m: tensor(x).to(device, torch.float32) for m, x in embeddings.items()},
        {m: tensor(x).to(device, torch.bool) for m, x in presence.items()},
        {m: tensor(x).to(device, torch.bool) for m, x in (masks or {}).items()},
    )


def fills(model: nn.Module, *, presence: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """Of a `filled` candidate's model: by modality, the rows in which it is drawn from the others,
    bool `[B]`.
    """
    import torch

    found = model.fills({m: torch.tensor(x) for m, x in presence.items()})  # type: ignore[operator]
    return {m: rows.numpy() for m, rows in found.items()}


def embed(
    model: nn.Module,
    *,
    embeddings: Mapping[str, np.ndarray],
    presence: Mapping[str, np.ndarray],
    masks: Mapping[str, np.ndarray] | None = None,
) -> Mapping[str, np.ndarray]:
    """Per modality the unit vectors float32 `[B, S]` of an alignment; zero in rows without it."""
    import torch

    device = next(model.parameters()).device
    with torch.inference_mode():
        vectors, _ = model.eval().embed_all(  # type: ignore[operator]
            {m: torch.tensor(x).to(device, torch.float32) for m, x in embeddings.items()},
            {m: torch.tensor(x).to(device, torch.bool) for m, x in presence.items()},
            {m: torch.tensor(x).to(device, torch.bool) for m, x in (masks or {}).items()},
        )
    # In the model's order, which is not that of what it is given.
    return {m: vectors[:, i].float().cpu().numpy() for i, m in enumerate(model.modalities)}  # type: ignore[arg-type]


def ranks(
    vectors: Mapping[str, np.ndarray],
    *,
    presence: Mapping[str, np.ndarray],
    payloads: Mapping[str, np.ndarray],
) -> np.ndarray:
    """A retrieval's answers float32 `[B, P]`, from what `embed` gives and the numbers of payloads
    int64 `[B]`; see `training.evaluation.ranks`.
    """
    import torch

    from training.evaluation.ranks import ranks_of

    vectors_BMS, present_BM, payloads_BM = (
        torch.stack([torch.from_numpy(part[m]) for m in vectors], dim=1)
        for part in (vectors, presence, payloads)
    )
    return ranks_of(vectors_BMS, presence_NM=present_BM, payloads_NM=payloads_BM).numpy()
