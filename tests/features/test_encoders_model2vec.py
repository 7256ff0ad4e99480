"""Folders of model2vec: against what model2vec's own package makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from features.encoders.conformance import check_encoder
from features.encoders.model2vec import Model2VecSpec

VOCABULARY = ["[PAD]", "[UNK]", "the", "cat", "sat", "##s", "mat", "sev", "##en"]
TEXTS = ["The cat sat.", "cats", "seven mats the mat", "the " * 20 + "cat", "Cat dog sat"]

PLAIN = [
    [1.375, 0.53125, 0.03125, -0.9375], [-0.78125, -1.84375, -1.71875, -1.9375],
    [-1.3125, 1.25, 0.59375, 1.625], [0.0, 0.40625, 1.875, 0.90625],
    [0.5, 0.15625, 0.21875, 1.71875], [-0.90625, 1.25, 0.65625, -2.0],
    [-0.4375, 1.40625, 0.1875, -1.875], [1.03125, 0.90625, 1.375, -1.3125],
    [-1.65625, 1.4375, -1.9375, 0.15625],
]  # fmt: skip
QUANTISED = [
    [-1.6875, -0.8125, -0.09375, -0.3125], [-0.40625, -1.90625, -2.0, -1.53125],
    [-1.96875, 0.65625, 0.09375, 0.5625], [-1.0, 0.4375, 1.03125, -0.46875],
]  # fmt: skip
WEIGHTS = [0, 0, 0.1, 2, 1, 0.5, 1.5, 1, 0.25]
MAPPING = [0, 0, 1, 2, 3, 0, 1, 2, 3]
SMALL = [
    [-10, 126, 77, 122], [-31, 47, 114, 38], [86, 47, 51, -29], [95, -93, 20, 56],
    [87, 6, -32, -49], [-20, -4, 55, 98], [-109, 110, 7, -37], [43, 18, -63, -46],
    [55, 23, 1, -42],
]  # fmt: skip

# What model2vec 0.10.0 gives:
#
#     tokenizer = wordpiece()
#     StaticModel(np.float32(PLAIN), tokenizer, normalize=True)
#     StaticModel(np.float16(QUANTISED), tokenizer, weights=np.float32(WEIGHTS),
#                 token_mapping=np.array(MAPPING), max_length=6)
#     StaticModel(np.int8(SMALL), tokenizer)
#
# each saved by save_pretrained, loaded by from_pretrained, and asked by encode(TEXTS).
OF_PLAIN = [
    [-0.1502815, 0.3352433, 0.4970849, 0.7860878], [-0.2711821, 0.4956086, 0.7574395, -0.3272887],
    [-0.3691756, 0.7600673, 0.1054787, -0.5242913], [-0.5109306, 0.4945078, 0.2676303, 0.65022],
    [0.1453045, 0.1634676, 0.6084626, 0.7628487],
]  # fmt: skip
OF_PLAIN_CUT_TO_3 = [
    [-0.3186302, 0.4020809, 0.5993281, 0.614501], [-0.2711821, 0.4956086, 0.7574395, -0.3272887],
    [-0.2145676, 0.7572976, -0.0757298, -0.6121488], [-0.5238146, 0.498871, 0.2369637, 0.6485323],
    [0.0, 0.1914665, 0.8836917, 0.4271177],
]  # fmt: skip
OF_QUANTISED = [
    [-1.6591796875, 0.52001953125, 0.339599609375, 0.167724609375],
    [-2.390625, 0.453125, 0.0703125, 0.484375],
    [-0.72021484375, -0.9248046875, -0.982421875, -0.7431640625],
    [-0.040618896484375, -0.190673828125, -0.199951171875, -0.153076171875],
    [-2.46875, 0.875, 0.609375, 0.328125],
]
OF_SMALL = [
    [89.33333587646484, -13.333333015441895, 13.0, -7.333333492279053], [37.5, -48.5, 37.5, 77.0],
    [-9.0, 50.66666793823242, 9.666666984558105, -15.5],
    [86.42857360839844, 40.33333206176758, 49.52381134033203, -24.952381134033203],
    [91.0, -43.5, -6.0, 3.5],
]  # fmt: skip


def wordpiece() -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    vocabulary = {token: place for place, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def save(folder: Path, *, tokenizer: Any = None, config: Any = None, **tensors: Any) -> str:
    """The files that save_pretrained writes, as far as they matter."""
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (tokenizer or wordpiece()).save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(config or {}))
    return str(folder)


def save_plain(folder: Path, **config: Any) -> str:
    return save(folder, config={"normalize": True} | config, embeddings=np.float32(PLAIN))


def save_quantised(folder: Path) -> str:
    return save(
        folder,
        config={"normalize": False, "max_length": 6, "vocabulary_quantization": 4},
        embeddings=np.float16(QUANTISED),
        weights=np.float32(WEIGHTS),
        mapping=np.array(MAPPING),
    )


def embed(spec: Model2VecSpec, texts: list[str]) -> np.ndarray:
    encoder: Any = spec.load()
    rows = encoder.encode(encoder.prepare_all(texts))
    assert rows.dtype == np.float32
    assert encoder.dim == rows.shape[1]
    return np.asarray(rows)


def test_it_gives_what_model2vec_gives(tmp_path: Path) -> None:
    spec = Model2VecSpec(model=save_plain(tmp_path))
    np.testing.assert_allclose(embed(spec, TEXTS), OF_PLAIN, atol=1e-6)
    cut = spec.model_copy(update={"max_length": 3})
    np.testing.assert_allclose(embed(cut, TEXTS), OF_PLAIN_CUT_TO_3, atol=1e-6)
    unscaled = embed(spec.model_copy(update={"normalize": False}), ["cats"])
    np.testing.assert_allclose(unscaled[0], np.mean([PLAIN[3], PLAIN[5]], axis=0))


def test_a_quantised_vocabulary_gives_what_model2vec_gives(tmp_path: Path) -> None:
    rows = embed(Model2VecSpec(model=save_quantised(tmp_path)), TEXTS)
    np.testing.assert_allclose(rows, OF_QUANTISED, rtol=2e-3)  # those are float16


def test_small_integers_give_what_model2vec_gives(tmp_path: Path) -> None:
    spec = Model2VecSpec(model=save(tmp_path, embeddings=np.int8(SMALL)))
    np.testing.assert_allclose(embed(spec, TEXTS), OF_SMALL, rtol=1e-6)


def test_a_unigram_tokenizer_leaves_out_what_it_does_not_know(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    pieces = [("<unk>", 0.0), ("▁the", -1.0), ("▁cat", -2.0), ("s", -2.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, 0, False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    folder = save(tmp_path, tokenizer=tokenizer, embeddings=np.float32(PLAIN[:4]))
    # model2vec 0.10.0, encode(["the cats xyz"])
    expected = [-0.6979166865348816, -0.0625, 0.25, 0.1979166716337204]
    rows = embed(Model2VecSpec(model=folder), ["the cats xyz"])
    np.testing.assert_allclose(rows[0], expected, atol=1e-6)


def test_what_is_read_is_counted_and_what_is_unknown_has_no_embedding(tmp_path: Path) -> None:
    encoder: Any = Model2VecSpec(model=save_plain(tmp_path), max_length=4).load()
    found = encoder.prepare_all(["the cat dog", "the cat sat the cat", "the" + " " * 99, "dog", ""])
    assert [encoder.counts(item) for item in found[:3]] == [
        {"tokens": 2, "truncated": 0},
        {"tokens": 3, "truncated": 1},  # cut to 12 letters first, as tokens have 3 or so
        {"tokens": 1, "truncated": 1},
    ]
    assert [str(item) for item in found[3:]] == ["the tokenizer knows no token of the text"] * 2


def test_identity_is_content_and_what_is_taken_of_the_configuration(tmp_path: Path) -> None:
    one = Model2VecSpec(model=save_plain(tmp_path / "a"))
    # A name of no effect, and what would be taken anyway.
    named = Model2VecSpec(model=save_plain(tmp_path / "b", tokenizer_name="x", max_length=512))
    assert one.fingerprint() == named.fingerprint()
    assert one.model_copy(update={"normalize": True}).fingerprint() == one.fingerprint()
    assert one.model_copy(update={"normalize": False}).fingerprint() != one.fingerprint()
    assert one.model_copy(update={"max_length": 9}).fingerprint() != one.fingerprint()
    other = save(tmp_path / "c", config={"normalize": True}, embeddings=np.float32(PLAIN[::-1]))
    assert Model2VecSpec(model=other).fingerprint() != one.fingerprint()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"embedding.weight": np.float32(PLAIN)}, "holds embedding.weight; model2vec has"),
        ({"embeddings": np.float32(PLAIN[:-1])}, "8 vectors, which do not fit 9 tokens"),
        (
            {"embeddings": np.float32(QUANTISED[:3]), "mapping": np.array(MAPPING)},
            "3 vectors, which do not fit",
        ),
        (
            {"embeddings": np.float32(PLAIN), "weights": np.float32([1.0])},
            r"`weights` is of shape \(1,\) for 9 tokens",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    tensors: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        Model2VecSpec(model=save(tmp_path, **tensors)).load()


def test_a_folder_without_its_files_is_refused(tmp_path: Path) -> None:
    folder = save_plain(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"has no tokenizer\.json"):
        Model2VecSpec(model=folder).fingerprint()
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        Model2VecSpec(model=folder).load()


def test_damaged_tensors_are_refused(tmp_path: Path) -> None:
    folder = save_plain(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read"):
        Model2VecSpec(model=folder).load()


@pytest.mark.parametrize("save", [save_plain, save_quantised])
def test_it_conforms(save: Any, tmp_path: Path) -> None:
    spec = Model2VecSpec(model=save(tmp_path))
    found = check_encoder(spec, payloads=["the cat", "sat mats", "seven", "dog cat", "the " * 600])
    assert [f"{item.check}: {item.problem}" for item in found if not item.passed] == []
