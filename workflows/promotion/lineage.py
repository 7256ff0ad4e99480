"""What a registered version came from, and which versions came from a snapshot or an encoder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from workflows.pipeline import StageError
from workflows.promotion.history import recorded
from workflows.promotion.registry import (
    CHAMPION,
    named_by,
    number_of,
    tags_of,
    version_of,
    versions_of,
)
from workflows.tracking import if_there

if TYPE_CHECKING:
    from workflows.tracking import MlflowClient, ModelVersion

SHORTEST = 6
"""Of how many characters the beginning of an id must at least be."""


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """A version, and all that it is named after."""

    model: str
    version: str
    aliases: tuple[str, ...]
    registered: str
    """UTC, ISO 8601."""
    candidate: str
    """Name of the candidate."""
    fingerprint: str
    snapshot: str
    sources: tuple[str, ...]
    """Files of the table that the snapshot was made of; empty if that was not recorded."""
    encoders: Mapping[str, str]
    """Per modality: the encoder's type and its fingerprint."""
    config: str
    """Digest of the pipeline's YAML; the YAML itself is `pipeline.json` of the training's run."""
    code: str
    """Git commit."""
    run: str
    gate: str
    """What the gate said: passed, refused, or nothing."""
    parent: str | None
    """The champion that it was compared with."""
    promoted: str
    """When and by whom it was made champion last; empty if it never was."""


def lineage_of(client: MlflowClient, *, version: ModelVersion) -> Lineage:
    """All that a version says of its origin; StageError if it is not one of ours."""
    tags = tags_of(version)
    if "key" not in tags:
        raise StageError(
            f"{version.name} version {version.version} was not registered by this project, so "
            "nothing is known of its origin"
        )
    parameters = _parameters(client, run=tags.get("run"))
    number, against = number_of(version), tags.get("against", "none")
    moves = [move for move in recorded(client, model=version.name) if move.after == number]
    promoted = f"{moves[-1].kind} {moves[-1].at} by {moves[-1].by}" if moves else ""
    if not promoted and "promoted_at" in tags:
        promoted = f"promoted {tags['promoted_at']} by {tags.get('promoted_by', '?')}"
    created = datetime.fromtimestamp(version.creation_timestamp / 1000, UTC)
    aliases = client.get_model_version(version.name, str(version.version)).aliases
    return Lineage(
        model=version.name,
        version=number or "",
        aliases=tuple(aliases),
        registered=created.isoformat(timespec="seconds"),
        candidate=tags.get("name", ""),
        fingerprint=tags.get("candidate", ""),
        snapshot=tags.get("snapshot", ""),
        sources=tuple(_json(tags.get("sources"), otherwise=[])),
        encoders={
            modality: f"{_type(parameters, modality)}{fingerprint}"
            for modality, fingerprint in _json(tags.get("encoders"), otherwise={}).items()
        },
        config=tags.get("pipeline", ""),
        code=tags.get("git_commit", ""),
        run=tags.get("run", ""),
        gate=tags.get("gate", "not judged"),
        parent=None if against == "none" else against,
        promoted=promoted,
    )


def resolve(client: MlflowClient, *, name: str) -> ModelVersion:
    """The version that a name or URI means: `models:/NAME/3`, `models:/NAME@champion`, or `NAME`,
    which is its champion (or its newest version, if it has none).
    """
    plain = name.removeprefix("models:/")
    if "@" in plain:
        model, _, alias = plain.rpartition("@")
        found = named_by(client, model=model, alias=alias)
        what = f"{model} has no version by the alias {alias}"
    elif "/" in plain:
        model, _, number = plain.rpartition("/")
        found = version_of(client, model=model, number=number)
        what = f"{model} has no version {number}"
    else:
        model = plain
        found = named_by(client, model=model, alias=CHAMPION)
        found = found or next(iter(versions_of(client, model=model)), None)
        what = f"no version of {model} is registered"
    if found is None:
        raise StageError(f"{what}; {_there(client, model=model)}")
    return found


def users_of(
    client: MlflowClient, *, snapshot: str | None = None, encoder: str | None = None
) -> list[ModelVersion]:
    """The versions, of all models, that were fitted to a snapshot or an encoder.

    Either is an id or its beginning, of at least `SHORTEST` characters; StageError if it is
    shorter.
    """
    for wanted in (snapshot, encoder):
        if wanted is not None and len(wanted) < SHORTEST:
            raise StageError(f"{wanted!r}: give at least the first {SHORTEST} characters of an id")

    def uses(version: ModelVersion) -> bool:
        tags = tags_of(version)
        if snapshot is not None and not tags.get("snapshot", "").startswith(snapshot):
            return False
        encoders = _json(tags.get("encoders"), otherwise={}).values()
        return encoder is None or any(item.startswith(encoder) for item in encoders)

    return [version for version in versions_of(client) if uses(version)]


def _parameters(client: MlflowClient, *, run: str | None) -> Mapping[str, str]:
    """What the pipeline was: the parameters of the training's run, above the candidate's."""
    if run is None:
        return {}
    child = if_there(lambda: client.get_run(run))
    if child is None:
        return {}  # the run was deleted since
    parent = if_there(lambda: client.get_run(child.data.tags.get("mlflow.parentRunId", run)))
    return {} if parent is None else parent.data.params


def _type(parameters: Mapping[str, str], modality: str) -> str:
    found = parameters.get(f"features.{modality}.encoder.type", "")
    return f"{found} " if found else ""


def _json(text: str | None, *, otherwise: Any) -> Any:
    try:
        return otherwise if text is None else json.loads(text)
    except ValueError:  # a long tag that was cut
        return otherwise


def _there(client: MlflowClient, *, model: str) -> str:
    from features.fingerprint import nearest_hint

    names = sorted(found.name for found in client.search_registered_models())
    if model in names:
        numbers = ", ".join(number_of(v) or "" for v in versions_of(client, model=model)) or "none"
        return f"its versions: {numbers}"
    return f"{nearest_hint(model, names)}registered models: {', '.join(names) or 'none'}"
