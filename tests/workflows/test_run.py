"""`run` as a schedule starts it: overlaps, deadlines, lost leases, and its line of JSON."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
import threading
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from features import turns
from features.lease import LeaseLost
from features.quarantine import QuarantineCount
from features.storage import LocalStorage
from features.turns import Turn
from tests.workflows.command import sensorium
from workflows import overlap
from workflows import run as run_module
from workflows.cli import main
from workflows.commands.ending import status_of
from workflows.embed import BudgetExceeded
from workflows.outcome import DeadlinePassed
from workflows.pipeline import ConfigurationError, StageError
from workflows.promotion import deciding
from workflows.promotion.contest import Contest
from workflows.stopping import Terminated
from workflows.tracking import connected


def call(*arguments):
    """Exit code, what was said, and the line of JSON, which must be the last of stdout."""
    out, err = io.StringIO(), io.StringIO()
    before, sys.argv = sys.argv, ["sensorium", "run", *map(str, arguments), "--json"]
    code = 0
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.argv = before
    *said, last = out.getvalue().splitlines()
    told = json.loads(last)
    assert told["exit_code"] == code
    return code, "\n".join(said) + err.getvalue(), told


def champion(uri):
    with connected(uri) as client:
        found = client.search_registered_models("name = 'shapes'")
        return dict(found[0].aliases).get("champion") if found else None


@dataclass(frozen=True, kw_only=True)
class Story:
    """A pipeline, fitted before, that was run by several, and what each run came to."""

    folder: Path
    uri: str
    lost: tuple
    """Of a run whose lease lapsed while it judged, and the champion after it."""
    nested: tuple
    """Of a run that did all between the last look of another and its change."""
    overtaken: tuple
    """Of that other."""


@pytest.fixture(scope="module")
def story(fitted_shapes, empty_database, tmp_path_factory):
    """Ray is not needed: everything is embedded and fitted, and nothing is in MLflow."""
    folder = tmp_path_factory.mktemp("run") / "shapes"
    shutil.copytree(fitted_shapes.folder, folder)
    shutil.copyfile(empty_database, folder / "mlflow.db")
    file, uri = folder / "shapes.yaml", f"sqlite:///{folder / 'mlflow.db'}"
    nested = []
    judge, who, embed = Contest.judge, deciding.who, run_module.embed

    def taking_the_turn(*arguments, confirm, **options):
        confirm()  # a run that has something to embed does
        return embed(*arguments, confirm=confirm, **options)

    def while_the_lease_lapses(self, champion, **options):
        # Another run takes it for that of a dead process, does its work and ends.
        turn = json.dumps({"who": "the heir", "ended": True})
        (folder / "store/turns/run%20shapes/00000002.json").write_text(turn)
        return judge(self, champion, **options)

    def while_another_runs():
        if not nested:
            nested.append(())
            nested[0] = call(file)
        return who()

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setattr(run_module, "embed", taking_the_turn)
        patch.setattr(Contest, "judge", while_the_lease_lapses)
        lost = (*call(file), champion(uri))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setattr(deciding, "who", while_another_runs)
        overtaken = call(file)
    return Story(folder=folder, uri=uri, lost=lost, nested=nested[0], overtaken=overtaken)


@pytest.fixture
def another(story):
    """Another run of the pipeline, which has something to do."""
    storage = LocalStorage(story.folder / "store")
    with Turn(storage, name="run shapes", what="the other run") as lease:
        assert lease.look() is None
        lease.confirm()
        yield lease


def when_waited_for(turn, patch, act):
    """Do something to a turn as soon as somebody waits for it."""

    def sleep(seconds):
        assert seconds == overlap.WAIT_SECONDS
        act(turn)

    patch.setattr(turns, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))


@pytest.fixture
def file(story):
    return story.folder / "shapes.yaml"


def files(folder):
    found = [p for p in folder.rglob("*") if p.is_file()]
    return {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in found}


def test_a_run_that_lost_its_lease_moves_no_alias(story):
    code, said, told, champion_then = story.lost
    assert (code, told["status"]) == (1, "failed")
    assert "was taken for that of a dead process" in told["error"]
    assert "was taken for that of a dead process" in said
    assert champion_then is None and told["champion_after"] is None


def test_the_line_says_what_came_of_a_run(story, fitted_shapes):
    code, said, told = story.nested
    assert (code, told["status"]) == (0, "done"), said
    snapshot = fitted_shapes.snapshot
    present = sum(part.present for part in snapshot.modalities.values())
    assert told["snapshot"] == snapshot.id and told["rows"] == snapshot.rows
    assert (told["reused"], told["embedded"], told["copied"], told["shards"]) == (present, 0, 0, 0)
    assert told["quarantined"] == 1 and told["fitted"] == 0 and told["unfitted"] == []
    assert told["model"] == told["pipeline"] == "shapes"
    assert (told["champion_before"], told["champion_after"]) == (None, "1")
    assert str(champion(story.uri)) == "1"
    assert "is the champion now" in told["verdict"] and told["error"] is None
    assert set(told["seconds"]) == {"embed", "train", "promote", "report", "total"}


def test_a_run_that_was_overtaken_looks_again(story):
    code, said, told = story.overtaken
    assert code == 0 and "another run has been at work meanwhile; looking again" in said
    assert (told["champion_before"], told["champion_after"]) == ("1", "1")


def test_a_second_run_writes_nothing(story, file):
    before = files(story.folder)
    code, said, told = call(file)
    assert (code, told["status"]) == (0, "unchanged"), said
    assert (told["champion_before"], told["champion_after"]) == ("1", "1")
    assert files(story.folder) == before, "no lease either"


def test_where_the_yaml_cannot_be_written_beside_no_report_is(story, file, monkeypatch):
    """As in a mounted ConfigMap; a folder that root may not write to takes a mount."""
    report = story.folder / "shapes-report.html"
    kept = report.read_bytes()
    report.unlink()
    access = os.access
    monkeypatch.setattr(os, "access", lambda p, mode: mode != os.W_OK and access(p, mode))
    code, said, told = call(file)
    assert (code, told["status"]) == (0, "unchanged"), said
    assert not report.exists()
    monkeypatch.undo()
    assert call(file)[2]["seconds"]["report"] > 0 and report.read_bytes()[:100] == kept[:100]


def test_a_run_leaves_it_to_another_that_is_at_work(file, another):
    code, said, told = call(file)
    assert (code, told["status"], told["error"]) == (0, "left", None)
    assert "another run is at work" in said and "the other run on " in said
    assert told["rows"] is None, "it has not looked at the table"


def lapse(turn):
    os.utime(turn._at(turn._number), (0, 0))


def renew(turn):
    turn._storage.replace(turn._path(turn._number), turn._body(ended=False))


@pytest.mark.parametrize(("sign", "status"), [(lapse, "unchanged"), (renew, "left")])
def test_a_run_leaves_nothing_to_one_that_may_be_dead(file, story, monkeypatch, sign, status):
    """A pod that is started again after a crash is to do the work, not to end well without it."""
    with Turn(LocalStorage(story.folder / "store"), name="run shapes", what="a run afar") as lease:
        monkeypatch.setattr(turns, "_process", lambda: None)
        lease.take()
        when_waited_for(lease, monkeypatch, sign)
        code, said, told = call(file)
    assert (code, told["status"]) == (0, status), said
    assert "waiting to see whether this is alive: a run afar on " in said
    assert told["seconds"]["wait"] > 0


@pytest.mark.parametrize("stage", ["embed", "train", "promote"])
def test_a_stage_by_itself_is_a_run_too(file, another, capsys, monkeypatch, stage):
    before = files(file.parent)
    code, out, err = sensorium(capsys, stage, file)
    assert (code, err) == (0, "") and "another run is at work" in out
    assert files(file.parent) == before
    when_waited_for(another, monkeypatch, Turn.end)
    code, out, err = sensorium(capsys, stage, file, "--on-overlap", "wait")
    assert (code, err) == (0, "") and "waiting for the other run on " in out
    assert "nothing to do" in out or "is the champion already" in out, out


def test_a_dry_run_is_in_nobody_s_way(file, another, capsys):
    code, out, _ = sensorium(capsys, "promote", file, "--dry-run")
    assert code == 0 and "another run" not in out and "champion" in out


def test_a_run_waits_for_another_and_then_does_what_is_left(file, another, monkeypatch):
    when_waited_for(another, monkeypatch, Turn.end)
    code, said, told = call(file, "--on-overlap", "wait")
    assert (code, told["status"]) == (0, "unchanged"), said
    assert "waiting for the other run on " in said
    assert told["seconds"]["wait"] > 0


def test_a_run_that_waits_too_long_ends_by_its_deadline(file, another):
    code, said, told = call(file, "--on-overlap", "wait", "--deadline", "0.2s")
    assert (code, told["status"]) == (1, "out of time")
    assert "the deadline of 0.2 s has passed; what is done is kept" in said
    assert told["rows"] is None


def test_the_deadline_ends_a_stage(file, monkeypatch):
    monkeypatch.setattr(run_module, "train", lambda *_, **__: threading.Event().wait(60))
    code, _, told = call(file, "--deadline", "2s")
    assert (code, told["status"], told["pipeline"]) == (1, "out of time", "shapes")
    assert set(told["seconds"]) <= {"embed", "train", "total"}


def test_sigterm_is_told(file, monkeypatch):
    monkeypatch.setattr(run_module, "train", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    code, said, told = call(file)
    assert (code, told["status"], told["error"]) == (130, "terminated", "SIGTERM")
    assert "run the same command again to go on" in said and told["rows"] == 240


@pytest.mark.parametrize(
    ("change", "options", "expected"),
    [
        (("target: shape", "target: shap"), (), (2, "bad configuration", "shap")),
        (("", ""), ("--deadline", "soon"), (2, "bad configuration", "soon")),
        (("path: table.parquet", "path: gone.parquet"), (), (2, "bad configuration", "gone")),
    ],
)
def test_a_bad_configuration_is_told_too(file, change, options, expected):
    other = file.with_name("other.yaml")
    other.write_text(file.read_text().replace(*change))
    code, _, told = call(other, *options)
    assert (code, told["status"]) == expected[:2]
    assert expected[2] in told["error"]
    assert told["rows"] is None and told["verdict"] is None


def budget():
    item = QuarantineCount(modality="photo", payloads=4, bad=2, reasons={})
    return BudgetExceeded({"photo": item}, rows=None, limit=0.1)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (StageError("no"), "failed"),
        (OSError("disk"), "failed"),
        (LeaseLost("late"), "failed"),
        (ConfigurationError("x.yaml:1: y"), "bad configuration"),
        (DeadlinePassed("late"), "out of time"),
        (Terminated("SIGTERM"), "terminated"),
        (KeyboardInterrupt(), "interrupted"),
        (None, "over budget"),
    ],
)
def test_the_code_that_is_told_is_the_code_it_ends_with(file, monkeypatch, error, status):
    error = error or budget()

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(run_module, "embed", fail)
    monkeypatch.setattr("workflows.quarantine.quarantine_table", lambda *_, **__: "")
    code, _, told = call(file)
    assert told["status"] == status and (status, code) == status_of(error)
