"""Image encoders: HOG against scikit-image, vision models against transformers itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
import torch
from PIL import Image

from features.encoders.huggingface_image import HuggingFaceImageSpec
from features.encoders.image import HogSpec

RNG = np.random.default_rng(0)
PICTURES = [
    RNG.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((40, 50), (64, 33), (9, 9))
]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def embed(spec: Any, images: list[np.ndarray]) -> np.ndarray:
    encoder = spec.load()
    rows: np.ndarray = encoder.encode([encoder.prepare(image) for image in images])
    assert rows.dtype == np.float32
    assert rows.shape == (len(images), encoder.dim)
    return rows


# ---------------------------------------------------------------- HOG


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"size": 30, "pixels_per_cell": 7, "cells_per_block": 1, "orientations": 6},
        {"size": 64, "pixels_per_cell": 16, "cells_per_block": 3},
    ],
)
def test_hog_is_that_of_scikit_image_and_its_width_is_known_beforehand(
    options: dict[str, int],
) -> None:
    from skimage.feature import hog

    spec = HogSpec(**options)
    found = embed(spec, PICTURES)
    assert spec.dim == found.shape[1]
    for row, picture in zip(found, PICTURES, strict=True):
        grey = Image.fromarray(picture).convert("L").resize((spec.size, spec.size), 2)
        expected = hog(
            np.asarray(grey, dtype=np.float64) / 255,
            orientations=spec.orientations,
            pixels_per_cell=(spec.pixels_per_cell, spec.pixels_per_cell),
            cells_per_block=(spec.cells_per_block, spec.cells_per_block),
        )
        np.testing.assert_allclose(row, expected, atol=1e-4)


def test_hog_sees_shape_and_neither_colour_nor_contrast() -> None:
    shape = np.zeros((32, 32, 3), dtype=np.uint8)
    shape[8:24, 12:20] = 200
    faint = shape // 2
    turned = np.rot90(shape).copy()
    rows = embed(HogSpec(), [shape, faint, turned])
    assert np.abs(rows[0] - rows[1]).max() < 0.02
    assert np.abs(rows[0] - rows[2]).max() > 0.2


def test_hog_of_an_even_image_is_finite() -> None:
    assert np.isfinite(embed(HogSpec(), [np.full((5, 7, 3), 9, dtype=np.uint8)])).all()


def test_hog_without_room_for_a_block_is_refused() -> None:
    with pytest.raises(pydantic.ValidationError, match="no block of 2 cells of 8 pixels"):
        HogSpec(size=15)


# ---------------------------------------------------------------- Hugging Face


def save_processor(folder: Path, *, side: int = 32) -> None:
    from transformers import ViTImageProcessorPil

    size = {"height": side, "width": side}
    ViTImageProcessorPil(size=size, do_resize=True).save_pretrained(folder)


def save_resnet(folder: Path) -> None:
    from transformers import ResNetConfig, ResNetModel

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(folder)
    save_processor(folder)


def save_convnext(folder: Path) -> None:
    from transformers import ConvNextConfig, ConvNextModel

    config = ConvNextConfig(num_stages=2, hidden_sizes=[8, 12], depths=[1, 1])
    ConvNextModel(config).save_pretrained(folder)
    save_processor(folder)


def vit_options() -> dict[str, Any]:
    return {
        "hidden_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": 32,
        "patch_size": 8,
    }


def save_vit(folder: Path) -> None:
    from transformers import ViTConfig, ViTModel

    ViTModel(ViTConfig(**vit_options())).save_pretrained(folder)
    save_processor(folder)


def save_dinov2_with_registers(folder: Path) -> None:
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    config = Dinov2WithRegistersConfig(**vit_options(), num_register_tokens=3)
    Dinov2WithRegistersModel(config).save_pretrained(folder)
    save_processor(folder)


def save_swin(folder: Path) -> None:
    from transformers import SwinConfig, SwinModel

    config = SwinConfig(
        image_size=32, patch_size=4, embed_dim=6, depths=[1, 1], num_heads=[1, 2], window_size=2
    )
    SwinModel(config).save_pretrained(folder)
    save_processor(folder)


def save_clip(folder: Path) -> None:
    from transformers import CLIPConfig, CLIPModel

    text = {
        "vocab_size": 20,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    config = CLIPConfig(text_config=text, vision_config=vit_options(), projection_dim=10)
    CLIPModel(config).save_pretrained(folder)
    save_processor(folder)


@pytest.fixture
def model(tmp_path: Path) -> Callable[[Callable[[Path], None]], str]:
    def make(save: Callable[[Path], None]) -> str:
        torch.manual_seed(0)
        folder = tmp_path / save.__name__
        save(folder)
        return str(folder)

    return make


Make = Callable[[Callable[[Path], None]], str]


def outputs(folder: str, images: list[np.ndarray]) -> Any:
    """What transformers itself gives for the images, one by one."""
    from transformers import AutoImageProcessor, AutoModel

    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    network = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        for image in images:
            pixels = processor(images=Image.fromarray(image), return_tensors="pt")["pixel_values"]
            if hasattr(network, "get_image_features"):
                yield network.get_image_features(pixel_values=pixels)
            else:
                yield network(pixel_values=pixels)


@pytest.mark.parametrize("save", [save_resnet, save_convnext])
def test_convolutional_network(model: Make, save: Callable[[Path], None]) -> None:
    folder = model(save)
    mean = embed(HuggingFaceImageSpec(model=folder), PICTURES)
    pooler = embed(HuggingFaceImageSpec(model=folder, pooling="pooler"), PICTURES)
    for i, output in enumerate(outputs(folder, PICTURES)):
        hidden = output.last_hidden_state[0].numpy()
        np.testing.assert_allclose(mean[i], hidden.mean(axis=(1, 2)), atol=1e-5)
        np.testing.assert_allclose(pooler[i], output.pooler_output.flatten().numpy(), atol=1e-5)
    assert mean.shape == (3, 12)
    assert np.abs(mean[0] - mean[1]).max() > 1e-4


@pytest.mark.parametrize(
    ("save", "before_patches"), [(save_vit, 1), (save_dinov2_with_registers, 4), (save_swin, 0)]
)
def test_vision_transformer_means_over_patches_alone(
    model: Make, save: Callable[[Path], None], before_patches: int
) -> None:
    folder = model(save)
    mean = embed(HuggingFaceImageSpec(model=folder), PICTURES)
    for row, output in zip(mean, outputs(folder, PICTURES), strict=True):
        patches = output.last_hidden_state[0, before_patches:].numpy()
        assert len(patches) == 16
        np.testing.assert_allclose(row, patches.mean(axis=0), atol=1e-5)


def test_vision_transformer_by_its_class_token(model: Make) -> None:
    folder = model(save_vit)
    found = embed(HuggingFaceImageSpec(model=folder, pooling="cls"), PICTURES)
    for row, output in zip(found, outputs(folder, PICTURES), strict=True):
        np.testing.assert_allclose(row, output.last_hidden_state[0, 0].numpy(), atol=1e-5)


@pytest.mark.parametrize("save", [save_swin, save_resnet])
def test_a_class_token_that_is_not_there_is_refused(
    model: Make, save: Callable[[Path], None]
) -> None:
    with pytest.raises(ValueError, match="no class token"):
        HuggingFaceImageSpec(model=model(save), pooling="cls").load()


def test_clip_gives_the_embedding_that_images_and_texts_share(model: Make) -> None:
    folder = model(save_clip)
    spec = HuggingFaceImageSpec(model=folder, pooling="pooler", normalize=True)
    found = embed(spec, PICTURES)
    for row, output in zip(found, outputs(folder, PICTURES), strict=True):
        expected = output.pooler_output[0].numpy()
        np.testing.assert_allclose(row, expected / np.linalg.norm(expected), atol=1e-5)
    with pytest.raises(ValueError, match="pooling: pooler"):
        HuggingFaceImageSpec(model=folder).load()


def test_an_image_alone_and_in_a_batch_is_the_same(model: Make) -> None:
    spec = HuggingFaceImageSpec(model=model(save_resnet))
    together = embed(spec, PICTURES)
    alone = np.concatenate([embed(spec, [image]) for image in PICTURES])
    np.testing.assert_allclose(together, alone, atol=spec.tolerance)


def test_images_that_stay_of_unlike_shapes_keep_their_places(model: Make) -> None:
    from transformers import ConvNextImageProcessorPil

    folder = model(save_resnet)
    ConvNextImageProcessorPil(do_resize=False).save_pretrained(folder)
    spec = HuggingFaceImageSpec(model=folder)
    shapes = [(40, 32), (32, 32), (40, 32), (48, 32)]
    images = [RNG.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    encoder = spec.load()
    assert [encoder.size(encoder.prepare(image)) for image in images] == [3840, 3072, 3840, 4608]
    alone = np.concatenate([embed(spec, [image]) for image in images])
    np.testing.assert_allclose(embed(spec, images), alone, atol=1e-5)


def test_identity_of_a_vision_model(model: Make) -> None:
    folder = model(save_vit)
    spec = HuggingFaceImageSpec(model=folder)
    assert spec.identity()["backend"] == "pil"
    assert set(spec.weights()) == {
        "config.json",
        "model.safetensors",
        next(name for name in spec.weights() if name.endswith("processor_config.json")),
    }
    before = spec.fingerprint()
    save_processor(Path(folder), side=24)
    after = spec.fingerprint()
    assert before != after
    assert HuggingFaceImageSpec(model=folder, pooling="cls").fingerprint() != after
    assert HuggingFaceImageSpec(model=folder, batch_size=2).fingerprint() == after


def test_a_model_without_its_preprocessing_is_refused(model: Make) -> None:
    folder = Path(model(save_vit))
    for file in folder.glob("*processor_config.json"):
        file.unlink()
    with pytest.raises(ValueError, match="preprocessor_config"):
        HuggingFaceImageSpec(model=str(folder)).fingerprint()
