"""What is shown of a payload: a thumbnail, a player, an excerpt; within bounds, and made anew.

Images and sounds are decoded and written again, small, so that a page holds nothing of a file but
what is seen and heard: no metadata, no vector graphics, no more than a few seconds. Of a short film
the first picture and the first sound are put into a new file as they are coded, without anything
that stood beside them; of another one a frame is shown.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from features.columns import Cut, PayloadColumns
from features.decoders.base import BadPayload
from features.encoders.base import Kind, Sound, Video
from features.payloads import fetch, open_payload
from workflows.runs import without_passwords

THUMBNAIL_PIXELS = 320
"""Of the longer side."""
TINY_PIXELS = 64
SOUND_SECONDS = 10.0
SOUND_RATE = 16_000
"""Hz; one channel of 16 bits: 320 kB for the longest."""
FILM_BYTES = 2_000_000
"""A film of more is shown by its middle frame alone."""
PAGE_BYTES = 30_000_000
"""A page of more previews shows no further ones, but says what was found."""
TEXT_CHARACTERS = 400
BARS = 64
FILM_TYPES = {b"ftyp": "mp4", b"\x1aE\xdf\xa3": "webm"}
"""By the bytes that files begin with which browsers play, the format."""


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What a page shows of a payload."""

    kind: Kind
    where: str = ""
    """The path or URI of its file, without a password; empty if it stands in the table."""
    text: str = ""
    image: str = ""
    """A data URI."""
    tiny: bool = False
    """Whether the image is so small that it is shown larger than it is, by its pixels."""
    sound: str = ""
    """A data URI."""
    film: str = ""
    """A data URI."""
    bars: tuple[float, ...] = ()
    """How loud a sound is, or what a series reads, in equal parts: 0..1."""
    size: str = ""
    """Of an image in pixels, of a sound in seconds."""
    lacking: str = ""
    """Why there is nothing to show."""

    @property
    def bytes(self) -> int:
        """Of a page that it takes up."""
        return len(self.image) + len(self.sound) + len(self.film) + len(self.text)


def preview(
    payload: Any,
    *,
    columns: PayloadColumns,
    folder: str,
    lacking: str | None = None,
    room: int = PAGE_BYTES,
) -> Preview:
    """What is shown of a payload as it stands in the table; what cannot be read says why.

    Where there is room for no film of its size, its frame is shown; where there is no room at all,
    nothing is opened.
    """
    where = place_of(payload, columns=columns, folder=folder)
    if lacking is not None or payload is None:
        return Preview(kind=columns.kind, where=where, lacking=lacking or "there is no payload")
    if room <= 0:
        left_out = f"the page holds {PAGE_BYTES // 10**6} MB of others already"
        return Preview(kind=columns.kind, where=where, lacking=left_out)
    try:
        shown = open_payload(
            payload, columns=columns, folder=folder, pillow=columns.kind == "image"
        )
        made = _SHOWN[columns.kind](shown)
        if columns.kind == "video" and not isinstance(payload, Cut):
            made["film"] = _film(payload, folder=folder, most=min(FILM_BYTES, room))
        if columns.kind == "video" and not made.get("film"):
            made["size"] += ", its middle frame here"
    except (BadPayload, ValueError, OSError, ImportError) as error:
        return Preview(kind=columns.kind, where=where, lacking=without_passwords(str(error)))
    return Preview(kind=columns.kind, where=where, **made)


def excerpt(payload: Any, *, columns: PayloadColumns, folder: str, most: int = 120) -> str:
    """A payload in one line: a text's beginning, or where a file is; nothing is opened."""
    if isinstance(payload, str) and columns.kind == "text" and not columns.uri:
        return shorten(payload, most=most)
    return place_of(payload, columns=columns, folder=folder) or (
        "" if payload is None else f"{columns.kind} in the table"
    )


def place_of(payload: Any, *, columns: PayloadColumns, folder: str) -> str:
    """The path or URI of a payload's file, without a password; empty if it has none."""
    whole, cut = payload, ""
    if isinstance(payload, Cut):
        whole = payload.whole
        end = "end" if payload.end is None else f"{payload.end:g}"
        cut = f" ({payload.start:g} to {end} s)"
    if not isinstance(whole, str) or columns.kind == "table":
        return ""
    if columns.kind == "text" and not columns.uri:
        return ""
    if "://" not in whole and not os.path.isabs(whole):
        whole = f"{folder.rstrip('/')}/{whole}"
    return without_passwords(whole) + cut


def shorten(text: str, *, most: int) -> str:
    """A text on one line, cut at a word's end."""
    line = " ".join(text.split())
    if len(line) <= most:
        return line
    kept = line[:most]
    return (kept.rpartition(" ")[0] or kept) + " …"


def _text(shown: str) -> dict[str, Any]:
    return {"text": shorten(shown, most=TEXT_CHARACTERS)}


def _image(shown: Any) -> dict[str, Any]:
    size = f"{shown.width} × {shown.height}"
    tiny = max(shown.size) <= TINY_PIXELS
    shown.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    return {"image": _picture(shown), "size": size, "tiny": tiny}


def _picture(image: Any) -> str:
    """As a data URI: PNG where that is small, as of drawings, else JPEG."""
    image.info.clear()
    png, jpeg = io.BytesIO(), io.BytesIO()
    image.save(png, "PNG", optimize=True)
    image.save(jpeg, "JPEG", quality=82)
    small = png.tell() <= max(4096, jpeg.tell())
    return _data(png.getvalue(), "image/png") if small else _data(jpeg.getvalue(), "image/jpeg")


def _sound(shown: Sound) -> dict[str, Any]:
    import soundfile
    import soxr

    seconds = shown.samples.shape[1] / shown.rate
    heard = shown.samples[:, : round(SOUND_SECONDS * shown.rate)].mean(axis=0)
    rate = min(shown.rate, SOUND_RATE)
    if rate < shown.rate:
        heard = soxr.resample(heard, shown.rate, rate)
    file = io.BytesIO()
    soundfile.write(file, np.clip(heard, -1, 1), rate, format="WAV", subtype="PCM_16")
    first = f", the first {SOUND_SECONDS:g} s here" if seconds > SOUND_SECONDS else ""
    return {
        "sound": _data(file.getvalue(), "audio/wav"),
        "bars": _bars(np.abs(heard)),
        "size": f"{seconds:.2g} s{first}" if seconds < 10 else f"{seconds:.0f} s{first}",
    }


def _bars(values: np.ndarray) -> tuple[float, ...]:
    """The largest of each of BARS equal parts, as a share of the largest of all."""
    if not len(values):
        return ()
    parts = [part.max() for part in np.array_split(values, min(BARS, len(values)))]
    most = max(max(parts), 1e-9)
    return tuple(round(float(part / most), 3) for part in parts)


def _video(shown: Video) -> dict[str, Any]:
    import PIL.Image

    (frame,) = shown.frames_at(shown.times(count=1))
    image = PIL.Image.fromarray(frame)
    image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    return {"image": _picture(image), "size": f"{shown.seconds:.1f} s"}


def _film(payload: Any, *, folder: str, most: int) -> str:
    """A film of at most so many bytes, and of a type that browsers play, without its metadata."""
    data = payload if isinstance(payload, bytes) else fetch(payload, base=folder)
    for begins, format in FILM_TYPES.items():
        if begins in data[:12] and len(data) <= most:
            made = _without_metadata(data, format=format)
            return _data(made, f"video/{format}") if 0 < len(made) <= most else ""
    return ""


def _without_metadata(data: bytes, *, format: str) -> bytes:
    """The first picture and the first sound of a film, in a new file; empty if that cannot be."""
    import av

    made = io.BytesIO()
    try:
        with (
            av.open(io.BytesIO(data), "r") as film,
            av.open(made, "w", format=format, options={"fflags": "+bitexact"}) as container,
        ):
            streams = [*film.streams.video[:1], *film.streams.audio[:1]]
            kept = {stream.index: container.add_stream_from_template(stream) for stream in streams}
            for packet in film.demux(streams):
                if packet.dts is not None:
                    packet.stream = kept[packet.stream.index]
                    container.mux(packet)
    except (av.FFmpegError, ValueError):
        return b""
    return made.getvalue()


def _series(shown: Any) -> dict[str, Any]:
    values = np.asarray(shown.values, np.float64)
    first = np.nan_to_num(values[:, 0])
    least, most = float(first.min(initial=0)), float(first.max(initial=0))
    return {
        "bars": _bars(first - least) if most > least else (),
        "text": f"{len(values):,} steps of {values.shape[1]:,}",
    }


def _vector(shown: Any) -> dict[str, Any]:
    values = np.asarray(shown, np.float64).ravel()
    return {"text": f"{len(values):,} numbers: {', '.join(f'{v:.3g}' for v in values[:6])} …"}


def _table(shown: Any) -> dict[str, Any]:
    fields = dict(shown) if isinstance(shown, Mapping) else {"": shown}
    text = ", ".join(f"{name}: {value}" for name, value in fields.items() if value is not None)
    return {"text": shorten(text, most=TEXT_CHARACTERS)}


_SHOWN: Mapping[Kind, Any] = {
    "text": _text,
    "image": _image,
    "audio": _sound,
    "video": _video,
    "series": _series,
    "table": _table,
    "vector": _vector,
}


def _data(content: bytes, type: str) -> str:
    return f"data:{type};base64,{base64.b64encode(content).decode()}"
