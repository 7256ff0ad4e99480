"""`sensorium trace`: what it prints, as text and as JSON, and how it refuses."""

import json

import pandas as pd
import pytest

from tests.workflows.command import sensorium


@pytest.fixture
def yaml(fitted_shapes):
    return fitted_shapes.folder / "shapes.yaml"


def test_json_leads_to_the_row_of_the_table(fitted_shapes, yaml, capsys):
    table = fitted_shapes.table()
    code, out, _ = sensorium(capsys, "trace", yaml, "s150", "--json")
    found = json.loads(out)
    assert code == 0 and found["snapshot"] == fitted_shapes.snapshot.id
    row = pd.read_parquet(found["source_file"]).iloc[found["source_row"]]
    assert row["sample_id"] == "s150" and found["values"]["target.shape"] == row["shape"]
    assert found["values"]["slice.language"] == row["language"]
    for modality, column in (("caption", "text"), ("photo", "picture")):
        missing = table.set_index("sample_id")[column].isna()["s150"]
        payload = found["payloads"][modality]
        assert payload["state"] == ("missing" if missing else "embedded")
        if not missing:
            path = fitted_shapes.folder / "store" / payload["embedding"]["path"]
            there = pd.read_parquet(path).iloc[payload["embedding"]["position"]]
            assert there["payload_key"].hex() == payload["key"]
            assert there["row"] == found["shard_row"]


def test_text_says_the_same_to_a_person(fitted_shapes, yaml, capsys):
    code, out, _ = sensorium(capsys, "trace", yaml, "s200")
    assert code == 0
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert f"sample s200, row 200 of snapshot {fitted_shapes.snapshot.id[:12]} (all rows are" in (
        " ".join(lines)
    )
    assert f"source {fitted_shapes.folder}/table.parquet, row 200" in lines
    (bad,) = [line for line in lines if "quarantined" in line]
    assert bad.startswith("photo quarantined at decode: ")
    encoder = fitted_shapes.snapshot.modalities["photo"].encoder_fingerprint
    assert any(line.startswith("encoder hog (") and encoder in line for line in lines)


@pytest.mark.parametrize("wanted", [None, 12])
def test_the_snapshot_may_be_named_by_its_beginning(fitted_shapes, yaml, capsys, wanted):
    options = [] if wanted is None else ["--snapshot", fitted_shapes.snapshot.id[:wanted]]
    code, out, _ = sensorium(capsys, "trace", yaml, "s007", "--json", *options)
    assert code == 0 and json.loads(out)["row"] == 7


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nobody"], "has the id 'nobody'"),
        (["s007", "--snapshot", "zzz"], "no snapshot begins with 'zzz'"),
    ],
)
def test_what_is_not_there_is_bad_usage(yaml, capsys, arguments, said):
    code, _, error = sensorium(capsys, "trace", yaml, *arguments)
    assert code == 2 and said in " ".join(error.replace("│", " ").split())
