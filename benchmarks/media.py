"""Pictures and sounds to embed, and models of ordinary width with random weights to embed them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

RATE = 16_000
FRAMES = 512
"""Log-mel frames that the audio model takes: 5.1 seconds."""


def jpegs(count: int, *, seed: int = 3, width: int = 500, height: int = 375) -> list[bytes]:
    """Smooth fields of colour, edges and grain, whose files are as large as photographs'."""
    from PIL import Image, ImageDraw

    chance = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        canvas = chance.normal(0, 6, (height, width, 3)).astype(np.float32)
        for side, weight in ((4, 0.5), (16, 0.25), (64, 0.15)):
            field = Image.fromarray(chance.integers(0, 255, (side, side, 3), np.uint8))
            canvas += weight * np.asarray(field.resize((width, height)), np.float32)
        image = Image.fromarray(canvas.clip(0, 255).astype(np.uint8))
        draw = ImageDraw.Draw(image)
        for _ in range(8):
            x, y, side = chance.integers((0, 0, 10), (width, height, 90)).tolist()
            colour = tuple(chance.integers(0, 255, 3).tolist())
            draw.ellipse([x, y, x + side, y + side], outline=colour, width=3)
        file = io.BytesIO()
        image.save(file, "JPEG", quality=90)
        found.append(file.getvalue())
    return found


def waves(count: int, *, seed: int = 5) -> list[bytes]:
    """Voice-like sounds of 3 to 5 seconds, 16-bit WAV at 16 kHz."""
    import soundfile

    chance = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        time = np.arange(int(RATE * chance.uniform(3, 5))) / RATE
        phase = 2 * np.pi * chance.uniform(80, 400) * time
        tone = np.add.reduce([np.sin(h * phase) / h for h in range(1, 8)])
        swell = np.clip(np.sin(2 * np.pi * chance.uniform(0.5, 3) * time) + 0.3, 0, 1)
        samples = tone * swell + chance.normal(0, 0.02, len(time))
        file = io.BytesIO()
        soundfile.write(file, 0.7 * samples / np.abs(samples).max(), RATE, format="WAV")
        found.append(file.getvalue())
    return found


def save_vit(folder: Path) -> str:
    """ViT-Ti/16 (Dosovitskiy et al., ICLR 2021), with its processor; unless it is there."""
    import torch
    from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        config = ViTConfig(
            hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768
        )
        ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
        ViTImageProcessorPil().save_pretrained(folder)
    return str(folder)


def save_ast(folder: Path) -> str:
    """AST of ViT-Ti's width (Gong et al., Interspeech 2021), with its extractor; unless there."""
    import torch
    from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        config = ASTConfig(
            hidden_size=192,
            num_hidden_layers=12,
            num_attention_heads=3,
            intermediate_size=768,
            max_length=FRAMES,
        )
        ASTModel(config).save_pretrained(folder)
        ASTFeatureExtractor(max_length=FRAMES).save_pretrained(folder)
    return str(folder)
