"""The report's plots, each as the text of one SVG element. Sizes are in pixels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from workflows.reporting.drawing import (
    SMALL,
    TEXT,
    add_axes,
    drawing,
    ink,
    new_figure,
    shorten,
    text_width,
    to_svg,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Family = Literal["single", "fusion", "alignment", "plain"]
"""What a row is about: it decides colour and marker, so that neither is needed alone."""

MARKERS: dict[Family, tuple[str, str, float]] = {
    "single": ("o", "quiet", 9),
    "fusion": ("D", "accent", 8.5),
    "alignment": ("^", "alternative", 10),
    "plain": ("o", "accent", 9),
}
"""Family → matplotlib marker, colour, size."""


@dataclass(frozen=True, kw_only=True)
class IntervalRow:
    """One line of an interval plot: a value, its interval, and what stands beside it."""

    label: str
    value: float
    low: float
    high: float
    text: str
    """What is written at the right end of the row."""
    hollow: float | None = None
    """A second value, drawn as a hollow marker."""
    family: Family = "plain"
    strong: bool = False


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What one fit did, epoch by epoch (all arrays `[E]`; NaN where there is no number)."""

    epochs: np.ndarray
    train_loss: np.ndarray
    validation_loss: np.ndarray
    validation_accuracy: np.ndarray
    best_epoch: int | None


def intervals(
    rows: Sequence[IntervalRow],
    *,
    label: str,
    width: int,
    reference: float | None = None,
    reference_label: str = "",
    bounds: tuple[float, float] = (0.0, 1.0),
    signed: bool = False,
) -> str:
    """Dots with their intervals, one row each, on a common axis.

    Under 560 pixels a row's words stand above its line instead of beside it. `reference` is
    a dashed line; the axis spans what is drawn, within `bounds`.
    """
    stacked = width < 560
    pitch, top, bottom = (47.0, 20.0, 24.0) if stacked else (34.0, 24.0, 26.0)
    names = [shorten(row.label, limit=26 if stacked else 34) for row in rows]
    left = 7.0 if stacked else max(map(text_width, names)) + 18
    right = 7.0 if stacked else max(text_width(row.text) for row in rows) + 18
    with drawing():
        figure = new_figure(width=width, height=top + pitch * len(rows) + bottom)
        axes = add_axes(figure, left=left, right=right, top=top, bottom=bottom)
        low, high, ticks = _span(rows, reference=reference, bounds=bounds, width=width)
        axes.set_xlim(low, high)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks([])
        decimals = _decimals(ticks)
        axes.set_xticks(ticks, [_number(tick, decimals, signed=signed) for tick in ticks])
        # Where words stand above a line, the grid is drawn beside the line only.
        line, word, reach = (0.2, -0.2, 0.24) if stacked else (0.0, 0.0, 0.5)
        at = np.arange(len(rows)) + line
        for tick in ticks:
            axes.vlines([tick] * len(at), at - reach, at + reach, color=ink("line"), lw=1, zorder=1)
        if reference is not None:
            dashes: dict[str, Any] = {"linestyle": (0, (3, 3)), "lw": 1.2, "zorder": 1.5}
            spans = ([reference] * len(at), at - reach, at + reach)
            axes.vlines(*spans, color=ink("muted"), **dashes)
            _above(axes, reference_label, at=reference, low=low, high=high)
        inner = width - left - right
        for position, (row, name) in enumerate(zip(rows, names, strict=True)):
            words: dict[str, Any] = {
                "transform": axes.get_yaxis_transform(),
                "va": "center",
                "fontsize": TEXT,
                "fontweight": "bold" if row.strong else "normal",
                "color": ink("ink"),
            }
            axes.text(-left / inner, position + word, name, ha="left", **words)
            axes.text(1 + right / inner, position + word, row.text, ha="right", **words)
            _interval(axes, row, at=position + line)
        return to_svg(figure, label=label)


def curves(
    curve: Curve,
    *,
    label: str,
    epochs: int,
    loss_limits: tuple[float, float],
    accuracy_limits: tuple[float, float],
) -> str:
    """One candidate's losses above its validation accuracy, 260 × 220 pixels.

    The limits are given, so that the plots of several candidates can share theirs.
    """
    with drawing():
        figure = new_figure(width=260, height=220)
        loss = add_axes(figure, left=34, right=8, top=20, bottom=106)
        accuracy = add_axes(figure, left=34, right=8, top=136, bottom=24)
        lines = (
            (loss, curve.train_loss, "quiet"),
            (loss, curve.validation_loss, "warm"),
            (accuracy, curve.validation_accuracy, "accent"),
        )
        for axes, limits, title in (
            (loss, loss_limits, "loss"),
            (accuracy, accuracy_limits, "accuracy"),
        ):
            axes.set_xlim(1 - epochs / 60, epochs + epochs / 60)
            axes.set_ylim(*limits)
            axes.set_title(title, loc="left", fontsize=SMALL, color=ink("muted"), pad=5)
            _few_ticks(axes, limits=limits)
        for axes, values, colour in lines:
            alone = np.isfinite(values).sum() == 1
            shape: dict[str, Any] = {"marker": "o", "markersize": 5} if alone else {}
            axes.plot(curve.epochs, values, color=ink(colour), lw=1.8, **shape)
        if not np.isfinite(curve.validation_accuracy).any():
            words: dict[str, Any] = {"fontsize": SMALL, "color": ink("muted")}
            place = accuracy.transAxes
            accuracy.text(
                0.5, 0.5, "measured at the end only", transform=place, ha="center", **words
            )
        loss.tick_params(labelbottom=False)
        _mark_best(lines, curve=curve)
        return to_svg(figure, label=label)


def confusion(counts: np.ndarray, *, totals: np.ndarray, labels: Sequence[str], label: str) -> str:
    """A confusion matrix `[C, C]` (row: true class, column: answer) as a heat map.

    Blue is what was right and orange what was wrong, the stronger the larger its share of all
    rows of the class (`totals`, `[C]`); the share that was right stands at the end.
    """
    size = len(labels)
    names = [shorten(text, limit=14) for text in labels]
    widest = max(map(text_width, names))
    upright = widest > 24
    left, right, bottom = max(widest + 12, 40.0), 46.0, 4.0
    top = (widest if upright else 14.0) + 26
    cell = max(20.0, (400 - left - right) / size)
    font = TEXT if cell >= 26 else 9.5
    width, height = left + cell * size + right, top + cell * size + bottom
    with drawing():
        figure = new_figure(width=width, height=height)
        axes = add_axes(figure, left=left, right=right, top=top, bottom=bottom)
        axes.set_xlim(-0.5, size - 0.5)
        axes.set_ylim(size - 0.5, -0.5)
        axes.set_xticks([])
        axes.set_yticks([])
        edges = np.arange(size + 1) - 0.5
        axes.hlines(edges, -0.5, size - 0.5, color=ink("line"), lw=1, zorder=1)
        axes.vlines(edges, -0.5, size - 0.5, color=ink("line"), lw=1, zorder=1)
        for row, column in zip(*np.nonzero(counts), strict=True):
            _cell(axes, row, column, counts=counts, totals=totals, font=font)
        near = 8 / cell
        outside = size - 0.5 + near
        for index, text in enumerate(names):
            total = int(totals[index])
            recall = f"{counts[index, index] / total:.2f}" if total else "–"
            words: dict[str, Any] = {"fontsize": min(font, TEXT), "color": ink("ink")}
            axes.text(-0.5 - near, index, text, ha="right", va="center", **words)
            turn = 90 if upright else 0
            axes.text(index, -0.5 - near, text, ha="center", va="bottom", rotation=turn, **words)
            words["color"] = ink("muted")
            axes.text(outside, index, recall, ha="left", va="center", **words)
        quiet: dict[str, Any] = {"fontsize": SMALL, "color": ink("muted")}
        axes.text(-0.5, -0.5 - top / cell, "answer →", ha="left", va="top", **quiet)
        axes.text(-0.5 - left / cell, -0.5 - near, "true ↓", ha="left", va="bottom", **quiet)
        axes.text(outside, -0.5 - near, "recall", ha="left", va="bottom", **quiet)
        return to_svg(figure, label=label)


def loss_limits(losses: Sequence[np.ndarray]) -> tuple[float, float]:
    """A common range for several fits' losses, in which one that diverged hides no other."""
    finite = [values[np.isfinite(values)] for values in losses]
    finite = [values for values in finite if len(values)]
    if not finite:
        return 0.0, 1.0
    low = min(0.0, *(float(values.min()) for values in finite))
    tops = [float(values.max()) for values in finite]
    return low, max(1e-6, min(max(tops), 2 * float(np.median(tops)))) * 1.05


def accuracy_limits(accuracies: Sequence[np.ndarray]) -> tuple[float, float]:
    """A common range for several fits' accuracies, from a whole tenth up to 1."""
    values = np.concatenate([np.zeros(0), *(np.asarray(item, float) for item in accuracies)])
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    return min(0.9, math.floor(max(0.0, float(values.min()) - 0.02) * 10) / 10), 1.0


def _interval(axes: Axes, row: IntervalRow, *, at: float) -> None:
    marker, name, size = MARKERS[row.family]
    tint, page = ink(name), ink("page")
    bar: dict[str, Any] = {"lw": 4.5 if row.strong else 3, "alpha": 0.5, "zorder": 2}
    axes.plot((row.low, row.high), (at, at), color=tint, solid_capstyle="round", **bar)
    dot: dict[str, Any] = {"marker": marker, "ls": "", "mew": 1.5, "clip_on": False}
    size += 2 if row.strong else 0
    if row.hollow is not None and math.isfinite(row.hollow):
        axes.plot(row.hollow, at, ms=size - 2, mfc=page, mec=tint, zorder=3, **dot)
    axes.plot(row.value, at, ms=size, mfc=tint, mec=page, zorder=4, **dot)


def _cell(
    axes: Axes, row: int, column: int, *, counts: np.ndarray, totals: np.ndarray, font: float
) -> None:
    """One cell of a confusion matrix that is not empty."""
    share = float(counts[row, column] / totals[row])
    # Errors are few; two fifths of a class gone the same wrong way is as warm as it gets.
    strength = 0.12 + 0.78 * (share if row == column else min(1.0, share / 0.4))
    corners = (np.array([-0.47, 0.47, 0.47, -0.47]), np.array([-0.47, -0.47, 0.47, 0.47]))
    axes.fill(
        column + corners[0],
        row + corners[1],
        facecolor=ink("accent" if row == column else "warm"),
        alpha=round(strength, 2),
        linewidth=0,
        zorder=2,
    )
    black = ink("page" if strength > 0.55 else "ink")
    words: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": font, "zorder": 3}
    axes.text(column, row, f"{counts[row, column]:d}", color=black, **words)


def _mark_best(lines: Sequence[tuple[Axes, np.ndarray, str]], *, curve: Curve) -> None:
    """A line through all axes at the epoch whose weights were kept, and a dot on each curve."""
    found = np.flatnonzero(curve.epochs == curve.best_epoch)
    if not len(found):
        return
    at, best = curve.epochs[found[0]], found[0]
    for axes in {id(axes): axes for axes, _, _ in lines}.values():
        axes.axvline(at, color=ink("muted"), lw=1, linestyle=(0, (2, 2)), zorder=1)
    dot: dict[str, Any] = {"marker": "o", "ls": "", "ms": 7, "mew": 1.8, "mfc": ink("page")}
    for axes, values, colour in lines[1:]:
        axes.plot(at, values[best], mec=ink(colour), zorder=5, clip_on=False, **dot)


def _few_ticks(axes: Axes, *, limits: tuple[float, float]) -> None:
    from matplotlib.ticker import MaxNLocator

    ticks = MaxNLocator(nbins=3, steps=[1, 2, 5, 10]).tick_values(*limits)
    ticks = [float(tick) for tick in ticks if limits[0] - 1e-9 <= tick <= limits[1] + 1e-9]
    axes.set_yticks(ticks, [_number(tick, _decimals(ticks)) for tick in ticks])
    whole = MaxNLocator(nbins=6, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10])
    axes.xaxis.set_major_locator(whole)
    axes.grid(axis="y", color=ink("line"), linewidth=1)


def _span(
    rows: Sequence[IntervalRow],
    *,
    reference: float | None,
    bounds: tuple[float, float],
    width: int,
) -> tuple[float, float, list[float]]:
    """The axis: its two ends within the bounds, and the ticks between them."""
    from matplotlib.ticker import MaxNLocator

    drawn = [value for row in rows for value in (row.low, row.high, row.value, row.hollow)]
    finite = [value for value in [*drawn, reference] if value is not None and math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    margin = max(0.01, (high - low) * 0.04)
    low, high = max(bounds[0], low - margin), min(bounds[1], high + margin)
    locator = MaxNLocator(nbins=4 if width < 560 else 7, steps=[1, 2, 5, 10])
    ticks = [float(tick) for tick in locator.tick_values(low, high) if low <= tick <= high]
    return low, high, ticks


def _above(axes: Axes, text: str, *, at: float, low: float, high: float) -> None:
    """Words above the axes at a value, turned inwards near the ends."""
    share = (at - low) / (high - low)
    side = "left" if share < 0.2 else "right" if share > 0.8 else "center"
    words: dict[str, Any] = {"va": "bottom", "fontsize": SMALL, "color": ink("muted")}
    axes.text(at, 1.0, text, transform=axes.get_xaxis_transform(), ha=side, **words)


def _decimals(ticks: Sequence[float]) -> int:
    step = min((b - a for a, b in itertools.pairwise(ticks)), default=0.1)
    return max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 2


def _number(value: float, decimals: int, *, signed: bool = False) -> str:
    sign = "+" if signed and round(value, decimals) > 0 else ""
    return f"{sign}{value:.{decimals}f}".replace("-", "−")
