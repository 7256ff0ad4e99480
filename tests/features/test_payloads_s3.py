"""Payloads in a bucket: fetched, keyed, missing, too large, and a server that fails."""

from __future__ import annotations

import io
from typing import Any
from urllib.parse import urlsplit

import boto3
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from features import s3
from features.columns import PayloadColumns
from features.decoders.base import BadPayload, Limits
from features.payload_keys import payload_key, payload_keys
from features.payloads import fetch, open_payload
from tests.features.faulty_server import faulty_server, says

TEXT = PayloadColumns(kind="text", columns=("text",), uri=True)
IMAGE = PayloadColumns(kind="image", columns=("photo",))


def put(root: str, name: str, data: bytes) -> str:
    parts = urlsplit(root)
    boto3.client("s3").put_object(Bucket=parts.netloc, Key=f"{parts.path[1:]}/{name}", Body=data)
    return f"{root}/{name}"


def png() -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), 7, np.uint8)).save(out, "PNG")
    return out.getvalue()


def test_texts_and_images_are_opened(s3_root: str, tmp_path: Any) -> None:
    text, image = put(s3_root, "a b%20é.txt", "naïve".encode()), put(s3_root, "p.png", png())
    assert open_payload(text, columns=TEXT, folder=str(tmp_path)) == "naïve"
    assert open_payload(image, columns=IMAGE, folder=str(tmp_path)).shape == (4, 5, 3)
    assert open_payload("p.png", columns=IMAGE, folder=s3_root).shape == (4, 5, 3)


def test_what_is_not_there_or_not_usable_is_bad(s3_root: str) -> None:
    empty, large = put(s3_root, "empty", b""), put(s3_root, "large", b"x" * 11)
    limits = Limits(bytes=10)
    for uri, reason in (
        (f"{s3_root}/none", "there is no such object"),
        (empty, "the object is empty"),
        (large, "the object is too large"),
        ("s3://only-a-bucket", "not of the form s3://BUCKET/KEY"),
        ("s3://no bucket is named so/a", "not of the form s3://BUCKET/KEY"),
    ):
        with pytest.raises(BadPayload, match=reason) as caught:
            fetch(uri, base="/", limits=limits)
        assert caught.value.stage == "fetch"


def test_what_is_too_large_is_not_fetched(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    large = put(s3_root, "large", b"x" * 11)
    monkeypatch.setattr(s3, "get", None)
    with pytest.raises(BadPayload, match="too large"):
        fetch(large, base="/", limits=Limits(bytes=10))


def test_keys_follow_the_object(s3_root: str) -> None:
    uri = put(s3_root, "a.txt", b"one")

    def keys() -> list[bytes]:
        return [
            payload_key(uri, columns=TEXT, folder="/", by=by) for by in ("stat", "content", "uri")
        ]

    first = keys()
    put(s3_root, "a.txt", b"one")
    assert keys() == first
    put(s3_root, "a.txt", b"two")
    assert [a == b for a, b in zip(first, keys(), strict=True)] == [False, False, True]
    boto3.client("s3").delete_object(Bucket=urlsplit(uri).netloc, Key=urlsplit(uri).path[1:])
    absent = keys()
    assert absent[0] == absent[1] and absent[0] not in first


def test_content_is_read_by_parts(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes(range(256)) * 5
    one, other, empty = (put(s3_root, name, data) for name in ("one", "other", "empty"))
    put(s3_root, "empty", b"")
    whole = payload_key(one, columns=TEXT, folder="/", by="content")
    monkeypatch.setattr(s3, "PART_BYTES", 500)
    assert b"".join(s3.parts(one)) == data
    assert [len(part) for part in s3.parts(one)] == [500, 500, 280]
    assert payload_key(other, columns=TEXT, folder="/", by="content") == whole
    assert list(s3.parts(empty)) == []


def test_many_keys_at_once_stand_in_their_order(s3_root: str) -> None:
    uris: list[Any] = [put(s3_root, f"{i}.txt", str(i).encode()) for i in range(20)]
    values = [*uris, None, f"{s3_root}/none"]
    expected = [v if v is None else payload_key(v, columns=TEXT, folder="/") for v in values]
    assert payload_keys(values, columns=TEXT, folder="/") == expected
    assert len(set(expected)) == 22


@pytest.mark.parametrize("by", ["stat", "content"])
def test_a_server_that_fails_is_tried_again_and_blames_no_payload(
    by: str, s3_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    uri = put(s3_root, "a.txt", b"one")
    expected = payload_key(uri, columns=TEXT, folder="/", by=by)
    monkeypatch.setattr("time.sleep", lambda _: None)
    with faulty_server(os.environ["AWS_ENDPOINT_URL"]) as faults:
        monkeypatch.setenv("AWS_ENDPOINT_URL", faults.endpoint)
        for method in ("HEAD", "GET"):
            faults.plan(method, says(503, "SlowDown"))
        assert fetch(uri, base="/") == b"one"
        faults.plan("HEAD" if by == "stat" else "GET", says(503, "SlowDown"))
        assert payload_key(uri, columns=TEXT, folder="/", by=by) == expected
        for method in ("HEAD", "GET"):
            faults.plan(method, *[says(503, "SlowDown")] * 3 * s3.ATTEMPTS)
        with pytest.raises(OSError, match="503") as caught:
            fetch(uri, base="/")
        assert not isinstance(caught.value, BadPayload)
        with pytest.raises(OSError, match="503"):
            payload_keys([uri, uri], columns=TEXT, folder="/", by=by)
        faults.planned.clear()
        faults.plan("HEAD", says(403, "AccessDenied"))
        with pytest.raises(PermissionError, match="403"):
            fetch(uri, base="/")
        faults.plan("HEAD", says(403, "AccessDenied"))
        faults.plan("GET", says(403, "AccessDenied"))
        with pytest.raises(PermissionError):
            payload_key(uri, columns=TEXT, folder="/", by=by)


def test_a_column_of_uris_is_one_of_files() -> None:
    assert TEXT.payloads(pa.table({"text": ["s3://b/k", None]})) == ["s3://b/k", None]
