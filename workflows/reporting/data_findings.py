"""What a report says of the data: modalities, splits, leaks, what could not be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ModalityFindings:
    """One modality's payloads and the encoder that embeds them."""

    name: str
    cells: Mapping[str, Any]
    """By column of the table that it is read from: a value of the form that a model takes."""
    kind: str
    encoder: str
    options: str
    """What the encoder was told, as text; empty if nothing."""
    fingerprint: str
    dim: int
    present: int
    missing: int
    bad: int


@dataclass(frozen=True, kw_only=True)
class SplitFindings:
    """How many samples a split has, and how many of them have a label."""

    name: str
    rows: int
    labelled: int


@dataclass(frozen=True, kw_only=True)
class Leak:
    """Payloads of a modality, or groups, that stand on two sides of a split."""

    modality: str
    """Empty for groups."""
    group: str = ""
    """The column of the groups."""
    sides: tuple[str, str]
    """The two splits."""
    count: int
    """How many distinct ones there are."""
    examples: tuple[tuple[str, str], ...] = ()
    """Ids of two samples that share one, in the order of the sides; a few of all such pairs."""

    @property
    def noun(self) -> str:
        return "payload" if self.modality else "group"

    @property
    def of(self) -> str:
        """Of what the payloads or groups are, to follow the noun."""
        return f"of {self.modality}" if self.modality else f"({self.group})"


@dataclass(frozen=True, kw_only=True)
class Repeated:
    """Payloads of a modality that stand in more than one row."""

    modality: str
    rows: int
    """All rows whose payload another one has too."""
    payloads: int
    """Rows that have a payload."""


@dataclass(frozen=True, kw_only=True)
class BadPayload:
    """One payload in the quarantine."""

    sample_id: str
    modality: str
    stage: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class BadReason:
    """How many payloads of a modality are in the quarantine for the same reason."""

    modality: str
    stage: str
    reason: str
    count: int
