"""Image encoders: histograms of oriented gradients, and any Hugging Face vision model."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import pydantic

from features.encoders.base import Encoder, EncoderSpec, Kind, import_extra
from features.encoders.huggingface import (
    HuggingFaceSpec,
    LoadedModel,
    load_model,
    quiet_loading,
)


class HogSpec(EncoderSpec):
    """Histograms of oriented gradients of the grey image: shape without colour, no weights.

    Dalal and Triggs, "Histograms of Oriented Gradients for Human Detection" (CVPR 2005), by
    scikit-image.
    """

    kind: ClassVar[Kind] = "image"

    type: Literal["hog"] = "hog"
    size: Annotated[int, pydantic.Field(ge=4, le=4096)] = 32
    """Side to which an image is resized, in pixels, without regard to its proportions."""
    orientations: Annotated[int, pydantic.Field(ge=1, le=180)] = 9
    """Bins of a histogram, over 180 degrees."""
    pixels_per_cell: Annotated[int, pydantic.Field(ge=2)] = 8
    """Side of a cell, which has one histogram."""
    cells_per_block: Annotated[int, pydantic.Field(ge=1)] = 2
    """Side of a block, within which histograms are normalised."""

    @pydantic.model_validator(mode="after")
    def _at_least_one_block(self) -> Self:
        if self._blocks < 1:
            raise ValueError(
                f"no block of {self.cells_per_block} cells of {self.pixels_per_cell} pixels fits "
                f"into `size` {self.size}; raise `size`, or lower one of the others"
            )
        return self

    @property
    def _blocks(self) -> int:
        return self.size // self.pixels_per_cell - self.cells_per_block + 1

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return int((self._blocks * self.cells_per_block) ** 2 * self.orientations)

    def load(self) -> Encoder:
        return _Hog(self)


class _Hog:
    def __init__(self, spec: HogSpec) -> None:
        self._hog = import_extra("skimage.feature", extra="image").hog
        self._image = import_extra("PIL.Image", extra="image")
        self._spec = spec
        self.dim = spec.dim

    def prepare(self, payload: np.ndarray) -> np.ndarray:
        """uint8 `[H, W, 3]` → float32 `[size, size]` in 0..1."""
        side = (self._spec.size, self._spec.size)
        grey = self._image.fromarray(payload).convert("L")
        resized = grey.resize(side, resample=self._image.Resampling.BILINEAR)
        return np.asarray(resized, dtype=np.float32) / 255

    def size(self, prepared: np.ndarray) -> int:
        return 1

    def encode(self, batch: list[np.ndarray]) -> np.ndarray:
        spec = self._spec
        rows = [
            self._hog(
                grey,
                orientations=spec.orientations,
                pixels_per_cell=(spec.pixels_per_cell,) * 2,
                cells_per_block=(spec.cells_per_block,) * 2,
                block_norm="L2-Hys",
            )
            for grey in batch
        ]
        return np.stack(rows).astype(np.float32)


class HuggingFaceImageSpec(HuggingFaceSpec):
    """Any Hugging Face vision model, a transformer or a convolutional network.

    Of a model of text and images (CLIP and its like), the image side is used.
    """

    kind: ClassVar[Kind] = "image"
    companions: ClassVar[tuple[str, ...]] = ("preprocessor_config.json", "processor_config.json")
    needs: ClassVar[tuple[str, ...]] = companions

    type: Literal["huggingface_image"] = "huggingface_image"
    pooling: Literal["mean", "cls", "pooler"] = "mean"
    """Mean over the patches or the feature map, the class token, or the model's own pooled output
    (for CLIP and its like: the embedding that images and texts share)."""
    backend: Literal["pil"] = "pil"
    """Library that resizes the images; another one gives other pixels."""

    def load(self) -> Encoder:
        return _HuggingFaceImage(self)


class _HuggingFaceImage:
    def __init__(self, spec: HuggingFaceImageSpec) -> None:
        transformers = import_extra("transformers", extra="image")
        import_extra("PIL.Image", extra="image")
        self._spec = spec
        self._loaded: LoadedModel = load_model(spec)
        with quiet_loading():
            self._processor = transformers.AutoImageProcessor.from_pretrained(
                self._loaded.folder,
                backend=spec.backend,
                trust_remote_code=spec.trust_remote_code,
                local_files_only=True,
            )
        self._two_sided = hasattr(self._loaded.model, "get_image_features")
        if self._two_sided and spec.pooling != "pooler":
            raise ValueError(
                f"{spec.model!r} is a model of text and images at once; set `pooling: pooler` for "
                "the embedding that they share"
            )
        self._class_tokens, self._other_tokens = _extra_tokens(self._loaded.model)
        if spec.pooling == "cls" and not self._class_tokens:
            raise ValueError(
                f"{spec.model!r} has no class token; set `pooling: mean` or `pooling: pooler`"
            )
        # What a model is wide is not in one place of its configuration: ask it.
        blank = np.zeros((64, 64, 3), dtype=np.uint8)
        self.dim = int(self.encode([self.prepare(blank)]).shape[1])

    def prepare(self, payload: np.ndarray) -> np.ndarray:
        """uint8 `[H, W, 3]` → float32 `[3, h, w]`, resized and normalised as the model wants it."""
        pixels = self._processor(
            images=payload, input_data_format="channels_last", return_tensors="np"
        )["pixel_values"]
        return np.asarray(pixels[0], dtype=np.float32)

    def size(self, prepared: np.ndarray) -> int:
        return int(prepared.size)

    def encode(self, batch: list[np.ndarray]) -> np.ndarray:
        """As ever; images of unlike shapes go through the model shape by shape."""
        shapes = list(dict.fromkeys(pixels.shape for pixels in batch))
        if len(shapes) == 1:
            return self._encode_alike(batch)
        found: dict[int, np.ndarray] = {}
        for shape in shapes:
            places = [i for i, pixels in enumerate(batch) if pixels.shape == shape]
            found.update(zip(places, self._encode_alike([batch[i] for i in places]), strict=True))
        return np.stack([found[i] for i in range(len(batch))])

    def _encode_alike(self, batch: list[np.ndarray]) -> np.ndarray:
        import torch

        model = self._loaded.model
        pixels_B3HW = torch.from_numpy(np.stack(batch)).to(self._loaded.device, model.dtype)
        # Without this, convolutions on a GPU round float32 to 10 bits.
        exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        with torch.inference_mode(), exact:
            if self._two_sided:
                output = model.get_image_features(pixel_values=pixels_B3HW)
            else:
                output = model(pixel_values=pixels_B3HW)
            return self._loaded.finish(self._pool(output).float())

    def _pool(self, output: Any) -> Any:
        if self._spec.pooling == "pooler":
            pooled = getattr(output, "pooler_output", None)
            if pooled is None:
                raise ValueError(
                    f"{self._spec.model!r} has no pooled output of its own; set `pooling: mean`"
                )
            return pooled.flatten(start_dim=1)
        hidden = output.last_hidden_state.float()
        if hidden.ndim == 4:  # a feature map [B, D, H, W]
            return hidden.mean(dim=(2, 3))
        if self._spec.pooling == "cls":
            return hidden[:, 0]
        return hidden[:, self._class_tokens + self._other_tokens :].mean(dim=1)


def _extra_tokens(model: Any) -> tuple[int, int]:
    """How many class tokens, and distillation or register tokens, stand before the patches."""
    counts = {"class": 0, "other": 0}
    for name, parameter in model.named_parameters():
        match name.rpartition(".")[2]:
            case "cls_token" | "class_embedding":
                counts["class"] += 1
            case "distillation_token" | "register_tokens":
                counts["other"] += parameter.shape[1]
    return counts["class"], counts["other"]
