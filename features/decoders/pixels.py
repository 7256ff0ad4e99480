"""A decoded frame of a video → uint8 `[H, W, 3]` RGB, as it is shown."""

from __future__ import annotations

from typing import Any

import numpy as np

from features.encoders.base import import_extra


class Painter:
    """Turns frames into RGB; keeps what the conversion of like frames shares.

    Colours are read by the matrix and range that the file names (BT.601 and limited range if it
    names none). What is transparent stands on white. The display matrix is applied: a turn by
    quarters, and a mirroring. The shape of a pixel and the transfer of high dynamic range are not.
    """

    def __init__(self) -> None:
        module = import_extra("av.video.reformatter", extra="video")
        kinds = module.Interpolation
        # Exact, so that every processor gives the same bits.
        self._how = kinds.BICUBIC | kinds.ACCURATE_RND | kinds.BITEXACT | kinds.FULL_CHR_H_INT
        self._reformatter = module.VideoReformatter()

    def paint(self, frame: Any, *, size: tuple[int, int] | None = None) -> np.ndarray:
        """The frame as uint8 `[H, W, 3]`, resized to `size` (H, W) if that is given."""
        transposed, mirrored, upended = _turn(frame)
        height, width = size or (None, None)
        if transposed:
            height, width = width, height
        alpha = any(part.is_alpha for part in frame.format.components) or frame.format.has_palette
        converted = self._reformatter.reformat(
            frame,
            width=width,
            height=height,
            format="rgba" if alpha else "rgb24",
            interpolation=self._how,
            threads=1,
        )
        pixels: np.ndarray = converted.to_ndarray()
        if alpha:
            pixels = _on_white(pixels)
        if transposed:
            pixels = pixels.swapaxes(0, 1)
        if mirrored:
            pixels = pixels[:, ::-1]
        if upended:
            pixels = pixels[::-1]
        return np.ascontiguousarray(pixels)


def _on_white(rgba: np.ndarray) -> np.ndarray:
    opacity = rgba[:, :, 3:].astype(np.uint16)
    blended = rgba[:, :, :3] * opacity + 255 * (255 - opacity)
    return ((blended + 127) // 255).astype(np.uint8)


def _turn(frame: Any) -> tuple[bool, bool, bool]:
    """Whether a frame is shown transposed, and whether it is then mirrored, and upended.

    The display matrix (ISO/IEC 14496-12, 6.2.2) takes (x, y) to (a x + c y, b x + d y).
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return False, False, False
    a, b, _, c, d = np.frombuffer(bytes(data), dtype=np.int32)[:5].tolist()
    if abs(b) > abs(a):
        return True, c < 0, b < 0
    return False, a < 0, d < 0
