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
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.drift import Pair
from tests.workflows.report_cases import (
    CASES,
    HOSTILE,
    bare,
    digits,
    digits_drift,
    digits_gate,
    early_search,
    leaky,
    searched,
    with_names,
)
from training.built_in import BUILT_IN
from workflows.reporting import wording
from workflows.reporting.data_findings import BadPayload, BadReason
from workflows.reporting.report import render

INLINE = {"b", "span", "code", "i", "u", "a", "svg", "circle", "path"}
VOID = {"meta", "br", "hr", "img", "input", "link"}


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


def test_without_a_champion_nothing_is_compared() -> None:
    gate = digits_gate()
    alone = [
        dataclasses.replace(item, champion=None, difference=None)
        for item in (*gate.conditions, *gate.breakdown)
    ]
    first = dataclasses.replace(
        gate, conditions=tuple(alone[:2]), breakdown=tuple(alone[2:]), champion_before=None
    )
    text = Page(render(dataclasses.replace(digits(), gate=first))).text
    section = text[text.index("There was no champion to compare with.") :]
    assert "Condition n Challenger Limit Verdict" in section
    assert "Slices and missing modalities" not in section


def test_every_candidate_stands_in_the_table_the_best_first() -> None:
    text = Page(page_of("digits")).text
    table = text[text.index("Candidate Test validation Over the best single") :]
    rows = [
        "attention · winner attention fusion of sentence, drawing, speech 0.944",
        "early early fusion of sentence, drawing, speech 0.927",
        "alignment contrastive alignment of sentence, drawing, speech 0.901",
        "drawing single modality 0.862 [0.827, 0.897] validation 0.871 the best single",
        "sentence single modality 0.788",
        "speech single modality 0.741",
        "late late fusion of sentence, drawing, speech ✗ failed",
    ]
    places = [table.index(row) for row in rows]
    assert places == sorted(places)
    assert (
        "0.788 [0.746, 0.830] validation 0.797 −0.074 [−0.102, −0.046] 37,193 10 s epoch 21 of 29"
    ) in table
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
    assert f"{pair.same_class[1]:.3f} chance 0.100 @5 0.910 · @10 0.960 mAP 0.482" in text
    assert f"@10 {pair.same_sample[10]:.3f} median rank 34.5 · mAP 0.071" in text


def test_of_several_spaces_the_best_is_shown_and_the_others_are_folded() -> None:
    page = page_of("searched")
    section = page[page.index('<section id="retrieval">') :]
    section = section[: section.index("</section>")]
    first, second = section.index("alignment, test split"), section.index("translation, test split")
    assert section.index("<details>") > section.index("The same class") > first
    mean = np.mean([pair.same_class[1] for pair in searched().retrieval[1].pairs])
    assert f"translation, test split: the first answer is right {mean * 100:.0f}" in section
    text = Page(page).text
    assert second > first
    assert (
        "Candidate Linear probe Nearest neighbours Zero-shot, sentence Zero-shot, drawing "
        "alignment 0.901 0.910 0.887 0.899 0.604 0.610 0.725 0.730"
    ) in text
    assert "without a label, drawing is told apart 72" in text


def test_a_winner_that_another_seed_might_have_lost_is_called_unstable() -> None:
    text = Page(page_of("searched")).text
    assert "The winner's 3 seeds reach 0.933 to 0.951 on validation." in text
    assert "is ahead of soup; with another seed it might have lost" in text
    table = text[text.index("Setting Seeds Validation accuracy Test accuracy") :]
    mean = np.mean([0.951, 0.933, 0.941])
    assert f"together · winner unstable 3 {mean:.3f} 0.933 to 0.951 0.943" in table
    assert "early 2 1 failed 0.930 0.930 to 0.930" in table


def test_a_search_shows_its_trials_the_best_first() -> None:
    search = early_search()
    page = Page(page_of("searched"))
    text = page.text[page.text.index("Search learning_rate, width, dropout of early, in 24") :]
    best = search.trials[0]
    values = " ".join(str(v) if isinstance(v, int) else f"{v:.3g}" for v in best.values.values())
    reached = " ".join(f"{value:.3f}" for value in best.reached if value is not None)
    seeds = f"{best.settled:.3f} {min(best.by_seed):.3f} to {max(best.by_seed):.3f}"
    assert best.reached[-1] == min(t.reached[-1] for t in search.trials if len(t.reached) == 3)
    assert f"with a mean loss of {best.settled:.3f} on validation" in text
    table = text[text.index("Trial learning_rate width dropout 4 epochs 10 epochs 30 epochs") :]
    rows = [
        f"{best.number} {values} {reached} {seeds} best",
        "to the end",
        "stopped at 10 epochs",
        "stopped at 4 epochs",
        f"as trial {best.number}",
        "✗ failed",
    ]
    places = [table.index(row) for row in rows]
    assert places == sorted(places)
    assert (
        "Fitted: 24 for 4 epochs, then the best 8 for 10 epochs, then the best 3 for 30 epochs. "
        "The best 2 were fitted with 3 seeds, and are compared by their mean."
    ) in text
    plots = [a["aria-label"] for tag, a in page.tags if tag == "svg" and "aria-label" in a]
    assert [name for name in plots if name.startswith("early-search")] == [
        f"early-search: loss by {field}" for field in ("learning_rate", "width", "dropout")
    ]


@pytest.mark.parametrize(("trials", "folded"), [(12, 0), (13, 1), (24, 12)])
def test_many_trials_are_folded_and_none_is_left_out(trials: int, folded: int) -> None:
    data = dataclasses.replace(bare(), searches=(early_search(trials=trials),))
    page = render(data)
    section = page[page.index('<section id="search">') :]
    section = section[: section.index("</section>")]
    rows = section.count('<th scope="row"')
    behind = section[section.index("<details>") :] if "<details>" in section else ""
    assert rows == trials
    assert behind.count('<th scope="row"') == folded
    assert (f"<summary>{folded} more</summary>" in behind) == bool(folded)


def test_a_search_that_is_not_over_or_failed_says_so() -> None:
    search = early_search()
    waiting = dataclasses.replace(
        search,
        over=False,
        found=None,
        trials=(dataclasses.replace(search.trials[0], reached=(), by_seed=(), settled=None),),
    )
    text = Page(render(dataclasses.replace(bare(), searches=(waiting,)))).text
    assert "The search is not over." in text and "not fitted yet" in text
    failed = dataclasses.replace(
        search,
        trials=tuple(
            dataclasses.replace(t, reached=(None,), by_seed=(), settled=None) for t in search.trials
        ),
    )
    text = Page(render(dataclasses.replace(bare(), searches=(failed,)))).text
    assert "No trial could be fitted to its end." in text


def test_an_ensemble_shows_what_it_took_and_what_each_was_alone() -> None:
    text = Page(page_of("searched")).text
    section = text[text.index("Ensembles Made of candidates") :]
    assert (
        "soup took 2 of 3 fits: early, early-slow. On validation its accuracy is 0.9450, and that "
        "of its best fit alone 0.9360. together is the mean of the answers of soup, attention."
    ) in section
    assert (
        "Member Alone Soup with it Test accuracy "
        "early ✓ taken 0.9360 0.9360 0.927 [0.901, 0.953] "
        "early-slow ✓ taken 0.9300 0.9450 0.921 [0.894, 0.948] "
        "early-fast left out 0.9100 0.9020 – "
        "soup 0.936 [0.911, 0.961]"
    ) in section
    assert (
        "Member Validation Test accuracy soup 0.945 0.936 [0.911, 0.961] "
        "attention 0.953 0.944 [0.920, 0.967] together 0.958 0.949 [0.927, 0.971]"
    ) in section


def test_a_mark_is_named_by_what_bears_it() -> None:
    searched = Page(page_of("searched")).text
    assert "fusion alignment or translation on the validation split" in searched
    assert "fusion alignment on the validation split" in Page(page_of("digits")).text


def test_every_metric_can_be_seen_where_there_are_several() -> None:
    text = Page(page_of("searched")).text
    table = text[text.index("Every metric On the test split") :]
    assert "together 0.949 0.949 0.945 0.945 0.943 0.943 0.991 0.991 0.214 0.214" in table
    assert "Every metric" not in Page(page_of("digits")).text


def test_the_sections_of_what_there_is_not_are_left_out() -> None:
    page = Page(page_of("digits"))
    assert not {"ensembles", "search"} & {a.get("id") for _, a in page.tags}
    assert "Soup" not in page.text and "Trial" not in page.text


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


def test_leaks_are_counted_with_samples_of_both_sides() -> None:
    page = Page(page_of("leaks"))
    assert (
        "Leak: 41 payloads of drawing in both train and test, so the accuracy may be too high"
    ) in page.text
    assert "which no candidate has seen" not in page.text
    assert "Leak: 1 group (writer) in both validation and test." in page.text
    assert (
        "41 payloads of drawing train and test "
        "digit-00012 (train) and digit-01530 (test); digit-00077 (train) and digit-01601 (test) …"
    ) in page.text
    assert (
        "1 group (writer) validation and test digit-01100 (validation) and digit-01700 (test) Pay"
    ) in page.text
    assert "Payloads that stand in more than one row: drawing 97 (6.4 %)." in page.text


def test_records_that_are_alike_raise_no_alarm_over_the_accuracy() -> None:
    data = leaky()
    records = tuple(
        dataclasses.replace(item, kind="table") if item.name == "drawing" else item
        for item in data.modalities
    )
    text = Page(render(dataclasses.replace(data, modalities=records))).text
    assert "so the accuracy may be too high" not in text
    assert "Leak: 41 payloads of drawing in both train and test." in text
    assert "Records of few and coarse fields may be alike by chance." in text


def test_where_nothing_leaks_nothing_is_said_of_it() -> None:
    text = Page(page_of("digits")).text
    assert "Leak" not in text and "more than one row:" not in text


def test_what_changed_in_the_data_stands_with_its_numbers() -> None:
    text = Page(page_of("digits")).text
    section = text[text.index("What changed in the data Since") :]
    assert section.startswith(
        "What changed in the data Since snapshot 0c1d2e3f4a5b: 1,700 → 1,797 samples. "
        "The embeddings of speech point elsewhere than before: their mean direction has turned "
        "much further than chance would turn it. Unchanged: sentence."
    )
    table = section[section.index("Modality New Removed") :].replace("\N{NO-BREAK SPACE}", " ")
    assert (
        "drawing 127 of 1,525 33 15 % was 16 % 0.1 % was 0 % 2.1 % was < 0.1 % "
        "0.9995 chance 0.9996 11.9 → 12.1 +0.04 sd"
    ) in table
    assert (
        "speech ≈ 1,523 of 1,534 ≈ 1,429 15 % 0.2 % 0 % 0.8713 chance 0.9991 153 → 98.2 −1.84 sd"
    ) in table
    assert "sentence" not in table[: table.index("How to read it")]


def test_the_first_snapshot_is_compared_with_nothing() -> None:
    text = Page(render(dataclasses.replace(digits(), drift=None))).text
    assert "What changed" not in text


def test_a_change_of_encoder_or_of_labels_alone_is_said() -> None:
    drift = digits_drift()
    same = {"sentence": drift.modalities["sentence"]}
    other = dataclasses.replace(
        drift.modalities["drawing"], same_encoder=False, cosine=None, norm_shift=None
    )
    labels = dataclasses.replace(drift, samples=Pair(before=9, after=9), modalities=same)
    text = Page(render(dataclasses.replace(digits(), drift=labels))).text
    assert "Since snapshot 0c1d2e3f4a5b: 9 samples, as before. Unchanged: sentence." in text
    assert "Modality New Removed" not in text
    encoder = dataclasses.replace(
        drift, modalities={"drawing": other}, added=("sound",), removed=("text",)
    )
    text = Page(render(dataclasses.replace(digits(), drift=encoder))).text
    assert "Embedded by another encoder than before: drawing. New in the pipeline: sound." in text
    assert "No longer in the pipeline: text." in text and "other encoder" in text


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


def opened(name: str) -> str:
    """A page with all that is folded unfolded."""
    return page_of(name).replace("<details>", "<details open>")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here, so no page can be laid out")
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_sticks_out_of_the_page(tmp_path: Path, width: int) -> None:
    frames = "".join(
        f'<iframe width={width} height=900 title="{name}" srcdoc="{html.escape(opened(name))}">'
        "</iframe>"
        for name in CASES
    )
    (tmp_path / "all.html").write_text(
        f"<!doctype html><meta charset=utf-8><body>{frames}<pre id=widths></pre><script>"
        "onload = () => { document.getElementById('widths').textContent = JSON.stringify("
        "Object.fromEntries([...document.querySelectorAll('iframe')].map(frame => [frame.title,"
        "[frame.contentWindow.innerWidth, frame.contentDocument.scrollingElement.scrollWidth,"
        "[...frame.contentDocument.querySelectorAll('svg')].filter("
        "svg => svg.getBoundingClientRect().width > 0).length,"
        "[...frame.contentDocument.querySelectorAll('.scroll')].filter("
        "part => part.scrollWidth > part.clientWidth).map(part => part.ariaLabel)]])));}</script>"
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
    if width == 390:
        assert "Table of candidates" in widths["digits"][3], "a phone scrolls, and that is seen"
    else:
        cut = {name: set(seen[3]) for name, seen in widths.items()}
        assert {name for name, parts in cut.items() if "Table of candidates" in parts} == set()
        usual = {"digits", "searched", "leaks", "refused"}
        assert {name: cut[name] for name in usual if cut[name]} == {}


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


def test_every_candidate_has_a_name_of_its_own_in_words() -> None:
    assert set(wording.KINDS) == set(BUILT_IN)
    assert len(set(wording.KINDS.values())) == len(BUILT_IN)
