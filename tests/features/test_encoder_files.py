"""An encoder's files on a machine that lacks them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from features.encoder_files import read_files, with_files_here
from features.encoders import EncoderSpec, parse_encoder

WORDS = "3 2\nflat 0.5 1\nupright -1 0.25\nbar 2 2\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "driver"
    made.mkdir()
    (made / "words.vec").write_text(WORDS)
    return made


def embedded(spec: EncoderSpec) -> np.ndarray:
    encoder = spec.load()
    return encoder.encode([encoder.prepare("a flat bar"), encoder.prepare("upright")])


def test_it_embeds_the_same_where_its_files_are_not(folder: Path) -> None:
    spec = parse_encoder({"type": "word_vectors", "path": str(folder / "words.vec")})
    name, expected = spec.fingerprint(), embedded(spec)
    paths, content = spec.local_files(), read_files(spec)
    assert content == {"words.vec": WORDS.encode()}
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match="there is no file"):
        spec.load()
    here = with_files_here(spec, paths=paths, fetch=lambda: content)
    assert here.fingerprint() == name, "where the files lie is no part of what it is"
    np.testing.assert_array_equal(embedded(here), expected)


def test_files_that_are_there_are_not_sent(folder: Path) -> None:
    spec = parse_encoder({"type": "word_vectors", "path": str(folder / "words.vec")})

    def fetch() -> dict[str, bytes]:
        raise AssertionError("nothing is to be fetched")

    assert with_files_here(spec, paths=spec.local_files(), fetch=fetch) is spec


def test_an_encoder_without_files_has_none() -> None:
    spec = parse_encoder({"type": "hashing", "dim": 8})
    assert spec.local_files() == read_files(spec) == {}
    assert with_files_here(spec, paths={}, fetch=dict) is spec
