"""The page of a search: what was asked, and the nearest samples with thumbnails and players."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from workflows.console import count, several
from workflows.runs import without_passwords
from workflows.space.found import Found
from workflows.space.preview import PAGE_BYTES, Preview, preview, shorten
from workflows.space.recall import RECALL_AT
from workflows.space.searching import Answer
from workflows.space.telling import fewer, label_of, many, milliseconds, said_of

TEMPLATES = Path(__file__).parent / "templates"
SAID = {
    "text": "text",
    "image": "image",
    "audio": "sound",
    "video": "film",
    "series": "series",
    "table": "record",
    "vector": "vector",
}


@dataclass(frozen=True, kw_only=True)
class Card:
    """One payload that was found, as it is shown."""

    found: Found
    shown: Preview
    label: str
    again: str
    share: float
    """Of the similarity's bar, 0..1."""
    group: int
    """Number of its modality among those that are shown."""
    where: str
    """The end of its path or URI."""


def render(answer: Answer, *, created: datetime) -> str:
    """One HTML document, without scripts and without any reference to elsewhere."""
    import jinja2
    from markupsafe import Markup

    from workflows.reporting import wording

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["score"] = wording.score
    environment.filters["moment"] = wording.moment
    css = "".join((TEMPLATES / name).read_text() for name in ("report.css", "search.css"))
    modalities = list(dict.fromkeys(m for m in answer.searched if _of(answer, m)))
    query, asked = answer.query, _query(answer)
    cards: list[Card] = []
    room = PAGE_BYTES - asked.bytes
    for one in answer.found:
        group = modalities.index(one.modality)
        cards.append(_card(one, answer=answer, group=group, room=room))
        room -= cards[-1].shown.bytes
    return environment.get_template("search.html.j2").render(
        css=Markup(css),
        answer=answer,
        created=created,
        title=_title(answer),
        query=asked,
        query_name=shorten(without_passwords(query.given), most=160) if query.is_file else "",
        query_kind=SAID[query.kind],
        modalities=[{"name": m, "count": len(_of(answer, m))} for m in modalities],
        cards=cards,
        tiles=_tiles(answer),
        facts=[
            ("Model", answer.model),
            ("Snapshot", answer.snapshot),
            ("Similarity", "the cosine of the angle between two vectors, −1 to 1"),
            ("Recall", said_of(answer.recall) + fewer(answer)),
        ],
    )


def _title(answer: Answer) -> str:
    query = answer.query
    if not query.is_file:
        return f"Nearest to “{shorten(query.given, most=80)}”"
    return f"Nearest to {'an' if query.kind == 'image' else 'a'} {SAID[query.kind]}"


def _query(answer: Answer) -> Preview:
    query = answer.query
    payload: Any = query.payload
    if isinstance(payload, dict):
        payload = tuple(payload.get(name) for name in query.columns.columns)
    if isinstance(payload, str):
        return Preview(kind="text", text=shorten(payload, most=400))
    return preview(payload, columns=query.columns, folder="")


def _card(one: Found, *, answer: Answer, group: int, room: int) -> Card:
    columns = answer.columns[one.modality]
    lacking = None if one.lacking is None else without_passwords(one.lacking)
    shown = preview(one.payload, columns=columns, folder=answer.folder, lacking=lacking, room=room)
    return Card(
        found=one,
        shown=shown,
        where="/".join(shown.where.split("/")[-2:]),
        label=label_of(one),
        again=f"and {several(one.repeats, 'more sample')} with the same payload"
        if one.repeats
        else "",
        share=min(1.0, max(0.0, one.similarity)),
        group=group,
    )


def _of(answer: Answer, modality: str) -> list[Found]:
    return [one for one in answer.found if one.modality == modality]


def _tiles(answer: Answer) -> list[dict[str, str]]:
    return [
        {
            "label": "Nearest",
            "value": f"{max(one.similarity for one in answer.found):.3f}" if answer.found else "–",
            "note": "cosine similarity",
        },
        {
            "label": "Searched",
            "value": count(sum(answer.searched.values())),
            "note": f"vectors: {many(answer.searched)}",
        },
        {"label": f"Recall@{RECALL_AT}", **_recall(answer)},
        {"label": "Time", "value": milliseconds(answer.seconds), "note": "of the search itself"},
    ]


def _recall(answer: Answer) -> dict[str, str]:
    """The least recall of the modalities that were searched, and by what it was measured."""
    measured = [recall for recall in answer.recall.values() if not recall.exact]
    if not measured:
        return {"value": "1.0", "note": "exact: all are compared"}
    least = min(measured, key=lambda recall: -1 if recall.share is None else recall.share)
    if least.share is None:
        return {"value": "–", "note": f"not measured: no sample of {least.of} to ask by"}
    note = f"against exact search, by {several(least.queries, 'sample')} of {least.of}"
    return {"value": f"{least.share:.3f}", "note": note}
