"""Files of images through stage 1, as YAML asks for it: what is embedded, and what is told."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from features.quarantine import read_quarantine
from features.spec import FeatureSpec
from features.stored_embeddings import read_embeddings
from tests.features.vision_models import save_resnet, save_siglip
from tests.features.world import World

PICTURE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def files() -> dict[str, bytes]:
    """Good files of every format by name, and bad ones, whose names begin with an x."""

    def encoded(format: str, image: Image.Image, **options: Any) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, format, **options)
        return buffer.getvalue()

    picture = Image.fromarray(PICTURE)
    turned = Image.Exif()
    turned[0x0112] = 6
    deep = Image.fromarray(PICTURE[:, :, 0].astype(np.uint16) * 257)
    formats = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
    found = {f"plain.{name.lower()}": encoded(name, picture) for name in formats}
    found |= {
        "turned.jpg": encoded("JPEG", picture, exif=turned),
        "inks.jpg": encoded("JPEG", picture.convert("CMYK")),
        "deep.png": encoded("PNG", deep),
        "deep.tif": encoded("TIFF", deep),
        "palette.png": encoded("PNG", picture.quantize(16)),
        "clear.png": encoded("PNG", picture.convert("RGBA")),
        "bits.png": encoded("PNG", picture.convert("1")),
        "xcut.jpg": found["plain.jpeg"][:900],
        "xzeros.jpg": found["plain.jpeg"][:1500] + bytes(9000),
        "xcut.png": found["plain.png"][:900],
        "xtext.png": b"no picture at all",
    }
    return found


REASONS = {
    "xcut.jpg": ("decode", "truncated"),
    "xzeros.jpg": ("decode", "does not end"),
    "xcut.png": ("decode", "truncated"),
    "xtext.png": ("decode", "not an image of a known format"),
    "xgone.png": ("fetch", "there is no such file"),
}


@pytest.mark.parametrize(
    ("save", "options"),
    [
        (save_siglip, ""),
        (save_resnet, ", pooling: pooler, dtype: float32, batch_pixels: 3000"),
        (save_resnet, ", output: sequence, normalize: true"),
    ],
)
@pytest.mark.parametrize("inline", [False, True])
def test_every_format_is_embedded_and_every_fault_told(
    tmp_path: Path, save: Any, options: str, inline: bool
) -> None:
    torch.manual_seed(0)
    save(tmp_path / "model")
    line = f"{{column: photo, encoder: {{type: huggingface_image, model: ./model{options}}}}}"
    spec = FeatureSpec.model_validate(
        yaml.safe_load(line), context={"folder": str(tmp_path)}
    ).encoder
    payloads = files()
    for name, data in payloads.items():
        (tmp_path / name).write_bytes(data)
    cells: dict[str, Any] = dict(payloads) if inline else {name: name for name in payloads}
    if not inline:
        cells["xgone.png"] = "xgone.png"
    cells["none"] = None
    world = World(tmp_path)
    world.frame = pd.DataFrame(
        {"id": list(cells), "photo": list(cells.values()), "label": 0, "split": "train"}
    )
    world.specs = {"photo": spec}  # type: ignore[dict-item]
    _, _, snapshot = world.run()

    told = read_quarantine(world.store, snapshot).to_pylist()
    expected = {name: reason for name, reason in REASONS.items() if name in cells}
    assert {row["sample_id"] for row in told} == set(expected)
    for row in told:
        stage, reason = expected[row["sample_id"]]
        assert row["stage"] == stage
        assert reason in row["reason"]
        assert str(tmp_path) not in row["reason"]

    found = read_embeddings(world.store, snapshot, modality="photo")
    names = [list(cells)[row] for row in found.rows]
    assert names == [name for name in cells if not name.startswith(("x", "none"))]
    encoder = spec.load()
    for place, name in enumerate(names):
        with Image.open(io.BytesIO(payloads[name])) as image:
            pixels = np.asarray(image.convert("RGB"))
        if name == "turned.jpg":
            pixels = np.rot90(pixels, -1)
        if name.startswith("deep"):
            pixels = np.repeat(PICTURE[:, :, :1], 3, axis=2)
        (row,) = encoder.encode([encoder.prepare(pixels)])
        if found.lengths is None:
            stored = found.values[place]
        else:
            values, mask = found.padded([place])
            assert mask.all()
            stored = values[0]
        assert stored.shape == row.shape
        scale = max(1.0, float(np.abs(row).max()))
        np.testing.assert_allclose(stored, row, atol=2e-3 * scale, err_msg=name)
    _, results, again = world.run()
    assert not results
    assert again.id == snapshot.id
