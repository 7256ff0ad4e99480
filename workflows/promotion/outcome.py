"""What stage 3 found and did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from workflows.promotion.verdict import Verdict


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """What stage 3 found and did."""

    winner: str
    """Name of the candidate that is best on the validation split."""
    candidate: str
    """Its fingerprint."""
    model: str
    """Name of the registered model."""
    version: str | None
    """The winner's registered version; None in a dry run, if it is not registered yet."""
    champion_before: str | None
    champion_after: str | None
    verdict: Verdict | None
    """None only if the winner was made champion by other hands than the gate's."""
    parent: str | None
    """Id of the training's parent run; None in a dry run."""
    runs: Mapping[str, str]
    """Per candidate fingerprint: id of its run; empty in a dry run."""
    changed: bool
    """Whether anything was recorded, registered, judged or moved."""
    dry_run: bool
    """Whether nothing was to be recorded or moved."""
    earlier: bool
    """Whether the verdict was recorded in an earlier run, and the gate was not asked now."""
    detail: str
    """What happened, in one sentence."""
    waiting: bool = False
    """Whether the winner passed the gate and waits for a person to approve it."""
    taken_back: bool = False
    """Whether the winner was champion, and a person went back to the one before."""

    @property
    def promoted(self) -> bool:
        """Whether the winner is the champion now."""
        return self.version is not None and self.version == self.champion_after

    @property
    def refused(self) -> bool:
        """Whether the gate keeps the winner out."""
        return self.verdict is not None and not self.verdict.passed and not self.promoted
