"""Whether the files of a table have the same columns: what may differ, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from features.sources.base import SourceError


class Agreement:
    """The types of the columns so far, and the file each comes from.

    Numbers may be wider in one file than in another, and a column may be all null; text, bytes,
    lists and booleans do not stand for one another. With `text_is_bytes`, text may be bytes.
    """

    def __init__(self, *, text_is_bytes: bool = False) -> None:
        self._text_is_bytes = text_is_bytes
        self._types: dict[str, tuple[pa.DataType, str]] = {}

    @property
    def schemas(self) -> dict[str, pa.Schema]:
        """The columns and their types so far, by the file that each comes from; for `add`."""
        found: dict[str, list[pa.Field]] = {}
        for name, (kind, file) in self._types.items():
            found.setdefault(file, []).append(pa.field(name, kind))
        return {file: pa.schema(fields) for file, fields in found.items()}

    def add(self, schema: pa.Schema, *, file: str) -> None:
        """Compare a file's columns with those so far. SourceError names column and files."""
        for field in schema:
            known, where = self._types.get(field.name, (field.type, file))
            wide = widest(known, field.type, text_is_bytes=self._text_is_bytes)
            if wide is None:
                raise SourceError(
                    f"{file}: column {field.name!r} holds {field.type}, and {known} in {where}; "
                    "a column has one type in all files of a table"
                )
            if field.name not in self._types or pa.types.is_null(known):
                where = file
            self._types[field.name] = (wide, where)


def together(
    tables: Sequence[pa.Table], *, files: Sequence[str], text_is_bytes: bool = False
) -> pa.Table:
    """Tables of the same columns, one below the other; SourceError if types do not agree."""
    agreement = Agreement(text_is_bytes=text_is_bytes)
    for table, file in zip(tables, files, strict=True):
        agreement.add(table.schema, file=file)
    return pa.concat_tables(tables, promote_options="permissive")


def widest(
    one: pa.DataType, other: pa.DataType, *, text_is_bytes: bool = False
) -> pa.DataType | None:
    """The type that holds the values of both, without changing what they mean; None if none does.

    Arrow alone would make bytes of text, which would then be taken for a file's content and not
    for its path.
    """
    if one == other:
        return one
    empty = _is_empty(one) or _is_empty(other)
    if _holds_text(one) != _holds_text(other) and not empty and not text_is_bytes:
        return None
    try:
        fields = [pa.schema({"": one}), pa.schema({"": other})]
        return pa.unify_schemas(fields, promote_options="permissive").field(0).type
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        return None


def _holds_text(kind: pa.DataType) -> bool:
    if _is_list(kind):
        return _holds_text(kind.value_type)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_empty(kind: pa.DataType) -> bool:
    """Whether only nulls, or lists of nothing, are of a type."""
    return pa.types.is_null(kind) or (_is_list(kind) and _is_empty(kind.value_type))


def _is_list(kind: pa.DataType) -> bool:
    return (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def plain(table: pa.Table) -> pa.Table:
    """The table without encodings that differ between files: dictionaries and views."""
    for number, field in enumerate(table.schema):
        column = table.column(number)
        if pa.types.is_dictionary(field.type):
            column = column.cast(field.type.value_type)
        elif pa.types.is_string_view(field.type):
            column = column.cast(pa.large_string())
        elif pa.types.is_binary_view(field.type):
            column = column.cast(pa.large_binary())
        else:
            continue
        table = table.set_column(number, field.name, column)
    return table
