"""The demo's data: the same bytes each time, divided by group, and as broken as it says."""

from __future__ import annotations

import difflib
import itertools
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from workflows import demo
from workflows.demo import FORM_STARTS, make_digits
from workflows.demo_sentences import HOMOPHONES, NAMES, write_sentence
from workflows.demo_speech import SPEAKERS, Utterance, in_a_room, speak
from workflows.pipeline import load_pipeline

ROOT = Path(__file__).resolve().parents[2]
MODALITIES = ("sentence", "drawing", "speech")


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_digits(folder=tmp_path_factory.mktemp("large"), samples=600)


@pytest.fixture(scope="module")
def table(large: Path) -> pd.DataFrame:
    return pd.read_parquet(large)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_digits(folder=tmp_path_factory.mktemp("small"), samples=60)


def refused(path: Path, *, read: Callable[[Path], object]) -> bool:
    try:
        read(path)
    except (OSError, ValueError, soundfile.LibsndfileError):
        return True
    return False


def read_drawing(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def read_sound(path: Path) -> np.ndarray:
    sound, rate = soundfile.read(path, dtype="float32")
    assert rate == 16_000
    if not len(sound):
        raise ValueError("no frames")
    return sound


def test_the_same_bytes_in_another_process_and_folder(small: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from workflows.demo import make_digits;"
        "make_digits(folder=Path(sys.argv[1]), samples=60)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "b")], cwd=ROOT, check=True)
    assert files_of(tmp_path / "b") == files_of(small.parent)


def test_another_seed_gives_other_data(small: Path, tmp_path: Path) -> None:
    other = make_digits(folder=tmp_path, samples=60, seed=1)
    assert not pd.read_parquet(other)["sentence"].equals(pd.read_parquet(small)["sentence"])


def test_a_whole_table_is_left_as_it_is(small: Path, tmp_path: Path) -> None:
    shutil.copytree(small.parent, tmp_path / "copy")
    (tmp_path / "copy" / "images").rename(tmp_path / "gone")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "copy").rglob("*")}
    assert make_digits(folder=tmp_path / "copy", samples=60) == tmp_path / "copy/samples.parquet"
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "copy").rglob("*")} == before


def test_a_table_changed_by_hand_is_left_alone(small: Path, tmp_path: Path) -> None:
    changed = tmp_path / "samples.parquet"
    pd.read_parquet(small).assign(sentence="7").to_parquet(changed)
    make_digits(folder=tmp_path, samples=60)
    assert set(pd.read_parquet(changed)["sentence"]) == {"7"}


def test_other_settings_are_not_mixed_into_a_folder(small: Path) -> None:
    with pytest.raises(ValueError, match=r"made with samples 60, seed 0, not samples 61, seed 0"):
        make_digits(folder=small.parent, samples=61)


def test_an_interrupted_run_leaves_no_table_and_is_made_good(small: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        assert total == 60
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_digits(folder=tmp_path, samples=60, on_progress=stop)
    assert not (tmp_path / "samples.parquet").exists()
    make_digits(folder=tmp_path, samples=60)
    assert files_of(tmp_path) == files_of(small.parent)


@pytest.mark.parametrize("samples", [0, 29, 1798])
def test_a_number_of_samples_out_of_range_is_refused(samples: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="from 30 to 1,797"):
        make_digits(folder=tmp_path / "new", samples=samples)
    assert not (tmp_path / "new").exists()


def test_columns_and_ids(table: pd.DataFrame) -> None:
    assert list(table.columns) == [
        *("sample_id", "sentence", "drawing", "speech", "digit"),
        *("language", "speaker", "writer", "split"),
    ]
    assert len(table) == 600
    assert table["sample_id"].is_unique
    assert table["digit"].dtype == np.int64
    assert set(table["digit"]) == set(range(10))
    assert set(table["language"]) == {"en", "zh", "ja"}


def test_no_speaker_or_writer_is_on_two_sides(table: pd.DataFrame) -> None:
    for group in ("speaker", "writer"):
        assert (table.groupby(group)["split"].nunique() == 1).all()
    assert table["writer"].nunique() == len(FORM_STARTS)
    assert set(table["speaker"]) == {name for names in SPEAKERS.values() for name in names}
    shares = table["split"].value_counts(normalize=True)
    assert 0.5 < shares["train"] < 0.65
    assert shares["validation"] > 0.18
    assert shares["test"] > 0.2


def test_forms_begin_where_the_writers_begin_again() -> None:
    """Each form is the same text, but for the few digits that the scanner lost."""
    digits = load_digits().target.tolist()
    forms = [digits[a:b] for a, b in itertools.pairwise((*FORM_STARTS, len(digits)))]
    for form in forms[1:]:
        assert difflib.SequenceMatcher(None, forms[0], form, autojunk=False).ratio() > 0.95
        assert form[:6] in ([0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6])


def test_missing_shares_and_no_empty_sample(table: pd.DataFrame) -> None:
    missing = table[list(MODALITIES)].isna()
    assert missing.mean().between(0.10, 0.20).all()
    assert not missing.all(axis=1).any()
    assert (missing.sum(axis=1) == 2).any()


def test_seven_payloads_are_broken_and_no_others(large: Path, table: pd.DataFrame) -> None:
    drawings = table["drawing"].dropna().map(lambda path: large.parent / path)
    sounds = table["speech"].dropna().map(lambda path: large.parent / path)
    bad_drawings = [path for path in drawings if refused(path, read=read_drawing)]
    bad_sounds = [path for path in sounds if refused(path, read=read_sound)]
    blank = table["sentence"].dropna().str.strip() == ""
    assert sorted(path.exists() for path in bad_drawings) == [False, True, True]
    assert sorted(path.exists() for path in bad_sounds) == [False, True, True]
    assert sum(path.exists() and soundfile_opens(path) for path in bad_sounds) == 1
    assert blank.sum() == 1
    broken = {path.stem for path in (*bad_drawings, *bad_sounds)}
    broken |= set(table["sample_id"][blank[blank].index])
    rows = table[table["sample_id"].isin(broken)]
    assert len(rows) == 7
    assert rows[list(MODALITIES)].notna().all(axis=None)


def soundfile_opens(path: Path) -> bool:
    return not refused(path, read=lambda path: soundfile.info(path))


def test_no_file_is_left_over(large: Path, table: pd.DataFrame) -> None:
    named = set(table["drawing"].dropna()) | set(table["speech"].dropna())
    there = set(files_of(large.parent)) - {"samples.parquet"}
    assert there <= named
    assert len(named - there) == 2


def test_drawings_are_the_scans_that_the_labels_belong_to(large: Path, table: pd.DataFrame) -> None:
    data = load_digits()
    scans = table["sample_id"].str.removeprefix("digit-").astype(int)
    assert (data.target[scans] == table["digit"]).all()
    likeness = []
    for at, path in zip(scans, table["drawing"], strict=True):
        if isinstance(path, str) and not refused(large.parent / path, read=read_drawing):
            ink = -read_drawing(large.parent / path).reshape(8, 4, 8, 4).mean(axis=(1, 3))
            likeness.append(np.corrcoef(ink.ravel(), data.images[at].ravel())[0, 1])
    assert np.mean(likeness) > 0.8
    assert np.mean(likeness) < 0.99


def test_sounds_say_the_digit_and_not_too_clearly(large: Path, table: pd.DataFrame) -> None:
    """Energies in eight bands and four quarters of a second sound's time tell the digit."""
    features, digits = [], []
    for path, digit in zip(table["speech"], table["digit"], strict=True):
        if not isinstance(path, str) or refused(large.parent / path, read=read_sound):
            continue
        sound = read_sound(large.parent / path)
        assert sound.ndim == 1
        assert 0.2 < sound.size / 16_000 < 2.5
        assert 0.1 < np.abs(sound).max() < 0.95
        frames = np.lib.stride_tricks.sliding_window_view(sound, 400)[::160]
        power = np.square(np.abs(np.fft.rfft(frames * np.hanning(400))))
        bands = np.stack([part.sum(axis=1) for part in np.array_split(power[:, :120], 20, axis=1)])
        level = np.log(bands + 1e-6)
        features.append(np.concatenate([part.mean(1) for part in np.array_split(level, 4, axis=1)]))
        digits.append(digit)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.05))
    accuracy = np.mean(cross_val_predict(model, np.array(features), digits, cv=3) == digits)
    assert 0.3 < accuracy < 0.99, accuracy


def test_speech_is_the_same_in_another_process_and_differs_by_speaker() -> None:
    words = [
        Utterance(text="seven", language="en", speaker=name, rate=150, pitch=50, range=50)
        for name in ("m1", "m1", "f2")
    ]
    first, again = speak(words), speak(words)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(word.dtype == np.float32 for word in first)
    assert all(0.2 < word.size / 16_000 < 1.0 for word in first)
    assert abs(len(first[0]) - len(first[1])) < 320
    assert len({word.tobytes() for word in first}) == 3


def test_an_unknown_voice_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="no voice 'en-us\\+nobody'"):
        speak(
            [Utterance(text="one", language="en", speaker="nobody", rate=150, pitch=50, range=50)]
        )


def test_noise_has_the_level_that_is_asked_for() -> None:
    """At -40 dB hardly anything of the word is left; at 60 dB the pauses are all but silent."""
    word = np.sin(np.arange(8_000) * 0.3).astype(np.float32)
    loud, quiet = (in_a_room(word, snr=snr, rng=np.random.default_rng(3)) for snr in (-40.0, 60.0))
    tone = np.exp(0.3j * np.arange(loud.size))
    share = [
        np.square(np.abs(np.vdot(tone, sound))) / (sound.size * np.vdot(sound, sound).real)
        for sound in (loud, quiet)
    ]
    assert share[0] < 0.01
    assert share[1] > 0.3


def test_most_sentences_name_their_digit_and_some_name_another_too() -> None:
    rng = np.random.default_rng(0)
    named, other = [], []
    for number in range(900):
        digit, language = number % 10, ("en", "zh", "ja")[number % 3]
        text = write_sentence(digit=digit, language=language, rng=rng)
        said = digits_in(text, language=language)
        named.append(digit in said)
        if language == "en":  # some kana and 一 are in other words too
            other.append(bool(said - {digit}))
    assert 0.85 < np.mean(named) < 0.97
    assert 0.1 < np.mean(other) < 0.5


def digits_in(text: str, *, language: str) -> set[int]:
    text = unicodedata.normalize("NFKC", text).casefold()
    return {
        digit
        for digit in range(10)
        for name in (str(digit), *(names.split()[digit].casefold() for names in NAMES[language]))
        if unicodedata.normalize("NFKC", name) in text
    }


def test_homophones_are_none_of_the_number_words() -> None:
    wrong = set(map(chr, HOMOPHONES["zh"].values()))
    assert len(wrong) == 10
    assert not wrong & set("".join(NAMES["zh"]))


def test_a_missing_package_names_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(ImportError, match=r"pip install 'sensorium\[demo\]'"):
        make_digits(folder=tmp_path, samples=60)
    assert not (tmp_path / "samples.parquet").exists()


def test_importing_the_demo_loads_nothing_heavy() -> None:
    code = (
        "import sys, workflows.demo, workflows.demo_speech;"
        "print({'torch', 'sklearn', 'PIL', 'scipy', 'soxr', 'espeakng_loader', 'ray', 'mlflow'}"
        " & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "set()"


def test_the_recipe_fits_the_table(small: Path, tmp_path: Path) -> None:
    shutil.copy(small, tmp_path)
    shutil.copy(Path(demo.__file__).parent / "recipes" / "digits.yaml", tmp_path)
    pipeline = load_pipeline(tmp_path / "digits.yaml")
    pipeline.open_source()  # refuses a column that the table lacks
    assert set(pipeline.spec.features) == set(MODALITIES)
    assert [candidate.type for candidate in pipeline.spec.candidates] == [
        *("single", "single", "single", "early", "late", "attention", "alignment")
    ]
    assert pipeline.spec.dataset.slices == ("language",)
