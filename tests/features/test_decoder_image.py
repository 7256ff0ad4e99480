"""Images against second readers: OpenCV, tifffile, and files and formulas written by hand."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from features.decoders.base import BadPayload, Limits
from features.payloads import decode

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (20, 30, 4), dtype=np.uint16)


def smooth(height: int, width: int) -> np.ndarray:
    """A picture that lossy formats keep well: uint8 `[H, W, 3]`, each of its corners another."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return np.rint(np.stack([250 * x, 250 * y, 120 + 100 * x * y], axis=2)).astype(np.uint8)


def encoded(image: Image.Image | np.ndarray, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(buffer, format, **options)
    return buffer.getvalue()


def by_opencv(extension: str, pixels: np.ndarray, *options: int) -> bytes:
    """Written by OpenCV, from RGB or RGBA pixels."""
    order = {2: None, 3: cv2.COLOR_RGB2BGR}.get(pixels.ndim)
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        order = cv2.COLOR_RGBA2BGRA
    done, data = cv2.imencode(
        extension, pixels if order is None else cv2.cvtColor(pixels, order), list(options)
    )
    assert done
    return data.tobytes()


def tiff(
    data: bytes, *, width: int, height: int, bits: list[int], photometric: int, order: str = "<"
) -> bytes:
    """A TIFF of one uncompressed strip, after the tables of the specification (TIFF 6.0)."""
    samples = len(bits)
    extra = struct.pack(f"{order}{samples}H", *bits)
    entries = [
        (256, 3, 1, width),
        (257, 3, 1, height),
        (258, 3, samples, bits[0] if samples == 1 else 8),
        (259, 3, 1, 1),
        (262, 3, 1, photometric),
        (273, 4, 1, 8 + len(extra)),
        (277, 3, 1, samples),
        (278, 3, 1, height),
        (279, 4, 1, len(data)),
    ]
    head = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8 + len(extra + data))
    table = struct.pack(f"{order}H", len(entries))
    for tag, kind, count, value in entries:
        short = kind == 3 and count * 2 <= 4
        table += struct.pack(f"{order}HHI", tag, kind, count)
        table += struct.pack(
            f"{order}HH" if short else f"{order}I", *([value, 0] if short else [value])
        )
    return head + extra + data + table + bytes(4)


def pixels_of(data: bytes, **options: Any) -> np.ndarray:
    found: np.ndarray = decode(data, kind="image", **options)
    assert found.dtype == np.uint8
    assert found.ndim == 3
    assert found.shape[2] == 3
    return found


def refusal(data: bytes, **options: Any) -> str:
    with pytest.raises(BadPayload) as caught:
        decode(data, kind="image", **options)
    assert caught.value.stage == "decode"
    return caught.value.reason


def near(found: np.ndarray, expected: np.ndarray, *, by: float) -> None:
    assert found.shape == expected.shape
    assert np.abs(found.astype(np.float64) - expected).max() <= by


def on_white(rgb: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """float `[H, W, 3]` in 0..255; `opacity` `[H, W]` in 0..1."""
    blended: np.ndarray = rgb * opacity[:, :, None] + 255.0 * (1 - opacity[:, :, None])
    return blended


# ---------------------------------------------------------------- formats


@pytest.mark.parametrize(
    ("extension", "options"),
    [
        (".png", ()),
        (".bmp", ()),
        (".ppm", ()),
        (".webp", (cv2.IMWRITE_WEBP_QUALITY, 80)),
        (".jpg", (cv2.IMWRITE_JPEG_QUALITY, 60)),
        (".jpg", (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)),
        (".tiff", (cv2.IMWRITE_TIFF_COMPRESSION, 1)),
        (".tiff", (cv2.IMWRITE_TIFF_COMPRESSION, 5)),
        (".tiff", (cv2.IMWRITE_TIFF_COMPRESSION, 8)),
        (".jp2", ()),
        (".avif", ()),
    ],
)
def test_what_opencv_writes_is_read_as_it_reads_it(extension: str, options: tuple[int]) -> None:
    picture = smooth(60, 90)
    data = by_opencv(extension, picture, *options)
    expected = cv2.cvtColor(
        cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB
    )
    found = pixels_of(data)
    near(found, expected, by=2)
    near(found, picture, by=30)


def test_jpeg_of_thinned_colour_is_that_of_opencv_to_the_bit() -> None:
    data = encoded(NOISE, "JPEG", quality=70, subsampling="4:2:0")
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    near(pixels_of(data), expected, by=1)


def test_grey_files_have_three_equal_channels() -> None:
    grey = NOISE[:, :, 0]
    for data in (by_opencv(".png", grey), by_opencv(".tiff", grey), encoded(grey, "PPM")):
        np.testing.assert_array_equal(pixels_of(data), np.stack([grey] * 3, axis=2))


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF", "MPO", "AVIF"])
def test_of_several_pictures_the_first_is_taken(format: str) -> None:
    first, others = smooth(24, 32), [255 - smooth(24, 32), NOISE]
    options = {"WEBP": {"lossless": True}, "MPO": {"quality": 95}}.get(format, {})
    data = encoded(
        Image.fromarray(first),
        format,
        save_all=True,
        append_images=[Image.fromarray(p).resize((32, 24)) for p in others],
        **options,
    )
    with Image.open(io.BytesIO(data)) as image:
        assert getattr(image, "n_frames", 1) == 3
    near(pixels_of(data), first, by=20)


# ---------------------------------------------------------------- depths


@pytest.mark.parametrize("extension", [".png", ".tiff", ".ppm"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_scaled(extension: str, channels: int) -> None:
    deep = DEEP[:, :, 0] if channels == 1 else np.ascontiguousarray(DEEP[:, :, :3])
    if extension == ".ppm" and channels == 1:
        extension = ".pgm"
    expected = np.broadcast_to(deep.reshape(20, 30, -1) / 257, (20, 30, 3))
    near(pixels_of(by_opencv(extension, deep)), expected, by=1)


def test_sixteen_bits_of_jpeg_2000() -> None:
    grey = DEEP[:, :, 0]
    data = encoded(Image.fromarray(grey), "JPEG2000", irreversible=False)
    near(pixels_of(data), np.stack([grey / 257] * 3, axis=2), by=0.51)


def test_sixteen_bits_beside_opacity() -> None:
    data = by_opencv(".png", DEEP)
    expected = on_white(DEEP[:, :, :3] / 257.0, DEEP[:, :, 3] / 65535)
    near(pixels_of(data), expected, by=2)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("photometric", "name"), [(1, "minisblack"), (0, "miniswhite")])
def test_sixteen_bit_tiff_of_either_order_and_polarity(
    order: str, photometric: int, name: str
) -> None:
    grey = DEEP[:, :, 0]
    expected = grey / 257 if photometric else 255 - grey / 257
    expected = np.stack([expected] * 3, axis=2)
    by_hand = tiff(
        grey.astype(f"{order}u2").tobytes(),
        width=30,
        height=20,
        bits=[16],
        photometric=photometric,
        order=order,
    )
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, grey, photometric=name, byteorder=order)
    for data in (by_hand, buffer.getvalue()):
        np.testing.assert_array_equal(tifffile.imread(io.BytesIO(data)), grey)
        if order == ">" and photometric == 0:
            assert "known format" in refusal(data) or "head of the TIFF" in refusal(data)
        else:
            near(pixels_of(data), expected, by=0.51)


def test_twelve_bit_tiff_is_scaled_by_its_own_range() -> None:
    values = np.arange(0, 4096, 9)[:450].reshape(15, 30)
    values[0, :2] = 0, 4095
    pairs = values.reshape(-1, 2)
    packed = np.stack(
        [pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], axis=1
    )
    data = tiff(packed.astype(np.uint8).tobytes(), width=30, height=15, bits=[12], photometric=1)
    found = pixels_of(data)
    near(found, np.stack([values * (255 / 4095)] * 3, axis=2), by=0.51)
    assert found[0, :2, 0].tolist() == [0, 255]


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_a_pixel(bits: int) -> None:
    most = 2**bits - 1
    values = RNG.integers(0, most + 1, (5, 16))
    packed = np.zeros((5, 16 * bits // 8), dtype=np.uint8)
    for x in range(16):
        place = x * bits
        packed[:, place // 8] |= (values[:, x] << (8 - bits - place % 8)).astype(np.uint8)
    for photometric in (0, 1):
        data = tiff(packed.tobytes(), width=16, height=5, bits=[bits], photometric=photometric)
        grey = values * 255 / most if photometric else 255 - values * 255 / most
        near(pixels_of(data), np.stack([grey] * 3, axis=2), by=0.51)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP", "PPM", "GIF"])
def test_black_and_white(format: str) -> None:
    bits = RNG.integers(0, 2, (7, 13)).astype(bool)
    data = encoded(Image.fromarray(bits), format)
    np.testing.assert_array_equal(pixels_of(data), np.stack([bits * 255] * 3, axis=2))


# ---------------------------------------------------------------- palettes and opacity


@pytest.mark.parametrize("colours", [2, 4, 16, 256])
@pytest.mark.parametrize("format", ["PNG", "GIF", "TIFF", "BMP"])
def test_palettes(format: str, colours: int) -> None:
    palette = RNG.integers(0, 256, (colours, 3), dtype=np.uint8)
    places = RNG.integers(0, colours, (9, 14), dtype=np.uint8)
    image = Image.fromarray(places)
    image.putpalette(palette.tobytes())
    assert image.mode == "P"
    np.testing.assert_array_equal(pixels_of(encoded(image, format)), palette[places])


def test_palette_with_an_opacity_for_each_colour() -> None:
    palette = RNG.integers(0, 256, (16, 3), dtype=np.uint8)
    opacity = RNG.integers(0, 256, 16, dtype=np.uint8)
    places = RNG.integers(0, 16, (9, 14), dtype=np.uint8)
    image = Image.fromarray(places)
    image.putpalette(palette.tobytes())
    data = encoded(image, "PNG", transparency=opacity.tobytes())
    near(pixels_of(data), on_white(palette[places], opacity[places] / 255), by=1)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "JPEG2000"])
def test_opacity(format: str) -> None:
    rgba = RNG.integers(0, 256, (9, 14, 4), dtype=np.uint8)
    rgba[0, :2, 3] = 0, 255
    options = {"WEBP": {"lossless": True, "exact": True}}.get(format, {})
    found = pixels_of(encoded(rgba, format, **options))
    near(found, on_white(rgba[:, :, :3], rgba[:, :, 3] / 255), by=1)
    assert found[0, 0].tolist() == [255, 255, 255]
    grey = Image.fromarray(rgba[:, :, [0, 3]], mode="LA")
    if format in ("PNG", "TIFF", "JPEG2000"):
        expected = on_white(rgba[:, :, [0, 0, 0]], rgba[:, :, 3] / 255)
        near(pixels_of(encoded(grey, format)), expected, by=1)


def test_see_through_colour_of_a_deep_grey_image() -> None:
    grey = np.array([[0, 300, 65535, 40000]], dtype=np.uint16)
    data = encoded(Image.fromarray(grey), "PNG", transparency=300)
    assert pixels_of(data)[0, :, 0].tolist() == [0, 255, 255, 156]
    assert pixels_of(encoded(Image.fromarray(grey), "PNG"))[0, :, 0].tolist() == [0, 1, 255, 156]


def test_gif_with_a_see_through_colour() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    data = encoded(image, "GIF", transparency=0)
    assert pixels_of(data).tolist() == [[[255, 255, 255], [200, 100, 50]]]


# ---------------------------------------------------------------- four inks


def inks() -> np.ndarray:
    """Shares of cyan, magenta, yellow and black, smooth: uint8 `[H, W, 4]`, 255 is full."""
    colours = smooth(32, 48)
    return np.concatenate([colours, colours[:, ::-1, :1] // 2], axis=2)


def seen(cmyk: np.ndarray) -> np.ndarray:
    """What such inks look like."""
    light = 255.0 - cmyk
    shown: np.ndarray = light[:, :, :3] * light[:, :, 3:] / 255
    return shown


def test_adobes_jpeg_of_inks_which_holds_their_absence() -> None:
    data = encoded(Image.fromarray(inks(), mode="CMYK"), "JPEG", quality=98, subsampling=0)
    assert b"Adobe" in data
    near(pixels_of(data), seen(inks()), by=6)
    opencv = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    near(pixels_of(data), opencv, by=3)


def test_adobes_jpeg_of_inks_as_brightness_and_colour() -> None:
    """YCCK: what is stored of C, M and Y is turned to YCbCr (ITU T.872), and K is not."""
    cmyk = inks()
    stored = 255 - cmyk  # the absence of inks, as red, green and blue
    ycc = np.asarray(Image.fromarray(255 - stored[:, :, :3]).convert("YCbCr"))
    ycck = np.concatenate([ycc, stored[:, :, 3:]], axis=2)
    # Pillow stores 255 - x of what it is given, and marks it as not transformed.
    raw = Image.fromarray(255 - ycck, mode="CMYK")
    data = bytearray(encoded(raw, "JPEG", quality=98, subsampling=0))
    mark = data.index(b"Adobe") + 11
    assert data[mark] == 0
    data[mark] = 2
    opencv = cv2.imdecode(np.frombuffer(bytes(data), np.uint8), cv2.IMREAD_COLOR_RGB)
    near(pixels_of(bytes(data)), opencv, by=4)
    near(pixels_of(bytes(data)), seen(cmyk), by=10)


def test_tiff_of_inks_which_holds_their_presence() -> None:
    cmyk = inks()
    by_hand = tiff(cmyk.tobytes(), width=48, height=32, bits=[8, 8, 8, 8], photometric=5)
    np.testing.assert_array_equal(tifffile.imread(io.BytesIO(by_hand)), cmyk)
    for data in (by_hand, encoded(Image.fromarray(cmyk, mode="CMYK"), "TIFF")):
        near(pixels_of(data), seen(cmyk), by=1)


# ---------------------------------------------------------------- orientation

TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}
"""Stored pixels → upright ones, by the value of the tag Orientation (Exif 2.32, 4.6.4)."""


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_pictures_are_turned_upright(format: str, orientation: int) -> None:
    stored = smooth(40, 64)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, format, exif=exif)
    near(pixels_of(data), TURNS[orientation](stored), by=16)
    if format == "JPEG":
        opencv = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        near(pixels_of(data), opencv, by=1)


def test_deep_pictures_are_turned_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(DEEP[:, :, 0]), "PNG", exif=exif)
    near(pixels_of(data), np.stack([TURNS[6](DEEP[:, :, 0]) / 257] * 3, axis=2), by=0.51)


@pytest.mark.parametrize("orientation", [0, 9, 6000])
def test_an_orientation_that_there_is_not_turns_nothing(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(pixels_of(encoded(NOISE, "PNG", exif=exif)), NOISE)


# ---------------------------------------------------------------- limits and damage


def with_jpeg_size(data: bytes, *, height: int, width: int) -> bytes:
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


def bombs() -> dict[str, bytes]:
    """Small files that say of themselves that they are 3.6 billion pixels large."""
    jpeg = with_jpeg_size(encoded(NOISE, "JPEG"), height=60_000, width=60_000)
    gif = encoded(Image.fromarray(NOISE[:, :, 0]), "GIF")
    bmp = encoded(NOISE, "BMP")
    return {
        "JPEG": jpeg,
        "GIF": gif[:6] + struct.pack("<HH", 60_000, 60_000) + gif[10:],
        "BMP": bmp[:18] + struct.pack("<ii", 60_000, 60_000) + bmp[26:],
        "TIFF": tiff(bytes(9), width=60_000, height=60_000, bits=[8], photometric=1),
        "PPM": b"P6 60000 60000 255 " + bytes(9),
        "tile": tiled(side=60_000),
    }


def tiled(*, side: int) -> bytes:
    """A TIFF of 16 x 16 pixels in one tile of `side` x `side`."""
    entries = [
        (256, 16),
        (257, 16),
        (258, 8),
        (259, 8),
        (262, 1),
        (277, 1),
        (322, side),
        (323, side),
        (324, 200),
        (325, 9),
    ]
    table = struct.pack("<H", len(entries))
    for tag, value in entries:
        table += struct.pack("<HHII", tag, 4, 1, value)
    return (b"II*\0" + struct.pack("<I", 8) + table).ljust(300, b"\0")


@pytest.mark.parametrize("name", bombs())
def test_a_bomb_is_refused_from_its_head(name: str) -> None:
    told = refusal(bombs()[name])
    assert "more than 100,000,000 pixels" in told


def test_the_limit_is_that_of_pixels_and_holds_to_the_last_one() -> None:
    data = encoded(NOISE, "PNG")
    pixels_of(data, limits=Limits(pixels=600))
    assert "599 pixels" in refusal(data, limits=Limits(pixels=599))


def test_a_file_in_a_cell_has_the_limit_of_one_that_is_fetched() -> None:
    data = encoded(NOISE, "PNG")
    pixels_of(data, limits=Limits(bytes=len(data)))
    told = refusal(data, limits=Limits(bytes=len(data) - 1))
    assert told == f"image of more than {len(data) - 1:,} bytes"


def test_a_limit_above_that_of_pillow_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)  # it raises from twice as many
    np.testing.assert_array_equal(pixels_of(encoded(NOISE, "PNG")), NOISE)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}])
def test_a_jpeg_whose_rest_is_zeros_is_refused(options: dict[str, Any]) -> None:
    exif = Image.Exif()
    exif[0x010E] = "an end \xff\xd9 within the head is none"
    data = encoded(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8), "JPEG", exif=exif, **options)
    pixels_of(data)
    pixels_of(data + b"what cameras put behind")
    for share in (0.6, 0.9, 0.99):
        cut = int(len(data) * share)
        assert "damaged image" in refusal(data[:cut] + bytes(len(data) - cut))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "AVIF"])
def test_the_head_alone_is_damage_and_not_an_unknown_format(format: str) -> None:
    data = encoded(NOISE, format)
    reasons = {refusal(data[:length]) for length in (12, 16, 40)}
    assert all(reason.startswith("damaged image: ") for reason in reasons), reasons


def test_what_is_no_image_is_told_so() -> None:
    for data in (b"%PDF-1.7", b"<svg xmlns='http://www.w3.org/2000/svg'/>", bytes(99)):
        assert refusal(data).startswith("not an image of a known format (AVIF, BMP, GIF, JPEG")
