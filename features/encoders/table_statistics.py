"""What is known of a table's columns: scales and quantiles of numbers, the categories there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Self

import pydantic

from features.encoders.fitted import Scale
from features.fingerprint import Spec


class NumericColumn(Spec):
    """What is known of a column of numbers: a scale, or quantiles with `scaling: quantile`."""

    column: str
    scale: Scale | None = None
    quantiles: tuple[pydantic.FiniteFloat, ...] = ()
    """Ascending, at even distances from the least value to the greatest."""

    @pydantic.model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.scale is None) == (not self.quantiles):
            raise ValueError("give either `scale` or `quantiles`, one of the two")
        if len(self.quantiles) == 1 or any(
            a > b for a, b in zip(self.quantiles, self.quantiles[1:])
        ):
            raise ValueError("`quantiles` are two numbers or more, ascending")
        return self


class CategoricalColumn(Spec):
    """What is known of a column of categories."""

    column: str
    categories: tuple[str, ...] = ()
    """Those with a slot of their own, in the order of the slots; none with `categories: hash`."""
    other: bool = False
    """Whether all others share a slot; if not, an unseen one is all zeros."""

    @pydantic.model_validator(mode="after")
    def _once(self) -> Self:
        repeated = [name for name, count in Counter(self.categories).items() if count > 1]
        if repeated:
            raise ValueError(f"`categories` names {repeated[0]!r} twice")
        return self


class TableStatistics(Spec):
    """What is known of the training split's columns; numbers come first in an embedding."""

    numeric: tuple[NumericColumn, ...] = ()
    categorical: tuple[CategoricalColumn, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns, in the order of an embedding."""
        numeric = (item.column for item in self.numeric)
        return (*numeric, *(item.column for item in self.categorical))

    def check(
        self, *, numeric: Sequence[str], categorical: Sequence[str], quantile: bool, hashed: bool
    ) -> None:
        """Raise ValueError if they are not those of an encoder with these options."""
        repeated = [name for name, count in Counter(self.columns).items() if count > 1]
        if repeated:
            raise ValueError(f"`statistics` has the column {repeated[0]!r} twice")
        if not self.columns:
            raise ValueError("`statistics` has no column")
        for item in self.numeric:
            if item.column in categorical:
                raise ValueError(
                    f"`statistics` has column {item.column!r} as numeric, and "
                    "`categorical` names it"
                )
            if bool(item.quantiles) != quantile:
                wanted = "`quantiles`" if quantile else "a `scale`"
                raise ValueError(
                    f"`statistics` of column {item.column!r}: `scaling` needs {wanted}"
                )
        for column in self.categorical:
            if column.column in numeric:
                raise ValueError(
                    f"`statistics` has column {column.column!r} as categorical, and "
                    "`numeric` names it"
                )
            if hashed and (column.categories or column.other):
                raise ValueError(
                    f"`statistics` of column {column.column!r}: with `categories: hash` no "
                    "category has a slot of its own"
                )
