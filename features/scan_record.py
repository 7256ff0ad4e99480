"""What is remembered of a scan, so that the next one reads only what has changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pydantic

from features.fingerprint import fingerprint
from features.fitting import fit_features
from features.integrity import Repeats
from features.samples import SampleShard
from features.scan import Scan
from features.sources import Source
from features.spec import DatasetSpec, FeatureSpec
from features.split import Strata, find_strata


@dataclass(frozen=True, kw_only=True)
class ScanRecord:
    """A scan, and what was found out about the table as it was then."""

    scan: Scan
    repeats: Mapping[str, Repeats]
    untrained: tuple[str, ...]
    """Classes that no row of the training split is labelled with."""
    derived: Mapping[str, Any]
    """What was counted over the whole table, by the hash of how and of which files."""

    def holds(self, samples: Sequence[SampleShard]) -> bool:
        """Whether the table has these samples, in this order."""
        mine = (found.shard.fingerprint for found in self.scan.shards)
        return len(samples) == len(self.scan.shards) and all(
            one == other.fingerprint for one, other in zip(mine, samples, strict=True)
        )


_RECORD = pydantic.TypeAdapter(ScanRecord)
_STRATA = pydantic.TypeAdapter(Strata)


def record_bytes(record: ScanRecord) -> bytes:
    """A record as JSON."""
    return _RECORD.dump_json(record)


def record_from(data: bytes) -> ScanRecord | None:
    """The record that `record_bytes` described; None if another version of this project did."""
    try:
        return _RECORD.validate_json(data)
    except pydantic.ValidationError:
        return None


class Derived:
    """Statistics of the whole table, counted once while its files are as they are."""

    def __init__(self, source: Source, *, before: Mapping[str, Any]) -> None:
        self._source = source
        self._files = fingerprint([source.format, source.files, source.stats])
        self._before = before
        self.found: dict[str, Any] = {}
        """To be remembered for the next time."""

    def strata(self, dataset: DatasetSpec) -> Strata | None:
        """The strata by which the table is divided, if it is."""
        if dataset.split.stratify is None:
            return None
        key = self._key({"strata": dataset.split})
        if key in self._before:
            strata = _STRATA.validate_python(self._before[key])
        else:
            strata = find_strata(self._source, spec=dataset.split)
        self.found[key] = _STRATA.dump_python(strata, mode="json")
        return strata

    def features(
        self, features: Mapping[str, FeatureSpec], *, dataset: DatasetSpec, strata: Strata | None
    ) -> dict[str, FeatureSpec]:
        """The features, with encoders fitted to the training split where they need that."""
        waiting = {m: feature for m, feature in features.items() if feature.encoder.needs_fit}
        keys = {
            m: self._key(
                {
                    "encoder": feature.encoder.model_dump(mode="json"),
                    "columns": feature.payload_columns,
                    "split": dataset.split,
                    "strata": None if strata is None else strata.digest,
                    "payload_key": dataset.payload_key,
                    "limits": dataset.limits.model_dump(mode="json"),
                }
            )
            for m, feature in waiting.items()
        }
        known = {
            m: type(feature.encoder).model_validate(self._before[keys[m]])
            for m, feature in waiting.items()
            if keys[m] in self._before
        }
        fitted = fit_features(
            self._source,
            dataset=dataset,
            features={m: feature for m, feature in waiting.items() if m not in known},
            strata=strata,
        )
        encoders = known | {m: found.encoder for m, found in fitted.items()}
        for m, encoder in encoders.items():
            if m in known or not fitted[m].in_files:
                self.found[keys[m]] = encoder.model_dump(mode="json")
        return {
            m: feature.model_copy(update={"encoder": encoders[m]}) if m in encoders else feature
            for m, feature in features.items()
        }

    def _key(self, what: Mapping[str, Any]) -> str:
        return fingerprint({"files": self._files, **what})
