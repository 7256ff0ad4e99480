"""One modality's part of a plan, worked out a sample shard at a time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from features.donors import DonorSearch
from features.encoders import EncoderSpec
from features.integrity import Marks
from features.plan import ModalityPlan, Work
from features.samples import SampleShard
from features.shard_names import embedding_path, shard_fingerprint
from features.snapshot import ModalityShards, Snapshot
from features.spec import FeatureSpec
from features.store import Store

FOOTERS_FOR_ESTIMATE = 4


class ModalityPlanner:
    """Gathers what the store lacks of one modality; what it keeps goes with the stack."""

    def __init__(
        self,
        modality: str,
        *,
        feature: FeatureSpec,
        encoder: str,
        known: set[str],
        donors: Sequence[Snapshot],
        stack: ExitStack,
    ) -> None:
        """`encoder` is a fingerprint; `known` are its shards that are in the store."""
        self._modality = modality
        self._feature = feature
        self._encoder = encoder
        self._known = known
        self._patches = _patches(donors, modality=modality, encoder=encoder)
        self._search = DonorSearch(
            modality, donors=_same_encoder(donors, modality=modality, encoder=encoder), stack=stack
        )
        self._shards: list[tuple[str, ...]] = []
        self._missing: dict[str, SampleShard] = {}
        self._names: dict[str, str] = {}
        """Sample shard → the missing embedding shard over it."""

    def add(self, shard: SampleShard) -> None:
        """The next sample shard: which embedding shards are to be over it."""
        keys = shard.keys.get(self._modality)
        if keys is None:
            self._shards.append(())
            return
        made = shard_fingerprint(encoder=self._encoder, keys=keys)
        self._shards.append((made, *self._patches.get(made, ())))
        if made not in self._known and made not in self._missing:
            self._missing[made] = shard
            self._names[shard.fingerprint] = made

    @property
    def asking(self) -> set[str]:
        """The sample shards whose marks are needed to find donors."""
        return set(self._names) if self._search.has_donors else set()

    def ask(self, shard: SampleShard, *, marks: Marks) -> None:
        """Look for donors of what is missing over a sample shard."""
        made = self._names.get(shard.fingerprint)
        if made is not None and self._search.has_donors:
            self._search.add(made, hashes=marks[f"key.{self._modality}"]["hash"])

    def result(
        self, samples: Sequence[SampleShard], *, previous: Snapshot | None, store: Store
    ) -> tuple[ModalityPlan, list[Work]]:
        """The modality's part of the plan, and its work, once all sample shards were added."""
        held = self._search.find(store, listed={shard for over in self._shards for shard in over})
        work = [
            Work(
                modality=self._modality,
                encoder=self._encoder,
                shard=made,
                samples=shard.path,
                ranges=shard.ranges,
                rows=shard.rows,
                payloads=shard.payloads[self._modality],
                donors=held[made].shards if made in held else (),
            )
            for made, shard in self._missing.items()
        ]
        payloads = sum(shard.payloads[self._modality] for shard in samples)
        waiting = sum(
            shard.payloads[self._modality]
            for shard, over in zip(samples, self._shards, strict=True)
            if over and over[0] in self._missing
        )
        copied = sum(item.rows for item in held.values())
        to_embed = sum(item.payloads for item in work) - copied
        there = [s for over in self._shards for s in over if s in self._known]
        rate = _rate(store, encoder=self._encoder, shards=there)
        spec = self._feature.encoder
        part = ModalityPlan(
            modality=self._modality,
            feature=self._feature,
            encoder_fingerprint=self._encoder,
            shards=tuple(self._shards),
            payloads=payloads,
            missing=sum(shard.rows for shard in samples) - payloads,
            reused=payloads - waiting,
            copied=copied,
            to_embed=to_embed,
            reason=_reason(
                previous, modality=self._modality, spec=spec, encoder=self._encoder, new=to_embed
            )
            if work
            else "",
            bytes=None if rate is None else (to_embed + copied) * rate.bytes_per_row,
            seconds=None if rate is None else to_embed * rate.seconds_per_row,
        )
        return part, work


def _same_encoder(
    donors: Sequence[Snapshot], *, modality: str, encoder: str
) -> list[ModalityShards]:
    parts = (donor.modalities.get(modality) for donor in donors)
    return [part for part in parts if part is not None and part.encoder_fingerprint == encoder]


def _patches(
    donors: Sequence[Snapshot], *, modality: str, encoder: str
) -> dict[str, tuple[str, ...]]:
    """Per shard of the last snapshots: the patches that are listed over it, by the newest."""
    found: dict[str, tuple[str, ...]] = {}
    for part in _same_encoder(donors, modality=modality, encoder=encoder):
        for over in part.shards:
            if len(over) > 1 + len(found.get(over[0] if over else "", ())):
                found[over[0]] = over[1:]
    return found


def _reason(
    previous: Snapshot | None, *, modality: str, spec: EncoderSpec, encoder: str, new: int
) -> str:
    if previous is None or modality not in previous.modalities:
        return "new"
    before = previous.modalities[modality]
    if before.encoder_fingerprint == encoder:
        return "payloads changed" if new else "rows moved or removed"
    now = spec.model_dump(mode="json")
    if before.encoder.get("type") != now.get("type"):
        # Their fields have nothing to do with one another.
        return f"encoder changed: {before.encoder.get('type')} → {now.get('type')}"
    changed = [
        "statistics of the training split"
        if key == "statistics"
        else f"{key} {before.encoder.get(key)} → {now.get(key)}"
        for key in {**before.encoder, **now}
        if before.encoder.get(key) != now.get(key)
    ]
    return "encoder changed" + (f": {', '.join(changed)}" if changed else ": its weights")


@dataclass(frozen=True, kw_only=True)
class _Rate:
    seconds_per_row: float
    bytes_per_row: int


def _rate(store: Store, *, encoder: str, shards: list[str]) -> _Rate | None:
    """What a row costs, by the footers of a few shards that were computed before."""
    rows, seconds, width = 0, 0.0, 0
    for shard in shards[:FOOTERS_FOR_ESTIMATE]:
        metadata = store.read_metadata(embedding_path(encoder=encoder, shard=shard))
        rows += int(metadata["sensorium.embedded"])
        spent = json.loads(metadata["sensorium.seconds"])
        seconds += sum(spent[step] for step in ("wait", "encode", "write"))
        width = int(metadata["sensorium.bytes_per_row"])
    if not rows:
        return None
    return _Rate(seconds_per_row=seconds / rows, bytes_per_row=width)
