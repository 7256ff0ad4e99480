"""Faults of an S3 server and its network: those that pass are survived, the others are clear."""

import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import features.s3
import features.s3_storage
from features.s3_storage import S3Storage
from features.storage import open_storage, read_uri, stat_uri
from tests.conftest import BUCKET, make_bucket
from tests.features.faulty_server import answer_lost, cut_short, faulty_server, reset, says

SLOW = says(503, "SlowDown")
BROKEN = says(500, "InternalError")
ABSENT = says(404, "NoSuchKey")


def shorten_waits(monkeypatch, sleep=time.sleep):
    monkeypatch.setattr("time.sleep", lambda seconds: sleep(min(seconds, 0.01)))


@pytest.fixture
def faults(moto_endpoint, monkeypatch):
    """A server that fails as it is told to, before moto's; waits are short."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_endpoint)
    make_bucket(BUCKET)
    monkeypatch.setattr(features.s3, "ATTEMPTS", 4)
    shorten_waits(monkeypatch)
    with faulty_server(moto_endpoint) as found:
        monkeypatch.setenv("AWS_ENDPOINT_URL", found.endpoint)
        yield found


@pytest.fixture
def storage(faults, tmp_path):
    return S3Storage(f"s3://{BUCKET}/{tmp_path.name}-{time.time_ns()}")


@pytest.mark.parametrize("fault", [SLOW, BROKEN, reset], ids=["503", "500", "reset"])
def test_a_fault_that_passes_is_survived(storage, faults, fault):
    faults.plan("PUT", fault, fault)
    assert storage.write_once("a/shard", b"whole")
    faults.plan("GET", fault, fault)
    assert storage.read("a/shard") == b"whole"
    faults.plan("GET", fault, fault)
    assert storage.list("a") == {"shard"}
    faults.plan("HEAD", fault, fault)
    assert storage.exists("a/shard")
    faults.plan("POST", fault, fault)
    storage.delete(["a/shard"])
    assert not storage.exists("a/shard") and faults.count("PUT") == 3


def test_a_fault_that_stays_is_an_error_after_some_attempts(storage, faults):
    faults.plan("PUT", *[SLOW] * 99)
    with pytest.raises(OSError, match=r"503 SlowDown to put_object, 4 times: 's3://.*/a/shard'"):
        storage.write_once("a/shard", b"whole")
    assert faults.count("PUT") == 4
    faults.planned.clear()
    assert list(storage.walk()) == []


def test_a_read_that_is_cut_short_is_read_again(storage, faults):
    body = os.urandom(200_000)
    storage.write_once("shard", body)
    faults.plan("GET", cut_short, cut_short)
    assert storage.read("shard") == body and faults.count("GET") == 3
    faults.plan("GET", cut_short)
    with storage.open("shard") as file:
        assert file.read() == body
    faults.plan("GET", *[cut_short] * 4)
    with pytest.raises(OSError, match="the connection broke 4 times"):
        storage.read("shard")


def test_a_write_whose_answer_is_lost_is_known_for_our_own(storage, faults):
    faults.plan("PUT", answer_lost)
    assert storage.write_once("shard", b"ours") and faults.count("PUT") == 2
    faults.plan("PUT", answer_lost)
    assert not S3Storage(storage.root).write_once("shard", b"other")
    assert storage.read("shard") == b"ours"


def test_a_write_in_conflict_with_another_is_tried_again(storage, faults):
    conflict = says(409, "ConditionalRequestConflict")
    faults.plan("PUT", conflict, conflict)
    assert storage.write_once("shard", b"x") and storage.read("shard") == b"x"


def test_a_file_that_is_late_after_its_write_is_waited_for(storage, faults):
    storage.write_once("shard", b"x")
    faults.plan("GET", ABSENT, ABSENT)
    assert storage.read("shard") == b"x"
    faults.plan("HEAD", says(404, ""), says(404, ""))
    assert storage.exists("shard")
    # Another process, which has the name from a listing or a snapshot.
    faults.plan("GET", ABSENT, ABSENT)
    with S3Storage(storage.root).open("shard") as file:
        assert file.read() == b"x"


def test_what_nobody_wrote_is_asked_for_once(storage, faults):
    with pytest.raises(FileNotFoundError):
        storage.read("latest/x.json")
    assert not storage.exists("latest/x.json")
    assert (faults.count("GET"), faults.count("HEAD")) == (1, 1)


def test_requests_are_as_few_as_is_said(storage, faults):
    body = os.urandom(300_000)
    storage.write_once("shard", body)
    assert [faults.count(m) for m in ("PUT", "GET", "HEAD")] == [1, 0, 0]
    with storage.open("shard") as file:
        file.seek(-8, 2)
        assert file.read(8) == body[-8:]
        assert faults.count("GET") == 1, "a footer costs one request"
        assert file.read_at(100, 0) == body[:100] and file.read_at(100, 500) == body[500:600]
        assert faults.count("GET") == 2, "and a whole small file two"
    storage.list("")
    assert faults.count("GET") == 3


def test_what_is_forbidden_is_said_at_once(storage, faults):
    faults.plan("PUT", says(403, "AccessDenied"))
    with pytest.raises(PermissionError, match=rf"403.*{BUCKET!r}.*s3:PutObject.*a/shard") as found:
        storage.write_once("a/shard", b"x")
    assert found.value.errno == 13 and faults.count("PUT") == 1
    faults.plan("GET", says(403, "ExpiredToken"))
    with pytest.raises(PermissionError, match=r"a/shard.*ExpiredToken.*AWS_SESSION_TOKEN"):
        storage.read("a/shard")
    faults.plan("PUT", says(501, "NotImplemented"))
    with pytest.raises(OSError, match="If-None-Match"):
        storage.write_once("a/shard", b"x")


def test_a_bucket_that_is_not_there_is_named(s3_root):
    storage = open_storage("s3://no-such-bucket-here/prefix")
    for act in (
        lambda: storage.write_once("a", b"x"),
        lambda: storage.read("a"),
        lambda: storage.list("a"),
        lambda: storage.open("a"),
    ):
        with pytest.raises(OSError, match="there is no bucket 'no-such-bucket-here'") as found:
            act()
        assert not isinstance(found.value, FileNotFoundError)
        assert str(pickle.loads(pickle.dumps(found.value))) == str(found.value)


@pytest.mark.slow
def test_more_than_a_page_of_names_is_listed_and_deleted(s3_root):
    storage = open_storage(s3_root)
    expected = {f"{number:04}.parquet" for number in range(1003)}
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda name: storage.write_once(f"many/{name}", b"x"), expected))
    assert storage.list("many") == expected
    assert {entry.path for entry in storage.walk("many")} == {f"many/{n}" for n in expected}
    storage.delete(f"many/{name}" for name in expected)
    assert list(storage.walk()) == []


def test_a_server_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr(features.s3, "ATTEMPTS", 2)
    shorten_waits(monkeypatch)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(OSError, match=r"cannot be reached.*check AWS_ENDPOINT_URL"):
        S3Storage("s3://bucket/prefix").list("samples")


def test_no_error_tells_a_secret(monkeypatch):
    monkeypatch.setattr(features.s3, "ATTEMPTS", 1)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "k3y-of-ours")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:k3y-of-ours@127.0.0.1:9")
    with pytest.raises(OSError) as found:
        S3Storage("s3://bucket/prefix").list("samples")
    texts = [repr(found.value), str(found.value)]
    monkeypatch.setenv("AWS_ENDPOINT_URL", "user:k3y-of-ours@nowhere")
    with pytest.raises(OSError, match="http") as found:
        open_storage("s3://bucket/prefix")
    assert found.value.__suppress_context__
    texts += [repr(found.value), str(found.value), repr(S3Storage("s3://bucket/p"))]
    assert not any("k3y-of-ours" in text for text in texts)


def test_a_profile_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(PermissionError, match="'nobody'"):
        open_storage("s3://bucket/prefix")


def test_endpoint_region_and_credentials_are_those_of_a_profile(s3_root, monkeypatch, tmp_path):
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    key, secret = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
    (tmp_path / "config").write_text(
        f"[profile lab]\nregion = eu-west-3\nendpoint_url = {endpoint}\n"
        f"aws_access_key_id = {key}\naws_secret_access_key = {secret}\n"
    )
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    open_storage(s3_root).write_once("a", b"x")
    assert read_uri(f"{s3_root}/a") == b"x" and stat_uri(f"{s3_root}/a").size == 1
    assert features.s3.client().meta.region_name == "eu-west-3"
    assert features.s3.filesystem().region == "eu-west-3"
    monkeypatch.setenv("AWS_REGION", "ap-south-1")
    assert features.s3.client().meta.region_name == "ap-south-1"


def test_a_large_file_is_sent_in_parts(s3_root, monkeypatch):
    monkeypatch.setattr(features.s3_storage, "MULTIPART_BYTES", 6 * 2**20)
    monkeypatch.setattr(features.s3_storage, "PART_BYTES", 5 * 2**20)
    storage = S3Storage(s3_root)
    body = os.urandom(11 * 2**20)
    assert storage.write_once("large", body) and storage.read("large") == body
    assert not storage.write_once("large", body[::-1]) and storage.read("large") == body


def test_a_large_file_whose_parts_fail_leaves_nothing(storage, faults, monkeypatch):
    monkeypatch.setattr(features.s3_storage, "MULTIPART_BYTES", 6 * 2**20)
    monkeypatch.setattr(features.s3_storage, "PART_BYTES", 5 * 2**20)
    faults.plan("PUT", *[BROKEN] * 99)
    with pytest.raises(OSError, match="500 InternalError to upload_part"):
        storage.write_once("large", bytes(11 * 2**20))
    faults.planned.clear()
    assert not storage.exists("large")
    left = features.s3.client().list_multipart_uploads(Bucket=BUCKET)
    assert not left.get("Uploads"), "parts that nobody will ever use cost money"


def test_of_two_large_writers_the_first_wins(storage, faults, monkeypatch):
    monkeypatch.setattr(features.s3_storage, "MULTIPART_BYTES", 6 * 2**20)
    monkeypatch.setattr(features.s3_storage, "PART_BYTES", 5 * 2**20)
    other = S3Storage(storage.root)

    def meanwhile(handler):
        other.write_once("large", b"first")
        handler.answer(*handler.hand_on())

    faults.plan("POST", lambda handler: handler.answer(*handler.hand_on()), meanwhile)
    assert not storage.write_once("large", bytes(11 * 2**20))
    assert storage.read("large") == b"first"
