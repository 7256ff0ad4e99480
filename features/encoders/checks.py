"""What an encoder is checked for, one by one: each function raises Unfit if it is not so."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
import re
import sys
import typing
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from features.encoders.base import Encoder, EncoderSpec, Kind, import_extra
from features.encoders.elsewhere import encode_elsewhere

THREADS = 4
"""Threads that prepare at once."""


class Unfit(Exception):
    """A check has failed; the message says how."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """An encoder with its samples, and their embeddings in one batch."""

    spec: EncoderSpec
    encoder: Encoder
    samples: list[Any]
    prepared: list[Any]
    rows: list[np.ndarray]


def spec_is_sound(spec: EncoderSpec) -> None:
    """Frozen, of a known kind, and with a fingerprint that stays."""
    if not spec.model_config.get("frozen"):
        raise Unfit("the spec can be changed after it was made")
    if spec.model_config.get("extra") != "forbid":
        raise Unfit("the spec takes fields that it does not know")
    if getattr(spec, "kind", None) not in typing.get_args(Kind):
        kinds = ", ".join(typing.get_args(Kind))
        raise Unfit(f"`kind` is {getattr(spec, 'kind', None)!r}; it is one of {kinds}")
    if not isinstance(spec.version, int) or spec.version < 1:
        raise Unfit(f"`version` is {spec.version!r}; it is a number from 1 on")
    if not 0 <= spec.tolerance < math.inf:
        raise Unfit(f"`tolerance` is {spec.tolerance!r}")
    weights = spec.weights()
    if not all(isinstance(part, str) for pair in weights.items() for part in pair):
        raise Unfit("`weights()` is no mapping of file names to content hashes")
    first, again = spec.fingerprint(), spec.model_copy().fingerprint()
    if first != again:
        raise Unfit(f"the fingerprint of an equal spec differs: {first} and {again}")


def is_documented(spec: EncoderSpec) -> None:
    """A docstring of the class and of each field."""
    own = type(spec)
    if not inspect.cleandoc(own.__doc__ or "") or own.__doc__ == EncoderSpec.__doc__:
        raise Unfit(f"{own.__name__} has no docstring")
    bare = [
        name for name, field in own.model_fields.items() if name != "type" and not field.description
    ]
    if bare:
        raise Unfit(f"the fields {', '.join(bare)} have no description")


def fits(spec: EncoderSpec, samples: list[Any]) -> EncoderSpec:
    """The fitted spec: its statistics depend on the payloads alone, and enter the fingerprint."""
    before = spec.fingerprint()
    fitted, again = spec.fitted(iter(samples)), spec.fitted(iter(samples))
    if fitted.needs_fit:
        raise Unfit("`fitted` gives a spec that still needs a fit")
    if fitted.fingerprint() == before:
        raise Unfit("the statistics do not enter the fingerprint")
    if fitted.fingerprint() != again.fingerprint():
        raise Unfit("two fits on the same payloads differ")
    return fitted


def round_trips(spec: EncoderSpec) -> None:
    """As a worker or a model's card has it, the spec is the same."""
    from features.encoders import parse_encoder

    try:
        back = parse_encoder(spec.model_dump(mode="json"))
    except ValueError as error:
        raise Unfit(f"the spec cannot be read back from its JSON: {error}") from error
    if back.fingerprint() != spec.fingerprint():
        raise Unfit("a spec read back from its JSON has another fingerprint")


def loads(spec: EncoderSpec) -> Encoder:
    """What comes is an `Encoder`; it is given back."""
    encoder = spec.load()
    missing = [name for name in ("prepare", "size", "encode", "dim") if not hasattr(encoder, name)]
    if missing:
        raise Unfit(f"what `load()` gives has no {', '.join(missing)}")
    if not isinstance(encoder.dim, int) or encoder.dim < 1:
        raise Unfit(f"`dim` is {encoder.dim!r}; it is the width of an embedding")
    budget = getattr(encoder, "budget", None)
    if budget is not None and (not isinstance(budget, int) or budget < 1):
        raise Unfit(f"`budget` is {budget!r}; it is a number from 1 on, or absent")
    return encoder


def prepares(encoder: Encoder, samples: list[Any]) -> list[Any]:
    """Each sample is taken, and left as it is; what they are prepared to is given back."""
    found = []
    for place, payload in enumerate(samples):
        kept = copy.deepcopy(payload)
        try:
            prepared = encoder.prepare(payload)
        except ValueError as error:
            raise Unfit(f"sample {place} is refused: {error}") from error
        if not _equal(kept, payload):
            raise Unfit(f"`prepare` changes its payload (sample {place})")
        size = encoder.size(prepared)
        if not isinstance(size, int | np.integer) or size < 0:
            raise Unfit(f"`size` of sample {place} is {size!r}; it is a whole number")
        count = getattr(encoder, "counts", None)
        counts = {} if count is None else count(prepared)
        if not all(isinstance(n, int | np.integer | bool) for n in counts.values()):
            raise Unfit(f"`counts` of sample {place} are not whole numbers: {counts!r}")
        found.append(prepared)
    return found


def has_right_shapes(spec: EncoderSpec, encoder: Encoder, prepared: list[Any]) -> None:
    """One finite float32 embedding, or a sequence of them, for each prepared payload."""
    found = encoder.encode(list(prepared))
    dim, count = encoder.dim, len(prepared)
    if spec.sequence:
        if not isinstance(found, list):
            raise Unfit(f"`encode` gives {_kind_of(found)}; a sequence is a list of arrays")
    elif not isinstance(found, np.ndarray):
        raise Unfit(f"`encode` gives {_kind_of(found)}; it is one array")
    if len(found) != count:
        raise Unfit(f"{len(found)} embeddings come out for {count} payloads")
    for place, row in enumerate(found):
        right = row.ndim == 2 and len(row) >= 1 if spec.sequence else row.ndim == 1
        if not right or row.shape[-1] != dim:
            wanted = f"(T, {dim})" if spec.sequence else f"({dim},)"
            raise Unfit(f"the embedding of sample {place} has shape {row.shape}, not {wanted}")
        if row.dtype != np.float32:
            raise Unfit(f"the embedding of sample {place} is {row.dtype}, not float32")
        if not np.isfinite(row).all():
            raise Unfit(f"the embedding of sample {place} is not finite")
        with np.errstate(over="ignore"):
            if not np.isfinite(row.astype(spec.dtype)).all():
                raise Unfit(f"the embedding of sample {place} is out of range for {spec.dtype}")


def is_deterministic(trial: Trial) -> None:
    """A shard computed again is the same."""
    again = encode(trial.encoder, trial.prepared)
    _refuse_difference(trial.rows, again, within=0.0, says="the same batch, encoded twice")


def alone(trial: Trial) -> None:
    """A batch may hold one payload."""
    rows = [encode(trial.encoder, [one])[0] for one in trial.prepared]
    says = "a sample alone, and in a batch,"
    _refuse_difference(trial.rows, rows, within=trial.spec.tolerance, says=says)


def among_others(trial: Trial) -> None:
    """Which rows share a batch does not matter."""
    within = trial.spec.tolerance
    rows = encode(trial.encoder, trial.prepared[::-1])[::-1]
    _refuse_difference(trial.rows, rows, within=within, says="a batch in another order")
    some = trial.prepared[::2]
    rows = encode(trial.encoder, some)
    _refuse_difference(trial.rows[::2], rows, within=within, says="a sample among other neighbours")


def in_threads(trial: Trial) -> None:
    """`prepare` runs in several threads at once."""
    many = trial.samples * THREADS
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # so that threads meet more often
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            prepared = list(pool.map(trial.encoder.prepare, many))
    finally:
        sys.setswitchinterval(before)
    for start in range(0, len(many), len(trial.samples)):
        rows = encode(trial.encoder, prepared[start : start + len(trial.samples)])
        says = f"what {THREADS} threads prepare at once"
        _refuse_difference(trial.rows, rows, within=0.0, says=says)


def all_at_once(trial: Trial) -> None:
    """`prepare_all`, if there is one, stands for `prepare`."""
    prepare_all = getattr(trial.encoder, "prepare_all", None)
    if prepare_all is None:
        return
    prepared = prepare_all(list(trial.samples))
    if len(prepared) != len(trial.samples):
        raise Unfit(f"`prepare_all` gives {len(prepared)} for {len(trial.samples)} payloads")
    refused = next((item for item in prepared if isinstance(item, Exception)), None)
    if refused is not None:
        raise Unfit(f"`prepare_all` refuses what `prepare` takes: {refused}")
    rows = encode(trial.encoder, prepared)
    _refuse_difference(trial.rows, rows, within=0.0, says="what `prepare_all` prepares")


def pillow(trial: Trial) -> None:
    """`takes_pillow`, if it is true, is kept."""
    if not getattr(trial.encoder, "takes_pillow", False):
        return
    if trial.spec.kind != "image":
        raise Unfit(f"`takes_pillow` is for images, not for {trial.spec.kind}")
    module = import_extra("PIL.Image", extra="image")
    prepared = [trial.encoder.prepare(module.fromarray(pixels)) for pixels in trial.samples]
    rows = encode(trial.encoder, prepared)
    _refuse_difference(trial.rows, rows, within=0.0, says="an image of Pillow's, and its array,")


def meets_odd_ones(trial: Trial, oddities: Mapping[str, Any]) -> None:
    """A job must not stop for one payload."""
    spec, encoder = trial.spec, trial.encoder
    for name, payload in oddities.items():
        try:
            prepared = encoder.prepare(payload)
        except ValueError as error:
            if not str(error).strip():
                raise Unfit(f"{name} is refused without a reason") from error
            continue
        except Exception as error:
            raise Unfit(f"`prepare` of {name} raises {shown(error)}") from error
        try:
            has_right_shapes(spec, encoder, [prepared])
        except Unfit as error:
            raise Unfit(f"{name}: {error}") from error
        except Exception as error:
            raise Unfit(f"`encode` of {name} raises {shown(error)}") from error


def elsewhere(trial: Trial) -> None:
    """A worker with the same spec is the same encoder."""
    spec = trial.spec
    found = encode_elsewhere(spec, samples=trial.samples)
    if found.problem:
        raise Unfit(found.problem)
    if found.by_json != spec.fingerprint() or found.by_pickle != spec.fingerprint():
        raise Unfit("another process has another fingerprint for the same spec")
    says = "the same batch in another process"
    _refuse_difference(trial.rows, found.rows, within=spec.tolerance, says=says)


def encode(encoder: Encoder, prepared: list[Any]) -> list[np.ndarray]:
    """The embeddings of some prepared payloads in one batch."""
    return [np.asarray(row) for row in encoder.encode(list(prepared))]


def _refuse_difference(
    rows: list[np.ndarray], others: list[np.ndarray], *, within: float, says: str
) -> None:
    if len(rows) != len(others):
        raise Unfit(f"{says} gives {len(others)} embeddings for {len(rows)} payloads")
    for place, (row, other) in enumerate(zip(rows, others, strict=True)):
        if row.shape != other.shape:
            raise Unfit(f"{says}: sample {place} has shape {other.shape}, then {row.shape}")
        difference = float(np.abs(row.astype(float) - other).max())
        if not difference <= within:
            limit = f"more than {within:g}" if within else "and must not"
            raise Unfit(f"{says}: sample {place} differs by {difference:.2g}, {limit}")


def _equal(one: Any, other: Any) -> bool:
    """Whether two payloads are the same, arrays in them value by value."""
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and np.array_equal(one, other, equal_nan=True)
    if dataclasses.is_dataclass(one) and not isinstance(one, type):
        names = [field.name for field in dataclasses.fields(one)]
        return all(_equal(getattr(one, name), getattr(other, name)) for name in names)
    return bool(one == other)


def _kind_of(value: Any) -> str:
    return f"a {type(value).__name__}"


def shown(error: Exception) -> str:
    """An error with its type, in one line."""
    text = re.sub(r"\s+", " ", str(error)).strip()
    return f"{type(error).__name__}: {text[:300]}"
