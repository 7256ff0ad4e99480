"""`sensorium search`: the nearest samples in an aligned model's space, by an index in the store."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from sklearn.neighbors import NearestNeighbors

from benchmarks.without_ray import embedded, fitted
from features.storage import LocalStorage
from features.store import Store
from tests.workflows.command import sensorium
from workflows import tracking
from workflows.pipeline import Pipeline, load_pipeline
from workflows.promotion import promote as promoting
from workflows.space import cells, found, index, parts, recall, searching

YAML = """
name: drawings
dataset:
  path: table.parquet
  split: split
  slices: [language, shape]
  shard_rows: {min: 16, target: 24, max: 48}
features:
  caption: {column: text, encoder: {type: hashing, dim: 64}}
  photo: {column: picture, encoder: {type: hog, size: 16, pixels_per_cell: 8}}
task: {type: retrieval}
candidates: [{type: alignment, dim: 8, width: 16, learning_rate: 0.02}]
training: {max_epochs: 4, batch_size: 24}
"""
SHOWN = 15

# In one process of pytest-xdist: what is prepared for the first serves all.
pytestmark = pytest.mark.xdist_group("space")


@dataclass(frozen=True, kw_only=True)
class Space:
    """A champion that is an alignment, with its table and store."""

    pipeline: Pipeline
    store: Store
    uri: str

    @property
    def index(self) -> dict[str, bytes]:
        """All files of all indexes."""
        folder = Path(self.store.storage.root) / "indexes"
        files = [path for path in folder.rglob("*") if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def made_space(
    shapes_table: Path, empty_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with a table, a store and a registry whose model `drawings` is an alignment."""
    folder = tmp_path_factory.mktemp("space")
    shutil.copyfile(shapes_table / "table.parquet", folder / "table.parquet")
    shutil.copytree(shapes_table / "pictures", folder / "pictures")
    shutil.copyfile(empty_database, folder / "mlflow.db")
    (folder / "drawings.yaml").write_text(YAML)
    pipeline = load_pipeline(folder / "drawings.yaml")
    store = pipeline.open_store()
    snapshot = embedded(pipeline)
    records = [item.record for item in fitted(pipeline, store, snapshot) if item.record]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        promoted = promoting.promote(
            pipeline=pipeline, store=store, snapshot=snapshot, records=records
        )
    assert promoted.promoted
    return folder


@pytest.fixture(scope="module")
def fused(made_space: Path) -> list[str]:
    """Beside it a champion `fused` without a space, whose training fitted two with one; their
    names, the better first."""
    (made_space / "fused.yaml").write_text(
        YAML.replace("name: drawings", "name: fused")
        .replace("{type: retrieval}", "{target: shape}")
        .replace(
            "[{type: alignment, dim: 8, width: 16, learning_rate: 0.02}]",
            "[{type: early, width: 8}, {type: alignment, name: slow, dim: 8, width: 16, "
            "learning_rate: 0.00001}, {type: alignment, name: quick, dim: 8, width: 16, "
            "learning_rate: 0.02}]",
        )
    )
    pipeline = load_pipeline(made_space / "fused.yaml")
    store = pipeline.open_store()
    snapshot = embedded(pipeline)
    records = [item.record for item in fitted(pipeline, store, snapshot) if item.record]
    aligned = sorted(
        (record for record in records if record.name != "early"),
        key=lambda record: (
            -pipeline.metric.gain((record.metrics or {})["validation"][pipeline.metric.name], 0)
        ),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{made_space / 'mlflow.db'}")
        patch.setattr(promoting, "choose_winner", lambda *_, **__: records[0])
        some = [record for record in records if record is not aligned[1]]
        promoting.promote(pipeline=pipeline, store=store, snapshot=snapshot, records=some)
    return [record.name for record in aligned]


@pytest.fixture
def space(made_space: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The same without an index, in small parts; afterwards the table is as it was."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{made_space / 'mlflow.db'}")
    monkeypatch.setattr(parts, "LEAST_ROWS", 40)
    monkeypatch.setattr(parts, "MEAN_ROWS", 60)
    monkeypatch.setattr(parts, "MOST_ROWS", 90)
    monkeypatch.chdir(made_space)
    pipeline = load_pipeline(made_space / "drawings.yaml")
    table = (made_space / "table.parquet").read_bytes()
    store = Store(LocalStorage(pipeline.store_root))
    yield Space(pipeline=pipeline, store=store, uri=f"sqlite:///{made_space / 'mlflow.db'}")
    shutil.rmtree(made_space / "store" / "indexes", ignore_errors=True)
    (made_space / "table.parquet").write_bytes(table)


@pytest.fixture
def search(space: Space, capsys: pytest.CaptureFixture[str]) -> Any:
    """The command, and what it says as JSON."""

    def run(*options: str | Path, model: str = "drawings.yaml") -> dict[str, Any]:
        code, said, errors = sensorium(capsys, "search", model, *options, "--json")
        assert code == 0, errors
        found: dict[str, Any] = json.loads(said)
        return found

    return run


def brute_force(query: dict[str, Any], *, space: Space) -> list[tuple[float, str, str]]:
    """The nearest by scikit-learn over what the registered model answers to the table's rows."""
    import mlflow

    table = pd.read_parquet("table.parquet")
    with tracking.connected(space.uri):
        model = mlflow.pyfunc.load_model("models:/drawings@champion")
        answers = model.predict(table[["text", "picture"]])["vectors"]
        (asked,) = model.predict(pd.DataFrame([query]))["vectors"]
    (vector,) = asked.values()
    known = [
        (vector, name, id)
        for vectors, id in zip(answers, table["sample_id"], strict=True)
        for name, vector in (vectors or {}).items()
    ]
    neighbours = NearestNeighbors(n_neighbors=SHOWN, metric="cosine", algorithm="brute")
    neighbours.fit(np.array([vector for vector, _, _ in known]))
    distances, places = neighbours.kneighbors([vector])
    return [(1 - d, *known[i][1:]) for d, i in zip(distances[0], places[0].tolist(), strict=True)]


@pytest.mark.parametrize("way", ["exact", "cells"])
@pytest.mark.parametrize(
    ("query", "modality", "row"),
    [
        ("a slanted bar", "caption", {"text": "a slanted bar"}),
        ("pictures/3.png", "photo", {"picture": "pictures/3.png"}),
    ],
)
def test_the_nearest_are_those_of_a_brute_force_over_the_registered_model(
    space: Space, search: Any, query: str, modality: str, row: dict[str, str], way: str
) -> None:
    found = search(query, "--top", str(SHOWN), "--index", way)
    expected = brute_force(row, space=space)
    assert found["query"]["modality"] == modality
    results = found["results"]
    assert [(r["modality"], r["sample_id"]) for r in results] == [e[1:] for e in expected]
    np.testing.assert_allclose(
        [r["similarity"] for r in results], [e[0] for e in expected], atol=2e-6
    )
    assert [r["rank"] for r in results] == list(range(1, SHOWN + 1))
    table = pd.read_parquet("table.parquet").set_index("sample_id")
    for result in results:
        sample = table.loc[result["sample_id"]]
        assert result["split"] == sample["split"]
        assert result["slices"] == {
            "language": sample["language"],
            "shape": str(sample["shape"])[:2],
        }
        shown = sample["text"] if result["modality"] == "caption" else str(
            Path("pictures").absolute() / Path(sample["picture"]).name
        )  # fmt: skip
        assert result["what"] == shown
    there = {"caption": table["text"].notna().sum(), "photo": table["picture"].notna().sum() - 1}
    assert found["searched"] == there, "one picture is broken, and has no vector"
    for asked in found["recall"].values():
        # So few vectors have few cells, which are all looked into.
        assert asked["share"] == 1.0 and asked["exact"] is (way == "exact")
        assert asked["queries"] == (0 if way == "exact" else 100)


def test_a_search_makes_its_index_once_and_goes_on_where_it_was_killed(
    space: Space, search: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = search("a flat bar")
    whole = space.index
    many = [name for name in whole if name.endswith(".parquet")]
    assert first["index_parts_made"] == len(many) > 4
    with monkeypatch.context() as patch:
        patch.setattr(searching, "make_index", watched := Watched(searching.make_index))
        assert search("a flat bar")["results"] == first["results"]
    assert watched.made == 0 and space.index == whole
    # As a kill leaves it: some parts, and no manifest.
    folder = Path(space.store.storage.root) / "indexes"
    for name in (*many[1::2], *(name for name in whole if "/of-" in name)):
        (folder / name).unlink()
    again = search("a flat bar")
    assert again["index_parts_made"] == len(many[1::2])
    assert space.index == whole, "byte for byte"
    shutil.rmtree(folder)
    assert search("a flat bar")["results"] == first["results"] and space.index == whole


class Watched:
    """A function that counts the parts of the indexes that it makes."""

    def __init__(self, function: Any) -> None:
        self.function, self.made = function, 0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        index = self.function(*arguments, **options)
        self.made += index.made
        return index


def test_added_rows_make_their_own_parts_alone(space: Space, search: Any) -> None:
    search("a flat bar")
    before = space.index
    table = pd.read_parquet("table.parquet")
    more = table.iloc[:30].assign(
        sample_id=[f"t{i}" for i in range(30)], text=[f"a new text, number {i}" for i in range(30)]
    )
    pd.concat([table, more]).to_parquet("table.parquet")
    embedded(space.pipeline)
    found = search("a new text, number 7", "--snapshot", "latest", "--in", "caption", "-k", "3")
    assert found["results"][0]["sample_id"] == "t7"
    assert found["results"][0]["similarity"] == pytest.approx(1, abs=1e-6)
    parquet = {name for name in before if name.endswith(".parquet")}
    assert parquet < {name for name in space.index if name.endswith(".parquet")}
    assert 1 <= found["index_parts_made"] <= 3, "the last part, and what was added"
    # The snapshot that the model was fitted to is searched as before.
    assert search("a new text, number 7")["results"][0]["sample_id"].startswith("s")


def test_payloads_that_repeat_are_found_once(space: Space, search: Any) -> None:
    table = pd.read_parquet("table.parquet")
    table.loc[:119, "text"] = "the very same"
    table.to_parquet("table.parquet")
    embedded(space.pipeline)
    options = ("--snapshot", "latest", "--in", "caption", "-k", "4")
    results = search("the very same", *options)["results"]
    assert results[0]["sample_id"] == "s000" and results[0]["repeats"] == 119
    assert len({r["what"] for r in results}) == 4 == len(results)


def test_fewer_payloads_than_are_wanted_are_said_to_be_all(
    space: Space, search: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pd.read_parquet("table.parquet")
    table["text"] = ["one", "two", "three"] * (len(table) // 3)
    table.to_parquet("table.parquet")
    embedded(space.pipeline)
    options = ("two", "--snapshot", "latest", "--in", "caption")
    found = search(*options)
    assert sorted(r["what"] for r in found["results"]) == ["one", "three", "two"]
    assert [r["repeats"] for r in found["results"]] == [len(table) // 3 - 1] * 3
    assert found["results"][0]["what"] == "two" and found["wanted"] == 10
    for way, why in (("exact", "no more payloads differ"), ("cells", "no more that differ in the")):
        _, said, _ = sensorium(capsys, "search", "drawings.yaml", *options, "--index", way)
        assert f"; 3 found instead of 10: {why}" in said.replace("there are ", "")


def test_a_search_looks_once_at_what_is_there_of_each_index(
    space: Space, search: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    search("a flat bar")
    planned: list[str] = []
    listed: list[str] = []
    parts_of, list_folder = index.parts_of, LocalStorage.list
    monkeypatch.setattr(
        index, "parts_of", lambda *a, **o: planned.append(o["modality"]) or parts_of(*a, **o)
    )
    monkeypatch.setattr(
        LocalStorage, "list", lambda self, path: listed.append(path) or list_folder(self, path)
    )
    search("a flat bar")
    assert planned == ["caption", "photo"]
    assert len([path for path in listed if path.startswith("indexes")]) == 2


def test_recall_is_measured_part_by_part_where_parts_are_made(
    space: Space, search: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells, "LEAST", 8)
    monkeypatch.setattr(cells, "PROBES", 1)
    one_by_one, asked, given = recall.search, [], []

    def watched(store: Store, parts: Any, **options: Any) -> Any:
        asked.append(len(parts))
        given.append(options["queries"])
        return one_by_one(store, parts, **options)

    monkeypatch.setattr(recall, "search", watched)
    made: list[Any] = []
    make_index = searching.make_index
    monkeypatch.setattr(
        searching, "make_index", lambda *a, **o: made.append(make_index(*a, **o)) or made[-1]
    )
    found = search("a flat bar", "--index", "cells", "--in", "photo")
    assert set(asked) == {1} and len(asked) == 2 * len(made[0].parts) > 4
    exact, by_cells = (
        one_by_one(space.store, made[0].parts, queries=given[0], k=10, by_cells=by_cells)
        for by_cells in (False, True)
    )
    expected = recall.recall(exact, found=by_cells)
    assert 0.2 < expected < 1
    told = {"share": pytest.approx(expected), "at": 10, "queries": 100, "exact": False}
    assert found["recall"] == {"photo": told}
    assert search("a flat bar", "--index", "cells", "--in", "photo")["recall"] == {"photo": told}
    assert len(asked) == 2 * len(made[0].parts), "what was measured is kept"


def test_cells_that_nothing_can_be_measured_by_are_not_called_exact(
    space: Space, search: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recall, "_queries", lambda *_, **__: np.empty((0, 0), np.float32))
    options = ("a flat bar", "--index", "cells", "--in", "photo")
    told = {"share": None, "at": 10, "queries": 0, "exact": False}
    assert search(*options)["recall"] == {"photo": told}
    _, said, _ = sensorium(capsys, "search", "drawings.yaml", *options, "--html", "found.html")
    page = Path("found.html").read_text()
    for text in (said, page):
        assert "exact:" not in text
        assert "not measured: no sample of caption to ask by" in text


def test_so_many_of_each_modality_and_of_one_alone(space: Space, search: Any) -> None:
    each = search("pictures/3.png", "--each", "-k", "3")["results"]
    assert [(r["modality"], r["rank"]) for r in each] == [
        *(("caption", rank) for rank in (1, 2, 3)),
        *(("photo", rank) for rank in (1, 2, 3)),
    ]
    alone = search("pictures/3.png", "--in", "caption", "-k", "3")
    assert alone["results"] == each[:3] and list(alone["searched"]) == ["caption"]


def test_what_was_found_is_shown_only_if_it_is_what_was_embedded(
    space: Space, search: Any, made_space: Path
) -> None:
    table = pd.read_parquet("table.parquet")
    before = search("a flat bar", "-k", "5")["results"]
    table["text"] = table["text"].iloc[::-1].to_numpy()
    table.to_parquet("table.parquet")
    after = search("a flat bar", "-k", "5")["results"]
    assert [r["sample_id"] for r in after] == [r["sample_id"] for r in before]
    assert {r["what"] for r in after if r["modality"] == "caption"} == {
        "the table or the file has changed since it was embedded"
    }


def test_no_file_is_read_to_compare_what_is_only_named(
    space: Space, search: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    by: list[str] = []
    payload_keys = found.payload_keys

    def counted(*values: Any, **options: Any) -> Any:
        by.append(options["by"])
        return payload_keys(*values, **options)

    monkeypatch.setattr(found, "payload_keys", counted)
    options = ("pictures/3.png", "--in", "photo", "-k", "2")
    first = search(*options)["results"][0]["what"]
    assert first == str(Path("pictures/3.png").absolute()) and by == ["stat"] * 2
    picture, status = Path("pictures/3.png"), Path("pictures/3.png").stat()
    try:
        os.utime(picture, (1, 1))  # it is another file, as far as that is known by its time
        by.clear()
        named = search(*options)["results"][0]["what"]
        assert named.startswith(f"{first} (not opened, so not compared") and "content" not in by
        assert search(*options, "--html", "found.html")["results"][0]["what"] == found.CHANGED
        assert by.count("content") == 1
    finally:
        os.utime(picture, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_the_table_in_the_terminal_says_how_it_was_searched(
    space: Space, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    page = tmp_path / "found.html"
    code, said, errors = sensorium(
        capsys, "search", "models:/drawings/1", "a flat bar", "-k", "4", "--html", page
    )
    assert code == 0, errors
    lines = said.splitlines()
    assert any("index    caption: " in line and "of 240 samples" in line for line in lines)
    assert "recall@10 1.0 (exact: every vector is compared)" in said
    assert "drawings version 1, snapshot" in said and "× caption, " in said
    assert "a flat bar, number" in said and f"page: {page}" in said
    text = page.read_text()
    assert "Nearest to “a flat bar”" in text and text.count('<li class="card') == 4


def test_a_page_that_was_there_stays_until_the_new_one_is_whole(
    space: Space,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    page = tmp_path / "found.html"
    page.write_text("of before")

    def failing(*_: object, **__: object) -> str:
        assert page.read_text() == "of before"
        raise OSError("the disk is full")

    command = ["search", "drawings.yaml", "a flat bar", "-k", "2", "--html", page]
    with monkeypatch.context() as patch:
        patch.setattr("workflows.reporting.search_page.render", failing)
        code, _, errors = sensorium(capsys, *command)
    assert code == 1 and "the disk is full" in errors
    assert [path.name for path in tmp_path.iterdir()] == ["found.html"]
    assert page.read_text() == "of before"
    assert sensorium(capsys, *command)[0] == 0 and "Nearest to" in page.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["found.html"]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["hello", "--modality", "foto"], 2, "no modality 'foto'; did you mean 'photo'?"),
        (["hello", "--in", "foto"], 2, "--in: the model has no modality 'foto'; did you mean"),
        (
            ["no.png"],
            2,
            "'no.png': there is no such file; if it is meant as a text, say --modality",
        ),
        (["no.png", "--modality", "photo"], 2, "there is no such file; image 'photo' is asked for"),
        (["table.parquet"], 2, "is of no known format, and the model takes text 'caption'"),
        (["table.parquet"], 2, "if its name is meant as a text, say --modality caption"),
        (["pictures/200.png"], 2, "is of no known format"),
        (
            ["pictures/200.png", "--modality", "photo"],
            2,
            "is no image: not an image",
        ),
        ([" "], 2, "QUERY is empty"),
        (["hello", "--snapshot", "ffff"], 2, "no snapshot begins with 'ffff'"),
        (["hello", "--store", "elsewhere"], 1, "was fitted to is not in"),
        (["hello", "--html", "nowhere/page.html"], 2, "a file in a folder that is there"),
        (["hello", "--html", f"{'long' * 80}.html"], 2, "no file can be written there (File name"),
        (["s3://no_bucket!/x.png"], 2, "not of the form s3://BUCKET/KEY"),
    ],
)
def test_what_cannot_be_searched_is_said(
    space: Space,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    code: int,
    message: str,
) -> None:
    ended, _, errors = sensorium(capsys, "search", "drawings.yaml", *options)
    assert (ended, message in " ".join(errors.split())) == (code, True), errors
    assert not space.index, "nothing is made for a query that cannot be"


def test_a_text_that_looks_like_a_file_can_be_meant(search: Any) -> None:
    assert search("no.png", "--modality", "caption")["query"]["modality"] == "caption"


def test_beside_a_champion_without_a_space_the_best_candidate_with_one_is_searched(
    space: Space, fused: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    best, other = fused
    code, said, errors = sensorium(capsys, "search", "fused.yaml", "a flat bar", "-k", "1")
    assert code == 0, errors
    said = " ".join(said.split())
    assert f"has no space; searched is that of the candidate {best} " in said
    assert f"candidate {best} of fused, snapshot" in said
    # As JSON the line is no part of what programs read, and a candidate can be named.
    code, json_said, errors = sensorium(capsys, "search", "fused.yaml", "a flat bar", "--json")
    assert json.loads(json_said)["model"] == f"candidate {best} of fused" and best in errors
    for name, message in (
        (best, ""),
        (best[:-1], f"did you mean {best!r}? fitted: early, slow, quick"),
        ("early", "is of the type 'early', which has no space that its modalities share; with one"),
        (other, f"no model of the candidate {other!r} is in MLflow's experiment 'fused'"),
    ):
        options = ("a flat bar", "--candidate", name)
        code, _, errors = sensorium(capsys, "search", "fused.yaml", *options)
        assert (code == 0) == (not message) and message in " ".join(errors.split())
    # The model itself has none; what was fitted beside it is named.
    code, _, errors = sensorium(capsys, "search", "models:/fused/1", "a flat bar")
    errors = " ".join(errors.split())
    assert code == 2 and f"The same training has fitted {best} (models:/m-" in errors
    code, _, errors = sensorium(capsys, "search", "fused", "x", "--candidate", best)
    assert code == 2 and "--candidate: name the pipeline's YAML file" in errors


def test_embeddings_of_another_encoder_are_refused(
    space: Space, capsys: pytest.CaptureFixture[str]
) -> None:
    other = YAML.replace("dim: 64", "dim: 32").replace("name: drawings", "name: others")
    Path("others.yaml").write_text(other)
    embedded(load_pipeline("others.yaml"))
    snapshot = space.store.latest("others")
    assert snapshot is not None
    command = ["search", "drawings.yaml", "a flat bar", "--snapshot", snapshot.id[:8]]
    code, _, errors = sensorium(capsys, *command)
    said = " ".join(errors.split())
    assert code == 1 and "holds embeddings of 'caption' by the encoder" in said
    assert sensorium(capsys, *command, "--in", "photo")[0] == 0, "its photos are the model's"


def test_the_index_is_ordinary_parquet(space: Space, search: Any) -> None:
    search("a flat bar", "--in", "photo")
    folder = Path(space.store.storage.root) / "indexes"
    tables = [pq.read_table(path) for path in folder.rglob("*.parquet")]
    vectors = np.concatenate([np.stack(t["embedding"].to_numpy()) for t in tables])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert set(tables[0].column_names) == {"row", "payload_key", "embedding"}
