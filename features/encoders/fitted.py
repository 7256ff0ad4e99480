"""Encoders that scale by statistics of the training split, and how those are taken."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
import pydantic

from features.encoders.base import EncoderSpec
from features.fingerprint import Execution, Spec


class Scale(Spec):
    """How a number is brought to a common range: `(x - center) / scale`."""

    center: pydantic.FiniteFloat
    """What becomes 0: the mean, or the median."""
    scale: Annotated[pydantic.FiniteFloat, pydantic.Field(gt=0)]
    """What becomes 1: the standard deviation, or the distance of the quartiles."""


class FittedSpec(EncoderSpec):
    """Base of the encoders that have statistics of the training split.

    A subclass has the field `statistics`, None until it is fitted. Statistics that stand in the
    YAML are taken as they are, and nothing is fitted: so they do not change when the table does,
    and nothing is embedded again for their sake.
    """

    only_for_fit: ClassVar[tuple[str, ...]] = ("fit_sample",)
    """Fields that decide the statistics, and nothing once those are there."""

    fit_sample: Annotated[int, pydantic.Field(ge=1, le=2**24)] = 65_536
    """Distinct training payloads at most of which the statistics are taken. If the split has more,
    those whose keys are least are taken, a sample that depends on the payloads alone."""

    def identity(self) -> dict[str, Any]:
        """The fields that can change a result: once fitted, the options of the fit cannot."""
        fields = super().identity()
        if self.needs_fit:
            return fields
        return {name: value for name, value in fields.items() if name not in self.only_for_fit}

    def is_fitted_to(self, other: Mapping[str, Any]) -> bool:
        """Whether `other`, as JSON, is this spec with statistics, whatever they are."""
        own = self.model_dump(mode="json")
        return all(
            own[name] == other.get(name)
            for name, field in type(self).model_fields.items()
            if name not in ("statistics", *self.only_for_fit) and Execution not in field.metadata
        )

    def refuse_unfitted(self) -> None:
        """Raise ValueError if the statistics are not there yet."""
        if self.needs_fit:
            raise ValueError(
                f"the encoder {self.type!r} has no statistics of the training split yet; it is "
                "fitted when the embedding is planned, or `statistics` gives them"
            )


def standard_scale(values: np.ndarray) -> Scale:
    """Mean and standard deviation (over n) of float64 `[N]`; scale 1 if all are equal.

    NaN does not count. Sums are exact, so the order of the values does not matter.
    """
    values = values[~np.isnan(values)]
    if not len(values):
        return Scale(center=0.0, scale=1.0)
    center, deviation = _moments(values)
    return Scale(center=center, scale=deviation or 1.0)


def robust_scale(values: np.ndarray) -> Scale:
    """Median and distance of the quartiles of float64 `[N]`; NaN does not count.

    If more than half of the values are equal, so that the quartiles are too, the scale is the
    standard deviation; it is 1 if all are equal.
    """
    values = values[~np.isnan(values)]
    if not len(values):
        return Scale(center=0.0, scale=1.0)
    low, center, high = np.percentile(values, (25, 50, 75)).tolist()
    scale = high - low
    if not 0 < scale < math.inf:
        scale = _moments(values)[1] or 1.0
    return Scale(center=center, scale=scale)


def scaled(values: np.ndarray, scales: tuple[Scale, ...], *, clip: float | None) -> np.ndarray:
    """float64 `[..., C]`, each channel scaled and cut off at ±`clip`; NaN stays."""
    center = np.array([item.center for item in scales])
    scale = np.array([item.scale for item in scales])
    with np.errstate(over="ignore"):
        found: np.ndarray = (values - center) / scale
    return found if clip is None else np.clip(found, -clip, clip)


def _moments(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation over n of finite values `[N]`, N at least 1.

    The deviation is 0 if all values are equal, whatever rounding says.
    """
    if values.min() == values.max():
        return float(values[0]), 0.0
    # A power of two takes nothing from the values, and keeps their squares within range.
    unit = 2.0 ** (int(np.frexp(np.abs(values).max())[1]) - 1)
    small = values / unit
    mean = math.fsum(small) / len(small)
    deviation = math.sqrt(math.fsum((small - mean) ** 2) / len(small))
    return mean * unit, deviation * unit
