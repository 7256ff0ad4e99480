"""Vision models against transformers itself: its image processors, its models, one by one."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
import torch
from PIL import Image

from features.columns import PayloadColumns
from features.encoders import huggingface_image
from features.encoders.huggingface_image import HuggingFaceImageSpec
from features.encoders.image_processing import ImageProcessing
from features.payloads import open_payload
from tests.features import vision_models as models

pytestmark = pytest.mark.usefixtures("one_thread")

RNG = np.random.default_rng(0)
PICTURES = [
    RNG.integers(0, 256, (h, w, 3), dtype=np.uint8)
    for h, w in ((40, 50), (64, 33), (9, 9), (32, 32))
]

Save = Callable[[Path], None]
Make = Callable[[Save], str]

BEFORE_PATCHES: dict[Save, int | None] = {
    models.save_resnet: None,
    models.save_convnext: None,
    models.save_vit: 1,
    models.save_deit: 2,
    models.save_dinov2: 1,
    models.save_dinov2_with_registers: 4,
    models.save_swin: 0,
    models.save_clip: 1,
    models.save_clip_vision: 1,
    models.save_siglip: 0,
    models.save_siglip_vision: 0,
}
"""Models, and how many tokens stand before those of the patches; None for a feature map."""
TWO_SIDED = (models.save_clip, models.save_siglip)

each_model = pytest.mark.parametrize("save", BEFORE_PATCHES, ids=lambda save: save.__name__[5:])


@pytest.fixture
def model(tmp_path: Path) -> Make:
    def make(save: Save) -> str:
        torch.manual_seed(0)
        folder = tmp_path / save.__name__
        save(folder)
        return str(folder)

    return make


def embed(spec: HuggingFaceImageSpec, images: list[np.ndarray]) -> list[np.ndarray]:
    encoder = spec.load()
    rows = encoder.encode([encoder.prepare(image) for image in images])
    assert len(rows) == len(images)
    assert all(row.dtype == np.float32 and row.shape[-1] == encoder.dim for row in rows)
    return list(rows)


def outputs(folder: str, images: list[np.ndarray]) -> Iterator[Any]:
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


def patches(output: Any, *, save: Save) -> np.ndarray:
    """Of one image: `[T, D]`."""
    states: np.ndarray = output.last_hidden_state[0].numpy()
    before = BEFORE_PATCHES[save]
    if before is None:  # a feature map [D, H, W]
        return np.stack([states[:, y, x] for y, x in np.ndindex(states.shape[1:])])
    return states[before:]


# ---------------------------------------------------------------- embeddings and sequences


@each_model
def test_what_is_made_of_an_image_if_nothing_is_said(model: Make, save: Save) -> None:
    folder = model(save)
    found = embed(HuggingFaceImageSpec(model=folder), PICTURES)
    for row, output in zip(found, outputs(folder, PICTURES), strict=True):
        if save in TWO_SIDED:  # the embedding that images and texts share
            expected = output.pooler_output[0].numpy()
        else:
            expected = patches(output, save=save).mean(axis=0)
        np.testing.assert_allclose(row, expected, atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-4


@each_model
def test_mean_over_the_patches_and_the_models_own_pooling(model: Make, save: Save) -> None:
    folder = model(save)
    means = embed(HuggingFaceImageSpec(model=folder, pooling="mean"), PICTURES)
    poolers = embed(HuggingFaceImageSpec(model=folder, pooling="pooler", normalize=True), PICTURES)
    for mean, pooler, output in zip(means, poolers, outputs(folder, PICTURES), strict=True):
        np.testing.assert_allclose(mean, patches(output, save=save).mean(axis=0), atol=1e-5)
        own = output.pooler_output.flatten().numpy()
        np.testing.assert_allclose(pooler, own / np.linalg.norm(own), atol=1e-5)


@each_model
def test_class_token_where_there_is_one(model: Make, save: Save) -> None:
    folder = model(save)
    spec = HuggingFaceImageSpec(model=folder, pooling="cls")
    if not BEFORE_PATCHES[save]:
        with pytest.raises(ValueError, match="no class token"):
            spec.load()
        return
    for row, output in zip(embed(spec, PICTURES), outputs(folder, PICTURES), strict=True):
        np.testing.assert_allclose(row, output.last_hidden_state[0, 0].numpy(), atol=1e-5)


@each_model
def test_sequence_of_the_patches_row_by_row(model: Make, save: Save) -> None:
    folder = model(save)
    spec = HuggingFaceImageSpec(model=folder, output="sequence")
    assert spec.sequence
    found = embed(spec, PICTURES)
    unit = embed(HuggingFaceImageSpec(model=folder, output="sequence", normalize=True), PICTURES)
    for rows, ones, output in zip(found, unit, outputs(folder, PICTURES), strict=True):
        expected = patches(output, save=save)
        assert expected.shape[0] == 16  # 4 x 4 patches, or places of the feature map
        np.testing.assert_allclose(rows, expected, atol=1e-5)
        lengths = np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(ones, expected / lengths, atol=1e-5)


@pytest.mark.parametrize("name", ["ViT", "ResNet"])
def test_of_a_classifier_what_is_below_its_classes_is_taken(name: str, tmp_path: Path) -> None:
    """Most models of the hub were saved with a head, and some without the layer of the pooler."""
    import transformers

    save = {"ViT": models.save_vit, "ResNet": models.save_resnet}[name]
    save(tmp_path)
    base = transformers.AutoModel.from_pretrained(tmp_path)
    classifier = getattr(transformers, f"{name}ForImageClassification")(base.config).eval()
    classifier.save_pretrained(tmp_path)
    spec = HuggingFaceImageSpec(model=str(tmp_path))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    for row, image in zip(embed(spec, PICTURES), PICTURES, strict=True):
        pixels = processor(images=Image.fromarray(image), return_tensors="pt")
        with torch.no_grad():
            output = classifier(**pixels, output_hidden_states=True)
        states = output.hidden_states[-1][0]
        if name == "ViT":
            expected = classifier.vit.layernorm(states)[1:].mean(dim=0)
        else:
            expected = states.mean(dim=(1, 2))
        np.testing.assert_allclose(row, expected.detach().numpy(), atol=1e-5)
    if name == "ViT":
        with pytest.raises(ValueError, match="lack 2 tensors of ViTModel, such as 'pooler"):
            HuggingFaceImageSpec(model=str(tmp_path), pooling="pooler").load()


def test_masked_autoencoder_sees_the_whole_image_in_order(model: Make) -> None:
    from transformers import AutoImageProcessor, ViTMAEModel, ViTModel

    folder = model(models.save_vit_mae)
    found = embed(HuggingFaceImageSpec(model=folder, output="sequence"), PICTURES)
    network = ViTMAEModel.from_pretrained(folder)
    plain = ViTModel(network.config, add_pooling_layer=False).eval()
    weights = {
        "embeddings.cls_token": network.embeddings.cls_token,
        "embeddings.position_embeddings": network.embeddings.position_embeddings,
    }
    weights |= {k: v for k, v in network.state_dict().items() if not k.startswith("embeddings.")}
    weights |= {
        f"embeddings.patch_embeddings.{k}": v
        for k, v in network.embeddings.patch_embeddings.state_dict().items()
    }
    plain.load_state_dict(weights)  # a plain ViT of the same weights, whose order is known
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    for rows, image in zip(found, PICTURES, strict=True):
        with torch.no_grad():
            output = plain(**processor(images=Image.fromarray(image), return_tensors="pt"))
        np.testing.assert_allclose(rows, output.last_hidden_state[0, 1:].numpy(), atol=1e-5)


def test_a_model_that_draws_lots_is_refused(model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_image, "_unmasked", lambda model: lambda count: {})
    with pytest.raises(ValueError, match="forward pass is random"):
        HuggingFaceImageSpec(model=model(models.save_vit_mae)).load()


def test_a_model_of_texts_is_refused(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=9,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
    )
    models.save_vit(tmp_path)
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="BertModel, which takes no images"):
        HuggingFaceImageSpec(model=str(tmp_path)).load()


@each_model
def test_an_image_alone_and_in_a_batch_is_the_same(model: Make, save: Save) -> None:
    spec = HuggingFaceImageSpec(model=model(save))
    together = embed(spec, PICTURES)
    alone = [embed(spec, [image])[0] for image in PICTURES]
    np.testing.assert_allclose(together, alone, atol=spec.tolerance)


def test_half_precision_is_near(model: Make) -> None:
    folder = model(models.save_resnet)
    exact = np.stack(embed(HuggingFaceImageSpec(model=folder), PICTURES))
    spec = HuggingFaceImageSpec(model=folder, precision="bfloat16")
    near = np.stack(embed(spec, PICTURES))
    assert not np.array_equal(near, exact)
    np.testing.assert_allclose(near, exact, atol=spec.tolerance)


def test_images_that_stay_of_unlike_shapes_keep_their_places(model: Make) -> None:
    from transformers import ConvNextImageProcessorPil

    folder = model(models.save_resnet)
    ConvNextImageProcessorPil(do_resize=False).save_pretrained(folder)
    shapes = [(40, 32), (32, 32), (40, 32), (48, 32)]
    images = [RNG.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    spec = HuggingFaceImageSpec(model=folder, output="sequence")
    encoder = spec.load()
    assert [encoder.size(encoder.prepare(image)) for image in images] == [1280, 1024, 1280, 1536]
    found = embed(spec, images)
    assert [len(rows) for rows in found] == [20, 16, 20, 24]
    for rows, output in zip(found, outputs(folder, images), strict=True):
        np.testing.assert_allclose(rows, patches(output, save=models.save_resnet), atol=1e-5)


# ---------------------------------------------------------------- preprocessing


def processors() -> dict[str, tuple[Any, bool]]:
    """Image processors, and whether their steps are known, so that they need not be called."""
    import transformers as t

    square = {"height": 20, "width": 24}
    short = {"shortest_edge": 20}
    return {
        "vit": (t.ViTImageProcessorPil(size=square), True),
        "vit-one-mean": (t.ViTImageProcessorPil(size=square, image_mean=0.3, image_std=0.2), True),
        "vit-nearest": (t.ViTImageProcessorPil(size=square, resample=0), True),
        "vit-not-normalised": (t.ViTImageProcessorPil(size=square, do_normalize=False), True),
        "vit-not-rescaled": (t.ViTImageProcessorPil(size=square, do_rescale=False), True),
        "vit-other-scale": (t.ViTImageProcessorPil(size=square, rescale_factor=1 / 127.5), True),
        "clip": (t.CLIPImageProcessorPil(size=short, crop_size=square), True),
        "clip-crop-beyond": (
            t.CLIPImageProcessorPil(size=short, crop_size={"height": 31, "width": 50}),
            True,
        ),
        "clip-crop-alone": (t.CLIPImageProcessorPil(do_resize=False, crop_size=square), True),
        "siglip": (t.SiglipImageProcessorPil(size=square), True),
        "dinov2": (t.BitImageProcessorPil(size=short, crop_size={"height": 19, "width": 19}), True),
        "deit": (t.DeiTImageProcessorPil(size=square, crop_size={"height": 9, "width": 9}), True),
        "convnext": (t.ConvNextImageProcessorPil(size=short), True),
        "convnext-odd": (t.ConvNextImageProcessorPil(size={"shortest_edge": 21}, crop_pct=1), True),
        "convnext-warped": (t.ConvNextImageProcessorPil(size={"shortest_edge": 384}), True),
        # Of its own: a side of at most so much, the order of colours, an offset.
        "longest-edge": (
            t.ViTImageProcessorPil(size={"shortest_edge": 20, "longest_edge": 30}),
            False,
        ),
        "mobilevit": (t.MobileViTImageProcessorPil(size=short, crop_size=square), False),
        "efficientnet": (t.EfficientNetImageProcessorPil(size=square), False),
        "beit": (t.BeitImageProcessorPil(size=square, crop_size=square), False),
    }


@pytest.mark.parametrize("name", processors())
def test_preprocessing_is_that_of_the_image_processor(name: str) -> None:
    processor, known = processors()[name]
    processing = ImageProcessing(processor)
    shapes = [(40, 50), (50, 40), (20, 20), (21, 7), (3, 90), (1, 1), (20, 24), (333, 222)]
    for shape in shapes:
        image = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
        expected = processor(images=Image.fromarray(image), return_tensors="np")["pixel_values"]
        prepared = processing.prepare(image)
        assert (prepared.dtype == np.uint8) == known
        found = processing.batch([prepared, prepared], dtype=torch.float32).numpy()
        assert found.dtype == np.float32
        scale = max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(found[:1], expected, atol=2e-6 * scale)
        np.testing.assert_array_equal(found[1], found[0])


def test_a_thin_image_that_resizing_would_blow_up_is_refused(model: Make) -> None:
    """Of 200,000 pixels, to 32 x 6,400,000 or 204 million."""
    encoder = HuggingFaceImageSpec(model=model(models.save_clip)).load()
    for shape in ((1, 200_000, 3), (200_000, 1, 3)):
        pixels = np.zeros(shape, np.uint8)
        for picture in (pixels, Image.fromarray(pixels)):
            with pytest.raises(ValueError, match=r"too long and thin.*6,400,000"):
                encoder.prepare(picture)


def test_a_processor_that_does_more_than_it_says_is_called() -> None:
    from transformers import ViTImageProcessorPil

    class Inverting(ViTImageProcessorPil):  # type: ignore[misc]
        def _prepare_images_structure(self, images: Any, expected_ndims: int = 3) -> Any:
            return [255 - np.asarray(images)]

    processor = Inverting(size={"height": 8, "width": 8})
    processing = ImageProcessing(processor)
    found = processing.batch([processing.prepare(PICTURES[0])], dtype=torch.float32).numpy()
    plain = ViTImageProcessorPil(size={"height": 8, "width": 8})
    expected = plain(images=Image.fromarray(255 - PICTURES[0]), return_tensors="np")
    np.testing.assert_allclose(found, expected["pixel_values"], atol=1e-5)


# ---------------------------------------------------------------- the spec


def test_identity_of_a_vision_model(model: Make) -> None:
    folder = model(models.save_vit)
    spec = HuggingFaceImageSpec(model=folder)
    assert spec.identity()["backend"] == "pil"
    assert set(spec.weights()) == {
        "config.json",
        "model.safetensors",
        next(name for name in spec.weights() if name.endswith("processor_config.json")),
    }
    before = spec.fingerprint()
    from transformers import ViTImageProcessorPil

    ViTImageProcessorPil(size={"height": 24, "width": 24}).save_pretrained(folder)
    after = spec.fingerprint()
    assert before != after
    assert HuggingFaceImageSpec(model=folder, pooling="cls").fingerprint() != after
    assert HuggingFaceImageSpec(model=folder, output="sequence").fingerprint() != after
    few = HuggingFaceImageSpec(model=folder, batch_size=2, batch_pixels=5000)
    assert few.fingerprint() == after


def test_batches_are_bounded_by_pixels(model: Make) -> None:
    folder = model(models.save_vit)
    encoder = HuggingFaceImageSpec(model=folder, batch_pixels=5000).load()
    assert encoder.budget == 5000  # type: ignore[attr-defined]
    assert encoder.size(encoder.prepare(PICTURES[0])) == models.SIDE**2


def test_a_model_without_its_preprocessing_is_refused(model: Make) -> None:
    folder = Path(model(models.save_vit))
    for file in folder.glob("*processor_config.json"):
        file.unlink()
    with pytest.raises(ValueError, match="preprocessor_config"):
        HuggingFaceImageSpec(model=str(folder)).fingerprint()


def test_pickled_weights_are_refused_unless_they_are_asked_for(model: Make) -> None:
    from safetensors.torch import load_file

    folder = Path(model(models.save_vit))
    expected = embed(HuggingFaceImageSpec(model=str(folder)), PICTURES)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="allow_pickle"):
        HuggingFaceImageSpec(model=str(folder)).load()
    found = embed(HuggingFaceImageSpec(model=str(folder), allow_pickle=True), PICTURES)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"output": "sequence", "pooling": "mean"}, "a sequence has none"),
        ({"pooling": "max"}, "'auto', 'mean', 'cls' or 'pooler'"),
        ({"batch_pixels": 0}, "greater than or equal to 1"),
        ({"model": "a/hub-id"}, "pin the commit"),
        ({"model": "a/hub-id", "revision": "main"}, "40 hexadecimal digits"),
    ],
)
def test_a_wrong_configuration_is_told(options: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(pydantic.ValidationError, match=says):
        HuggingFaceImageSpec.model_validate({"model": str(tmp_path)} | options)


FILES: dict[str, Callable[[], tuple[Image.Image, str]]] = {
    "JPEG": lambda: (Image.fromarray(NOISE), "JPEG"),
    "grey": lambda: (Image.fromarray(NOISE[:, :, 0]), "PNG"),
    "16 bits": lambda: (Image.fromarray(NOISE[:, :, 0].astype(np.uint16) * 257), "PNG"),
    "transparent": lambda: (Image.fromarray(np.dstack([NOISE, NOISE[:, :, :1]])), "PNG"),
    "CMYK": lambda: (Image.fromarray(np.dstack([NOISE, NOISE[:, :, :1]]), mode="CMYK"), "TIFF"),
    "palette": lambda: (Image.fromarray(NOISE).quantize(16), "GIF"),
}
NOISE = np.random.default_rng(1).integers(0, 256, (61, 87, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", FILES)
def test_an_image_of_pillows_is_prepared_as_its_array(kind: str, model: Make) -> None:
    image, format = FILES[kind]()
    file = io.BytesIO()
    image.save(file, format)
    encoder = HuggingFaceImageSpec(model=model(models.save_vit)).load()
    column = PayloadColumns(kind="image", columns=("image",))
    opened = [
        open_payload(file.getvalue(), columns=column, folder="", pillow=pillow)
        for pillow in (True, False)
    ]
    assert [isinstance(one, np.ndarray) for one in opened] == [False, True]
    one, other = (encoder.prepare(picture) for picture in opened)
    np.testing.assert_array_equal(one, other)
