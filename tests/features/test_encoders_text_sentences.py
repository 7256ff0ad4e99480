"""Folders of sentence-transformers: with nothing but `model`, what their own `encode` gives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from features.encoders.huggingface_text import HuggingFaceTextSpec
from features.encoders.sentence_folders import read_modules

pytestmark = pytest.mark.usefixtures("one_thread")

SENTENCES = [
    "A cat sits on the mat.",
    "The quick brown fox jumps over the lazy dog, and then it sleeps for the rest of the day.",
    "seven",
    "十二月、東京",
    "Dogs are loyal animals. " * 70,
]


@pytest.fixture(scope="module")
def body(tmp_path_factory: pytest.TempPathFactory, minilm: str) -> Path:
    """A BERT of random weights, with the tokenizer of MiniLM."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder = tmp_path_factory.mktemp("body")
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=512,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def save(folder: Path, body: Path, *, pooling: Any, dense: Any = (), **options: Any) -> Any:
    """A model as sentence-transformers itself saves it."""
    from sentence_transformers import SentenceTransformer, models

    transformer = models.Transformer(str(body), max_seq_length=32)
    layers = [transformer, models.Pooling(16, pooling_mode=pooling), *dense]
    model = SentenceTransformer(modules=layers, device="cpu", **options)
    model.save_pretrained(str(folder))
    return SentenceTransformer(str(folder), device="cpu")


def embed(spec: HuggingFaceTextSpec, texts: list[str]) -> np.ndarray:
    encoder = spec.load()
    rows = encoder.encode(encoder.prepare_all(texts))  # type: ignore[attr-defined]
    assert isinstance(rows, np.ndarray)
    return rows


def test_minilm_by_itself_agrees_with_sentence_transformers(minilm: str) -> None:
    from sentence_transformers import SentenceTransformer

    reference = SentenceTransformer(minilm, device="cpu").encode(SENTENCES)
    found = embed(HuggingFaceTextSpec(model=minilm), SENTENCES)
    np.testing.assert_allclose(found, reference, atol=1e-5)
    coarse = embed(HuggingFaceTextSpec(model=minilm, precision="bfloat16"), SENTENCES)
    assert ((coarse * reference).sum(axis=1) > 0.999).all()


def test_what_the_folder_says_may_be_said_by_the_user_and_is_the_same_encoder(minilm: str) -> None:
    said = HuggingFaceTextSpec(
        model=minilm, pooling="mean", normalize=True, max_length=256, prefix=""
    )
    silent = HuggingFaceTextSpec(model=minilm)
    assert said.choices() == silent.choices()
    np.testing.assert_array_equal(embed(said, SENTENCES), embed(silent, SENTENCES))


@pytest.mark.parametrize(
    "pooling", ["mean", "cls", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens"]
)
def test_each_pooling_of_sentence_transformers_is_followed(
    pooling: str, body: Path, tmp_path: Path
) -> None:
    reference = save(tmp_path / "model", body, pooling=pooling)
    spec = HuggingFaceTextSpec(model=str(tmp_path / "model"))
    np.testing.assert_allclose(embed(spec, SENTENCES), reference.encode(SENTENCES), atol=1e-5)
    assert spec.choices().max_length == 32


def test_linear_layers_and_scaling_are_followed_and_their_weights_count(
    body: Path, tmp_path: Path
) -> None:
    from sentence_transformers import models

    torch.manual_seed(1)
    dense = [
        models.Dense(16, 24),
        models.Dense(24, 8, bias=False, activation_function=torch.nn.Identity()),
        models.Normalize(),
    ]
    folder = tmp_path / "model"
    reference = save(folder, body, pooling="cls", dense=dense)
    spec = HuggingFaceTextSpec(model=str(folder))
    found = embed(spec, SENTENCES)
    assert found.shape == (len(SENTENCES), 8)
    np.testing.assert_allclose(found, reference.encode(SENTENCES), atol=1e-5)
    before = spec.fingerprint()
    weights = next(folder.glob("3_Dense/model.safetensors"))
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert spec.fingerprint() != before
    weights.unlink()
    with pytest.raises(ValueError, match=r"has no 3_Dense/model\.safetensors"):
        spec.fingerprint()
    HuggingFaceTextSpec(model=str(folder), pooling="mean").fingerprint()  # needs no such layer


def test_the_default_prompt_is_put_before_unless_another_is_asked_for(
    body: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    prompts = {"query": "search query: ", "passage": "passage: "}
    reference = save(folder, body, pooling="mean", prompts=prompts, default_prompt_name="query")
    spec = HuggingFaceTextSpec(model=str(folder))
    np.testing.assert_allclose(embed(spec, SENTENCES), reference.encode(SENTENCES), atol=1e-5)
    for prefix in ("passage: ", ""):
        other = HuggingFaceTextSpec(model=str(folder), prefix=prefix)
        expected = reference.encode(SENTENCES, prompt=prefix)
        np.testing.assert_allclose(embed(other, SENTENCES), expected, atol=1e-5)


def test_lower_case_is_followed(body: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save(folder, body, pooling="mean")
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["normalizer"]["lowercase"] = False
    file.write_text(json.dumps(tokenizer))
    said = folder / "tokenizer_config.json"
    said.write_text(json.dumps(json.loads(said.read_text()) | {"do_lower_case": False}))
    plain = embed(HuggingFaceTextSpec(model=str(folder)), ["A Cat", "a cat"])
    assert np.abs(plain[0] - plain[1]).max() > 0.01
    config = folder / "sentence_bert_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"do_lower_case": True}))
    lower = embed(HuggingFaceTextSpec(model=str(folder)), ["A Cat", "a cat"])
    np.testing.assert_allclose(lower, plain[[1, 1]], atol=1e-6)


def test_what_is_not_followed_is_named(body: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save(folder, body, pooling=["mean", "max"])
    with pytest.raises(ValueError, match=r"mean and max, .* set `pooling` yourself"):
        HuggingFaceTextSpec(model=str(folder)).fingerprint()
    HuggingFaceTextSpec(model=str(folder), pooling="mean").fingerprint()
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "sentence_transformers.models.LSTM"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match=r"lists Transformer, LSTM"):
        HuggingFaceTextSpec(model=str(folder)).fingerprint()
    shutil.rmtree(folder / "1_Pooling")
    modules[1]["type"] = "sentence_transformers.models.Pooling"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match=r"1_Pooling/config\.json.* is missing"):
        HuggingFaceTextSpec(model=str(folder)).fingerprint()


def test_old_and_new_ways_to_name_a_pooling_are_read(tmp_path: Path) -> None:
    (tmp_path / "1_Pooling").mkdir()
    kinds = ("Transformer", "Pooling")
    modules = [{"path": ["", "1_Pooling"][i], "type": f"x.{kind}"} for i, kind in enumerate(kinds)]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    for config, expected in (
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "weightedmean"}, "weighted_mean"),
        ({}, "mean"),
    ):
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(config))
        found = read_modules(str(tmp_path))
        assert found is not None and found.pooling == expected
    assert read_modules(str(tmp_path / "1_Pooling")) is None
