"""Requests to a served model that are wrong, or whose payloads are, and what must come of them."""

from __future__ import annotations

import base64
import functools
import io
import json
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf, nan
from typing import Any

import numpy as np
import soundfile

from benchmarks.served_model import data_uri

JSON = "application/json"
REFUSED, BAD, EITHER = "refused", "answered, payload missing", "answered or refused"
FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")


@dataclass(kw_only=True)
class Attack:
    """A request, and what must come of it."""

    name: str
    body: bytes
    expected: str
    rows: int = 1
    bad: str | None = None
    """The modality that must be missing in the first row."""
    picture: str | None = None
    """Of a request that may be answered: the first row's picture as it was before it was harmed."""
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": JSON})


class Fuzzer:
    """Makes malformed requests out of right rows."""

    def __init__(self, rows: list[dict[str, Any]], *, seed: int, roots: bool = False) -> None:
        self.rows = rows
        self.roots = roots
        self.draw = random.Random(seed)
        full = [row for row in rows if row["picture"] and row["sound"] and row["text"]]
        self.full = full
        self.png = base64.b64decode(full[0]["picture"].partition(",")[2])
        self.wav = base64.b64decode(full[0]["sound"].partition(",")[2])
        self.makers: list[Callable[[], Attack]] = [
            self.no_json, self.cut_json, self.no_utf8, self.deep, self.wrong_top, self.two_forms,
            self.unknown_column, self.twice, self.ragged, self.wrong_type, self.split_parts,
            self.outside, self.params, self.content_type, self.digits, self.half_pairs,
            self.said_twice, self.no_base64, self.damaged_image, self.damaged_sound,
            self.swapped_media, self.bomb, self.empty_payload, self.numbers, self.nothing_known,
            self.no_columns, self.bare_base64, self.lists_of_text, self.large_file_name,
            self.base_with_scheme, self.wide_rows, self.many_names, self.sound_bomb,
            self.garbage_bytes, self.wrong_scalar, self.odd_text, self.no_number,
        ]  # fmt: skip

    def attack(self) -> Attack:
        return self.draw.choice(self.makers)()

    def row(self) -> dict[str, Any]:
        return dict(self.draw.choice(self.full))

    def _request(
        self, rows: list[dict[str, Any]], *, form: str | None = None, **more: Any
    ) -> dict[str, Any]:
        """Rows in one of the four forms."""
        form = form or self.draw.choice(FORMS)
        if form == "dataframe_split":
            names = list(dict.fromkeys(name for row in rows for name in row))
            cells = [[row.get(name) for name in names] for row in rows]
            return {form: {"columns": names, "data": cells}, **more}
        if form == "inputs":
            names = list(dict.fromkeys(name for row in rows for name in row))
            return {form: {name: [row.get(name) for row in rows] for name in names}, **more}
        return {form: rows, **more}

    def _attack(
        self, name: str, content: Any, expected: str, *, rows: int = 1, bad: str | None = None
    ) -> Attack:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        return Attack(name=name, body=body, expected=expected, rows=rows, bad=bad)

    # What is no request.

    def no_json(self) -> Attack:
        text = self.draw.choice([b"", b"{", b"null garbage", b"<xml/>", b"{'a': 1}", b"\0" * 9])
        return self._attack("no JSON", text, REFUSED)

    def cut_json(self) -> Attack:
        body = json.dumps(self._request([self.row()])).encode()
        return self._attack("cut JSON", body[: self.draw.randrange(1, len(body))], REFUSED)

    def no_utf8(self) -> Attack:
        body = bytearray(json.dumps(self._request([self.row()])).encode())
        for _ in range(self.draw.randint(1, 4)):
            body.insert(self.draw.randrange(1, len(body)), self.draw.choice([0xFF, 0xC0, 0xFE]))
        return self._attack("not UTF-8", bytes(body), REFUSED)

    def garbage_bytes(self) -> Attack:
        row = self.row()
        body = bytearray(json.dumps(self._request([row])).encode())
        for _ in range(self.draw.choice([1, 1, 1, 2, 20])):
            body[self.draw.randrange(len(body))] = self.draw.randrange(32, 127)
        found = self._attack("bytes changed", bytes(body), EITHER)
        found.picture = row["picture"]
        return found

    def deep(self) -> Attack:
        depth = self.draw.choice([2_000, 50_000, 200_000])
        opening, closing = self.draw.choice([(b"[", b"]"), (b'{"a":', b"}")])
        inner = b"1" if closing == b"}" else b""
        nest = opening * depth + inner + closing * depth
        place = self.draw.choice([b'{"inputs":%s}', b'{"dataframe_records":[{"text":%s}]}', b"%s"])
        return self._attack("deep JSON", place % nest, REFUSED)

    def wrong_top(self) -> Attack:
        tops: list[Any] = [None, [], 7, "text", True, {}, {"rows": []}, {"prompt": "x"}]
        tops += [{"messages": [{"role": "user"}]}, {"input": "x"}, [self.row()], {"predict": 1}]
        return self._attack("wrong at the top", self.draw.choice(tops), REFUSED)

    def two_forms(self) -> Attack:
        one = self._request([self.row()], form="inputs")
        return self._attack("two forms", {**one, "instances": [self.row()]}, REFUSED)

    def unknown_column(self) -> Attack:
        name = self.draw.choice(["tex", "id", "", "TEXT", "__class__", "text ", "x" * 5000, "é"])
        return self._attack("unknown column", self._request([{**self.row(), name: "x"}]), REFUSED)

    def no_columns(self) -> Attack:
        content = self.draw.choice([[], [{}], [{}, {}]])
        form = self.draw.choice(["instances", "dataframe_records", "inputs"])
        return self._attack("no columns", {form: content}, REFUSED)

    def twice(self) -> Attack:
        rows = self.draw.randint(1, 3)
        cells = [["it is low", "it is high"]] * rows
        content = {"dataframe_split": {"columns": ["text", "text"], "data": cells}}
        return self._attack("column twice", content, REFUSED)

    def said_twice(self) -> Attack:
        body = json.dumps(self._request([self.row()], form="dataframe_records")).encode()
        twice = body.replace(b'{"text"', b'{"text": "it is high", "text"', 1)
        assert twice != body
        return self._attack("key twice", twice, REFUSED)

    def ragged(self) -> Attack:
        content = self._request([self.row() for _ in range(3)], form="dataframe_split")
        data = content["dataframe_split"]["data"]
        place = self.draw.randrange(3)
        data[place] = self.draw.choice([data[place][:-1], [*data[place], 1], [], "row", None, {}])
        if self.draw.random() < 0.4:
            content = self._request([self.row() for _ in range(3)], form="inputs")
            content["inputs"]["text"].pop()
        return self._attack("ragged", content, REFUSED)

    def split_parts(self) -> Attack:
        content = self._request([self.row()], form="dataframe_split")
        part = content["dataframe_split"]
        change = self.draw.choice(["columns", "data", "index", "extra"])
        part[change] = self.draw.choice([7, "text", {"a": 1}, True])
        return self._attack("split parts", content, REFUSED)

    def wrong_type(self) -> Attack:
        column = self.draw.choice(["text", "picture", "sound"])
        value = self.draw.choice([7, 1e308, True, [1, 2], {"b64": "x"}, [], {}, -0.5, [[None]]])
        rows = [self.row(), {**self.row(), column: value}]
        return self._attack("wrong type", self._request(rows), REFUSED, rows=2)

    def wrong_scalar(self) -> Attack:
        content = {"inputs": {"text": "it is low", "age": [1.0, 2.0]}}
        record = [self.row(), self.draw.choice([7, "x", None, [1]])]
        form = self.draw.choice(["instances", "dataframe_records"])
        return self._attack(
            "cells beside lists", self.draw.choice([content, {form: record}]), REFUSED
        )

    def lists_of_text(self) -> Attack:
        row = {name: [cell, cell] for name, cell in self.row().items()}
        return self._attack("lists of texts", self._request([row], form="dataframe_split"), REFUSED)

    def outside(self) -> Attack:
        place = self.draw.choice([
            "/etc/passwd", "file:///etc/passwd", "../../../../etc/passwd", "http://127.0.0.1:22/",
            "http://169.254.169.254/latest/meta-data", "https://example.org/a.png", "s3://b/k",
            "ftp://h/f", "gopher://h", "file://host/etc/passwd", "/proc/self/environ", "/dev/zero",
            "pictures/1.png", "file:/etc/passwd", "FILE:///etc/passwd", "~/.ssh/id_rsa", "..", ".",
            "pipe:0", "subfile:/etc/passwd", "concat:/etc/passwd", " ", "\0", "/", "//host/share",
        ])  # fmt: skip
        column = self.draw.choice(["picture", "sound"])
        if self.roots and (place[0] in "p~." or (":/" in place and "://" not in place)):
            place = "/etc/passwd"  # a relative path, which may be one of those that are read
        more = self.draw.choice([{}, {"params": {"base": "/etc"}}, {"params": {"base": "s3://b"}}])
        return self._attack(
            "files of the server", self._request([{**self.row(), column: place}], **more), REFUSED
        )

    def base_with_scheme(self) -> Attack:
        base = self.draw.choice([
            "file:///etc", "FILE:///etc", "file://localhost/etc", "file:/etc", "file://etc",
            "http://127.0.0.1", "s3://b", "S3://b", "//etc", "/etc", "\0", "a/" * 3000,
        ])  # fmt: skip
        row = {**self.row(), self.draw.choice(["picture", "sound"]): "passwd"}
        request = self._request([row], params={"base": base})
        return self._attack("bases with schemes", request, REFUSED)

    def bare_base64(self) -> Attack:
        row = self.row()
        row["picture"] = "/" * self.roots + row["picture"].partition(",")[2]
        return self._attack("base64 that is not marked", self._request([row]), REFUSED)

    def large_file_name(self) -> Attack:
        row = {
            **self.row(),
            "picture": "/" * self.roots
            + self.draw.choice(["a", "a/", "../", "./"]) * self.draw.choice([300, 5_000, 900_000]),
        }
        return self._attack("long names", self._request([row]), REFUSED)

    def wide_rows(self) -> Attack:
        """Rows of a name each: as a table it would have as many columns as rows."""
        form = self.draw.choice(["instances", "dataframe_records"])
        rows = [{f"{self.draw.random()}": 1} for _ in range(self.draw.choice([500, 9_000, 11_000]))]
        return self._attack("wide rows", {form: [self.row(), *rows]}, REFUSED)

    def many_names(self) -> Attack:
        names = [f"name {i}" for i in range(self.draw.choice([1_000, 50_000]))]
        names += [names[-1]]
        if self.draw.random() < 0.5:
            content = {"dataframe_split": {"columns": names, "data": []}}
            return self._attack("many names", content, REFUSED)
        cells = ",".join(f'"{name}":1' for name in names)
        return self._attack("many names", f'{{"inputs":{{{cells}}}}}'.encode(), REFUSED)

    def params(self) -> Attack:
        value = self.draw.choice([7, [], "x", {"base": 7}, {"base": {}}, {"bas": "x"}, True])
        return self._attack("params", self._request([self.row()], params=value), REFUSED)

    def content_type(self) -> Attack:
        found = self._attack("content type", self._request([self.row()]), REFUSED)
        kind = self.draw.choice([
            "text/csv", "text/plain", "application/vnd.apache.parquet", "multipart/form-data",
            "application/json; charset=utf-16", "application/octet-stream",
            "application/json; q=1", "", ";;",
        ])  # fmt: skip
        found.headers = {"Content-Type": kind}
        return found

    def digits(self) -> Attack:
        count = self.draw.choice([5_000, 100_000])
        body = b'{"dataframe_records":[{"text":"it is low","age":' + b"9" * count + b"}]}"
        return self._attack("thousands of digits", body, REFUSED)

    def half_pairs(self) -> Attack:
        text = self.draw.choice(["\\ud800", "a\\udfff", "\\udc00\\ud800"])
        column = self.draw.choice(["text", "picture", "ward"])
        body = b'{"dataframe_records":[{"%s":"%s"}]}' % (column.encode(), text.encode())
        return self._attack("halves of surrogates", body, REFUSED)

    # What is a request, of payloads that are of no use.

    def _one_bad(self, name: str, *, column: str, value: Any, modality: str) -> Attack:
        rows = [
            {**self.row(), column: value},
            *(self.row() for _ in range(self.draw.randint(0, 2))),
        ]
        return self._attack(name, self._request(rows), BAD, rows=len(rows), bad=modality)

    def _media(self) -> tuple[str, str, bytes]:
        return self.draw.choice([("picture", "photo", self.png), ("sound", "voice", self.wav)])

    def no_base64(self) -> Attack:
        column, modality, content = self._media()
        text = base64.b64encode(content).decode()
        value = self.draw.choice([
            "data:;base64," + text[: len(text) // 2 // 4 * 4 + 1], "data:;base64,%%%",
            "data:,hello", "data:;base64", "data:", f"data:image/png,{text}", "DATA:;BASE64,====",
            "data:;base64," + text.replace("A", "*", 1), "data:;base64," + text + "é",
        ])  # fmt: skip
        return self._one_bad("not base64", column=column, value=value, modality=modality)

    def damaged_image(self) -> Attack:
        cut = self.png[: self.draw.randrange(1, len(self.png) - 20)]
        if self.draw.random() < 0.5:
            changed = bytearray(self.png)
            for _ in range(8):
                changed[self.draw.randrange(8, 40)] ^= 0xFF
            cut = bytes(changed)
        return self._one_bad(
            "damaged images", column="picture", value=data_uri(cut), modality="photo"
        )

    def damaged_sound(self) -> Attack:
        cut = self.draw.choice([
            self.wav[: self.draw.randrange(1, 44)], self.wav[:44], b"RIFF" + b"x" * 90,
            self.wav[: self.draw.randrange(60, len(self.wav) - 50)],
        ])  # fmt: skip
        return self._one_bad(
            "damaged sounds", column="sound", value=data_uri(cut), modality="voice"
        )

    def swapped_media(self) -> Attack:
        column, modality, content = self._media()
        other = self.wav if content is self.png else self.png
        return self._one_bad(
            "sound for image", column=column, value=data_uri(other), modality=modality
        )

    def empty_payload(self) -> Attack:
        column, modality, _ = self._media()
        if self.draw.random() < 0.4:
            text = self.draw.choice(["", " ", "\n\t"])
            return self._one_bad("empty payloads", column="text", value=text, modality="caption")
        return self._one_bad(
            "empty payloads", column=column, value=data_uri(b""), modality=modality
        )

    def bomb(self) -> Attack:
        side = self.draw.choice([20_000, 60_000, 2**31 - 1])
        return self._one_bad(
            "decompression bombs",
            column="picture",
            value=data_uri(png_bomb(side)),
            modality="photo",
        )

    def sound_bomb(self) -> Attack:
        return self._one_bad(
            "sounds of many minutes in some bytes",
            column="sound",
            value=data_uri(silence(minutes=self.draw.choice([11, 55]))),
            modality="voice",
        )

    def numbers(self) -> Attack:
        row = self.row()
        value = self.draw.choice([b"1e400", b"-1e400", "many", "1e999", [], {}, "x" * 9000, inf])
        # As JSON writes a number that no double holds; Infinity itself is none.
        row["age"] = "AGE" if isinstance(value, bytes) else value
        body = json.dumps(self._request([row])).encode()
        if isinstance(value, bytes):
            body = body.replace(b'"AGE"', value)
        refused = not isinstance(value, bytes | str)
        expected, bad = (REFUSED, None) if refused else (BAD, "about")
        return self._attack("odd numbers", body, expected, bad=bad)

    def nothing_known(self) -> Attack:
        rows = [dict.fromkeys(self.rows[0])]
        return self._attack("nothing known", self._request(rows), BAD, bad="caption")

    def no_number(self) -> Attack:
        row = {**self.row(), "age": self.draw.choice([nan, inf, -inf])}
        return self._attack("literals that are no JSON", self._request([row]), REFUSED)

    def odd_text(self) -> Attack:
        """No fault: any text is a text, whatever it looks like."""
        text = self.draw.choice([
            "{{7*7}}", "/etc/passwd", "data:;base64,AAAA", "file:///etc/passwd", "%s%n", "\0\0",
            "'; DROP TABLE", "a" * 100_000, "😀" * 500, "NaN", "null", "\u202e", "=1+1",
        ])  # fmt: skip
        return self._attack("odd texts", self._request([{**self.row(), "text": text}]), "answered")


def rows_said(body: bytes) -> list[dict[str, Any]]:
    """The rows of a request that is right in its form, read as plainly as can be."""
    content = json.loads(body)
    (form,) = set(content) & set(FORMS)
    said = content[form]
    if form == "dataframe_split":
        return [dict(zip(said["columns"], cells, strict=True)) for cells in said["data"]]
    if form == "inputs":
        return [dict(zip(said, cells, strict=True)) for cells in zip(*said.values(), strict=True)]
    return said


def png_bomb(side: int) -> bytes:
    """A small PNG that says that it is so many pixels wide and high."""

    def chunk(name: bytes, content: bytes) -> bytes:
        crc = zlib.crc32(name + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + name + content + crc

    head = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    rows = zlib.compress(bytes(100_000))
    ends = chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + ends


@functools.cache
def silence(*, minutes: int) -> bytes:
    """A FLAC of so many minutes at 8 kHz, in a few kilobytes."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(minutes * 60 * 8000, np.int16), 8000, format="FLAC")
    return buffer.getvalue()


def form_of(rows: list[dict[str, Any]], form: str) -> dict[str, Any]:
    """Rows that have all columns, in one of the forms of a request."""
    match form:
        case "dataframe_split":
            return {form: {"columns": list(rows[0]), "data": [list(row.values()) for row in rows]}}
        case "inputs":
            return {form: {name: [row[name] for row in rows] for name in rows[0]}}
    return {form: rows}
