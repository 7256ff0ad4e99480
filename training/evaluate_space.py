"""What a shared space is worth on the rows of a table: probes, retrieval, classes by their names.

Every worker takes its part of the rows and all get all answers. Suffixes of tensors: N rows,
M modalities, S width of the shared space, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from training.data import EmbeddingTable
from training.evaluate import EVALUATION_SPLITS, map_rows
from training.metrics import accuracy
from training.probe import best_linear_probe, nearest_neighbours
from training.retrieval import Retrieval, retrieve
from training.shared_space import SharedSpace
from training.targets import ABSENT
from training.workers import worker_count, worker_rank

RECALL_AT = (1, 5, 10)


def fit_probe(
    model: SharedSpace,
    *,
    table: EmbeddingTable,
    modalities: Sequence[str],
    device: torch.device | str = "cpu",
) -> None:
    """Fit the linear probe of a shared space on its training rows, and put it into the model.

    Logistic regression on the mean of a row's present unit vectors, as CLIP's linear probe
    (Radford et al. 2021, appendix A.3). Where these rows are not of two classes there is nothing
    to tell apart, and the probe answers the prior. All workers take part; the first one fits.
    """
    joint = {
        split: _joint(model, table=table, split=split, modalities=modalities, device=device)
        for split in ("train", "validation")
    }
    counts = torch.bincount(table.targets[table.labelled("train")], minlength=len(table.classes))
    prior_C = ((counts + 1) / (counts + 1).sum()).log()
    if len(joint["train"][1].unique()) < 2:
        model.set_probe(
            weight_CS=torch.zeros_like(model.probe_weight_CS), bias_C=prior_C, prior_C=prior_C
        )
        return
    if worker_rank() == 0:
        arrays = {
            split: (vectors.cpu().double().numpy(), classes.numpy())
            for split, (vectors, classes) in joint.items()
        }
        weight, bias = best_linear_probe(
            train=arrays["train"], validation=arrays["validation"], classes=len(table.classes)
        )
        model.set_probe(
            weight_CS=torch.from_numpy(weight), bias_C=torch.from_numpy(bias), prior_C=prior_C
        )
    if worker_count() > 1:
        for value in (model.probe_weight_CS, model.probe_bias_C, model.prior_C):
            dist.broadcast(value, src=0)


def neighbour_accuracy(
    model: SharedSpace,
    *,
    table: EmbeddingTable,
    modalities: Sequence[str],
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Per evaluation split, how often the nearest training rows vote for a row's class.

    Over the labelled rows that have any of the modalities; a split without one is left out, and
    so are all if no training row is known.
    """
    options: dict[str, Any] = {"table": table, "modalities": modalities, "device": device}
    known_NS, classes_N = _joint(model, split="train", **options)
    found: dict[str, float] = {}
    if not len(known_NS):
        return found
    known_NS = F.normalize(known_NS, dim=1)
    for split in EVALUATION_SPLITS:
        queries_QS, targets_Q = _joint(model, split=split, **options)
        if len(queries_QS):
            votes_QC = nearest_neighbours(
                F.normalize(queries_QS, dim=1),
                known_NS=known_NS,
                classes_N=classes_N.to(known_NS.device),
                classes=len(table.classes),
            )
            found[split] = accuracy(votes_QC, targets_N=targets_Q.to(votes_QC.device))
    return found


@torch.inference_mode()
def class_vectors(
    model: SharedSpace,
    *,
    modality: str,
    names: Tensor,
    classes: Tensor,
    count: int,
    masks: Tensor | None = None,
) -> Tensor:
    """What the names of `count` classes are in the space, unit vectors `[C, S]`.

    `names` float `[P, D]` (`[P, T, D]` with `masks` bool `[P, T]`) are what the encoder of a text
    modality makes of one or more wordings for each class, and `classes` int64 `[P]` which class
    each words. The mean over a class's wordings is taken: prompt ensembling as in CLIP, Radford et
    al. 2021, https://arxiv.org/abs/2103.00020, section 3.1.4.
    """
    device = next(model.parameters()).device
    vectors_PS = model.eval().embed(
        modality,
        x=names.to(device, torch.float32),
        present_B=torch.ones(len(names), dtype=torch.bool, device=device),
        mask_BT=None if masks is None else masks.to(device),
    )
    sums_CS = vectors_PS.new_zeros(count, vectors_PS.shape[1])
    return F.normalize(sums_CS.index_add(0, classes.to(device), vectors_PS), dim=1)


def zero_shot_accuracy(
    model: SharedSpace,
    *,
    table: EmbeddingTable,
    class_vectors_CS: Tensor,
    device: torch.device | str = "cpu",
) -> dict[str, dict[str, float]]:
    """Per evaluation split and modality, how often a row's nearest class name is its own.

    No label has been learned from: Radford et al. 2021, section 3.1.2. Over the labelled rows
    that have the modality; a modality that none of them has is left out.
    """
    found: dict[str, dict[str, float]] = {}
    for split in EVALUATION_SPLITS:
        rows = table.labelled(split)
        vectors_NMS = _vectors(model, table=table, rows=rows, device=device)
        found[split] = {}
        for place, modality in enumerate(model.modalities):
            has_N = table.index[modality][rows] != ABSENT
            if has_N.any():
                scores_NC = vectors_NMS[has_N.to(vectors_NMS.device), place] @ class_vectors_CS.T
                found[split][modality] = accuracy(
                    scores_NC, targets_N=table.targets[rows][has_N].to(scores_NC.device)
                )
    return found


def retrieval(
    model: SharedSpace,
    *,
    table: EmbeddingTable,
    modalities: Sequence[str],
    device: torch.device | str = "cpu",
) -> list[dict[str, Any]]:
    """From every modality to every other, over the test rows that have both.

    Recall@1, 5 and 10, median rank and mean average precision, of a row's own sample (and of
    those that hold the same payload, where the table numbers payloads) and of its class.
    """
    rows = table.split["test"]
    vectors_NMS = _vectors(model, table=table, rows=rows, device=device)
    found = []
    for query, target in permutations(model.modalities, 2):
        both = (table.index[query][rows] != ABSENT) & (table.index[target][rows] != ABSENT)
        if not both.any():
            continue
        place = both.to(vectors_NMS.device)
        chosen = rows[both]
        numbers = [torch.arange(len(chosen))]
        numbers += [table.payloads[m][chosen] for m in (query, target) if m in table.payloads]

        def ranked(
            numbers_NI: Tensor, *, query: str = query, target: str = target, place: Tensor = place
        ) -> Retrieval:
            return retrieve(
                vectors_NMS[place, model.modalities.index(query)],
                gallery_NS=vectors_NMS[place, model.modalities.index(target)],
                numbers_NI=numbers_NI.to(vectors_NMS.device),
                ks=RECALL_AT,
            )

        own = ranked(torch.stack(numbers, dim=1))
        of_class = ranked(table.targets[chosen][:, None])
        found.append(
            {
                "query": query,
                "target": target,
                "split": "test",
                "rows": own.queries,
                "gallery": own.gallery,
                "recall": _by_text(own.recall),
                "chance": _by_text(own.chance),
                "median_rank": own.median_rank,
                "mean_average_precision": own.mean_average_precision,
                "class_rows": of_class.queries,
                "class_recall": _by_text(of_class.recall),
                "class_chance": _by_text(of_class.chance),
                "class_mean_average_precision": of_class.mean_average_precision,
            }
        )
    return found


def _joint(
    model: SharedSpace,
    *,
    table: EmbeddingTable,
    split: str,
    modalities: Sequence[str],
    device: torch.device | str,
) -> tuple[Tensor, Tensor]:
    """Of a split's labelled rows that have any of the modalities: mean vectors and classes."""
    rows = table.labelled(split)
    rows = rows[torch.isin(rows, table.with_modalities(split, modalities=modalities, least=1))]
    vectors_NS = map_rows(
        lambda batch: model.fuse(*batch.inputs),
        model=model,
        table=table,
        rows=rows,
        modalities=modalities,
        device=device,
    )
    return vectors_NS, table.targets[rows]


def _vectors(
    model: SharedSpace, *, table: EmbeddingTable, rows: Tensor, device: torch.device | str
) -> Tensor:
    """Unit vectors of all modalities `[N, M, S]`, zero where one is missing."""
    return map_rows(
        lambda batch: model.embed_all(*batch.inputs)[0],
        model=model,
        table=table,
        rows=rows,
        modalities=model.modalities,
        device=device,
    )


def _by_text(values: Mapping[int, float]) -> dict[str, float]:
    return {str(k): value for k, value in values.items()}
