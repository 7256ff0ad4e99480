"""Registered versions: found by their key, judged in their tags, and moved to `champion`.

What became of a version stands in its tags: `gate`, `judgement` (the question that the gate
answered), `against`, then `promoted` once the alias has moved. So an attempt that was killed
between two of them is completed, and a version that was taken back is not put forward again.
"""

from __future__ import annotations

import getpass
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from workflows.pipeline import StageError
from workflows.promotion.gate import Verdict
from workflows.runs import cut
from workflows.tracking import TAG, register_model

if TYPE_CHECKING:
    from workflows.tracking import MlflowClient, ModelVersion

ALIAS = "champion"
TAG_LENGTH = 4000
"""Longer tags are cut; databases behind MLflow differ in what they take."""


class ChampionMoved(StageError):
    """Another job promoted a version while this one compared with the champion before it."""


def champion_of(client: MlflowClient, *, model: str) -> ModelVersion | None:
    """The version that the alias `champion` names, if there is one."""
    for found in client.search_registered_models(f"name = '{model}'"):
        if ALIAS in found.aliases:
            return client.get_model_version(model, str(found.aliases[ALIAS]))
    return None


def find_version(client: MlflowClient, *, model: str, key: str) -> ModelVersion | None:
    """The oldest version registered under a key."""
    found = client.search_model_versions(f"name = '{model}' and tags.`{TAG}key` = '{key}'")
    return min(found, key=lambda version: int(version.version), default=None)


def register(
    client: MlflowClient, *, model: str, key: str, uri: str, tags: Mapping[str, str]
) -> ModelVersion:
    """The version of a key, registered with its tags in one step if it is not there."""
    found = find_version(client, model=model, key=key)
    if found is not None:
        return found
    version = register_model(model, uri=uri, tags=_prefixed({"key": key, **tags}))
    # Of two jobs at once each may have registered it; both go on with the older version.
    return find_version(client, model=model, key=key) or version


def tags_of(version: ModelVersion) -> dict[str, str]:
    """Our tags of a version, without their prefix."""
    return {k.removeprefix(TAG): v for k, v in version.tags.items() if k.startswith(TAG)}


def number_of(version: ModelVersion | None) -> str | None:
    """A version's number, as text."""
    return None if version is None else str(version.version)


def record_verdict(
    client: MlflowClient,
    *,
    version: ModelVersion,
    run: str,
    judgement: str,
    champion: ModelVersion | None,
    verdict: Verdict,
) -> None:
    """Keep a verdict: whole as an artifact of a run, then in short in the version's tags."""
    client.log_text(run, verdict.to_json(), _verdict_path(judgement))
    tags = {
        "gate": "passed" if verdict.passed else "refused",
        "gate_summary": _summary(verdict),
        "against": number_of(champion) or "none",
        "judgement": judgement,
    }
    _tag(client, version, tags)


def read_verdict(client: MlflowClient, *, run: str, judgement: str) -> Verdict | None:
    """A verdict that was recorded in a run, if it is there."""
    path = _verdict_path(judgement)
    if path not in {item.path for item in client.list_artifacts(run, os.path.dirname(path))}:
        return None
    with tempfile.TemporaryDirectory() as folder:
        return Verdict.from_json(Path(client.download_artifacts(run, path, folder)).read_bytes())


def move_champion(
    client: MlflowClient, *, version: ModelVersion, champion: ModelVersion | None
) -> None:
    """Move the alias to a version, if the champion still is the one that was compared with.

    MLflow has no compare-and-set, so of two jobs within the same instant the last one wins.
    """
    now = champion_of(client, model=version.name)
    if number_of(now) != number_of(champion):
        raise ChampionMoved(
            f"the champion of {version.name} was version {number_of(champion)} when version "
            f"{number_of(version)} was compared with it, and is version {number_of(now)} now: "
            "another job moved it meanwhile. Run again, to compare with that one"
        )
    client.set_registered_model_alias(version.name, ALIAS, str(version.version))


def who_promotes() -> str:
    """Name of the user that this process runs as; the number of one without a name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no entry in passwd, as in many containers
        return str(os.getuid())


def record_promotion(
    client: MlflowClient, *, version: ModelVersion, judgement: str, before: str, by: str
) -> None:
    """Say who promoted a version, when and in whose place, for whoever wants to go back."""
    tags = {
        "promoted_by": by,
        "promoted_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "promoted_from": before,
        "promoted": judgement,
    }
    _tag(client, version, tags)


def git_commit(folder: Path) -> str:
    """The commit checked out around a folder, or the working directory; `unknown` if none is.

    `-dirty` is added if tracked files differ from it.
    """
    options = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    for place in (folder, Path.cwd()):
        command = ["git", "-C", os.fspath(place), *options]
        try:
            found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        except (OSError, subprocess.SubprocessError):
            continue
        return found.stdout.strip()
    # A job on a cluster has no checkout; `sensorium submit` says of which one it is.
    return os.environ.get("SENSORIUM_GIT_COMMIT", "unknown")


def _tag(client: MlflowClient, version: ModelVersion, tags: Mapping[str, str]) -> None:
    for key, value in _prefixed(tags).items():
        client.set_model_version_tag(version.name, str(version.version), key, value)


def _prefixed(tags: Mapping[str, str]) -> dict[str, str]:
    return {f"{TAG}{key}": cut(value, length=TAG_LENGTH) for key, value in tags.items()}


def _verdict_path(judgement: str) -> str:
    return f"gate/{judgement}.json"


def _summary(verdict: Verdict) -> str:
    """The conditions as JSON, those that failed first, as many as a tag holds."""
    ordered = sorted(verdict.conditions, key=lambda condition: condition.passed)
    items = [{"name": c.name, "passed": c.passed, "detail": c.detail} for c in ordered]
    while len(text := json.dumps(items)) > TAG_LENGTH:
        items.pop()
    return text
