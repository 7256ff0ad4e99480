"""Members of ensembles: candidates in the place of their names, and what is wrong with these."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from features.fingerprint import nearest_hint
from training.models.ensemble_spec import EnsembleSpec, Place, SoupSpec
from training.spec import OWN, CandidateSpec
from training.task import TaskSpec


class Searched(Protocol):
    """What an ensemble has to know of a search."""

    @property
    def name(self) -> str: ...
    @property
    def space(self) -> Mapping[str, Any]: ...


def is_pending(spec: CandidateSpec) -> bool:
    """Whether it is an ensemble of what a search has not found yet."""
    return isinstance(spec, EnsembleSpec) and any(
        isinstance(member, str) or is_pending(member) for member in spec.of
    )


def with_members(
    candidates: Sequence[CandidateSpec],
    *,
    task: TaskSpec,
    searches: Sequence[Searched] = (),
    found: Mapping[str, Sequence[CandidateSpec]] | None = None,
) -> list[CandidateSpec]:
    """Candidates of which the ensembles know their members; ValueError if one names no other.

    Those that know them already stay as they are, and so do the names of searches, but for those
    of which it is said what they have `found`.
    """
    known, problems = resolve(candidates, task=task, searches=searches, found=found)
    if problems:
        number, where, text = problems[0]
        place = ".".join(map(str, where))
        raise ValueError(f"candidate {candidates[number].name!r}: {place}: {text}")
    return known


def resolve(
    candidates: Sequence[CandidateSpec],
    *,
    task: TaskSpec,
    searches: Sequence[Searched] = (),
    found: Mapping[str, Sequence[CandidateSpec]] | None = None,
) -> tuple[list[CandidateSpec], list[tuple[int, Place, str]]]:
    """The same, and what is wrong: number of the candidate, place within it, text."""
    by_name = {search.name: search for search in searches}
    above: dict[str, CandidateSpec] = {}
    known: list[CandidateSpec] = []
    wrong: list[tuple[int, Place, str]] = []
    names = [candidate.name for candidate in candidates]
    for number, candidate in enumerate(candidates):
        if isinstance(candidate, EnsembleSpec):
            own: list[tuple[Place, str]] = []
            members: list[CandidateSpec | str] = []
            for i, member in enumerate(candidate.of):
                if isinstance(member, str) and member in candidate.of[:i]:
                    own.append((("of", i), f"{member!r} is there already; name it once"))
                elif not isinstance(member, str):
                    members.append(member)
                elif member in above:
                    members.append(above[member])
                elif member in by_name:
                    members.extend((found or {}).get(member, [member]))
                    own.extend(_of_search(candidate, by_name[member], place=("of", i)))
                else:
                    text = _unknown(member, names=names, above=[*above, *by_name])
                    own.append((("of", i), text))
            first = candidate.of[0]
            if len(candidate.of) < 2 and isinstance(first, str) and first not in by_name:
                own.append((("of",), "an ensemble is made of two candidates or more, or a search"))
            candidate = candidate.with_members(members, task=task)
            if not own and not is_pending(candidate):
                own.extend(candidate.problems(task=task))
            wrong.extend((number, *problem) for problem in own)
        known.append(candidate)
        above.setdefault(candidate.name, candidate)
    return known, wrong


def _of_search(
    ensemble: EnsembleSpec, search: Searched, *, place: Place
) -> Iterator[tuple[Place, str]]:
    different = [field for field in search.space if field not in OWN]
    if isinstance(ensemble, SoupSpec) and different:
        yield (
            place,
            f"what {search.name!r} finds differs in `{different[0]}`; the fits of a soup may "
            f"differ in {', '.join(OWN[1:])} alone",
        )


def _unknown(name: str, *, names: Sequence[str], above: Sequence[str]) -> str:
    known = ", ".join(above) or "none"
    if name in names:
        return f"the candidate {name!r} stands below this one; put it above (there: {known})"
    return f"there is no candidate {name!r}; {nearest_hint(name, above)}candidates above: {known}"
