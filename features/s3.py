"""Objects in S3 and what speaks its protocol (Ceph, MinIO): a client, reads, and plain errors.

Endpoint, region and credentials come from where every S3 tool looks for them: AWS_ENDPOINT_URL_S3
or AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID and its companions, AWS_PROFILE and the files
under ~/.aws, or the role of the machine. They are looked up in each process, and are in no object
that travels, and in no error.

By boto3, since it can write on condition that nothing is there, which keeps two jobs apart, and
pyarrow's filesystem cannot, though it may write faster. s3fs took twice as long to write a shard
and three times as long to read one (65 MB, Ceph's gateway; `benchmarks/s3.py`).
"""

from __future__ import annotations

import errno
import os
import random
import re
import time
from collections.abc import Iterator
from datetime import datetime
from functools import lru_cache
from typing import Any

import pyarrow.fs

from features.encoders.base import import_extra
from features.persistence import GaveUp

SCHEME = "s3://"
ATTEMPTS = 8
"""How often a request is made that fails by a fault that may pass: 5xx, SlowDown, a connection
that is reset or silent. The waits double, with jitter, up to 20 s (botocore's standard mode)."""
CONNECT_SECONDS = 10
SILENT_SECONDS = 60
CONNECTIONS = 32
PART_BYTES = 16 * 1024**2
AWS = ".amazonaws.com"
_BUCKET = re.compile(r"[A-Za-z0-9._-]{1,255}|arn:aws[a-z-]*:s3[a-z-]*:[^\s/]+")
CHECKSUMS = "AWS_REQUEST_CHECKSUM_CALCULATION"
WRONG_CREDENTIALS = {
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and key of an s3:// URI; the key as it stands, since S3 URIs are not encoded."""
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    if not uri.startswith(SCHEME) or not bucket:
        raise ValueError(f"{uri!r} is not of the form s3://BUCKET/KEY")
    return bucket, key


def is_bucket(name: str) -> bool:
    """Whether a bucket may have this name, as boto3 has it; others it refuses before it asks."""
    return _BUCKET.fullmatch(name) is not None


def client() -> Any:
    """The boto3 client of this process and its present environment; it may be shared by threads."""
    return _client(os.getpid(), *_environment())


def filesystem() -> pyarrow.fs.S3FileSystem:
    """The same place for pyarrow, and for libraries that write by it."""
    return _filesystem(os.getpid(), *_environment())


def stat(uri: str) -> tuple[int, str]:
    """Size and etag of an object; FileNotFoundError if there is none. One HEAD."""
    bucket, key = split_uri(uri)
    found = call("head_object", Bucket=bucket, Key=key)
    return found["ContentLength"], found["ETag"].strip('"')


def read(uri: str) -> bytes:
    """The bytes of an object; FileNotFoundError if there is none. One GET."""
    bucket, key = split_uri(uri)
    return get(bucket, key)[0]


def parts(uri: str) -> Iterator[bytes]:
    """The bytes of an object, by `PART_BYTES`; FileNotFoundError if there is none.

    OSError if it is written anew meanwhile.
    """
    size, tag = stat(uri)
    bucket, key = split_uri(uri)
    for start in range(0, size, PART_BYTES):
        span = f"{start}-{min(size, start + PART_BYTES) - 1}"
        yield get(bucket, key, span=span)[0]
    if size > PART_BYTES and stat(uri)[1] != tag:
        raise OSError(errno.EIO, "it was changed while it was read", uri)


def get(bucket: str, key: str, *, span: str | None = None) -> tuple[bytes, int]:
    """The bytes of an object, or of a span of it (`0-99`, or `-100` for the end), and its size.

    One GET; it is made again if the connection breaks while the bytes come.
    """
    errors = import_extra("botocore.exceptions", extra="s3")
    wanted = {} if span is None else {"Range": f"bytes={span}"}
    for attempt in range(ATTEMPTS):
        answer = call("get_object", Bucket=bucket, Key=key, **wanted)
        try:
            body = bytes(answer["Body"].read())
        except (errors.BotoCoreError, errors.HTTPClientError) as error:
            if attempt == ATTEMPTS - 1:
                where = f"{SCHEME}{bucket}/{key}"
                raise GaveUp(
                    errno.EIO,
                    f"the connection broke {ATTEMPTS} times while it was read "
                    f"({type(error).__name__})",
                    where,
                ) from None
        else:
            total = str(answer.get("ContentRange", "")).rpartition("/")[2]
            return body, int(total) if total else len(body)
        back_off(attempt)
    raise AssertionError("the last attempt returns or raises")


def call(operation: str, **arguments: Any) -> Any:
    """What an operation of the client answers; its errors are OSErrors that say what to do."""
    errors = import_extra("botocore.exceptions", extra="s3")
    try:
        return getattr(client(), operation)(**arguments)
    except (errors.ClientError, errors.BotoCoreError) as error:
        raise plain(error, operation=operation, arguments=arguments) from None


def back_off(attempt: int) -> None:
    """Wait before another attempt: at most 0.1 s, doubling up to 20 s, with full jitter."""
    time.sleep(random.random() * min(20.0, 0.1 * 2**attempt))


def plain(error: Any, *, operation: str, arguments: dict[str, Any]) -> OSError:
    """An error of the client as an OSError for a person; names bucket and key, no credentials."""
    bucket = arguments["Bucket"]
    where = f"{SCHEME}{bucket}/{arguments.get('Key', arguments.get('Prefix', ''))}"
    response = getattr(error, "response", None)
    if response is None:
        return _of_the_connection(error, where=where)
    code = str(response["Error"].get("Code", ""))
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code == "NoSuchBucket":
        return OSError(
            f"{where}: there is no bucket {bucket!r}; check the name, or make it "
            f"(aws s3 mb s3://{bucket}); AWS_ENDPOINT_URL and AWS_REGION say where it is looked for"
        )
    if status == 404:
        return FileNotFoundError(errno.ENOENT, "there is no such object", where)
    if status == 412:
        return FileExistsError(errno.EEXIST, "there is such an object", where)
    if status == 409:
        return BlockingIOError(errno.EAGAIN, "another write to it is on its way", where)
    if status == 416:
        return OSError(errno.EINVAL, "the object is empty, or ends before", where)
    if code in WRONG_CREDENTIALS:
        return PermissionError(
            f"{where}: the server does not know the credentials, or no longer ({code}); check "
            "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN or AWS_PROFILE"
        )
    if status == 403:
        return PermissionError(
            errno.EACCES,
            f"the server forbids it (403 to {operation}); check that the credentials may list "
            f"bucket {bucket!r} and read, write and delete its objects (s3:ListBucket, "
            "s3:GetObject, s3:PutObject, s3:DeleteObject)",
            where,
        )
    if code in {"PermanentRedirect", "AuthorizationHeaderMalformed", "301"}:
        return OSError(f"{where}: the bucket is in another region; set AWS_REGION to it")
    if status == 501:
        return OSError(
            f"{where}: the server does not know how to do {operation} with If-None-Match, which "
            "keeps two writers apart; a store needs a server that does"
        )
    said = f"the server answered {status} {code} to {operation}"
    if status >= 500:
        said += f", {ATTEMPTS} times"
    return GaveUp(errno.EIO, said, where)


def _of_the_connection(error: Exception, *, where: str) -> OSError:
    name = type(error).__name__
    if "Credential" in name or "Token" in name:
        return PermissionError(
            f"{where}: no credentials were found ({name}); set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the machine a role"
        )
    return GaveUp(
        errno.EIO,
        f"S3 cannot be reached ({name}, after {ATTEMPTS} attempts); check AWS_ENDPOINT_URL, "
        "AWS_REGION and the network",
        where,
    )


def _environment() -> tuple[str, ...]:
    """The variables that decide which server a client speaks to, and as whom."""
    found = {k: v for k, v in os.environ.items() if k.startswith("AWS_") and k != CHECKSUMS}
    return tuple(sorted(f"{name}={value}" for name, value in found.items()))


@lru_cache(maxsize=8)
def _client(process: int, *environment: str) -> Any:
    del process, environment
    boto3 = import_extra("boto3", extra="s3")
    botocore = import_extra("botocore.session", extra="s3")
    config = import_extra("botocore.config", extra="s3")
    errors = import_extra("botocore.exceptions", extra="s3")
    session = botocore.Session()
    # A listing is read two times faster by it.
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_time)
    try:
        made = boto3.session.Session(botocore_session=session).client(
            "s3",
            region_name=os.environ.get("AWS_REGION") or None,  # boto3 itself passes over it
            config=config.Config(
                retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
                connect_timeout=CONNECT_SECONDS,
                read_timeout=SILENT_SECONDS,
                max_pool_connections=CONNECTIONS,
                # Older Ceph refuses checksums in a trailer; each PUT of ours has its MD5 anyway.
                request_checksum_calculation=os.environ.get(CHECKSUMS, "when_required"),
            ),
        )
    except errors.ProfileNotFound:
        raise PermissionError(
            f"there is no profile {os.environ.get('AWS_PROFILE')!r} under ~/.aws, which "
            "AWS_PROFILE names"
        ) from None
    except (errors.BotoCoreError, ValueError) as error:  # its text may hold an endpoint's password
        raise OSError(
            f"S3 cannot be reached as the environment is ({type(error).__name__}): "
            "AWS_ENDPOINT_URL is of the form http(s)://HOST:PORT, AWS_REGION a region's name"
        ) from None
    if AWS not in made.meta.endpoint_url:
        # pyarrow can be told so by the environment alone. It is set early, and so reaches the
        # workers of a local Ray; those of a cluster have an environment of their own.
        os.environ.setdefault(CHECKSUMS, "when_required")
    return made


@lru_cache(maxsize=8)
def _filesystem(process: int, *environment: str) -> pyarrow.fs.S3FileSystem:
    del process, environment
    meta = client().meta
    scheme, _, host = str(meta.endpoint_url).partition("://")
    region = None if meta.region_name == "aws-global" else meta.region_name
    options: dict[str, Any] = {}
    if AWS not in host:
        options |= {"scheme": scheme, "endpoint_override": host}
        region = region or "us-east-1"
    return pyarrow.fs.S3FileSystem(
        region=region,
        allow_delayed_open=True,
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        **options,
    )


def _time(value: Any) -> Any:
    """A point in time as S3 writes it; what is not of ISO 8601 is left to botocore."""
    try:
        return datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return import_extra("botocore.utils", extra="s3").parse_timestamp(value)
