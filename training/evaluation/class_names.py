"""The names of classes as a text encoder embeds them: classes that are told without labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from features.encoders import Encoder, parse_encoder
from features.snapshot import Snapshot
from training.data.targets import Untrainable
from training.models.alignment_spec import ClassNames
from training.workers import sum_over_workers, worker_rank


@dataclass(frozen=True, kw_only=True)
class EmbeddedNames:
    """P wordings of C classes."""

    embeddings: Tensor
    """float32 `[P, D]`, of an encoder of sequences `[P, T, D]`."""
    classes: Tensor
    """int64 `[P]`: which class each words."""
    masks: Tensor | None
    """Of sequences bool `[P, T]`: true where a step is."""


def embed_class_names(
    spec: ClassNames,
    *,
    snapshot: Snapshot,
    classes: Sequence[Any],
    encoder: Encoder | None = None,
    device: torch.device | str = "cpu",
) -> EmbeddedNames | None:
    """The names' embeddings, by the encoder of the snapshot's modality, on the first worker.

    By another `encoder` that came of it, if one is given. None on the others; all take part.
    Untrainable, on every worker, if the modality is not one of texts, or its encoder is not here
    or is not the one of the snapshot.
    """
    found, reason = None, ""
    if worker_rank() == 0:
        try:
            found = _embed(spec, snapshot=snapshot, classes=classes, encoder=encoder)
        except Exception as error:  # the others have to be told, whatever it is
            reason = str(error)
    if float(sum_over_workers(torch.tensor(float(bool(reason)), device=device))):
        raise Untrainable(f"`class_names`: {reason or 'the first worker could not embed them'}")
    return found


def _embed(
    spec: ClassNames, *, snapshot: Snapshot, classes: Sequence[Any], encoder: Encoder | None
) -> EmbeddedNames:
    if not classes:
        raise ValueError("the task has no classes to name")
    part = snapshot.modalities[spec.modality]
    if part.kind != "text":
        raise ValueError(f"names are texts, and {spec.modality!r} is of kind {part.kind}")
    encoder_spec = parse_encoder(part.encoder)
    here = encoder_spec.fingerprint()
    if here != part.encoder_fingerprint:
        raise ValueError(
            f"the encoder {encoder_spec.type!r} of {spec.modality!r} has the fingerprint {here} "
            f"here, and {part.encoder_fingerprint} in the snapshot: its weights have changed"
        )
    encoder = encoder_spec.load() if encoder is None else encoder
    texts = [template.replace("{}", str(name)) for template in spec.templates for name in classes]
    rows: list[np.ndarray] = []
    for first in range(0, len(texts), encoder_spec.batch_size):
        some = texts[first : first + encoder_spec.batch_size]
        rows.extend(encoder.encode([encoder.prepare(text) for text in some]))
    # As they would have come from the store.
    stored = [torch.from_numpy(row.astype(encoder_spec.dtype)).float() for row in rows]
    masks = None
    if encoder_spec.sequence:
        lengths = torch.tensor([len(row) for row in stored])
        masks = torch.arange(int(lengths.max())) < lengths[:, None]
        embeddings = torch.nn.utils.rnn.pad_sequence(stored, batch_first=True)
    else:
        embeddings = torch.stack(stored)
    return EmbeddedNames(
        embeddings=embeddings,
        classes=torch.arange(len(classes)).repeat(len(spec.templates)),
        masks=masks,
    )
