"""A pipeline on three machines of which some are lost at work, beside one without any."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from benchmarks.chaos import Size, differences, world
from benchmarks.chaos_world import left_behind
from benchmarks.power_cuts import Ended, Kill
from features.actors import SCALES_TO
from tests.conftest import BUCKET, make_bucket
from tests.workflows.command import sensorium
from tests.workflows.conftest import MlflowServer
from tests.workflows.in_process import without_ray

SMALL = Size(rows=200, scored=1200, epochs=6, width=16, workers=2, kills=1)
LOSSES = [
    Kill(stage="embed", share=1, worker=0, off=0.5, at="ShardEncoder"),
    Kill(stage="train", share=1, worker=0, off=0.5, at="RayTrainWorker"),
    Kill(stage="score", share=1, worker=0, off=0.5, at="MapWorker"),
]
"""A machine each, as soon as it is at work on that."""
MOMENT = {"embed": 0.0, "train": 0.0, "score": 0.0}


@pytest.mark.slow
def test_machines_that_are_lost_at_work_change_nothing(
    s3_endpoint: str,
    mlflow_server: MlflowServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No disk is shared. At first there is nothing but a head without CPUs, as where an autoscaler
    has taken all other machines away; they come once there is work.
    """
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    make_bucket(BUCKET)
    root = f"s3://{BUCKET}/nodes-{uuid.uuid4().hex}"
    place = {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "MLFLOW_TRACKING_URI": mlflow_server.uri,
        SCALES_TO: '[{"max": 2, "CPU": 1}]',
    }
    with world(root, size=SMALL, environment=place) as here:
        ended = here.run("lost", kills=LOSSES, usual=MOMENT)
    assert ended.codes == [0, 0], ended.output
    assert [line.split(" of ")[1].split(",")[0] for line in ended.kills] == [
        "embed", "train", "score",
    ], ended.output  # fmt: skip

    # The same where all is done in this process.
    expected = Ended()
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
        without_ray(patch)
        for command in here.write("undisturbed", folder=tmp_path / "undisturbed"):
            patch.chdir(tmp_path / "undisturbed")
            code, out, err = sensorium(capsys, *command)
            assert code == 0, out + err
        expected.found = left_behind(root, name="undisturbed")
    assert len([name for name in expected.found if " shard " in name]) > 10
    assert any("answers" in name for name in expected.found)
    assert differences(ended, expected=expected) == [], ended.output
