"""What all decoders share: the refusal of a payload, and the limits against bombs."""

from __future__ import annotations

import re
from typing import Annotated, Any

import pydantic

from features.fingerprint import Spec


class Limits(Spec):
    """The largest payloads that are taken; a larger one is bad, and is not unfolded in memory."""

    bytes: Annotated[int, pydantic.Field(ge=1)] = 2**31
    """Largest file that is fetched, or that stands in a cell."""
    characters: Annotated[int, pydantic.Field(ge=1)] = 10_000_000
    """Longest text."""
    pixels: Annotated[int, pydantic.Field(ge=1)] = 100_000_000
    """Largest image, and largest frame of a video: width times height."""
    seconds: Annotated[float, pydantic.Field(gt=0)] = 3600.0
    """Longest sound or video that is decoded; of a cut, its own length counts."""
    values: Annotated[int, pydantic.Field(ge=1)] = 2**29
    """Most numbers that one payload unfolds to: samples of a sound over all its channels, values
    of a series (2 GiB as float32), those of the frames of a video that are held at once."""
    decoded_pixels: Annotated[int, pydantic.Field(ge=1)] = 2**38
    """Most pixels that are decoded to reach the frames of a video that are asked for, those
    between the last key frame and a frame included. An hour of 1920 x 1080 pixels at 30 frames a
    second, all of it decoded, has 2.2e11."""


DEFAULT_LIMITS = Limits()


class BadPayload(ValueError):
    """A payload that cannot be used, and will not be better the next time."""

    def __init__(self, reason: str, *, stage: str) -> None:
        super().__init__(reason)
        self.reason = reason
        """For a person; names no path but the one that the user wrote."""
        self.stage = stage
        """`fetch`, `decode` or `prepare`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _bad_payload, (self.reason, self.stage)


def _bad_payload(reason: str, stage: str) -> BadPayload:
    return BadPayload(reason, stage=stage)


def short(error: BaseException) -> str:
    """An error's text in one line, without the addresses of objects."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.sub(r"<[^>]* at 0x[0-9a-f]+>|<_io\.\w+[^>]*>", "it", text)
    return text if len(text) <= 120 else f"{text[:117]}..."
