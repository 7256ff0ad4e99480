"""Stage 1 as a person sees it: what is said before work begins, and sequences."""

import numpy as np
import pandas as pd
import pytest
import torch

from features.storage import open_storage
from features.store import Store
from features.stored_embeddings import read_embeddings
from tests.features.vision_models import save_vit
from tests.workflows.command import sensorium
from tests.workflows.in_process import without_ray
from training.candidate import read_predictions
from workflows import tracking
from workflows.pipeline import load_pipeline
from workflows.promotion.answers import Champion
from workflows.scoring import loaded
from workflows.search import standing
from workflows.train import last_snapshot

PIPELINE = """\
name: words
dataset: {path: words.parquet, split: split}
features:
  text: {column: text, encoder: {type: hashing, dim: 8}}
  signal: {column: signal, encoder: {type: series, channels: 1, scaling: none, output: sequence}}
task: {target: label}
candidates:
  - {type: early, width: 4}
training: {max_epochs: 1, batch_size: 8}
"""


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


def test_sequences_are_embedded_trained_on_and_scored(folder, capsys, monkeypatch):
    without_ray(monkeypatch)
    code, out, err = sensorium(capsys, "run", "words.yaml")
    assert code == 0, out + err
    pipeline = load_pipeline(folder / "words.yaml")
    snapshot = last_snapshot(pipeline)
    store = Store(open_storage(pipeline.store_root))
    found = read_embeddings(store, snapshot, modality="signal")
    assert found.lengths is not None
    assert found.lengths.tolist() == list(range(2, 26))
    (record,) = [c.record for c in standing(pipeline, snapshot=snapshot).candidates]
    assert record.modalities["signal"]["sequence"]
    answers = read_predictions(store, record.fingerprint).to_pandas().sort_values("row")
    rows = pd.read_parquet("words.parquet").iloc[answers.row]
    with tracking.connected(pipeline.tracking_uri), loaded("models:/words@champion", base=".") as m:
        scored = m.predict(rows[["text", "signal"]])
        stored = np.stack(answers.probabilities)
        np.testing.assert_allclose(np.stack(scored.probabilities), stored, atol=1e-5)
        without = m.predict(rows[["text"]])
        expected = np.stack(answers["without.signal"])
        np.testing.assert_allclose(np.stack(without.probabilities), expected, atol=1e-5)
        assert without.missing.tolist() == [["signal"]] * len(rows)
        champion = Champion(
            m,
            store=store,
            snapshot=snapshot,
            columns={n: f.payload_columns for n, f in pipeline.spec.features.items()},
            rows=answers.row.to_numpy(),
            raw_rows=_never,
            names=tuple(record.classes),
        )
        frozen, alone = champion.answers(), champion.answers(alone=["text"])
    np.testing.assert_allclose(frozen.answers, stored, atol=1e-5)
    np.testing.assert_allclose(alone.answers, expected, atol=1e-5)


def _never(_: np.ndarray) -> pd.DataFrame:
    raise AssertionError("the store has all embeddings")


def test_what_is_amiss_in_labels_is_told_once_though_it_embeds_nothing(folder, capsys, monkeypatch):
    without_ray(monkeypatch)
    assert sensorium(capsys, "embed", "words.yaml")[0] == 0
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
