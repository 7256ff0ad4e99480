from __future__ import annotations

import dataclasses
import functools
import html
import itertools
import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workflows.findings import (
    BadPayload,
    BadReason,
    CandidateFindings,
    ConditionFindings,
    Epoch,
    Estimate,
    Failure,
    GateFindings,
    Masked,
    ModalityFindings,
    Recall,
    ReportData,
    RetrievalFindings,
    SliceFindings,
    SplitFindings,
)
from workflows.report import render

MODALITIES = ("sentence", "drawing", "speech")
ROWS = 372


def estimate(value: float, *, n: int = ROWS, spread: float = 1.0) -> Estimate:
    half = spread * 1.96 * (value * (1 - value) / n) ** 0.5
    return Estimate(value=value, low=max(0, value - half), high=min(1, value + half), n=n)


def difference(value: float, *, half: float = 0.028) -> Estimate:
    return Estimate(value=value, low=value - half, high=value + half, n=ROWS)


def epochs(*, count: int, final: float, start: float = 2.35, seed: int = 0) -> tuple[Epoch, ...]:
    rng = np.random.default_rng(seed)
    found = []
    for epoch in range(1, count + 1):
        done = 1 - np.exp(-epoch / 6)
        noise = rng.normal(0, 0.008)
        loss = start * (1 - done) + (1 - final) * 2 * done
        found.append(
            Epoch(
                epoch=epoch,
                train_loss=float(loss * (1 - 0.35 * done) + noise),
                validation_loss=float(loss + max(0, epoch - 16) * 0.006 - noise),
                validation_accuracy=float(0.1 + (final - 0.1) * done + noise),
            )
        )
    return tuple(found)


def candidate(name: str, type_: str, test: float, *, best: float = 0.862) -> CandidateFindings:
    family = {"single": "single", "alignment": "alignment"}.get(type_, "fusion")
    modalities = (name,) if family == "single" else MODALITIES
    seed = sum(map(ord, name))
    drops = {"sentence": -0.071, "drawing": -0.128, "speech": -0.055}
    return CandidateFindings(
        name=name,
        type=type_,
        family=family,  # type: ignore[arg-type]
        modalities=modalities,
        parameters=8_000 + 9_731 * (seed % 17),
        seconds=3.4 + seed % 9,
        best_epoch=18 + seed % 5,
        epochs=epochs(
            count=26 + seed % 5, final=test, start=4.9 if family == "alignment" else 2.35, seed=seed
        ),
        validation=estimate(test + 0.009),
        test=estimate(test),
        gain=difference(test - best),
        masked=tuple(
            Masked(
                modality=modality,
                accuracy=estimate(test + drops[modality]),
                difference=difference(drops[modality]),
            )
            for modality in modalities
            if len(modalities) > 1
        ),
    )


def digits_confusion(classes: int = 10, per_class: int = 37) -> np.ndarray:
    rng = np.random.default_rng(4)
    counts = np.zeros((classes, classes), dtype=np.int64)
    for true in range(classes):
        easy = rng.uniform(0.86, 0.99)
        shares = rng.dirichlet(np.full(classes, 0.15)) * (1 - easy)
        shares[true] += easy
        counts[true] = rng.multinomial(per_class, shares)
    return counts


def recalls() -> tuple[Recall, ...]:
    rng = np.random.default_rng(2)
    found = []
    for query in MODALITIES:
        for target in MODALITIES:
            if query != target:
                first = rng.uniform(0.01, 0.03)
                found.append(
                    Recall(
                        query=query,
                        target=target,
                        rows=271,
                        gallery=271,
                        same_sample={1: first, 5: first * 4, 10: first * 7},
                        same_class={1: 0.55 + rng.uniform(0, 0.3), 5: 0.91, 10: 0.96},
                        chance_sample={1: 1 / 271, 5: 5 / 271, 10: 10 / 271},
                        chance_class={1: 0.1, 5: 0.41, 10: 0.65},
                    )
                )
    return tuple(found)


def digits_gate() -> GateFindings:
    return GateFindings(
        passed=True,
        conditions=(
            ConditionFindings(
                name="accuracy",
                rows=ROWS,
                challenger=0.9435,
                champion=0.911,
                difference=difference(0.0325, half=0.024),
                threshold=0.0,
                passed=True,
                detail="+0.033 [+0.009, +0.057] against the champion: the lower end is above "
                "+0.000 by 0.009",
            ),
            ConditionFindings(
                name="floor",
                rows=ROWS,
                challenger=0.9435,
                champion=0.911,
                difference=difference(0.0325, half=0.024),
                threshold=0.8,
                passed=True,
                detail="0.944 is 0.144 above 0.800",
            ),
        ),
        breakdown=tuple(
            ConditionFindings(
                name=name,
                rows=n,
                challenger=0.93,
                champion=0.93 - d,
                difference=difference(d, half=0.05),
            )
            for name, n, d in (
                ("language: en", 126, 0.031),
                ("language: ja", 119, 0.052),
                ("language: zh", 127, 0.012),
                ("sentence missing", 55, 0.004),
                ("drawing missing", 57, 0.044),
                ("speech missing", 54, -0.01),
            )
        ),
        model="digits",
        version="3",
        champion_before="2",
        champion_after="3",
    )


def digits() -> ReportData:
    """A run as the demo makes it: ten classes, seven candidates, one of which failed."""
    reasons = (
        ("drawing", "decode", "the image is cut off: 61 of 214 bytes could be read"),
        ("speech", "decode", "the sound has no frames"),
        ("speech", "fetch", "no such file: sounds/01233.wav"),
        ("sentence", "decode", "the text is empty"),
    )
    bad = tuple(
        BadPayload(sample_id=f"digit-{137 * (i + 1):05d}", modality=m, stage=s, reason=r)
        for i, (m, s, r) in enumerate(reasons + reasons[:2])
    )
    failed = dataclasses.replace(
        candidate("late", "late", 0.5),
        validation=None,
        test=None,
        gain=None,
        masked=(),
        best_epoch=None,
        epochs=epochs(count=5, final=0.6),
        failure=Failure(
            reason="the loss is not finite (nan)",
            where="epoch 6, step 71, learning rate 0.9",
            sample_ids=("digit-00017", "digit-00203", "digit-00418", "digit-01001", "digit-01500"),
        ),
    )
    return ReportData(
        pipeline="digits",
        created=datetime(2026, 11, 23, 19, 40, tzinfo=UTC),
        target="digit",
        samples=1797,
        classes=tuple("0123456789"),
        splits=(
            SplitFindings(name="train", rows=1063, labelled=1063),
            SplitFindings(name="validation", rows=362, labelled=362),
            SplitFindings(name="test", rows=372, labelled=372),
        ),
        modalities=(
            ModalityFindings(
                name="sentence",
                column="sentence",
                kind="text",
                encoder="hashing",
                options="n-grams of 1 to 3 characters",
                fingerprint="5b1f9ce2a07d4418" * 2,
                dim=512,
                present=1526,
                missing=270,
                bad=1,
            ),
            ModalityFindings(
                name="drawing",
                column="drawing",
                kind="image",
                encoder="hog",
                options="",
                fingerprint="c0ffee12a07d4418" * 2,
                dim=324,
                present=1523,
                missing=272,
                bad=2,
            ),
            ModalityFindings(
                name="speech",
                column="speech",
                kind="audio",
                encoder="audio_statistics",
                options="n_mels 40",
                fingerprint="9e07aa31a07d4418" * 2,
                dim=266,
                present=1531,
                missing=263,
                bad=3,
            ),
        ),
        candidates=(
            candidate("sentence", "single", 0.788),
            candidate("drawing", "single", 0.862),
            candidate("speech", "single", 0.741),
            candidate("early", "early", 0.927),
            failed,
            candidate("attention", "attention", 0.9435),
            candidate("alignment", "alignment", 0.901),
        ),
        winner="attention",
        best_single="drawing",
        confusion=digits_confusion(),
        slices=(
            SliceFindings(group="language", value="en", accuracy=estimate(0.960, n=126)),
            SliceFindings(group="language", value="ja", accuracy=estimate(0.916, n=119)),
            SliceFindings(group="language", value="zh", accuracy=estimate(0.953, n=127)),
            SliceFindings(
                group="missing", value="nothing missing", accuracy=estimate(0.972, n=226)
            ),
            SliceFindings(
                group="missing", value="sentence missing", accuracy=estimate(0.909, n=55)
            ),
            SliceFindings(group="missing", value="drawing missing", accuracy=estimate(0.842, n=57)),
            SliceFindings(group="missing", value="speech missing", accuracy=estimate(0.926, n=54)),
        ),
        retrieval=(RetrievalFindings(candidate="alignment", split="test", pairs=recalls()),),
        quarantined=bad,
        bad_reasons=tuple(
            BadReason(modality=m, stage=s, reason=r, count=sum(b.reason == r for b in bad))
            for m, s, r in reasons
        ),
        gate=digits_gate(),
        snapshot="7f3a9c1be0d24d6f8a5b2c3d4e5f6071",
        digest="0d9c8b7a6f5e4d3c2b1a09f8e7d6c5b4",
        git_commit="1f2e3d4c5b6a79880716253443526170a0b1c2d3",
        versions={"sensorium": "0.1.0", "ray": "2.60.0", "torch": "2.13.0", "mlflow": "3.17.2"},
        tracking_uri="sqlite:////data/demo/mlflow.db",
        load_uri="models:/digits@champion",
    )


INLINE = {"b", "span", "code", "i", "u", "a", "svg", "circle", "path"}
VOID = {"meta", "br", "hr", "img", "input", "link"}
HOSTILE = "<script>alert(1)</script><img src=http://evil.example onerror=x>\"'&{{ 7*7 }}$\\frac{"


class Page(HTMLParser):
    """A report taken apart: its tags with their attributes, and its text without the style."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.svg_words: list[str] = []
        self.style = ""
        self.feed(text)
        self.close()
        assert self.open == [], f"these are not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)
        self._part(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag
        self._part(tag)

    def _part(self, tag: str) -> None:
        """What stands in two cells or lines is not one word."""
        if tag not in INLINE:
            self.words.append(" ")

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            self.style += data
        elif "svg" in self.open:
            self.svg_words.append(data.strip())
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    @property
    def skeleton(self) -> list[tuple[str, tuple[str, ...]]]:
        """The tags and the names of their attributes: what no data may change."""
        return [(tag, tuple(sorted(attributes))) for tag, attributes in self.tags]


def with_names(rename: Callable[[str], str]) -> ReportData:
    """The digits' report with every name, label, reason and path replaced."""
    data = digits()

    def renamed(value: Any, where: str = "") -> Any:
        if where in {"family", "type"} or isinstance(value, datetime | np.ndarray):
            return value
        if isinstance(value, str):
            return rename(value)
        if isinstance(value, tuple):
            return tuple(renamed(item) for item in value)
        if isinstance(value, dict):
            return {renamed(key): renamed(item) for key, item in value.items()}
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return dataclasses.replace(
                value,
                **{
                    f.name: renamed(getattr(value, f.name), f.name)
                    for f in dataclasses.fields(value)
                },
            )
        return value

    found = renamed(data)
    assert isinstance(found, ReportData)
    return found


def many_classes(count: int) -> ReportData:
    classes = tuple(f"class number {i}" for i in range(count))
    return dataclasses.replace(digits(), classes=classes, confusion=digits_confusion(count, 8))


def one_modality() -> ReportData:
    data = digits()
    return dataclasses.replace(
        data,
        modalities=data.modalities[:1],
        candidates=(dataclasses.replace(data.candidates[0], masked=()),),
        winner="sentence",
        best_single="sentence",
        retrieval=(),
    )


def all_failed() -> ReportData:
    data = digits()
    late = next(item for item in data.candidates if item.failure)
    return dataclasses.replace(
        data,
        candidates=tuple(dataclasses.replace(late, name=name) for name in ("a", "b")),
        winner=None,
        best_single=None,
        confusion=None,
        slices=(),
        retrieval=(),
        gate=None,
    )


def refused() -> ReportData:
    gate = digits_gate()
    accuracy = dataclasses.replace(
        gate.conditions[0],
        passed=False,
        detail="the lower end must be above +0.000 and falls short by 0.021",
    )
    return dataclasses.replace(
        digits(),
        gate=dataclasses.replace(
            gate, passed=False, conditions=(accuracy,), champion_before="2", champion_after="2"
        ),
    )


def bare() -> ReportData:
    """A run of which next to nothing is known: nothing labelled, nothing bad, no gate."""
    data = digits()
    return dataclasses.replace(
        data,
        candidates=tuple(
            dataclasses.replace(
                item, validation=None, test=None, gain=None, masked=(), epochs=(), best_epoch=None
            )
            for item in data.candidates
        ),
        classes=(),
        splits=(),
        modalities=(),
        samples=0,
        confusion=None,
        best_single=None,
        slices=(),
        retrieval=(),
        quarantined=(),
        bad_reasons=(),
        gate=None,
        versions={},
        tracking_uri="",
        load_uri="",
    )


CASES: dict[str, Callable[[], ReportData]] = {
    "digits": digits,
    "refused": refused,
    "all failed": all_failed,
    "one modality": one_modality,
    "fifty classes": lambda: many_classes(50),
    "long names": lambda: with_names(lambda text: f"{text}_" + "w" * 60),
    "wide letters": lambda: with_names(lambda text: f"{text} 手書きの数字の画像とその説明文"),
    "hostile": lambda: with_names(lambda text: HOSTILE + text),
    "bare": bare,
}


@functools.cache
def page_of(name: str) -> str:
    return render(CASES[name]())


def test_the_headline_says_who_is_champion_and_by_how_much() -> None:
    text = Page(page_of("digits")).text
    assert "Promoted Champion: version 3, attention fusion" in text
    assert (
        "Test accuracy 0.944 [0.920, 0.967], +0.082 [+0.054, +0.110] over the best single "
        "modality, drawing. It follows version 2, +0.033 [+0.009, +0.057] against it."
    ) in text


@pytest.mark.parametrize(
    ("change", "badge", "title"),
    [
        ({"gate": None}, "Not before the gate", "Best candidate: attention fusion"),
        (
            {"gate": dataclasses.replace(digits_gate(), champion_before=None)},
            "Promoted",
            "It is the first champion.",
        ),
        (
            {"gate": dataclasses.replace(digits_gate(), champion_before="3")},
            "Champion unchanged",
            "Champion: version 3, attention fusion",
        ),
        (
            {"gate": dataclasses.replace(digits_gate(), version=None, champion_after="2")},
            "Gate passed",
            "Attention fusion would become champion",
        ),
        (
            {"gate": dataclasses.replace(digits_gate(), passed=None, conditions=())},
            "Promoted",
            "not judged, chosen by hand",
        ),
    ],
)
def test_the_headline_tells_each_end_of_a_run(
    change: dict[str, Any], badge: str, title: str
) -> None:
    text = Page(render(dataclasses.replace(digits(), **change))).text
    assert badge in text
    assert title in text


def test_a_refusal_says_which_condition_and_by_how_much() -> None:
    text = Page(page_of("refused")).text
    assert "Gate refused Champion stays version 2; attention fusion was refused" in text
    assert "It fell at the condition accuracy: the lower end must be above +0.000" in text
    assert "falls short by 0.021" in text
    assert "✗ fail" in text
    assert "The alias champion stays at version 2." in text


def test_every_candidate_stands_in_the_table_the_best_first() -> None:
    text = Page(page_of("digits")).text
    table = text[text.index("Candidate Test Over the best single") :]
    rows = [
        "attention · best attention fusion of sentence, drawing, speech 0.944",
        "early early fusion of sentence, drawing, speech 0.927",
        "alignment contrastive alignment of sentence, drawing, speech 0.901",
        "drawing single modality 0.862 [0.827, 0.897] the best single",
        "sentence single modality 0.788",
        "speech single modality 0.741",
        "late late fusion of sentence, drawing, speech ✗ failed",
    ]
    places = [table.index(row) for row in rows]
    assert places == sorted(places)
    assert "0.788 [0.746, 0.830] −0.074 [−0.102, −0.046] 0.797" in table
    assert (
        "✗ failed the loss is not finite (nan) epoch 6, step 71, learning rate 0.9 · batch: "
        "digit-00017, digit-00203, digit-00418, digit-01001 and 1 more"
    ) in table


def test_the_confusion_matrix_shows_each_count_that_is_not_zero() -> None:
    data = digits()
    assert data.confusion is not None
    drawn = page_of("digits")
    start = drawn.index('aria-label="Confusion matrix')
    words = re.findall(r">([^<>]+)</text>", drawn[start : drawn.index("</svg>", start)])
    counts = Counter(int(word) for word in words if re.fullmatch(r"\d+", word))
    counts -= Counter(2 * list(range(10)))  # the labels of both sides
    assert counts == Counter(data.confusion[data.confusion > 0].tolist())
    recall = [f"{row[i] / row.sum():.2f}" for i, row in enumerate(data.confusion)]
    assert [word for word in words if re.fullmatch(r"\d\.\d\d", word)] == recall


def test_the_most_confused_pairs_are_the_largest_counts() -> None:
    counts = np.diag([9, 8, 7])
    counts[0, 2], counts[1, 0] = 3, 1
    data = dataclasses.replace(digits(), classes=("ein", "zwei", "drei"), confusion=counts)
    text = Page(render(data)).text
    pairs = text[text.index("Most confused") :]
    assert pairs.index("ein taken for drei 3 of 12 25") < pairs.index(
        "zwei taken for ein 1 of 9 11"
    )
    assert "answers 4 of 28 test rows wrongly" in text


def test_of_many_classes_those_with_errors_are_shown() -> None:
    count = 60
    confusion = np.diag(np.full(count, 20))
    confusion[41, 7] = 5
    data = dataclasses.replace(
        digits(), classes=tuple(f"kind {i}" for i in range(count)), confusion=confusion
    )
    page = Page(render(data))
    assert "The 24 of 60 classes with the most errors." in page.text
    assert page.svg_words.count("kind 41") == 2
    assert page.svg_words.count("kind 7") == 2
    assert "0.80" in page.svg_words  # 20 of all 25 rows of the class, not of those shown


def test_recall_stands_beside_its_chance() -> None:
    text = Page(page_of("digits")).text
    pair = digits().retrieval[0].pairs[0]
    assert f"{pair.same_sample[1]:.3f} chance 0.004 @5 {pair.same_sample[5]:.3f}" in text
    assert f"{pair.same_class[1]:.3f} chance 0.100 @5 0.910 · @10 0.960" in text


def test_the_quarantine_is_counted_listed_and_cut() -> None:
    few = Page(page_of("digits")).text
    assert "6 payloads could not be used" in few
    assert "2 drawing decode the image is cut off: 61 of 214 bytes could be read" in few
    assert "digit-00411 speech fetch no such file: sounds/01233.wav" in few
    bad = tuple(
        BadPayload(sample_id=f"s{i}", modality="speech", stage="fetch", reason="no such file")
        for i in range(50)
    )
    reasons = (BadReason(modality="speech", stage="fetch", reason="no such file", count=1234),)
    many = Page(render(dataclasses.replace(digits(), quarantined=bad, bad_reasons=reasons))).text
    assert "1,234 payloads could not be used" in many
    assert "The first 50 of 1234 samples" in many
    assert "1,184 more are in the store" in many


def test_commands_can_be_pasted() -> None:
    data = dataclasses.replace(digits(), tracking_uri="sqlite:////data/my demo/mlflow.db")
    text = Page(render(data)).text
    assert "mlflow ui --backend-store-uri 'sqlite:////data/my demo/mlflow.db'" in text
    assert "mlflow.pyfunc.load_model('models:/digits@champion')" in text


@pytest.mark.parametrize("name", CASES)
def test_the_page_is_whole_and_refers_to_nothing_outside(name: str) -> None:
    page = Page(page_of(name))
    loads = {"src", "href", "xlink:href", "srcset", "poster", "data", "action", "formaction"}
    inside = [
        value for _, attributes in page.tags for key, value in attributes.items() if key in loads
    ]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert inside
    assert {value[1:] for value in inside if value.startswith("#")} <= set(ids)
    assert all(value.startswith("#") for value in inside)
    styles = page.style + "".join(attributes.get("style", "") for _, attributes in page.tags)
    markup = styles + "".join(v for _, a in page.tags for k, v in a.items() if k != "aria-label")
    assert set(re.findall(r"url\((.)", markup)) <= {"#"}
    assert "@import" not in styles
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "img", "iframe", "object"})
    policy = [
        a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy[0].startswith("default-src 'none'; style-src 'unsafe-inline'")


def test_what_a_user_named_changes_no_markup() -> None:
    safe = Page(render(with_names(lambda text: "x" * len(HOSTILE) + text)))
    hostile = Page(page_of("hostile"))
    assert hostile.skeleton == safe.skeleton
    assert HOSTILE in "".join(hostile.words)
    assert any(word.startswith("<script>alert(1)") for word in hostile.svg_words)
    assert hostile.style == safe.style


def test_the_same_findings_make_the_same_page() -> None:
    assert render(digits()) == page_of("digits")


def test_a_plot_takes_its_colours_and_fonts_from_the_page() -> None:
    page = Page(page_of("digits"))
    drawn = "".join(
        value for _, attributes in page.tags for key, value in attributes.items() if key == "style"
    )
    assert re.findall(r"#[0-9a-fA-F]{3,6}", drawn) == []
    assert "font-family" not in drawn
    light, dark = _themes(page.style)
    used = set(re.findall(r"var\(--([a-z-]+)\)", drawn + page.style))
    assert used - {"width", "share", "chance", "part", "tone", "small"} == set(light)
    assert set(dark) == set(light)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_can_be_read_in_every_theme(theme: int) -> None:
    colours = _themes(Page(page_of("bare")).style)[theme]
    pairs = list(itertools.product(("ink", "muted", "accent", "good", "bad"), ("page",)))
    pairs += [("muted", "raised"), ("good", "good-back"), ("bad", "bad-back")]
    low = {pair: _contrast(colours[pair[0]], colours[pair[1]]) for pair in pairs}
    assert min(low.values()) >= 4.5, low


def test_a_page_without_an_alignment_has_no_retrieval() -> None:
    text = Page(render(dataclasses.replace(digits(), retrieval=()))).text
    assert "Retrieval" not in text


def test_a_run_in_which_all_failed_says_so() -> None:
    text = Page(page_of("all failed")).text
    assert "There is nothing to promote" in text
    assert "2 of 2 candidates failed" in text
    assert text.count("the loss is not finite (nan)") == 2


CHROMIUM = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (path := shutil.which(name))
    ),
    None,
)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here, so no page can be laid out")
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_sticks_out_of_the_page(tmp_path: Path, width: int) -> None:
    frames = "".join(
        f'<iframe width={width} height=900 title="{name}" srcdoc="{html.escape(page_of(name))}">'
        "</iframe>"
        for name in CASES
    )
    (tmp_path / "all.html").write_text(
        f"<!doctype html><meta charset=utf-8><body>{frames}<pre id=widths></pre><script>"
        "onload = () => { document.getElementById('widths').textContent = JSON.stringify("
        "Object.fromEntries([...document.querySelectorAll('iframe')].map(frame => [frame.title,"
        "[frame.contentWindow.innerWidth, frame.contentDocument.scrollingElement.scrollWidth,"
        "[...frame.contentDocument.querySelectorAll('svg')].filter("
        "svg => svg.getBoundingClientRect().width > 0).length]])));}</script>"
    )
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-sync",
        "--disable-background-networking",
        "--disable-component-update",
        "--dump-dom",
    ]
    command = [str(CHROMIUM), *options, f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [*command, (tmp_path / "all.html").as_uri()], capture_output=True, text=True, timeout=120
    )
    found = re.search(r"<pre id=\"widths\">(.*?)</pre>", done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    widths = json.loads(html.unescape(found[1]))
    assert set(widths) == set(CASES)
    assert {name: seen[0] for name, seen in widths.items()} == dict.fromkeys(CASES, width)
    assert {name: seen[1] for name, seen in widths.items() if seen[1] > width} == {}
    assert widths["digits"][2] > 10, "the plots are not laid out"


def _themes(style: str) -> tuple[dict[str, str], dict[str, str]]:
    """The colours of the light and of the dark theme."""
    blocks = re.findall(r":root\s*{([^}]*)}", style)
    return tuple(dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block)) for block in blocks)  # type: ignore[return-value]


def _contrast(a: str, b: str) -> float:
    """The contrast ratio of two colours, as WCAG 2.2 defines it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)
