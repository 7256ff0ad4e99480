"""A model that is served: by MLflow's server and by ours, to friends and to strangers."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pytest

from benchmarks.fuzz_serving import cells, expected_answers, fuzz
from benchmarks.malformed_requests import FORMS, form_of, silence
from benchmarks.model_servers import Server, load
from benchmarks.served_model import ServedModel, data_uri, make_served_model
from features.encoding import Prepared
from features.payloads import fetch, locate
from features.prepare import bytes_of
from tests.workflows.command import sensorium
from workflows import scoring
from workflows.scoring import LoadedModel
from workflows.serving import request
from workflows.serving import server as http_server
from workflows.serving.places import ROOTS, Forbidden, Places, places_of
from workflows.serving.request import InvalidRequest, read_request
from workflows.serving.server import make_app

pytestmark = pytest.mark.xdist_group("serving")
SEED = 20
SERVING = "_MLFLOW_IS_IN_SERVING_ENVIRONMENT"


@pytest.fixture(scope="module")
def served(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    """A registered model of texts, images, sounds and records."""
    folder = tmp_path_factory.mktemp("served")
    return make_served_model(folder, rows=80, database=empty_database.read_bytes())


@pytest.fixture(scope="module")
def servers(served: ServedModel) -> Iterator[dict[str, Server]]:
    """MLflow's server, and ours, which may read the folder of pictures."""
    folder = served.folder
    (folder / "temporary").mkdir()
    options = {ROOTS: str(folder / "pictures")}
    started = {
        kind: Server(served, kind=kind, log=folder / f"{kind}.log", environment={**options, **own})
        for kind, own in {"mlflow": {}, "sensorium": {"TMPDIR": str(folder / "temporary")}}.items()
    }
    try:
        for server in started.values():
            server.wait()
        yield started
    finally:
        started["mlflow"].stop(signal.SIGKILL)  # it takes seconds to end otherwise
        started["sensorium"].stop()


@pytest.fixture
def model(served: ServedModel, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The model as anyone loads it."""
    monkeypatch.chdir(served.folder)
    monkeypatch.delenv(SERVING, raising=False)
    return load(served)


def post(server: Server, content: Any) -> tuple[int, Any]:
    status, body = server.post(json.dumps(content).encode())
    return status, json.loads(body)


@pytest.mark.slow
def test_both_servers_answer_exactly_as_the_loaded_model(
    servers: dict[str, Server], served: ServedModel, model: Any
) -> None:
    rows = cells(served.inline())[:6]
    expected = expected_answers(model, rows)
    assert len({label["prediction"] for label in expected}) > 1
    for kind, server in servers.items():
        for form in FORMS:
            status, said = post(server, form_of(rows, form))
            assert (status, said.get("predictions")) == (200, expected), (kind, form, said)
        one = {"inputs": rows[0]}
        assert post(server, one)[1]["predictions"] == expected_answers(model, rows[:1])
        texts = [{"text": row["text"]} for row in rows]
        assert post(server, form_of(texts, "inputs"))[1]["predictions"] == expected_answers(
            model, texts
        ), kind


@pytest.mark.slow
def test_it_says_which_candidate_answers_and_in_what_order(
    servers: dict[str, Server], model: Any
) -> None:
    port = servers["sensorium"].port
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/model") as answer:
        said = json.load(answer)
    ours = model.unwrap_python_model()
    assert said["classes"] == list(ours.record.classes)
    assert said["candidate"] == ours.record.fingerprint
    assert said["inputs"].keys() == ours.inputs.keys()


@pytest.mark.slow
def test_both_read_files_below_the_roots_and_no_others(
    servers: dict[str, Server], served: ServedModel, model: Any
) -> None:
    paths = cells(served.rows)
    row = next(row for row in paths if row["picture"] and row["sound"])
    whole = served.folder / row["picture"]
    (expected,) = expected_answers(model, [{**row, "sound": None}])
    secret = served.folder / "pictures" / "secret.png"
    secret.unlink(missing_ok=True)
    secret.symlink_to(served.folder / row["sound"])
    for kind, server in servers.items():
        for path in (str(whole), whole.as_uri(), whole.name):
            asked = {"dataframe_records": [{**row, "picture": path, "sound": None}]}
            status, said = post(server, asked)
            assert (status, said.get("predictions")) == (200, [expected]), (kind, path, said)
        for path in (str(served.folder / row["sound"]), "../sounds/3.wav",
                     "secret.png", "/etc/passwd", "file:///etc/passwd"):  # fmt: skip
            asked = {"dataframe_records": [{**row, "sound": None}, {**row, "sound": path}]}
            asked["dataframe_records"][0]["picture"] = None
            asked["dataframe_records"][1]["picture"] = None
            status, said = post(server, {**asked, "params": {"base": str(secret.parent)}})
            assert status == 400, (kind, path)
            assert said["message"].startswith("column 'sound', row 1: "), said
            assert "is a file that is not read here" in said["message"]


@pytest.mark.slow
def test_a_fuzz_neither_ends_nor_leaks_nor_misleads_it(
    servers: dict[str, Server], served: ServedModel, model: Any
) -> None:
    print(f"seed {SEED}")
    server = servers["sensorium"]
    outcome = fuzz(server, served, requests=300, seed=SEED, model=model, clients=3, roots=True)
    assert outcome.faults == []
    assert outcome.statuses[200] > 30 and outcome.statuses[400] > 100
    assert outcome.right == 30 and server.process.poll() is None
    assert outcome.files[-1] <= outcome.files[10] + 4


@pytest.mark.slow
def test_mlflows_server_refuses_what_reaches_the_model_in_its_words(
    servers: dict[str, Server], served: ServedModel
) -> None:
    server = servers["mlflow"]
    for row, message in [
        ({"text": 7}, "column 'text', row 0: it holds a int; a payload is text, or null"),
        ({"sound": [1, 2]}, "column 'sound', row 0: it holds a list; a payload is bytes, a path"),
        ({"picture": "/iVBORw0KGgo"}, "send the content itself, as data:;base64,CONTENT"),
        ({"tex": "it is low"}, "the input has none of the model's columns: age, picture, sound, "),
    ]:
        status, said = post(server, {"dataframe_records": [row]})
        assert status == 400 and message in said["message"], said
        assert "stack_trace" not in said and "Failed to predict data" not in said["message"]


@pytest.mark.slow
def test_sigterm_ends_it_well_and_leaves_nothing(
    servers: dict[str, Server], served: ServedModel
) -> None:
    server = servers["sensorium"]
    temporary = served.folder / "temporary"
    assert f"models:/served/1 at http://127.0.0.1:{server.port}/" in server.log.read_text()
    assert any("model.py" in names for _, _, names in os.walk(temporary))
    assert server.stop() == 0
    assert not any("model.py" in names for _, _, names in os.walk(temporary))


def app_of(served: ServedModel, model: Any, **options: Any) -> Any:
    loaded = LoadedModel(pyfunc=model, base=str(served.folder), files=served.folder)
    return make_app(loaded, **{"most_bytes": 10_000, "workers": 1, **options})


async def asked_of(app: Any, *parts: bytes, gate: asyncio.Event | None = None) -> tuple[int, Any]:
    """Status and answer to a request, by ASGI; its last part comes once the gate is open."""
    coming, sent = list(parts), []

    async def receive() -> dict[str, Any]:
        if gate is not None and len(coming) == 1:
            await gate.wait()
        part = coming.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(coming)}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
        "path": "/invocations", "raw_path": b"/invocations", "root_path": "", "scheme": "http",
        "query_string": b"", "headers": [(b"content-type", b"application/json")],
    }  # fmt: skip
    await app(scope, receive, send)
    said = b"".join(m.get("body", b"") for m in sent)
    return sent[0]["status"], json.loads(said)


def test_requests_in_flight_are_bounded_in_number_bytes_and_time(
    served: ServedModel, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ROOTS, "")
    app = app_of(served, model)
    row = {"text": "it is low"}
    text = json.dumps({"inputs": row}).encode()
    (expected,) = expected_answers(model, [row])

    async def together() -> None:
        gate = asyncio.Event()
        # Three bodies of 9,000 bytes are on their way; 40,000 are held at most.
        slow = [asyncio.create_task(asked_of(app, b" " * 9000, text, gate=gate)) for _ in range(3)]
        await asyncio.sleep(0)
        status, said = await asked_of(app, b" " * 9_900, b" " * 9_900)
        assert (status, said["message"]) == (413, "a request has 10,000 bytes at most")
        assert (await asked_of(app, text))[0] == 200
        more = [asyncio.create_task(asked_of(app, b" " * 6000, text, gate=gate)) for _ in range(2)]
        await asyncio.sleep(0)
        status, said = await asked_of(app, b" " * 2000, text)
        assert status == 503 and "ask again" in said["message"]
        monkeypatch.setattr(http_server, "MOST_REQUESTS", 5)
        assert (await asked_of(app))[0] == 503, "its body is not read"
        gate.set()
        for answer in [*slow, *more]:
            assert await answer == (200, {"predictions": [expected]})
        # All that was held is free again.
        for _ in range(6):
            assert (await asked_of(app, b" " * 9000, text))[0] == 200
        monkeypatch.setattr(http_server, "BODY_SECONDS", 0.01)
        assert (await asked_of(app, b"{", text, gate=asyncio.Event()))[0] == 408

    asyncio.run(together())


def test_an_empty_list_is_a_row_and_lists_of_texts_are_not_taken_apart(
    served: ServedModel, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ROOTS, "")
    app = app_of(served, model)
    for row in ({"text": []}, {"text": ["a", "b"]}):
        asked = json.dumps({"instances": [row]}).encode()
        status, said = asyncio.run(asked_of(app, asked))
        assert status == 400 and "'text', row 0: it holds a list" in said["message"], row


def test_payloads_are_encoded_before_too_many_are_held(
    served: ServedModel, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = model.predict(served.rows)
    held: list[int] = []
    encode = scoring.encode_rows

    def watched(prepared: list[Prepared], **options: Any) -> None:
        held.append(sum(bytes_of(item.payload) for item in prepared))
        encode(prepared, **options)

    monkeypatch.setattr(scoring, "encode_rows", watched)
    assert model.predict(served.rows).equals(whole)
    most, calls = max(held), len(held)
    held.clear()
    monkeypatch.setattr(scoring, "WINDOW_BYTES", most // 5)
    assert model.predict(served.rows).equals(whole)
    assert len(held) > calls + 4 and max(held) < most / 2


def test_a_served_model_takes_no_sound_of_hours_in_a_few_bytes(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = pd.DataFrame({"sound": [data_uri(silence(minutes=11))]})
    assert len(bomb.sound[0]) < 100_000
    assert model.predict(bomb).missing[0] == ["about", "caption", "photo"]
    monkeypatch.setenv(ROOTS, "")
    (problems,) = model.predict(bomb).problems
    assert problems.startswith("voice: ") and "600" in problems, problems


def test_payloads_that_all_fail_in_an_encoder_do_not_blame_it_if_it_has_worked(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = load(served)
    rows = pd.DataFrame({"text": ["bad one", "bad two"], "age": [30.0, 40.0]})
    ours = fresh.unwrap_python_model()
    _, encoder = ours._encoder("caption")
    encode = type(encoder).encode

    def fails_for_some(self: Any, texts: list[str]) -> np.ndarray:
        if any(text.startswith("bad") for text in texts):
            raise RuntimeError("it cannot")
        return encode(self, texts)

    monkeypatch.setattr(type(encoder), "encode", fails_for_some)
    with pytest.raises(RuntimeError, match="it cannot"):
        fresh.predict(rows)
    ours.load()
    answers = fresh.predict(rows)
    assert answers.prediction.notna().all()
    assert list(answers.problems) == ["caption: RuntimeError: it cannot"] * 2


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (("--root", "/no/such/folder"), 2, "there is no such folder"),
        (("--root", ".,/etc"), 2, "commas stand between folders"),
        (("--root", "file:///etc"), 2, "name a folder, or s3://BUCKET/PREFIX"),
        (("--root", "s3://"), 2, "not of the form s3://BUCKET/PREFIX"),
        (("--host", "256.0.0.1"), 1, "no server can listen at --host 256.0.0.1 --port 5001"),
    ],
)
def test_what_the_server_cannot_have_is_said_before_the_encoders_are_loaded(
    options: tuple[str, ...], code: int, told: str, served: ServedModel, capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv(ROOTS, "")
    monkeypatch.setattr(LoadedModel, "load", lambda self: pytest.fail("they are loaded"))
    found, _, errors = sensorium(capsys, "serve", "served", "--tracking", served.uri, *options)
    assert found == code and told in " ".join(errors.split())


def test_a_port_in_use_is_named_and_is_no_refusal_of_the_gate(
    served: ServedModel, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ROOTS, "")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        asked = ("serve", "served", "--tracking", served.uri, "--port", port)
        code, text, errors = sensorium(capsys, *asked)
    assert code == 1 and f"--host 127.0.0.1 --port {port}: Address already in use" in " ".join(
        errors.split()
    )
    assert "/invocations" not in text


def asked(content: Any) -> Any:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return read_request(body, columns=["age", "text", "picture"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"is not JSON in UTF-8: Expecting property name.*line 1 column 2"),
        (b'{"inputs": "\xff"}', r"is not JSON in UTF-8: 'utf-8' codec can't decode byte 0xff"),
        (b"[" * 100_000, r"nested too deeply"),
        (b'{"inputs": {"age": %s}}' % (b"9" * 5000), r"is not JSON.*digits"),
        ([], r"is a JSON object with one of \"dataframe_split\""),
        ({"rows": []}, r"exactly one of .*; this has none, but \"rows\""),
        ({"inputs": {}, "instances": []}, r"this has \"inputs\", \"instances\""),
        ({"inputs": {"text": "a"}, "more": 1}, r"\"more\" is no part of a request"),
        ({"inputs": {"tex": ["a"]}}, r"column \"tex\" is none of the model's; .*\"text\""),
        ({"instances": [{"text": "a"}, 7]}, r"instances, row 1: it is a number, and no object"),
        ({"dataframe_records": {"text": "a"}}, r"dataframe_records is a list of objects"),
        ({"dataframe_records": [{}]}, r"there is no column; the model's are \"age\""),
        (b'{"instances": [{"text": "a", "text": "b"}]}', r"\"text\" is said twice in one object"),
        (
            {"dataframe_split": {"columns": ["text", "text"], "data": [["a", "b"]]}},
            r"there are several columns \"text\"",
        ),
        (
            {"dataframe_split": {"columns": ["text", "age"], "data": [["a", 1], ["b"]]}},
            r"dataframe_split, row 1: it is 1 cells; it is a list of 2 cells, null where",
        ),
        ({"dataframe_split": {"columns": ["text"]}}, r"an object with `columns` and `data`"),
        ({"dataframe_split": {"columns": [1], "data": []}}, r"`columns` is a list of names"),
        ({"inputs": {"text": ["a", "b"], "age": [1]}}, r"different lengths: \"text\" 2, \"age\" 1"),
        ({"inputs": {"text": ["a"], "age": 1}}, r"column \"age\" is a number, and \"text\" a list"),
        (b'{"inputs": {"text": ["\\ud800"]}}', r"column \"text\", row 0: .*half of a surrogate"),
        ({"inputs": {"text": "a"}, "params": {"bas": "x"}}, r"there is no \"bas\"; there is"),
        ({"inputs": {"text": "a"}, "params": {"base": 1}}, r"base is a text, and no number"),
        (b'{"inputs": {"age": [1, NaN]}}', r"NaN is no number of JSON .*null stands for"),
        (b'{"inputs": {"age": -Infinity}}', r"-Infinity is no number of JSON"),
        ({"instances": [{}] * 10_001}, r"10,001 rows; a request has 10,000 at most"),
        ({"dataframe_split": {"columns": ["age"], "data": [[1]] * 10_001}}, r"10,001 rows"),
        ({"inputs": {"age": [1] * 10_001}}, r"10,001 rows; a request has 10,000 at most"),
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused_with_what_it_should_be(content: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as refused:
        asked(content)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("form", FORMS)
def test_many_names_take_no_more_than_the_request(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of a name each would make a table of as many columns as there are rows."""
    names = [f"name {i}" for i in range(4000)]
    body = {
        "dataframe_split": {"columns": names, "data": []},
        "inputs": {name: [1] for name in names},
    }.get(form, [{name: 1} for name in names])
    asked_for: list[str] = []
    cells_of = request._cells
    monkeypatch.setattr(
        request, "_cells", lambda cells, name: asked_for.append(name) or cells_of(cells, name)
    )
    with pytest.raises(InvalidRequest, match=r"column \"name 0\" is none of the model's"):
        asked({form: body})
    assert asked_for == [], "no column is made of names that are unknown"


def test_what_is_like_a_long_name_is_not_sought(monkeypatch: pytest.MonkeyPatch) -> None:
    sought: list[str] = []
    monkeypatch.setattr(request, "nearest_hint", lambda name, known: sought.append(name) or "")
    for name in ("textt", "t" * 81):
        with pytest.raises(InvalidRequest, match="none of the model's"):
            asked({"inputs": {name: ["a"]}})
    assert sought == ["textt"]


def test_a_name_that_is_said_twice_is_found_among_many() -> None:
    """In a time that grows with their number, and not with its square, which would be minutes."""
    names = ",".join(f'"n{i}":1' for i in range(100_000))
    with pytest.raises(InvalidRequest, match='"n99999" is said twice'):
        asked(f'{{"inputs": {{{names},"n99999":1}}}}'.encode())


def test_the_four_forms_say_the_same() -> None:
    rows = [{"age": 1.5, "text": "a"}, {"age": None, "text": "ü"}]
    expected = pd.DataFrame(rows, dtype=object)
    for form in FORMS:
        found = asked({**form_of(rows, form), "params": {"base": "/data"}})
        pd.testing.assert_frame_equal(found.rows, expected)
        assert found.params == {"base": "/data"}
    partly = asked({"instances": [{"text": "a"}, {"age": 2}]}).rows
    assert partly.to_dict("list") == {"text": ["a", None], "age": [None, 2]}
    assert len(asked({"dataframe_split": {"columns": ["text"], "data": []}}).rows) == 0


def test_only_a_server_is_told_where_it_may_read(tmp_path: Path) -> None:
    assert places_of({}) is None, "whoever loads a model reads what he can"
    assert places_of({SERVING: "true"}) == Places()
    assert places_of({"MLSERVER_MODEL_URI": "/mnt/models"}) == Places()
    assert places_of({ROOTS: ""}) == Places()
    named = places_of({ROOTS: f"{tmp_path}, s3://bucket/new ,"})
    assert named == Places(roots=(f"{tmp_path}/", "s3://bucket/new/"))


@pytest.mark.parametrize(
    ("uri", "there"),
    [
        ("a.png", True),
        ("deep/a.png", True),
        ("deep/../a.png", True),
        ("no-such-file.png", True),
        ("data:;base64,AAAA", True),
        ("s3://bucket/new/a.png", True),
        ("../data-too/a.png", False),
        ("deep/../../data-too/a.png", False),
        ("link/passwd", False),
        ("/etc/passwd", False),
        ("file:///etc/passwd", False),
        ("file://elsewhere/data/a.png", False),
        ("s3://bucket/newer/a.png", False),
        ("s3://bucket/new/../old/a.png", False),
        ("s3://other/new/a.png", False),
        ("s3://bucket", False),
        ("https://bucket/new/a.png", False),
        ("", False),
        ("\0", False),
    ],
)
def test_a_path_leads_nowhere_but_below_a_root(uri: str, there: bool, tmp_path: Path) -> None:
    for name in ("data/deep", "data-too"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "data/link").symlink_to("/etc")
    places = places_of({ROOTS: f"{tmp_path}/data,s3://bucket/new"})
    assert places is not None
    allowed = True
    try:
        places.check(uri, base=str(tmp_path / "data"))
    except ValueError as error:
        allowed = False
        assert ROOTS in str(error) and "data:;base64" in str(error)
    assert allowed is there
    with pytest.raises(ValueError) if uri[:5] != "data:" else pytest.MonkeyPatch.context():
        Places().check(uri, base=str(tmp_path / "data"))


@pytest.mark.parametrize(
    "base",
    ["file://{}", "FILE://{}", "file://localhost{}", "http://{}", "S3://{}", "file:{}", "up/{}"],
)
def test_no_form_of_a_base_leads_out_of_the_roots(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, root = tmp_path / "secret", tmp_path / "root"
    for folder in (secret, root):
        folder.mkdir()
    (secret / "a.txt").write_text("nobody's business")
    (root / "up").symlink_to("/")
    monkeypatch.chdir(root)
    places = places_of({ROOTS: "."})
    assert places is not None
    places.check("a.txt", base=str(root))
    with pytest.raises(ValueError, match=r"not read here|not supported|three slashes"):
        places.check("a.txt", base=base.format(secret))


def test_a_base_as_a_uri_is_the_folder_that_it_names(tmp_path: Path) -> None:
    """What is checked is what is opened: a name that looks like a URI is a name, once resolved."""
    (tmp_path / "a.txt").write_text("found")
    assert locate("a.txt", base=tmp_path.as_uri()) == str(tmp_path / "a.txt")
    assert fetch("a.txt", base=tmp_path.as_uri()) == b"found"
    odd = tmp_path / "file:"
    odd.mkdir()
    (odd / "a.txt").write_text("odd")
    assert fetch("file:/a.txt", base=str(tmp_path)) == b"odd"
    assert fetch("a.txt", base=f"{tmp_path}/file://") == b"odd"


@pytest.mark.parametrize(
    "name",
    ["a/" * 3000, "/".join(["a"] * 2100), "s3://bucket/new/" + "k" * 1025, "a" * 10**6],
    ids=["steps", "joined", "key", "million"],
)
def test_names_longer_than_any_file_has_are_not_looked_up(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = places_of({ROOTS: f"{tmp_path},s3://bucket/new"})
    assert places is not None
    seen: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(os.path, "realpath", seen.append)
        with pytest.raises(Forbidden) as refused:
            places.check(name, base=str(tmp_path))
    assert seen == [] and len(str(refused.value)) < 600


def test_what_fails_in_a_server_is_told_to_its_log_alone(
    model: Any, served: ServedModel, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    from features.encoders.text import HashingSpec
    from workflows.scoring import EncoderMismatch, Unanswered

    monkeypatch.setattr(HashingSpec, "version", HashingSpec.version + 1)
    rows = served.rows[["text"]]
    with pytest.raises(EncoderMismatch, match="fitted to"):
        model.predict(rows)
    monkeypatch.setenv(SERVING, "true")
    with pytest.raises(Unanswered, match="the log of its server says why") as refused:
        model.predict(rows)
    assert refused.value.get_http_status_code() == 500
    assert "fitted to" not in refused.value.serialize_as_json()
    assert "EncoderMismatch" in caplog.text


def test_an_exported_head_answers_as_the_model(
    served: ServedModel, model: Any, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    out = tmp_path / "exported"
    code, text, errors = sensorium(capsys, "export", "served", out, "--tracking", served.uri)
    assert code == 0, errors
    assert "answered by onnxruntime, greatest difference" in text
    described = json.loads((out / "head.json").read_text())
    assert described["model"] == "models:/served/1"
    assert described["classes"] == ["high", "low", "middle"]
    assert described["checked"]["subsets"] == 16
    assert described["encoders"]["photo"]["type"] == "hog"

    from workflows.serving import said

    seen: dict[str, Any] = {}
    predict = said.predict

    def watched(head: Any, **given: Any) -> Any:
        seen.update(given)
        return predict(head, **given)

    monkeypatch.setattr(said, "predict", watched)
    answers = model.predict(served.rows)
    session = onnxruntime.InferenceSession(out / "head.onnx")
    (found,) = session.run(
        None,
        {
            **{m: x.astype(np.float32) for m, x in seen["embeddings"].items()},
            **{f"{m}_present": x for m, x in seen["presence"].items()},
        },
    )
    np.testing.assert_allclose(found, np.stack(answers.probabilities.to_list()), atol=1e-6)


def test_an_export_that_cannot_be_written_is_refused_first_and_none_is_half_written(
    served: ServedModel, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training import onnx_export

    made = []
    monkeypatch.setattr(onnx_export, "export_onnx", lambda *_, **__: made.append(1))
    (tmp_path / "file").touch()
    asked = ("export", "served", "--tracking", served.uri)
    code, _, errors = sensorium(capsys, *asked, tmp_path / "file" / "out")
    assert code == 2 and "name another OUT" in " ".join(errors.split()) and made == []

    checked = {"rows": 20, "subsets": 20, "of_subsets": 512, "greatest_difference": 0.0}
    graph = onnx_export.Exported(graph=b"new", described={"checked": checked})
    monkeypatch.setattr(onnx_export, "export_onnx", lambda *_, **__: graph)
    (tmp_path / "head.onnx").write_bytes(b"old")
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    sensorium(capsys, *asked, tmp_path)
    assert (tmp_path / "head.onnx").read_bytes() == b"old"
    monkeypatch.setattr(os, "replace", replace)
    code, text, _ = sensorium(capsys, *asked, tmp_path)
    assert code == 0 and "20 rows with 20 of the 512 subsets of" in " ".join(text.split())
    assert (tmp_path / "head.onnx").read_bytes() == b"new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "head.json", "head.onnx"]


def test_what_is_not_registered_is_neither_served_nor_exported(
    served: ServedModel, tmp_path: Path, capsys: Any
) -> None:
    for command in (["serve", "servd"], ["export", "servd", tmp_path]):
        code, _, errors = sensorium(capsys, *command, "--tracking", served.uri)
        assert code == 1 and "did you mean 'served'" in " ".join(errors.split())


def test_a_mismatched_encoder_is_found_before_the_first_request(
    served: ServedModel, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from features.encoders.text import HashingSpec

    monkeypatch.setenv(ROOTS, "")
    monkeypatch.setattr(HashingSpec, "version", HashingSpec.version + 1)
    code, _, errors = sensorium(capsys, "serve", "served", "--tracking", served.uri)
    errors = " ".join(errors.split())
    assert code == 1 and "modality 'caption'" in errors and "embed and train again" in errors


def test_content_in_a_uri_is_as_content_in_a_cell(model: Any, served: ServedModel) -> None:
    inline = model.predict(served.inline())
    assert inline.equals(model.predict(served.rows))
    broken = served.rows.head(1).assign(picture=data_uri(b"no image", kind="image/png"))
    assert "photo: not an image of a known format" in model.predict(broken).problems.iloc[0]
