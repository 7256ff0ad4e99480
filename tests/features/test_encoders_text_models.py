"""Families of text models, of random weights: against transformers' own path, text by text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
import torch

from features.encoders.huggingface_text import HuggingFaceTextSpec
from features.encoders.text_model import TEXT_TOWERS

WORDS = "abcdefghijklmnopqrstuvwxyz"
TEXTS = ["a", "b a c k", "q u i t e a l o n g e r t e x t", "z z", "n o w"]
WIDTH = 16
COMMON = {"hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2}


@pytest.fixture(autouse=True)
def _seed(one_thread: None) -> None:
    torch.manual_seed(0)


def save_tokenizer(folder: Path, *, template: str, pad: int = 0, length: int = 32) -> int:
    """A tokenizer of single letters, with a template such as `<s> $A </s>`; its vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<unk>", "<s>", "</s>"]
    special[0], special[pad] = special[pad], special[0]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    letters = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    used = [(word, vocabulary[word]) for word in ("<s>", "</s>") if word in template]
    letters.post_processor = processors.TemplateProcessing(single=template, special_tokens=used)
    PreTrainedTokenizerFast(
        tokenizer_object=letters,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=length,
    ).save_pretrained(folder)
    return len(vocabulary)


def bert(folder: Path) -> None:
    from transformers import BertConfig, BertModel

    size = save_tokenizer(folder, template="<s> $A </s>")
    BertModel(
        BertConfig(vocab_size=size, max_position_embeddings=32, **COMMON, **HEADS)
    ).save_pretrained(folder)


def xlm_roberta(folder: Path) -> None:
    from transformers import XLMRobertaConfig, XLMRobertaModel

    size = save_tokenizer(folder, template="<s> $A </s>", pad=1, length=1000)
    config = XLMRobertaConfig(
        vocab_size=size, max_position_embeddings=34, pad_token_id=1, **COMMON, **HEADS
    )
    XLMRobertaModel(config).save_pretrained(folder)


def distilbert(folder: Path) -> None:
    from transformers import DistilBertConfig, DistilBertModel

    size = save_tokenizer(folder, template="<s> $A </s>")
    config = DistilBertConfig(
        vocab_size=size, dim=WIDTH, hidden_dim=24, n_layers=2, n_heads=2, max_position_embeddings=32
    )
    DistilBertModel(config).save_pretrained(folder)


def t5(folder: Path) -> None:
    from transformers import T5Config, T5Model

    size = save_tokenizer(folder, template="$A </s>")
    config = T5Config(
        vocab_size=size, d_model=WIDTH, d_kv=8, d_ff=24, num_layers=2, num_heads=2, n_positions=4
    )
    T5Model(config).save_pretrained(folder)


def gpt2(folder: Path) -> None:
    from transformers import GPT2Config, GPT2Model

    size = save_tokenizer(folder, template="$A </s>")
    config = GPT2Config(vocab_size=size, n_embd=WIDTH, n_layer=2, n_head=2, n_positions=32)
    GPT2Model(config).save_pretrained(folder)


def llama(folder: Path) -> None:
    from transformers import LlamaConfig, LlamaModel

    size = save_tokenizer(folder, template="<s> $A")
    config = LlamaConfig(
        vocab_size=size, max_position_embeddings=32, num_key_value_heads=1, **COMMON, **HEADS
    )
    LlamaModel(config).save_pretrained(folder)


FAMILIES: list[Callable[[Path], None]] = [bert, xlm_roberta, distilbert, t5, gpt2, llama]


def vision() -> dict[str, Any]:
    return {"image_size": 16, "patch_size": 8, **COMMON, **HEADS}


def clip(folder: Path) -> None:
    from transformers import CLIPConfig, CLIPModel

    size = save_tokenizer(folder, template="<s> $A </s>", length=32)
    text = {
        "vocab_size": size,
        "max_position_embeddings": 32,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "pad_token_id": 0,
        "projection_dim": 12,
        **COMMON,
        **HEADS,
    }
    CLIPModel(
        CLIPConfig(text_config=text, vision_config=vision(), projection_dim=12)
    ).save_pretrained(folder)


def siglip(folder: Path) -> None:
    from transformers import SiglipConfig, SiglipModel

    size = save_tokenizer(folder, template="$A </s>", pad=1, length=24)
    text = {
        "vocab_size": size,
        "max_position_embeddings": 24,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "pad_token_id": 1,
        "projection_size": WIDTH,
        **COMMON,
        **HEADS,
    }
    SiglipModel(SiglipConfig(text_config=text, vision_config=vision())).save_pretrained(folder)


def clap(folder: Path) -> None:
    from transformers import ClapConfig, ClapModel

    size = save_tokenizer(folder, template="<s> $A </s>", pad=1, length=1000)
    text = {"vocab_size": size, "max_position_embeddings": 34, "pad_token_id": 1, **COMMON, **HEADS}
    audio = {
        "patch_embeds_hidden_size": 8,
        "depths": [1, 1],
        "num_attention_heads": [1, 2],
        "spec_size": 32,
        "num_mel_bins": 16,
        "window_size": 2,
        "hidden_size": 16,
    }
    config = ClapConfig(text_config=text, audio_config=audio, projection_dim=12)
    ClapModel(config).save_pretrained(folder)


def reference(folder: Path, text: str) -> tuple[Any, Any]:
    """Tokens of one text, and the output of the model for them alone."""
    from transformers import AutoModel, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    model = AutoModel.from_pretrained(folder).eval()
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    with torch.no_grad():
        return tokens, model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])


def embed(spec: HuggingFaceTextSpec, texts: list[str]) -> Any:
    encoder = spec.load()
    return encoder.encode(encoder.prepare_all(texts))  # type: ignore[attr-defined]


# ---------------------------------------------------------------- pooling


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_pooled_as_written_and_no_row_depends_on_its_neighbours(
    family: Callable[[Path], None], tmp_path: Path
) -> None:
    family(tmp_path)
    states = [reference(tmp_path, text)[1].last_hidden_state[0].numpy() for text in TEXTS]
    expected = {
        "auto": [state.mean(axis=0) for state in states],
        "mean": [state.mean(axis=0) for state in states],
        "cls": [state[0] for state in states],
        "last": [state[-1] for state in states],
    }
    for pooling, rows in expected.items():
        spec = HuggingFaceTextSpec(model=str(tmp_path), pooling=pooling)
        np.testing.assert_allclose(embed(spec, TEXTS), rows, atol=1e-5, err_msg=pooling)
    sequences = embed(HuggingFaceTextSpec(model=str(tmp_path), output="sequence"), TEXTS)
    for found, state in zip(sequences, states, strict=True):
        np.testing.assert_allclose(found, state, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_near_float32(family: Callable[[Path], None], tmp_path: Path) -> None:
    family(tmp_path)
    exact, coarse = (
        embed(HuggingFaceTextSpec(model=str(tmp_path), precision=precision, normalize=True), TEXTS)
        for precision in ("float32", "bfloat16")
    )
    assert ((exact * coarse).sum(axis=1) > 0.999).all()
    assert not np.array_equal(exact, coarse)


def test_the_models_own_pooling_is_taken_where_it_is_trained(tmp_path: Path) -> None:
    bert(tmp_path)
    expected = [reference(tmp_path, text)[1].pooler_output[0].numpy() for text in TEXTS]
    spec = HuggingFaceTextSpec(model=str(tmp_path), pooling="pooler")
    np.testing.assert_allclose(embed(spec, TEXTS), expected, atol=1e-5)
    from safetensors.torch import load_file, save_file

    weights = load_file(tmp_path / "model.safetensors")
    for name in ("pooler.dense.weight", "pooler.dense.bias"):
        del weights[name]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lack 2 .*pooler"):
        spec.load()


def test_a_model_without_pooling_of_its_own_says_so(tmp_path: Path) -> None:
    distilbert(tmp_path)
    with pytest.raises(ValueError, match="no pooled output of its own"):
        HuggingFaceTextSpec(model=str(tmp_path), pooling="pooler").load()


def test_a_sequence_may_leave_out_special_tokens(tmp_path: Path) -> None:
    bert(tmp_path)
    whole = embed(HuggingFaceTextSpec(model=str(tmp_path), output="sequence"), TEXTS)
    spec = HuggingFaceTextSpec(model=str(tmp_path), output="sequence", special_tokens=False)
    assert spec.sequence
    for found, row, text in zip(embed(spec, TEXTS), whole, TEXTS, strict=True):
        assert found.shape == (len(text.split()), spec.load().dim)
        np.testing.assert_allclose(found, row[1:-1], atol=1e-5)
    with pytest.raises(pydantic.ValidationError, match="output: sequence"):
        HuggingFaceTextSpec(model=str(tmp_path), special_tokens=False)
    with pytest.raises(pydantic.ValidationError, match="a sequence has none"):
        HuggingFaceTextSpec(model=str(tmp_path), output="sequence", pooling="cls")


def test_states_of_a_sequence_may_be_scaled(tmp_path: Path) -> None:
    gpt2(tmp_path)
    spec = HuggingFaceTextSpec(model=str(tmp_path), output="sequence", normalize=True)
    for states in embed(spec, TEXTS):
        np.testing.assert_allclose(np.linalg.norm(states, axis=1), 1, atol=1e-5)


# ---------------------------------------------------------------- text towers


@pytest.mark.parametrize("tower", [clip, siglip, clap])
def test_the_text_side_of_two_towers_gives_the_space_that_they_share(
    tower: Callable[[Path], None], tmp_path: Path
) -> None:
    from transformers import AutoModel, AutoTokenizer

    tower(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model = AutoModel.from_pretrained(tmp_path).eval()
    expected = []
    for text in TEXTS:
        # SigLIP's own way (model card): all texts at full length, and no mask.
        padding = {"padding": "max_length", "max_length": 24} if tower is siglip else {}
        tokens = tokenizer(text, return_tensors="pt", **padding)
        mask = None if tower is siglip else tokens["attention_mask"]
        with torch.no_grad():
            features = model.get_text_features(tokens["input_ids"], attention_mask=mask)
        expected.append(features.pooler_output[0].numpy())
    spec = HuggingFaceTextSpec(model=str(tmp_path))
    np.testing.assert_allclose(embed(spec, TEXTS), expected, atol=1e-5)
    assert spec.load().dim == (WIDTH if tower is siglip else 12)
    named = spec.model_copy(update={"pooling": "pooler"})
    assert named.choices() == spec.choices()


def test_a_siglip_tokenizer_that_pads_on_the_left_does_so(tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    siglip(tmp_path)
    AutoTokenizer.from_pretrained(tmp_path, padding_side="left").save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokens = tokenizer(TEXTS, padding="max_length", max_length=24, return_tensors="pt")
    model = AutoModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        output = model.get_text_features(tokens["input_ids"])
    spec = HuggingFaceTextSpec(model=str(tmp_path))
    np.testing.assert_allclose(embed(spec, TEXTS), output.pooler_output.numpy(), atol=1e-5)
    sequences = embed(spec.model_copy(update={"output": "sequence"}), TEXTS)
    for found, text, states in zip(sequences, TEXTS, output.last_hidden_state, strict=True):
        expected = states[-(len(text.split()) + 1) :].numpy()
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_towers_are_known_to_transformers() -> None:
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    for name in TEXT_TOWERS:
        model = getattr(transformers, MODEL_MAPPING_NAMES[name])
        assert hasattr(model, "get_text_features"), name


# ---------------------------------------------------------------- lengths, prefixes, tokens


@pytest.mark.parametrize("family", [xlm_roberta, clap])
def test_positions_behind_the_paddings_are_counted(
    family: Callable[[Path], None], tmp_path: Path
) -> None:
    family(tmp_path)
    spec = HuggingFaceTextSpec(model=str(tmp_path))
    assert spec.choices().max_length == 32  # of 34 positions
    long = " ".join(["a"] * 100)
    assert len(spec.load().prepare(long).ids) == 32
    assert np.isfinite(embed(spec, [long])).all()
    with pytest.raises(ValueError, match=r"`max_length` 33 .* 32 tokens"):
        HuggingFaceTextSpec(model=str(tmp_path), max_length=33).fingerprint()


def test_relative_positions_are_no_limit(tmp_path: Path) -> None:
    t5(tmp_path)
    assert HuggingFaceTextSpec(model=str(tmp_path)).choices().max_length == 32


def test_a_prefix_and_a_suffix_stand_around_every_text(tmp_path: Path) -> None:
    llama(tmp_path)
    plain = HuggingFaceTextSpec(model=str(tmp_path), pooling="last")
    framed = HuggingFaceTextSpec(model=str(tmp_path), pooling="last", prefix="q u ", suffix=" </s>")
    expected = embed(plain, [f"q u {text} </s>" for text in TEXTS])
    np.testing.assert_allclose(embed(framed, TEXTS), expected, atol=1e-6)
    assert framed.fingerprint() != plain.fingerprint()


def test_a_text_is_cut_before_its_suffix(tmp_path: Path) -> None:
    llama(tmp_path)
    spec = HuggingFaceTextSpec(
        model=str(tmp_path), max_length=8, prefix="q ", suffix=" x y", pooling="last"
    )
    encoder = spec.load()
    short, long, exact = encoder.prepare_all(["a b", "a b c d e f g h", "a b c d"])
    assert long.truncated and not short.truncated and not exact.truncated
    assert long.ids == exact.ids and len(long.ids) == 8
    assert encoder.counts(long) == {"tokens": 8, "truncated": 1}
    with pytest.raises(ValueError, match="leaves no room"):
        HuggingFaceTextSpec(model=str(tmp_path), max_length=4, prefix="q ", suffix=" x y").load()


def test_a_suffix_survives_the_cutting_of_subwords(minilm: str) -> None:
    spec = HuggingFaceTextSpec(model=minilm, max_length=16, prefix="query: ", suffix=" [MASK]")
    encoder = spec.load()
    plain = HuggingFaceTextSpec(model=minilm, max_length=16).load()
    long = "Unbelievably-antidisestablishmentarian naïve façades, 東京 and internationalisation!"
    tokens = encoder.prepare(long)
    begin, end = encoder.prepare("x").ids[:3], encoder.prepare("x").ids[-2:]
    assert 14 <= len(tokens.ids) <= 16 and tokens.truncated
    assert tokens.ids[:3] == begin and tokens.ids[-2:] == end
    middle = tokens.ids[3:-2]
    assert middle == plain.prepare(long).ids[1 : 1 + len(middle)]


def test_tokens_are_those_of_the_tokenizer(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    for family in FAMILIES:
        folder = tmp_path / family.__name__
        folder.mkdir()
        family(folder)
        encoder = HuggingFaceTextSpec(model=str(folder), max_length=8).load()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        expected = tokenizer(TEXTS, truncation=True, max_length=8)["input_ids"]
        assert [tokens.ids for tokens in encoder.prepare_all(TEXTS)] == expected


def test_a_text_without_tokens_is_refused_among_others(tmp_path: Path) -> None:
    bert(tmp_path)
    encoder = HuggingFaceTextSpec(model=str(tmp_path)).load()
    first, second, third = encoder.prepare_all(["a", "\u2003", "b"])
    assert isinstance(second, ValueError) and "no token" in str(second)
    assert encoder.encode([first, third]).shape == (2, WIDTH)
    with pytest.raises(ValueError, match="no token"):
        encoder.prepare("\u2003")


def test_batches_are_bounded_by_tokens(tmp_path: Path) -> None:
    bert(tmp_path)
    spec = HuggingFaceTextSpec(model=str(tmp_path))
    assert spec.load().budget in (4096, 65536)
    bounded = spec.model_copy(update={"batch_tokens": 100})
    assert bounded.load().budget == 100
    assert bounded.fingerprint() == spec.fingerprint()
