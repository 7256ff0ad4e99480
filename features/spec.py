"""A dataset and how its modalities are encoded: the `dataset` and `features` of the YAML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import pydantic

from features.columns import PayloadColumns
from features.decoders.base import Limits
from features.encoders import EncoderField
from features.fingerprint import Execution, Spec

SPLITS = ("train", "validation", "test")
"""The names of the splits, as they stand in a split column."""

ARCHIVES = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.zst", ".tar.lz4")
"""How the names of tables in tar archives end."""

Name = Annotated[str, pydantic.Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$")]


class SplitSpec(Spec):
    """How samples are divided: by a column that says so, or by a hash of a group's name.

    Give `column`, or `group` with the two shares. A group (a speaker, a patient, a document)
    is never divided between splits; `group` may be the id column if all samples are independent.
    Both may be given: then the column decides, and groups that it divides are reported.
    """

    column: str | None = None
    """Column that holds `train`, `validation` or `test`; a sample with null is not used."""
    group: str | None = None
    """Column whose value decides, by its hash, the split of all samples that share it; with
    `column`, that of the groups which should not be divided."""
    stratify: str | None = None
    """Column of whose every value the splits shall have their shares (with `group`): the label,
    or a language. Its groups are counted, so that as the table grows some may change sides; a
    group of several values is counted with the first of them."""
    validation: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.15
    """Expected share of groups in the validation split (with `group`)."""
    test: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.15
    """Expected share of groups in the test split (with `group`)."""

    def keeps_group(self, *, id: str) -> bool:
        """Whether samples keep their group, for resampling and to see whether it is divided; one
        that is the id itself needs no second column.
        """
        return self.group is not None and (self.column is not None or self.group != id)

    @pydantic.model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.column is None and self.group is None:
            raise ValueError("give `column`, which says the split, or `group`, whose hash decides")
        if self.column is not None and self.stratify is not None:
            raise ValueError("`stratify` divides by shares, and `column` says the split already")
        if self.validation + self.test >= 1:
            raise ValueError("`validation` and `test` together leave nothing to train on")
        return self


class ShardSize(Spec):
    """How many consecutive samples a shard holds.

    Boundaries fall where the hash of a sample's id says so, on average every `target` samples
    after the first `min`, and at `max` at the latest; so an inserted sample moves the
    boundaries near it and no others.
    """

    min: Annotated[int, pydantic.Field(ge=1)] = 1024
    target: Annotated[int, pydantic.Field(ge=1)] = 3072
    max: Annotated[int, pydantic.Field(ge=1)] = 16384

    @pydantic.model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.min <= self.target <= self.max:
            raise ValueError("`min`, `target` and `max` must not decrease in that order")
        return self


def _long_split(value: object) -> object:
    return {"column": value} if isinstance(value, str) else value


PayloadKey = Literal["stat", "content", "uri"]


class DatasetSpec(Spec):
    """The user's table: where it is, what identifies a sample, and how it is divided."""

    path: str
    """A file, a folder, a glob or a brace range (`shard-{0000..0099}.tar`), relative to the folder
    of the YAML file; or an s3:// URI of one."""
    format: Literal["parquet", "csv", "jsonl", "webdataset", "huggingface", "folder"] | None = None
    """Format of the files; taken from their names if it is not given.

    `webdataset` is tar archives, `huggingface` a folder that `save_to_disk` wrote, and `folder`
    a folder in which each file is a sample, or that a `metadata.csv` describes."""
    id: str = "sample_id"
    """Column of unique ids, text or integers; `__key__` if it is not given and the table is tar
    archives, `path` if it is a `folder` of files."""
    split: Annotated[
        SplitSpec, pydantic.BeforeValidator(_long_split, json_schema_input_type=str | SplitSpec)
    ]
    """How samples are divided; a column's name alone stands for `{column: …}`."""
    slices: tuple[str, ...] = ()
    """Columns by whose values the results are broken down (language, device, ward)."""
    max_bad_fraction: Annotated[float, Execution, pydantic.Field(ge=0, le=1)] = 0.01
    """Largest share of a modality's payloads that may be bad before the job fails (exit code 4)."""
    payload_key: PayloadKey = "stat"
    """What stands for a payload behind a URI: its name, size and time of change, or its bytes, or
    its name alone.

    `content` reads every file each time, `stat` asks for each; `uri` does neither, and is for
    files that never change under their name. An inline payload always stands for itself."""
    limits: Annotated[Limits, Execution] = Limits()
    """The largest payloads that are taken."""
    shard_rows: ShardSize = ShardSize()
    """Size of the shards, in samples."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _id_of_the_format(cls, value: Any) -> Any:
        """Name the id by the format where it has a column for that, unless the user names one."""
        if not isinstance(value, Mapping) or "id" in value:
            return value
        archives = str(value.get("path", "")).endswith(ARCHIVES) and value.get("format") is None
        if archives or value.get("format") == "webdataset":
            return {**value, "id": "__key__"}
        return {**value, "id": "path"} if value.get("format") == "folder" else value


class FeatureSpec(Spec):
    """One modality: the columns of its payloads, and the encoder that embeds them."""

    column: str | None = None
    """Column of payloads: text, bytes, paths and URIs (relative to the table's folder), or lists
    of numbers."""
    columns: tuple[str, ...] = ()
    """Several columns whose cells together are one payload, instead of `column`: the fields of a
    record (`table`), or the channels of a `series`, one list each."""
    uri: bool = False
    """Whether the cells of a text column are paths and URIs of files, and not the text itself."""
    start: str | None = None
    """Column of the second at which a cut of a sound or video begins."""
    end: str | None = None
    """Column of the second at which a cut of a sound or video ends."""
    encoder: EncoderField

    @pydantic.model_validator(mode="after")
    def _columns_fit_the_kind(self) -> Self:
        kind = self.encoder.kind
        if (self.column is None) == (not self.columns):
            raise ValueError("give either `column` or `columns`, one of the two")
        if len(set(self.columns)) < len(self.columns):
            raise ValueError("`columns` names one of them twice")
        if self.columns and kind not in ("table", "series"):
            raise ValueError(f"`columns` is for tables and series; a {kind} payload has `column`")
        if self.uri and kind != "text":
            raise ValueError(f"`uri` is for text; {kind} cells of text are URIs by themselves")
        if (self.start or self.end) and kind not in ("audio", "video"):
            raise ValueError(f"`start` and `end` cut sounds and videos, not {kind} payloads")
        self.encoder.check_columns(self.payload_columns.columns)
        return self

    @property
    def payload_columns(self) -> PayloadColumns:
        """Where the payloads stand in the table."""
        return PayloadColumns(
            kind=self.encoder.kind,
            columns=self.columns or (str(self.column),),
            uri=self.uri,
            start=self.start,
            end=self.end,
        )
