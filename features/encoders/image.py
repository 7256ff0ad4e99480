"""Image encoder without weights: histograms of oriented gradients."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

import numpy as np
import pydantic

from features.encoders.base import Encoder, EncoderSpec, Kind, import_extra


class HogSpec(EncoderSpec):
    """Histograms of oriented gradients of the grey image: shape without colour, no weights.

    Dalal and Triggs, "Histograms of Oriented Gradients for Human Detection" (CVPR 2005), by
    scikit-image.
    """

    kind: ClassVar[Kind] = "image"
    version: ClassVar[int] = 2

    type: Literal["hog"] = "hog"
    size: Annotated[int, pydantic.Field(ge=4, le=4096)] = 32
    """Side to which an image is resized, in pixels, without regard to its proportions."""
    orientations: Annotated[int, pydantic.Field(ge=1, le=180)] = 9
    """Bins of a histogram, over 180 degrees."""
    pixels_per_cell: Annotated[int, pydantic.Field(ge=2)] = 8
    """Side of a cell, which has one histogram."""
    cells_per_block: Annotated[int, pydantic.Field(ge=1)] = 2
    """Side of a block, within which histograms are normalised."""

    @pydantic.model_validator(mode="after")
    def _at_least_one_block(self) -> Self:
        if self._blocks < 1:
            raise ValueError(
                f"no block of {self.cells_per_block} cells of {self.pixels_per_cell} pixels fits "
                f"into `size` {self.size}; raise `size`, or lower one of the others"
            )
        return self

    @property
    def _blocks(self) -> int:
        return self.size // self.pixels_per_cell - self.cells_per_block + 1

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return int((self._blocks * self.cells_per_block) ** 2 * self.orientations)

    def load(self) -> Encoder:
        return _Hog(self)


class _Hog:
    def __init__(self, spec: HogSpec) -> None:
        self._hog = import_extra("skimage.feature", extra="image").hog
        self._image = import_extra("PIL.Image", extra="image")
        self._spec = spec
        self.dim = spec.dim

    def prepare(self, payload: np.ndarray) -> np.ndarray:
        """uint8 `[H, W, 3]` → float32 `[size, size]` in 0..1."""
        side = (self._spec.size, self._spec.size)
        grey = self._image.fromarray(payload).convert("L")
        resized = grey.resize(side, resample=self._image.Resampling.BILINEAR)
        return np.asarray(resized, dtype=np.float32) / 255

    def size(self, prepared: np.ndarray) -> int:
        return 1

    def encode(self, batch: list[np.ndarray]) -> np.ndarray:
        spec = self._spec
        rows = [
            self._hog(
                grey,
                orientations=spec.orientations,
                pixels_per_cell=(spec.pixels_per_cell,) * 2,
                cells_per_block=(spec.cells_per_block,) * 2,
                block_norm="L2-Hys",
            )
            for grey in batch
        ]
        return np.stack(rows).astype(np.float32)
