"""A storage under a prefix of an S3 bucket: one request a file, and conditional writes."""

from __future__ import annotations

import errno
import hashlib
import io
import time
import uuid
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs

from features import s3
from features.storage import Entry

MULTIPART_BYTES = 256 * 2**20
"""Files above this are sent in parts; 5 GiB is the most that one PUT may carry."""
PART_BYTES = 64 * 2**20
PARTS_AT_ONCE = 4
CONFLICTS = 10
"""How often a write is tried that the server says is in conflict with another."""
ABSENT_WAITS = (0.1, 0.3, 0.9)
"""Waits, in seconds, before a file that must be there is looked for again."""
DELETE_AT_ONCE = 1000
TAIL_BYTES = 64 * 2**10
"""What is read of a Parquet file first: its footer, or all of it."""
WHOLE_BYTES = 16 * 2**20
"""Of a file up to this, one further request fetches all."""
WRITER = "sensorium-writer"

T = TypeVar("T")


class S3Storage:
    """Objects under s3://BUCKET/PREFIX; holds its root alone, and no credentials.

    An object appears whole or not at all. It is written with `If-None-Match: *` (RFC 9110, 13.1.2;
    of S3 since 2024, Ceph 16, MinIO 2024): of several writers one wins. Above `MULTIPART_BYTES`
    Ceph does not check that, and the last of several writers wins, whole. A writer that is killed
    there leaves parts that no listing shows; let the bucket's lifecycle end incomplete uploads.
    """

    def __init__(self, root: str) -> None:
        bucket, prefix = s3.split_uri(root)
        self.root = f"{s3.SCHEME}{bucket}/{prefix}".rstrip("/")
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._written: deque[str] = deque(maxlen=256)

    def __reduce__(self) -> tuple[Any, ...]:
        return S3Storage, (self.root,)

    def __repr__(self) -> str:
        return f"S3Storage({self.root!r})"

    def list(self, folder: str) -> set[str]:
        """One request per 1,000 names."""
        prefix = self._key(f"{folder}/" if folder else "")
        pages = self._pages(prefix, Delimiter="/")
        return {item["Key"].removeprefix(prefix) for item in pages} - {""}

    def walk(self, folder: str = "") -> Iterator[Entry]:
        """One request per 1,000 files."""
        for item in self._pages(self._key(f"{folder}/" if folder else "")):
            if not item["Key"].endswith("/"):  # what consoles make for a folder
                path = item["Key"].removeprefix(self._prefix)
                modified = item["LastModified"].timestamp()
                yield Entry(path=path, size=item["Size"], modified=modified)

    def exists(self, path: str) -> bool:
        """One HEAD."""
        try:
            self._there(path, lambda: self._call("head_object", path), certain=False)
        except FileNotFoundError:
            return False
        return True

    def read(self, path: str) -> bytes:
        """One GET."""
        return self._there(path, lambda: s3.get(self._bucket, self._key(path))[0], certain=False)

    def open(self, path: str) -> pa.NativeFile:
        """One GET for the last 64 KiB, one more for all the rest of a file up to 16 MiB.

        Of a larger one, one GET for each run of bytes that is asked for.
        """
        key = self._key(path)

        def tail() -> tuple[bytes, int]:
            try:
                return s3.get(self._bucket, key, span=f"-{TAIL_BYTES}")
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                return b"", 0  # an empty object has no end

        end, size = self._there(path, tail, certain=True)
        return pa.PythonFile(_Object(self._bucket, key, end=end, size=size), mode="r")

    def write_once(self, path: str, data: bytes | pa.Buffer) -> bool:
        """One PUT. Above `MULTIPART_BYTES`, three requests and one for each `PART_BYTES`."""
        if len(memoryview(data)) > MULTIPART_BYTES:
            return self._write_parts(path, memoryview(data))
        writer = uuid.uuid4().hex
        try:
            self._put(path, data, IfNoneMatch="*", Metadata={WRITER: writer})
        except FileExistsError:
            # Ours, if the answer to an earlier attempt was lost.
            return self._writer(path) == writer
        self._written.append(path)
        return True

    def replace(self, path: str, data: bytes) -> None:
        """One PUT."""
        self._put(path, data)
        self._written.append(path)

    def delete(self, paths: Iterable[str]) -> None:
        """One request per 1,000 files."""
        batch: list[str] = []
        for path in paths:
            batch.append(path)
            if len(batch) == DELETE_AT_ONCE:
                self._delete(batch)
                batch = []
        if batch:
            self._delete(batch)

    def filesystem(self) -> tuple[pyarrow.fs.FileSystem, str]:
        return s3.filesystem(), f"{self._bucket}/{self._prefix}".rstrip("/")

    def _key(self, path: str) -> str:
        return f"{self._prefix}{path}"

    def _call(self, operation: str, path: str, **arguments: Any) -> Any:
        return s3.call(operation, Bucket=self._bucket, Key=self._key(path), **arguments)

    def _pages(self, prefix: str, **arguments: Any) -> Iterator[dict[str, Any]]:
        arguments |= {"Bucket": self._bucket, "Prefix": prefix}
        while True:
            page = s3.call("list_objects_v2", **arguments)
            yield from page.get("Contents", ())
            if not page.get("IsTruncated"):
                return
            arguments["ContinuationToken"] = page["NextContinuationToken"]

    def _there(self, path: str, look: Callable[[], T], *, certain: bool) -> T:
        """What `look` finds. A file that must be there, or that was written here, may be late."""
        for wait in ABSENT_WAITS:
            try:
                return look()
            except FileNotFoundError:
                if not certain and path not in self._written:
                    raise
            time.sleep(wait)
        return look()

    def _put(self, path: str, data: bytes | pa.Buffer, **arguments: Any) -> None:
        body = data if isinstance(data, bytes) else data.to_pybytes()
        digest = b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
        for attempt in range(CONFLICTS):
            try:
                self._call("put_object", path, Body=body, ContentMD5=digest, **arguments)
                return
            except BlockingIOError:  # another write is on its way, and may yet fail
                if attempt == CONFLICTS - 1:
                    raise
            s3.back_off(attempt)

    def _writer(self, path: str) -> str | None:
        """Who wrote a file, by the mark that `write_once` gives it."""
        try:
            found: dict[str, str] = self._call("head_object", path).get("Metadata", {})
        except FileNotFoundError:
            return None  # deleted meanwhile
        return found.get(WRITER)

    def _write_parts(self, path: str, data: memoryview) -> bool:
        if self.exists(path):
            return False
        upload = self._call("create_multipart_upload", path)["UploadId"]

        def send(number: int) -> dict[str, Any]:
            part = bytes(data[(number - 1) * PART_BYTES : number * PART_BYTES])
            digest = b64encode(hashlib.md5(part, usedforsecurity=False).digest()).decode()
            sent = self._call(
                "upload_part",
                path,
                UploadId=upload,
                PartNumber=number,
                Body=part,
                ContentMD5=digest,
            )
            return {"PartNumber": number, "ETag": sent["ETag"]}

        try:
            with ThreadPoolExecutor(PARTS_AT_ONCE) as pool:
                parts = list(pool.map(send, range(1, -(-len(data) // PART_BYTES) + 1)))
            self._call(
                "complete_multipart_upload",
                path,
                UploadId=upload,
                MultipartUpload={"Parts": parts},
                IfNoneMatch="*",
            )
        except BaseException as error:
            self._call("abort_multipart_upload", path, UploadId=upload)
            if isinstance(error, FileExistsError):
                return False
            raise
        self._written.append(path)
        return True

    def _delete(self, paths: Sequence[str]) -> None:
        keys = [{"Key": self._key(path)} for path in paths]
        answer = s3.call(
            "delete_objects", Bucket=self._bucket, Delete={"Objects": keys, "Quiet": True}
        )
        for fault in answer.get("Errors", ()):
            where = f"{s3.SCHEME}{self._bucket}/{fault['Key']}"
            raise OSError(errno.EIO, f"the server did not delete it ({fault['Code']})", where)


class _Object(io.RawIOBase):
    """An object to seek and read in, of which the end is at hand."""

    def __init__(self, bucket: str, key: str, *, end: bytes, size: int) -> None:
        self._bucket = bucket
        self._key = key
        self._held = end
        self._held_from = size - len(end)
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        stop = self._size if size is None or size < 0 else min(self._at + size, self._size)
        start, self._at = self._at, max(self._at, stop)
        if start >= stop:
            return b""
        if start < self._held_from and self._size <= WHOLE_BYTES:
            body, _ = s3.get(self._bucket, self._key, span=f"0-{self._held_from - 1}")
            self._held, self._held_from = body + self._held, 0
        if start >= self._held_from:
            return self._held[start - self._held_from : stop - self._held_from]
        return s3.get(self._bucket, self._key, span=f"{start}-{stop - 1}")[0]
