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
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.chaos_world import BUCKET, left_behind, write_table
from benchmarks.nodes import Machines
from benchmarks.results import report
from benchmarks.servers import mlflow_server, s3_server

PIPELINE = """
name: chaos
dataset:
  path: s3://{bucket}/table.parquet
  split: split
  shard_rows: {{min: 10, target: 20, max: 40}}
features:
  text: {{column: text, encoder: {{type: hashing, dim: 64}}}}
  photo: {{column: photo, encoder: {{type: hog, size: 32, pixels_per_cell: 8}}}}
task: {{target: label}}
candidates:
  - {{type: single, modality: text}}
  - {{type: single, modality: photo, learning_rate: 0.003}}
  - {{type: early}}
  - {{type: late, width: {width}}}
training:
  {{workers: 2, max_epochs: {epochs}, patience: {epochs}, batch_size: 64, checkpoint_every: 1}}
store: s3://{bucket}/{name}/store
tracking: {{experiment: {name}, model: {name}}}
"""
OFF_SECONDS = (0.5, 4.0)
"""How long a machine stays off."""
MOST_SHARE = 0.9
"""Later moments may not come about: a stage does not always take as long."""
STAGES = ("embed", "train", "promote", "score")
MOST_SECONDS = 400.0


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much there is to do."""

    rows: int
    scored: int
    epochs: int
    width: int
    kills: int
    """In each of embed, train and score."""


WHOLE = Size(rows=500, scored=8_000, epochs=12, width=4096, kills=2)
QUICK = Size(rows=240, scored=1_500, epochs=5, width=4096, kills=1)


@dataclass(frozen=True, kw_only=True)
class Kill:
    """A machine that is switched off."""

    stage: str
    share: float
    """When: a share of the time that the stage took undisturbed, from its begin."""
    worker: int
    off: float
    """Seconds until it is switched on again."""

    @classmethod
    def drawn(cls, draw: random.Random, *, each: int) -> list[Kill]:
        """So many in each stage that works on the cluster, at random moments, on either machine."""
        return [
            cls(
                stage=stage,
                share=draw.uniform(0, MOST_SHARE),
                worker=draw.randrange(2),
                off=draw.uniform(*OFF_SECONDS),
            )
            for stage in ("embed", "train", "score")
            for _ in range(each)
        ]


@dataclass(kw_only=True)
class Ended:
    """How a pipeline ended, and what it left behind."""

    seconds: dict[str, float] = field(default_factory=dict)
    """By stage."""
    kills: list[str] = field(default_factory=list)
    """When a machine was switched off, and what it was at."""
    output: str = ""
    codes: list[int] = field(default_factory=list)
    found: dict[str, str] = field(default_factory=dict)
    """What must be equal: by name, its digest."""


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
    with world(size) as here:
        print(
            f"seed {options.seed}; machines see no other's /tmp: {here.machines.hidden}", flush=True
        )
        plain = here.run("plain")
        if set(plain.codes) != {0}:
            raise SystemExit(f"the undisturbed run failed:\n{plain.output}")
        print(f"undisturbed: {_seconds(plain)}", flush=True)
        for number in range(options.first, options.first + options.runs):
            draw = random.Random(f"{options.seed} {number}")
            kills = Kill.drawn(draw, each=size.kills)
            ended = here.run(f"run-{number}", kills=kills, usual=plain.seconds)
            wrong = differences(ended, expected=plain)
            bad += bool(wrong)
            verdict = "; ".join(wrong) or "equal"
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
            "random moments, of two workers with a CPU each; a machine comes back after 0.5–4 s."
        ],
        write=not options.quick,
    )
    if bad:
        raise SystemExit(f"{bad} of {options.runs} runs differ")


def differences(ended: Ended, *, expected: Ended) -> list[str]:
    """What is not as it is where nothing was disturbed."""
    wrong = [f"exit codes {ended.codes}"] if set(ended.codes) != {0} else []
    names = sorted(ended.found.keys() | expected.found.keys())
    return wrong + [n for n in names if ended.found.get(n) != expected.found.get(n)]


# ------------------------------------------------------------------ the world


class World:
    """Machines, servers and a table; and pipelines that are run there."""

    def __init__(
        self, *, machines: Machines, size: Size, folder: Path, environment: Mapping[str, str]
    ) -> None:
        self.machines = machines
        self._size, self._folder = size, folder
        self._environment = environment

    def run(
        self, name: str, *, kills: Sequence[Kill] = (), usual: Mapping[str, float] | None = None
    ) -> Ended:
        """`run` and `score` of a pipeline with a store of its own."""
        folder = self._folder / name
        folder.mkdir()
        text = PIPELINE.format(
            name=name, bucket=BUCKET, epochs=self._size.epochs, width=self._size.width
        )
        (folder / "chaos.yaml").write_text(text)
        ended = Ended()
        for machine in self.machines.workers:
            if machine.is_off:
                machine.start()
        disturber = _Disturber(self.machines, kills=kills, usual=usual or {}, ended=ended)
        commands = (
            ("run", "chaos.yaml"),
            ("score", "chaos.yaml", f"s3://{BUCKET}/new.parquet", f"s3://{BUCKET}/{name}/answers"),
        )
        with disturber:
            for command in commands:
                code = self._command(command, folder=folder, ended=ended, disturber=disturber)
                ended.codes.append(code)
                if code:
                    break
        with _environment(self._environment):
            ended.found = left_behind(name)
        return ended

    def _command(
        self, words: Sequence[str], *, folder: Path, ended: Ended, disturber: _Disturber
    ) -> int:
        """Run a command on the head, and tell the disturber of the stages that it comes to."""
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
        scores = words[0] == "score"
        if scores:
            disturber.begin("score")
        assert process.stdout is not None
        for line in process.stdout:
            ended.output += f"{disturber.clock():6.1f}  {line}"
            stage = line.split(" ", 1)[0].strip()
            if stage in STAGES and not scores and stage != disturber.stage:
                disturber.begin(stage)
        code = process.wait()
        killer.cancel()
        disturber.end()
        return code


class _Disturber:
    """Switches machines off at the moments of a plan, and on again."""

    def __init__(
        self, machines: Machines, *, kills: Sequence[Kill], usual: Mapping[str, float], ended: Ended
    ) -> None:
        self.stage = ""
        self.give_up: Callable[[], None] = lambda: None
        """Ends the command that is run."""
        self._machines, self._usual, self._ended = machines, usual, ended
        self._waiting = list(kills)
        self._begun = self._first = time.monotonic()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._disturb, daemon=True)

    def __enter__(self) -> _Disturber:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def clock(self) -> float:
        """Seconds since the begin of the run."""
        return time.monotonic() - self._first

    def begin(self, stage: str) -> None:
        """A stage has begun, and so the one before has ended."""
        self.end()
        with self._lock:
            self.stage, self._begun = stage, time.monotonic()

    def end(self) -> None:
        """The stage has ended; a moment that it did not come to is not made up for."""
        with self._lock:
            if self.stage:
                seconds = self._ended.seconds
                seconds[self.stage] = seconds.get(self.stage, 0) + time.monotonic() - self._begun
            self.stage = ""

    def _disturb(self) -> None:
        off: dict[int, float] = {}
        while not self._over.wait(0.02) or off:
            now = time.monotonic()
            for machine in self._machines.workers:
                if machine.has_failed:
                    self._ended.output += f"{machine.name} has ended by itself:\n{machine.log()}\n"
                    self._ended.codes.append(-1)
                    self.give_up()
                    return
            for number in [n for n, until in off.items() if until <= now]:
                self._machines.workers[number].start()
                del off[number]
            kill = self._due(now)
            if kill is None or kill.worker in off:
                continue
            with self._lock:
                moment = now - self._begun
                stage = self.stage
            lost = self._machines.workers[kill.worker].cut_power()
            off[kill.worker] = now + kill.off
            said = (
                f"worker-{kill.worker + 1} lost at {moment:.1f} s of {stage} "
                f"(drawn: {kill.share:.2f} of it), for {kill.off:.1f} s; it was at "
                f"{', '.join(lost) or 'nothing'}"
            )
            self._ended.kills.append(said)
            self._ended.output += f"{self.clock():6.1f}  -- {said}\n"

    def _due(self, now: float) -> Kill | None:
        with self._lock:
            for kill in self._waiting:
                moment = kill.share * self._usual.get(kill.stage, 0)
                if kill.stage == self.stage and now - self._begun >= moment:
                    self._waiting.remove(kill)
                    return kill
        return None


@contextmanager
def world(size: Size) -> Iterator[World]:
    """Servers, a table in S3 and three machines; the two workers are off."""
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        s3 = stack.enter_context(s3_server())
        place = {
            "AWS_ENDPOINT_URL": s3,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "not-a-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "NO_PROXY": "127.0.0.1,localhost",
            "OMP_NUM_THREADS": "1",
        }
        with _environment(place):
            write_table(rows=size.rows, scored=size.scored)
        tracking = stack.enter_context(
            mlflow_server(
                folder / "mlflow.db", artifacts=f"s3://{BUCKET}/mlflow", environment=place
            )
        )
        place["MLFLOW_TRACKING_URI"] = tracking
        machines = stack.enter_context(Machines(folder, environment=place))
        yield World(machines=machines, size=size, folder=folder, environment=place)


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
