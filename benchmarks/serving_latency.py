"""What a registered model takes to answer, beside the bare passes that it consists of.

    python -m benchmarks.serving_latency [--quick] [--seconds 8]

One row and 32, p50 and p99. `bare` is what a script for this model alone would do: the payloads
decoded and prepared by its encoders, their forward passes, and the head in torch; without decoding
it has them decoded and prepared already. `predict` is `load_model(...).predict` of a data frame,
`server` an HTTP request with all inline, to `sensorium serve` and to `mlflow models serve`. The
variants take turns, request by request, so that a slow second slows them all.
"""

from __future__ import annotations

import argparse
import base64
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.fuzz_serving import cells
from benchmarks.malformed_requests import form_of
from benchmarks.measure import short
from benchmarks.model_servers import Server, load
from benchmarks.results import Target, report
from benchmarks.served_model import ServedModel, make_served_model
from features.payloads import open_payload
from training.answering import predict
from workflows.serving.cells import payloads

ROWS = (1, 32)
COLUMNS = ("text", "picture", "sound", "age")
OVERHEAD = 1.5
"""Most that `predict` may take, as a multiple of the bare passes with decoding."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a second each, and write nothing")
    parser.add_argument("--seconds", type=float, default=8.0, help="for each set of variants")
    options = parser.parse_args()
    seconds = 1.0 if options.quick else options.seconds
    with tempfile.TemporaryDirectory() as name:
        served = make_served_model(Path(name) / "model")
        model = load(served)
        servers = {
            kind: Server(served, kind=kind, log=Path(name) / f"{kind}.log")
            for kind in ("sensorium", "mlflow")
        }
        try:
            for server in servers.values():
                server.wait()
            lines, ratios = measured(served, model, servers=servers, seconds=seconds)
        finally:
            for server in servers.values():
                server.stop()
    report(
        "serving_latency",
        head=("rows", "inputs", "variant", "p50 ms", "p99 ms", "of bare with decoding"),
        rows=lines,
        targets=[
            Target(what=f"predict of {rows} rows, all inputs, over the bare passes", limit=OVERHEAD,
                   found=ratio)
            for rows, ratio in ratios.items()
        ],
        libraries=("mlflow", "onnxruntime", "scikit-image", "soundfile"),
        remarks=[
            "Hashed n-grams of a sentence, HOG of a PNG of 64 x 64 pixels, statistics of half a "
            "second of sound at 8 kHz, and a record, into an early fusion; encoders and server on "
            f"one CPU machine, torch with {torch.get_num_threads()} threads. These encoders are "
            "small: the overhead over larger ones is less.",
        ],
        write=not options.quick,
    )  # fmt: skip


def measured(
    served: ServedModel, model: Any, *, servers: dict[str, Server], seconds: float
) -> tuple[list[list[str]], dict[int, float]]:
    """The lines of the table, and by number of rows what `predict` takes of the bare passes."""
    lines, ratios = [], {}
    rows = served.inline().dropna().reset_index(drop=True)
    for count in ROWS:
        some = pd.concat([rows] * (count // len(rows) + 1)).head(count).reset_index(drop=True)
        kinds: list[tuple[str, ...]] = [COLUMNS, *((name,) for name in COLUMNS)]
        for kept in kinds:
            chosen = some[[*kept, *(["ward"] if "age" in kept else [])]]
            variants = _variants(chosen, model, servers=servers, whole=kept == COLUMNS)
            share = seconds if kept == COLUMNS else seconds / 3
            times = in_turn(variants, seconds=share)
            base = np.percentile(times["bare, with decoding"], 50)
            for name, found in times.items():
                p50, p99 = np.percentile(found, [50, 99])
                inputs = "all" if kept == COLUMNS else kept[0]
                lines.append(
                    [str(count), inputs, name, short(p50), short(p99), f"{p50 / base:.2f} ×"]
                )
                print("  ", *lines[-1], f"({len(found)} times)", flush=True)
            if kept == COLUMNS:
                ratios[count] = float(np.percentile(times["predict"], 50) / base)
    return lines, ratios


def in_turn(variants: dict[str, Callable[[], Any]], *, seconds: float) -> dict[str, list[float]]:
    """Milliseconds of each, one after another until the time is up; the first turns are warm-up."""
    for _ in range(3):
        for run in variants.values():
            run()
    times: dict[str, list[float]] = {name: [] for name in variants}
    last = time.perf_counter() + seconds
    while time.perf_counter() < last or len(next(iter(times.values()))) < 20:
        for name, run in variants.items():
            begun = time.perf_counter()
            run()
            times[name].append(1000 * (time.perf_counter() - begun))
    return times


def _variants(
    rows: pd.DataFrame, model: Any, *, servers: dict[str, Server], whole: bool
) -> dict[str, Callable[[], Any]]:
    bare = Bare(rows, model=model)
    prepared = bare.prepared()
    variants: dict[str, Callable[[], Any]] = {
        "bare": lambda: bare.passed(prepared),
        "bare, with decoding": lambda: bare.passed(bare.prepared()),
        "predict": lambda: model.predict(rows),
    }
    expected = [row["probabilities"] for row in model.predict(rows).to_dict("records")]
    np.testing.assert_allclose(bare.passed(prepared), expected, atol=1e-6)
    if whole:
        session, given = onnx_head(model, bare=bare, prepared=prepared)
        variants["head alone, torch"] = lambda: bare.head(given)
        variants["head alone, ONNX"] = lambda: session.run(None, given)
        body = json.dumps(form_of(cells(rows), "dataframe_split")).encode()
        for kind, server in servers.items():
            name = {"sensorium": "sensorium serve", "mlflow": "mlflow models serve"}[kind]
            variants[name] = lambda server=server: _post(server, body)
    return variants


def _post(server: Server, body: bytes) -> None:
    status, said = server.post(body)
    assert status == 200, said


class Bare:
    """The passes that an answer consists of, by themselves."""

    def __init__(self, rows: pd.DataFrame, *, model: Any) -> None:
        ours = model.unwrap_python_model()
        self.record, self.fitted = ours.record, ours.fitted()
        self.count = len(rows)
        self.inputs = ours.inputs
        self.encoders = {name: ours._encoder(name)[1] for name in ours.inputs}
        self.dtypes = {name: ours._encoder(name)[0].dtype for name in ours.inputs}
        # As the bytes that a script would have received.
        content = rows.map(_content)
        self.cells = {
            name: payloads(content, columns=item.columns) for name, item in ours.inputs.items()
        }

    def prepared(self) -> dict[str, list[Any]]:
        """By modality that is there, each payload as its encoder takes it."""
        return {
            name: [
                self.encoders[name].prepare(
                    open_payload(cell, columns=self.inputs[name].columns, folder="")
                )
                for cell in found
            ]
            for name, found in self.cells.items()
            if found[0] is not None
        }

    def passed(self, prepared: dict[str, list[Any]]) -> np.ndarray:
        """Probabilities of what is prepared."""
        return self.head(self.embedded(prepared))

    def embedded(self, prepared: dict[str, list[Any]]) -> dict[str, np.ndarray]:
        given = {}
        for name, encoder in self.encoders.items():
            there = name in prepared
            values = np.zeros((self.count, self.inputs[name].dim), np.float32)
            if there:
                values = np.asarray(encoder.encode(prepared[name])).astype(self.dtypes[name])
            given[name] = values.astype(np.float32)
            given[f"{name}_present"] = np.full(self.count, there)
        return given

    def head(self, given: dict[str, np.ndarray]) -> np.ndarray:
        return predict(
            self.fitted,
            record=self.record,
            embeddings={m: given[m] for m in self.encoders},
            presence={m: given[f"{m}_present"] for m in self.encoders},
        )


def _content(cell: Any) -> Any:
    if isinstance(cell, str) and cell.startswith("data:"):
        return base64.b64decode(cell.partition(",")[2])
    return cell


def onnx_head(model: Any, *, bare: Bare, prepared: dict[str, list[Any]]) -> tuple[Any, Any]:
    """The head in onnxruntime, and what it takes."""
    import onnxruntime

    from training.onnx_export import export_onnx

    session = _SESSIONS.get(id(model))
    if session is None:
        graph = export_onnx(bare.fitted, record=bare.record).graph
        session = _SESSIONS[id(model)] = onnxruntime.InferenceSession(graph)
    return session, bare.embedded(prepared)


_SESSIONS: dict[int, Any] = {}


if __name__ == "__main__":
    main()
