"""Image encoder without weights: HOG against scikit-image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pydantic
import pytest
from PIL import Image

from features.encoders.image import HogSpec

RNG = np.random.default_rng(0)
PICTURES = [
    RNG.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((40, 50), (64, 33), (9, 9))
]


def embed(spec: Any, images: list[np.ndarray]) -> np.ndarray:
    encoder = spec.load()
    rows: np.ndarray = encoder.encode([encoder.prepare(image) for image in images])
    assert rows.dtype == np.float32
    assert rows.shape == (len(images), encoder.dim)
    return rows


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"size": 30, "pixels_per_cell": 7, "cells_per_block": 1, "orientations": 6},
        {"size": 64, "pixels_per_cell": 16, "cells_per_block": 3},
    ],
)
def test_hog_is_that_of_scikit_image_and_its_width_is_known_beforehand(
    options: dict[str, int],
) -> None:
    from skimage.feature import hog

    spec = HogSpec(**options)
    found = embed(spec, PICTURES)
    assert spec.dim == found.shape[1]
    for row, picture in zip(found, PICTURES, strict=True):
        grey = Image.fromarray(picture).convert("L").resize((spec.size, spec.size), 2)
        expected = hog(
            np.asarray(grey, dtype=np.float64) / 255,
            orientations=spec.orientations,
            pixels_per_cell=(spec.pixels_per_cell, spec.pixels_per_cell),
            cells_per_block=(spec.cells_per_block, spec.cells_per_block),
        )
        np.testing.assert_allclose(row, expected, atol=1e-4)


def test_hog_sees_shape_and_neither_colour_nor_contrast() -> None:
    shape = np.zeros((32, 32, 3), dtype=np.uint8)
    shape[8:24, 12:20] = 200
    faint = shape // 2
    turned = np.rot90(shape).copy()
    rows = embed(HogSpec(), [shape, faint, turned])
    assert np.abs(rows[0] - rows[1]).max() < 0.02
    assert np.abs(rows[0] - rows[2]).max() > 0.2


def test_hog_of_an_even_image_is_finite() -> None:
    assert np.isfinite(embed(HogSpec(), [np.full((5, 7, 3), 9, dtype=np.uint8)])).all()


def test_hog_without_room_for_a_block_is_refused() -> None:
    with pytest.raises(pydantic.ValidationError, match="no block of 2 cells of 8 pixels"):
        HogSpec(size=15)
