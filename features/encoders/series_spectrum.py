"""Power of a series by bands of frequencies, even or not, with or without gaps."""

from __future__ import annotations

import numpy as np

LEAST_POWER = 1e-6
"""Floor of a band's power before the logarithm: a thousandth of a channel's scale, squared."""
EVEN = 0.01
"""By how much of a step the times of an even series may be off."""


def band_powers(
    values: np.ndarray,
    *,
    times: np.ndarray | None,
    edges: np.ndarray,
    in_hertz: bool,
    window: int,
) -> np.ndarray:
    """log10 of the power `[C, N]` of a series `[T, C]` in the N bands between `edges`.

    `edges` are in cycles a step, or with `in_hertz` in cycles a second of `times` `[T]`. The power
    in all bands from 0 to half a cycle a step is the variance of the channel, about. A band above
    half a cycle a step, and a channel with fewer than two values, has the least power.
    """
    step = 1.0
    uneven = False
    if times is not None and len(times) > 1:
        distances = np.diff(times)
        step = float(np.median(distances)) or float(distances.mean()) or 1.0
        uneven = bool(np.abs(distances - step).max() > EVEN * step)
    edges_in_steps = edges * step if in_hertz else edges
    powers = np.zeros((values.shape[1], len(edges) - 1))
    for channel, line in zip(values.T, powers, strict=True):
        there = np.flatnonzero(~np.isnan(channel))
        if len(there) < 2:
            continue
        if uneven and times is not None:
            places = (times[there] - times[0]) / step
            frequencies, density = _lomb_scargle(channel[there], places, window=window)
        else:
            whole = np.interp(np.arange(len(channel)), there, channel[there])
            frequencies, density = _welch(whole, window=window)
        line[:] = _integrate(frequencies, density, edges=edges_in_steps)
    return np.log10(np.maximum(powers, LEAST_POWER))


def _welch(values: np.ndarray, *, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies in cycles a step and power density, by half-overlapping Hann windows."""
    from scipy.signal import welch

    frequencies, density = welch(values, nperseg=min(window, len(values)))
    return frequencies, density


def _lomb_scargle(
    values: np.ndarray, places: np.ndarray, *, window: int
) -> tuple[np.ndarray, np.ndarray]:
    """The same of values at uneven `places` (in steps): periodograms of windows, averaged.

    A window holds `window` values, and its frequencies are those of an even one of as many.
    """
    from scipy.signal import lombscargle

    count = min(window, len(values))
    frequencies = np.arange(1, count // 2 + 1) / count
    density = np.zeros(len(frequencies))
    starts = [i * count for i in range(len(values) // count)]
    if starts[-1] + count < len(values):
        starts.append(len(values) - count)
    for start in starts:
        part = values[start : start + count]
        part = part - part.mean()
        density += lombscargle(places[start : start + count], part, 2 * np.pi * frequencies)
    # For even places the unnormalised periodogram at a frequency is |X|² / N, and there a
    # one-sided density is twice that.
    return frequencies, 2 * density / len(starts)


def _integrate(frequencies: np.ndarray, density: np.ndarray, *, edges: np.ndarray) -> np.ndarray:
    """Power between the edges; each frequency stands for the strip half-way to its neighbours."""
    if not len(frequencies):
        return np.zeros(len(edges) - 1)
    middles = (frequencies[1:] + frequencies[:-1]) / 2
    first = max(0.0, 2 * frequencies[0] - middles[0]) if len(middles) else 0.0
    borders = np.concatenate([[first], middles, [0.5]])
    total = np.concatenate([[0.0], np.cumsum(density * np.diff(borders))])
    power: np.ndarray = np.diff(np.interp(edges, borders, total))
    return power
