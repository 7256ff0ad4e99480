"""The command line: what a wrong configuration says, and with which exit code it ends."""

import dataclasses
import json
from pathlib import Path

import jsonschema
import pandas as pd
import pytest
import yaml

from tests.workflows.command import sensorium
from workflows.commands.registry import meant_by

PIPELINE = """\
name: words
dataset:
  path: words.csv
  split: split
  slices: [language]
features:
  text:
    column: text
    encoder: {type: hashing, dim: 32}
  photo: {column: photo, encoder: {type: hog}}
task: {target: label}
candidates:
  - {type: single, modality: text}
  - {type: early}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    splits = ["train", "train", "validation", "test"]
    rows = [
        [f"w{i}", f"text {i}", None, "ja" if i % 2 else "en", i % 3, splits[i % 4]]
        for i in range(40)
    ]
    columns = ["sample_id", "text", "photo", "language", "label", "split"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "words.csv", index=False)
    (tmp_path / "words.yaml").write_text(PIPELINE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def change(folder, old, new):
    text = (folder / "words.yaml").read_text()
    assert old in text
    (folder / "words.yaml").write_text(text.replace(old, new))


BAD = {
    "unknown key": (
        "slices:",
        "slises:",
        "words.yaml:5: dataset.slises: unknown field; did you mean 'slices'? allowed: format, id",
    ),
    "a word where a list is wanted": (
        "slices: [language]",
        "slices: language",
        "words.yaml:5: dataset.slices: this is a list: [language]",
    ),
    "unknown option of an encoder": (
        "dim: 32",
        "dims: 32",
        "words.yaml:9: features.text.encoder.dims: unknown field; did you mean 'dim'?",
    ),
    "unknown encoder": (
        "type: hog",
        "type: hogg",
        "words.yaml:10: features.photo.encoder: unknown encoder 'hogg'; did you mean 'hog'?",
    ),
    "encoder that cannot be imported": (
        "type: hog",
        "type: nowhere.Mine",
        "cannot be imported",
    ),
    "value of a wrong type": (
        "dim: 32",
        "dim: many",
        "words.yaml:9: features.text.encoder.dim: Input should be a valid integer",
    ),
    "value out of range": (
        "dim: 32",
        "dim: 0",
        "greater than or equal to 2 (value: 0)",
    ),
    "unknown candidate": (
        "type: early",
        "type: earli",
        "words.yaml:14: candidates.1: unknown candidate 'earli'; did you mean 'early'?",
    ),
    "unknown modality": (
        "modality: text",
        "modality: txt",
        "words.yaml:13: candidates.0.modality: there is no modality 'txt'; did you mean "
        "'text'? features: text, photo",
    ),
    "payload column not in the table": (
        "column: photo",
        "column: foto",
        "words.yaml:10: features.photo.column: the table has no column 'foto'; did you "
        "mean 'photo'?",
    ),
    "stratum not in the table": (
        "split: split",
        "split: {group: sample_id, stratify: kind}",
        "words.yaml:4: dataset.split.stratify: the table has no column 'kind'",
    ),
    "target not in the table": (
        "target: label",
        "target: labels",
        "words.yaml:11: task.target: the table has no column 'labels'; did you mean 'label'?",
    ),
    "slice not in the table": (
        "[language]",
        "[lang]",
        "words.yaml:5: dataset.slices.0: the table has no column 'lang'; did you mean 'language'?",
    ),
    "fusion of one modality": (
        "  photo: {column: photo, encoder: {type: hog}}\n",
        "",
        "words.yaml:13: candidates.1.type: 'early' takes at least 2 modalities, and the pipeline "
        "has 1: text; leave the candidate out",
    ),
    "table that is not there": (
        "words.csv",
        "word.csv",
        "words.yaml:3: dataset.path:",
    ),
    "missing field": (
        "task: {target: label}\n",
        "",
        "task: this field is required",
    ),
    "field given twice": (
        "name: words",
        "name: words\nname: others",
        "words.yaml:2: name: given before, in line 1",
    ),
    "candidates of one name": (
        "type: early",
        "type: early, name: single-text",
        "words.yaml:14: candidates.1.name: the name 'single-text' is that of candidate 1 too",
    ),
    "not YAML": (
        "features:",
        "features: [",
        "words.yaml:8:11: not YAML: expected ',' or ']', but got ':' (while parsing",
    ),
    "a tab": (
        "features:",
        "features:\n\tx: 1",
        "indent by spaces, YAML takes no tabs",
    ),
    "store of an unknown kind": (
        "name: words",
        "name: words\nstore: ftp://x/y",
        "ftp",
    ),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_bad_configuration_ends_before_any_work(folder, capsys, case, command):
    old, new, message = BAD[case]
    change(folder, old, new)
    code, out, err = sensorium(capsys, command, "words.yaml")
    assert code == 2
    assert message in " ".join(err.split())
    assert "Traceback" not in err + out
    assert not (folder / "store").exists() and not (folder / "mlflow.db").exists()


def test_one_mistake_of_a_fusion_is_told_once(folder, capsys):
    for modalities, message in (
        ("text, foto", "there is no modality 'foto'"),
        ("text", "'early' takes at least 2 modalities, not 1"),
        ("text, text", "`modalities` names one of them twice"),
    ):
        (folder / "words.yaml").write_text(
            PIPELINE.replace("type: early", f"type: early, modalities: [{modalities}]")
        )
        code, _, err = sensorium(capsys, "plan", "words.yaml")
        assert code == 2 and message in " ".join(err.split()) and err.count("words.yaml:") == 1, err
    (folder / "words.yaml").write_text(PIPELINE.replace("  photo:", "  #"))
    code, _, err = sensorium(capsys, "plan", "words.yaml")
    assert code == 2 and err.count("words.yaml:") == 1, err


def test_a_file_that_is_not_there_names_its_neighbour(folder, capsys):
    code, _, err = sensorium(capsys, "run", "word.yaml")
    assert code == 2 and "word.yaml: no such file; did you mean 'words.yaml'?" in err


PICTURES = """\
name: pets
dataset: {path: pets, split: split}
features:
  photo: {column: path, encoder: {type: hog}}
task: {target: animal}
candidates:
  - {type: single, modality: photo}
"""


@pytest.mark.parametrize("path", ["pets", "pets/metadata.csv"])
def test_pictures_with_metadata_are_told_of_their_format(folder, capsys, path):
    (folder / "pets").mkdir()
    animals = pd.DataFrame({"file_name": [f"{i}.png" for i in range(9)]})
    animals["animal"] = ["cat", "cat", "cat", "dog", "dog", "dog"] * 1 + ["cat", "dog", "dog"]
    animals["split"] = ["train", "validation", "test"] * 3
    animals.to_csv(folder / "pets/metadata.csv", index=False)
    for i in range(9):
        (folder / f"pets/{i}.png").write_bytes(b"x")
    (folder / "pets.yaml").write_text(PICTURES.replace("path: pets", f"path: {path}"))
    code, _, err = sensorium(capsys, "plan", "pets.yaml")
    said = " ".join(err.split())
    assert code == 2 and "the table has no column 'sample_id'" in said
    assert (
        "pets.yaml:2: dataset.path: if metadata.csv describes the files beside it, set `path` to "
        "their folder and `dataset.format: folder`"
    ) in said
    (folder / "pets.yaml").write_text(PICTURES.replace("path: pets", "path: pets, format: folder"))
    code, out, err = sensorium(capsys, "plan", "pets.yaml")
    assert code == 0, err
    assert "columns not used: name, folder, file_name\n" in out
    (folder / "pets.yaml").write_text(
        PICTURES.replace("path: pets", "path: pets, format: folder").replace("animal", "animals")
    )
    assert "describes the files beside it" not in sensorium(capsys, "plan", "pets.yaml")[2]


def test_plan_names_the_columns_that_nothing_uses(folder, capsys):
    assert "not used" not in sensorium(capsys, "plan", "words.yaml")[1]
    table = pd.read_csv(folder / "words.csv")
    for number in range(15):
        table[f"[x{number}]"] = number
    table.to_csv(folder / "words.csv", index=False)
    change(
        folder, "  photo:", "  two: {columns: ['[x0]', '[x2]'], encoder: {type: table}}\n  photo:"
    )
    change(folder, "split: split", "split: {group: '[x3]', stratify: label}")
    out = sensorium(capsys, "plan", "words.yaml")[1]
    names = ["split", *(f"[x{n}]" for n in (1, *range(4, 15)))]
    assert f"         columns not used: {', '.join(names[:12])} and 1 more\n" in out


def test_a_repeated_id_is_named(folder, capsys):
    frame = pd.read_csv("words.csv")
    frame.loc[[3, 30], "sample_id"] = "same"
    frame.to_csv("words.csv", index=False)
    code, _, err = sensorium(capsys, "run", "words.yaml")
    assert code == 2 and "'same' in rows 3, 30" in err
    assert not (folder / "store/embeddings").exists()


def break_label_column(frame):
    frame["label"] = [[1, 2]] * len(frame)


def break_labels(frame):
    frame["label"] = None


def break_fractions(frame):
    frame["label"] = frame["label"] + 0.5


def break_test(frame):
    frame["split"] = frame["split"].replace("test", "train")


TABLES = {
    "labels that are lists": (break_label_column, "a class is text, an integer or a boolean"),
    "labels that are fractions": (break_fractions, "column 'label' holds fractions"),
    "no label at all": (break_labels, "no sample with a label in train and validation and test"),
    "no test rows": (break_test, "words.yaml:4: dataset.split: no sample with a label in test"),
}


@pytest.mark.parametrize("case", TABLES)
@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_table_that_nothing_can_be_learned_from_ends_before_any_work(
    folder, capsys, case, command
):
    damage, message = TABLES[case]
    frame = pd.read_csv("words.csv")
    damage(frame)
    frame.to_parquet("words.parquet", index=False)
    change(folder, "words.csv", "words.parquet")
    code, out, err = sensorium(capsys, command, "words.yaml")
    assert code == 2 and message in " ".join(err.split()), err
    assert "Traceback" not in err + out
    assert not (folder / "store").exists()


def test_whole_numbers_that_pandas_made_floats_are_labels(folder, capsys):
    frame = pd.read_csv("words.csv")
    frame["label"] = frame["label"].astype(float).where(frame.index != 3)
    frame.to_parquet("words.parquet", index=False)
    change(folder, "words.csv", "words.parquet")
    assert sensorium(capsys, "plan", "words.yaml")[0] == 0


def test_a_second_file_without_a_column_is_named(folder, capsys):
    (folder / "words").mkdir()
    frame = pd.read_csv("words.csv")
    frame.to_csv("words/a.csv", index=False)
    frame.drop(columns="text").assign(sample_id=[f"x{i}" for i in range(40)]).to_csv(
        "words/b.csv", index=False
    )
    change(folder, "words.csv", "words")
    code, _, err = sensorium(capsys, "run", "words.yaml")
    assert code == 2 and "b.csv" in err and "text" in err


def test_a_model_that_is_not_there_ends_before_any_work(folder, capsys):
    change(folder, "{type: hashing, dim: 32}", "{type: huggingface_text, model: ./nothing}")
    code, out, err = sensorium(capsys, "run", "words.yaml")
    assert code == 2 and "features.text.encoder" in err and "Traceback" not in err + out


def test_brackets_are_text_and_not_markup(folder, capsys):
    """A reason, a path or an id that looks like the terminal's markup is shown as it is."""
    from rich.console import Console

    from workflows.pipeline import load_pipeline
    from workflows.plan import plan_embedding, print_work

    plan = plan_embedding(load_pipeline("words.yaml"))
    parts = {
        m: dataclasses.replace(part, reason="ngrams [1, 3] → [/b]")
        for m, part in plan.modalities.items()
    }
    print_work(dataclasses.replace(plan, modalities=parts), console=Console(width=200))
    assert "ngrams [1, 3] → [/b]" in capsys.readouterr().out


def test_the_version_is_told(capsys):
    assert sensorium(capsys, "--version")[:2] == (0, "sensorium 0.1.0\n")


def test_a_store_that_is_a_file_is_refused(folder, capsys):
    change(folder, "name: words", "name: words\nstore: words.csv")
    code, _, err = sensorium(capsys, "run", "words.yaml")
    assert (
        code == 2 and "words.yaml:2: store:" in err and "is not a folder" in " ".join(err.split())
    )


def test_more_workers_than_the_machine_has_are_refused(folder, capsys):
    change(folder, "name: words", "name: words\ntraining: {workers: 5000}")
    code, _, err = sensorium(capsys, "run", "words.yaml")
    assert code == 2 and "words.yaml:2: training.workers: 5000 workers" in err
    assert not (folder / "store").exists()


def test_ids_are_no_labels(folder, capsys):
    change(folder, "target: label", "target: sample_id")
    code, _, err = sensorium(capsys, "run", "words.yaml")
    assert code == 2 and "task.target: 'sample_id' is the column of ids" in " ".join(err.split())


def test_bad_usage_ends_with_2(folder, capsys):
    for arguments in (["embedd", "words.yaml"], ["run"], ["run", "words.yaml", "--fast"]):
        assert sensorium(capsys, *arguments)[0] == 2


def test_a_stage_that_lacks_the_one_before_says_which(folder, capsys):
    for command in ("train", "promote", "report"):
        code, _, err = sensorium(capsys, command, "words.yaml")
        assert code == 1 and "run `sensorium embed words.yaml` first" in err


def test_every_command_has_help_with_an_example(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    code, out, _ = sensorium(capsys, "--help")
    assert code == 0 and "3 the gate refused" in out
    for command in (
        *("demo", "plan", "embed", "train", "promote", "run", "report", "schema"),
        *("score", "search"),
    ):
        assert command in out
        code, text, _ = sensorium(capsys, command, "--help")
        assert code == 0 and f"Example: sensorium {command}" in text


def test_plan_changes_nothing(folder, capsys):
    before = sorted(path.name for path in folder.iterdir())
    code, out, _ = sensorium(capsys, "plan", "words.yaml")
    assert code == 0 and "40 samples (train 20, validation 10, test 10)" in out
    assert sorted(path.name for path in folder.iterdir()) == before


def test_the_schema_accepts_good_and_refuses_bad_files(folder, capsys):
    code, out, _ = sensorium(capsys, "schema")
    schema = json.loads(out)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    good = yaml.safe_load(PIPELINE)
    validator.validate(good)
    for part, value in (
        ("slises", []),
        ("features", {"text": {"column": "t", "encoder": {"type": "hogg"}}}),
    ):
        with pytest.raises(jsonschema.ValidationError):
            validator.validate({**good, part: value})
    assert code == 0


def test_a_payload_on_two_sides_of_a_split_is_told(folder, capsys):
    table = pd.read_csv(folder / "words.csv", dtype=str)
    train = table.index[table["split"] == "train"]
    test = table.index[table["split"] == "test"]
    assert "leak" not in sensorium(capsys, "plan", "words.yaml")[1]
    table.loc[test[0], "text"] = table.loc[train[1], "text"]
    table.to_csv(folder / "words.csv", index=False)
    code, out, _ = sensorium(capsys, "plan", "words.yaml")
    assert code == 0
    assert (
        "leak     1 payload of text in both train and test: "
        "sample w1 (train) and sample w3 (test)\n"
    ) in out
    assert "payloads that stand in more than one row: text 2 (5.0 %)" in out
    validation = table.index[table["split"] == "validation"]
    table.loc[validation[:2], "text"] = table.loc[train[4:6], "text"].tolist()
    table.to_csv(folder / "words.csv", index=False)
    leaks = [
        line for line in sensorium(capsys, "plan", "words.yaml")[1].splitlines() if "leak" in line
    ]
    assert [line.partition(":")[0] for line in leaks] == [
        "leak     1 payload of text in both train and test",
        "leak     2 payloads of text in both train and validation",
    ]


def test_shares_that_a_split_by_groups_misses_are_told(folder, capsys):
    table = pd.read_csv(folder / "words.csv", dtype=str)
    table["writer"] = ["anna"] * (len(table) - 6) + list("abcdef")
    table.to_csv(folder / "words.csv", index=False)
    text = (folder / "words.yaml").read_text()
    assert "split    " not in sensorium(capsys, "plan", "words.yaml")[1]
    changed = text.replace("split: split", "split: {group: writer, validation: 0.3, test: 0.3}")
    assert changed != text
    (folder / "words.yaml").write_text(changed)
    _, out, err = sensorium(capsys, "plan", "words.yaml")
    (said,) = [line for line in out.splitlines() if line.startswith("split")]
    assert "of the samples and not 30 %: groups of writer are few, or some are large" in said
    assert "`stratify: COLUMN`" in said, err


def test_classes_without_a_training_row_are_warned_of(folder, capsys):
    assert "warning" not in sensorium(capsys, "plan", "words.yaml")[1]
    table = pd.read_csv(folder / "words.csv", dtype=str)
    test = table.index[table["split"] == "test"]
    table["label"] = "[" + table["label"] + "]"
    table.loc[test[:2], "label"] = ["[eel]", "owl"]
    table.to_csv(folder / "words.csv", index=False)
    code, out, _ = sensorium(capsys, "plan", "words.yaml")
    assert code == 0
    assert (
        "warning  label: no training row is of the classes [eel], owl, so none is ever learned\n"
    ) in out


@pytest.mark.parametrize(
    ("which", "uri"),
    [
        ("digits", "models:/digits@champion"),
        ("models:/digits/3", "models:/digits/3"),
        ("models:/digits@challenger", "models:/digits@challenger"),
        ("other.yaml", "models:/named@champion"),
    ],
)
def test_one_rule_says_which_model_a_person_means(
    which: str, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("other.yaml").write_text(
        "name: other\ndataset: {path: t.csv, split: s}\ncandidates: [{type: single, modality: a}]\n"
        "features: {a: {column: a, encoder: {type: hashing}}}\ntask: {target: y}\n"
        "tracking: {uri: 'sqlite:///here.db', model: named}\n"
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://there")
    meant = meant_by(which, tracking=None)
    of_file = which.endswith(".yaml")
    assert meant.uri == uri and (meant.pipeline is not None) == of_file
    assert meant_by(which, tracking="http://told").tracking == "http://told"
