"""Table encoder: the numbers of a record scaled, its categories one-hot or hashed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
import pydantic

from features.encoders.base import Encoder, Kind
from features.encoders.fitted import FittedSpec, robust_scale, scaled, standard_scale
from features.encoders.table_statistics import CategoricalColumn, NumericColumn, TableStatistics
from features.fingerprint import Execution, nearest_hint

Cell = bool | int | float | str | None
Record = Mapping[str, Cell]


class TableSpec(FittedSpec):
    """The fields of a record, side by side: numbers scaled, categories one-hot or hashed.

    An embedding holds, in the order of `statistics`: each number's scaled value (a missing one is
    where the middle of the training split is: 0, or 0.5 with `quantile`); each category's slots;
    then, with `missing`, a 1 for each column whose cell is missing, numbers first.

    A number is a number, a truth value (0 or 1) or a date (days since 1970-01-01); in a column that
    `numeric` names, also text that spells one. A category is a text, or a number as it is written
    (`7`, and not `7.0`). A missing category has no slot.

    A category that the fit has not seen is all zeros in its column; if the fit has seen as many as
    `max_categories`, or more, the rarest share a slot, and unseen ones have that too. (So it is in
    scikit-learn's OneHotEncoder.)
    """

    kind: ClassVar[Kind] = "table"
    only_for_fit: ClassVar[tuple[str, ...]] = (
        "fit_sample",
        "numeric",
        "categorical",
        "max_categories",
        "quantiles",
    )

    type: Literal["table"] = "table"
    numeric: tuple[str, ...] = ()
    """Columns of numbers. One that is in neither list is of numbers if no training value of it is
    text, and of categories otherwise."""
    categorical: tuple[str, ...] = ()
    """Columns of categories, such as codes that are written as numbers."""
    scaling: Literal["standard", "robust", "quantile"] = "standard"
    """How numbers are scaled: by mean and standard deviation, by median and distance of the
    quartiles, or to their place (0 to 1) among the training values."""
    clip: Annotated[pydantic.FiniteFloat, pydantic.Field(gt=0)] | None = 10.0
    """Where scaled numbers are cut off, to either side; null for nowhere. `quantile` has no need of
    it."""
    quantiles: Annotated[int, pydantic.Field(ge=2, le=10_000)] = 100
    """Quantiles that `scaling: quantile` takes of each column, or as many as there are values."""
    categories: Literal["one_hot", "hash"] = "one_hot"
    """Whether each category has a slot of its own, or all columns share `hash_dim` slots by the
    hash of `column=category`."""
    max_categories: Annotated[int, pydantic.Field(ge=2)] = 64
    """Slots of a column at most, the one that the rarest share included (with `one_hot`)."""
    hash_dim: Annotated[int, pydantic.Field(ge=1, le=2**20)] = 64
    """Slots of all columns together (with `hash`); half of the categories count negatively."""
    missing: bool = True
    """Whether an embedding tells which cells are missing."""
    statistics: TableStatistics | None = None
    """Statistics of the training split; found by a fit if they are not given."""
    batch_size: Annotated[int, Execution, pydantic.Field(ge=1)] = 4096
    """Records that are worked on at once. It does not enter the fingerprint."""

    @pydantic.model_validator(mode="after")
    def _columns_are_named_once(self) -> Self:
        named = Counter((*self.numeric, *self.categorical))
        for name, count in named.items():
            if count > 1:
                raise ValueError(f"`numeric` and `categorical` name column {name!r} twice")
        if self.statistics is not None:
            self.statistics.check(
                numeric=self.numeric,
                categorical=self.categorical,
                quantile=self.scaling == "quantile",
                hashed=self.categories == "hash",
            )
        return self

    @property
    def needs_fit(self) -> bool:
        return self.statistics is None

    @property
    def outputs(self) -> tuple[str, ...]:
        """What each number of an embedding is, in words; ValueError before the fit."""
        self.refuse_unfitted()
        statistics = self.statistics or TableStatistics()
        names = [item.column for item in statistics.numeric]
        if self.categories == "hash" and statistics.categorical:
            names += [f"hash {i}" for i in range(self.hash_dim)]
        else:
            for item in statistics.categorical:
                names += [f"{item.column}={category}" for category in item.categories]
                names += [f"{item.column}: other"] * item.other
        names += [f"{column}: missing" for column in statistics.columns if self.missing]
        return tuple(names)

    @property
    def dim(self) -> int:
        """Width of an embedding; ValueError before the fit."""
        return len(self.outputs)

    def check_columns(self, columns: Sequence[str]) -> None:
        """Raise ValueError if the encoder names columns that are not there, or leaves some out."""
        fields = {"numeric": self.numeric, "categorical": self.categorical}
        if self.statistics is not None:
            fields["statistics"] = self.statistics.columns
        for field, names in fields.items():
            for name in names:
                if name not in columns:
                    raise ValueError(
                        f"`{field}` names the column {name!r}; {nearest_hint(name, columns)}"
                        f"`columns` are {', '.join(columns)}"
                    )
        if self.statistics is not None:
            for name in columns:
                if name not in self.statistics.columns:
                    raise ValueError(
                        f"`statistics` has nothing about the column {name!r}; add it, leave it "
                        "out of `columns`, or leave out `statistics` to have them fitted"
                    )

    def fitted(self, payloads: Iterable[Record]) -> Self:
        """The spec with what is known of each column; ValueError if there is no record."""
        if not self.needs_fit:
            return self
        records = list(payloads)
        if not records:
            raise ValueError("there are no records to fit on")
        numeric: list[NumericColumn] = []
        categorical: list[CategoricalColumn] = []
        for column in records[0]:
            cells = [record[column] for record in records]
            if self._is_numeric(column, cells):
                numeric.append(self._fit_numbers(column, cells))
            else:
                categorical.append(self._fit_categories(column, cells))
        statistics = TableStatistics(numeric=tuple(numeric), categorical=tuple(categorical))
        return type(self).model_validate({**self.model_dump(), "statistics": statistics})

    def load(self) -> Encoder:
        self.refuse_unfitted()
        return _Table(self)

    def _is_numeric(self, column: str, cells: Sequence[Cell]) -> bool:
        if column in self.numeric or column in self.categorical:
            return column in self.numeric
        return not any(isinstance(cell, str) for cell in cells)

    def _fit_numbers(self, column: str, cells: Sequence[Cell]) -> NumericColumn:
        values = np.array([_number_or_nan(cell) for cell in cells])
        if self.scaling != "quantile":
            scale = robust_scale if self.scaling == "robust" else standard_scale
            return NumericColumn(column=column, scale=scale(values))
        values = values[~np.isnan(values)]
        if not len(values):
            return NumericColumn(column=column, quantiles=(0.0, 0.0))
        shares = np.linspace(0, 1, max(2, min(self.quantiles, len(values))))
        quantiles = np.maximum.accumulate(np.quantile(values, shares))
        return NumericColumn(column=column, quantiles=tuple(quantiles.tolist()))

    def _fit_categories(self, column: str, cells: Sequence[Cell]) -> CategoricalColumn:
        if self.categories == "hash":
            return CategoricalColumn(column=column)
        counts = Counter(_category(cell) for cell in cells if cell is not None)
        names = sorted(counts)
        other = len(names) >= self.max_categories
        if other:
            frequent = sorted(names, key=counts.__getitem__)[len(names) - self.max_categories + 1 :]
            names = sorted(frequent)
        return CategoricalColumn(column=column, categories=tuple(names), other=other)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Fields:
    """A record that is ready: numbers `[N]`, NaN where missing, and its categories."""

    numbers: list[float]
    categories: list[str | None]


class _Table:
    def __init__(self, spec: TableSpec) -> None:
        self._spec = spec
        self._statistics = spec.statistics or TableStatistics()
        self.dim = spec.dim
        self._numeric = [item.column for item in self._statistics.numeric]
        self._categorical = [item.column for item in self._statistics.categorical]
        self._scales = tuple(item.scale for item in self._statistics.numeric if item.scale)
        if spec.categories == "hash":
            from sklearn.feature_extraction import FeatureHasher

            self._hasher = FeatureHasher(spec.hash_dim, input_type="string", dtype=np.float64)

    def prepare(self, payload: Record) -> _Fields:
        try:
            return _Fields(
                numbers=[number(payload[name], column=name) for name in self._numeric],
                categories=[
                    None if (cell := payload[name]) is None else _category(cell)
                    for name in self._categorical
                ],
            )
        except KeyError as error:
            raise ValueError(f"the record has no column {error.args[0]!r}") from error

    def size(self, prepared: _Fields) -> int:
        return 1

    def encode(self, batch: list[_Fields]) -> np.ndarray:
        """`[B, D]`; N numbers, K slots, M flags of what is missing."""
        numbers_BN = np.array([item.numbers for item in batch]).reshape(len(batch), -1)
        columns = list(zip(*(item.categories for item in batch), strict=True))
        parts = [self._scaled(numbers_BN)]
        if self._spec.categories == "hash":
            if columns:
                parts.append(self._hashed([item.categories for item in batch]))
        else:
            for known, column in zip(self._statistics.categorical, columns, strict=True):
                parts.append(_one_hot(column, known=known))
        if self._spec.missing:
            parts.append(np.isnan(numbers_BN))
            parts += [np.array([cell is None for cell in column])[:, None] for column in columns]
        return np.concatenate(parts, axis=1, dtype=np.float32, casting="unsafe")

    def _scaled(self, numbers_BN: np.ndarray) -> np.ndarray:
        if self._spec.scaling != "quantile":
            return np.nan_to_num(scaled(numbers_BN, self._scales, clip=self._spec.clip), nan=0.0)
        places = [
            _places(column, quantiles=np.array(item.quantiles))
            for column, item in zip(numbers_BN.T, self._statistics.numeric, strict=True)
        ]
        return np.stack(places, axis=1) if places else numbers_BN

    def _hashed(self, rows: Sequence[Sequence[str | None]]) -> np.ndarray:
        tokens = [
            [
                f"{name}={category}"
                for name, category in zip(self._categorical, row, strict=True)
                if category is not None
            ]
            for row in rows
        ]
        found: np.ndarray = self._hasher.transform(tokens).toarray()
        return found


def number(cell: Cell, *, column: str) -> float:
    """A cell as a number, NaN if it is missing; ValueError if it is none."""
    try:
        value = np.nan if cell is None else float(cell)
    except (ValueError, OverflowError) as error:
        shown = repr(cell) if len(repr(cell)) <= 40 else f"{repr(cell)[:37]}..."
        raise ValueError(f"column {column!r} holds {shown}, which is not a number") from error
    if np.isinf(value):
        raise ValueError(f"column {column!r} is infinite")
    return value


def _number_or_nan(cell: Cell) -> float:
    try:
        return number(cell, column="")
    except ValueError:
        return np.nan


def _category(cell: bool | int | float | str) -> str:
    match cell:
        case str():
            return cell
        case bool():
            return "true" if cell else "false"
        case float() if cell.is_integer():
            return str(int(cell))
    return repr(cell)


def _one_hot(column: Sequence[str | None], *, known: CategoricalColumn) -> np.ndarray:
    """`[B, K]`: a 1 in the slot of each cell's category, if it has one."""
    width = len(known.categories) + known.other
    slots = {category: i for i, category in enumerate(known.categories)}
    unknown = len(known.categories) if known.other else -1
    found = np.array([-1 if cell is None else slots.get(cell, unknown) for cell in column])
    return found[:, None] == np.arange(width)


def _places(values: np.ndarray, *, quantiles: np.ndarray) -> np.ndarray:
    """Where values stand among the quantiles, from 0 to 1; in the middle of equal ones.

    NaN, and every value of a column that had but one, is in the middle of all.
    """
    shares = np.linspace(0, 1, len(quantiles))
    if quantiles[0] == quantiles[-1]:
        below, above = values < quantiles[0], values > quantiles[0]
        return np.where(below, 0.0, np.where(above, 1.0, 0.5))
    up = np.interp(values, quantiles, shares)
    down = -np.interp(-values, -quantiles[::-1], -shares[::-1])
    found = (up + down) / 2
    found[values == quantiles[0]] = 0.0
    found[values == quantiles[-1]] = 1.0
    return np.where(np.isnan(values), 0.5, found)
