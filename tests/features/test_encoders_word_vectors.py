"""Word vectors: against files and values of gensim and fastText, and by hand."""

from __future__ import annotations

import base64
import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest

from features.encoders.conformance import check_encoder
from features.encoders.word_files import read_words
from features.encoders.word_vectors import WordVectorsSpec, split_words

# gensim 4.4.0, of KeyedVectors with five words and the vectors below:
# save_word2vec_format(..., binary=True) and (..., binary=False)
GENSIM_BINARY = base64.b64decode(
    "NSAzCnRoZSAAAAA/AACAvwAAAEBDYXQgAACAPwAAAAAAAIA+bmHDr3ZlIAAAQMAAAAA+AACAP9C60L7RgiAAAAAA"
    "AACAPwAAgL9zYW5fZnJhbmNpc2NvIG8SgzoAAABAAAAAwA=="
)
GENSIM_TEXT = (
    b"5 3\nthe 0.5 -1.0 2.0\nCat 1.0 0.0 0.25\nna\xc3\xafve -3.0 0.125 1.0\n"
    b"\xd0\xba\xd0\xbe\xd1\x82 0.0 1.0 -1.0\nsan_francisco 0.001 2.0 -2.0\n"
)
WORDS = ("the", "Cat", "naïve", "кот", "san_francisco")
VECTORS = np.array(
    [[0.5, -1, 2], [1, 0, 0.25], [-3, 0.125, 1], [0, 1, -1], [1e-3, 2, -2]], np.float32
)

# fastText 0.9.3: a model of 6 words, 16 buckets and n-grams of 2 to 4 letters, as its own
# save_model wrote it; and what get_word_vector, get_subwords and get_sentence_vector say of it.
FASTTEXT = gzip.decompress(
    base64.b64decode(
        "H4sIAAAAAAACA9sl5q/Pw8DAwAzErFDMiEQzQbEAlGYB4hQg1nWWef3ITMqeDcgGYRB4wQyh/0OBjX6xHVgx"
        "GJRkpDIkwzjJiSUMSTBOemLR4eX5eQyJMIELuy7su9gBJDcwJMDE8hIPry9LZYiH8RnEoDQzXGSDPQMDBxAz"
        "2DIwFOxnYPAA4jdAfAeIfwDxCiBeAJSXAOIL9lCr7BgYPgDZGSA+ECsA+QlAfAckBlWvAZI7wMDwYB8DwxYg"
        "2wGkByjXAtUHshdk9hUg3mEPsQtkzg0gHQDEB/YCzQHqvQDEX/ZDzDoCpP/sh5h9AOheASDdAOQ/sIOY+wGo"
        "1gGI/wDZc4D4C8gNQHkLIP0E6oc1ILcAcQBU/QEgvWc/PDoQAUMdAADGRUCBKwIAAA=="
    )
)
OF_FASTTEXT: dict[str, tuple[list[float], list[int]]] = {
    "</s>": ([1.375, 0.53125, 0.03125], [0]),
    "the": ([-0.325, 0.309375, -0.553125], [1, 19, 21, 20, 7, 18, 12, 12, 14, 16]),
    "garçon": (
        [0.2631579, 0.4967105, -0.430921],
        [3, 10, 21, 13, 11, 11, 21, 16, 10, 7, 21, 6, 16, 6, 16, 18, 6, 16, 19],
    ),
    "кошка": (
        [0.3144531, 0.65625, 0.09179688],
        [4, 7, 13, 20, 15, 6, 20, 16, 18, 18, 16, 16, 18, 13, 17, 15],
    ),
    "cats": ([0.03125, 0.2838542, -0.5130209], [14, 17, 19, 15, 13, 18, 14, 7, 19, 6, 16, 10]),
    "ёж": ([0.02604167, 0.34375, -0.1927083], [19, 9, 13, 15, 11, 21]),
    "日本語": ([-0.2048611, 0.3854167, -0.3680556], [21, 17, 11, 7, 13, 17, 21, 9, 21]),
    "a": ([-0.04166667, 0.5520834, -0.0625], [20, 6, 12]),
}
SENTENCES = {
    "the cat ёж": [-0.3965623, 0.3128538, -0.5803273],
    "garçon кошка cats the the": [-0.01182507, 0.5896397, -0.5820399],
}


def glove(vectors: np.ndarray = VECTORS) -> bytes:
    """As GloVe writes them: no first line."""
    rows = zip(WORDS, vectors, strict=True)
    return "".join(f"{w} {' '.join(map(str, row))}\n" for w, row in rows).encode()


def with_line_feeds() -> bytes:
    """As word2vec.c writes them: a line feed after each vector, too."""
    parts = [b"5 3\n"]
    for word, vector in zip(WORDS, VECTORS, strict=True):
        parts.append(word.encode() + b" " + vector.tobytes() + b"\n")
    return b"".join(parts)


FILES = {
    "gensim's binary": GENSIM_BINARY,
    "gensim's text": GENSIM_TEXT,
    "word2vec's binary": with_line_feeds(),
    "GloVe's text": glove(),
    "fastText's text": GENSIM_TEXT.replace(b"\n", b" \n").replace(b"5 3 \n", b"5 3\n"),
}


def saved(folder: Path, content: bytes, *, name: str = "vectors.bin") -> str:
    path = folder / name
    path.write_bytes(content)
    return str(path)


def embed(spec: WordVectorsSpec, texts: list[str]) -> tuple[Any, list[Any]]:
    encoder: Any = spec.load()
    return encoder, encoder.prepare_all(texts)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("name", FILES)
def test_each_format_gives_its_words(name: str, packed: bool, tmp_path: Path) -> None:
    content = gzip.compress(FILES[name]) if packed else FILES[name]
    table = read_words(saved(tmp_path, content))
    assert list(table.places) == list(WORDS)
    assert table.dim == 3
    np.testing.assert_array_equal(table.vectors([4, 0, 1, 2, 3]), VECTORS[[4, 0, 1, 2, 3]])
    assert table.spelled("kitten") is None
    few = read_words(saved(tmp_path, content), most=2)
    assert list(few.places) == ["the", "Cat"]
    np.testing.assert_array_equal(few.vectors([1]), VECTORS[1:2])


def test_many_words_without_a_first_line_that_counts_them(tmp_path: Path) -> None:
    """More than the first room that is made for them."""
    vectors = np.random.default_rng(0).normal(size=(100_000, 2)).astype(np.float32)
    lines = (f"w{i} {x!r} {y!r}\n" for i, (x, y) in enumerate(vectors.tolist()))
    table = read_words(saved(tmp_path, "".join(lines).encode()))
    np.testing.assert_array_equal(table.vectors(range(100_000)), vectors)


def test_words_may_hold_blanks_and_come_twice(tmp_path: Path) -> None:
    table = read_words(saved(tmp_path, b"of 1 2\n. . . 3 4\nof 5 6\nat 7 8\n"))
    assert dict(table.places) == {"of": 0, ". . .": 1, "at": 3}
    np.testing.assert_array_equal(table.vectors([3, 1, 0]), [[7, 8], [3, 4], [1, 2]])


def test_fasttext_words_and_spellings(tmp_path: Path) -> None:
    table = read_words(saved(tmp_path, FASTTEXT))
    assert list(table.places) == ["</s>", "the", "cat", "garçon", "кошка", "naïve"]
    for word, (vector, _) in OF_FASTTEXT.items():
        known = table.places.get(word)
        found = table.spelled(word) if known is None else table.vectors([known])[0]
        np.testing.assert_allclose(found, vector, atol=1e-6, err_msg=word)


def test_fasttext_ngrams_fall_where_fasttext_puts_them() -> None:
    from features.encoders.fasttext_file import Ngrams

    ngrams = Ngrams(shortest=2, longest=4, buckets=16)
    for word, (_, rows) in OF_FASTTEXT.items():
        own = rows[:1] if word in ("</s>", "the", "garçon", "кошка") else []
        assert [*own, *(6 + row for row in ngrams.rows(word))] == rows


def test_fasttext_sentences(tmp_path: Path) -> None:
    path = saved(tmp_path, gzip.compress(FASTTEXT))
    encoder, found = embed(
        WordVectorsSpec(path=path, split="blanks", case="keep", normalize_words=True),
        list(SENTENCES),
    )
    np.testing.assert_allclose(encoder.encode(found), list(SENTENCES.values()), atol=1e-6)
    assert [encoder.counts(item) for item in found] == [
        {"words": 3, "unknown_words": 0, "words_by_spelling": 1},
        {"words": 5, "unknown_words": 0, "words_by_spelling": 1},
    ]
    _, (bad,) = embed(WordVectorsSpec(path=path, subwords=False), ["ёж"])
    assert "knows none of the 1 words, such as 'ёж'" in str(bad)


def test_a_text_is_the_mean_of_its_words(tmp_path: Path) -> None:
    path = saved(tmp_path, GENSIM_BINARY)
    # gensim: get_mean_vector(["the", "Cat", "кот"], pre_normalize=...)
    for normalize_words, expected in (
        (False, [0.5, 0.0, 0.4166666567325592]),
        (True, [0.3961201608181, 0.09022367000579834, 0.13610011339187622]),
    ):
        spec = WordVectorsSpec(path=path, normalize_words=normalize_words)
        encoder, found = embed(spec, ["Cat, the dog… (кот!)", "Cat", "the Cat кот"])
        rows = encoder.encode(found)
        np.testing.assert_allclose(rows[0], expected, atol=1e-6)
        np.testing.assert_array_equal(rows[0], encoder.encode([encoder.prepare("Cat the кот")])[0])
        assert encoder.counts(found[0]) == {
            "words": 4, "unknown_words": 1, "words_by_spelling": 0,
        }  # fmt: skip
    encoder, found = embed(WordVectorsSpec(path=path, normalize=True), ["Cat the кот"])
    np.testing.assert_allclose(np.linalg.norm(encoder.encode(found)), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("case", "known"),
    [
        ("either", ["THE", "The", "the", "Cat"]),
        ("keep", ["the", "Cat"]),
        ("lower", ["THE", "The", "the"]),
    ],
)
def test_case(case: Any, known: list[str], tmp_path: Path) -> None:
    spec = WordVectorsSpec(path=saved(tmp_path, GENSIM_TEXT), case=case)
    words = ["THE", "The", "the", "Cat", "CAT"]
    _, found = embed(spec, words)
    assert [w for w, f in zip(words, found, strict=True) if not isinstance(f, Exception)] == known


def test_words_of_any_script() -> None:
    assert split_words("don't stop—l’été, 3.5 x_1!", at="words") == [
        "don't", "stop", "l’été", "3", "5", "x_1",
    ]  # fmt: skip
    assert split_words("हिन्दी में लिखो। สวัสดีครับ می‌خواهم", at="words") == [
        "हिन्दी", "में", "लिखो", "สวัสดีครับ", "می‌خواهم",
    ]  # fmt: skip
    assert split_words("do n't  stop .\n", at="blanks") == ["do", "n't", "stop", "."]
    assert split_words("e\u0301te\u0301", at="words") == ["été"]


def test_what_has_no_embedding_says_why(tmp_path: Path) -> None:
    zeros = GENSIM_TEXT.replace("кот 0.0 1.0 -1.0".encode(), "кот -0.5 1.0 -2.0".encode())
    _, found = embed(
        WordVectorsSpec(path=saved(tmp_path, zeros)), ["", "?!", "dog cow", "the кот", "the"]
    )
    assert [str(item) for item in found[:4]] == [
        "the text has no word",
        "the text has no word",
        "the file of vectors knows none of the 2 words, such as 'dog', 'cow'",
        "the vectors of its words add up to zero",
    ]
    assert found[4].words == 1


def test_other_texts_change_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    vectors = random.normal(size=(50, 20)).astype(np.float32)
    lines = [f"w{i} {' '.join(map(str, row))}\n" for i, row in enumerate(vectors)]
    spec = WordVectorsSpec(path=saved(tmp_path, "".join(lines).encode()))
    texts = [" ".join(f"w{i}" for i in random.integers(0, 60, n)) for n in (5, 40, 1, 300, 7)]
    encoder, together = embed(spec, texts)
    monkeypatch.setattr("features.encoders.word_vectors.AT_ONCE", 50)
    for text, mean, cut in zip(texts, together, encoder.prepare_all(texts), strict=True):
        np.testing.assert_array_equal(encoder.prepare(text).embedding_D, mean.embedding_D)
        np.testing.assert_array_equal(cut.embedding_D, mean.embedding_D)
        known = [int(word[1:]) for word in text.split() if int(word[1:]) < 50]
        expected = vectors[known].astype(np.float64).mean(axis=0)
        np.testing.assert_allclose(mean.embedding_D, expected, atol=1e-6)


def test_identity_is_the_content(tmp_path: Path) -> None:
    one = WordVectorsSpec(path=saved(tmp_path, GENSIM_TEXT, name="a.vec"))
    same = WordVectorsSpec(path=saved(tmp_path, GENSIM_TEXT, name="b.txt"), batch_size=3)
    other = WordVectorsSpec(path=saved(tmp_path, GENSIM_TEXT + b"\n", name="c.vec"))
    assert one.fingerprint() == same.fingerprint()
    assert other.fingerprint() != one.fingerprint()
    assert one.model_copy(update={"case": "keep"}).fingerprint() != one.fingerprint()
    relative = {"type": "word_vectors", "path": "a.vec"}
    found = WordVectorsSpec.model_validate(relative, context={"folder": str(tmp_path)})
    assert found.fingerprint() == one.fingerprint()


QUANTISED = FASTTEXT.replace(b"\x00" + struct.pack("<2q", 22, 3), b"\x01" + bytes(16))
DAMAGED = {
    "nothing": (b"", "holds no word vectors"),
    "prose": (b"It was a dark night;\nthe rain fell.\n", "line 1 is not a word and 4 numbers"),
    "no words": (b"0 3\n", "says that it holds 0 words"),
    "a short line": (GENSIM_TEXT.replace(b"0.125 ", b""), "line 4 is not a word and 3 numbers"),
    "short text": (GENSIM_TEXT[:38], "says 5 words, and 2 are there"),
    "short binary": (GENSIM_BINARY[:-1], "is cut short"),
    "binary of another width": (GENSIM_BINARY.replace(b"5 3\n", b"4 4\n"), "cut short or damaged"),
    "short gzip": (gzip.compress(GENSIM_TEXT * 99)[:-9], "is cut short or damaged"),
    "fastText of another version": (
        FASTTEXT[:4] + struct.pack("<i", 13) + FASTTEXT[8:],
        "version 13",
    ),
    "short fastText, vectors": (FASTTEXT[:250], "cut short, in its vectors"),
    "short fastText, words": (FASTTEXT[:110], "cut short, in its words"),
    "short fastText, arguments": (FASTTEXT[:20], "cut short, in its words"),
    "quantised fastText": (QUANTISED, "quantised"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_refused_by_name(name: str, tmp_path: Path) -> None:
    content, message = DAMAGED[name]
    assert content != FASTTEXT
    path = saved(tmp_path, content)
    with pytest.raises(ValueError, match=message) as caught:
        WordVectorsSpec(path=path).load()
    assert path in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`path`: there is no file"):
        WordVectorsSpec(path=str(tmp_path / "none.vec")).fingerprint()
    with pytest.raises(pydantic.ValidationError, match="did you mean 'path'"):
        WordVectorsSpec.model_validate({"type": "word_vectors", "paht": "a.vec"})


@pytest.mark.parametrize("content", [GENSIM_BINARY, FASTTEXT], ids=["word2vec", "fastText"])
def test_it_conforms(content: bytes, tmp_path: Path) -> None:
    spec = WordVectorsSpec(path=saved(tmp_path, content))
    samples = ["the cat", "Cat", "the the the", "naïve dogs", "кот the"]
    found = check_encoder(spec, payloads=[s + " the" for s in samples])
    assert [f"{item.check}: {item.problem}" for item in found if not item.passed] == []
