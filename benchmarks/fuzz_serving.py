"""Malformed requests and payloads, sent to a model that is really served, and what came of them.

    python -m benchmarks.fuzz_serving [--requests 10000] [--seed 0] [--clients 1] [--server mlflow]

A model of texts, images, sounds and records is served in a process of its own. Every request is
made from one that is right, by mutations that are drawn by the seed. Of each it is known what must
come of it: `refused`, a 400 (413 or 415) with a message and no trace of code; or `answered`, a 200
with as many answers as rows, in which a payload that was made useless is missing, and said to be.
Between them come right requests, whose answers must be those of `load_model(...).predict` to the
last bit of what JSON holds. At the end the server must be alive, and hold no more memory or files
than after the first tenth.

`--server mlflow` sends the same to `mlflow models serve`, which reads requests before the model
sees them: what it does otherwise is counted, and told.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import shutil
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.malformed_requests import BAD, EITHER, REFUSED, Attack, Fuzzer, rows_said
from benchmarks.model_servers import Server, load
from benchmarks.results import Target, report
from benchmarks.served_model import ServedModel, make_served_model
from workflows.console import several

GROWTH_MB = 64.0
"""Most that the server may hold more at the end than after the first tenth."""
FILES = 8
LEAKS = (
    *("Traceback", 'File "', "site-packages", "root:x:", "stack_trace"),
    str(Path(__file__).resolve().parents[1]),
    tempfile.gettempdir(),
)


@dataclass(kw_only=True)
class Outcome:
    """What came of all of them."""

    sent: int = 0
    right: int = 0
    """Right requests in between, all answered exactly."""
    statuses: collections.Counter[int] = field(default_factory=collections.Counter)
    faults: list[str] = field(default_factory=list)
    by_kind: collections.Counter[str] = field(default_factory=collections.Counter)
    rss_mb: list[float] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def growth_mb(self) -> float:
        """From the median of the second tenth to that of the last."""
        tenth = max(1, len(self.rss_mb) // 10)
        first, last = sorted(self.rss_mb[tenth : 2 * tenth + 1]), sorted(self.rss_mb[-tenth:])
        return last[len(last) // 2] - first[len(first) // 2]


def cells(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON has them."""
    return json.loads(rows.to_json(orient="records"))


def expected_answers(model: Any, rows: list[dict[str, Any]]) -> list[Any]:
    """What `load_model(...).predict` answers, as JSON holds it."""
    answers = model.predict(pd.DataFrame(rows, dtype=object))
    return json.loads(json.dumps(answers.to_dict(orient="records")))


def misled(attack: Attack, answers: list[Any], *, model: Any) -> str | None:
    """What is wrong with the answers to a request some bytes of which were changed.

    They must be those to what the request now says. A picture of other bytes than it had must be
    missing, since all of a PNG is under checksums; or be what it was, where no byte that counts is
    another.
    """
    rows = rows_said(attack.body)
    if "picture" not in rows[0] or rows[0]["picture"] == attack.picture:
        allowed = [expected_answers(model, rows)]
    else:
        allowed = [
            expected_answers(model, [{**rows[0], "picture": picture}, *rows[1:]])
            for picture in (None, attack.picture)
        ]
    said = [[{**answer, "problems": None} for answer in one] for one in (answers, *allowed)]
    return None if said[0] in said[1:] else f"another answer than {allowed}: {answers}"


def fault_of(attack: Attack, status: int, body: bytes, *, model: Any) -> str | None:
    """What is wrong with what came of a request; None if nothing is."""
    text = body.decode("utf-8", "replace")
    if any(leak in text for leak in LEAKS):
        return f"{status} that tells of the server: {text[:300]}"
    if status in (400, 413, 415):
        if attack.expected in (BAD, "answered"):
            return f"{status} where there are answers: {text[:300]}"
        if len(text) > 2000:
            return f"{status} with a message of {len(text):,} characters"
        try:
            said = json.loads(text)["message"]
        except (ValueError, KeyError, TypeError):
            return f"{status} without a message: {text[:300]}"
        return None if said.strip() else f"{status} with an empty message"
    if status != 200:
        return f"{status}: {text[:300]}"
    if attack.expected == REFUSED:
        return f"200 where it is to be refused: {text[:300]}"
    answers = json.loads(text, parse_constant=lambda name: name)["predictions"]
    if attack.expected == EITHER:
        return misled(attack, answers, model=model)
    if len(answers) != attack.rows:
        return f"{len(answers)} answers to {attack.rows} rows"
    first = answers[0]
    if attack.bad is not None:
        if attack.bad not in first["missing"]:
            return f"{attack.bad} is not missing: {first}"
        if not first["problems"]:
            return f"nothing is said of {attack.bad}: {first}"
    if len(first["missing"]) == 4 and first["prediction"] is not None:
        return f"a guess where nothing is known: {first}"
    return None


def fuzz(
    server: Server,
    served: ServedModel,
    *,
    requests: int,
    seed: int,
    model: Any,
    clients: int = 1,
    roots: bool = False,
) -> Outcome:
    """Send that many malformed requests, and a right one between every ten.

    Each client has a connection of its own. If it has `roots`, the server reads some files, and
    relative paths may lead to one of them.
    """
    rows = cells(served.inline())
    right = []
    for number in range(8):
        some = [rows[(number * 3 + i) % len(rows)] for i in range(1 + number % 3)]
        right.append((some, expected_answers(model, some)))
    for some, _ in right:  # warm
        server.post(json.dumps({"dataframe_records": some}).encode())
    outcome, begun, lock = Outcome(), time.perf_counter(), threading.Lock()
    every = max(1, requests // 100)

    def send(client: int) -> None:
        fuzzer, own = Fuzzer(rows, seed=seed * 1000 + client, roots=roots), server.client()
        for number in range(client, requests, clients):
            attack = fuzzer.attack()
            status, body = own.post(attack.body, headers=attack.headers)
            fault = fault_of(attack, status, body, model=model)
            wrong = None
            if number % 10 == 0:
                some, wanted = right[number // 10 % len(right)]
                found, said = own.post(json.dumps(fuzzer._request(some)).encode())
                if found != 200 or json.loads(said)["predictions"] != wanted:
                    wrong = f"right request after {number}: {found} {said[:300]!r}"
            with lock:
                outcome.sent += 1
                outcome.statuses[status] += 1
                outcome.right += number % 10 == 0
                if fault is not None:
                    outcome.by_kind[attack.name] += 1
                    outcome.faults.append(f"request {number}, {attack.name}: {fault}")
                if wrong is not None:
                    outcome.by_kind["right request"] += 1
                    outcome.faults.append(wrong)
                if number % every == 0:
                    outcome.rss_mb.append(server.rss_mb())
                    outcome.files.append(server.open_files())
        own.connection.close()

    with ThreadPoolExecutor(max_workers=clients) as pool:
        for _ in pool.map(send, range(clients)):
            pass
    outcome.seconds = time.perf_counter() - begun
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clients", type=int, default=1, help="connections at a time")
    parser.add_argument("--server", choices=("sensorium", "mlflow"), default="sensorium")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        served = make_served_model(folder / "model")
        server = Server(served, kind=options.server, log=folder / "server.log")
        try:
            server.wait()
            os.chdir(served.folder)
            outcome = fuzz(
                server,
                served,
                requests=options.requests,
                seed=options.seed,
                clients=options.clients,
                model=load(served),
            )
            alive = server.process.poll() is None
        finally:
            server.stop()
            shutil.copy(folder / "server.log", Path(tempfile.gettempdir()) / "fuzz_serving.log")
    for kind, count in outcome.by_kind.most_common():
        first = next(fault for fault in outcome.faults if f", {kind}:" in fault or kind in fault)
        print(f"  {count:6,} {kind}; the first: {first[:400]}")
    told(outcome, options=options, alive=alive)
    if not alive or outcome.faults:
        raise SystemExit("the server has not stood it" if alive else "the server has ended")


def told(outcome: Outcome, *, options: argparse.Namespace, alive: bool) -> None:
    """The figures, on the terminal and, of many requests to our server, in RESULTS.md."""
    files = outcome.files[-1] - outcome.files[len(outcome.files) // 10]
    statuses = ", ".join(f"{code}: {n:,}" for code, n in sorted(outcome.statuses.items()))
    report(
        "fuzz_serving",
        head=("server", "malformed", "right", "seconds", "statuses", "MB first → last", "files"),
        rows=[
            [
                options.server + ("" if alive else ", which has ended"),
                f"{outcome.sent:,}",
                f"{outcome.right:,}",
                f"{outcome.seconds:.0f}",
                statuses,
                f"{outcome.rss_mb[0]:.0f} → {outcome.rss_mb[-1]:.0f}",
                f"{outcome.files[0]} → {outcome.files[-1]}",
            ]
        ],
        targets=[
            Target(what="not as they must be", limit=0, found=len(outcome.faults)),
            Target(
                what="memory, second tenth to last", limit=GROWTH_MB, found=outcome.growth_mb,
                unit="MB",
            ),
            Target(what="further open files", limit=FILES, found=files),
        ],
        libraries=("mlflow", "starlette", "uvicorn"),
        remarks=[
            f"{several(options.clients, 'client')}, each over one connection; the right requests "
            "are answered as `load_model(...).predict` answers them, to the last bit."
        ],
        write=options.server == "sensorium" and options.requests >= 10_000,
    )  # fmt: skip


if __name__ == "__main__":
    main()
