"""What encoders are fitted on: the training split alone, and the same sample by any scan."""

from __future__ import annotations

import hashlib
import itertools
import pickle
import random
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from features.columns import PayloadColumns
from features.encoders import TableSpec, parse_encoder
from features.fit import FitSample
from features.planning import make_plan
from features.sources import SourceError, open_source
from features.spec import DatasetSpec, FeatureSpec
from features.split import find_strata, splits_of
from features.storage import LocalStorage
from features.store import Store

AGE = PayloadColumns(kind="table", columns=("age",))
ROWS = 90


def frame() -> pd.DataFrame:
    numbers = range(ROWS)
    return pd.DataFrame(
        {
            "id": [f"s{i}" for i in numbers],
            "age": [float(i * 7 % 31) for i in numbers],
            "pulse": [[float(i), float(i + 1)] for i in numbers],
            "patient": [f"p{i // 3}" for i in numbers],
            "label": [i % 2 for i in numbers],
            "split": [("train", "validation", "test")[i % 3] for i in numbers],
        }
    )


ENCODERS = {
    "age": {"type": "table", "numeric": ["age"]},
    "pulse": {"type": "series", "channels": 1},
}


def dataset(split: Any) -> DatasetSpec:
    return DatasetSpec(path="table.parquet", id="id", split=split)


def fitted(table: pd.DataFrame, folder: Any, *, split: Any) -> dict[str, Any]:
    """Per modality, the fitted encoder of a plan."""
    table.to_parquet(folder / "table.parquet", index=False)
    plan = make_plan(
        name="fit",
        source=open_source("table.parquet", folder=str(folder)),
        dataset=dataset(split),
        features={
            name: FeatureSpec(column=name, encoder=parse_encoder(value))
            for name, value in ENCODERS.items()
        },
        target="label",
        store=Store(LocalStorage(folder / "store")),
    )
    return {name: part.feature.encoder for name, part in plan.modalities.items()}


def training_rows(table: pd.DataFrame, folder: Any, *, split: Any) -> np.ndarray:
    spec = dataset(split)
    table.to_parquet(folder / "table.parquet", index=False)
    strata = None
    if spec.split.stratify is not None:
        strata = find_strata(open_source("table.parquet", folder=str(folder)), spec=spec.split)
    sides = splits_of(pa.Table.from_pandas(table), dataset=spec, strata=strata).to_pylist()
    return np.array([side == "train" for side in sides])


@pytest.mark.parametrize(
    "split", ["split", {"group": "patient"}, {"group": "patient", "stratify": "label"}]
)
def test_statistics_are_of_the_training_split_alone(split: Any, tmp_path: Any) -> None:
    """What stands in the other splits has no influence; what stands in the training split has."""
    table = frame()
    train = training_rows(table, tmp_path, split=split)
    assert 0 < train.sum() < ROWS
    before = fitted(table, tmp_path, split=split)
    (age,) = before["age"].statistics.numeric
    assert age.scale.center == pytest.approx(table["age"][train].mean())
    pulses = np.concatenate(table["pulse"][train].tolist())
    assert before["pulse"].statistics.channels[0].center == pytest.approx(np.median(pulses))

    others = table.copy()
    for row in np.flatnonzero(~train):
        others.at[row, "age"] = 1e6
        others.at[row, "pulse"] = [-1e6, 1e6]
    assert (training_rows(others, tmp_path, split=split) == train).all()
    assert fitted(others, tmp_path, split=split) == before

    changed = table.copy()
    row = int(np.flatnonzero(train)[0])
    changed.at[row, "age"] = 1e6
    changed.at[row, "pulse"] = [1e6] * 50
    after = fitted(changed, tmp_path, split=split)
    assert all(after[name].fingerprint() != before[name].fingerprint() for name in ENCODERS)


# ------------------------------------------------------------------ the sample


def rows_of(count: int) -> list[tuple[bytes, Any, bool]]:
    """Rows of keys, payloads and whether they train; some payloads come several times."""
    draw = random.Random(0)
    found = []
    for _ in range(count):
        value = draw.randrange(count // 2)
        key = hashlib.blake2b(str(value).encode(), digest_size=16).digest()
        found.append((key, (float(value),), draw.random() < 0.8))
    return found


def sample(rows: list[tuple[bytes, Any, bool]], **options: Any) -> FitSample:
    made = FitSample(**options)
    for start in range(0, len(rows), 7):
        keys, payloads, train = zip(*rows[start : start + 7], strict=True)
        made.add(keys, payloads, train)
    return made


def state(made: FitSample) -> tuple[list[bytes], int]:
    return made.keys, made.rows


@pytest.mark.parametrize("options", [{}, {"size": 20}, {"max_bytes": 3000}], ids=str)
def test_any_order_and_any_division_of_the_rows_gives_one_sample(options: Any) -> None:
    rows = rows_of(400)
    whole = sample(rows, **options)
    training = {key for key, _, train in rows if train}
    expected = sorted(training)[: len(whole)]
    assert whole.keys == expected
    assert whole.rows == sum(train and key in set(expected) for key, _, train in rows)
    assert len(whole) == (20 if "size" in options else len(training) if not options else len(whole))
    for seed in range(20):
        draw = random.Random(seed)
        mixed = draw.sample(rows, len(rows))
        cuts = [0, *sorted(draw.sample(range(len(rows)), 3)), len(rows)]
        parts = [sample(mixed[a:b], **options) for a, b in itertools.pairwise(cuts)]
        joined = FitSample(**options)
        for part in parts:
            joined.merge(pickle.loads(pickle.dumps(part)))
        assert state(joined) == state(whole)
        assert state(sample(mixed, **options)) == state(whole)


def test_a_sample_is_bounded_while_it_is_filled() -> None:
    made = FitSample(size=10)
    for key, payload, _ in rows_of(1000):
        made.add([key], [payload], [True])
        assert len(made._held) <= 20
    large = FitSample(max_bytes=10_000)
    for i in range(100):
        key = hashlib.blake2b(str(i).encode(), digest_size=16).digest()
        large.add([key], [np.zeros(200)], [True])
        assert large._bytes <= 2 * 10_000 + 1700
    assert 1 <= len(large) <= 6


def test_payloads_that_repeat_count_as_often_as_they_stand_there() -> None:
    made = FitSample()
    for value, times in ((1.0, 3), (2.0, 1), (9.0, 1)):
        key = hashlib.blake2b(str(value).encode(), digest_size=16).digest()
        made.add([key] * times, [(value,)] * times, [True] * times)
    spec = made.fit(TableSpec(numeric=("age",)), columns=AGE, folder="")
    assert spec.statistics.numeric[0].scale.center == pytest.approx(np.mean([1, 1, 1, 2, 9]))


def test_bad_payloads_do_not_count_and_nothing_but_bad_ones_is_an_error(tmp_path: Any) -> None:
    spec = parse_encoder({"type": "series", "channels": 1})
    files = PayloadColumns(kind="series", columns=("s",))
    np.save(tmp_path / "good.npy", np.arange(5.0))
    (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY nonsense")
    names = ["good.npy", "bad.npy", "gone.npy"]
    keys = [hashlib.blake2b(name.encode(), digest_size=16).digest() for name in names]
    made = FitSample()
    made.add(keys, names, [True] * 3)
    good = made.fit(spec, columns=files, folder=str(tmp_path))
    assert good.statistics.channels[0].center == 2.0

    bad = FitSample()
    bad.add(keys[1:], names[1:], [True] * 2)
    with pytest.raises(SourceError, match=r"none of the 2 payloads.*no such file: 'gone.npy'"):
        bad.fit(spec, columns=files, folder=str(tmp_path))
    none = FitSample()
    none.add(keys[:1], names[:1], [False])
    with pytest.raises(SourceError, match="no training sample has a payload there"):
        none.fit(spec, columns=files, folder=str(tmp_path))
