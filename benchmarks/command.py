"""The options that every benchmark has."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.measure import ENVIRONMENT

PYTHON = sys.executable


def parse(
    description: str | None,
    *,
    rows: int,
    quick: int,
    repeats: int = 3,
    variants: Mapping[str, Callable[[Path], None]] | None = None,
) -> argparse.Namespace:
    """Read the command line; run a variant by itself, and end, if that is what it asks for.

    The result has `rows`, `repeats`, `quick`, `folder` (which is made) and `peers`.
    """
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"{quick:,} rows, and write nothing")
    parser.add_argument("--rows", type=int, help=f"rows of the table (default: {rows:,})")
    parser.add_argument("--repeats", type=int, help=f"runs of each variant (default: {repeats})")
    parser.add_argument("--folder", type=Path, help="where tables and stores are kept")
    parser.add_argument(
        "--peers", default=sys.executable, help="a Python that can import the peers, such as daft"
    )
    parser.add_argument("--variant", choices=list(variants or ()), help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    if options.variant:
        assert variants is not None
        variants[options.variant](options.folder)
        raise SystemExit
    options.rows = options.rows or (quick if options.quick else rows)
    options.repeats = options.repeats or (1 if options.quick else repeats)
    module = getattr(sys.modules["__main__"].__spec__, "name", "benchmarks").rpartition(".")[2]
    base = options.folder or Path(tempfile.gettempdir()) / "sensorium-benchmarks"
    options.folder = base / module
    options.folder.mkdir(parents=True, exist_ok=True)
    return options
