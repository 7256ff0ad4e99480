"""Audio encoder: any Hugging Face audio model, pooled or as a sequence, in windows if need be."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pydantic

from features.encoders.audio_models import AST_FRAME, AST_HOP, AudioModel, Read, audio_model
from features.encoders.base import Encoder, Kind, Sound, TrainableEncoder, import_extra
from features.encoders.huggingface import HuggingFaceSpec, LoadedModel, load_model, quiet_loading
from features.encoders.log_mel import mono_at
from features.fingerprint import Execution

DEFAULT_WINDOW_SECONDS = 30.0
"""Windows of models without a limit of their own; attention grows with the square of it."""
SECONDS_AT_ONCE = {"cpu": 60.0, "cuda": 1920.0}
"""Sound in one forward pass if `batch_seconds` is not given."""
PROBE_SECONDS = (0.31, 0.5)
"""Lengths of two sounds with which it is tried whether padding changes one."""


class HuggingFaceAudioSpec(HuggingFaceSpec):
    """Any Hugging Face audio model: Wav2Vec2, HuBERT, WavLM, Whisper's encoder, AST, CLAP …

    A sound is brought to the model's rate, its channels averaged. One that is longer than a
    window goes through the model window by window, side by side; a rest at its end that is too
    short for the model is left out.
    """

    kind: ClassVar[Kind] = "audio"
    companions: ClassVar[tuple[str, ...]] = ("preprocessor_config.json", "processor_config.json")
    needs: ClassVar[tuple[str, ...]] = companions

    type: Literal["huggingface_audio"] = "huggingface_audio"
    output: Literal["pooled", "sequence"] = "pooled"
    """One embedding for a sound, or one for each step of the model's time, window after window.
    (Of models with patches, AST and CLAP, a step is the mean over the frequencies.)"""
    pooling: Literal["mean", "cls", "pooler"] = "mean"
    """Mean over the steps of the sound, without those of padding; the class token (AST); or the
    model's own pooled output (AST; for CLAP, the embedding that sounds and texts share). Of
    several windows, the mean is taken, by how much sound there is in each."""
    window_seconds: Annotated[float | None, pydantic.Field(gt=0)] = None
    """Longest sound that goes through the model at once. If it is not given: what the model was
    made for (Whisper 30 s, CLAP 10 s, AST 10.255 s), or 30 s for one without a limit."""
    batch_seconds: Annotated[float | None, Execution, pydantic.Field(gt=0)] = None
    """Sound in one forward pass at most, in seconds, padding included. If it is not given: 60 on a
    processor, whose cache is small, and 1920 on a GPU."""

    @property
    def sequence(self) -> bool:
        return self.output == "sequence"

    def weights(self) -> Mapping[str, str]:
        """As for all models; refuses a `window_seconds` beyond the model's, before any work."""
        found = super().weights()
        self.refuse_beyond(read_limit(self.folder()))
        return found

    def refuse_beyond(self, longest: float | None) -> None:
        """Raise ValueError if a window is longer than the model can take."""
        if longest and self.window_seconds and self.window_seconds > longest + 1e-9:
            raise ValueError(
                f"`window_seconds` {self.window_seconds:g} is more than {self.model!r} takes at "
                f"once, which is {longest:g}"
            )

    def load(self) -> Encoder:
        return _HuggingFaceAudio(self)

    @property
    def trainable(self) -> bool:
        return True

    def load_trainable(self) -> TrainableEncoder:
        return _HuggingFaceAudio(self.in_float32)


def read_limit(folder: str) -> float | None:
    """The longest sound, in seconds, that a model's files say that it takes at once."""
    for name in HuggingFaceAudioSpec.companions:
        path = os.path.join(folder, name)
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                config = json.load(file)
            config = config.get("feature_extractor", config)
            match config.get("feature_extractor_type"):
                case "WhisperFeatureExtractor" if "chunk_length" in config:
                    return float(config["chunk_length"])
                case "ClapFeatureExtractor" if "max_length_s" in config:
                    return float(config["max_length_s"])
                case "ASTFeatureExtractor" if "max_length" in config:
                    samples = AST_FRAME + (config["max_length"] - 1) * AST_HOP
                    return float(samples / config.get("sampling_rate", 16_000))
    return None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Window:
    """A part of one of a batch's sounds, as the model takes it."""

    row: int
    samples: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class _Result:
    """What the model makes of a window: a tensor `[D]` and its weight, or a sequence `[T, D]`."""

    values: Any
    weight: float


class _HuggingFaceAudio:
    def __init__(self, spec: HuggingFaceAudioSpec) -> None:
        transformers = import_extra("transformers", extra="audio")
        import_extra("soxr", extra="audio")
        self._spec = spec
        loaded: LoadedModel = load_model(spec)
        self._whole = loaded
        if loaded.model.config.is_encoder_decoder:
            loaded = loaded.with_model(loaded.model.get_encoder())
        with quiet_loading():
            extractor = transformers.AutoFeatureExtractor.from_pretrained(
                loaded.folder,
                trust_remote_code=spec.trust_remote_code,
                local_files_only=True,
            )
        self._loaded = loaded
        self._model: AudioModel = audio_model(loaded.model, extractor)
        rate, longest = self._model.rate, self._model.longest
        spec.refuse_beyond(longest / rate if longest else None)
        if spec.window_seconds:
            self._window = max(self._model.least, round(spec.window_seconds * rate))
        else:
            self._window = longest or round(DEFAULT_WINDOW_SECONDS * rate)
        seconds = spec.batch_seconds or SECONDS_AT_ONCE[loaded.device.type]
        self.budget = max(1, round(seconds * rate))
        if spec.pooling == "cls" and not spec.sequence and not _has_class_token(loaded.model):
            raise ValueError(
                f"{spec.model!r} has no class token; set `pooling: mean` or `pooling: pooler`"
            )
        self._together = self._model.together
        # What a model is wide is not in one place of its configuration: ask it.
        self.dim = int(self._try([self._probe(max(PROBE_SECONDS))])[0].shape[-1])
        if self._together and not self._model.fixed:
            self._together = self._padding_changes_nothing()

    def prepare(self, payload: Sound) -> np.ndarray:
        """Mono float32 `[T]` at the model's rate."""
        samples = mono_at(self._model.rate, payload)
        if len(samples) < self._model.least:
            raise ValueError(
                f"the sound has {len(samples)} samples at {self._model.rate} Hz; the model needs "
                f"at least {self._model.least}"
            )
        return samples

    def size(self, prepared: np.ndarray) -> int:
        """Samples that go through the model, padding included if it is always the same."""
        if self._model.longest is None:
            return len(prepared)
        return -(-len(prepared) // self._window) * self._model.longest

    @property
    def module(self) -> Any:
        """The model, with its decoder if it has one."""
        return self._whole.model

    def save(self, folder: str, *, module: Any | None = None) -> None:
        """See `LoadedModel.save`."""
        self._whole.save(folder, module=module)

    def encode(self, batch: list[np.ndarray]) -> np.ndarray | list[np.ndarray]:
        import torch

        with torch.inference_mode():
            found = [self._of_unit_length(rows.cpu().numpy()) for rows in self._embed(batch)]
        return found if self._spec.sequence else np.concatenate(found)

    def embed(self, batch: list[np.ndarray]) -> Any:
        """What `encode` gives as tensors on the model's device, with gradients if it has any."""
        import torch

        found = self._embed(batch)
        if self._spec.normalize:
            found = [torch.nn.functional.normalize(rows, dim=1) for rows in found]
        return found if self._spec.sequence else torch.cat(found)

    def _embed(self, batch: list[np.ndarray]) -> list[Any]:
        """Of each sound a tensor: its states `[T, D]`, or their mean `[1, D]`."""
        import torch

        windows = [
            _Window(row=row, samples=samples)
            for row, sound in enumerate(batch)
            for samples in self._windows(sound)
        ]
        results: list[list[_Result]] = [[] for _ in batch]
        found: dict[int, _Result] = {}
        for places in self._passes([len(window.samples) for window in windows]):
            ready = self._run([windows[place].samples for place in places])
            found.update(zip(places, ready, strict=True))
        for place, window in enumerate(windows):
            results[window.row].append(found[place])
        if self._spec.sequence:
            return [torch.cat([part.values for part in parts]) for parts in results]
        means = []
        for parts in results:
            rows_WD = torch.stack([part.values for part in parts]).double()
            weights_W = torch.tensor([part.weight for part in parts], dtype=torch.float64)
            weights_W1 = weights_W[:, None].to(rows_WD.device)
            means.append(((rows_WD * weights_W1).sum(dim=0) / weights_W1.sum()).float()[None])
        return means

    def _windows(self, sound: np.ndarray) -> Iterator[np.ndarray]:
        for start in range(0, len(sound), self._window):
            samples = sound[start : start + self._window]
            if len(samples) >= self._model.least:
                yield samples

    def _passes(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Which windows go through the model together: of like length, the longest first."""
        places = sorted(range(len(lengths)), key=lambda place: -lengths[place])
        part: list[int] = []
        for place in places:
            longest = self._model.longest or lengths[part[0] if part else place]
            full = len(part) >= self._spec.batch_size or (len(part) + 1) * longest > self.budget
            unlike = part and not self._together and lengths[place] != lengths[part[0]]
            if part and (full or unlike):
                yield part
                part = []
            part.append(place)
        if part:
            yield part

    def _run(self, sounds: Sequence[np.ndarray]) -> list[_Result]:
        """One forward pass."""
        import torch

        # Without this, convolutions on a GPU round float32 to 10 bits.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            inputs = self._model.inputs(sounds)
            output = self._model.forward(inputs)
            lengths = [len(sound) for sound in sounds]
            read = self._model.read(output, inputs=inputs, lengths=lengths)
            if self._spec.sequence:
                states = self._kept(read.states_BTD.float())
                # Copies: a part of a tensor would hold the whole of it.
                values = [
                    rows[:steps].clone() for rows, steps in zip(states, read.steps, strict=True)
                ]
            else:
                values = list(self._kept(self._pooled(output, read).float()))
        return [_Result(values=v, weight=w) for v, w in zip(values, read.weights, strict=True)]

    def _kept(self, values: Any) -> Any:
        """What is held until all windows have gone through: not on a GPU, unless it is trained."""
        import torch

        return values if torch.is_grad_enabled() else values.cpu()

    def _pooled(self, output: Any, read: Read) -> Any:
        import torch

        if self._spec.pooling == "cls":
            return output.last_hidden_state[:, 0]
        if self._spec.pooling == "pooler":
            pooled = getattr(output, "pooler_output", None)
            if pooled is None:
                raise ValueError(
                    f"{self._spec.model!r} has no pooled output of its own; set `pooling: mean`"
                )
            return pooled.flatten(start_dim=1)
        if read.mean_BD is not None:
            return read.mean_BD
        states = zip(read.states_BTD.float(), read.steps, strict=True)
        return torch.stack([rows[:steps].mean(dim=0) for rows, steps in states])

    def _of_unit_length(self, rows: np.ndarray) -> np.ndarray:
        if not self._spec.normalize:
            return rows
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        normed: np.ndarray = rows / np.maximum(lengths, 1e-12)
        return normed

    def _probe(self, seconds: float) -> np.ndarray:
        length = min(self._window, max(self._model.least, round(seconds * self._model.rate)))
        noise = np.random.default_rng(length).normal(0, 0.1, length)
        return noise.astype(np.float32)

    def _try(self, sounds: Sequence[np.ndarray]) -> list[np.ndarray]:
        import torch

        with torch.inference_mode():
            return [result.values.cpu().numpy() for result in self._run(sounds)]

    def _padding_changes_nothing(self) -> bool:
        """Whether a sound has the embedding that it has alone when it is padded to a longer one."""
        short, long = (self._probe(seconds) for seconds in PROBE_SECONDS)
        alone, beside = self._try([short])[0], self._try([short, long])[0]
        allowed = 1e-3 if self._spec.precision == "float32" else 0.1
        return bool(np.abs(alone - beside).max() <= allowed * alone.std())


def _has_class_token(model: Any) -> bool:
    return any(name.rpartition(".")[2] == "cls_token" for name, _ in model.named_parameters())
