"""Small audio models with random weights, of each family, and sounds for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import transformers

from features.encoders import Sound

RATE = 16_000


def voice(seconds: float, *, rate: int = RATE, seed: int = 0) -> np.ndarray:
    """Harmonics that swell, in noise, with quiet and loud parts: float32 `[T]`."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    pitch = rng.uniform(90, 300)
    tone = sum(np.sin(2 * np.pi * pitch * h * time + h) / h for h in range(1, 8))
    swell = np.clip(np.sin(2 * np.pi * rng.uniform(1, 4) * time) + 0.2, 0, 1)
    noise = rng.normal(0, 0.01, len(time))
    samples = np.rint((0.3 * tone * swell + noise) / 2 * 32767) / 32768
    return samples.astype(np.float32)


def sound(samples: np.ndarray, *, rate: int = RATE) -> Sound:
    return Sound(samples=samples[None], rate=rate)


def save(folder: Path, model: Any, extractor: Any) -> None:
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)


SPEECH_MODEL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": (12, 12, 12),
    "conv_kernel": (10, 3, 3),
    "conv_stride": (5, 4, 4),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 8,
}


def save_wav2vec2(folder: Path) -> None:
    config = transformers.Wav2Vec2Config(**SPEECH_MODEL)
    assert config.feat_extract_norm == "group"
    save(folder, transformers.Wav2Vec2Model(config), transformers.Wav2Vec2FeatureExtractor())


def save_wav2vec2_of_layer_norm(folder: Path) -> None:
    options = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
    config = transformers.Wav2Vec2Config(**SPEECH_MODEL, **options)
    extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True)
    save(folder, transformers.Wav2Vec2Model(config), extractor)


def save_wav2vec2_with_adapter(folder: Path) -> None:
    config = transformers.Wav2Vec2Config(**SPEECH_MODEL, add_adapter=True, num_adapter_layers=1)
    save(folder, transformers.Wav2Vec2Model(config), transformers.Wav2Vec2FeatureExtractor())


def save_hubert(folder: Path) -> None:
    config = transformers.HubertConfig(**SPEECH_MODEL)
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=False)
    save(folder, transformers.HubertModel(config), extractor)


def save_wavlm(folder: Path) -> None:
    config = transformers.WavLMConfig(**SPEECH_MODEL, num_buckets=8, max_bucket_distance=16)
    save(folder, transformers.WavLMModel(config), transformers.Wav2Vec2FeatureExtractor())


def save_data2vec(folder: Path) -> None:
    options = {**SPEECH_MODEL, "num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 3}
    model = transformers.Data2VecAudioModel(transformers.Data2VecAudioConfig(**options))
    save(folder, model, transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True))


def save_whisper(folder: Path) -> None:
    config = transformers.WhisperConfig(
        vocab_size=20,
        num_mel_bins=80,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        d_model=16,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        max_source_positions=100,
        max_target_positions=8,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        decoder_start_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    extractor = transformers.WhisperFeatureExtractor(chunk_length=2)
    save(folder, transformers.WhisperModel(config), extractor)


def save_ast(folder: Path) -> None:
    config = transformers.ASTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_length=200,
        num_mel_bins=64,
    )
    extractor = transformers.ASTFeatureExtractor(max_length=200, num_mel_bins=64)
    save(folder, transformers.ASTModel(config), extractor)


def save_clap(folder: Path, *, fusion: bool = False) -> None:
    sounds = {
        "spec_size": 64,
        "num_mel_bins": 16,
        "window_size": 2,
        "patch_size": 4,
        "patch_stride": [4, 4],
        "patch_embeds_hidden_size": 8,
        "depths": [1, 1],
        "num_attention_heads": [1, 2],
        "hidden_size": 16,
        "enable_fusion": fusion,
        "aff_block_r": 2,
        "projection_dim": 12,
    }
    texts = {
        "vocab_size": 20,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "projection_dim": 12,
    }
    config = transformers.ClapConfig(audio_config=sounds, text_config=texts, projection_dim=12)
    extractor = transformers.ClapFeatureExtractor(
        feature_size=16,
        sampling_rate=24_000,
        max_length_s=2,
        hop_length=240,
        frequency_max=12_000,
        truncation="fusion" if fusion else "rand_trunc",
    )
    save(folder, transformers.ClapModel(config), extractor)


def save_clap_with_fusion(folder: Path) -> None:
    save_clap(folder, fusion=True)


def save_wav2vec2_bert(folder: Path) -> None:
    config = transformers.Wav2Vec2BertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        feature_projection_input_dim=160,
        conv_depthwise_kernel_size=3,
        vocab_size=8,
    )
    extractor = transformers.SeamlessM4TFeatureExtractor()
    save(folder, transformers.Wav2Vec2BertModel(config), extractor)
