"""Reports to test with: a run as the demo makes it, and runs at the edges."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np

from features.drift import Change, Drift, ModalityDrift, Pair
from workflows.reporting.data_findings import (
    BadPayload,
    BadReason,
    Leak,
    ModalityFindings,
    Repeated,
    SplitFindings,
)
from workflows.reporting.findings import (
    CandidateFindings,
    ConditionFindings,
    EnsembleFindings,
    Epoch,
    Estimate,
    Failure,
    GateFindings,
    Lead,
    Masked,
    MemberFindings,
    Recall,
    ReportData,
    RetrievalFindings,
    SliceFindings,
    SpaceFindings,
)
from workflows.reporting.search_findings import (
    Dimension,
    SearchFindings,
    SeedFindings,
    TrialFindings,
    Value,
)
from workflows.reporting.study_findings import (
    Bin,
    CurveFindings,
    Leaning,
    Reliability,
    StudyFindings,
    SubsetFindings,
)

HOSTILE = "<script>alert(1)</script><img src=http://evil.example onerror=x>\"'&{{ 7*7 }}$\\frac{"
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
                score=estimate(test + drops[modality]),
                difference=difference(drops[modality]),
            )
            for modality in modalities
            if len(modalities) > 1
        ),
    )


def study(item: CandidateFindings) -> StudyFindings:
    """Less is left the more is taken away, and answers are a little too sure."""
    assert item.test is not None
    test, seed = item.test.value, sum(map(ord, item.name))
    worth = {"sentence": 0.07, "drawing": 0.13, "speech": 0.055}
    subsets = []
    for size in range(1, len(item.modalities) + 1):
        for subset in itertools.combinations(item.modalities, size):
            lost = sum(worth[m] for m in item.modalities if m not in subset) * (3 - size + 1)
            found = estimate(test - lost)
            subsets.append(
                SubsetFindings(modalities=subset, value=found.value, low=found.low, high=found.high)
            )
    kinds: tuple[tuple[Literal["noise", "swapped"], tuple[float, ...]], ...] = (
        ("noise", (0.0, 0.25, 0.5, 1.0, 2.0)),
        ("swapped", (0.0, 0.1, 0.25, 0.5, 1.0)),
    )
    curves = [
        CurveFindings(
            modality=m,
            impairment=kind,
            levels=levels,
            values=tuple(test - worth[m] * 2 * level / levels[-1] for level in levels),
            kept=(test - worth[m]) / test,
        )
        for m in item.modalities
        for kind, levels in kinds
    ]
    bins = tuple(
        Bin(rows=4 + 3 * i**2, confidence=0.3 + 0.07 * i, right=0.24 + 0.07 * i + seed % 3 * 0.01)
        for i in range(10)
    )
    several = len(item.modalities) > 1
    return StudyFindings(
        candidate=item.name,
        rows=ROWS if several else 0,
        of=ROWS,
        perturbed_rows=ROWS - 72,
        subsets=tuple(subsets) if several else (),
        curves=tuple(curves),
        kept_of_subsets=0.83 if several else None,
        reliability=Reliability(error=0.034, low=0.021, high=0.052, temperature=1.62, bins=bins),
    )


def leanings() -> tuple[Leaning, ...]:
    found = []
    for group, value, rows, drawing in (
        (None, "all", ROWS, 0.31),
        ("speaker", "1", 190, 0.34),
        ("speaker", "2", 182, 0.12),
    ):
        strength = {"sentence": 0.19, "drawing": drawing, "speech": 0.14}
        direction = {"sentence": 0.16, "drawing": drawing - 0.02, "speech": -0.02}
        found.append(
            Leaning(group=group, value=value, rows=rows, strength=strength, direction=direction)
        )
    return tuple(found)


def studied(data: ReportData) -> ReportData:
    """With how far each candidate that was tested can be trusted."""
    return dataclasses.replace(
        data,
        studies=tuple(study(item) for item in data.candidates if item.test is not None),
        leanings=leanings(),
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
                        median_rank=34.5,
                        precision_sample=0.071,
                        precision_class=0.482,
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


def modality_drift(
    *,
    change: Change | None,
    missing: tuple[float, float],
    bad: tuple[float, float] = (0.0, 0.0),
    repeated: tuple[float | None, float | None] = (0.0, 0.0),
    norm: tuple[float | None, float | None] = (1.0, 1.0),
    shift: float | None = None,
    cosine: float | None = 1.0,
    chance: float | None = 0.9996,
    same_encoder: bool = True,
) -> ModalityDrift:
    return ModalityDrift(
        change=change,
        missing=Pair(before=missing[0], after=missing[1]),
        bad=Pair(before=bad[0], after=bad[1]),
        duplicates=Pair(before=repeated[0], after=repeated[1]),
        norm=Pair(before=norm[0], after=norm[1]),
        norm_shift=shift,
        cosine=cosine,
        cosine_by_chance=chance,
        same_encoder=same_encoder,
    )


def digits_drift() -> Drift:
    """Drawings were added, the recordings are of another microphone, the sentences are the same."""
    return Drift(
        before="0c1d2e3f4a5b6c7d" * 2,
        samples=Pair(before=1700, after=1797),
        modalities={
            "sentence": modality_drift(
                change=Change(before=1527, after=1527, kept=1527), missing=(0.15, 0.15)
            ),
            "drawing": modality_drift(
                change=Change(before=1431, after=1525, kept=1398),
                missing=(0.158, 0.151),
                bad=(0.0, 0.0013),
                repeated=(0.0004, 0.021),
                norm=(11.93, 12.08),
                shift=0.043,
                cosine=0.9995,
            ),
            "speech": modality_drift(
                change=Change(before=1440, after=1534, kept=11, estimated=True),
                missing=(0.153, 0.146),
                bad=(0.0021, 0.002),
                repeated=(None, 0.0),
                norm=(152.7, 98.21),
                shift=-1.84,
                cosine=0.8713,
                chance=0.9991,
            ),
        },
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
    return studied(
        ReportData(
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
                    cells={"sentence": "a sentence"},
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
                    cells={"drawing": "path/to/image.png"},
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
                    cells={"speech": "path/to/sound.wav"},
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
            drift=digits_drift(),
            confusion=digits_confusion(),
            slices=(
                SliceFindings(group="language", value="en", score=estimate(0.960, n=126)),
                SliceFindings(group="language", value="ja", score=estimate(0.916, n=119)),
                SliceFindings(group="language", value="zh", score=estimate(0.953, n=127)),
                SliceFindings(group=None, value="nothing missing", score=estimate(0.972, n=226)),
                SliceFindings(group=None, value="sentence missing", score=estimate(0.909, n=55)),
                SliceFindings(group=None, value="drawing missing", score=estimate(0.842, n=57)),
                SliceFindings(group=None, value="speech missing", score=estimate(0.926, n=54)),
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
    )


def leaky() -> ReportData:
    """Some drawings stand in two splits, and so does a writer."""
    return dataclasses.replace(
        digits(),
        leaks=(
            Leak(
                modality="drawing",
                sides=("train", "test"),
                count=41,
                examples=(("digit-00012", "digit-01530"), ("digit-00077", "digit-01601")),
            ),
            Leak(
                modality="",
                group="writer",
                sides=("validation", "test"),
                count=1,
                examples=(("digit-01100", "digit-01700"),),
            ),
        ),
        repeated=(Repeated(modality="drawing", rows=97, payloads=1525),),
    )


def early_search(*, trials: int = 24) -> SearchFindings:
    """Three fields, three rungs; the last trial failed, and the one before is like the first."""
    rng = np.random.default_rng(5)
    epochs = (4, 10, 30)
    found = []
    for number in range(trials):
        rate = float(10 ** rng.uniform(-4, -1.5))
        width = int(rng.choice([64, 128, 256]))
        dropout = float(rng.uniform(0, 0.5))
        values: dict[str, Value] = {"learning_rate": rate, "width": width, "dropout": dropout}
        cost = 0.2 + 0.12 * (np.log10(rate) + 2.6) ** 2 + rng.normal(0, 0.01)
        rungs = 3 if number % 9 == 3 else 2 if number % 3 == 0 else 1
        reached = tuple(round(float(cost * (1 + 0.5 / (rung + 1))), 4) for rung in range(rungs))
        name = f"early-search-{number:02}"
        found.append(TrialFindings(name=name, number=number, values=values, reached=reached))
    found.sort(key=lambda trial: (-len(trial.reached), trial.reached[-1]))
    found = [dataclasses.replace(trial, settled=trial.reached[-1]) for trial in found]
    for place, spread in ((0, 0.004), (1, 0.013)):
        seeds = tuple(found[place].reached[-1] + spread * step for step in (0, 1, 2))
        found[place] = dataclasses.replace(found[place], by_seed=seeds, settled=seeds[1])
    found[-1] = dataclasses.replace(found[-1], reached=(None,), settled=None)
    found[-2] = dataclasses.replace(found[-2], like=found[0].number)
    return SearchFindings(
        name="early-search",
        of="early",
        dimensions=(
            Dimension(field="learning_rate", low=1e-4, high=10**-1.5, log=True),
            Dimension(field="width", choices=(64, 128, 256)),
            Dimension(field="dropout", low=0.0, high=0.5),
        ),
        monitor="loss",
        lower_is_better=True,
        epochs=epochs,
        trials=tuple(found),
        finalists=2,
        seeds=3,
        found=found[0].name,
    )


def searched() -> ReportData:
    """A run with all that there is: leads, a search, two ensembles, two spaces, all metrics."""
    data = digits()
    lead = Lead(gain=difference(0.031), p=0.0004, test="McNemar", sure=True)
    close = dataclasses.replace(lead, gain=difference(0.011), p=0.213, sure=False)
    fitted = [
        *(item for item in data.candidates if item.failure is None),
        dataclasses.replace(candidate("early-slow", "early", 0.921)),
        dataclasses.replace(candidate("soup", "soup", 0.936), epochs=(), best_epoch=None),
        dataclasses.replace(candidate("together", "average", 0.949), epochs=(), best_epoch=None),
        candidate("translation", "translation", 0.871),
    ]
    candidates = [
        dataclasses.replace(
            item,
            lead=None if item.name == "together" else close if item.name == "soup" else lead,
            family="alignment" if item.name == "translation" else item.family,
            metrics={
                split: {
                    "accuracy": item.test.value,
                    "balanced accuracy": item.test.value - 0.004,
                    "macro F1": item.test.value - 0.006,
                    "top-3 accuracy": 0.991,
                    "log loss": 0.214,
                    "AUROC": 0.994,
                    "average precision": 0.961,
                }
                for split in ("validation", "test")
                if item.test is not None
            },
        )
        for item in fitted
    ]
    by_name = {item.name: item for item in candidates}

    def member(name: str, taken: bool = True, **values: float) -> MemberFindings:
        found = by_name[name]
        return MemberFindings(
            name=name, taken=taken, validation=found.validation, test=found.test, **values
        )

    late = next(item for item in data.candidates if item.failure is not None)
    pairs = recalls()
    return dataclasses.replace(
        data,
        candidates=(*candidates, late),
        winner="together",
        ensembles=(
            EnsembleFindings(
                candidate="soup",
                monitor="accuracy",
                members=(
                    member("early", alone=0.936, with_it=0.936),
                    member("early-slow", alone=0.93, with_it=0.945),
                    MemberFindings(name="early-fast", taken=False, alone=0.91, with_it=0.902),
                ),
            ),
            EnsembleFindings(
                candidate="together", monitor="", members=(member("soup"), member("attention"))
            ),
        ),
        searches=(early_search(),),
        seeds=(
            SeedFindings(
                names=("together", "together-seed-1", "together-seed-2"),
                validation=(0.951, 0.933, 0.941),
                test=(0.949, 0.938, 0.943),
                wins=True,
                overtaken="soup",
            ),
            SeedFindings(names=("early", "early-slow"), validation=(0.93,), test=(0.936,)),
        ),
        retrieval=(
            RetrievalFindings(candidate="alignment", split="test", pairs=pairs),
            RetrievalFindings(candidate="translation", split="test", pairs=pairs[:4]),
        ),
        spaces=(
            SpaceFindings(
                candidate="alignment",
                probe={"validation": 0.91, "test": 0.901},
                neighbours={"validation": 0.899, "test": 0.887},
                zero_shot={
                    "sentence": {"validation": 0.61, "test": 0.604},
                    "drawing": {"validation": 0.73, "test": 0.725},
                },
            ),
        ),
    )


def with_names(rename: Callable[[str], str]) -> ReportData:
    """The digits' report with every name, label, reason and path replaced."""
    data = dataclasses.replace(
        searched(), leaks=leaky().leaks, repeated=leaky().repeated, drift=digits_drift()
    )

    def renamed(value: Any, where: str = "") -> Any:
        if where in {"family", "type", "impairment"} or isinstance(value, datetime | np.ndarray):
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
        studies=data.studies[:1],
        leanings=(),
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
        studies=(),
        leanings=(),
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
        studies=(),
        leanings=(),
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
    "leaks": leaky,
    "searched": searched,
    "one modality": one_modality,
    "fifty classes": lambda: many_classes(50),
    "long names": lambda: with_names(lambda text: f"{text}_" + "w" * 60),
    "wide letters": lambda: with_names(lambda text: f"{text} 手書きの数字の画像とその説明文"),
    "hostile": lambda: with_names(lambda text: HOSTILE + text),
    "bare": bare,
}
