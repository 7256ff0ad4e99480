"""Payloads: what is fetched and decoded, and what is refused with which reason."""

from __future__ import annotations

import base64
import builtins
import errno
import io
import os
import pickle
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from features import payloads
from features.columns import PayloadColumns
from features.decoders.base import BadPayload, Limits
from features.payload_keys import depends_on_files, payload_key
from features.payloads import decode, fetch, open_payload

PICTURE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def refusal(call: Callable[[], object], *, stage: str) -> str:
    with pytest.raises(BadPayload) as caught:
        call()
    assert caught.value.stage == stage
    assert str(caught.value) == caught.value.reason
    return caught.value.reason


# ---------------------------------------------------------------- fetch


def test_fetch_reads_relative_absolute_and_file_uris(tmp_path: Path) -> None:
    file = tmp_path / "sub" / "a b%41.bin"
    file.parent.mkdir()
    file.write_bytes(b"here")
    base = str(tmp_path)
    uris = ["sub/a b%41.bin", str(file), file.as_uri(), f"file://localhost{file.as_uri()[7:]}"]
    assert [fetch(uri, base=base) for uri in uris] == [b"here"] * 4


def test_fetch_refuses_what_will_never_be_read_and_names_only_the_users_path(
    tmp_path: Path,
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.png").touch()
    (tmp_path / "file").write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    expected = {
        "none.png": "there is no such file",
        "file/under.png": "there is no such file",
        "folder": "it is a folder",
        "empty.png": "empty",
        "pipe": "not a regular file",
        "circle": "circle",
        "x" * 300: "name is too long",
        "a\0b": "not the path of a file",
        " ": "not the path of a file",
    }
    for uri, reason in expected.items():
        told = refusal(lambda uri=uri: fetch(uri, base=str(tmp_path)), stage="fetch")
        assert reason in told
        assert repr(uri)[:150] in told  # of a long one, its beginning
        assert str(tmp_path) not in told


def test_fetch_refuses_a_file_that_would_not_fit(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"12345")
    told = refusal(
        lambda: fetch("large", base=str(tmp_path), limits=Limits(bytes=4)), stage="fetch"
    )
    assert "too large" in told


@pytest.mark.parametrize("uri", ["gs://bucket/a.png", "https://host/a.png", "file://host/a.png"])
def test_fetch_of_an_unknown_scheme_is_a_configuration_error(uri: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="file://") as caught:
        fetch(uri, base=str(tmp_path))
    assert not isinstance(caught.value, BadPayload)
    assert uri in str(caught.value)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET])
def test_fetch_tries_again_when_the_medium_fails(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"at last")
    failures, waits = [number] * 3, []
    really_open = builtins.open

    def flaky(path: str, mode: str = "r") -> Any:
        if failures:
            raise OSError(failures.pop(), "flaky")
        return really_open(path, mode)

    monkeypatch.setattr(payloads, "open", flaky, raising=False)
    monkeypatch.setattr(payloads.time, "sleep", waits.append)
    assert fetch("a", base=str(tmp_path)) == b"at last"
    assert waits == sorted(waits)
    assert len(waits) == 3

    failures.extend([number] * 4)
    with pytest.raises(OSError, match="flaky") as caught:
        fetch("a", base=str(tmp_path))
    assert caught.value.errno == number
    assert not failures


# ---------------------------------------------------------------- text


def test_text_is_kept_as_it_is() -> None:
    text = "  Zwölf 十二 ١٢\n"
    assert decode(text, kind="text") == text
    assert decode(text.encode(), kind="text") == text
    assert decode(b"\xef\xbb\xbfmark", kind="text") == "mark"


@pytest.mark.parametrize("empty", ["", " \t\n", "\u3000", b"", b"  "])
def test_blank_text_is_refused(empty: str | bytes) -> None:
    assert refusal(lambda: decode(empty, kind="text"), stage="decode") == "empty text"


@pytest.mark.parametrize("broken", [b"\xff\xfe\x00", "half a pair \ud83d"])
def test_text_that_is_no_unicode_is_refused(broken: str | bytes) -> None:
    assert "Unicode" in refusal(lambda: decode(broken, kind="text"), stage="decode")


def test_text_without_end_is_refused() -> None:
    limits = Limits(characters=3)
    assert decode("abc", kind="text", limits=limits) == "abc"
    told = refusal(lambda: decode("abcd", kind="text", limits=limits), stage="decode")
    assert "3 characters" in told


# ---------------------------------------------------------------- images


@pytest.mark.parametrize("format", ["PNG", "BMP", "PPM", "TIFF", "WEBP", "JPEG2000"])
def test_image_is_decoded_to_its_pixels(format: str) -> None:
    options = {"WEBP": {"lossless": True}, "JPEG2000": {"irreversible": False}}.get(format, {})
    data = encoded(Image.fromarray(PICTURE), format, **options)
    found = decode(data, kind="image")
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, PICTURE)


def test_grey_image_has_three_equal_channels() -> None:
    grey = PICTURE[:, :, 0]
    found = decode(encoded(Image.fromarray(grey), "PNG"), kind="image")
    np.testing.assert_array_equal(found, np.stack([grey] * 3, axis=2))


def test_sixteen_bits_are_scaled_and_not_cut() -> None:
    grey16 = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    for format in ("PNG", "TIFF", "PPM"):
        found = decode(encoded(Image.fromarray(grey16), format), kind="image")
        assert isinstance(found, np.ndarray)
        assert found[0, :, 0].tolist() == [0, 1, 128, 255], format


def test_transparent_pixels_stand_on_white() -> None:
    rgba = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    rgba.putpixel((1, 0), (200, 0, 0, 128))
    found = decode(encoded(rgba, "PNG"), kind="image")
    assert isinstance(found, np.ndarray)
    assert found[0, 0].tolist() == [255, 255, 255]
    expected = np.array([200, 0, 0]) * 128 / 255 + 255 * 127 / 255
    np.testing.assert_allclose(found[0, 1], expected, atol=1)


def test_palette_with_a_transparent_colour() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    found = decode(encoded(image, "PNG"), kind="image")
    assert isinstance(found, np.ndarray)
    assert found.tolist() == [[[10, 20, 30], [200, 100, 50]]]
    found = decode(encoded(image, "PNG", transparency=0), kind="image")
    assert isinstance(found, np.ndarray)
    assert found.tolist() == [[[255, 255, 255], [200, 100, 50]]]


def test_rgb_with_a_transparent_colour() -> None:
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((1, 0), (4, 5, 6))
    found = decode(encoded(image, "PNG", transparency=(1, 2, 3)), kind="image")
    assert isinstance(found, np.ndarray)
    assert found.tolist() == [[[255, 255, 255], [4, 5, 6]]]


def test_cmyk_comes_out_as_it_was_seen() -> None:
    colour = (200, 100, 50)
    cmyk = Image.new("RGB", (16, 16), colour).convert("CMYK")
    found = decode(encoded(cmyk, "JPEG", quality=95), kind="image")
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found[8, 8], colour, atol=4)


def test_photo_is_turned_as_its_camera_said() -> None:
    upright = np.zeros((8, 16, 3), dtype=np.uint8)
    upright[:, :8] = 255  # bright on the left
    lying = Image.fromarray(np.rot90(upright))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    found = decode(encoded(lying, "JPEG", quality=95, exif=exif), kind="image")
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, upright, atol=30)


def test_photo_with_damaged_exif_is_still_a_photo() -> None:
    data = encoded(Image.fromarray(PICTURE), "JPEG", exif=b"Exif\0\0" + bytes(range(99)))
    found = decode(data, kind="image")
    assert isinstance(found, np.ndarray)
    assert found.shape == PICTURE.shape


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM", "WEBP"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_image_is_refused_and_never_half_decoded(format: str, share: float) -> None:
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    data = encoded(Image.fromarray(PICTURE), format)
    decode(data, kind="image")
    reason = refusal(lambda: decode(data[: int(len(data) * share)], kind="image"), stage="decode")
    assert "damaged" in reason or "known format" in reason


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0"])
def test_what_is_no_image_is_refused_without_addresses_of_memory(data: bytes) -> None:
    assert "0x" not in refusal(lambda: decode(data, kind="image"), stage="decode")


def test_decompression_bomb_is_refused_from_its_header() -> None:
    header = encoded(Image.new("1", (8, 8)), "PNG")
    chunk = b"IHDR" + struct.pack(">II", 60_000, 60_000) + header[24:29]
    bomb = header[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + header[33:]
    assert "100,000,000 pixels" in refusal(lambda: decode(bomb, kind="image"), stage="decode")
    small = encoded(Image.fromarray(PICTURE), "PNG")
    limits = Limits(pixels=599)
    told = refusal(lambda: decode(small, kind="image", limits=limits), stage="decode")
    assert "599 pixels" in told


def test_pixels_without_a_range_are_refused() -> None:
    image = Image.fromarray(np.full((2, 2), 0.5, dtype=np.float32))
    assert "range" in refusal(lambda: decode(encoded(image, "TIFF"), kind="image"), stage="decode")


def test_any_damage_gives_an_image_or_a_reason_and_no_warning() -> None:
    rng = np.random.default_rng(1)
    good = [encoded(Image.fromarray(PICTURE), format) for format in ("PNG", "JPEG", "TIFF", "GIF")]
    reasons = []
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for turn in range(200):
            data = bytearray(good[turn % len(good)])
            for place in rng.integers(len(data), size=4):
                data[place] = rng.integers(256)
            try:
                decode(bytes(data), kind="image")
            except BadPayload as error:
                reasons.append(error.reason)
    assert len(reasons) > 20
    assert all("\n" not in reason and len(reason) < 160 for reason in reasons)
    assert told == []


def test_images_are_decoded_by_threads_at_once() -> None:
    data = [encoded(Image.fromarray(np.roll(PICTURE, i, axis=0)), "PNG") for i in range(40)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda item: decode(item, kind="image"), data))
    for i, image in enumerate(found):
        np.testing.assert_array_equal(image, np.roll(PICTURE, i, axis=0))


# ---------------------------------------------------------------- the module itself


def test_a_path_where_bytes_are_due_is_an_error_of_the_caller() -> None:
    with pytest.raises(TypeError, match=r"fetch\(\)"):
        decode("a.png", kind="image")


def test_a_refusal_travels_between_processes() -> None:
    found = pickle.loads(pickle.dumps(BadPayload("why", stage="fetch")))
    assert (found.reason, found.stage) == ("why", "fetch")


@pytest.mark.parametrize(
    ("module", "kind", "line"),
    [
        ("PIL", "image", "pip install 'sensorium[image]'"),
        ("soundfile", "audio", "pip install 'sensorium[audio]'"),
    ],
)
def test_a_missing_extra_names_its_install_line(module: str, kind: str, line: str) -> None:
    program = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "from features.payloads import decode\n"
        f"decode(b'x', kind={kind!r})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "ImportError" in done.stderr
    assert line in done.stderr


PNG = b"\x89PNG\r\n\x1a\n of some sort"
TEXT = base64.b64encode(PNG).decode()


def test_a_data_uri_is_the_bytes_that_it_holds(tmp_path: Path) -> None:
    columns = PayloadColumns(kind="image", columns=("picture",))
    for uri in (f"data:;base64,{TEXT}", f"DATA:image/png;charset=x;Base64,{TEXT}"):
        assert fetch(uri, base=str(tmp_path)) == PNG
        assert not depends_on_files(uri, columns=columns)
        for by in ("stat", "content"):
            key = payload_key(uri, columns=columns, folder="", by=by)
            assert key == payload_key(PNG, columns=columns, folder="", by=by)
    text = PayloadColumns(kind="text", columns=("said",))
    assert open_payload(f"data:;base64,{TEXT}", columns=text, folder="")[:5] == "data:"


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        (f"data:image/png,{TEXT}", "has the form data:TYPE;base64,CONTENT"),
        ("data:;base64", "has the form data:TYPE;base64,CONTENT"),
        (f"data:;base64,{TEXT[:-3]}", "is not base64"),
        ("data:;base64,%%%%", "is not base64"),
        ("data:;base64,ü", "is not base64"),
        ("data:;base64,", "holds nothing"),
    ],
)
def test_a_data_uri_that_holds_no_content_is_bad(uri: str, reason: str) -> None:
    with pytest.raises(BadPayload, match=reason):
        fetch(uri, base="")
    columns = PayloadColumns(kind="image", columns=("picture",))
    assert payload_key(uri, columns=columns, folder="")


def test_a_long_uri_is_not_repeated_whole(tmp_path: Path) -> None:
    for uri in ("a" * 100_000, "data:," + "a" * 100_000, "x" * 300 + "://" + "a" * 100_000):
        with pytest.raises(ValueError) as refused:
            fetch(uri, base=str(tmp_path))
        assert len(str(refused.value)) < 900
