"""What a shared space is worth on the rows of a table: probes, retrieval, classes by their names.

Every worker takes its part of the rows and all get all answers. Suffixes of tensors: N rows,
M modalities, S width of the shared space, C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from training.batch import ABSENT, Batch
from training.data.table import EmbeddingTable
from training.evaluation.answers import EVALUATION_SPLITS, map_rows
from training.evaluation.class_names import EmbeddedNames
from training.evaluation.metrics import RECALL_AT
from training.evaluation.neighbours import nearest_neighbours
from training.evaluation.probes import Linear, best_probe, prior_of
from training.evaluation.retrieval import Retrieval, retrieve
from training.faults import agreement_group
from training.models.probed import Probed
from training.models.shared_space import SharedSpace
from training.models.translation import Translation
from training.tasks import Classification
from training.workers import of_first_worker, sum_over_workers, worker_rank

LOG = logging.getLogger(__name__)
MOST_VALUES = 2**26
"""Numbers in the training rows that a probe is fitted to, or that neighbours are looked for among:
256 MiB as they are, and twice that for the fit. 260,000 rows of 256 numbers, 29,000 of 2,304."""


def fit_probe(
    model: Probed,
    *,
    table: EmbeddingTable,
    modalities: Sequence[str],
    device: torch.device | str = "cpu",
) -> None:
    """Fit the linear probe of a model on its training rows, and put it into the model.

    On what it makes of a row that has any modality, of so many rows as make `MOST_VALUES`; see
    `training.evaluation.probes`. Where these rows are all alike there is nothing to tell apart, and
    the probe answers the prior. All workers take part; the first one fits, however long it takes.
    """
    joint = {
        split: _joint(
            model,
            table=table,
            split=split,
            modalities=modalities,
            device=device,
            most=MOST_VALUES // max(1, model.probe_weight_CS.shape[1]),
            at_first=True,
        )
        for split in ("train", "validation")
    }
    prior_C = prior_of(table.task, table.targets[table.labelled("train")])
    weight_CS, bias_C = torch.zeros_like(model.probe_weight_CS), prior_C
    if len(joint["train"][1].unique(dim=0)) >= 2:
        fitted = None
        if worker_rank() == 0:
            arrays = {
                split: (vectors.cpu().double().numpy(), targets.numpy())
                for split, (vectors, targets) in joint.items()
            }
            fitted = best_probe(table.task, train=arrays["train"], validation=arrays["validation"])
        weight, bias = _of_the_one_that_fits(fitted)
        weight_CS, bias_C = torch.from_numpy(weight), torch.from_numpy(bias)
    model.set_probe(weight_CS=weight_CS, bias_C=bias_C, prior_C=prior_C)


def _of_the_one_that_fits(fitted: Linear | None) -> Linear:
    """What the first worker has fitted, on all; the others wait as long as that takes."""
    group = agreement_group()
    found = of_first_worker(fitted, group=group)
    if group is not None:
        dist.destroy_process_group(group)
    assert found is not None, "the first worker has fitted it"
    return found


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
    most = MOST_VALUES // max(1, model.probe_weight_CS.shape[1])
    known_NS, classes_N = _joint(model, split="train", most=most, **options)
    found: dict[str, float] = {}
    if not len(known_NS):
        return found
    known_NS, classes_N = F.normalize(known_NS, dim=1), classes_N.to(known_NS.device)

    def voted(batch: Batch) -> Tensor:
        """The class that has most votes, `[B]`; of equal ones the first."""
        votes_BC = nearest_neighbours(
            F.normalize(model.fuse(*batch.inputs), dim=1),
            known_NS=known_NS,
            classes_N=classes_N,
            classes=len(table.classes),
        )
        return votes_BC.argmax(dim=1)

    for split in EVALUATION_SPLITS:
        rows = _known_rows(table, split=split, modalities=modalities)
        if len(rows):
            answered_N = map_rows(voted, model=model, rows=rows, **options).cpu()
            found[split] = float((answered_N == table.targets[rows]).double().mean())
    return found


@torch.inference_mode()
def class_vectors(model: SharedSpace, *, modality: str, names: EmbeddedNames) -> Tensor:
    """What the names of the classes are in the space, unit vectors `[C, S]`.

    The mean over a class's wordings: prompt ensembling as in CLIP, Radford et al. 2021,
    https://arxiv.org/abs/2103.00020, section 3.1.4.
    """
    device = next(model.parameters()).device
    vectors_PS = model.eval().embed(
        modality,
        x=names.embeddings.to(device),
        present_B=torch.ones(len(names.embeddings), dtype=torch.bool, device=device),
        mask_BT=None if names.masks is None else names.masks.to(device),
    )
    sums_CS = vectors_PS.new_zeros(int(names.classes.max()) + 1, vectors_PS.shape[1])
    return F.normalize(sums_CS.index_add(0, names.classes.to(device), vectors_PS), dim=1)


def space_metrics(
    model: SharedSpace,
    *,
    table: EmbeddingTable,
    modalities: Sequence[str],
    names: tuple[str, EmbeddedNames | None] | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, dict[str, float]]:
    """Per evaluation split what else is told of a space that is to tell classes apart.

    `neighbour_accuracy`, and if `names` are given, the modality of texts and what
    `embed_class_names` gave on this worker, `zero_shot_accuracy.<modality>` for each. All workers
    take part.
    """
    if not isinstance(table.task, Classification):
        return {}
    options: dict[str, Any] = {"table": table, "device": device}
    nearest = neighbour_accuracy(model, modalities=modalities, **options)
    found: dict[str, dict[str, float]] = {split: {} for split in EVALUATION_SPLITS}
    for split, share in nearest.items():
        found[split]["neighbour_accuracy"] = share
    if names is not None:
        modality, embedded = names
        vectors_CS = model.probe_weight_CS.new_zeros(model.probe_weight_CS.shape)
        if embedded is not None:
            vectors_CS = class_vectors(model, modality=modality, names=embedded)
        # One worker has them, and the others zeros.
        vectors_CS = sum_over_workers(vectors_CS)
        zero_shot = zero_shot_accuracy(model, class_vectors_CS=vectors_CS, **options)
        for split, shares in zero_shot.items():
            found[split] |= {f"zero_shot_accuracy.{m}": share for m, share in shares.items()}
    return found


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
                found[split][modality] = _accuracy(scores_NC, targets_N=table.targets[rows][has_N])
    return found


def retrieval(
    model: SharedSpace | Translation,
    *,
    table: EmbeddingTable,
    modalities: Sequence[str],
    device: torch.device | str = "cpu",
) -> list[dict[str, Any]]:
    """From every modality to every other, over the test rows that have both.

    Recall@1, 5 and 10, median rank and mean average precision, of a row's own sample (and of
    those that hold the same payload, where the table numbers payloads) and of its class. By a
    translation, the query is what is made of one modality, and the gallery the other itself.
    """
    rows = table.split["test"]
    classes_N = table.task.class_indices(table.targets[rows])
    found = []
    vectors_NMS: Tensor | None = None
    if isinstance(model, SharedSpace):
        vectors_NMS = _vectors(model, table=table, rows=rows, device=device)
    for query, target in permutations(model.modalities, 2):
        both = (table.index[query][rows] != ABSENT) & (table.index[target][rows] != ABSENT)
        if not both.any():
            continue
        chosen = rows[both]
        if vectors_NMS is None:
            assert isinstance(model, Translation)
            pair_N2S = _compared(
                model, query=query, target=target, table=table, rows=chosen, device=device
            )
        else:
            places = [model.modalities.index(m) for m in (query, target)]
            pair_N2S = vectors_NMS[both.to(vectors_NMS.device)][:, places]
        numbers = [torch.arange(len(chosen))]
        numbers += [table.payloads[m][chosen] for m in (query, target) if m in table.payloads]

        def ranked(numbers_NI: Tensor, *, pair_N2S: Tensor = pair_N2S) -> Retrieval:
            return retrieve(
                pair_N2S[:, 0],
                gallery_NS=pair_N2S[:, 1],
                numbers_NI=numbers_NI.to(pair_N2S.device),
                ks=RECALL_AT,
            )

        own = ranked(torch.stack(numbers, dim=1))
        of_class = ranked(classes_N[both][:, None])
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


def _accuracy(scores_NC: Tensor, *, targets_N: Tensor) -> float:
    """Share of rows whose highest score is the target's; of equal scores the first class's."""
    return float((scores_NC.argmax(dim=1).cpu() == targets_N).double().mean())


def _known_rows(table: EmbeddingTable, *, split: str, modalities: Sequence[str]) -> Tensor:
    """Numbers of a split's labelled rows that have any of the modalities, ascending."""
    rows = table.labelled(split)
    return rows[torch.isin(rows, table.with_modalities(split, modalities=modalities, least=1))]


def _joint(
    model: Probed,
    *,
    table: EmbeddingTable,
    split: str,
    modalities: Sequence[str],
    device: torch.device | str,
    most: int,
    at_first: bool = False,
) -> tuple[Tensor, Tensor]:
    """Of a split's labelled rows that have any of the modalities: mean vectors and targets.

    Of more than `most` of them, as many are drawn, the same ones always; `at_first`, the vectors
    are on the first worker alone.
    """
    rows = _known_rows(table, split=split, modalities=modalities)
    if len(rows) > most:
        if worker_rank() == 0:
            LOG.info(
                "%s of the %s labelled %s rows tell what the space knows, drawn at random",
                f"{most:,}", f"{len(rows):,}", split,
            )  # fmt: skip
        drawn = np.random.default_rng(0).choice(len(rows), size=most, replace=False)
        rows = rows[torch.from_numpy(np.sort(drawn))]
    vectors_NS = map_rows(
        lambda batch: model.fuse(*batch.inputs),
        model=model,
        table=table,
        rows=rows,
        modalities=modalities,
        device=device,
        at_first=at_first,
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


def _compared(
    model: Translation,
    *,
    query: str,
    target: str,
    table: EmbeddingTable,
    rows: Tensor,
    device: torch.device | str,
) -> Tensor:
    """Translations and what they should be `[N, 2, D]`."""
    return map_rows(
        lambda batch: model.compared(*batch.inputs, query=query, target=target),
        model=model,
        table=table,
        rows=rows,
        modalities=model.modalities,
        device=device,
    )


def _by_text(values: Mapping[int, float]) -> dict[str, float]:
    return {str(k): value for k, value in values.items()}
