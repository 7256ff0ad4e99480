"""A request to a served model: JSON, strictly read, as rows; or what is wrong with it.

The four forms are those of MLflow's scoring server. What it guesses at is refused here: a short
row, a column that is there twice or that the model does not know, a key that is said twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from features.decoders.base import short
from features.fingerprint import nearest_hint

FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")
MOST_ROWS = 10_000
PARAMS = ("base",)


class InvalidRequest(ValueError):
    """A request that says nothing a model could answer."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a request asks."""

    rows: pd.DataFrame
    """Columns of Python objects."""
    params: Mapping[str, Any]


def read_request(body: bytes, *, columns: Sequence[str]) -> Asked:
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
    found = _columns(content[forms[0]], form=forms[0])
    if not found:
        raise InvalidRequest(f"{forms[0]}: there is no column; the model's are {_listed(columns)}")
    for name in found:
        if name not in columns:
            hint = nearest_hint(name, columns)
            raise InvalidRequest(
                f"column {_shown(name)} is none of the model's; {hint}they are {_listed(columns)}"
            )
    rows = len(next(iter(found.values())))
    if rows > MOST_ROWS:
        raise InvalidRequest(f"{rows:,} rows; a request has {MOST_ROWS:,} at most")
    return Asked(
        rows=pd.DataFrame(found, columns=list(found), dtype=object),
        params=_params(content.get("params")),
    )


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body.decode(), object_pairs_hook=_object)
    except InvalidRequest:
        raise
    except RecursionError:
        raise InvalidRequest("the request is nested too deeply") from None
    except ValueError as error:  # of JSON, of UTF-8, or of a number of thousands of digits
        raise InvalidRequest(f"the request is not JSON in UTF-8: {short(error)}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidRequest(f"{_shown(twice)} is said twice in one object")
    return found


def _columns(content: Any, *, form: str) -> dict[str, list[Any]]:
    """The cells of each column, all of one length."""
    if form == "dataframe_split":
        return _split(content)
    if form == "inputs" and isinstance(content, dict):
        return _by_column(content)
    if not isinstance(content, list):
        raise InvalidRequest(f"{form} is a list of objects, one a row")
    for row, record in enumerate(content):
        if not isinstance(record, dict):
            raise InvalidRequest(
                f"{form}, row {row}: it is a {_kind(record)}, and no object of cells by column"
            )
    names = dict.fromkeys(name for record in content for name in record)
    return {name: _cells([record.get(name) for record in content], name) for name in names}


def _split(content: Any) -> dict[str, list[Any]]:
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
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InvalidRequest(f"dataframe_split: there are several columns {_shown(twice[0])}")
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


def _by_column(content: dict[str, Any]) -> dict[str, list[Any]]:
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


def _shown(name: str) -> str:
    return json.dumps(name if len(name) <= 80 else f"{name[:80]}...")


def _listed(names: Any) -> str:
    found = [_shown(name) for name in names]
    return ", ".join([*found[:20], *(["..."] if len(found) > 20 else [])]) or "nothing"
