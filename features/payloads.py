"""Payloads: bytes fetched from where they are, decoded into arrays, or a reason why not.

A payload that is at fault raises `BadPayload`, and its sample goes on without it. A fault of
the medium (network, disk) is tried again and then raised as OSError, since it would blame the
sample for what may pass.
"""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import time
import urllib.parse
import warnings
from typing import Any

import numpy as np

from features.encoders.base import Kind, Sound, import_extra

MAX_BYTES = 2**31
"""Largest file that is read."""
MAX_CHARACTERS = 10_000_000
"""Longest text."""
MAX_PIXELS = 100_000_000
"""Largest image; a small file may unfold to a great deal of memory (decompression bomb)."""
MAX_SECONDS = 3600
"""Longest recording."""
MAX_SOUND_VALUES = 2**29
"""Most samples of a recording, over all its channels (2 GiB as float32)."""
RETRY_SECONDS = (0.2, 1.0, 3.0)
"""Waits before each new attempt to read a file."""
IMAGE_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that Pillow decodes by itself: none that runs a program, as EPS does."""

OF_THE_FILE = {
    errno.ENOENT: "there is no such file",
    errno.ENOTDIR: "there is no such file",
    errno.EISDIR: "it is a folder, not a file",
    errno.EACCES: "no permission to read it",
    errno.EPERM: "no permission to read it",
    errno.ENAMETOOLONG: "the name is too long for a file",
    errno.ELOOP: "its links lead in a circle",
}
"""Errors that will be the same the next time; all others are the medium's."""
_SIZES_IN_LOG = re.compile(
    r"^ *(?:data|SSND|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)", re.MULTILINE
)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_PILLOW = re.compile(r"PIL\b")


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


def fetch(uri: str, *, base: str) -> bytes:
    """The bytes behind a path (relative to the folder `base`, or absolute) or a file:// URI.

    Raises BadPayload if there is no such file, or if it is a folder, empty or too large;
    OSError if the medium fails four times in a row; ValueError for a scheme that is not
    supported.
    """
    path = local_path(uri, base=base)
    for wait in (*RETRY_SECONDS, None):
        try:
            return _read(path, uri=uri)
        except OSError as error:
            if error.errno in OF_THE_FILE:
                reason = f"{OF_THE_FILE[error.errno]}: {uri!r}"
                raise BadPayload(reason, stage="fetch") from error
            if wait is None:
                raise
        time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def local_path(uri: str, *, base: str) -> str:
    """Where a URI's file lies; BadPayload or ValueError as `fetch` raises them."""
    scheme = _SCHEME.match(uri)
    if scheme is None:
        path = uri
    elif scheme[1].lower() == "file":
        parts = urllib.parse.urlsplit(uri)
        if parts.netloc not in ("", "localhost"):
            raise ValueError(
                f"{uri!r} names the host {parts.netloc!r}; a file:// URI of this machine has "
                "three slashes, as in file:///data/a.png"
            )
        path = urllib.parse.unquote(parts.path)
    else:
        raise ValueError(
            f"{uri!r}: payloads on {scheme[1]}:// are not supported; give paths relative to the "
            "table's folder, absolute paths or file:// URIs"
        )
    if not path.strip() or "\0" in path:
        raise BadPayload(f"this is not the path of a file: {uri!r}", stage="fetch")
    return os.path.join(base, path)


def _read(path: str, *, uri: str) -> bytes:
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):
        raise BadPayload(f"it is not a regular file: {uri!r}", stage="fetch")
    if status.st_size > MAX_BYTES:
        raise BadPayload(f"the file is too large: {uri!r}", stage="fetch")
    with open(path, "rb") as file:
        data = file.read()
    if not data:
        raise BadPayload(f"the file is empty: {uri!r}", stage="fetch")
    return data


def decode(payload: str | bytes, *, kind: Kind) -> str | np.ndarray | Sound:
    """What an encoder's `prepare` takes: `str`, image uint8 `[H, W, 3]` RGB, or `Sound`.

    Text is `str` or UTF-8; images and sounds are the bytes of a file. Raises BadPayload for
    what cannot be decoded whole.
    """
    if kind == "text":
        return _decode_text(payload)
    if isinstance(payload, str):
        raise TypeError(f"an {kind} is decoded from bytes, not from text; fetch() its URI first")
    if not payload:
        raise BadPayload(f"empty {kind}", stage="decode")
    return _decode_image(payload) if kind == "image" else _decode_sound(payload)


def _decode_text(payload: str | bytes) -> str:
    try:
        if isinstance(payload, bytes):
            payload = payload.decode("utf-8-sig")
        else:
            payload.encode()
    except UnicodeError as error:
        raise BadPayload("not valid Unicode text", stage="decode") from error
    if not payload.strip():
        raise BadPayload("empty text", stage="decode")
    if len(payload) > MAX_CHARACTERS:
        raise BadPayload(f"text of more than {MAX_CHARACTERS:,} characters", stage="decode")
    return payload


def _decode_image(payload: bytes) -> np.ndarray:
    image_module = import_extra("PIL.Image", extra="image")
    ops = import_extra("PIL.ImageOps", extra="image")
    _silence_pillow()
    image_module.init()
    formats = [name for name in IMAGE_FORMATS if name in image_module.OPEN]
    try:
        with image_module.open(io.BytesIO(payload), formats=formats) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise image_module.DecompressionBombError
            image.load()
            ops.exif_transpose(image, in_place=True)
            return _rgb(image)
    except (BadPayload, MemoryError):
        raise
    except image_module.DecompressionBombError as error:
        reason = f"image of more than {MAX_PIXELS:,} pixels"
        raise BadPayload(reason, stage="decode") from error
    except image_module.UnidentifiedImageError as error:
        reason = f"not an image of a known format ({', '.join(formats)})"
        raise BadPayload(reason, stage="decode") from error
    except Exception as error:  # Pillow's decoders raise what they meet: OSError, SyntaxError, ...
        reason = f"damaged image: {_short(error)}"
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


def _decode_sound(payload: bytes) -> Sound:
    soundfile = import_extra("soundfile", extra="audio")
    try:
        with soundfile.SoundFile(io.BytesIO(payload)) as file:
            rate, frames, channels = file.samplerate, file.frames, file.channels
            if frames > MAX_SECONDS * rate or frames * channels > MAX_SOUND_VALUES:
                reason = f"sound of more than {MAX_SECONDS} seconds or {MAX_SOUND_VALUES:,} samples"
                raise BadPayload(reason, stage="decode")
            _refuse_truncated(file.extra_info)
            samples = file.read(dtype="float32", always_2d=True)
            slack = _slack(payload) if file.format == "MP3" else 0
    except soundfile.SoundFileError as error:
        reason = f"not a sound of a known format, or damaged: {_short(error)}"
        raise BadPayload(reason, stage="decode") from error
    if slack is not None and len(samples) < frames - slack:
        reason = f"truncated sound: {len(samples)} of {frames} frames are there"
        raise BadPayload(reason, stage="decode")
    if not len(samples):
        raise BadPayload("sound of zero frames", stage="decode")
    if not np.isfinite(samples).all():
        raise BadPayload("sound with samples that are not finite", stage="decode")
    return Sound(samples=np.ascontiguousarray(samples.T), rate=rate)


def _refuse_truncated(log: str) -> None:
    """Raise BadPayload if a WAV, AIFF, AU or CAF file ends before its samples do.

    libsndfile reads what there is and tells it only in its log. Programs that stream write a
    size near 2**32, which promises nothing.
    """
    for stated, there in _SIZES_IN_LOG.findall(log):
        if int(there) < int(stated) < 2**32 - 2**16:
            reason = f"truncated sound: {there} of {stated} bytes are there"
            raise BadPayload(reason, stage="decode")


def _slack(payload: bytes) -> int | None:
    """By how many frames an MP3 may be shorter than it says; None if it says nothing.

    Its length is a guess unless the first frame holds a Xing or Info tag; even then, the last
    two frames of 1152 samples may be delay of the codec.
    """
    start = payload[:8192]
    return 2 * 1152 if b"Xing" in start or b"Info" in start else None


def _short(error: BaseException) -> str:
    """An error's text in one line, without the addresses of objects."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.sub(r"<[^>]* at 0x[0-9a-f]+>|<_io\.\w+[^>]*>", "it", text)
    return text if len(text) <= 120 else f"{text[:117]}..."
