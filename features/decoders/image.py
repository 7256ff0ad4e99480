"""Images: the bytes of a file → uint8 `[H, W, 3]` RGB, or an image of Pillow's."""

from __future__ import annotations

import io
import re
import warnings
from typing import Any

import numpy as np

from features.decoders.base import BadPayload, Limits, short
from features.encoders.base import import_extra

WHITE_IS_ZERO = 0
"""What a TIFF's tag 262 (PhotometricInterpretation) says of a negative; TIFF 6.0, page 37."""
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that Pillow decodes by itself: none that runs a program, as EPS does."""
BEGINNINGS = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n",
    "GIF": rb"GIF8[79]a",
    "TIFF": rb"II\*\0|MM\0\*",
    "WebP": rb"RIFF....WEBP",
    "AVIF": rb"....ftypavi[fs]",
}
"""First bytes of formats whose further bytes may be damaged so that Pillow knows them no more."""
_PILLOW = re.compile(r"PIL\b")


def decode(payload: bytes, *, limits: Limits) -> np.ndarray:
    """The file of an image → uint8 `[H, W, 3]` RGB, as `decode_pillow`."""
    return np.array(decode_pillow(payload, limits=limits))


def decode_pillow(payload: bytes, *, limits: Limits) -> Any:
    """The file of an image → Pillow's `Image` in RGB, upright; BadPayload if it is not whole.

    Of several pictures in a file, the first. More than 8 bits are scaled to 8; what is transparent
    stands on white. CMYK is converted as (255 - C) (255 - K) / 255, without colour profiles; so are
    those of RGB not applied.
    """
    image_module = import_extra("PIL.Image", extra="image")
    ops = import_extra("PIL.ImageOps", extra="image")
    _silence_pillow()
    if 2 * (image_module.MAX_IMAGE_PIXELS or limits.pixels) < limits.pixels:
        image_module.MAX_IMAGE_PIXELS = limits.pixels  # Pillow has a limit of its own
    image_module.init()
    formats = [name for name in FORMATS if name in image_module.OPEN]
    try:
        with image_module.open(io.BytesIO(payload), formats=formats) as image:
            if _largest_area(image) > limits.pixels:
                raise image_module.DecompressionBombError
            image.load()
            if image.format in ("JPEG", "MPO") and not _jpeg_ends(payload):
                raise BadPayload("damaged image: the JPEG does not end", stage="decode")
            ops.exif_transpose(image, in_place=True)
            return _rgb(image)
    except (BadPayload, MemoryError):
        raise
    except image_module.DecompressionBombError as error:
        reason = f"image of more than {limits.pixels:,} pixels"
        raise BadPayload(reason, stage="decode") from error
    except image_module.UnidentifiedImageError as error:
        begun = [name for name, start in BEGINNINGS.items() if re.match(start, payload, re.DOTALL)]
        reason = f"not an image of a known format ({', '.join(formats)})"
        if begun:
            reason = f"damaged image: the head of the {begun[0]} cannot be read"
        raise BadPayload(reason, stage="decode") from error
    except Exception as error:  # Pillow's decoders raise what they meet: OSError, SyntaxError, ...
        reason = f"damaged image: {short(error)}"
        raise BadPayload(reason, stage="decode") from error


def _largest_area(image: Any) -> int:
    """Pixels of what is held at once: the image, or a tile of a TIFF that is larger."""
    width, height = image.size
    tags = getattr(image, "tag_v2", {})
    tile = tags.get(322, 0), tags.get(323, 0)  # TileWidth, TileLength
    return max(width * height, *(int(a) * int(b) for a, b in [tile]))


def _jpeg_ends(payload: bytes) -> bool:
    """Whether a JPEG has an end (EOI, ITU T.81, B.1.1.3) after its first scan.

    Pillow misses it only if it runs out of bytes; where a download was cut and the rest of the
    file is zeros, it reads these as grey pixels.
    """
    place = 2
    while payload[place : place + 1] == b"\xff" and place + 4 <= len(payload):
        marker = payload[place + 1]
        if marker == 0xDA:  # a scan begins
            return payload.rfind(b"\xff\xd9", place) >= 0
        if marker == 0xFF:  # filling
            place += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:  # without a length
            place += 2
        else:
            place += 2 + int.from_bytes(payload[place + 2 : place + 4], "big")
    return True  # no chain of segments: what Pillow has read is all that is known


def _rgb(image: Any) -> Any:
    """The loaded image in RGB; what is transparent stands on white."""
    image_module = import_extra("PIL.Image", extra="image")
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return image_module.fromarray(_grey(image)).convert("RGB")
    if image.mode in ("I", "F"):
        reason = f"pixels of type {image.mode} have no known range; store 8 or 16 bits"
        raise BadPayload(reason, stage="decode")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        if image.mode in ("RGBa", "La"):
            image = image.convert({"RGBa": "RGBA", "La": "LA"}[image.mode])
        image = image.convert("RGBA")
        white = image_module.new("RGBA", image.size, (255, 255, 255, 255))
        image = image_module.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey(image: Any) -> np.ndarray:
    """Grey pixels of more than 8 bits → uint8 `[H, W]`; Pillow's conversion would clip at 255."""
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    bits = int(tags.get(258, (16,))[0])  # BitsPerSample
    grey = np.rint(values.astype(np.float32) * (255 / (2**bits - 1)))
    grey8: np.ndarray = np.clip(grey, 0, 255).astype(np.uint8)
    if tags.get(262) == WHITE_IS_ZERO:
        grey8 = 255 - grey8
    see_through = image.info.get("transparency")
    if isinstance(see_through, int):
        grey8[values == see_through] = 255
    return grey8


def _silence_pillow() -> None:
    """Keep Pillow's warnings about single files out of the log; what matters is raised.

    A filter for the process and not `catch_warnings`, which threads cannot share.
    """
    if ("ignore", None, Warning, _PILLOW, 0) not in warnings.filters:
        warnings.filterwarnings("ignore", module=_PILLOW.pattern)
