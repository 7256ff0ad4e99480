"""Image encoder: any Hugging Face vision model, pooled or as a sequence of patches."""

from __future__ import annotations

import inspect
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import pydantic

from features.encoders.base import Encoder, Kind, TrainableEncoder, import_extra
from features.encoders.huggingface import HuggingFaceSpec, LoadedModel, load_model, quiet_loading
from features.encoders.image_processing import ImageProcessing
from features.fingerprint import Execution

PIXELS_AT_ONCE = {"cpu": 32 * 224 * 224, "cuda": 256 * 224 * 224}
"""Pixels in one forward pass if `batch_pixels` is not given."""
CLASS_TOKENS_WITHOUT_A_PARAMETER = {"dinov3_convnext": 1}
"""Models that put the mean of the feature map before it."""


class HuggingFaceImageSpec(HuggingFaceSpec):
    """Any Hugging Face vision model: ResNet, ConvNeXt, ViT, DINOv2, Swin, SigLIP's tower …

    An image is resized, cropped and normalised as the folder's preprocessor_config.json says. Of a
    model of images and texts (CLIP, SigLIP and their like), the image side is used.
    """

    kind: ClassVar[Kind] = "image"
    version: ClassVar[int] = 2
    companions: ClassVar[tuple[str, ...]] = ("preprocessor_config.json", "processor_config.json")
    needs: ClassVar[tuple[str, ...]] = companions

    type: Literal["huggingface_image"] = "huggingface_image"
    pooling: Literal["auto", "mean", "cls", "pooler"] = "auto"
    """How the states of the last layer become one vector: their mean over the patches or the
    feature map (`mean`), the class token (`cls`), the model's own pooled output (`pooler`; for
    CLIP and its like the embedding that images share with texts), or `pooler` for CLIP and its
    like and `mean` for all others (`auto`)."""
    output: Literal["pooled", "sequence"] = "pooled"
    """One embedding for an image, or one for each patch or place of the feature map, row by row,
    without class and register tokens."""
    backend: Literal["pil"] = "pil"
    """Library that resizes the images; another one gives other pixels."""
    batch_size: Annotated[int, Execution, pydantic.Field(ge=1)] = 256
    """Rows per forward pass at most; it is `batch_pixels` that bounds most batches."""
    batch_pixels: Annotated[int | None, Execution, pydantic.Field(ge=1)] = None
    """Pixels per forward pass at most, after resizing. None: 1,605,632 on a CPU (32 images of
    224 x 224), and 12,845,056 on a GPU (256 of them)."""

    @pydantic.model_validator(mode="after")
    def _no_pooling_of_a_sequence(self) -> Self:
        if self.sequence and self.pooling != "auto":
            raise ValueError("`pooling` is for `output: pooled`; a sequence has none, leave it out")
        return self

    @property
    def sequence(self) -> bool:
        return self.output == "sequence"

    def load(self) -> Encoder:
        return _HuggingFaceImage(self)

    @property
    def trainable(self) -> bool:
        return True

    def load_trainable(self) -> TrainableEncoder:
        return _HuggingFaceImage(self.in_float32, whole=True)


class _HuggingFaceImage:
    def __init__(self, spec: HuggingFaceImageSpec, *, whole: bool = False) -> None:
        import torch

        transformers = import_extra("transformers", extra="image")
        import_extra("PIL.Image", extra="image")
        self._spec = spec
        self._loaded: LoadedModel = load_model(spec)
        with quiet_loading():
            processor = transformers.AutoImageProcessor.from_pretrained(
                self._loaded.folder,
                backend=spec.backend,
                trust_remote_code=spec.trust_remote_code,
                local_files_only=True,
            )
        self._processing = ImageProcessing(processor)
        # What one channel needs of its neighbours lies side by side: up to 2 x for convolutions.
        model = self._loaded.model.to(memory_format=torch.channels_last)
        self._two_sided = hasattr(model, "get_image_features")
        if self._two_sided and not whole and getattr(model, "text_model", None) is not None:
            model.text_model = None  # half of the memory, of which no use is made
        if (
            not self._two_sided
            and "pixel_values" not in inspect.signature(model.forward).parameters
        ):
            raise ValueError(
                f"`model`: {spec.model!r} is a {type(model).__name__}, which takes no images"
            )
        self._options = _unmasked(model)
        self._pooling: str = spec.pooling
        if spec.pooling == "auto":
            self._pooling = "pooler" if self._two_sided else "mean"
        self._class_tokens, self._other_tokens = _extra_tokens(model)
        if spec.pooling == "cls" and not self._class_tokens:
            raise ValueError(
                f"{spec.model!r} has no class token; set `pooling: mean` or `pooling: pooler`"
            )
        self.budget = spec.batch_pixels or PIXELS_AT_ONCE[self._loaded.device.type]
        # What a model is wide is not in one place of its configuration: ask it.
        self.dim = self._try()

    takes_pillow = True

    def prepare(self, payload: Any) -> np.ndarray:
        """The image, resized and cropped as the model wants it; see `ImageProcessing.prepare`."""
        return self._processing.prepare(payload)

    def size(self, prepared: np.ndarray) -> int:
        """Pixels."""
        return int(prepared.size) // 3

    @property
    def module(self) -> Any:
        """The model."""
        return self._loaded.model

    def save(self, folder: str, *, module: Any | None = None) -> None:
        """See `LoadedModel.save`."""
        self._loaded.save(folder, module=module)

    def encode(self, batch: list[np.ndarray]) -> np.ndarray | list[np.ndarray]:
        """As ever; images of unlike shapes go through the model shape by shape."""
        import torch

        with torch.inference_mode():
            found = self.embed(batch)
            if isinstance(found, list):
                return [patches_TD.cpu().numpy() for patches_TD in found]
            array_BD: np.ndarray = found.cpu().numpy()
            return array_BD

    def embed(self, batch: list[np.ndarray]) -> Any:
        """What `encode` gives as tensors on the model's device, with gradients if it has any."""
        import torch

        found: list[Any] = [None] * len(batch)
        for shape in dict.fromkeys(pixels.shape for pixels in batch):
            places = [i for i, pixels in enumerate(batch) if pixels.shape == shape]
            rows = self._embed_alike([batch[i] for i in places])
            for place, row in zip(places, rows, strict=True):
                found[place] = row
        return found if self._spec.sequence else torch.stack(found)

    def _embed_alike(self, batch: list[np.ndarray]) -> Any:
        """`[B, D]`, or `[B, T, D]` where a sequence is asked for."""
        import torch

        model = self._loaded.model
        # Without this, convolutions on a GPU round float32 to 10 bits.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            pixels_B3HW = self._processing.batch(batch, dtype=model.dtype, device=model.device)
            forward = model.get_image_features if self._two_sided else model
            output = forward(pixel_values=pixels_B3HW, **self._options(len(batch)))
            if not self._spec.sequence:
                return self._loaded.scaled(self._pooled(output).float())
            states_BTD = self._patches(output)
            rows = self._loaded.scaled(states_BTD.flatten(0, 1))
            return rows.reshape(*states_BTD.shape)

    def _pooled(self, output: Any) -> Any:
        if self._pooling == "pooler":
            pooled = getattr(output, "pooler_output", None)
            if pooled is None:
                raise ValueError(
                    f"{self._spec.model!r} has no pooled output of its own; set `pooling: mean`"
                )
            return pooled.flatten(start_dim=1)
        if self._pooling == "cls":
            return self._states(output)[:, 0]
        return self._patches(output).mean(dim=1)

    def _patches(self, output: Any) -> Any:
        """float32 `[B, T, D]`: the states of the patches, or of a feature map's places."""
        states = self._states(output)
        if states.ndim == 4:  # a feature map [B, D, H, W]
            return states.flatten(start_dim=2).transpose(1, 2)
        return states[:, self._class_tokens + self._other_tokens :]

    def _states(self, output: Any) -> Any:
        states = getattr(output, "last_hidden_state", None)
        if states is None or states.ndim not in (3, 4):
            raise ValueError(
                f"{self._spec.model!r} gives no states of the patches of an image; "
                "set `pooling: pooler` and `output: pooled`"
            )
        return states.float()

    def _try(self) -> int:
        """Width of an embedding, found with two images that are the same."""
        probe = self.prepare(np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8))
        one, other = self.encode([probe, probe])
        if not np.allclose(one, other, atol=self._spec.tolerance * max(1.0, np.abs(one).max())):
            raise ValueError(
                f"`model`: {self._spec.model!r} gives unlike embeddings of one image: its forward "
                "pass is random"
            )
        return int(one.shape[-1])


def _unmasked(model: Any) -> Any:
    """Further inputs of a forward pass of B images.

    A masked autoencoder (He et al., 2022) drops patches, and shuffles the others, by random
    numbers, also in evaluation; here it drops none and keeps the order.
    """
    if model.config.model_type != "vit_mae":
        return lambda count: {}
    import torch

    model.config.mask_ratio = 0.0
    patches = model.embeddings.patch_embeddings.num_patches
    noise_T = torch.arange(patches, dtype=torch.float32, device=model.device)
    return lambda count: {"noise": noise_T.expand(count, patches)}


def _extra_tokens(model: Any) -> tuple[int, int]:
    """How many class tokens, and distillation or register tokens, stand before the patches."""
    counts = {"class": CLASS_TOKENS_WITHOUT_A_PARAMETER.get(model.config.model_type, 0), "other": 0}
    for name, parameter in model.named_parameters():
        match name.rpartition(".")[2]:
            case "cls_token" | "class_embedding":
                counts["class"] += 1
            case "distillation_token" | "register_tokens":
                counts["other"] += parameter.shape[1]
    return counts["class"], counts["other"]
