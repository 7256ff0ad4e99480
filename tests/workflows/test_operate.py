"""Approving, taking back, and what is told of it: versions here are entries without files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from features.storage import LocalStorage
from features.turns import Turn
from tests.workflows.command import sensorium
from workflows import tracking
from workflows.pipeline import StageError
from workflows.promotion import history, operate, registry
from workflows.promotion.lineage import lineage_of, resolve, users_of
from workflows.tracking import TAG

MODEL = "digits"


@pytest.fixture
def client(mlflow_uri: str) -> Iterator[Any]:
    with tracking.connected(mlflow_uri) as client:
        client.create_registered_model(MODEL)
        yield client


def add(client: Any, *, against: str = "none", gate: str = "passed", **tags: str) -> Any:
    """The next version, as a run registers it that was compared with some champion."""
    found = client.search_model_versions(f"name = '{MODEL}'")
    number = str(len(found) + 1)
    ours = {
        "key": f"key{number}",
        "gate": gate,
        "judgement": f"{number} against {against}",
        "against": against,
        "gate_summary": json.dumps(
            [{"name": "accuracy", "passed": gate == "passed", "detail": "+0.1"}]
        ),
        **tags,
    }
    return client.create_model_version(
        MODEL, "file:///nowhere", tags={f"{TAG}{key}": value for key, value in ours.items()}
    )


def promoted(client: Any, *, against: str = "none", **tags: str) -> Any:
    """The next version, made champion as a run does."""
    version = add(client, against=against, **tags)
    champion = registry.champion_of(client, model=MODEL)
    history.move_champion(client, version=version, champion=champion, held=None)
    history.record_promotion(
        client,
        version=version,
        judgement=registry.tags_of(version)["judgement"],
        before=against,
        by="someone",
        verdict="passed: +0.1",
    )
    return version


def champion(client: Any) -> str | None:
    return registry.number_of(registry.champion_of(client, model=MODEL))


def aliases(client: Any) -> dict[str, str]:
    return {k: str(v) for k, v in client.get_registered_model(MODEL).aliases.items()}


def moves(client: Any) -> list[tuple[str, str | None, str | None]]:
    return [(m.kind, m.before, m.after) for m in history.history(client, model=MODEL)]


def test_a_challenger_is_approved_once(client: Any) -> None:
    promoted(client)
    waiting = add(client, against="1")
    history.name_challenger(client, version=waiting)
    assert aliases(client) == {"champion": "1", "challenger": "2"}
    done = operate.approve(client, model=MODEL)
    assert (done.before, done.after, done.changed) == ("1", "2", True)
    assert aliases(client) == {"champion": "2"}
    assert moves(client) == [("promoted", None, "1"), ("approved", "1", "2")]
    again = operate.approve(client, model=MODEL, number="2")
    assert not again.changed and "already" in again.detail
    with pytest.raises(StageError, match=r"no version of digits waits .*champion: 2"):
        operate.approve(client, model=MODEL)


def test_what_was_compared_with_another_champion_is_not_approved(client: Any) -> None:
    promoted(client)
    history.name_challenger(client, version=add(client, against="1"))
    promoted(client, against="1")
    with pytest.raises(
        StageError, match=r"version 2 .* compared with version 1, .* is version 3 now; .*next"
    ):
        operate.approve(client, model=MODEL)
    assert champion(client) == "3"


@pytest.mark.parametrize(("gate", "said"), [("refused", "the gate refused it"), ("", "not judged")])
def test_what_did_not_pass_is_not_approved(client: Any, gate: str, said: str) -> None:
    promoted(client)
    add(client, against="1", gate=gate)
    with pytest.raises(StageError, match=said):
        operate.approve(client, model=MODEL, number="2")
    with pytest.raises(StageError, match=r"has no version 7; its versions: 1, 2"):
        operate.approve(client, model=MODEL, number="7")
    assert champion(client) == "1"


def test_going_back_goes_further_back_each_time_and_is_recorded(client: Any) -> None:
    promoted(client)
    promoted(client, against="1")
    promoted(client, against="2")
    done = operate.roll_back(client, model=MODEL, reason="wrong labels")
    assert (done.before, done.after) == ("3", "2")
    assert operate.roll_back(client, model=MODEL).after == "1"
    with pytest.raises(StageError, match="version 1 of digits is the first champion"):
        operate.roll_back(client, model=MODEL)
    assert champion(client) == "1"
    assert moves(client)[3:] == [("rolled back", "3", "2"), ("rolled back", "2", "1")]
    assert history.history(client, model=MODEL)[3].verdict == "wrong labels"
    mark = json.loads(registry.tags_of(client.get_model_version(MODEL, "3"))["taken_back"])
    assert mark["reason"] == "wrong labels" and "moving" not in mark
    # What a person puts back is no longer taken back.
    operate.roll_back(client, model=MODEL, to="3")
    assert "taken_back" not in registry.tags_of(client.get_model_version(MODEL, "3"))
    assert champion(client) == "3"


def test_a_version_that_never_was_champion_is_not_gone_back_to(client: Any) -> None:
    promoted(client)
    add(client, against="1", gate="refused")
    promoted(client, against="1")
    with pytest.raises(StageError, match=r"version 2 .* never was the champion, .* were: 1, 3"):
        operate.roll_back(client, model=MODEL, to="2")
    same = operate.roll_back(client, model=MODEL, to="3")
    assert not same.changed
    assert champion(client) == "3"


def test_a_deleted_version_is_passed_over_and_leaves_no_alias(client: Any) -> None:
    for against in ("none", "1", "2"):
        promoted(client, against=against)
    client.delete_model_version(MODEL, "2")
    assert operate.roll_back(client, model=MODEL).after == "1"
    client.delete_model_version(MODEL, "1")
    assert aliases(client) == {}
    with pytest.raises(StageError, match="has no champion"):
        operate.roll_back(client, model=MODEL)


def test_an_alias_of_a_version_that_is_gone_is_removed(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

    promoted(client)

    def gone(*args: object) -> None:
        raise MlflowException("no such version", RESOURCE_DOES_NOT_EXIST)

    with monkeypatch.context() as patch:
        patch.setattr(client, "get_model_version", gone)
        assert registry.champion_of(client, model=MODEL) is None
    assert aliases(client) == {}


@pytest.mark.parametrize("step", ["before the alias moves", "after it"])
def test_a_rollback_that_was_cut_short_is_completed_and_told_once(
    client: Any, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    promoted(client)
    promoted(client, against="1")
    promoted(client, against="2")
    move = client.set_registered_model_alias

    def cut_short(*args: str) -> None:
        if step == "after it":
            move(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(client, "set_registered_model_alias", cut_short)
        with pytest.raises(KeyboardInterrupt):
            operate.roll_back(client, model=MODEL, reason="bad")
    here = registry.champion_of(client, model=MODEL)
    assert here is not None
    restored = operate.finish_rollback(client, champion=here)
    assert (restored is None) == (step == "after it")
    assert champion(client) == "2"
    assert moves(client)[3:] == [("rolled back", "3", "2")]


def test_a_move_by_other_hands_is_seen_and_can_be_taken_back(client: Any) -> None:
    promoted(client)
    promoted(client, against="1")
    add(client, against="2")
    client.set_registered_model_alias(MODEL, "champion", "3")
    assert moves(client)[-1] == ("by other hands", "2", "3")
    assert operate.roll_back(client, model=MODEL).after == "2"


def test_promotions_of_the_time_of_tags_alone_are_in_the_history(client: Any) -> None:
    for number, before in (("1", "none"), ("2", "1")):
        version = add(client, against=before)
        tags = {
            "promoted_at": f"2026-01-0{number}T00:00:00+00:00",
            "promoted_by": "ann",
            "promoted_from": before,
            "promoted": "x",
        }
        registry.tag(client, version, tags)
    client.set_registered_model_alias(MODEL, "champion", "2")
    assert moves(client) == [("promoted", None, "1"), ("promoted", "1", "2")]
    assert operate.roll_back(client, model=MODEL).after == "1"


def test_who_moves_an_alias_waits_for_its_turn(client: Any, tmp_path: Path, monkeypatch) -> None:
    promoted(client, store=str(tmp_path))
    promoted(client, against="1", store=str(tmp_path))
    monkeypatch.setattr(history, "WAIT_SECONDS", 0.0)
    storage = LocalStorage(str(tmp_path))
    with Turn(storage, name=f"alias {MODEL}", what="another") as held:
        held.take()
        with pytest.raises(TimeoutError, match=r"another on .* has not ended its turn"):
            operate.roll_back(client, model=MODEL)
    assert champion(client) == "2"
    assert operate.roll_back(client, model=MODEL).after == "1"
    assert storage.list(f"turns/alias%20{MODEL}")


def test_a_version_names_all_that_it_came_from_and_is_found_by_it(client: Any) -> None:
    experiment = client.create_experiment("e")
    parent = client.create_run(experiment)
    client.log_param(parent.info.run_id, "features.photo.encoder.type", "hog")
    run = client.create_run(experiment, tags={"mlflow.parentRunId": parent.info.run_id})
    origin = {
        "name": "early",
        "candidate": "c" * 32,
        "snapshot": "abcdef123456",
        "encoders": json.dumps({"photo": "f0f0f0f0aa"}),
        "pipeline": "d" * 32,
        "git_commit": "0123abc",
        "run": run.info.run_id,
        "sources": json.dumps(["s3://bucket/table.parquet"]),
    }
    promoted(client)
    promoted(client, against="1", **origin)
    found = lineage_of(client, version=resolve(client, name=f"models:/{MODEL}@champion"))
    assert (found.version, found.parent, found.aliases) == ("2", "1", ("champion",))
    assert found.sources == ("s3://bucket/table.parquet",)
    assert found.encoders == {"photo": "hog f0f0f0f0aa"}
    assert (found.snapshot, found.code, found.config) == ("abcdef123456", "0123abc", "d" * 32)
    assert found.promoted.startswith("promoted 20") and found.promoted.endswith("by someone")

    def numbers(**wanted: str) -> list[str | None]:
        return [registry.number_of(v) for v in users_of(client, **wanted)]

    assert numbers(snapshot="abcdef") == numbers(encoder="f0f0f0f0aa") == ["2"]
    assert numbers(snapshot="abcdef", encoder="0000000") == []
    with pytest.raises(StageError, match="at least the first 6 characters"):
        users_of(client, snapshot="abc")
    for name, expected in [
        ("models:/digits/1", "1"),
        ("digits", "2"),
        ("models:/digits/9", "has no version 9; its versions: 2, 1"),
        ("models:/digits@gold", "has no version by the alias gold"),
        ("digit", "did you mean 'digits'"),
    ]:
        try:
            assert registry.number_of(resolve(client, name=name)) == expected
        except StageError as error:
            assert expected in str(error)


@pytest.fixture
def command(client: Any, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    promoted(client)
    promoted(client, against="1")
    return lambda *arguments: sensorium(capsys, *arguments)


def test_the_commands_do_and_tell_it(client: Any, command: Any) -> None:
    code, out, _ = command("rollback", MODEL, "--reason", "wrong labels")
    assert code == 0 and "version 1 is the champion again, and version 2 is taken back" in out
    assert champion(client) == "1"
    code, out, _ = command("history", MODEL)
    assert code == 0
    assert [word in out for word in ("rolled back", "wrong", "promoted", "someone")] == [True] * 4
    code, out, _ = command("history", MODEL, "--json")
    assert [move["after"] for move in json.loads(out)] == ["1", "2", "1"]
    code, out, _ = command("approve", MODEL, "--version", "2")
    assert code == 0 and "version 2 is the champion now, in the place of version 1" in out
    code, out, err = command("approve", MODEL)
    assert code == 1 and "no version of digits waits for approval" in err
    code, out, _ = command("lineage", f"models:/{MODEL}/2")
    assert code == 0 and "parent    version 1" in out and "approved" in out
    code, out, _ = command("lineage", MODEL, "--json")
    assert json.loads(out)["version"] == "2"
    code, out, _ = command("lineage", "--snapshot", "abcdef")
    assert code == 0 and "no registered version uses it" in out


def test_commands_that_cannot_know_what_is_meant_say_so(
    command: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code, _, err = command("history", "digts")
    assert code == 1 and "no model 'digts' is registered here; did you mean 'digits'?" in err
    code, _, err = command("lineage")
    assert code == 2 and "--snapshot" in err
    code, _, err = command("history", MODEL, "--tracking", f"sqlite:///{tmp_path}/none.db")
    assert code == 2 and "no such file" in err
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    code, _, err = command("rollback", MODEL)
    assert code == 2 and "--tracking URI" in err
