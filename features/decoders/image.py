"""Images: the bytes of a file → uint8 `[H, W, 3]` RGB, by Pillow."""

from __future__ import annotations

import io
import re
import warnings
from typing import Any

import numpy as np

from features.decoders.base import BadPayload, Limits, short
from features.encoders.base import import_extra

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that Pillow decodes by itself: none that runs a program, as EPS does."""
_PILLOW = re.compile(r"PIL\b")


def decode(payload: bytes, *, limits: Limits) -> np.ndarray:
    """The file of an image → uint8 `[H, W, 3]` RGB; BadPayload if it cannot be decoded whole."""
    image_module = import_extra("PIL.Image", extra="image")
    ops = import_extra("PIL.ImageOps", extra="image")
    _silence_pillow()
    image_module.init()
    formats = [name for name in FORMATS if name in image_module.OPEN]
    try:
        with image_module.open(io.BytesIO(payload), formats=formats) as image:
            width, height = image.size
            if width * height > limits.pixels:
                raise image_module.DecompressionBombError
            image.load()
            ops.exif_transpose(image, in_place=True)
            return _rgb(image)
    except (BadPayload, MemoryError):
        raise
    except image_module.DecompressionBombError as error:
        reason = f"image of more than {limits.pixels:,} pixels"
        raise BadPayload(reason, stage="decode") from error
    except image_module.UnidentifiedImageError as error:
        reason = f"not an image of a known format ({', '.join(formats)})"
        raise BadPayload(reason, stage="decode") from error
    except Exception as error:  # Pillow's decoders raise what they meet: OSError, SyntaxError, ...
        reason = f"damaged image: {short(error)}"
        raise BadPayload(reason, stage="decode") from error


def _rgb(image: Any) -> np.ndarray:
    """The loaded image as uint8 `[H, W, 3]`; what is transparent stands on white."""
    image_module = import_extra("PIL.Image", extra="image")
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        # Pillow's own conversion would clip at 255.
        grey = np.asarray(image).astype(np.float32)
        grey8 = np.clip(np.rint(grey / 257), 0, 255).astype(np.uint8)
        return np.repeat(grey8[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        reason = f"pixels of type {image.mode} have no known range; store 8 or 16 bits"
        raise BadPayload(reason, stage="decode")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        if image.mode in ("RGBa", "La"):
            image = image.convert({"RGBa": "RGBA", "La": "LA"}[image.mode])
        image = image.convert("RGBA")
        white = image_module.new("RGBA", image.size, (255, 255, 255, 255))
        image = image_module.alpha_composite(white, image)
    return np.array(image.convert("RGB"))


def _silence_pillow() -> None:
    """Keep Pillow's warnings about single files out of the log; what matters is raised.

    A filter for the process and not `catch_warnings`, which threads cannot share.
    """
    if ("ignore", None, Warning, _PILLOW, 0) not in warnings.filters:
        warnings.filterwarnings("ignore", module=_PILLOW.pattern)
