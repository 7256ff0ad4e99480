"""The page of a search: what it shows of payloads, what it escapes, and how it is laid out."""

from __future__ import annotations

import base64
import datetime
import html
import io
import json
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from features.columns import Cut, PayloadColumns
from features.decoders.audio import decode as decode_sound
from features.decoders.base import DEFAULT_LIMITS
from tests.workflows.test_report import CHROMIUM
from workflows.reporting import search_page
from workflows.reporting.search_page import render
from workflows.space.found import Found
from workflows.space.preview import BARS, _without_metadata, preview
from workflows.space.query import Query
from workflows.space.recall import EXACT, Recall
from workflows.space.searching import Answer

EVIL = '<script>alert("1")</script><img src=x onerror=alert(2)>'
COLUMNS = {
    "caption": PayloadColumns(kind="text", columns=("text",)),
    "photo": PayloadColumns(kind="image", columns=("picture",), uri=True),
    "speech": PayloadColumns(kind="audio", columns=("sound",), uri=True),
    "<film>": PayloadColumns(kind="video", columns=("film",), uri=True),
}


def png(width: int, height: int) -> bytes:
    made = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(made, "PNG")
    return made.getvalue()


def wav(seconds: float, *, rate: int = 44_100) -> bytes:
    made, times = io.BytesIO(), np.arange(round(seconds * rate)) / rate
    soundfile.write(made, 0.5 * np.sin(2 * np.pi * 440 * times) * (times > seconds / 2), rate,
                    format="WAV")  # fmt: skip
    return made.getvalue()


def film(folder: Path) -> str:
    import av

    path = folder / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        container.metadata["comment"] = "where I live"
        container.metadata["location"] = "+48.8577+002.2950/"
        stream.metadata["handler_name"] = "where I live"
        for i in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 25 * i, np.uint8), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return str(path)


def found(modality: str, payload: Any, **options: Any) -> Found:
    values: dict[str, Any] = {
        "similarity": 0.5,
        "rank": 1,
        "sample_id": "s1",
        "row": 0,
        "shard": 0,
        "shard_row": 0,
        "key": b"k",
        "labels": {"shape": "round"},
        **options,
    }
    return Found(modality=modality, payload=payload, **values)


def answer(some: list[Found], *, query: str = "a round thing", **options: Any) -> Answer:
    values: dict[str, Any] = {
        "model": "things version 3",
        "query": Query(
            modality="caption", kind="text", given=query, payload=query, columns=COLUMNS["caption"]
        ),
        "snapshot": "a" * 32,
        "dataset": "things",
        "found": some,
        "wanted": len(some),
        "searched": dict.fromkeys(COLUMNS, 1200),
        "recall": dict.fromkeys(COLUMNS, EXACT),
        "seconds": 0.012,
        "made": 0,
        "columns": COLUMNS,
        "folder": "/data",
        **options,
    }
    return Answer(**values)


def page_of(answer: Answer) -> str:
    return render(answer, created=datetime.datetime(2026, 5, 4, 3, 2, tzinfo=datetime.UTC))


class Tags(HTMLParser):
    """All tags of a page with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.text += " "

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def page(tmp_path: Path) -> str:
    """A page with one of each, everything that a user may write being hostile."""
    (tmp_path / "big.png").write_bytes(png(900, 300))
    (tmp_path / "long.wav").write_bytes(wav(14))
    some = [
        found("caption", EVIL, sample_id=EVIL, labels={EVIL: EVIL}, slices={"a": EVIL}, repeats=3),
        found("photo", str(tmp_path / "big.png")),
        found("speech", str(tmp_path / "long.wav")),
        found("<film>", film(tmp_path)),
        found("photo", "https://user:secret@host/x.png"),
        found("speech", str(tmp_path / f"{EVIL.replace('/', '_')}.wav")),
        found("photo", None, lacking="s3://key:secret@bucket/x is not there"),
    ]
    return page_of(answer(some, query=EVIL))


def test_nothing_of_the_user_is_anything_but_text_and_nothing_is_fetched(page: str) -> None:
    tags = Tags(page)
    assert "script" not in {tag for tag, _ in tags.tags}
    for tag, attributes in tags.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("src", "href", "poster"):
            assert attributes.get(name, "data:")[:5] == "data:", (tag, attributes)  # type: ignore[index]
    assert tags.text.count(EVIL) >= 5, "the query, and all that is told of a sample"
    policy = next(a for tag, a in tags.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"].startswith(
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    )  # type: ignore[union-attr]
    assert "secret" not in page and "…@host/x.png" in tags.text


def test_the_page_has_thumbnails_players_and_reasons(page: str) -> None:
    tags, said = Tags(page), " ".join(Tags(page).text.split())
    (image,) = [a["src"] for tag, a in tags.tags if tag == "img"]
    assert image is not None
    shown = Image.open(io.BytesIO(base64.b64decode(image.partition(",")[2])))
    assert shown.size == (320, 107), "900 × 300, made smaller"
    (sound,) = [a["src"] for tag, a in tags.tags if tag == "audio"]
    assert sound is not None
    heard = decode_sound(base64.b64decode(sound.partition(",")[2]), limits=DEFAULT_LIMITS)
    assert heard.rate == 16_000 and heard.samples.shape == (1, 160_000)
    assert "14 s, the first 10 s here" in said
    (video,) = [a for tag, a in tags.tags if tag == "video"]
    assert (
        str(video["src"]).startswith("data:video/mp4")
        and str(video["poster"])[:11] == "data:image/"
    )
    assert said.count("Not shown: ") == 3
    assert "payloads on https:// are not supported" in said and "there is no such file" in said
    assert "and 3 more samples with the same payload" in said
    assert "1.0 exact: all are compared" in said and "4,800" in said
    assert [a["id"] for tag, a in tags.tags if a.get("name") == "only"] == [
        "only-all", "only-0", "only-1", "only-2", "only-3",
    ]  # fmt: skip
    assert len(page) < 700_000


def test_a_recall_that_was_measured_says_by_what(page: str) -> None:
    measured = {"caption": Recall(share=0.9712, at=10, exact=False, queries=100, of="photo")}
    shown = answer([found("caption", "x")], searched={"caption": 5}, recall=measured)
    said = " ".join(Tags(page_of(shown)).text.split())
    assert "Recall@10 0.971 against exact search, by 100 samples of photo" in said


def test_a_sound_is_shown_as_it_is_cut(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(wav(2, rate=8000))
    shown = preview(
        Cut(whole="a.wav", start=0.5, end=1.5), columns=COLUMNS["speech"], folder=str(tmp_path)
    )
    heard = decode_sound(base64.b64decode(shown.sound.partition(",")[2]), limits=DEFAULT_LIMITS)
    assert heard.rate == 8000 and heard.samples.shape == (1, 8000)
    assert shown.where == f"{tmp_path}/a.wav (0.5 to 1.5 s)"
    # Silent in its first half.
    assert len(shown.bars) == BARS
    assert max(shown.bars[: BARS // 2 - 1]) == 0 and min(shown.bars[BARS // 2 + 1 :]) > 0.9


def test_what_an_image_carries_beside_its_pixels_is_not_passed_on(tmp_path: Path) -> None:
    made = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = "where I live"
    Image.new("RGB", (700, 500), "red").save(made, "JPEG", exif=exif, comment=b"where I live")
    assert b"where I live" in made.getvalue()
    shown = preview(made.getvalue(), columns=COLUMNS["photo"], folder=str(tmp_path))
    assert b"where I live" not in base64.b64decode(shown.image.partition(",")[2])


def test_what_a_film_carries_beside_what_is_seen_is_not_passed_on(tmp_path: Path) -> None:
    import av

    path = film(tmp_path)
    for told in (b"where I live", b"loci"):  # the latter of its place
        assert told in Path(path).read_bytes()
    shown = preview(path, columns=COLUMNS["<film>"], folder=str(tmp_path))
    passed = base64.b64decode(shown.film.partition(",")[2])
    assert b"where I live" not in passed and b"loci" not in passed
    with av.open(io.BytesIO(passed)) as seen, av.open(path) as original:
        assert [f.pts for f in seen.decode(video=0)] == [f.pts for f in original.decode(video=0)]
    broken = Path(path).read_bytes()[:300] + b"where I live"
    assert not _without_metadata(broken, format="mp4"), "better nothing than as it is"


def test_each_modality_begins_a_line_if_so_many_of_each_are_shown() -> None:
    some = [found(m, "x", rank=rank) for m in ("caption", "photo") for rank in (1, 2)]
    classes = [a["class"] for tag, a in Tags(page_of(answer(some))).tags if tag == "li"]
    assert classes == ["card m0", "card m0", "card m1 begins", "card m1"]


def test_a_page_has_an_end_whatever_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, picture = film(tmp_path), tmp_path / "big.png"
    picture.write_bytes(png(900, 300))
    of_film = preview(path, columns=COLUMNS["<film>"], folder="/").bytes
    of_picture = preview(str(picture), columns=COLUMNS["photo"], folder="/").bytes
    # Room for a film and a picture, then for no film but a frame of it, then for nothing.
    monkeypatch.setattr(search_page, "PAGE_BYTES", of_film + of_picture + 40)
    some = [found("<film>", path), found("photo", str(picture)), found("<film>", path)]
    page = page_of(answer(some + [found("photo", str(picture), sample_id=f"s{i}") for i in "abc"]))
    tags, said = [tag for tag, _ in Tags(page).tags], " ".join(Tags(page).text.split())
    assert tags.count("video") == 1 and said.count("its middle frame here") == 1
    assert tags.count("img") == 2
    assert said.count("Not shown: the page holds 30 MB of others already") == 3
    assert all(f"s{i} " in said for i in "abc"), "what was found is said all the same"


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here, so no page can be laid out")
def test_the_page_fits_a_phone_and_a_desk_and_filters_without_a_script(
    page: str, tmp_path: Path
) -> None:
    frames = "".join(
        f'<iframe width={width} height=900 title="{width}" srcdoc="{html.escape(page)}"></iframe>'
        for width in (390, 1280)
    )
    (tmp_path / "both.html").write_text(
        f"<!doctype html><meta charset=utf-8><body>{frames}<pre id=seen></pre><script>"
        "onload = () => { const seen = [...document.querySelectorAll('iframe')].map(frame => {"
        "const page = frame.contentDocument, cards = () => [...page.querySelectorAll('.card')]"
        ".filter(card => card.getBoundingClientRect().height > 0).length;"
        "const all = cards(); page.getElementById('only-1').click();"
        "return [frame.title, page.scrollingElement.scrollWidth <= frame.contentWindow.innerWidth,"
        "all, cards(),"
        "[...page.images].every(image => image.naturalWidth > 0)]; });"
        "document.getElementById('seen').textContent = JSON.stringify(seen); }</script>"
    )
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    options += ["--disable-sync", "--disable-background-networking", "--disable-component-update"]
    done = subprocess.run(
        [str(CHROMIUM), *options, "--dump-dom", f"--user-data-dir={tmp_path / 'profile'}",
         (tmp_path / "both.html").as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    seen = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert seen, done.stderr[-2000:]
    assert json.loads(html.unescape(seen[1])) == [
        ["390", True, 7, 3, True],
        ["1280", True, 7, 3, True],
    ]
