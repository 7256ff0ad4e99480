"""What follows from a verdict: the champion moves, a person is asked, or nothing does.

The alias moves last. Whatever is killed on the way is found by its tags and completed by the next
run; what was judged once is not judged again, and what was taken back is not put forward again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workflows.promotion import history, registry
from workflows.promotion.contest import Contest
from workflows.promotion.history import who
from workflows.promotion.operate import finish_rollback
from workflows.promotion.registry import number_of, tags_of
from workflows.promotion.verdict import Verdict

if TYPE_CHECKING:
    from workflows.tracking import MlflowClient, ModelVersion


@dataclass(kw_only=True)
class Decided:
    """What became of the winner."""

    version: ModelVersion
    before: ModelVersion | None
    """The champion that it was compared with."""
    verdict: Verdict | None
    earlier: bool
    """Whether the verdict was recorded in an earlier run."""
    changed: bool
    moved: bool = False
    """Whether the version is the champion now and was not before."""
    waiting: bool = False
    detail: str = ""


def decide(
    contest: Contest,
    *,
    client: MlflowClient,
    version: ModelVersion,
    say: Callable[[str], None],
    confirm: Callable[[], None] = lambda: None,
) -> Decided:
    """Compare the winner with the champion of now, and do what follows.

    `confirm` is called before an alias moves; it may raise. ChampionMoved, with the verdict kept
    and nothing moved, if another job moves it meanwhile.
    """
    champion = registry.champion_of(client, model=contest.pipeline.model)
    changed = False
    if champion is not None and "taken_back" in tags_of(champion):
        with history.moving(contest.store.storage, model=version.name):
            restored = finish_rollback(client, champion=champion)
        if restored is not None:
            say(f"the rollback to version {number_of(restored)} is completed, which was cut short")
            champion, changed = restored, True
            version = client.get_model_version(version.name, str(version.version))
    verdict = known_verdict(contest, client=client, version=version, champion=champion)
    found = Decided(
        version=version,
        before=champion,
        verdict=verdict,
        earlier=verdict is not None,
        changed=changed,
    )
    if number_of(version) == number_of(champion):
        found.detail = f"version {number_of(version)} is the champion already"
        found.changed |= _heal(contest, client=client, version=version, verdict=verdict)
        return found
    if verdict is None:
        verdict = found.verdict = contest.judge(champion, version=version)
        registry.record_verdict(
            client,
            version=version,
            run=tags_of(version)["run"],
            judgement=contest.judgement(champion),
            champion=champion,
            verdict=verdict,
            snapshot=contest.snapshot.id,
        )
        found.changed = True
    _act(contest, client=client, verdict=verdict, found=found, confirm=confirm)
    return found


def known_verdict(
    contest: Contest,
    *,
    client: MlflowClient,
    version: ModelVersion,
    champion: ModelVersion | None,
) -> Verdict | None:
    """The verdict by which a version is champion, or on the very question that is asked now."""
    tags = tags_of(version)
    judgement = tags.get("judgement")
    is_champion = number_of(version) == number_of(champion)
    if judgement is None or not (is_champion or judgement == contest.judgement(champion)):
        return None
    return registry.read_verdict(client, run=tags["run"], judgement=judgement)


def _act(
    contest: Contest,
    *,
    client: MlflowClient,
    verdict: Verdict,
    found: Decided,
    confirm: Callable[[], None],
) -> None:
    """Do what a verdict asks for."""
    version, champion = found.version, found.before
    number, tags = number_of(version), tags_of(version)
    judgement = contest.judgement(champion)
    taken_back = "taken_back" in tags
    if not verdict.passed:
        found.detail = f"version {number} stays out: {verdict.sentence}"
        found.changed |= history.drop_challenger(client, version=version)
    elif taken_back or tags.get("promoted") == judgement:
        why = json.loads(tags["taken_back"]).get("reason") if taken_back else None
        reason = f" ({why})" if why else ""
        found.detail = (
            f"version {number} was promoted before and has been taken back since{reason}; it is "
            f"left so (champion: {number_of(champion) or 'none'}). To put it back: "
            f"sensorium approve {contest.pipeline.path.name} --version {number}"
        )
    elif contest.pipeline.spec.promotion.require == "human":
        found.changed |= history.name_challenger(client, version=version)
        found.waiting = True
        found.detail = (
            f"version {number} passed the gate and waits for approval as `challenger` "
            f"({verdict.sentence}). To make it champion: sensorium approve "
            f"{contest.pipeline.path.name}"
        )
    else:
        by = who()  # before the alias moves: nothing is to fail after that
        confirm()
        with history.moving(contest.store.storage, model=version.name) as held:
            history.move_champion(client, version=version, champion=champion, held=held)
            history.record_promotion(
                client,
                version=version,
                judgement=judgement,
                before=number_of(champion) or "none",
                by=by,
                verdict=verdict.sentence,
            )
        found.changed = found.moved = True
        found.detail = f"version {number} is the champion now ({verdict.sentence})"


def _heal(
    contest: Contest, *, client: MlflowClient, version: ModelVersion, verdict: Verdict | None
) -> bool:
    """Say what an attempt did that was killed between moving the alias and saying so."""
    tags = tags_of(version)
    if tags.get("gate") != "passed" or tags.get("promoted") == tags["judgement"]:
        return False
    with history.moving(contest.store.storage, model=version.name):
        history.drop_challenger(client, version=version)
        history.record_promotion(
            client,
            version=version,
            judgement=tags["judgement"],
            before=tags["against"],
            by=who(),
            verdict=verdict.sentence if verdict else "",
        )
    return True
