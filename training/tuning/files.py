"""Tuned encoders in the store: one folder each, which stage 1 takes as `model:` like any other.

    candidates/<candidate>/encoder-<modality>-<fingerprint>/    config, weights, tokenizer …

Low-rank matrices are merged into the weights, so that nothing that reads the folder has to know
of them. The candidate's own model file holds the head alone, a model over embeddings.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

from torch import nn

from features.store import Store
from training.candidate import CandidateRecord, candidate_path
from training.tuning.model import LiveModel, TunedEncoder


def write_encoders(store: Store, record: CandidateRecord, *, model: nn.Module) -> CandidateRecord:
    """Write the encoders that a fitted model has tuned, if any; the record that names them.

    Per tuned modality the record gets `tuned`: the
    encoder's spec, whose `model` is the folder as seen from the candidate's own, its fingerprint,
    and the folder's files.
    """
    if not isinstance(model, LiveModel):
        return record
    modalities = {name: dict(part) for name, part in record.modalities.items()}
    for modality, encoder in model.encoders.items():
        assert isinstance(encoder, TunedEncoder)
        with tempfile.TemporaryDirectory(prefix="encoder-") as made:
            encoder.encoder.save(made, module=encoder.tuning.merged())
            spec = encoder.spec.model_copy(update={"model": made, "revision": None})
            fingerprint = spec.fingerprint()
            folder = f"encoder-{modality}-{fingerprint}"
            files = sorted(
                str(path.relative_to(made)) for path in Path(made).rglob("*") if path.is_file()
            )
            for name in files:
                path = candidate_path(record.fingerprint, f"{folder}/{name}")
                store.storage.write_once(path, (Path(made) / name).read_bytes())
        described = {**spec.model_dump(mode="json"), "model": f"./{folder}"}
        modalities[modality]["tuned"] = {
            "encoder": described,
            "encoder_fingerprint": fingerprint,
            "files": [f"{folder}/{name}" for name in files],
        }
    return dataclasses.replace(record, modalities=modalities)
