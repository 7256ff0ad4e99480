"""What a vision model wants done to its images: that of its image processor, faster.

An image processor of transformers resizes and crops an image by Pillow, and then scales and
normalises its values. Here, the first is done image by image and kept as uint8, a quarter of the
memory; the second for a batch at once, where the model is.

Tensors are named with their axes: B images, H and W pixels, 3 the colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from features.encoders.base import import_extra

PROBES = ((37, 61), (61, 37), (24, 24), (301, 97))
"""Heights and widths of images on which a processor is compared with what is done here."""
RESIZED_PIXELS = 100_000_000
"""Largest image that is made by resizing: one of 1 x 100,000 pixels is small, and may become
224 x 22,400,000."""
WARPED_FROM = 384
"""Side from which ConvNeXt's processor resizes without cropping."""


class ImageProcessing:
    """The preprocessing of one image processor.

    One whose steps are known, and give the same on a few probes, is not called any more; any
    other is called image by image.
    """

    def __init__(self, processor: Any) -> None:
        import torch

        self._processor = processor
        self._image = import_extra("PIL.Image", extra="image")
        self._steps = _known_steps(processor)
        scale = processor.rescale_factor if getattr(processor, "do_rescale", False) else 1.0
        mean, std = 0.0, 1.0
        if getattr(processor, "do_normalize", False):
            mean, std = processor.image_mean, processor.image_std
        std_3 = np.broadcast_to(np.asarray(std, dtype=np.float64), 3)
        shift_3 = -np.asarray(mean, dtype=np.float64) / std_3
        self._scale_3 = torch.tensor(scale / std_3, dtype=torch.float32)
        self._shift_3 = torch.tensor(shift_3, dtype=torch.float32)
        if self._steps is not None and not self._equals_the_processor():
            self._steps = None

    def prepare(self, picture: Any) -> np.ndarray:
        """uint8 `[H, W, 3]`, or Pillow's image → uint8 `[h, w, 3]`, which `batch` normalises.

        Of a processor that has to be called: float32 `[3, h, w]`, normalised. ValueError for an
        image so long and thin that it would be resized to more than RESIZED_PIXELS.
        """
        if self._steps is None:
            # A copy, which a processor may write to: an image of Pillow's gives no other leave.
            return self._by_the_processor(np.array(picture))
        image = picture
        if isinstance(picture, np.ndarray):
            image = self._image.fromarray(picture)
        width, height = image.size
        size, crop = self._steps.sizes(height, width)
        if size != (height, width):
            if size[0] * size[1] > RESIZED_PIXELS:
                raise ValueError(
                    f"too long and thin: {width} x {height} pixels would be resized to "
                    f"{size[1]:,} x {size[0]:,}, more than {RESIZED_PIXELS:,} pixels"
                )
            image = image.resize(size[::-1], resample=self._steps.resample)
        if crop != size:
            # What an image is smaller than the crop is filled with zeros.
            top, left = (size[0] - crop[0]) // 2, (size[1] - crop[1]) // 2
            image = image.crop((left, top, left + crop[1], top + crop[0]))
        return np.asarray(image)

    def batch(self, prepared: Sequence[np.ndarray], *, dtype: Any, device: Any = "cpu") -> Any:
        """B prepared images of one shape → the model's input `[B, 3, h, w]`, channels last."""
        import torch

        values = torch.from_numpy(np.stack(prepared)).to(device)
        if values.dtype == torch.uint8:
            if self._scale_3.device != values.device:
                self._scale_3 = self._scale_3.to(values.device)
                self._shift_3 = self._shift_3.to(values.device)
            # Over rows of pixels: rows of three numbers would be read one by one.
            width = values.shape[2]
            values_BHX = values.flatten(2).to(torch.float32)
            values_BHX.mul_(self._scale_3.repeat(width)).add_(self._shift_3.repeat(width))
            values = values_BHX.to(dtype).unflatten(2, (width, 3)).permute(0, 3, 1, 2)
        return values.to(dtype)

    def _by_the_processor(self, pixels: np.ndarray) -> np.ndarray:
        found = self._processor(
            images=pixels, input_data_format="channels_last", return_tensors="np"
        )["pixel_values"]
        values = np.asarray(found[0], dtype=np.float32)
        if values.ndim != 3:
            raise ValueError(
                f"{type(self._processor).__name__} makes an array of shape {values.shape} of an "
                "image; models are supported that take one picture of three colours"
            )
        return values

    def _equals_the_processor(self) -> bool:
        import torch

        random = np.random.default_rng(0)
        for height, width in PROBES:
            pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
            expected = self._by_the_processor(pixels)
            found = self.batch([self.prepare(pixels)], dtype=torch.float32)[0].cpu().numpy()
            if found.shape != expected.shape or not np.allclose(found, expected, atol=1e-4):
                return False
        return True


@dataclass(frozen=True, kw_only=True)
class _Steps:
    """Resizing and then cropping around the centre; sizes are (height, width)."""

    resize: tuple[int, int] | int | None
    """To this size; or the shorter side to this length, keeping the proportions."""
    crop: tuple[int, int] | None
    resample: int
    """One of Pillow's filters."""

    def sizes(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """What an image is resized to, and cropped to after that."""
        match self.resize:
            case None:
                size = (height, width)
            case int(short):
                long = int(short * max(height, width) / min(height, width))
                size = (long, short) if width <= height else (short, long)
            case size:
                pass
        return size, self.crop or size


def _known_steps(processor: Any) -> _Steps | None:
    """What a processor does before it scales and normalises; None if that is not known."""
    backends = import_extra("transformers.image_processing_backends", extra="image")
    base, own = backends.PilBackend, type(processor)
    if getattr(processor, "do_pad", False) or not isinstance(processor, base):
        return None
    pixels_by_its_own = any(
        getattr(own, name) is not getattr(base, name)
        for name in ("preprocess", "process_image", "center_crop", "rescale", "normalize")
    )
    of_convnext = own.__name__ == "ConvNextImageProcessorPil"
    if pixels_by_its_own or not (
        of_convnext or (own.resize is base.resize and own._preprocess is base._preprocess)
    ):
        return None
    crop: tuple[int, int] | None = None
    if getattr(processor, "do_center_crop", False):
        crop = (int(processor.crop_size.height), int(processor.crop_size.width))
    if not processor.do_resize:
        return _Steps(resize=None, crop=crop, resample=0)
    size, resample = processor.size, int(processor.resample)
    if size.longest_edge or size.max_height or size.max_width:
        return None
    if of_convnext:
        if crop is not None or not size.shortest_edge:
            return None
        side = int(size.shortest_edge)
        whole = side >= WARPED_FROM
        return _Steps(
            resize=(side, side) if whole else int(side / processor.crop_pct),
            crop=(side, side),
            resample=resample,
        )
    if size.shortest_edge:
        return _Steps(resize=int(size.shortest_edge), crop=crop, resample=resample)
    if size.height and size.width:
        return _Steps(resize=(int(size.height), int(size.width)), crop=crop, resample=resample)
    return None
