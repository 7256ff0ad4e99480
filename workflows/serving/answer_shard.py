"""What a worker of batch scoring does: a model's answers for the rows of one sample shard.

It reads the shard's embeddings out of the store, so no encoder is loaded here, and writes one file
beside those of the other shards. Memory and time grow with the rows of a shard.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pydantic

from features.quarantine import read_bad
from features.shard import Embeddings, merge_patches
from features.storage import Storage
from features.store import Store, parquet_bytes
from features.stored_embeddings import read_embedding_shard
from training.answering import shapley
from training.candidate import CandidateRecord, restore_model
from training.held import in_parts
from workflows.serving.said import NOTHING, answered, filled, refuse_to_guess, types

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class ShardToScore:
    """One sample shard, with all that its answers depend on; a few hundred bytes."""

    path: str
    """Of the file that is written, in the output's folder."""
    samples: str
    """Of the sample shard, in the store."""
    rows: int
    shards: Mapping[str, Sequence[str]]
    """By modality, the embedding shards over it; none where no payload is there."""
    quarantined: Mapping[str, Sequence[str]]
    """By modality, those of them that have bad rows."""


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """A model and its options: what all shards of a scoring share."""

    store: Storage
    out: Storage
    record: CandidateRecord
    weights: bytes
    """Of the model over embeddings, as safetensors: a worker needs no disk of another machine, and
    no tracking server."""
    encoders: Mapping[str, str]
    """By modality of the model, its encoder's fingerprint."""
    dims: Mapping[str, int]
    """By modality of the model, the width of its embeddings."""
    id_column: str
    shapley: bool = False
    """Whether it is written what each modality adds to each of the answer's numbers."""
    embeddings: bool = False
    """Whether each modality's embedding is written too."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What a shard came to."""

    rows: int
    unanswered: int
    """Rows that nothing is known of."""
    problems: int
    """Rows of which some payload could not be used."""


WORK, RESULT = pydantic.TypeAdapter(ShardToScore), pydantic.TypeAdapter(Scored)


class ShardScorer:
    """Answers shard after shard with a model that is loaded once."""

    def __init__(self, scoring: Scoring) -> None:
        self._scoring = scoring
        self._store, self._out = Store(scoring.store), Store(scoring.out)
        self._model: nn.Module | None = None

    def __call__(self, text: str) -> str:
        """As `score`, of what has come as JSON to what goes as JSON."""
        return RESULT.dump_json(self.score(WORK.validate_json(text))).decode()

    def score(self, shard: ShardToScore) -> Scored:
        """Answer a shard's rows and write them; only count them if that is done."""
        first = next(iter(types(self._scoring.record)))
        try:
            answers = self._out.read_table(shard.path, columns=[first, "problems"])
        except FileNotFoundError:
            answers = self.answers(shard)
            self._scoring.out.write_once(shard.path, parquet_bytes(answers))
        return Scored(
            rows=len(answers),
            unanswered=answers[first].null_count,
            problems=sum(said not in (None, NOTHING) for said in answers["problems"].to_pylist()),
        )

    def answers(self, shard: ShardToScore) -> pa.Table:
        """The answers to a shard's rows, in their order, as they are written."""
        scoring, record = self._scoring, self._scoring.record
        held = {name: self._held(shard, name) for name in scoring.encoders}
        everything = np.arange(shard.rows)
        presence = {name: np.isin(everything, found.rows) for name, found in held.items()}
        columns: dict[str, list[Any]] = {}
        for part in in_parts(held, rows=everything):
            for name, values in self._answered(**part).items():
                columns.setdefault(name, []).extend(values)
        problems = self._problems(shard)
        refuse_to_guess(columns, presence=presence, problems=problems)
        ids = self._store.read_table(shard.samples, columns=["sample_id"])["sample_id"]
        missing = [[name for name in held if not presence[name][row]] for row in range(shard.rows)]
        names = {"missing": missing, **filled(self._fitted(), record=record, presence=presence)}
        table = {
            scoring.id_column: ids,
            **{name: pa.array(columns.pop(name), kind) for name, kind in types(record).items()},
            **{name: pa.array(lists, pa.list_(pa.string())) for name, lists in names.items()},
            "problems": pa.array(problems, pa.string()),
            **{name: pa.array(values, pa.list_(pa.float64())) for name, values in columns.items()},
        }
        if scoring.embeddings:
            for name, found in held.items():
                table[f"embedding.{name}"] = _vectors(found.pooled(), rows=shard.rows)
        return pa.table(table)

    def _answered(self, **part: Any) -> dict[str, list[Any]]:
        """The answers to some rows, and what each modality adds to them."""
        found = answered(self._fitted(), record=self._scoring.record, **part)
        if self._scoring.shapley:
            values = shapley(self._fitted(), record=self._scoring.record, **part)
            found |= {f"shapley.{name}": list(added) for name, added in values.items()}
        return found

    def _held(self, shard: ShardToScore, name: str) -> Embeddings:
        """A modality's embeddings of a shard's rows."""
        found = [
            read_embedding_shard(
                self._store, one, encoder=self._scoring.encoders[name], of=shard.rows
            )
            for one in shard.shards.get(name, ())
        ]
        merged = merge_patches(found)
        if merged is not None:
            return merged
        sequence = bool(self._scoring.record.modalities[name].get("sequence"))
        return Embeddings(
            rows=np.empty(0, np.int64),
            values=np.empty((0, self._scoring.dims[name]), np.float32),
            lengths=np.empty(0, np.int64) if sequence else None,
        )

    def _problems(self, shard: ShardToScore) -> list[str | None]:
        """Why payloads of a row were not used, as the registered model says it; None of most."""
        found: list[list[str]] = [[] for _ in range(shard.rows)]
        for name, encoder in self._scoring.encoders.items():
            bad = read_bad(
                self._store,
                shard.shards.get(name, ()),
                encoder=encoder,
                listed=set(shard.quarantined.get(name, ())),
            )
            if bad is not None:
                for row, reason in zip(
                    bad["row"].to_pylist(), bad["reason"].to_pylist(), strict=True
                ):
                    found[row].append(f"{name}: {reason}")
        return ["; ".join(texts) or None for texts in found]

    def _fitted(self) -> nn.Module:
        if self._model is None:
            self._model = restore_model(self._scoring.record, weights=self._scoring.weights)
        return self._model


def _vectors(found: Embeddings, *, rows: int) -> pa.Array:
    """One vector a row as a list, null where there is none.

    Not of fixed size: nulls among such lists are written by pyarrow, and then not read.
    """
    lengths = np.zeros(rows, np.int32)
    lengths[found.rows] = found.values.shape[1]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(
        pa.array(offsets), pa.array(found.values.reshape(-1)), mask=pa.array(lengths == 0)
    )
