"""Objects in S3 and what speaks its protocol (Ceph, MinIO): a client, reads, and plain errors.

Endpoint, region and credentials come from where every S3 tool looks for them: AWS_ENDPOINT_URL_S3
or AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID and its companions, AWS_PROFILE and the files
under ~/.aws, or the role of the machine. They are looked up in each process, and are in no object
that travels, and in no error.
"""

from __future__ import annotations

import errno
import os
from functools import lru_cache
from typing import Any

import pyarrow.fs

from features.encoders.base import import_extra

SCHEME = "s3://"
ATTEMPTS = 8
"""How often a request is made that fails by a fault that may pass: 5xx, SlowDown, a connection
that is reset or silent. The waits double, with jitter, up to 20 s (botocore's standard mode)."""
CONNECT_SECONDS = 10
SILENT_SECONDS = 60
CONNECTIONS = 32
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
    return _read_body(call("get_object", Bucket=bucket, Key=key), uri=uri)


def call(operation: str, **arguments: Any) -> Any:
    """What an operation of the client answers; its errors are OSErrors that say what to do."""
    exceptions = import_extra("botocore.exceptions", extra="s3")
    try:
        return getattr(client(), operation)(**arguments)
    except (exceptions.ClientError, exceptions.BotoCoreError) as error:
        raise _plain(error, operation=operation, arguments=arguments) from None


def _read_body(answer: Any, *, uri: str) -> bytes:
    exceptions = import_extra("botocore.exceptions", extra="s3")
    try:
        return bytes(answer["Body"].read())
    except (exceptions.BotoCoreError, exceptions.HTTPClientError) as error:
        raise OSError(errno.EIO, f"the connection broke ({type(error).__name__})", uri) from None


def _environment() -> tuple[str | None, ...]:
    """The variables that decide which server a client speaks to, and as whom."""
    return tuple(sorted(f"{k}={v}" for k, v in os.environ.items() if k.startswith("AWS_")))


@lru_cache(maxsize=8)
def _client(process: int, *environment: str) -> Any:
    del process, environment
    boto3 = import_extra("boto3", extra="s3")
    config = import_extra("botocore.config", extra="s3")
    exceptions = import_extra("botocore.exceptions", extra="s3")
    try:
        return boto3.session.Session().client(
            "s3",
            region_name=_region(),
            config=config.Config(
                retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
                connect_timeout=CONNECT_SECONDS,
                read_timeout=SILENT_SECONDS,
                max_pool_connections=CONNECTIONS,
                **_checksums(),
            ),
        )
    except exceptions.BotoCoreError as error:
        raise OSError(f"S3 cannot be reached as the environment is: {error}") from None
    except ValueError:  # an endpoint that is no URL, which may hold a password
        raise OSError("AWS_ENDPOINT_URL is not of the form http(s)://HOST:PORT") from None


@lru_cache(maxsize=8)
def _filesystem(process: int, *environment: str) -> pyarrow.fs.S3FileSystem:
    del process, environment
    meta = client().meta
    scheme, _, host = str(meta.endpoint_url).partition("://")
    options: dict[str, Any] = {}
    if not host.endswith(".amazonaws.com") and ".amazonaws.com" not in host:
        options |= {"scheme": scheme, "endpoint_override": host}
        # pyarrow reads this when it connects; older Ceph refuses its writes without it.
        os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    return pyarrow.fs.S3FileSystem(
        region=meta.region_name,
        allow_delayed_open=True,
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        **options,
    )


def _region() -> str | None:
    """The region by the variable that boto3 passes over; its own, and the profile's, otherwise."""
    return os.environ.get("AWS_REGION") or None


def _checksums() -> dict[str, str]:
    """Checksums in a trailer are refused by older Ceph and MinIO; each PUT has its MD5 anyway."""
    if "AWS_REQUEST_CHECKSUM_CALCULATION" in os.environ:
        return {}
    return {"request_checksum_calculation": "when_required"}


def _plain(error: Any, *, operation: str, arguments: dict[str, Any]) -> OSError:
    """An error of the client as an OSError for a person; names bucket and key, no credentials."""
    where = f"{SCHEME}{arguments['Bucket']}/{arguments.get('Key', arguments.get('Prefix', ''))}"
    response = getattr(error, "response", None)
    if response is None:
        return _of_the_connection(error, where=where)
    code = str(response["Error"].get("Code", ""))
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    bucket = arguments["Bucket"]
    if code == "NoSuchBucket":
        return OSError(
            f"{where}: there is no bucket {bucket!r}; check the name, or make it "
            f"(aws s3 mb s3://{bucket}); AWS_ENDPOINT_URL and AWS_REGION say where it is looked for"
        )
    if status == 404:
        return FileNotFoundError(errno.ENOENT, "there is no such object", where)
    if code in WRONG_CREDENTIALS:
        return PermissionError(
            f"{where}: the server does not know the credentials, or no longer ({code}); check "
            "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN or AWS_PROFILE"
        )
    if status == 403:
        return PermissionError(
            errno.EACCES,
            f"the server forbids it (403 on {operation}); check that the credentials may list "
            f"bucket {bucket!r} and read and write its objects (s3:ListBucket, s3:GetObject, "
            "s3:PutObject, s3:DeleteObject)",
            where,
        )
    if status in (301, 307, 400) and code in {"PermanentRedirect", "301", "400"}:
        return OSError(f"{where}: the bucket is in another region; set AWS_REGION to it")
    return OSError(
        errno.EIO, f"the server answered {status} {code} to {operation}, in the end", where
    )


def _of_the_connection(error: Exception, *, where: str) -> OSError:
    name = type(error).__name__
    if "Credential" in name or "Token" in name or "Profile" in name:
        return PermissionError(
            f"{where}: no credentials were found ({name}); set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the machine a role"
        )
    return OSError(
        errno.EIO,
        f"S3 cannot be reached ({name}, after {ATTEMPTS} attempts); check AWS_ENDPOINT_URL, "
        "AWS_REGION and the network",
        where,
    )
