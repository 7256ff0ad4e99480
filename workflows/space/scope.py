"""Where is searched: a snapshot that a model fits, and which modalities of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from features.fingerprint import nearest_hint
from features.snapshot import Snapshot
from features.store import Store
from workflows.console import several
from workflows.pipeline import ConfigurationError, StageError

if TYPE_CHECKING:
    from workflows.scoring import LoadedModel
    from workflows.space.model import Chosen


def chosen_modalities(wanted: Sequence[str], *, model: LoadedModel) -> list[str]:
    """The modalities that are searched, in the model's order; ConfigurationError for an unknown."""
    for name in wanted:
        if name not in model.inputs:
            raise ConfigurationError(
                f"--in: the model has no modality {name!r}; "
                f"{nearest_hint(name, list(model.inputs))}its modalities: {', '.join(model.inputs)}"
            )
    return [m for m in model.inputs if not wanted or m in wanted]


def chosen_snapshot(store: Store, *, wanted: str | None, of: Chosen) -> Snapshot:
    """The snapshot that is meant, with where its rows stand in the table, if that is known."""
    id = of.snapshot
    if wanted is None:
        try:
            return store.placed(id)
        except FileNotFoundError as error:
            raise StageError(
                f"the snapshot {id[:12] or 'of the model'} that {of.title} was "
                f"fitted to is not in {store.storage.root}; search another "
                "by --snapshot: `latest` is the newest of the same dataset, if that is known, and "
                "`sensorium store ls` lists all"
            ) from error
    if wanted == "latest":
        try:
            name = store.read_snapshot(id).name
        except FileNotFoundError:
            name = of.name
        found = store.latest(name)
        if found is None:
            raise StageError(f"{store.storage.root} has no snapshot of the dataset {name!r}")
        return found
    there = sorted(name.removesuffix(".json") for name in store.storage.list("snapshots"))
    meant = [one for one in there if one.startswith(wanted)]
    if len(meant) != 1:
        said = f"{several(len(meant), 'snapshot')} begin" if meant else "no snapshot begins"
        raise ConfigurationError(
            f"--snapshot: {said} with {wanted!r} in {store.storage.root}; `sensorium store ls` "
            "lists them, and `latest` is the newest"
        )
    return store.placed(meant[0])


def refuse_other_encoders(model: LoadedModel, *, snapshot: Snapshot, among: Sequence[str]) -> None:
    """StageError for embeddings that are not by the encoders which the model was fitted to."""
    for name in among:
        part = snapshot.modalities.get(name)
        if part is None:
            raise ConfigurationError(
                f"snapshot {snapshot.id[:12]} has no modality {name!r}; it has "
                f"{', '.join(snapshot.modalities)}; leave it out by --in"
            )
        expected = model.inputs[name].encoder_fingerprint
        if part.encoder_fingerprint != expected:
            raise StageError(
                f"snapshot {snapshot.id[:12]} holds embeddings of {name!r} by the encoder "
                f"{part.encoder_fingerprint[:12]}, and the model was fitted to {expected[:12]}: "
                "what is near would mean nothing. Embed the table with the model's encoder (of a "
                "finetune, its tuned one: set `model:` to its folder in the store) and name that "
                "snapshot by --snapshot"
            )
