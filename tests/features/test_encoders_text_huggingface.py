"""Hugging Face text models: which files count, what is refused, and sentence-transformers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pydantic
import pytest
import torch

from features.encoder_files import read_files, with_files_here
from features.encoders import EncoderField, parse_encoder
from features.encoders.huggingface_text import HuggingFaceTextSpec
from features.fingerprint import Spec

pytestmark = pytest.mark.usefixtures("one_thread")

SENTENCES = [
    "A cat sits on the mat.",
    "The quick brown fox jumps over the lazy dog, and then it sleeps for the rest of the day.",
    "seven",
    "十二月、東京",
    "Dogs are loyal animals. " * 40,
]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A BERT of random weights with a real tokenizer."""
    return make_tiny_bert(tmp_path / "tiny")


def make_tiny_bert(folder: Path, **options: Any) -> Path:
    from transformers import BertConfig, BertModel, BertTokenizer

    folder.mkdir()
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizer.from_pretrained(folder, model_max_length=64).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        **options,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def tiny_spec(folder: Path, **options: Any) -> HuggingFaceTextSpec:
    return HuggingFaceTextSpec(model=str(folder), **{"max_length": 64} | options)


def embed(spec: Any, texts: list[str]) -> np.ndarray:
    encoder = spec.load()
    rows: np.ndarray = encoder.encode([encoder.prepare(text) for text in texts])
    assert rows.dtype == np.float32
    assert rows.shape == (len(texts), encoder.dim)
    return rows


# ---------------------------------------------------------------- results


def test_minilm_agrees_with_sentence_transformers(minilm: str) -> None:
    from sentence_transformers import SentenceTransformer

    reference = SentenceTransformer(minilm, device="cpu").encode(SENTENCES)
    found = embed(HuggingFaceTextSpec(model=minilm, normalize=True), SENTENCES)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    cosine = (found * reference).sum(axis=1) / np.linalg.norm(reference, axis=1)
    assert (cosine >= 0.999999).all(), cosine


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_text_alone_and_among_longer_ones_is_the_same(tiny: Path, pooling: str) -> None:
    spec = tiny_spec(tiny, pooling=pooling)
    texts = ["a", "cat sat", "x" * 60, "abc " * 9]
    together = embed(spec, texts)
    alone = np.concatenate([embed(spec, [text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 0.01


def test_pooling_is_the_mean_over_tokens_or_the_first_state(tiny: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(tiny)("cat sat", return_tensors="pt")
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(tiny).eval()(**tokens).last_hidden_state[0].numpy()
    mean = embed(tiny_spec(tiny), ["cat sat"])[0]
    np.testing.assert_allclose(mean, hidden.mean(axis=0), atol=1e-5)
    cls = embed(tiny_spec(tiny, pooling="cls"), ["cat sat"])[0]
    np.testing.assert_allclose(cls, hidden[0], atol=1e-5)


def test_text_is_read_up_to_max_length(tiny: Path) -> None:
    spec = tiny_spec(tiny, max_length=6)  # four letters between two special tokens
    rows = embed(spec, ["a b c d", "a b c d e f", "a b c"])
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-6)
    assert np.abs(rows[0] - rows[2]).max() > 0.01
    encoder = spec.load()
    assert [encoder.size(encoder.prepare(text)) for text in ("a b c d e f", "a")] == [6, 3]
    counted = [encoder.counts(encoder.prepare(text)) for text in ("a b c d e", "a b c d")]
    assert counted == [{"tokens": 6, "truncated": 1}, {"tokens": 6, "truncated": 0}]


def test_max_length_beyond_the_model_is_refused(tiny: Path) -> None:
    for use in (HuggingFaceTextSpec.fingerprint, HuggingFaceTextSpec.load):
        with pytest.raises(ValueError, match=r"`max_length` 65 .* 64 tokens"):
            use(tiny_spec(tiny, max_length=65))


def test_threads_may_prepare_at_once(tiny: Path) -> None:
    encoder = tiny_spec(tiny).load()
    texts = [f"{'abc' * (i % 7)} x" for i in range(200)]
    expected = [encoder.prepare(text).ids for text in texts]
    with ThreadPoolExecutor(8) as pool:
        found = [row.ids for row in pool.map(encoder.prepare, texts)]
    assert found == expected


def test_bfloat16_computes_coarsely_and_is_another_encoder(tiny: Path) -> None:
    exact, coarse = tiny_spec(tiny), tiny_spec(tiny, precision="bfloat16")
    a, b = embed(exact, ["cat sat"]), embed(coarse, ["cat sat"])
    assert 0 < np.abs(a - b).max() < coarse.tolerance
    assert exact.fingerprint() != coarse.fingerprint()


def test_decoder_without_a_padding_token(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import GPT2Config, GPT2Model, PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"?": 0, "a": 1, "b": 2}, unk_token="?"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=16).save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=3, n_embd=16, n_layer=1, n_head=2, n_positions=16)
    GPT2Model(config).save_pretrained(tmp_path)
    spec = HuggingFaceTextSpec(model=str(tmp_path), max_length=16)
    together = embed(spec, ["a", "a b b a b"])
    np.testing.assert_allclose(together[0], embed(spec, ["a"])[0], atol=1e-5)


def test_only_the_encoder_of_an_encoder_and_decoder_runs(tmp_path: Path) -> None:
    from transformers import T5Config, T5Model

    folder = make_tiny_bert(tmp_path / "t5")
    torch.manual_seed(0)
    config = T5Config(vocab_size=57, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5Model(config).save_pretrained(folder)
    assert embed(tiny_spec(folder), ["cat"]).shape == (1, 16)


# ---------------------------------------------------------------- identity


def test_a_copy_elsewhere_is_the_same_encoder(tiny: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny, tmp_path / "elsewhere" / "model")
    (copy / "README.md").write_text("a remark")
    config = json.loads((copy / "config.json").read_text())
    config |= {"_name_or_path": "someone/bert", "transformers_version": "4.8.2"}
    (copy / "config.json").write_text(json.dumps(config, indent=7))
    assert tiny_spec(copy).fingerprint() == tiny_spec(tiny).fingerprint()
    assert tiny_spec(tiny, batch_size=3).fingerprint() == tiny_spec(tiny).fingerprint()


def test_it_embeds_the_same_on_a_machine_that_lacks_its_folder(tiny: Path) -> None:
    (tiny / "notes.md").write_text("no part of the model")
    spec = tiny_spec(tiny)
    name, expected = spec.fingerprint(), embed(spec, SENTENCES)
    paths, content = spec.local_files(), read_files(spec)
    assert content.keys() == spec.weights().keys() and "notes.md" not in content
    shutil.rmtree(tiny)
    here = with_files_here(spec, paths=paths, fetch=lambda: content)
    assert here.fingerprint() == name
    np.testing.assert_array_equal(embed(here, SENTENCES), expected)


def test_whatever_changes_the_result_changes_the_fingerprint(tiny: Path, tmp_path: Path) -> None:
    before = tiny_spec(tiny).fingerprint()
    found = {before}
    for i, (name, change) in enumerate(
        {
            "model.safetensors": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
            "config.json": lambda data: data.replace(b'"gelu"', b'"relu"'),
            "tokenizer.json": lambda data: data.replace(
                b'"lowercase": true', b'"lowercase": false'
            ),
        }.items()
    ):
        copy = shutil.copytree(tiny, tmp_path / str(i))
        data = (copy / name).read_bytes()
        assert change(data) != data, name
        (copy / name).write_bytes(change(data))
        found.add(tiny_spec(copy).fingerprint())
    for options in ({"pooling": "cls"}, {"max_length": 8}, {"normalize": True}):
        found.add(tiny_spec(tiny, **options).fingerprint())
    found.add(tiny_spec(tiny, dtype="float32").fingerprint())
    assert len(found) == 8


def test_weights_changed_in_place_are_seen(tiny: Path) -> None:
    before = tiny_spec(tiny).fingerprint()
    weights = tiny / "model.safetensors"
    data = weights.read_bytes()
    status = weights.stat()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert tiny_spec(tiny).fingerprint() != before


def test_all_parts_of_divided_weights_count(tmp_path: Path) -> None:
    from transformers import BertModel

    folder = make_tiny_bert(tmp_path / "whole")
    whole = embed(tiny_spec(folder), ["cat"])
    model = BertModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    parts = sorted(path.name for path in folder.glob("model-*.safetensors"))
    assert len(parts) > 1
    assert {*parts, "model.safetensors.index.json"} <= set(tiny_spec(folder).weights())
    np.testing.assert_array_equal(embed(tiny_spec(folder), ["cat"]), whole)
    (folder / parts[1]).unlink()
    with pytest.raises(ValueError, match=parts[1]):
        tiny_spec(folder).fingerprint()


def test_fingerprint_of_a_model_imports_no_model_library(tiny: Path) -> None:
    program = (
        "import sys\n"
        "from features.encoders.huggingface_text import HuggingFaceTextSpec\n"
        f"print(HuggingFaceTextSpec(model={str(tiny)!r}, max_length=64).fingerprint())\n"
        "print(*({'torch', 'transformers', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == [tiny_spec(tiny).fingerprint()], done.stderr


# ---------------------------------------------------------------- refusals


def test_a_model_of_the_hub_has_to_be_pinned() -> None:
    commit = "c9745ed1d9f207416be6d2e6f8de32d1f16199bf"
    name = "sentence-transformers/all-MiniLM-L6-v2"
    assert HuggingFaceTextSpec(model=name, revision=commit).revision == commit
    for revision in (None, "main", commit[:7]):
        with pytest.raises(pydantic.ValidationError, match="pin the commit"):
            HuggingFaceTextSpec(model=name, revision=revision)


def test_a_revision_of_a_folder_is_refused(tiny: Path) -> None:
    with pytest.raises(pydantic.ValidationError, match="leave it out"):
        HuggingFaceTextSpec(model=str(tiny), revision="0" * 40)


def test_a_relative_folder_starts_from_the_configuration(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Holder(Spec):
        encoder: EncoderField

    value = {"type": "huggingface_text", "model": "./tiny", "max_length": 64}
    held = Holder.model_validate({"encoder": value}, context={"folder": str(tiny.parent)})
    assert held.encoder.model == str(tiny)  # type: ignore[attr-defined]
    monkeypatch.chdir(tiny.parent)
    assert parse_encoder(value | {"model": "tiny"}).fingerprint() == tiny_spec(tiny).fingerprint()


def test_a_model_in_the_hubs_cache_is_found_without_the_network(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    commit = "1" * 40
    shutil.copytree(tiny, tmp_path / "models--someone--tiny" / "snapshots" / commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    spec = HuggingFaceTextSpec(model="someone/tiny", revision=commit)
    with pytest.raises(ValueError, match=r"says whether .*modules\.json.* set `pooling`"):
        spec.fingerprint()
    known_absent = tmp_path / "models--someone--tiny" / ".no_exist" / commit
    known_absent.mkdir(parents=True)
    for name in ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
        (known_absent / name).touch()
    assert spec.fingerprint() == tiny_spec(tiny).fingerprint()
    np.testing.assert_array_equal(embed(spec, ["cat"]), embed(tiny_spec(tiny), ["cat"]))


def test_a_model_that_the_hub_does_not_have_is_a_configuration_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    def snapshot_download(*args: Any, local_files_only: bool, **options: Any) -> str:
        if local_files_only:
            raise LocalEntryNotFoundError("not cached")
        answer: Any = SimpleNamespace(headers={}, request=None, status_code=404)
        raise RepositoryNotFoundError("no such repository", response=answer)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(ValueError, match=r"no model 'someone/tiny' .*HF_TOKEN"):
        HuggingFaceTextSpec(model="someone/tiny", revision="2" * 40).fingerprint()


def test_pickled_weights_need_permission(tiny: Path) -> None:
    from safetensors.torch import load_file

    expected = embed(tiny_spec(tiny), ["cat"])
    torch.save(load_file(tiny / "model.safetensors"), tiny / "pytorch_model.bin")
    (tiny / "model.safetensors").unlink()
    for use in (HuggingFaceTextSpec.fingerprint, HuggingFaceTextSpec.load):
        with pytest.raises(ValueError, match="allow_pickle"):
            use(tiny_spec(tiny))
    allowed = tiny_spec(tiny, allow_pickle=True)
    assert "pytorch_model.bin" in allowed.weights()
    np.testing.assert_array_equal(embed(allowed, ["cat"]), expected)


def test_code_beside_the_model_is_not_run_unasked(tiny: Path, tmp_path: Path) -> None:
    flag = tmp_path / "ran"
    (tiny / "own.py").write_text(
        f"open({str(flag)!r}, 'w').close()\nfrom transformers import BertModel as OwnModel\n"
        "from transformers import BertConfig as OwnConfig\n"
    )
    config = json.loads((tiny / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "own.OwnModel", "AutoConfig": "own.OwnConfig"}
    config["model_type"] = "nothing_known"
    (tiny / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="trust_remote_code"):
        tiny_spec(tiny).load()
    assert not flag.exists()
    trusting = tiny_spec(tiny, trust_remote_code=True)
    assert "own.py" in trusting.weights()
    config["auto_map"]["AutoModel"] = "someone/else--own.OwnModel"
    (tiny / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="another repository"):
        trusting.fingerprint()


def test_weights_that_lack_a_tensor_are_not_filled_with_random_numbers(tiny: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(tiny / "model.safetensors")
    weights = {name: value for name, value in weights.items() if "pooler" not in name}
    save_file(weights, tiny / "model.safetensors", metadata={"format": "pt"})
    tiny_spec(tiny).load()  # a mean needs no pooler
    weights.pop("encoder.layer.1.output.dense.weight")
    save_file(weights, tiny / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lack 1 .*encoder\.layer\.1\.output\.dense\.weight"):
        tiny_spec(tiny).load()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_folder_without_its_files_is_refused(tiny: Path, name: str) -> None:
    (tiny / name).unlink()
    with pytest.raises(ValueError, match=name):
        tiny_spec(tiny).fingerprint()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no folder"):
        HuggingFaceTextSpec(model=str(tmp_path / "gone")).fingerprint()


def test_loading_says_nothing(tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    embed(tiny_spec(tiny), ["cat"])
    assert capfd.readouterr() == ("", "")
