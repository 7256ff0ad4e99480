"""A request to a served model: JSON, strictly read, as rows; or what is wrong with it.

The four forms are those of MLflow's scoring server. What it guesses at is refused here: a short
row, a column that is there twice or that the model does not know, a key that is said twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pandas as pd

from features.decoders.base import short
from features.fingerprint import nearest_hint

FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")
MOST_ROWS = 10_000
PARAMS = ("base",)
SHOWN = 80
"""Characters of a name that a message repeats; nothing like a longer one is sought."""


class InvalidRequest(ValueError):
    """A request that says nothing a model could answer."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a request asks."""

    rows: pd.DataFrame
    """Columns of Python objects."""
    params: Mapping[str, Any]


def read_request(body: bytes | bytearray, *, columns: Sequence[str]) -> Asked:
    """The rows that a body holds, for a model of these columns; InvalidRequest if it is not one."""
    content = _parsed(body)
    if not isinstance(content, dict):
        raise InvalidRequest(f"a request is a JSON object with one of {_listed(FORMS)}")
    forms = [name for name in content if name in FORMS]
    if len(forms) != 1:
        told = f"has {_listed(forms)}" if forms else f"has none, but {_listed(content)}"
        raise InvalidRequest(f"a request has exactly one of {_listed(FORMS)}; this {told}")
    for name in content:
        if name not in (*FORMS, "params"):
            raise InvalidRequest(
                f"{_shown(name)} is no part of a request; beside the rows there may be `params`"
            )
    found = _columns(content[forms[0]], form=forms[0], known=dict.fromkeys(columns))
    if not found:
        raise InvalidRequest(f"{forms[0]}: there is no column; the model's are {_listed(columns)}")
    return Asked(
        rows=pd.DataFrame(found, columns=list(found), dtype=object),
        params=_params(content.get("params")),
    )


def _parsed(body: bytes | bytearray) -> Any:
    try:
        return json.loads(body.decode(), object_pairs_hook=_object, parse_constant=_no_number)
    except InvalidRequest:
        raise
    except RecursionError:
        raise InvalidRequest("the request is nested too deeply") from None
    except ValueError as error:  # of JSON, of UTF-8, or of a number of thousands of digits
        raise InvalidRequest(f"the request is not JSON in UTF-8: {short(error)}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise InvalidRequest(
            f"{_shown(_twice(name for name, _ in pairs))} is said twice in one object"
        )
    return found


def _twice(names: Iterable[str]) -> str | None:
    """The first name that has been there before."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _no_number(literal: str) -> Any:
    raise InvalidRequest(
        f"{literal} is no number of JSON (RFC 8259, section 6); null stands for what is missing"
    )


def _columns(content: Any, *, form: str, known: Mapping[str, object]) -> dict[str, list[Any]]:
    """The cells of each column, all of one length.

    What is refused is so before anything is made that is larger than the request.
    """
    if form == "dataframe_split":
        return _split(content, known=known)
    if form == "inputs" and isinstance(content, dict):
        return _by_column(content, known=known)
    if not isinstance(content, list):
        raise InvalidRequest(f"{form} is a list of objects, one a row")
    _refuse_many(len(content))
    names: dict[str, None] = {}
    for row, record in enumerate(content):
        if not isinstance(record, dict):
            raise InvalidRequest(
                f"{form}, row {row}: it is a {_kind(record)}, and no object of cells by column"
            )
        for name in record:
            _refuse_unknown(name, known=known)
            names[name] = None
    return {name: _cells([record.get(name) for record in content], name) for name in names}


def _refuse_many(rows: int) -> None:
    if rows > MOST_ROWS:
        raise InvalidRequest(f"{rows:,} rows; a request has {MOST_ROWS:,} at most")


def _refuse_unknown(name: str, *, known: Mapping[str, object]) -> None:
    if name in known:
        return
    hint = nearest_hint(name, known) if len(name) <= SHOWN else ""
    raise InvalidRequest(
        f"column {_shown(name)} is none of the model's; {hint}they are {_listed(known)}"
    )


def _split(content: Any, *, known: Mapping[str, object]) -> dict[str, list[Any]]:
    if not isinstance(content, dict) or not {"columns", "data"} <= set(content):
        raise InvalidRequest("dataframe_split is an object with `columns` and `data`")
    for name in content:
        if name not in ("columns", "data", "index"):
            raise InvalidRequest(
                f"dataframe_split has `columns`, `data` and perhaps `index`, and no {_shown(name)}"
            )
    names, data = content["columns"], content["data"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InvalidRequest("dataframe_split: `columns` is a list of names")
    if not isinstance(data, list):
        raise InvalidRequest("dataframe_split: `data` is a list of rows")
    for name in names:
        _refuse_unknown(name, known=known)
    twice = _twice(names)
    if twice is not None:
        raise InvalidRequest(f"dataframe_split: there are several columns {_shown(twice)}")
    _refuse_many(len(data))
    for row, cells in enumerate(data):
        if not isinstance(cells, list) or len(cells) != len(names):
            found = f"{len(cells)} cells" if isinstance(cells, list) else f"a {_kind(cells)}"
            raise InvalidRequest(
                f"dataframe_split, row {row}: it is {found}; it is a list of {len(names)} cells, "
                "null where one is missing"
            )
    if not isinstance(content.get("index") or [], list):
        raise InvalidRequest("dataframe_split: `index` is a list")
    return {name: _cells([cells[i] for cells in data], name) for i, name in enumerate(names)}


def _by_column(content: dict[str, Any], *, known: Mapping[str, object]) -> dict[str, list[Any]]:
    for name in content:
        _refuse_unknown(name, known=known)
    lists: dict[str, list[Any]] = {
        name: cells for name, cells in content.items() if isinstance(cells, list)
    }
    if not lists:  # one row
        return {name: _cells([cell], name) for name, cell in content.items()}
    for name, cells in content.items():
        if not isinstance(cells, list):
            raise InvalidRequest(
                f"inputs: column {_shown(name)} is a {_kind(cells)}, and "
                f"{_shown(next(iter(lists)))} a list; all are lists of cells, or none is"
            )
    lengths = {len(cells) for cells in lists.values()}
    if len(lengths) > 1:
        told = ", ".join(f"{_shown(name)} {len(cells)}" for name, cells in lists.items())
        raise InvalidRequest(f"inputs: the columns are of different lengths: {told}")
    _refuse_many(max(lengths))
    return {name: _cells(cells, name) for name, cells in lists.items()}


def _cells(cells: list[Any], column: str) -> list[Any]:
    for row, cell in enumerate(cells):
        if isinstance(cell, str) and not cell.isascii():
            try:
                cell.encode()
            except UnicodeEncodeError:
                raise InvalidRequest(
                    f"column {_shown(column)}, row {row}: it holds half of a surrogate pair, "
                    "which is no Unicode text"
                ) from None
    return cells


def _params(content: Any) -> dict[str, Any]:
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InvalidRequest("`params` is an object")
    for name, value in content.items():
        if name not in PARAMS:
            raise InvalidRequest(f"params: there is no {_shown(name)}; there is {_listed(PARAMS)}")
        if not isinstance(value, str):
            raise InvalidRequest(f"params: {name} is a text, and no {_kind(value)}")
    return content


def _kind(value: Any) -> str:
    kinds = {dict: "object", list: "list", str: "text", bool: "boolean", type(None): "null"}
    return kinds.get(type(value), "number")


def _shown(name: str | None) -> str:
    return json.dumps(name if name is None or len(name) <= SHOWN else f"{name[:SHOWN]}...")


def _listed(names: Any) -> str:
    found = [_shown(name) for name in islice(names, 21)]
    return ", ".join([*found[:20], *(["..."] if len(found) > 20 else [])]) or "nothing"
