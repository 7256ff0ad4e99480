"""How the alias `champion` moved: checked, moved and written down, one process at a time.

Every move is a tag of the registered model, beside the alias itself, so that it is there for
whoever can move the alias. What moves it: a challenger that passed the gate, a person who
approves one, and a rollback.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from features.storage import Storage
from features.turns import Turn
from workflows.pipeline import StageError
from workflows.promotion.registry import (
    CHALLENGER,
    CHAMPION,
    TAG_LENGTH,
    champion_of,
    number_of,
    tag,
    tags_of,
    versions_of,
)
from workflows.runs import cut
from workflows.tracking import TAG

if TYPE_CHECKING:
    from workflows.tracking import MlflowClient, ModelVersion

MOVE = f"{TAG}move."
WAIT_SECONDS = 600.0
"""How long to wait for another that moves the same alias."""
Kind = Literal["promoted", "approved", "rolled back", "by other hands"]


class ChampionMoved(StageError):
    """Another job moved the alias while a version was compared with the champion before it."""


@dataclass(frozen=True, kw_only=True)
class Move:
    """One move of the alias `champion`."""

    at: str
    """UTC, ISO 8601; empty if it is not known."""
    by: str
    kind: Kind
    before: str | None
    """The version that was champion; None if there was none."""
    after: str | None
    verdict: str = ""
    """The gate's, in a sentence, or the reason of whoever took a version back."""
    judgement: str = ""


def who() -> str:
    """Name of the user that this process runs as; the number of one without a name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no entry in passwd, as in many containers
        return str(os.getuid())


def now() -> str:
    """The time of a move."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextlib.contextmanager
def moving(storage: Storage | None, *, model: str) -> Iterator[Turn | None]:
    """Have the turn to move a model's alias; without a store to take turns in, no turn.

    MLflow's aliases have no compare-and-set: of two jobs that look and then move, both may.
    """
    if storage is None:
        yield None
        return
    name = f"alias {model}"
    with Turn(storage, name=name, what=f"{who()} moving {name}") as held:
        held.take(most=WAIT_SECONDS)
        yield held


def move_champion(
    client: MlflowClient,
    *,
    version: ModelVersion,
    champion: ModelVersion | None,
    held: Turn | None,
) -> None:
    """Move the alias to a version, if the champion still is the one that was compared with.

    ChampionMoved if it is not. Nobody else moves it meanwhile who waits for a turn.
    """
    found = champion_of(client, model=version.name)
    if number_of(found) != number_of(champion):
        raise ChampionMoved(
            f"the champion of {version.name} was version {number_of(champion)} when version "
            f"{number_of(version)} was compared with it, and is version {number_of(found)} now: "
            "another job moved it meanwhile. Run again, to compare with that one"
        )
    if held is not None:
        held.confirm()
    client.set_registered_model_alias(version.name, CHAMPION, str(version.version))
    drop_challenger(client, version=version)


def name_challenger(client: MlflowClient, *, version: ModelVersion) -> bool:
    """Give a version the alias `challenger`; False if it has it."""
    if CHALLENGER in (aliases_of(client, version=version)):
        return False
    client.set_registered_model_alias(version.name, CHALLENGER, str(version.version))
    return True


def drop_challenger(client: MlflowClient, *, version: ModelVersion) -> bool:
    """Take the alias `challenger` from a version, if it has it."""
    if CHALLENGER not in aliases_of(client, version=version):
        return False
    client.delete_registered_model_alias(version.name, CHALLENGER)
    return True


def aliases_of(client: MlflowClient, *, version: ModelVersion) -> list[str]:
    """The aliases of a version, as they are now."""
    return list(client.get_model_version(version.name, str(version.version)).aliases)


def record_promotion(
    client: MlflowClient,
    *,
    version: ModelVersion,
    judgement: str,
    before: str,
    by: str,
    verdict: str = "",
    kind: Kind = "promoted",
) -> None:
    """Say who made a version champion, when and in whose place, for whoever wants to go back."""
    at, number = now(), number_of(version)
    earlier = recorded(client, model=version.name)
    last = earlier[-1] if earlier else None
    if last is None or (last.after, last.judgement) != (number, judgement):
        record_move(
            client,
            model=version.name,
            move=Move(
                at=at,
                by=by,
                kind=kind,
                before=None if before == "none" else before,
                after=number,
                verdict=verdict,
                judgement=judgement,
            ),
        )
    if "taken_back" in tags_of(version):
        client.delete_model_version_tag(version.name, str(version.version), f"{TAG}taken_back")
    tag(
        client,
        version,
        {
            "promoted_by": by,
            "promoted_at": at,
            "promoted_from": before,
            "promoted": judgement,
        },
    )


def record_move(client: MlflowClient, *, model: str, move: Move) -> None:
    """Write a move down."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
    short = cut(move.verdict, length=TAG_LENGTH // 4)
    text = json.dumps({**asdict(move), "verdict": short})
    client.set_registered_model_tag(model, f"{MOVE}{stamp}.{uuid.uuid4().hex[:6]}", text)


def recorded(client: MlflowClient, *, model: str) -> list[Move]:
    """The moves that were written down, oldest first."""
    for found in client.search_registered_models(f"name = '{model}'"):
        tags = sorted((k, v) for k, v in found.tags.items() if k.startswith(MOVE))
        return [Move(**json.loads(text)) for _, text in tags]
    return []


def history(client: MlflowClient, *, model: str) -> list[Move]:
    """All moves of a model's alias that are known, oldest first.

    Those of a time when they stood in the versions' tags alone are read from there; and if the
    alias is not where the last one left it, a last move by other hands is added.
    """
    moves = recorded(client, model=model)
    known = {(move.after, move.judgement) for move in moves}
    earlier = []
    for version in versions_of(client, model=model):
        tags = tags_of(version)
        if "promoted_at" in tags and (number_of(version), tags.get("promoted", "")) not in known:
            before = tags.get("promoted_from", "none")
            earlier.append(
                Move(
                    at=tags["promoted_at"],
                    by=tags.get("promoted_by", ""),
                    kind="promoted",
                    before=None if before == "none" else before,
                    after=number_of(version),
                    judgement=tags.get("promoted", ""),
                )
            )
    moves = sorted([*earlier, *moves], key=lambda move: move.at)
    champion = number_of(champion_of(client, model=model))
    last = moves[-1].after if moves else None
    if champion != last:
        moves.append(Move(at="", by="", kind="by other hands", before=last, after=champion))
    return moves
