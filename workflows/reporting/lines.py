"""The report's plots of lines: how reliable probabilities are, and what is lost by degrees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workflows.reporting.drawing import SMALL, add_axes, drawing, ink, new_figure, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RELIABILITY = 330, 330
FALL = 300, 170
FEW_ROWS = 10


@dataclass(frozen=True, kw_only=True)
class Line:
    """One candidate's values by level."""

    levels: tuple[float, ...]
    values: tuple[float, ...]
    strong: bool = False


def reliability(*, confidence: np.ndarray, right: np.ndarray, rows: np.ndarray, label: str) -> str:
    """How often answers are right by their probability, `[B]` each, and below how many they are.

    On the dashed diagonal a probability says how often it is right; below it a model is too sure.
    Of fewer than `FEW_ROWS` a dot is hollow, and no line leads to it.
    """
    width, height = RELIABILITY
    with drawing():
        figure = new_figure(width=width, height=height)
        axes = add_axes(figure, left=38, right=14, top=22, bottom=92)
        counts = add_axes(figure, left=38, right=14, top=height - 74, bottom=36)
        ticks = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
        for part in (axes, counts):
            part.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_xticks(ticks, [])
        axes.set_yticks(ticks, [f"{tick:.1f}" for tick in ticks])
        axes.grid(color=ink("line"), linewidth=1)
        dashes: Any = (0, (3, 3))
        axes.plot((0, 1), (0, 1), color=ink("muted"), lw=1.2, linestyle=dashes, zorder=2)
        gaps: dict[str, Any] = {"color": ink("warm"), "lw": 2.5, "alpha": 0.55, "zorder": 2.5}
        many = rows >= FEW_ROWS
        axes.vlines(confidence[many], confidence[many], right[many], **gaps)
        axes.plot(confidence[many], right[many], color=ink("accent"), lw=1.8, zorder=3)
        # A dot's area is its share of the rows, and never too small to be seen.
        sizes = 18 + 90 * rows / rows.max()
        for chosen, face, edge in ((many, "accent", "page"), (~many, "page", "quiet")):
            dots: dict[str, Any] = {"facecolor": ink(face), "edgecolor": ink(edge)}
            dots |= {"s": sizes[chosen], "lw": 1.2, "zorder": 4, "clip_on": False}
            axes.scatter(confidence[chosen], right[chosen], **dots)
        words: dict[str, Any] = {"fontsize": SMALL, "color": ink("muted")}
        axes.set_title("share that is right", loc="left", pad=7, **words)
        bars: dict[str, Any] = {"color": ink("quiet"), "lw": 7, "alpha": 0.7}
        counts.vlines(confidence, 0, rows, **bars)
        counts.set_ylim(0, rows.max() * 1.05)
        counts.set_yticks([])
        counts.set_xticks(ticks, [f"{tick:.1f}" for tick in ticks])
        counts.text(0, 1.0, "how many", transform=counts.transAxes, va="bottom", **words)
        place: dict[str, Any] = {"transform": counts.transAxes, "ha": "right", "va": "top"}
        counts.text(1.0, -0.62, "probability of the answer →", **place, **words)
        return to_svg(figure, label=label)


def falls(
    *,
    noise: Sequence[Line],
    swapped: Sequence[Line],
    without: float | None,
    limits: tuple[float, float],
    label: str,
) -> str:
    """What is lost as a modality becomes noisy, and as it is another row's, side by side.

    One line a candidate, the strong one in front; `without` is what that one is worth if the
    modality is not there at all. The limits are given, so that modalities share a scale.
    """
    width, height = FALL
    middle, left, right = width / 2, 34.0, 8.0
    with drawing():
        figure = new_figure(width=width, height=height)
        first = add_axes(figure, left=left, right=width - middle + 2, top=20, bottom=26)
        second = add_axes(figure, left=middle + 18, right=right, top=20, bottom=26)
        _fall(first, noise, without=without, limits=limits, title="noise, in sd")
        _fall(second, swapped, without=without, limits=limits, title="another row's, %", scale=100)
        second.tick_params(labelleft=False)
        return to_svg(figure, label=label)


def fall_limits(values: Sequence[float]) -> tuple[float, float]:
    """A range for all lines of some plots."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return 0.0, 1.0
    margin = max(0.01, (max(finite) - min(finite)) * 0.06)
    return min(finite) - margin, max(finite) + margin


def _fall(
    axes: Axes,
    lines: Sequence[Line],
    *,
    without: float | None,
    limits: tuple[float, float],
    title: str,
    scale: float = 1.0,
) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, loc="left", fontsize=SMALL, color=ink("muted"), pad=5)
    axes.set_ylim(*limits)
    longest = max((line.levels[-1] * scale for line in lines), default=1.0)
    axes.set_xlim(-longest * 0.03, longest * 1.03)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=3, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
    axes.grid(axis="y", color=ink("line"), linewidth=1)
    if without is not None:
        dashes: Any = (0, (3, 3))
        axes.axhline(without, color=ink("muted"), lw=1.2, linestyle=dashes, zorder=1.5)
    for line in sorted(lines, key=lambda item: item.strong):
        look: dict[str, Any] = {"color": ink("quiet"), "lw": 1, "alpha": 0.5, "zorder": 2}
        if line.strong:
            look = {"color": ink("accent"), "lw": 2, "zorder": 3}
            look |= {"marker": "o", "ms": 5, "mec": ink("page"), "clip_on": False}
        axes.plot([level * scale for level in line.levels], line.values, **look)
