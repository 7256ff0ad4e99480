"""Who kills the process: a shard's rows tried one by one in a child process, which may die.

A decoder or a model in native code can end the whole process (a segmentation fault, an abort).
Nothing in that process can tell which row it was; so the rows go through a child that says on
its standard output which rows it takes up next. `python -m features.isolation` is the child.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pydantic

from features.columns import PayloadColumns
from features.decoders.base import Limits
from features.encoders import Encoder, EncoderField
from features.encoding import Prepared, budget_of, form_batches
from features.plan import Work
from features.prepare import Opening, prepared_windows
from features.sources import RowReader, Source, rows_in_source
from features.storage import open_storage
from features.store import Store

OF_THE_SYSTEM = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT}
"""Signals that come from outside (the kernel short of memory, an operator), not from a row."""
DEATHS = 2
"""How often a row must kill the process to be blamed: once may be chance."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a child process is given: a shard, and which of its rows to try."""

    work: Work
    root: str
    """The store's root."""
    spec: EncoderField
    source: Source
    columns: PayloadColumns
    key_by: str
    limits: Limits
    skip: tuple[int, ...] = ()
    """Rows that are not tried."""
    most: int | None = None
    """Rows of a batch at most, if that is less than the encoder's."""


_AS_JSON = pydantic.TypeAdapter(Trial)


def find_killers(trial: Trial) -> dict[int, str]:
    """The rows of a shard that kill the process, each with the reason.

    Costs the shard's decoding and encoding, and a new process for each death. Raises MemoryError
    if the child is killed from outside, and RuntimeError if it fails before it reaches a row.
    """
    killers: dict[int, str] = {}
    deaths: dict[int, int] = {}
    safe: set[int] = set()
    most: int | None = None
    while True:
        part = dataclasses.replace(trial, skip=(*killers, *safe), most=most)
        last: list[int] = []
        with subprocess.Popen(
            [sys.executable, "-m", "features.isolation"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        ) as child:
            assert child.stdin and child.stdout and child.stderr
            child.stdin.write(_AS_JSON.dump_json(part).decode())
            child.stdin.close()
            with ThreadPoolExecutor(max_workers=1) as pool:
                complaint = pool.submit(child.stderr.read)
                finished = False
                for line in child.stdout:
                    message = json.loads(line)
                    safe.update(message.get("safe", ()))
                    finished = finished or "done" in message
                    last = message.get("rows", last)
                code = child.wait()
                words = complaint.result().strip()
        if finished:
            return killers
        how = _how_it_died(code)
        if -code in OF_THE_SYSTEM:
            place = f"at rows {last[:5]}" if last else "while it loaded the encoder"
            raise MemoryError(f"the process was ended from outside ({how}) {place}")
        if not last:
            raise RuntimeError(
                f"the rows cannot be tried in a process of their own ({how}): {words[-2000:]}"
            )
        if len(last) > 1:
            most = (len(last) + 1) // 2
            continue
        deaths[last[0]] = deaths.get(last[0], 0) + 1
        if deaths[last[0]] >= DEATHS:
            killers[last[0]] = f"it ends the process that works on it: {how}"


def _how_it_died(code: int) -> str:
    if code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"


def _try_rows(trial: Trial) -> None:
    """The child's work: say which rows are taken up, and which have come through."""
    work, columns = trial.work, trial.columns
    store = Store(open_storage(trial.root))
    keys = store.read_table(work.samples, columns=[f"key.{work.modality}"])[0].to_pylist()
    reader = RowReader(trial.source, columns=columns.names, text=columns.text_names)
    encoder = trial.spec.load()
    opening = Opening(
        columns=columns,
        encoder=encoder,
        folder=trial.source.folder,
        key_by=trial.key_by,
        limits=trial.limits,
    )
    waiting: list[Prepared] = []
    skip = set(trial.skip)
    rows = [row for row, key in enumerate(keys) if key is not None and row not in skip]
    with ThreadPoolExecutor(max_workers=1) as pool:
        for row in rows:
            _say(rows=[row])
            for window in prepared_windows(
                [row],
                read=lambda some: columns.payloads(reader.read(rows_in_source(work.ranges, some))),
                keys=keys,
                opening=opening,
                pool=pool,
            ):
                waiting += window.prepared
                _say(safe=[bad.row for bad in window.bad])
            if len(waiting) >= trial.spec.batch_size or row == rows[-1]:
                _try_batches(waiting, trial=trial, encoder=encoder)
                waiting = []
    _say(done=True)


def _try_batches(prepared: Sequence[Prepared], *, trial: Trial, encoder: Encoder) -> None:
    most = min(trial.most or trial.spec.batch_size, trial.spec.batch_size)
    for batch in form_batches(prepared, rows=most, budget=budget_of(encoder)):
        rows = [item.row for item in batch]
        _say(rows=rows)
        try:
            encoder.encode([item.payload for item in batch])
        except Exception as error:  # one that raises does not kill; the real work deals with it
            sys.stderr.write(f"rows {rows[:5]}: {error}\n")
        _say(safe=rows)


def _say(**words: object) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _try_rows(_AS_JSON.validate_json(sys.stdin.read()))
