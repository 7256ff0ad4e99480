"""Stage 1 as a person sees it: what is said before work begins, and sequences."""

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

from features.storage import open_storage
from features.store import Store
from features.stored_embeddings import read_embeddings
from tests.features.vision_models import save_vit
from tests.workflows.command import sensorium
from workflows.cluster import Connection
from workflows.embed import embed
from workflows.pipeline import load_pipeline

PIPELINE = """\
name: words
dataset: {path: words.parquet, split: split}
features:
  text: {column: text, encoder: {type: hashing, dim: 8}}
  signal: {column: signal, encoder: {type: series, channels: 1, scaling: none, output: sequence}}
task: {target: label}
candidates:
  - {type: single, modality: text, width: 4}
  - {type: early, width: 4}
training: {max_epochs: 1, batch_size: 8}
"""

IN_VAIN = "features.signal.encoder.output: gives a sequence of embeddings"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    rows = {
        "sample_id": [f"w{i}" for i in range(24)],
        "text": [f"text {i}" for i in range(24)],
        "signal": [np.arange(2.0 + i).tolist() for i in range(24)],
        "photo": ["none.png"] * 24,
        "label": [i % 3 for i in range(24)],
        "split": [["train", "train", "validation", "test"][i % 4] for i in range(24)],
    }
    pd.DataFrame(rows).to_parquet(tmp_path / "words.parquet")
    (tmp_path / "words.yaml").write_text(PIPELINE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rewrite(folder, old, new):
    text = (folder / "words.yaml").read_text()
    assert old in text
    (folder / "words.yaml").write_text(text.replace(old, new))


def test_sequences_are_refused_for_training_before_any_work(folder, capsys):
    for command in ("run", "plan"):
        code, _, err = sensorium(capsys, command, "words.yaml")
        said = err.replace("\n", " ")
        assert code == 2
        assert f"words.yaml:5: {IN_VAIN}" in said
        assert "the candidate 'early' takes one embedding a sample" in said
        assert "set `output: statistics` or `output: spectrum`" in said
        assert "name the candidate's `modalities` without 'signal'" in said
    assert not (folder / "store").exists()
    rewrite(folder, "type: early", "type: early, modalities: [text, signal]")
    assert sensorium(capsys, "run", "words.yaml")[0] == 2


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_sequences_are_embedded_and_others_trained_on(folder, capsys):
    pipeline = load_pipeline(folder / "words.yaml")
    with Connection() as connection:
        made = embed(pipeline, connection=connection, console=Console(quiet=True))
    found = read_embeddings(
        Store(open_storage(pipeline.store_root)), made.snapshot, modality="signal"
    )
    assert found.lengths is not None
    assert found.lengths.tolist() == list(range(2, 26))
    code, _, err = sensorium(capsys, "train", "words.yaml")
    assert code == 2
    assert IN_VAIN in err.replace("\n", " ")
    rewrite(folder, "  - {type: early, width: 4}\n", "")
    code, out, err = sensorium(capsys, "plan", "words.yaml")
    assert (code, err) == (0, "")
    assert "1 candidate, 1 to fit: single" in out or "1 to fit: text" in out
    # What is amiss in labels and splits is told though they embed nothing again; and told once.
    table = pd.read_parquet(folder / "words.parquet")
    table.loc[table["split"] == "test", "label"] = 7
    table.to_parquet(folder / "words.parquet")
    for told in (True, False):
        code, out, _ = sensorium(capsys, "embed", "words.yaml")
        assert code == 0 and "nothing to do: every embedding is in the store" in out
        assert ("warning  label: no training row is of the class 7" in out) is told


def with_photos(folder, **options):
    save_vit(folder / "vit")
    given = ", ".join(f"{name}: {value}" for name, value in options.items())
    encoder = f"{{type: huggingface_image, model: ./vit, {given}}}"
    rewrite(folder, "  signal:", f"  photo: {{column: photo, encoder: {encoder}}}\n  signal:")
    rewrite(folder, "scaling: none, output: sequence", "output: statistics")


@pytest.mark.parametrize(
    ("able", "precision", "said"),
    [
        ({"avx2": True}, "bfloat16", True),
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, "bfloat16", True),
        ({"avx2": True, "avx512_bf16": True}, "bfloat16", False),
        ({"amx_bf16": True}, "bfloat16", False),
        ({"neon": True, "bf16": True}, "bfloat16", False),
        ({"avx2": True}, "float32", False),
    ],
)
def test_bfloat16_is_warned_of_where_the_cpu_imitates_it(
    able, precision, said, folder, capsys, monkeypatch
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with_photos(folder, precision=precision)
    code, out, _ = sensorium(capsys, "plan", "words.yaml")
    assert code == 0
    assert out.count("warning") == said
    if said:
        (line,) = [line for line in out.splitlines() if "warning" in line]
        assert "photo: `precision: bfloat16` is slow on this machine" in line
        assert "`precision: float32` would be about 5 times faster" in line


def test_bfloat16_is_not_warned_of_where_others_do_the_work(folder, capsys, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    with_photos(folder, precision="bfloat16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "warning" not in sensorium(capsys, "plan", "words.yaml")[1]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "warning" in sensorium(capsys, "plan", "words.yaml")[1]
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    assert "warning" not in sensorium(capsys, "plan", "words.yaml")[1]
