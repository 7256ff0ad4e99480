"""What is searched for: which modality a query is of, and its payload, fetched and decoded."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from features.columns import PayloadColumns
from features.decoders.base import BadPayload
from features.encoders.base import Kind
from features.fingerprint import nearest_hint
from features.payloads import decode, fetch
from workflows.inputs import Input
from workflows.pipeline import ConfigurationError

FILES: tuple[Kind, ...] = ("image", "video", "audio")
"""Kinds of files that are told by what is in them, in the order in which they are tried: the file
of a video may hold a sound too, and an animation is an image."""
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_FILE_NAME = re.compile(
    r"\S+\.(png|jpe?g|gif|webp|bmp|tiff?|wav|flac|mp3|ogg|opus|m4a|aac|mp4|mkv|webm|mov|avi)",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class Query:
    """A payload that is searched for."""

    modality: str
    kind: Kind
    given: str
    """As a person has given it."""
    payload: Any
    """A text, the bytes of a file, or numbers."""
    columns: PayloadColumns
    """As the model reads the modality."""
    is_file: bool = False

    @property
    def cells(self) -> dict[str, Any]:
        """A row of the table that holds the payload, by column."""
        if isinstance(self.payload, Mapping):
            return dict(self.payload)
        return {self.columns.columns[0]: self.payload}


def understand(
    given: str, *, inputs: Mapping[str, Input], modality: str | None, folder: str
) -> Query:
    """A query as it is meant: a file or URI by what is in it, all else a text.

    Raises ConfigurationError, with what to do, for one that is none of the model's modalities or
    may be several, and for a file that is not there or cannot be decoded.
    """
    if modality is not None and modality not in inputs:
        raise ConfigurationError(
            f"--modality: the model has no modality {modality!r}; "
            f"{nearest_hint(modality, list(inputs))}its modalities: {', '.join(inputs)}"
        )
    if not given.strip():
        raise ConfigurationError("QUERY is empty; give a text, or the path or URI of a file")
    if modality is not None and inputs[modality].columns.kind in ("series", "vector", "table"):
        return _numbers(given, modality=modality, columns=inputs[modality].columns)
    is_uri = bool(_URI.match(given))
    is_there = is_uri or os.path.isfile(os.path.join(folder, given))
    of_text = modality is not None and inputs[modality].columns.kind == "text"
    if is_there and not (of_text and not _is_in_files(inputs, modality)):
        return _file(given, inputs=inputs, modality=modality, folder=folder)
    if modality is not None and not of_text:
        raise ConfigurationError(
            f"{given!r}: there is no such file; {_describe(modality, inputs)} is asked for by the "
            "path or URI of a file"
        )
    texts = [m for m, item in inputs.items() if item.columns.kind == "text"]
    if modality is None and (not texts or _FILE_NAME.fullmatch(given)):
        said = "there is no such file" if _FILE_NAME.fullmatch(given) or texts else ""
        hint = f"; if it is meant as a text, say --modality {texts[0]}" if texts else ""
        if not texts:
            said = (
                f"{said or 'there is no such file'}, and the model has no modality of texts; give "
                f"a file of {_list(inputs)}"
            )
        raise ConfigurationError(f"QUERY {given!r}: {said}{hint}")
    chosen = modality or _only(texts, what="a text")
    columns = inputs[chosen].columns
    # Where the table names files of texts, a text itself is the content of one.
    payload = given.encode() if columns.uri else given
    return Query(modality=chosen, kind="text", given=given, payload=payload, columns=columns)


def _file(given: str, *, inputs: Mapping[str, Input], modality: str | None, folder: str) -> Query:
    try:
        data = fetch(given, base=folder)
    except (BadPayload, ValueError) as error:
        raise ConfigurationError(f"QUERY: {error}") from error
    if modality is not None:
        kind, chosen = inputs[modality].columns.kind, modality
        if (reason := _refused(data, kind=kind)) is not None:
            raise ConfigurationError(f"QUERY {given!r} is no {kind}: {reason}")
    else:
        kinds = [kind for kind in FILES if _refused(data, kind=kind) is None]
        meant = [m for kind in kinds[:1] for m in _of_kind(inputs, kind)]
        if not meant and kinds:  # the sound of a film, where there is no modality of films
            meant = [m for kind in kinds[1:] for m in _of_kind(inputs, kind)]
        if not kinds:
            meant = [m for m in _of_kind(inputs, "text") if inputs[m].columns.uri]
            if _refused(data, kind="text") is not None:
                meant = []
        if not meant:
            what = f"is {_article(kinds[0])}" if kinds else "is of no known format"
            why = [
                reason
                for kind in dict.fromkeys(item.columns.kind for item in inputs.values())
                if kind in FILES and (reason := _refused(data, kind=kind)) is not None
            ]
            raise ConfigurationError(
                f"QUERY {given!r} {what}, and the model takes {_list(inputs)}"
                + (f" ({'; '.join(why)})" if why and not kinds else "")
                + "".join(
                    f"; if its name is meant as a text, say --modality {name}"
                    for name in _of_kind(inputs, "text")[:1]
                )
            )
        chosen = _only(meant, what=f"{given!r}")
        kind = inputs[chosen].columns.kind
    return Query(
        modality=chosen,
        kind=kind,
        given=given,
        payload=data,
        columns=inputs[chosen].columns,
        is_file=True,
    )


def _numbers(given: str, *, modality: str, columns: PayloadColumns) -> Query:
    """A query of numbers or fields, as JSON."""
    wanted = (
        "an object of its fields, as in '{\"age\": 40}'"
        if columns.kind == "table" or len(columns.columns) > 1
        else "a list of numbers, as in '[0.1, 2]'"
    )
    try:
        value = json.loads(given)
    except ValueError as error:
        raise ConfigurationError(
            f"QUERY is no JSON ({error}); {columns.kind} {modality!r} is asked for by {wanted}"
        ) from error
    fields = isinstance(value, dict) and set(value) <= set(columns.columns)
    if not (fields if wanted.startswith("an object") else isinstance(value, list)):
        raise ConfigurationError(
            f"QUERY: {columns.kind} {modality!r} is asked for by {wanted}; its columns: "
            f"{', '.join(columns.columns)}"
        )
    payload = np.array(value, np.float64) if isinstance(value, list) else value
    return Query(
        modality=modality, kind=columns.kind, given=given, payload=payload, columns=columns
    )


def _refused(data: bytes, *, kind: Kind) -> str | None:
    """Why bytes are no payload of a kind; None if they are."""
    try:
        decode(data, kind=kind)
    except (BadPayload, ImportError) as error:
        return str(error)
    return None


def _of_kind(inputs: Mapping[str, Input], kind: Kind) -> list[str]:
    return [m for m, item in inputs.items() if item.columns.kind == kind]


def _is_in_files(inputs: Mapping[str, Input], modality: str | None) -> bool:
    return modality is not None and inputs[modality].columns.uri


def _only(found: list[str], *, what: str) -> str:
    if len(found) > 1:
        raise ConfigurationError(
            f"QUERY: {what} may be of {' or '.join(found)}; say which by --modality"
        )
    return found[0]


def _describe(modality: str, inputs: Mapping[str, Input]) -> str:
    return f"{inputs[modality].columns.kind} {modality!r}"


def _list(inputs: Mapping[str, Input]) -> str:
    return ", ".join(_describe(m, inputs) for m in inputs)


def _article(kind: Kind) -> str:
    return {"image": "an image", "audio": "a sound", "video": "a film"}.get(kind, kind)
