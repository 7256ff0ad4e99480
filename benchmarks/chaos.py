"""A pipeline on three machines that lose their power, beside one that nobody disturbed.

python -m benchmarks.chaos [--runs N] [--seed N] [--first N] [--quick] [--log FILE]

The machines are simulated (`benchmarks.nodes`); table, pictures and store are in S3, runs and
models on an MLflow server. `sensorium run` and `sensorium score` are run undisturbed once, and then
again and again into empty stores while machines are switched off, at moments that are drawn from a
seed, and on again. Every run must end with 0, and with the same: embeddings byte for byte, the
champion, its answers to the test rows, and the answers of the scoring.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.chaos_world import left_behind, make_bucket, word_vectors, write_tables
from benchmarks.nodes import Machines
from benchmarks.power_cuts import WORKERS, Disturber, Ended, Kill
from benchmarks.results import report
from benchmarks.servers import mlflow_server, s3_server

BUCKET = "chaos"
PIPELINE = """
name: chaos
dataset:
  path: {root}/table.parquet
  split: split
  shard_rows: {{min: 10, target: 20, max: 40}}
features:
  text: {{column: text, encoder: {{type: word_vectors, path: words.vec}}}}
  photo: {{column: photo, encoder: {{type: hog, size: 32, pixels_per_cell: 8}}}}
task: {{target: label}}
candidates:
  - {{type: single, modality: text}}
  - {{type: single, modality: photo, learning_rate: 0.003}}
  - {{type: early}}
  - {{type: late, width: {width}, dropout: 0.1}}
training:
  workers: {workers}
  max_epochs: {epochs}
  patience: {epochs}
  batch_size: 64
  checkpoint_every: 1
store: {root}/{name}/store
tracking: {{experiment: {name}, model: {name}}}
"""
STAGES = ("embed", "train", "promote", "score")
MOST_SECONDS = 400.0


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much there is to do."""

    rows: int
    scored: int
    epochs: int
    width: int
    workers: int
    """Of the training."""
    kills: int
    """In each of embed, train and score."""


WHOLE = Size(rows=300, scored=2_500, epochs=6, width=4096, workers=2, kills=2)
QUICK = Size(rows=240, scored=1_500, epochs=5, width=4096, workers=2, kills=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=10, help="disturbed runs (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--first", type=int, default=0, help="number of the first run (default: 0)")
    parser.add_argument("--quick", action="store_true", help="a small table; write nothing")
    parser.add_argument("--log", type=Path, help="file for all that the commands say")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the machines end with it
    size = QUICK if options.quick else WHOLE
    rows, bad = [], 0
    with (
        servers() as environment,
        world(f"s3://{BUCKET}", size=size, environment=environment) as here,
    ):
        print(
            f"seed {options.seed}; machines see no other's /tmp: {here.machines.hidden}", flush=True
        )
        for machine in here.machines.workers:
            machine.start()
        plain = here.run("plain")
        if set(plain.codes) != {0}:
            raise SystemExit(f"the undisturbed run failed:\n{plain.output}")
        print(f"undisturbed: {_seconds(plain)}", flush=True)
        for number in range(options.first, options.first + options.runs):
            draw = random.Random(f"{options.seed} {number}")
            kills = Kill.drawn(draw, each=size.kills)
            ended = here.run(f"run-{number}", kills=kills, usual=plain.seconds)
            wrong = differences(ended, expected=plain)
            spared = [stage for stage in WORKERS if stage not in ended.at_work]
            bad += bool(wrong or spared)
            verdict = "; ".join(wrong) or "equal"
            if spared:
                verdict += f" (no machine was lost at the work of {', '.join(spared)})"
            print(
                f"run {number}: {verdict}; {_seconds(ended)}\n  " + "\n  ".join(ended.kills),
                flush=True,
            )
            if wrong:
                print(ended.output, flush=True)
            if options.log:
                with options.log.open("a") as log:
                    log.write(f"== run {number}\n{ended.output}\n")
            total = sum(ended.seconds.values())
            rows.append([str(number), str(len(ended.kills)), f"{total:.0f}", verdict])
    report(
        "chaos",
        head=("run", "machines lost", "seconds", "beside the undisturbed"),
        rows=[["–", "0", f"{sum(plain.seconds.values()):.0f}", "–"], *rows],
        targets=[],
        remarks=[
            f"Seed {options.seed}: {size.kills} losses in each of embed, train and score, at "
            "random moments, of two workers with a CPU each, one of them of a machine that is at "
            "the stage's work; a machine comes back after 0.5–4 s. The CPUs were shared."
        ],
        write=not options.quick,
    )
    if bad:
        raise SystemExit(f"{bad} of {options.runs} runs differ, or lost no machine at work")


def differences(ended: Ended, *, expected: Ended) -> list[str]:
    """What is not as it is where nothing was disturbed."""
    wrong = [f"exit codes {ended.codes}"] if set(ended.codes) != {0} else []
    names = sorted(ended.found.keys() | expected.found.keys())
    return wrong + [n for n in names if ended.found.get(n) != expected.found.get(n)]


# ------------------------------------------------------------------ the world


class World:
    """Three machines, servers and tables in S3; and pipelines that are run there."""

    def __init__(
        self, *, root: str, size: Size, machines: Machines, environment: Mapping[str, str]
    ) -> None:
        """`root` is where the tables are in S3, and where stores are made."""
        self.machines = machines
        self._root, self._size, self._environment = root, size, environment

    def write(self, name: str, *, folder: Path) -> tuple[tuple[str, ...], ...]:
        """The YAML of a pipeline, in a folder; the commands to type there."""
        text = PIPELINE.format(
            name=name,
            root=self._root,
            epochs=self._size.epochs,
            width=self._size.width,
            workers=self._size.workers,
        )
        folder.mkdir()
        (folder / "chaos.yaml").write_text(text)
        (folder / "words.vec").write_text(word_vectors())  # on the driver's disk alone
        new, answers = f"{self._root}/new.parquet", f"{self._root}/{name}/answers"
        return ("run", "chaos.yaml"), ("score", "chaos.yaml", new, answers)

    def run(
        self,
        name: str,
        *,
        kills: Sequence[Kill] = (),
        usual: Mapping[str, float] | None = None,
    ) -> Ended:
        """`run` and `score` of a pipeline with a store of its own.

        Machines that are off are switched on when there is work, as an autoscaler does it.
        """
        folder = self.machines.base / name
        commands = self.write(name, folder=folder)
        ended = Ended()
        disturber = Disturber(self.machines, kills=kills, usual=usual or {}, ended=ended)
        with disturber:
            for command in commands:
                code = self._command(command, folder=folder, ended=ended, disturber=disturber)
                ended.codes.append(code)
                if code:
                    break
        with _environment(self._environment):
            ended.found = left_behind(self._root, name=name)
        return ended

    def _command(
        self, words: Sequence[str], *, folder: Path, ended: Ended, disturber: Disturber
    ) -> int:
        """Run a command on the head, and tell the disturber of the stages that it comes to."""
        if words[0] == "score":
            disturber.begin("score")
        environment = {
            **os.environ,
            **self._environment,
            "RAY_ADDRESS": self.machines.address,
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "workflows", *words],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        killer = threading.Timer(MOST_SECONDS, process.kill)
        killer.start()
        disturber.give_up = process.kill
        assert process.stdout is not None
        try:
            for line in process.stdout:
                ended.output += f"{disturber.clock():6.1f}  {line}"
                stage = line.split(" ", 1)[0].strip()
                if stage in STAGES and disturber.stage not in ("score", stage):
                    disturber.begin(stage)
            code = process.wait()
        finally:
            process.kill()
            killer.cancel()
        disturber.end()
        return code


@contextmanager
def world(root: str, *, size: Size, environment: Mapping[str, str]) -> Iterator[World]:
    """Tables in S3 and three machines, of which the two workers are off.

    `environment` says where S3 and MLflow are.
    """
    folder = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))
    environment = {"NO_PROXY": "127.0.0.1,localhost", "OMP_NUM_THREADS": "1", **environment}
    try:
        with _environment(environment):
            write_tables(root, rows=size.rows, scored=size.scored)
        with Machines(folder, environment=environment) as machines:
            yield World(root=root, machines=machines, size=size, environment=environment)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def servers() -> Iterator[dict[str, str]]:
    """An S3 server with a bucket and MLflow's server, as variables that lead there."""
    with tempfile.TemporaryDirectory() as folder, s3_server() as endpoint:
        place = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "not-a-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        with _environment(place):
            make_bucket(BUCKET)
        database, artifacts = Path(folder) / "mlflow.db", f"s3://{BUCKET}/mlflow"
        with mlflow_server(database, artifacts=artifacts, environment=place) as uri:
            yield {**place, "MLFLOW_TRACKING_URI": uri}


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Variables of this process, for the time of a block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _seconds(ended: Ended) -> str:
    parts = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in ended.seconds.items())
    return f"{sum(ended.seconds.values()):.1f} s ({parts})"


if __name__ == "__main__":
    main()
