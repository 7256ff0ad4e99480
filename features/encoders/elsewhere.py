"""An encoder in another process, as a worker has it. `python -m features.encoders.elsewhere`."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from features.encoders.base import EncoderSpec

SECONDS = 600
"""How long the other process may take."""


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """What the other process found."""

    by_json: str = ""
    """Fingerprint of the spec, read from its JSON."""
    by_pickle: str = ""
    """Fingerprint of the spec, unpickled."""
    rows: list[np.ndarray]
    """Embeddings of the samples in one batch."""
    problem: str = ""
    """Why there is nothing of that."""


def encode_elsewhere(spec: EncoderSpec, *, samples: Sequence[Any]) -> Elsewhere:
    """Encode decoded payloads in a process that begins afresh, with another hash seed."""
    try:
        pickled = pickle.dumps(spec)
    except Exception as error:
        return Elsewhere(rows=[], problem=f"the spec cannot be pickled: {error}")
    task = pickle.dumps((pickled, spec.model_dump(mode="json"), list(samples)))
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    paths = os.pathsep.join(path for path in sys.path if path)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "features.encoders.elsewhere"],
            input=task,
            capture_output=True,
            env=os.environ | {"PYTHONPATH": paths, "PYTHONHASHSEED": seed},
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        return Elsewhere(rows=[], problem=f"another process takes more than {SECONDS} seconds")
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip().splitlines()
        says = words[-1] if words else f"exit code {done.returncode}"
        return Elsewhere(rows=[], problem=f"another process fails: {says}")
    answer: Elsewhere = pickle.loads(done.stdout)  # noqa: S301 - written by our own child
    return answer


def _answer() -> None:
    from features.encoders import elsewhere, parse_encoder

    # What prints must not stand in the answer.
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    pickled, as_json, samples = pickle.load(sys.stdin.buffer)  # noqa: S301 - from our own parent
    spec = pickle.loads(pickled)  # noqa: S301
    encoder = spec.load()
    rows = encoder.encode([encoder.prepare(payload) for payload in samples])
    found = elsewhere.Elsewhere(
        by_json=parse_encoder(as_json).fingerprint(),
        by_pickle=spec.fingerprint(),
        rows=[np.asarray(row) for row in rows],
    )
    out.write(pickle.dumps(found))
    out.close()


if __name__ == "__main__":
    _answer()
