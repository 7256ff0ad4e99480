"""The plot of a search: what trials came to, against one of the fields that were searched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from workflows.reporting.drawing import add_axes, drawing, ink, new_figure, shorten, to_svg
from workflows.reporting.search_findings import Dimension, Value

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 260, 190
"""In pixels."""
MARKERS: dict[str, dict[str, Any]] = {
    "best": {"marker": "D", "ms": 9, "mfc": "accent", "mec": "page", "zorder": 5},
    "end": {"marker": "o", "ms": 7.5, "mfc": "accent", "mec": "page", "zorder": 4},
    "stopped": {"marker": "o", "ms": 6, "mfc": "page", "mec": "quiet", "zorder": 3},
}


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What one trial came to."""

    value: Value
    first: float
    """After the first rung; NaN where there is no number."""
    last: float
    """After the last rung that it came to."""
    state: Literal["best", "end", "stopped"]


def scatter(
    trials: Sequence[Tried],
    *,
    dimension: Dimension,
    limits: tuple[float, float],
    label: str,
) -> str:
    """A dot for each trial, with a line from what it was after the first rung, 260 × 190 pixels.

    What lies outside the limits is drawn as a triangle at the edge that it is beyond.
    """
    low, high = limits
    with drawing():
        figure = new_figure(width=WIDTH, height=HEIGHT)
        axes = add_axes(figure, left=40, right=12, top=10, bottom=26)
        axes.set_ylim(low, high)
        _set_axis(axes, dimension=dimension)
        _set_scale(axes, limits=limits)
        for number, trial in enumerate(trials):
            at = dimension.place(trial.value) + (_aside(number) if dimension.choices else 0.0)
            ends = np.clip([trial.first, trial.last], low, high)
            axes.plot((at, at), ends, color=ink("quiet"), lw=1, alpha=0.6, zorder=2)
            _dot(axes, at, trial, limits=limits)
        return to_svg(figure, label=label)


def limits_of(values: Sequence[float | None], *, lower_is_better: bool) -> tuple[float, float]:
    """A range in which the good ones can be told apart, and a bad one hides none of them."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return 0.0, 1.0
    sign = 1.0 if lower_is_better else -1.0
    costs = sign * np.array(known)
    best, middle = float(costs.min()), float(np.median(costs))
    worst = min(float(costs.max()), middle + 2 * (middle - best)) if middle > best else costs.max()
    margin = 0.07 * (worst - best) or 0.05 * max(abs(best), 1e-3)
    ends = sorted((sign * (best - margin), sign * (worst + margin)))
    return float(ends[0]), float(ends[1])


def _dot(axes: Axes, at: float, trial: Tried, *, limits: tuple[float, float]) -> None:
    style = dict(MARKERS[trial.state])
    if not math.isfinite(trial.last):
        return
    if not limits[0] <= trial.last <= limits[1]:
        style["marker"] = "^" if trial.last > limits[1] else "v"
    style |= {name: ink(style[name]) for name in ("mfc", "mec")}
    value = float(np.clip(trial.last, *limits))
    axes.plot(at, value, ls="", mew=1.4, clip_on=False, **style)


def _aside(number: int) -> float:
    """How far a trial stands beside its choice, so that no two lie on one another."""
    return 0.24 * ((number * 0.618034) % 1.0 - 0.5) * 2


def _set_axis(axes: Axes, *, dimension: Dimension) -> None:
    if dimension.choices:
        count = len(dimension.choices)
        axes.set_xlim(-0.5, count - 0.5)
        limit = max(3, 30 // count)
        shown = [shorten(_text(choice), limit=limit) for choice in dimension.choices]
        axes.set_xticks(range(count), shown)
        return
    low, high = dimension.low, dimension.high
    if dimension.log:
        axes.set_xscale("log")
        axes.set_xlim(low * (low / high) ** 0.05, high * (high / low) ** 0.05)
        ticks = _decades(low, high)
    else:
        margin = 0.05 * (high - low)
        axes.set_xlim(low - margin, high + margin)
        ticks = _ticks(low, high)
    axes.set_xticks(ticks, [_text(tick) for tick in ticks])
    axes.set_xticks([], minor=True)


def _set_scale(axes: Axes, *, limits: tuple[float, float]) -> None:
    ticks = _ticks(*limits)
    axes.set_yticks(ticks, [_text(tick) for tick in ticks])
    axes.grid(axis="y", color=ink("line"), linewidth=1)


def _ticks(low: float, high: float) -> list[float]:
    from matplotlib.ticker import MaxNLocator

    found = MaxNLocator(nbins=4, steps=[1, 2, 5, 10]).tick_values(low, high)
    near = 1e-9 * (high - low)
    return [float(tick) for tick in found if low - near <= tick <= high + near]


def _decades(low: float, high: float) -> list[float]:
    """Powers of ten, or the two ends where these hold less than two of them."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    step = max(1, math.ceil((last - first) / 3))
    found = [10.0**power for power in range(first, last + 1, step)]
    return found if len(found) > 1 else [low, high]


def _text(value: Value) -> str:
    """`0.001`, `1e−5`, `256`."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value
    return f"{value:.4g}".replace("e-0", "e-").replace("e+0", "e").replace("-", "\N{MINUS SIGN}")
