"""Encoders that take statistics of the training split, fitted to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from features.columns import read_as_text
from features.encoders import EncoderSpec
from features.fit import FitSample
from features.payload_keys import depends_on_files, payload_keys
from features.sources import Source
from features.spec import DatasetSpec, FeatureSpec
from features.split import Strata, splits_of


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """An encoder's spec with its statistics."""

    encoder: EncoderSpec
    in_files: bool
    """Whether payloads stand in files beside the table, which change by themselves."""


def fit_features(
    source: Source,
    *,
    dataset: DatasetSpec,
    features: Mapping[str, FeatureSpec],
    strata: Strata | None = None,
) -> dict[str, Fitted]:
    """The encoders of these modalities, fitted to the training split.

    Costs a pass over their columns; memory is that of a `FitSample` each. SourceError if the
    training split has no payload to fit to.
    """
    if not features:
        return {}
    split = dataset.split
    columns = {m: feature.payload_columns for m, feature in features.items()}
    found = {m: FitSample() for m in features}
    in_files = dict.fromkeys(features, False)
    divided = [name for name in (split.column, split.group, split.stratify) if name]
    names = [*divided, *(name for c in columns.values() for name in c.names)]
    text = read_as_text(columns.values(), also=divided)
    for chunk in source.scan(columns=list(dict.fromkeys(names)), text=text):
        splits = splits_of(chunk.table, dataset=dataset, strata=strata)
        train = [side == "train" for side in splits.to_pylist()]
        for modality, read in columns.items():
            payloads = read.payloads(chunk.table)
            keys = payload_keys(
                [p if wanted else None for p, wanted in zip(payloads, train, strict=True)],
                columns=read,
                folder=source.folder,
                by=dataset.payload_key,
            )
            found[modality].add(keys, payloads, train)
            in_files[modality] |= dataset.payload_key != "uri" and any(
                depends_on_files(payload, columns=read) for payload in payloads
            )
    return {
        modality: Fitted(
            encoder=found[modality].fit(
                feature.encoder,
                columns=columns[modality],
                folder=source.folder,
                limits=dataset.limits,
            ),
            in_files=in_files[modality],
        )
        for modality, feature in features.items()
    }
