"""What was found, on the terminal and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape

from workflows.console import count, several, table
from workflows.runs import without_passwords
from workflows.space.found import Found
from workflows.space.preview import excerpt, shorten
from workflows.space.recall import Recall
from workflows.space.searching import Answer


def print_answer(answer: Answer, *, console: Console) -> None:
    """A table of what was found, and a line on how it was searched for."""
    made = table(
        "#", "sample", "modality", "similarity", "label", "what", numbers=("#", "similarity"),
        folds=("what",),
    )  # fmt: skip
    for one, before in zip(answer.found, [None, *answer.found]):
        if before is not None and one.rank <= before.rank:
            made.add_section()  # of the next modality, each ranked by itself
        again = f" (and {several(one.repeats, 'more sample')})" if one.repeats else ""
        made.add_row(
            str(one.rank),
            escape(one.sample_id),
            escape(one.modality),
            f"{one.similarity:.3f}",
            escape(label_of(one)),
            escape(what_of(one, answer=answer) + again),
        )
    console.print(made)
    console.print(escape(how(answer)), soft_wrap=True)


def how(answer: Answer) -> str:
    """Where was searched, among how many, for how long, and how much of it is found."""
    return (
        f"{answer.model}, snapshot {answer.snapshot[:12]} of {answer.dataset}: vectors of "
        f"{many(answer.searched)} searched in "
        f"{milliseconds(answer.seconds)}; {said_of(answer.recall)}{fewer(answer)}"
    )


def fewer(answer: Answer) -> str:
    """Why fewer were found than were asked for; empty if there are as many."""
    if len(answer.found) >= answer.wanted:
        return ""
    why = "no more payloads differ"
    if not all(recall.exact for recall in answer.recall.values()):
        why = "there are no more that differ in the cells that were looked into"
    return f"; {len(answer.found)} found instead of {answer.wanted}: {why}"


def many(searched: Mapping[str, int]) -> str:
    """1,500 × caption, 1,480 × photo: how many of each modality."""
    parts = [f"{count(number)} × {name}" for name, number in searched.items()]
    return ", ".join(parts)


def said_of(recalls: Mapping[str, Recall]) -> str:
    """Recall against exact search, in words."""
    texts = {m: _recall(recall) for m, recall in recalls.items()}
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return ", ".join(f"{m}: {text}" for m, text in texts.items())


def _recall(recall: Recall) -> str:
    if recall.exact:
        return f"recall@{recall.at} 1.0 (exact: every vector is compared)"
    if recall.share is None:
        return f"recall@{recall.at} not measured: no sample of {recall.of} to ask by"
    return (
        f"recall@{recall.at} {recall.share:.3f} against exact search, by "
        f"{several(recall.queries, 'sample')} of {recall.of}"
    )


def milliseconds(seconds: float) -> str:
    """8 ms, 1.2 s."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def label_of(one: Found) -> str:
    """The values of its targets, and of its slices."""
    named = {**one.labels, **one.slices}
    if len(one.labels) == 1:
        (name, value), *_ = one.labels.items()
        rest = [f"{n} {v}" for n, v in named.items() if n != name]
        return ", ".join([_plain(value), *rest])
    return ", ".join(f"{name} {_plain(value)}" for name, value in named.items())


def what_of(one: Found, *, answer: Answer) -> str:
    """Its payload in a line, or why there is none."""
    if one.lacking is not None:
        return shorten(without_passwords(one.lacking), most=160)
    return excerpt(one.payload, columns=answer.columns[one.modality], folder=answer.folder)


def answer_json(answer: Answer) -> str:
    """All that was found as JSON: similarities are cosines, rows counted from 0."""
    value: dict[str, Any] = {
        "model": answer.model,
        "query": {
            "given": without_passwords(answer.query.given),
            "modality": answer.query.modality,
            "kind": answer.query.kind,
        },
        "snapshot": answer.snapshot,
        "dataset": answer.dataset,
        "searched": answer.searched,
        "wanted": answer.wanted,
        "seconds": round(answer.seconds, 4),
        "index_parts_made": answer.made,
        "recall": {
            m: {"share": r.share, "at": r.at, "queries": r.queries, "exact": r.exact}
            for m, r in answer.recall.items()
        },
        "results": [
            {
                "rank": one.rank,
                "sample_id": one.sample_id,
                "modality": one.modality,
                "similarity": round(one.similarity, 6),
                "row": one.row,
                "split": one.split,
                "labels": {name: _json(value) for name, value in one.labels.items()},
                "slices": {name: _json(value) for name, value in one.slices.items()},
                "repeats": one.repeats,
                "what": what_of(one, answer=answer),
            }
            for one in answer.found
        ],
    }
    return json.dumps(value, indent=1, ensure_ascii=False)


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _json(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str | list) else str(value)
