"""Small vision models of random weights, saved as the hub has them, with their own processors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SIDE = 32
"""Height and width of the pictures that the models see."""
SQUARE = {"height": SIDE, "width": SIDE}


def vit_options() -> dict[str, Any]:
    return {
        "hidden_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": SIDE,
        "patch_size": 8,
    }


def save_resnet(folder: Path) -> None:
    from transformers import ConvNextImageProcessorPil, ResNetConfig, ResNetModel

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(folder)
    ConvNextImageProcessorPil(size={"shortest_edge": SIDE}).save_pretrained(folder)


def save_convnext(folder: Path) -> None:
    from transformers import ConvNextConfig, ConvNextImageProcessorPil, ConvNextModel

    config = ConvNextConfig(num_stages=2, hidden_sizes=[8, 12], depths=[1, 1])
    ConvNextModel(config).save_pretrained(folder)
    ConvNextImageProcessorPil(size={"shortest_edge": SIDE}, crop_pct=0.8).save_pretrained(folder)


def save_vit(folder: Path) -> None:
    from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

    ViTModel(ViTConfig(**vit_options())).save_pretrained(folder)
    ViTImageProcessorPil(size=SQUARE).save_pretrained(folder)


def save_deit(folder: Path) -> None:
    from transformers import DeiTConfig, DeiTImageProcessorPil, DeiTModel

    DeiTModel(DeiTConfig(**vit_options())).save_pretrained(folder)
    DeiTImageProcessorPil(size={"height": 36, "width": 36}, crop_size=SQUARE).save_pretrained(
        folder
    )


def save_dinov2(folder: Path) -> None:
    from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

    Dinov2Model(Dinov2Config(**vit_options())).save_pretrained(folder)
    BitImageProcessorPil(size={"shortest_edge": 36}, crop_size=SQUARE).save_pretrained(folder)


def save_dinov2_with_registers(folder: Path) -> None:
    from transformers import (
        BitImageProcessorPil,
        Dinov2WithRegistersConfig,
        Dinov2WithRegistersModel,
    )

    config = Dinov2WithRegistersConfig(**vit_options(), num_register_tokens=3)
    Dinov2WithRegistersModel(config).save_pretrained(folder)
    BitImageProcessorPil(size={"shortest_edge": 36}, crop_size=SQUARE).save_pretrained(folder)


def save_swin(folder: Path) -> None:
    from transformers import SwinConfig, SwinModel, ViTImageProcessorPil

    config = SwinConfig(
        image_size=SIDE, patch_size=4, embed_dim=6, depths=[1, 1], num_heads=[1, 2], window_size=2
    )
    SwinModel(config).save_pretrained(folder)
    ViTImageProcessorPil(size=SQUARE, resample=3).save_pretrained(folder)


def save_vit_mae(folder: Path) -> None:
    from transformers import ViTImageProcessorPil, ViTMAEConfig, ViTMAEModel

    ViTMAEModel(ViTMAEConfig(**vit_options())).save_pretrained(folder)
    ViTImageProcessorPil(size=SQUARE).save_pretrained(folder)


def text_options() -> dict[str, Any]:
    return {
        "vocab_size": 20,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def save_clip(folder: Path) -> None:
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    config = CLIPConfig(text_config=text_options(), vision_config=vit_options(), projection_dim=10)
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SQUARE).save_pretrained(folder)


def save_clip_vision(folder: Path) -> None:
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

    CLIPVisionModel(CLIPVisionConfig(**vit_options())).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SQUARE).save_pretrained(folder)


def save_siglip(folder: Path) -> None:
    from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel

    config = SiglipConfig(text_config=text_options(), vision_config=vit_options())
    SiglipModel(config).save_pretrained(folder)
    SiglipImageProcessorPil(size=SQUARE).save_pretrained(folder)


def save_siglip_vision(folder: Path) -> None:
    from transformers import SiglipImageProcessorPil, SiglipVisionConfig, SiglipVisionModel

    SiglipVisionModel(SiglipVisionConfig(**vit_options())).save_pretrained(folder)
    SiglipImageProcessorPil(size=SQUARE).save_pretrained(folder)
