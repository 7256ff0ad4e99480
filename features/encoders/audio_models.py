"""How each family of audio models is fed and read: inputs from sounds, states from outputs.

The inputs equal those of the feature extractors of transformers, and are computed many sounds at
once, on the model's device. A family that is not known here is fed by its own extractor.

Tensors are named with their axes: B sounds, T samples or steps of time, D the width of a state.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from features.encoders.log_mel import decibel_log_mel, kaldi_log_mel, whisper_log_mel

AST_FRAME, AST_HOP = 400, 160
"""Kaldi's frames of 25 ms and their distance of 10 ms, in samples at 16 kHz."""


@dataclass(frozen=True, kw_only=True)
class Read:
    """What a forward pass gives."""

    states_BTD: Any
    """States in the order of time; after `steps` of them, they are of padding."""
    steps: list[int]
    """How many states of each sound are its own."""
    weights: list[float]
    """How much of each sound there is, in samples, steps or frames."""
    mean_BD: Any | None = None
    """The mean, if it is not that of the states."""


class AudioModel:
    """A model that is fed by the feature extractor that came with it, sound by sound.

    Base of the families that are known.
    """

    together = False
    """Whether sounds of unlike lengths can go through the model in one pass."""
    least = 1
    """Samples that a sound must have."""

    def __init__(self, model: Any, extractor: Any) -> None:
        self._model = model
        self._extractor = extractor
        self.rate = int(extractor.sampling_rate)
        """Samples a second that the model takes, in Hz."""
        self.longest: int | None = None
        """Samples that it can take at once, if it has a limit."""

    @property
    def fixed(self) -> bool:
        """Whether every sound is padded to the longest before it goes through the model."""
        return self.longest is not None

    def inputs(self, sounds: Sequence[np.ndarray]) -> dict[str, Any]:
        """The model's inputs for float32 sounds `[T]`, which are of one length if need be."""
        import torch

        rows = [
            dict(self._extractor(sound, sampling_rate=self.rate, return_tensors="pt"))
            for sound in sounds
        ]
        joined = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        return {name: self._placed(values) for name, values in joined.items()}

    def forward(self, inputs: Mapping[str, Any]) -> Any:
        """The model's output."""
        if hasattr(self._model, "get_audio_features"):
            return self._model.get_audio_features(**inputs)
        return self._model(**inputs)

    def read(self, output: Any, *, inputs: Mapping[str, Any], lengths: Sequence[int]) -> Read:
        """The states of an output of sounds that have `lengths` samples."""
        states = output.last_hidden_state
        if states.ndim != 3:
            raise ValueError(f"{type(self._model).__name__} gives no states in the order of time")
        mask = inputs.get("attention_mask")
        steps = [states.shape[1]] * len(states)
        if mask is not None and not mask.all():
            if hasattr(self._model, "_get_feature_vector_attention_mask"):
                mask = self._model._get_feature_vector_attention_mask(states.shape[1], mask)
            if mask.shape[1] == states.shape[1]:
                steps = mask.sum(dim=1).tolist()
        return Read(states_BTD=states, steps=steps, weights=[float(n) for n in steps])

    def _placed(self, values: Any) -> Any:
        """A tensor on the model's device, in its type if it is not of integers."""
        dtype = self._model.dtype if values.is_floating_point() else values.dtype
        return values.to(self._model.device, dtype)

    def _tensors(self, sounds: Sequence[np.ndarray]) -> list[Any]:
        import torch

        return [torch.from_numpy(sound).to(self._model.device) for sound in sounds]

    def _constant(self, values: np.ndarray, *, double: bool = False) -> Any:
        import torch

        dtype = torch.float64 if double else torch.float32
        return torch.tensor(values, dtype=dtype, device=self._model.device)


class Waveform(AudioModel):
    """Wav2Vec2, HuBERT, WavLM and their kin: samples, normalised to mean 0 and variance 1.

    Baevski et al., "wav2vec 2.0" (NeurIPS 2020). Padding is masked. Models whose first layer
    normalises over time (`feat_extract_norm: group`) take no mask in transformers, as padding
    would change a sound there; here, that layer is kept to each sound's own frames instead.
    """

    together = True

    def __init__(self, model: Any, extractor: Any) -> None:
        super().__init__(model, extractor)
        self._lengths: list[int] | None = None
        while self._steps([self.least])[0] < 1:
            self.least += 1
        for layer in model.modules():
            norm = getattr(layer, "layer_norm", None)
            if hasattr(layer, "conv") and type(norm).__name__ == "GroupNorm":
                self._keep_to_own_frames(layer.conv, norm)

    def inputs(self, sounds: Sequence[np.ndarray]) -> dict[str, Any]:
        import torch

        longest = max(map(len, sounds))
        values = np.full((len(sounds), longest), self._extractor.padding_value, dtype=np.float32)
        for row, sound in zip(values, sounds, strict=True):
            own = row[: len(sound)]
            if self._extractor.do_normalize:
                np.subtract(sound, sound.mean(), out=own)
                own *= 1 / np.sqrt(np.dot(own, own) / len(own) + 1e-7)
            else:
                own[:] = sound
        found = {"input_values": self._placed(torch.from_numpy(values))}
        if min(map(len, sounds)) < longest:
            lengths = torch.tensor([[len(sound)] for sound in sounds])
            mask = (torch.arange(longest) < lengths).long()
            found["attention_mask"] = self._placed(mask)
        return found

    def forward(self, inputs: Mapping[str, Any]) -> Any:
        mask = inputs.get("attention_mask")
        self._lengths = None if mask is None else mask.sum(dim=1).tolist()
        try:
            return self._model(**inputs)
        finally:
            self._lengths = None

    def read(self, output: Any, *, inputs: Mapping[str, Any], lengths: Sequence[int]) -> Read:
        states = output.last_hidden_state
        steps = [min(n, states.shape[1]) for n in self._steps(lengths)]
        return Read(states_BTD=states, steps=steps, weights=[float(n) for n in steps])

    def _steps(self, lengths: Sequence[int]) -> list[int]:
        import torch

        counted = self._model._get_feat_extract_output_lengths(torch.tensor(list(lengths)))
        return [int(n) for n in counted]

    def _keep_to_own_frames(self, convolution: Any, norm: Any) -> None:
        """Make a norm over time see, of each sound, its own frames alone."""
        import torch

        (kernel,), (stride,) = convolution.kernel_size, convolution.stride
        over_all = norm.forward

        def forward(frames_BDT: Any) -> Any:
            if self._lengths is None:
                return over_all(frames_BDT)
            found = torch.zeros_like(frames_BDT)
            for row, length in enumerate(self._lengths):
                own = (length - kernel) // stride + 1
                found[row, :, :own] = over_all(frames_BDT[row : row + 1, :, :own])[0]
            return found

        norm.forward = forward


class Whisper(AudioModel):
    """Whisper's encoder: log-mel spectra of 30 seconds, padded with silence."""

    together = True

    def __init__(self, model: Any, extractor: Any) -> None:
        super().__init__(model, extractor)
        self.longest = int(extractor.n_samples)
        self._filters_KM = self._constant(extractor.mel_filters)
        self._window_N = self._constant(_hann(extractor.n_fft))

    def inputs(self, sounds: Sequence[np.ndarray]) -> dict[str, Any]:
        features = whisper_log_mel(
            self._tensors(sounds),
            filters_KM=self._filters_KM,
            window_N=self._window_N,
            hop=self._extractor.hop_length,
            samples=self._extractor.n_samples,
        )
        return {"input_features": self._placed(features)}

    def read(self, output: Any, *, inputs: Mapping[str, Any], lengths: Sequence[int]) -> Read:
        hop = self._extractor.hop_length
        steps = [int(self._model._get_feat_extract_output_lengths(-(-n // hop))) for n in lengths]
        return Read(
            states_BTD=output.last_hidden_state, steps=steps, weights=[float(n) for n in steps]
        )


class SpectrogramTransformer(AudioModel):
    """AST: Kaldi's filter bank energies, cut into patches of time and frequency.

    Gong et al., "AST: Audio Spectrogram Transformer" (Interspeech 2021). The state of a step of
    time is the mean over its patches; a step is a sound's own if its patches reach into it.
    """

    together = True
    least = AST_FRAME

    def __init__(self, model: Any, extractor: Any) -> None:
        super().__init__(model, extractor)
        from transformers.audio_utils import mel_filter_bank, window_function

        self.longest = AST_FRAME + (int(extractor.max_length) - 1) * AST_HOP
        self._window_N = self._constant(
            window_function(AST_FRAME, "hann", periodic=False), double=True
        )
        with warnings.catch_warnings():
            # Of 128 bands, the lowest have none of the 257 frequencies, as in Kaldi.
            warnings.simplefilter("ignore", UserWarning)
            filters = mel_filter_bank(
                num_frequency_bins=257,
                num_mel_filters=extractor.num_mel_bins,
                min_frequency=20,
                max_frequency=extractor.sampling_rate // 2,
                sampling_rate=extractor.sampling_rate,
                norm=None,
                mel_scale="kaldi",
                triangularize_in_mel_space=True,
            )
        self._filters_KM = self._constant(filters)

    def inputs(self, sounds: Sequence[np.ndarray]) -> dict[str, Any]:
        import torch

        extractor = self._extractor
        frames = int(extractor.max_length)
        found = kaldi_log_mel(
            self._tensors(sounds), filters_KM=self._filters_KM, window_N=self._window_N
        )
        padded = [
            torch.nn.functional.pad(log_FM, (0, 0, 0, frames - len(log_FM))) for log_FM in found
        ]
        features = torch.stack(padded)
        if extractor.do_normalize:
            features = (features - extractor.mean) / (extractor.std * 2)
        return {"input_values": self._placed(features)}

    def read(self, output: Any, *, inputs: Mapping[str, Any], lengths: Sequence[int]) -> Read:
        config = self._model.config
        bands = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
        patches = output.last_hidden_state[:, 2:]
        states = patches.unflatten(1, (bands, -1)).float().mean(dim=1)
        frames = [1 + (length - AST_FRAME) // AST_HOP for length in lengths]
        steps = [min(states.shape[1], -(-n // config.time_stride)) for n in frames]
        return Read(states_BTD=states, steps=steps, weights=[float(n) for n in frames])


class Clap(AudioModel):
    """CLAP's audio side: mel energies in dB of 10 s, which a shorter sound fills by repeating.

    Wu et al., "Large-Scale Contrastive Language-Audio Pretraining" (ICASSP 2023). A longer sound
    is not cropped at random, as by transformers, but read window by window; so a model with
    fusion never has to fuse. The state of a step of time is the mean over the frequencies.
    """

    together = True

    def __init__(self, model: Any, extractor: Any) -> None:
        super().__init__(model, extractor)
        self.longest = int(extractor.nb_max_samples)
        self._fusion = extractor.truncation == "fusion"
        filters = extractor.mel_filters if self._fusion else extractor.mel_filters_slaney
        self._filters_KM = self._constant(filters)
        self._window_N = self._constant(_hann(extractor.fft_window_size), double=True)

    def inputs(self, sounds: Sequence[np.ndarray]) -> dict[str, Any]:
        import torch

        found = decibel_log_mel(
            self._tensors([self._filled(sound) for sound in sounds]),
            filters_KM=self._filters_KM,
            window_N=self._window_N,
            hop=self._extractor.hop_length,
        )
        features = torch.stack(found)[:, None]
        if self._fusion:
            features = features.expand(-1, 4, -1, -1)
        longer = torch.zeros((len(sounds), 1), dtype=torch.bool, device=features.device)
        return {"input_features": self._placed(features), "is_longer": longer}

    def _filled(self, sound: np.ndarray) -> np.ndarray:
        assert self.longest is not None
        padding = self._extractor.padding
        if padding != "pad":
            times = self.longest // len(sound) + (padding == "repeat")
            sound = np.tile(sound, times)[: self.longest]
        return np.pad(sound, (0, self.longest - len(sound)))

    def read(self, output: Any, *, inputs: Mapping[str, Any], lengths: Sequence[int]) -> Read:
        assert self.longest is not None
        states = output.last_hidden_state.float().mean(dim=2).transpose(1, 2)
        steps = [-(-length * states.shape[1] // self.longest) for length in lengths]
        repeated = self._extractor.padding != "pad"
        return Read(
            states_BTD=states,
            steps=steps,
            weights=[float(length) for length in lengths],
            mean_BD=states.mean(dim=1) if repeated else None,
        )


KNOWN: Mapping[str, type[AudioModel]] = {
    "Wav2Vec2FeatureExtractor": Waveform,
    "WhisperFeatureExtractor": Whisper,
    "ASTFeatureExtractor": SpectrogramTransformer,
    "ClapFeatureExtractor": Clap,
}
"""Families by the name of transformers' feature extractor."""


def audio_model(model: Any, extractor: Any) -> AudioModel:
    """The model in its family; one that is not known in the general one.

    ValueError if the extractor gives other features the second time.
    """
    family = KNOWN.get(type(extractor).__name__, AudioModel)
    ours = type(extractor).__module__.startswith("transformers.")
    if family is Waveform and not hasattr(model, "_get_feat_extract_output_lengths"):
        family = AudioModel
    if family is SpectrogramTransformer and extractor.sampling_rate != 16_000:
        family = AudioModel
    if ours and family is not AudioModel:
        return family(model, extractor)
    if not getattr(extractor, "sampling_rate", None):
        raise ValueError(f"{type(extractor).__name__} does not say which sampling rate it takes")
    general = AudioModel(model, extractor)
    probe = np.random.default_rng(0).normal(0, 0.1, general.rate).astype(np.float32)
    first, second = general.inputs([probe]), general.inputs([probe])
    if any(not values.equal(second[name]) for name, values in first.items()):
        raise ValueError(
            f"{type(extractor).__name__} draws random numbers: it gives other features each time"
        )
    return general


def _hann(length: int) -> np.ndarray:
    """Periodic Hann window in float64."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)
