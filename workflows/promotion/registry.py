"""Registered versions: found by their key, judged in their tags, and named by aliases.

What became of a version stands in its tags: `gate`, `judgement` (the question that the gate
answered), `against`, then `promoted` once the alias has moved. So an attempt that was killed
between two of them is completed, and a version that was taken back is not put forward again.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from workflows.promotion.verdict import Verdict
from workflows.runs import cut
from workflows.tracking import TAG, if_there, register_model

if TYPE_CHECKING:
    from workflows.tracking import MlflowClient, ModelVersion

CHAMPION, CHALLENGER = "champion", "challenger"
TAG_LENGTH = 4000
"""Longer tags are cut; databases behind MLflow differ in what they take."""


def champion_of(client: MlflowClient, *, model: str) -> ModelVersion | None:
    """The version that the alias `champion` names, if there is one."""
    return named_by(client, model=model, alias=CHAMPION)


def named_by(client: MlflowClient, *, model: str, alias: str) -> ModelVersion | None:
    """The version that an alias names, if there is one; an alias of a deleted version is removed.

    MLflow removes it with the version, and other registries behind its interface need not.
    """
    for found in client.search_registered_models(f"name = '{model}'"):
        if alias in found.aliases:
            number = str(found.aliases[alias])
            version = if_there(partial(client.get_model_version, model, number))
            if version is None:
                client.delete_registered_model_alias(model, alias)
            return version
    return None


def version_of(client: MlflowClient, *, model: str, number: str) -> ModelVersion | None:
    """A version by its number, if it is there."""
    found = client.search_model_versions(f"name = '{model}'")
    return next((version for version in found if number_of(version) == number), None)


def versions_of(client: MlflowClient, *, model: str | None = None) -> list[ModelVersion]:
    """All versions that this project registered, of a model or of all, newest first."""
    found: list[ModelVersion] = []
    query, token = f"name = '{model}'" if model else None, None
    while True:
        page = client.search_model_versions(query, max_results=1000, page_token=token)
        found += [version for version in page if "key" in tags_of(version)]
        token = page.token
        if not token:
            return sorted(found, key=lambda v: (v.name, -int(v.version)))


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


def judged_on(version: ModelVersion) -> str | None:
    """The snapshot on whose test rows a version was judged last."""
    tags = tags_of(version)
    return tags.get("judged_on") or tags.get("snapshot")


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
    snapshot: str,
) -> None:
    """Keep a verdict: whole as an artifact of a run, then in short in the version's tags."""
    client.log_text(run, verdict.to_json(), _verdict_path(judgement))
    tags = {
        "gate": "passed" if verdict.passed else "refused",
        "gate_summary": _summary(verdict),
        "against": number_of(champion) or "none",
        "judged_on": snapshot,
        "judgement": judgement,
    }
    tag(client, version, tags)


def read_verdict(client: MlflowClient, *, run: str, judgement: str) -> Verdict | None:
    """A verdict that was recorded in a run, if it is there."""
    path = _verdict_path(judgement)
    if path not in {item.path for item in client.list_artifacts(run, os.path.dirname(path))}:
        return None
    with tempfile.TemporaryDirectory() as folder:
        return Verdict.from_json(Path(client.download_artifacts(run, path, folder)).read_bytes())


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


def tag(client: MlflowClient, version: ModelVersion, tags: Mapping[str, str]) -> None:
    """Set tags of ours on a version."""
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
