"""The series encoder against NumPy, pandas, SciPy and scikit-learn, one series at a time."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.signal import welch
from sklearn.preprocessing import RobustScaler

from features.encoders import parse_encoder
from features.encoders.base import Series
from features.encoders.series_summary import SUMMARY

CHANNELS = 3
LEAST = -6.0
"""log10 of the least power of a band."""


def some(count: int = 6, *, seed: int = 0, channels: int = CHANNELS) -> list[Series]:
    """Series of unlike length, with gaps, a third of them at times of their own."""
    random = np.random.default_rng(seed)
    found = []
    for i in range(count):
        steps = 5 + 7 * i
        values = random.normal(size=(steps, channels)) * 10.0 ** np.arange(channels) + 5
        values[random.random(values.shape) < 0.2] = np.nan
        values[0, 0] = 1.0  # something is there
        times = random.random(steps).cumsum() + 100 if i % 3 == 2 else None
        found.append(Series(values=values, times=times))
    return found


def spec(**options: Any) -> Any:
    return parse_encoder({"type": "series", "channels": CHANNELS, "scaling": "none", **options})


def encoded(series: list[Series], **options: Any) -> Any:
    made = spec(**options)
    made = made.fitted(series) if made.needs_fit else made
    encoder = made.load()
    rows = encoder.encode([encoder.prepare(one) for one in series])
    assert all(row.shape[-1] == made.dim == encoder.dim for row in rows)
    return rows


# ------------------------------------------------------------------ statistics


def test_statistics_are_those_of_numpy() -> None:
    quantiles = (0.0, 0.1, 0.5, 0.99)
    series = some()
    for one, row in zip(series, encoded(series, quantiles=quantiles), strict=True):
        steps = len(one.values)
        seconds = np.arange(steps) if one.times is None else one.times - one.times[0]
        for channel, found in zip(one.values.T, row[:-2].reshape(CHANNELS, -1), strict=True):
            there = ~np.isnan(channel)
            known = channel[there]
            slope = 0.0
            if there.sum() > 1:
                slope = np.polyfit((seconds / seconds[-1])[there], known, 1)[0]
            expected = {
                "mean": known.mean(),
                "deviation": known.std(),
                "least": known.min(),
                "greatest": known.max(),
                "first": known[0],
                "last": known[-1],
                "slope": slope,
                "missing": np.isnan(channel).mean(),
            }
            assert tuple(expected) == SUMMARY
            np.testing.assert_allclose(
                found,
                [*expected.values(), *np.nanquantile(channel, quantiles)],
                rtol=1e-4,
                atol=1e-4 * np.abs(known).max(),
            )
        np.testing.assert_allclose(row[-2:], np.log1p([steps, seconds[-1]]), rtol=1e-6)


def test_a_channel_without_a_value_is_zeros_and_a_share_of_gaps() -> None:
    values = np.array([[1.0, np.nan], [2.0, np.nan]])
    (row,) = encoded([Series(values=values)], channels=2, quantiles=())
    empty = dict(zip(SUMMARY, row[len(SUMMARY) : 2 * len(SUMMARY)], strict=True))
    assert empty.pop("missing") == 1
    assert set(empty.values()) == {0}


@pytest.mark.parametrize("output", ["statistics", "spectrum", "sequence"])
def test_neighbours_change_no_bit(output: Any) -> None:
    series = some(9)
    together = encoded(series, output=output)
    for one, row in zip(series, together, strict=True):
        np.testing.assert_array_equal(encoded([one], output=output)[0], row)


# ------------------------------------------------------------------ spectrum


def test_the_spectrum_of_even_steps_is_that_of_scipy() -> None:
    """Bands that end half-way between two frequencies hold those frequencies whole."""
    random = np.random.default_rng(1)
    window, count = 64, 500
    values = random.normal(size=(count, CHANNELS)).cumsum(axis=0)
    values[10:14, 1] = np.nan
    edges = (np.array([1, 8, 20, 30]) + 0.5) / window
    (row,) = encoded(
        [Series(values=values)], output="spectrum", window=window, edges=tuple(edges.tolist())
    )
    whole = pd.DataFrame(values).interpolate()  # straight lines, like the project's
    for i, found in enumerate(row.reshape(CHANNELS, -1)):
        frequencies, density = welch(whole[i].to_numpy(), nperseg=window)
        expected = [
            density[(frequencies > low) & (frequencies < high)].sum() / window
            for low, high in itertools.pairwise(edges)
        ]
        np.testing.assert_allclose(found[:-1], np.log10(expected), atol=1e-4)
        assert found[-1] == pytest.approx(np.isnan(values[:, i]).mean())


def test_the_power_of_all_bands_is_the_variance() -> None:
    noise = np.random.default_rng(2).normal(size=(20_000, 1)) * 3
    (row,) = encoded([Series(values=noise)], channels=1, output="spectrum", bands=10)
    assert (10 ** row[:-1].astype(float)).sum() == pytest.approx(9, rel=0.05)


@pytest.mark.parametrize("times", ["even", "uneven"])
def test_a_tone_is_found_in_its_band_with_its_power(times: str) -> None:
    """0.3 Hz, of steps that are half a second: times are in Hz where there are any."""
    random = np.random.default_rng(3)
    seconds = np.arange(2000) * 0.5
    if times == "uneven":
        seconds = np.sort(seconds + random.uniform(-0.15, 0.15, len(seconds)))
    values = 2 * np.sin(2 * np.pi * 0.3 * seconds)[:, None]
    values[random.random(len(values)) < 0.1] = np.nan
    edges = (0.05, 0.2, 0.25, 0.35, 0.4, 0.8)
    (row,) = encoded(
        [Series(values=values, times=seconds)], channels=1, output="spectrum", edges=edges
    )
    powers = 10 ** row[:-1].astype(float)
    assert powers.argmax() == 2
    # Between two frequencies of a periodogram without a taper, some of a tone's power is lost.
    assert powers[2] == pytest.approx(2**2 / 2, rel=0.2 if times == "even" else 0.4)
    assert powers[2] > 5 * np.delete(powers, 2).max()


def test_bands_that_a_series_cannot_tell_have_the_least_power() -> None:
    alone = np.array([[1.0], [np.nan], [np.nan]])
    (row,) = encoded([Series(values=alone)], channels=1, output="spectrum", bands=4)
    assert row[:-1].tolist() == [LEAST] * 4
    noise = np.random.default_rng(4).normal(size=(300, 1))
    (row,) = encoded([Series(values=noise)], channels=1, output="spectrum", edges=(0.1, 0.5, 0.9))
    assert row[0] > -2 and row[1] == LEAST


@pytest.mark.parametrize("output", ["statistics", "spectrum", "sequence"])
def test_steps_at_one_moment_are_finite(output: Any) -> None:
    series = [
        Series(values=np.array([[1.0], [2.0], [4.0]]), times=np.zeros(3)),
        Series(values=np.array([[1.0], [2.0], [4.0], [3.0]]), times=np.array([0.0, 0, 0, 5])),
        Series(values=np.array([[1.0]]), times=np.array([7.0])),
    ]
    deltas = {"deltas": True} if output == "sequence" else {}
    for row in encoded(series, channels=1, output=output, **deltas):
        assert np.isfinite(row).all()


# ------------------------------------------------------------------ sequence


def test_a_sequence_is_its_steps_with_gaps_and_distances() -> None:
    series = some()
    for one, row in zip(series, encoded(series, output="sequence", deltas=True), strict=True):
        values, gaps, deltas = np.split(row, [CHANNELS, 2 * CHANNELS], axis=1)
        np.testing.assert_array_equal(values, np.nan_to_num(one.values).astype(np.float32))
        np.testing.assert_array_equal(gaps, np.isnan(one.values))
        seconds = np.arange(len(values)) if one.times is None else one.times
        expected = np.log1p(np.diff(seconds, prepend=seconds[0]))
        np.testing.assert_allclose(deltas[:, 0], expected, atol=1e-6)
    (plain,) = encoded(series[:1], output="sequence", mask=False)
    assert plain.shape == (5, CHANNELS)


@pytest.mark.parametrize("keep", ["first", "last"])
def test_long_sequences_are_cut_and_counted(keep: Any) -> None:
    series = some()
    made = spec(output="sequence", max_length=10, keep=keep, mask=False)
    encoder = made.load()
    prepared = [encoder.prepare(one) for one in series]
    assert [encoder.counts(one)["truncated"] for one in prepared] == [0, 1, 1, 1, 1, 1]
    part = slice(10) if keep == "first" else slice(-10, None)
    for one, row in zip(series, encoder.encode(prepared), strict=True):
        np.testing.assert_array_equal(row, np.nan_to_num(one.values[part]).astype(np.float32))


# ------------------------------------------------------------------ scaling and times


def test_channels_are_scaled_as_scikit_learn_scales_them() -> None:
    series = some()
    scaler = RobustScaler().fit(np.concatenate([one.values for one in series]))
    options: dict[str, Any] = {"scaling": "robust", "output": "sequence", "mask": False}
    for one, row in zip(series, encoded(series, clip=None, **options), strict=True):
        expected = np.nan_to_num(scaler.transform(one.values))
        np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-6)
    for one, row in zip(series, encoded(series, clip=0.5, **options), strict=True):
        expected = np.nan_to_num(scaler.transform(one.values).clip(-0.5, 0.5))
        np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-6)


def test_a_long_series_does_not_rule_the_scale() -> None:
    long = Series(values=np.full((100_000, 1), 1000.0) + np.arange(100_000)[:, None] % 7)
    short = [Series(values=np.random.default_rng(i).normal(size=(256, 1))) for i in range(9)]
    made = spec(channels=1, scaling="robust").fitted([long, *short])
    assert made.statistics.channels[0].center < 5


def test_a_fitted_spec_is_a_plain_one_and_its_statistics_are_its_identity() -> None:
    unfitted = spec(scaling="robust")
    assert unfitted.needs_fit
    with pytest.raises(ValueError, match="no statistics of the training split yet"):
        unfitted.load()
    fitted, other = unfitted.fitted(some()), unfitted.fitted(some(seed=1))
    assert not fitted.needs_fit
    assert parse_encoder(fitted.model_dump(mode="json")).fingerprint() == fitted.fingerprint()
    assert len({s.fingerprint() for s in (unfitted, fitted, other)}) == 3
    assert unfitted.fitted(some()[::-1]).fingerprint() == fitted.fingerprint()


def test_a_series_that_cannot_be_used_is_left_out_of_the_fit() -> None:
    wrong = Series(values=np.ones((4, CHANNELS + 1)))
    unfitted = spec(scaling="robust")
    assert unfitted.fitted([wrong, *some()]) == unfitted.fitted(some())
    with pytest.raises(ValueError, match="a series of 4 channels, where `channels` is 3"):
        unfitted.fitted([wrong])


def test_a_channel_of_times_is_as_times_beside_it() -> None:
    one = some()[2]
    assert one.times is not None
    together = Series(values=np.insert(one.values, 1, one.times, axis=1))
    for output in ("statistics", "spectrum"):
        (expected,) = encoded([one], output=output)
        (found,) = encoded([together], output=output, time=1)
        np.testing.assert_array_equal(found, expected)
        (found,) = encoded([one], output=output, time=1)  # a CSV file's own times
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (np.ones((3, 3)), "a series of 3 channels, where `channels` is 1 and one of times"),
        (np.array([[0.0, 1], [2, 1], [1, 1]]), "the times go back at step 2"),
        (np.array([[0.0, 1], [np.nan, 1]]), r"step 1 \(counted from 0\) has no time"),
        (np.array([[0.0, np.nan], [1, np.nan]]), "all steps are gaps"),
        (np.empty((0, 2)), "series without a step"),
    ],
)
def test_series_that_do_not_fit_are_refused(values: np.ndarray, says: str) -> None:
    encoder = spec(channels=1, time=0).load()
    with pytest.raises(ValueError, match=says):
        encoder.prepare(Series(values=values))


# ------------------------------------------------------------------ identity and configuration


def test_only_what_can_change_the_result_is_identity() -> None:
    plain = spec().fingerprint()
    assert spec(bands=3, max_length=7, clip=2, batch_size=5).fingerprint() == plain
    assert spec(quantiles=(0.5,)).fingerprint() != plain
    assert spec(time=0).fingerprint() != plain
    spectrum = spec(output="spectrum").fingerprint()
    assert spec(output="spectrum", quantiles=(0.5,), mask=False).fingerprint() == spectrum
    assert spec(output="spectrum", bands=3).fingerprint() != spectrum


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"channels": 0}, "greater than or equal to 1"),
        ({"time": 4}, "has the channels 0 to 3"),
        ({"output": "spectrum", "edges": (0.3, 0.1)}, "ascending"),
        ({"output": "spectrum", "edges": (0.3,)}, "two frequencies or more"),
        ({"statistics": {"channels": [{"center": 0, "scale": 1}] * 3}}, "`scaling` is none"),
        (
            {"scaling": "robust", "statistics": {"channels": [{"center": 0, "scale": 1}]}},
            "has 1 channels, and `channels` is 3",
        ),
        (
            {"scaling": "robust", "statistics": {"channels": [{"center": 0, "scale": 0}] * 3}},
            "than 0",
        ),
    ],
)
def test_a_wrong_configuration_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        spec(**options)


def test_columns_are_as_many_as_channels() -> None:
    spec().check_columns(["a", "b", "c"])
    spec(time=0).check_columns(["t", "a", "b", "c"])
    spec().check_columns(["one"])
    with pytest.raises(ValueError, match="`columns` names 2 columns"):
        spec().check_columns(["a", "b"])
