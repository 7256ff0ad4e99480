"""One table in every format, written by the libraries that users write them with."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import os
import tarfile
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import boto3
import lz4.frame
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset
import zstandard

ROWS = 700
FRAME = pd.DataFrame(
    {
        "id": [f"{i:05}" for i in range(ROWS)],
        "text": [None if i % 7 == 0 else f'no. {i}, "quoted"\nsecond — line' for i in range(ROWS)],
        "label": [i % 10 for i in range(ROWS)],
    }
)
PARTS = (0, 300, 300, 700)
"""Where the files of a table of three files begin and end; one of them is empty."""
COMPRESSORS: Mapping[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.ZstdCompressor().compress,
    ".lz4": lz4.frame.compress,
}


def records(frame: pd.DataFrame = FRAME) -> list[dict[str, Any]]:
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


RECORDS = records()


def write_parquet(folder: Path) -> str:
    for i, part in enumerate(parts()):
        table = pa.Table.from_pandas(part, preserve_index=False, schema=schema())
        pq.write_table(table, folder / f"{i}.parquet", row_group_size=150)
    return "*.parquet"


def write_csv(folder: Path, ending: str = "") -> str:
    for i, part in enumerate(parts()):
        text = part.to_csv(index=False)
        (folder / f"{i}.csv{ending}").write_bytes(COMPRESSORS[ending](text.encode()))
    return f"[0-9].csv{ending}"


def write_jsonl(folder: Path, ending: str = "") -> str:
    for i, part in enumerate(parts()):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n\n" for row in records(part))
        (folder / f"{i}.jsonl{ending}").write_bytes(COMPRESSORS[ending](text.encode()))
    return f"?.jsonl{ending}"


def write_webdataset(folder: Path, ending: str = "") -> str:
    """Members as open_clip reads them: `txt` where there is a text, and a `json` of the rest."""
    for i, part in enumerate(parts()):
        buffer = io.BytesIO()
        with webdataset.TarWriter(buffer, encoder=True) as writer:
            for row in records(part):
                sample = {"__key__": row["id"], "json": {"label": row["label"]}}
                writer.write(sample | ({"txt": row["text"]} if row["text"] else {}))
        (folder / f"shard-{i:03}.tar{ending}").write_bytes(COMPRESSORS[ending](buffer.getvalue()))
    return f"shard-{{000..002}}.tar{ending}"


def write_huggingface(folder: Path) -> str:
    import datasets

    datasets.disable_progress_bars()
    whole = datasets.Dataset.from_pandas(FRAME, preserve_index=False)
    whole.save_to_disk(str(folder), num_shards=3)
    return ""


WRITERS: Mapping[str, Callable[[Path], str]] = {
    "parquet": write_parquet,
    "csv": write_csv,
    "csv.gz": lambda folder: write_csv(folder, ".gz"),
    "csv.bz2": lambda folder: write_csv(folder, ".bz2"),
    "jsonl": write_jsonl,
    "jsonl.zst": lambda folder: write_jsonl(folder, ".zst"),
    "jsonl.lz4": lambda folder: write_jsonl(folder, ".lz4"),
    "webdataset": write_webdataset,
    "webdataset.gz": lambda folder: write_webdataset(folder, ".gz"),
    "huggingface": write_huggingface,
}
COLUMNS = {"webdataset": ["__key__", "txt", "json.label"]}
"""How a format calls `id`, `text` and `label`, where it is by other names."""


def columns_of(name: str) -> list[str]:
    return COLUMNS.get(name.split(".")[0], ["id", "text", "label"])


def parts() -> list[pd.DataFrame]:
    return [FRAME[start:stop] for start, stop in pairwise(PARTS)]


def schema() -> pa.Schema:
    return pa.schema({"id": pa.string(), "text": pa.string(), "label": pa.int64()})


def publish(folder: Path, *, root: str) -> str:
    """Put all files of a folder under a root, a folder's path or an s3:// URI."""
    bucket, _, prefix = root.removeprefix("s3://").partition("/")
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        inside = path.relative_to(folder).as_posix()
        if root.startswith("s3://"):
            data = path.read_bytes()
            boto3.client("s3").put_object(Bucket=bucket, Key=f"{prefix}/{inside}", Body=data)
        else:
            os.makedirs(os.path.dirname(f"{root}/{inside}"), exist_ok=True)
            Path(root, inside).write_bytes(path.read_bytes())
    return root


def add_member(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))
