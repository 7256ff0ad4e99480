"""What a person does with a registered model: approve a challenger, take a champion back."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from features.storage import Storage, open_storage
from workflows.pipeline import StageError
from workflows.promotion.history import (
    Move,
    drop_challenger,
    history,
    move_champion,
    moving,
    now,
    record_move,
    record_promotion,
    recorded,
    who,
)
from workflows.promotion.registry import (
    CHALLENGER,
    CHAMPION,
    champion_of,
    named_by,
    number_of,
    tag,
    tags_of,
    version_of,
)
from workflows.tracking import TAG

if TYPE_CHECKING:
    from workflows.tracking import MlflowClient, ModelVersion


@dataclass(frozen=True, kw_only=True)
class Operated:
    """What was done."""

    before: str | None
    """The champion before."""
    after: str | None
    changed: bool
    detail: str
    """What happened, in one sentence."""


def approve(
    client: MlflowClient,
    *,
    model: str,
    number: str | None = None,
    reason: str = "",
    storage: Storage | None = None,
) -> Operated:
    """Make a challenger champion that passed the gate: that of the alias, or a version by number.

    `reason` is kept in the history, before what the gate said.

    StageError if there is none, if the gate refused it, or if the champion is not the one that it
    was compared with: the next run compares it with that one.
    """
    if number is None:
        version = named_by(client, model=model, alias=CHALLENGER)
        if version is None:
            champion = champion_of(client, model=model)
            raise StageError(
                f"no version of {model} waits for approval: none bears the alias "
                f"{CHALLENGER} (champion: {number_of(champion) or 'none'}); name another that "
                "passed the gate by --version"
            )
    else:
        version = _version(client, model=model, number=number)
    number, tags = number_of(version), tags_of(version)
    storage = storage or storage_of(version)
    with moving(storage, model=model) as held:
        champion = champion_of(client, model=model)
        if number_of(champion) == number:
            drop_challenger(client, version=version)
            return Operated(
                before=number,
                after=number,
                changed=False,
                detail=f"version {number} is the champion already",
            )
        if tags.get("gate") != "passed":
            said = "refused it" if tags.get("gate") == "refused" else "has not judged it"
            raise StageError(
                f"version {number} of {model} cannot be approved: the gate {said}; nothing was "
                "moved. Change `promotion` in the pipeline's YAML if the gate is too strict"
            )
        against = tags.get("against", "none")
        if against != (number_of(champion) or "none"):
            raise StageError(
                f"version {number} of {model} was compared with version {against}, and the "
                f"champion is version {number_of(champion) or 'none'} now; nothing was moved. The "
                "next `sensorium run` or `sensorium promote` compares it with that one"
            )
        move_champion(client, version=version, champion=champion, held=held)
        record_promotion(
            client,
            version=version,
            judgement=tags["judgement"],
            before=against,
            by=who(),
            verdict="; ".join(filter(None, (reason, _verdict(version)))),
            kind="approved",
        )
    return Operated(
        before=number_of(champion),
        after=number,
        changed=True,
        detail=f"version {number} is the champion now, in the place of "
        f"{'none' if champion is None else f'version {number_of(champion)}'}",
    )


def roll_back(
    client: MlflowClient,
    *,
    model: str,
    to: str | None = None,
    reason: str = "",
    storage: Storage | None = None,
) -> Operated:
    """Make an earlier champion champion again: the one before the present one, or a version.

    The version that is taken back is marked, so that no run promotes it again; it can be approved
    by a person. StageError if there is none to go back to, or it never was the champion.
    """
    champion = champion_of(client, model=model)
    if champion is None:
        raise StageError(f"{model} has no champion, so there is nothing to take back")
    with moving(storage or storage_of(champion), model=model) as held:
        champion = champion_of(client, model=model) or champion
        here = number_of(champion)
        target = to or _before(history(client, model=model), client=client, champion=champion)
        if target == here:
            return Operated(
                before=here,
                after=here,
                changed=False,
                detail=f"version {here} is the champion already; nothing was moved",
            )
        _version(client, model=model, number=target)
        been = {move.after for move in history(client, model=model)}
        if target not in been:
            shown = ", ".join(sorted((n for n in been if n), key=int)) or "none"
            raise StageError(
                f"version {target} of {model} never was the champion, so it cannot be gone back "
                f"to; those that were: {shown}"
            )
        mark = {"at": now(), "by": who(), "to": target, "reason": reason}
        # Before the alias moves: killed in between, the next run or rollback completes it.
        tag(client, champion, {"taken_back": json.dumps({**mark, "moving": True})})
        if held is not None:
            held.confirm()
        finish_rollback(client, champion=champion)
    return Operated(
        before=here,
        after=target,
        changed=True,
        detail=f"version {target} is the champion again, and version {here} is taken back: no run "
        "promotes it",
    )


def finish_rollback(client: MlflowClient, *, champion: ModelVersion) -> ModelVersion | None:
    """Complete a rollback whose process was killed before the alias moved; the champion then.

    None if nobody began to take this champion back.
    """
    found = client.get_model_version(champion.name, str(champion.version))
    mark = json.loads(tags_of(found).get("taken_back") or "{}")
    if not mark.pop("moving", False):
        return None
    version = version_of(client, model=champion.name, number=mark["to"])
    if version is None:
        client.delete_model_version_tag(champion.name, str(champion.version), f"{TAG}taken_back")
        return None
    move = Move(
        at=mark["at"],
        by=mark["by"],
        kind="rolled back",
        before=number_of(champion),
        after=number_of(version),
        verdict=mark["reason"],
    )
    if move not in recorded(client, model=champion.name):
        record_move(client, model=champion.name, move=move)
    client.set_registered_model_alias(version.name, CHAMPION, str(version.version))
    if "taken_back" in tags_of(version):
        client.delete_model_version_tag(version.name, str(version.version), f"{TAG}taken_back")
    tag(client, champion, {"taken_back": json.dumps(mark)})
    return version


def storage_of(version: ModelVersion) -> Storage | None:
    """The storage in which a version's pipeline takes turns; None if it is not to be reached."""
    root = tags_of(version).get("store")
    if root is None or ("://" not in root and not os.path.isdir(root)):
        return None
    try:
        return open_storage(root)
    except (ValueError, OSError, ImportError):
        return None


def _version(client: MlflowClient, *, model: str, number: str) -> ModelVersion:
    version = version_of(client, model=model, number=number)
    if version is None:
        found = client.search_model_versions(f"name = '{model}'")
        there = ", ".join(sorted((number_of(v) or "" for v in found), key=int)) or "none"
        raise StageError(f"{model} has no version {number}; its versions: {there}")
    return version


def _before(moves: list[Move], *, client: MlflowClient, champion: ModelVersion) -> str:
    """The champion in whose place the present one came, if its version is still there."""
    here, seen = number_of(champion), set[str | None]()
    at = here
    while at is not None and at not in seen:
        seen.add(at)
        came = [m for m in moves if m.after == at and m.kind != "rolled back"]
        at = came[-1].before if came else None
        if at is not None and version_of(client, model=champion.name, number=at) is not None:
            return at
    raise StageError(
        f"version {here} of {champion.name} is the first champion that is known, so there is none "
        "to go back to; name a version by --to"
    )


def _verdict(version: ModelVersion) -> str:
    """The gate's verdict on a version in a few words, from its tags."""
    try:
        conditions = json.loads(tags_of(version).get("gate_summary", "[]"))
    except ValueError:
        return ""
    failed = [item for item in conditions if not item["passed"]]
    return "; ".join(f"{item['name']}: {item['detail']}" for item in (failed or conditions)[:1])
