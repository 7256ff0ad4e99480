"""Every command, whatever it does: its help, and how it ends when it cannot do it.

ROWS has one row a command; a new command without one fails.
"""

from __future__ import annotations

import importlib
import re
import shlex
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer.main

import features.s3
from tests.workflows.command import sensorium
from workflows.cli import app
from workflows.commands.app import EXIT_CODES, ORDER
from workflows.demo import _METADATA

YAML = """\
name: words
dataset: {path: words.csv, split: split}
features:
  text: {column: text, encoder: {type: hashing, dim: 32}}
task: {target: label}
candidates: [{type: single, modality: text}]
"""
BROKEN = """
from features.encoders import EncoderSpec

class BrokenSpec(EncoderSpec):
    kind = "text"

    def load(self):
        raise RuntimeError("its weights are gone")
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """How a command is called, and what it says when it cannot do what it is to do."""

    fails: str
    """Arguments with which it fails: of a pipeline whose store, or MLflow, is not to be reached."""
    says: str
    """What it says then, as a regular expression; the exit code is 1."""
    bad: str = "{bad}"
    """Arguments by which its configuration or usage is bad."""
    bad_says: str = r"bad\.yaml:2: dataset\.spilt: unknown field; did you mean 'split'\?"
    """The field, and the nearest right spelling or what is allowed; the exit code is 2."""


STORE = r"127\.0\.0\.1:\d+.*|s3://nowhere"
MLFLOW = r"MLflow at http://127\.0\.0\.1:\d+ does not answer.*run the same command again"
ROWS = {
    "demo": Row(
        fails="--dir {folder} --samples 300",
        says=r"samples\.parquet was made with samples 1797.*choose another --dir",
        bad="--samples 5",
        bad_says="'--samples'.*greater than or equal to 300",
    ),
    "plan": Row(fails="{far}", says=STORE),
    "embed": Row(fails="{far}", says=STORE),
    "train": Row(fails="{far}", says=STORE),
    "promote": Row(fails="{fitted} --dry-run", says=MLFLOW),
    "run": Row(fails="{far}", says=STORE),
    "submit": Row(
        fails="{cluster} --address {nobody}",
        says=r"job server at {nobody} cannot be reached.*--address",
    ),
    "report": Row(fails="{fitted}", says=MLFLOW),
    "score": Row(fails="words words.csv out", says=MLFLOW, bad="{bad} words.csv out"),
    "search": Row(fails="{fitted} query", says=MLFLOW, bad="{bad} query"),
    "serve": Row(fails="words", says=MLFLOW, bad="{bad}"),
    "export": Row(fails="words out", says=MLFLOW, bad="{bad} out"),
    "approve": Row(fails="{good}", says=MLFLOW),
    "rollback": Row(fails="{good}", says=MLFLOW),
    "history": Row(fails="{good}", says=MLFLOW),
    "lineage": Row(fails="{good}", says=MLFLOW),
    "trace": Row(fails="{far} w1", says=STORE, bad="{bad} w1"),
    "schema": Row(fails="", says="", bad="words", bad_says="unexpected extra argument.*words"),
    "check-encoder": Row(
        fails="broken.BrokenSpec",
        says="its weights are gone",
        bad="hashin",
        bad_says="unknown encoder 'hashin'; did you mean 'hashing'",
    ),
    "store ls": Row(fails="{far}", says=STORE),
    "store verify": Row(fails="{far}", says=STORE),
    "store gc": Row(
        fails="{far}",
        says=STORE,
        bad="{good} --grace soon",
        bad_says="'soon' is no duration; write",
    ),
}


def _leaves(group: Any, *before: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _leaves(command, *before, name)
        else:
            yield " ".join((*before, name)), command


COMMANDS = dict(_leaves(typer.main.get_command(app)))
NAMES = sorted(COMMANDS)


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An address at which nothing answers: of MLflow, of S3, of a cluster."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        monkeypatch.setattr(features.s3, "ATTEMPTS", 1)
        yield address


@pytest.fixture
def call(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> Callable[..., tuple[int, str]]:
    """Calls a command, in a folder of pipelines; its exit code, and what it says, on one line."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    rows = [
        [f"w{i}", f"text {i}", i % 3, ("train", "validation", "test")[i % 3]] for i in range(30)
    ]
    table = pd.DataFrame(rows, columns=["sample_id", "text", "label", "split"])
    table.to_csv("words.csv", index=False)
    made_of = {_METADATA: b'{"samples": 1797, "seed": 0}'}
    pq.write_table(pa.table({"x": [1]}).replace_schema_metadata(made_of), "samples.parquet")
    Path("good.yaml").write_text(YAML)
    Path("bad.yaml").write_text(YAML.replace("split: split", "spilt: split"))
    Path("far.yaml").write_text(far := f"{YAML}store: s3://nowhere/store\n")
    Path("cluster.yaml").write_text(far.replace("words.csv", "s3://nowhere/words.csv"))

    def call(name: str, arguments: str, **places: str) -> tuple[int, str]:
        places |= {file.stem: file.name for file in tmp_path.glob("*.yaml")}
        if "{fitted}" in arguments:
            places["fitted"] = str(request.getfixturevalue("fitted_shapes").pipeline.path)
        words = arguments.format(folder=tmp_path, **places)
        code, out, err = sensorium(capsys, *name.split(), *shlex.split(words))
        said = " ".join(re.sub("[│╭╮╰╯─]", " ", out + err).split())
        assert "Traceback" not in said, said
        return code, said

    return call


def test_every_command_has_a_row() -> None:
    assert set(COMMANDS) <= set(ROWS), "a command without a row"
    assert {name.partition(" ")[0] for name in ROWS} <= set(ORDER), "a row without a command"


def test_help_lists_every_command_and_the_exit_codes(call: Any) -> None:
    code, said = call("", "--help")
    assert code == 0 and EXIT_CODES in said
    places = [said.find(f" {name} ") for name in ORDER if name in {n.split()[0] for n in NAMES}]
    assert -1 not in places
    code, said = call("store", "-h")
    assert code == 0 and all(f" {name} " in said for name in ("ls", "verify", "gc"))


@pytest.mark.parametrize("name", NAMES)
def test_its_help_has_an_example_that_can_be_typed(name: str, call: Any) -> None:
    code, said = call(name, "--help")
    assert code == 0
    command = COMMANDS[name]
    assert command.help.splitlines()[0].split()[0] in said
    example = re.match(r"Example: (sensorium .+)\n", command.epilog)
    assert example is not None and " ".join(example[1].split()) in said and EXIT_CODES in said
    words = shlex.split(example[1].partition(" > ")[0])
    assert words[: 1 + len(name.split())] == ["sensorium", *name.split()]
    command.make_context(name, words[1 + len(name.split()) :])  # raises what bad usage raises
    for option in (word for word in words if word.startswith("--")):
        assert option in said


@pytest.mark.parametrize("name", NAMES)
def test_bad_usage_ends_with_2_and_the_nearest_that_is_right(name: str, call: Any) -> None:
    *group, last = name.split()
    code, said = call(" ".join(group), f"{last}x")
    assert code == 2 and f"No such command '{last}x'. Did you mean '{last}'" in said
    options = [o for p in COMMANDS[name].params for o in p.opts if o.startswith("--")]
    for option in options[:1]:
        code, said = call(name, option[:-1])
        assert code == 2 and f"No such option: {option[:-1]}" in said and option in said
    code, said = call(name, "a b c d e")
    assert code == 2 and ("unexpected extra argument" in said), said
    code, said = call(name, ROWS[name].bad)
    assert code == 2 and re.search(ROWS[name].bad_says, said), said


@pytest.mark.parametrize("name", [name for name in NAMES if ROWS[name].says])
def test_what_cannot_be_done_ends_with_1_and_says_why(
    name: str, call: Any, nobody: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    row = ROWS[name]
    try:
        code, said = call(name, row.fails, nobody=nobody)
    finally:
        sys.modules.pop("broken", None)
    assert code == 1 and re.search(row.says.replace("{nobody}", nobody), said), (code, said)
