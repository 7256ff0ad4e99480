"""Shard-sized objects put, fetched and listed in S3 by boto3, pyarrow and s3fs.

    python -m benchmarks.s3 [--quick] [--rows OBJECTS] [--folder DIR]

On the server that AWS_ENDPOINT_URL leads to, in a bucket that is made there; without it on moto's,
in a process of its own. What s3fs does is measured where it can be imported: `pip install s3fs`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks import command
from benchmarks.measure import in_turn, short
from benchmarks.processes import timed
from benchmarks.results import report

SIZE = 3 * 2**20
"""A shard of 4,096 embeddings of 384 float16."""
BUCKET = "sensorium-benchmarks"
SECRETS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "not-a-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
}


class Boto3:
    """What the project uses: one request an object, and writes that are conditional."""

    def __init__(self, endpoint: str) -> None:
        import boto3

        self._client = boto3.client("s3", endpoint_url=endpoint)

    def put(self, key: str, data: bytes) -> None:
        self._client.put_object(Bucket=BUCKET, Key=key, Body=data, IfNoneMatch="*")

    def get(self, key: str) -> bytes:
        return self._client.get_object(Bucket=BUCKET, Key=key)["Body"].read()

    def list(self, prefix: str) -> int:
        pages = self._client.get_paginator("list_objects_v2")
        found = pages.paginate(Bucket=BUCKET, Prefix=f"{prefix}/")
        return sum(len(page.get("Contents", ())) for page in found)


class Pyarrow:
    """`pyarrow.fs.S3FileSystem`, which has no conditional writes."""

    def __init__(self, endpoint: str) -> None:
        from pyarrow import fs

        scheme, _, host = endpoint.partition("://")
        self._fs = fs.S3FileSystem(
            endpoint_override=host, scheme=scheme, allow_delayed_open=True, region="us-east-1"
        )
        self._selector = fs.FileSelector

    def put(self, key: str, data: bytes) -> None:
        with self._fs.open_output_stream(f"{BUCKET}/{key}") as stream:
            stream.write(data)

    def get(self, key: str) -> bytes:
        with self._fs.open_input_file(f"{BUCKET}/{key}") as file:
            return file.read()

    def list(self, prefix: str) -> int:
        return len(self._fs.get_file_info(self._selector(f"{BUCKET}/{prefix}")))


class S3fs:
    """s3fs, with conditional writes by `mode="create"`."""

    def __init__(self, endpoint: str) -> None:
        import s3fs

        self._fs = s3fs.S3FileSystem(endpoint_url=endpoint, use_listings_cache=False)

    def put(self, key: str, data: bytes) -> None:
        self._fs.pipe_file(f"{BUCKET}/{key}", data, mode="create")

    def get(self, key: str) -> bytes:
        return self._fs.cat_file(f"{BUCKET}/{key}")

    def list(self, prefix: str) -> int:
        return len(self._fs.ls(f"{BUCKET}/{prefix}", detail=True))


def main() -> None:
    options = command.parse(__doc__, rows=32, quick=8)
    os.environ.update({name: os.environ.get(name) or value for name, value in SECRETS.items()})
    data = np.random.default_rng(7).bytes(SIZE)
    kinds: dict[str, Callable[[str], Any]] = {"boto3": Boto3, "pyarrow": Pyarrow}
    if importlib.util.find_spec("s3fs"):
        kinds["s3fs"] = S3fs
    else:
        print("  s3fs is left out: it cannot be imported (`pip install s3fs`)")
    with _server() as (name, endpoint):
        import boto3
        from botocore.exceptions import ClientError

        with contextlib.suppress(ClientError):  # it is there
            boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket=BUCKET)
        clients = {kind: make(endpoint) for kind, make in kinds.items()}
        prefixes = {kind: [f"{kind}-{uuid.uuid4().hex}"] for kind in kinds}
        variants = {}
        for kind, client in clients.items():
            for step in (put, get, listing):
                run = functools.partial(step, client, prefixes[kind], data=data, count=options.rows)
                variants[f"{kind}, {step.__name__}"] = (
                    options.rows,
                    functools.partial(timed, run),
                )
        found = in_turn(variants, repeats=options.repeats)
    steps = [step.__name__ for step in (put, get, listing)]
    report(
        "s3",
        head=("client", *(f"{step}, ms" for step in steps), *(f"{step}, CPU ms" for step in steps)),
        rows=[
            [
                kind,
                *(short(1e3 / found[f"{kind}, {step}"].rate) for step in steps),
                *(short(1e3 / found[f"{kind}, {step}"].cpu_rate) for step in steps),
            ]
            for kind in kinds
        ],
        targets=[],
        libraries=("boto3", "s3fs", "moto"),
        remarks=[
            f"{name}; {options.rows} objects of {SIZE / 2**20:.0f} MiB one after another; for a "
            "listing, an object's share of one that finds them all. pyarrow's writes are not "
            "conditional: by it, two jobs could not share a store."
        ],
        write=not options.quick,
    )


def put(client: Any, prefixes: list[str], *, data: bytes, count: int) -> None:
    """Write objects under a new prefix."""
    prefixes.append(f"{prefixes[0]}-{len(prefixes)}")
    for i in range(count):
        client.put(f"{prefixes[-1]}/{i:06d}", data)


def get(client: Any, prefixes: list[str], *, data: bytes, count: int) -> None:
    """Fetch what was written last."""
    for i in range(count):
        assert len(client.get(f"{prefixes[-1]}/{i:06d}")) == len(data)


def listing(client: Any, prefixes: list[str], *, data: bytes, count: int) -> None:
    """List what was written last."""
    assert client.list(prefixes[-1]) == count


@contextlib.contextmanager
def _server() -> Iterator[tuple[str, str]]:
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        yield "The server of AWS_ENDPOINT_URL", endpoint
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        yield "moto's server", f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
