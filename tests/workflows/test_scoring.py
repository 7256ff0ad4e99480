"""The registered model: raw rows in any form, any modality missing, the right encoders only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from features.stored_embeddings import read_embeddings
from training.candidate import parse_record, read_predictions
from workflows import scoring, tracking
from workflows.serving import said

ROOT = Path(__file__).resolve().parents[2]
Shapes = Any
"""What the fixture `fitted_shapes` gives; see conftest.py."""


@pytest.fixture
def model(
    champion_uri: str, fitted_shapes: Shapes, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """The champion as anyone loads it, with the table's folder as working directory."""
    import mlflow

    monkeypatch.chdir(fitted_shapes.folder)
    with tracking.connected(champion_uri):
        yield mlflow.pyfunc.load_model("models:/shapes@champion")


@pytest.fixture
def raw(fitted_shapes: Shapes) -> pd.DataFrame:
    """The test rows of the table that have labels, with the columns that the model takes."""
    table = fitted_shapes.table()
    chosen = table[(table.split == "test") & table["shape"].notna()]
    return chosen[["text", "picture"]]


def stored(shapes: Shapes) -> tuple[np.ndarray, np.ndarray]:
    """The pipeline's own answers to the test rows: probabilities, and classes."""
    record = next(record for record in shapes.records if record.name == "early")
    table = read_predictions(shapes.store, record.fingerprint).to_pandas()
    table = table[table.split == "test"].sort_values("row")
    probabilities = np.stack(table.probabilities.to_list())
    return probabilities, np.array(record.classes)[probabilities.argmax(1)]


def same(left: pd.DataFrame, right: pd.DataFrame) -> bool:
    """Whether two have the same answers, and none in the same rows."""
    known = left.probabilities.notna()
    return (right.probabilities.notna().to_numpy() == known.to_numpy()).all() and np.allclose(
        *(np.stack(answers.probabilities[known.to_numpy()].to_list()) for answers in (left, right)),
        atol=1e-6,
    )


def test_its_answers_are_those_of_the_pipeline(
    model: Any, raw: pd.DataFrame, fitted_shapes: Shapes
) -> None:
    answers = model.predict(raw)
    probabilities, classes = stored(fitted_shapes)
    assert answers.index.tolist() == raw.index.tolist()
    # Of a row of which nothing is known the pipeline counts what the model would guess.
    known = answers.prediction.notna().to_numpy()
    assert (~known).sum() == (answers.missing.map(len) == 2).sum() < 5
    answers, probabilities = answers[known], probabilities[known]
    assert answers.prediction.tolist() == classes[known].tolist()
    assert all(isinstance(label, int) for label in answers.prediction.tolist())
    np.testing.assert_allclose(np.stack(answers.probabilities.to_list()), probabilities, atol=1e-5)
    np.testing.assert_allclose(answers.confidence.astype(float), probabilities.max(1), atol=1e-5)


def test_a_bare_process_elsewhere_gets_the_same(
    champion_uri: str, raw: pd.DataFrame, fitted_shapes: Shapes, tmp_path: Path
) -> None:
    table = raw.head(12)
    folder = fitted_shapes.folder
    absolute = table.assign(
        picture=table.picture.map(lambda p: str(folder / p), na_action="ignore")
    )
    absolute.to_json(tmp_path / "rows.json", orient="split")
    code = f"""
import mlflow, pandas
mlflow.set_tracking_uri({champion_uri!r})
rows = pandas.read_json("rows.json", orient="split")
answers = mlflow.pyfunc.load_model("models:/shapes@champion").predict(rows)
without = mlflow.pyfunc.load_model("models:/shapes@champion").predict(rows[["text"]])
print(answers.prediction.tolist() + [len(without)])
"""
    # An editable install may not be there in a checkout's own tests.
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    _, classes = stored(fitted_shapes)
    assert json.loads(done.stdout.strip().splitlines()[-1]) == [*classes[:12].tolist(), 12]


def test_paths_uris_and_bytes_are_one_and_the_same(
    model: Any, raw: pd.DataFrame, fitted_shapes: Shapes
) -> None:
    there = raw[raw.picture.notna()].drop(index=200, errors="ignore").head(20)
    folder = fitted_shapes.folder
    expected = model.predict(there)
    forms = {
        "absolute": [str(folder / p) for p in there.picture],
        "uri": [(folder / p).as_uri() for p in there.picture],
        "bytes": [(folder / p).read_bytes() for p in there.picture],
        "bytearray": [bytearray((folder / p).read_bytes()) for p in there.picture],
    }
    for name, values in forms.items():
        assert same(model.predict(there.assign(picture=values)), expected), name
    mixed = [forms[name][i] for i, name in enumerate(["absolute", "bytes"] * 10)]
    assert same(model.predict(there.assign(picture=mixed)), expected)


def test_relative_paths_start_from_the_base_that_is_given(
    model: Any,
    raw: pd.DataFrame,
    fitted_shapes: Shapes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = model.predict(raw)
    monkeypatch.chdir(tmp_path)
    lost = model.predict(raw)
    assert lost.missing.map(lambda names: "photo" in names).all(), "no picture is below here"
    assert same(model.predict(raw, params={"base": str(fitted_shapes.folder)}), expected)


@pytest.mark.parametrize("absent", ["column", "None", "NaN", "NA", "float column"])
def test_a_missing_modality_is_missing_in_every_way_it_can_be(
    absent: str, model: Any, raw: pd.DataFrame
) -> None:
    rows = raw[raw.text.notna()].head(10)
    without = model.predict(rows[["text"]])
    given = {
        "column": rows[["text"]],
        "None": rows.assign(picture=pd.Series([None] * 10, index=rows.index, dtype=object)),
        "NaN": rows.assign(picture=pd.Series([np.nan] * 10, index=rows.index, dtype=object)),
        "NA": rows.assign(picture=pd.Series([None] * 10, index=rows.index, dtype="string")),
        "float column": rows.assign(picture=np.nan),
    }[absent]
    answers = model.predict(given)
    assert same(answers, without)
    assert answers.missing.tolist() == [["photo"]] * 10
    assert answers.problems.tolist() == [None] * 10
    assert not same(model.predict(rows), without), "the picture counts where it is there"


def test_a_row_of_which_nothing_is_known_has_no_answer_and_takes_none_from_the_others(
    model: Any, raw: pd.DataFrame
) -> None:
    there = raw[raw.text.notna() & raw.picture.notna()].head(1)
    nothing = pd.DataFrame({"text": [None, "  "], "picture": [None, None]}, index=[7, 8])
    answers = model.predict(pd.concat([there, nothing]))
    assert answers.prediction.tolist()[1:] == [None, None]
    assert answers.prediction.iloc[0] == model.predict(there).prediction.iloc[0]
    assert isinstance(answers.prediction.iloc[0], int), "whole numbers stay whole"
    assert answers.probabilities.tolist()[1:] == [None, None]
    assert answers.missing.tolist()[1:] == [["caption", "photo"]] * 2
    assert answers.problems.tolist()[0] is None
    assert answers.problems.tolist()[1] == "no payload is there"
    assert answers.problems.tolist()[2].startswith("caption: ")


def test_a_broken_payload_is_missing_and_said_so(
    model: Any, raw: pd.DataFrame, fitted_shapes: Shapes
) -> None:
    rows = raw[raw.text.notna() & raw.picture.notna()].drop(index=200, errors="ignore").head(5)
    whole = (fitted_shapes.folder / rows.picture.iloc[0]).read_bytes()
    broken = rows.assign(
        picture=[whole, whole[: len(whole) // 2], b"", "pictures/none.png", b"no image"],
        text=["a flat bar", "a flat bar", "a flat bar", "a flat bar", "  "],
    )
    answers = model.predict(broken)
    without = model.predict(broken[["text"]])
    assert answers.problems[rows.index[0]] is None
    assert answers.missing.tolist() == [[], *[["photo"]] * 3, ["caption", "photo"]]
    assert same(answers.iloc[1:], without.iloc[1:])
    said = answers.problems.tolist()
    assert all(text.startswith("photo: ") for text in said[1:4])
    assert "caption: " in said[4] and "photo: " in said[4], "both are told"


def test_a_row_that_the_encoder_fails_for_costs_no_other_row_its_answer(
    model: Any, raw: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    from features.encoders.text import HashingSpec

    rows = raw[raw.text.notna() & raw.picture.notna()].drop(index=200, errors="ignore").head(6)
    broken = rows.assign(text=[*rows.text[:3], "cursed", *rows.text[4:]])
    load = HashingSpec.load

    def cursed(spec: HashingSpec) -> Any:
        encoder = load(spec)
        encode = encoder.encode

        def encode_but_one(prepared: list[str]) -> np.ndarray:
            if "cursed" in prepared:
                raise RuntimeError("no luck with this one")
            return encode(prepared)

        monkeypatch.setattr(encoder, "encode", encode_but_one)
        return encoder

    monkeypatch.setattr(HashingSpec, "load", cursed)
    answers = model.predict(broken)
    assert same(answers, model.predict(rows.assign(text=broken.text.replace("cursed", None))))
    assert answers.missing.tolist() == [[], [], [], ["caption"], [], []]
    said = answers.problems.tolist()
    assert said == [*[None] * 3, "caption: RuntimeError: no luck with this one", *[None] * 2]
    alone = model.predict(broken.iloc[[3, 3]])
    assert alone.missing.tolist() == [["caption"]] * 2, "it has encoded others before"


def test_more_rows_than_a_window_keep_their_order(model: Any, raw: pd.DataFrame) -> None:
    rows = raw.head(40)
    expected = model.predict(rows)
    count = scoring.WINDOW_ROWS // 40 + 2
    answers = model.predict(pd.concat([rows] * count))
    assert len(answers) == 40 * count > scoring.WINDOW_ROWS
    assert same(answers, pd.concat([expected] * count))
    assert answers.index.tolist() == rows.index.tolist() * count


def test_no_rows_have_no_answers(model: Any) -> None:
    answers = model.predict(pd.DataFrame({"text": pd.Series([], dtype=object)}))
    assert len(answers) == 0
    assert list(answers.columns) == [
        "prediction", "confidence", "probabilities", "missing", "problems",
    ]  # fmt: skip


def test_a_table_that_is_not_for_this_model_is_refused(model: Any) -> None:
    with pytest.raises(ValueError, match=r"none of the model's columns: picture, text"):
        model.predict(pd.DataFrame({"body": ["a flat bar"]}))
    with pytest.raises(ValueError, match=r"column 'text', row 1: it holds a int; a payload is te"):
        model.predict(pd.DataFrame({"text": ["a flat bar", 7]}))


def test_an_encoder_that_has_changed_is_refused(
    model: Any, raw: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    from features.encoders.image import HogSpec

    monkeypatch.setattr(HogSpec, "version", HogSpec.version + 1)
    with pytest.raises(scoring.EncoderMismatch, match=r"'photo'.*fitted to .*embed and train"):
        model.predict(raw)
    answers = model.predict(raw[["text"]])
    assert len(answers) == len(raw), "an encoder that is not needed is not asked"


def test_the_model_holds_no_pickle_and_names_what_it_needs(model: Any, champion_uri: str) -> None:
    import mlflow

    folder = Path(mlflow.artifacts.download_artifacts("models:/shapes@champion"))
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert not [name for name in names if name.endswith((".pkl", ".pt", ".pth", ".bin"))]
    record = parse_record((folder / "artifacts/candidate/record.json").read_bytes())
    assert {f"artifacts/candidate/{record.files['model']}", "artifacts/inputs.json"} <= names
    assert (folder / "model.py").read_text() == scoring.CODE
    required = (folder / "requirements.txt").read_text().split()
    assert all("==" in line and "+" not in line for line in required)
    assert {line.partition("==")[0] for line in required} >= {"torch", "mlflow", "scikit-image"}

    inputs = json.loads((folder / "artifacts" / "inputs.json").read_text())
    assert inputs["photo"]["columns"]["columns"] == ["picture"]
    assert inputs["photo"]["encoder"]["type"] == "hog"
    schema = model.metadata.get_input_schema()
    assert schema.required_input_names() == []
    assert set(schema.input_names()) == {"text", "picture"}


def test_embeddings_are_rounded_as_the_store_rounds_them(
    champion_uri: str, fitted_shapes: Shapes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, for encoders whose rows do not depend on their neighbours."""
    seen: dict[str, np.ndarray] = {}

    def watched(model: Any, *, embeddings: Any, presence: Any, **_: Any) -> Any:
        seen.update({name: values[presence[name]] for name, values in embeddings.items()})
        return np.full((len(presence["photo"]), 3), 1 / 3)

    monkeypatch.setattr(said, "predict", watched)
    with (
        tracking.connected(champion_uri),
        scoring.loaded("models:/shapes@champion", base=str(fitted_shapes.folder)) as model,
    ):
        model.predict(fitted_shapes.table())
    for name in ("caption", "photo"):
        held = read_embeddings(fitted_shapes.store, fitted_shapes.snapshot, modality=name)
        assert held.values.dtype == np.float16
        assert np.array_equal(seen[name], held.values.astype(np.float32))
